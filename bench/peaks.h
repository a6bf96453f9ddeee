// What one core can do at most, measured rather than looked up: multiply-adds of each kind, and reads of memory. One
// table per instruction set, compiled with its flags; a null entry means that it has no instructions of that kind.
#pragma once

#include <cstdint>

namespace quanto::bench {

/// A loop of independent instructions; `macs`: multiply-adds in one of its steps.
struct Peak {
  std::int64_t macs;
  void (*run)(std::int64_t steps);
};

struct Peaks {
  const char* isa;  ///< as isas() names it
  Peak fp32;        ///< fused multiply-adds of float32
  Peak bf16;        ///< dot products of bfloat16, summed in float32
  Peak int8;        ///< dot products of int8, summed in int32
  void (*read)(const void* from, std::int64_t bytes);
  Peak packed = {};  ///< dot products of int8 and codes of few bits, summed in int16 first, where those are faster
};

}  // namespace quanto::bench

extern "C" {
extern const quanto::bench::Peaks quanto_peaks_portable;
extern const quanto::bench::Peaks quanto_peaks_avx2;
extern const quanto::bench::Peaks quanto_peaks_avx512;
extern const quanto::bench::Peaks quanto_peaks_avx512_bf16;
extern const quanto::bench::Peaks quanto_peaks_avx512_amx;
}
