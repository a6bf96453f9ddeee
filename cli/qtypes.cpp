#include <cstdio>

#include "commands.h"
#include "quanto/qtype.h"

namespace quanto::cli {
namespace {

void print_qtypes() {
  std::printf("%-18s %4s  %-16s %10s %10s\n", "qtype", "bits", "storage", "qmin", "qmax");
  for (const QTypeInfo& q : qtypes()) {
    std::printf("%-18s %4d  %-16s %10g %10g\n", q.name.data(), q.bits, q.storage.data(), q.qmin, q.qmax);
  }
}

}  // namespace

void add_qtypes(CLI::App& app) { app.add_subcommand("qtypes", "List the quantized types")->callback(print_qtypes); }

}  // namespace quanto::cli
