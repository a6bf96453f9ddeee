// The roof for programs in other languages: for each line {"bytes": N} on stdin, a line of JSON with what reading N
// bytes of memory and each kind of arithmetic reach at that moment, in bytes and multiply-adds per second.
//
//   roof_turns THREADS MEGABYTES
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>

#include "quanto/parallel.h"
#include "roof.h"

int main(int argc, char** argv) {
  using namespace quanto::bench;
  if (argc != 3) {
    std::fprintf(stderr, "usage: roof_turns THREADS MEGABYTES\n");
    return 2;
  }
  quanto::set_thread_count(std::atoi(argv[1]));
  Pool pool(std::atoll(argv[2]));
  for (std::string line; std::getline(std::cin, line);) {
    const std::size_t number = std::min(line.find_first_of("0123456789"), line.size());
    std::printf("{\"read\": %.6g", pool.measure_read(std::atoll(line.c_str() + number)));
    for (const Arithmetic kind : {Arithmetic::fp32, Arithmetic::bf16, Arithmetic::int8}) {
      if (has_peak(kind)) std::printf(", \"%s\": %.6g", arithmetic_name(kind), measure_peak(kind));
    }
    std::printf("}\n");
    std::fflush(stdout);
  }
  return 0;
}
