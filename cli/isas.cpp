#include <cstdio>
#include <memory>

#include "commands.h"
#include "quanto/isa.h"
#include "quanto/matmul.h"
#include "quanto/qtype.h"

namespace quanto::cli {
namespace {

const char* yes_no(bool value) { return value ? "yes" : "no"; }

void print_isas() {
  const Isa active = active_isa();
  std::printf("%-12s %-8s %-9s %-6s %s\n", "isa", "compiled", "supported", "active", "needs");
  for (const IsaInfo& isa : isas()) {
    std::printf("%-12s %-8s %-9s %-6s %s\n", isa.name.data(), yes_no(isa.compiled), yes_no(isa.supported),
                yes_no(isa.isa == active), isa.requires_.data());
  }
}

/// The kernel of each cell, for a layer of 4096 x 4096 and a few numbers of rows.
void print_kernels() {
  constexpr std::int64_t kSize = 4096;
  for (const QTypeInfo& q : qtypes()) {
    for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
      for (const std::int64_t rows : {1, 8, 512}) {
        WeightView w{};
        w.qtype = q.qtype;
        w.out_features = w.in_features = kSize;
        w.group_size = is_affine(q.qtype) ? 128 : 0;
        w.scale_dtype = dtype;
        const std::string kernel = matmul_kernel_name({nullptr, dtype, rows, kSize}, w);
        std::printf("%-18s %-9s %4ld rows  %s\n", q.name.data(), dtype_name(dtype).data(), static_cast<long>(rows),
                    kernel.c_str());
      }
    }
  }
}

}  // namespace

void add_isas(CLI::App& app) {
  auto* command = app.add_subcommand("isas", "List the instruction sets that kernels exist for");
  auto kernels = std::make_shared<bool>(false);
  command->add_flag("--kernels", *kernels, "Also list the kernel that serves each weight and activation type");
  command->callback([kernels] {
    print_isas();
    if (*kernels) print_kernels();
  });
}

}  // namespace quanto::cli
