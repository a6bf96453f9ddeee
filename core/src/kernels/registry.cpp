#include "kernels/registry.h"

#include <array>

#include "quanto/error.h"
#include "quanto/isa.h"

namespace quanto::kernels {
namespace {

// Everything that was compiled in, most capable first.
constexpr std::array kMatmulTables = {
#ifdef QUANTO_HAVE_AVX512_AMX
    &quanto_kernels_avx512_amx,
#endif
#ifdef QUANTO_HAVE_AVX512_BF16
    &quanto_kernels_avx512_bf16,
#endif
#ifdef QUANTO_HAVE_AVX512
    &quanto_kernels_avx512,
#endif
#ifdef QUANTO_HAVE_AVX2
    &quanto_kernels_avx2,
#endif
    &quanto_kernels_portable,
};

constexpr std::array kQuantizeTables = {
#ifdef QUANTO_HAVE_AVX512
    &quanto_quantize_avx512,
#endif
#ifdef QUANTO_HAVE_AVX2
    &quanto_quantize_avx2,
#endif
    &quanto_quantize_portable,
};

const MatmulKernel* first_supporting(const MatmulKernels& kernels, const MatmulArgs& args) {
  for (int i = 0; i < kernels.count; ++i) {
    if (kernels.list[i].supports(args)) return &kernels.list[i];
  }
  return nullptr;
}

}  // namespace

bool is_compiled(Isa isa) {
  for (const KernelTable* table : kMatmulTables) {
    if (table->isa == isa) return true;
  }
  return false;
}

Choice choose_matmul(const MatmulArgs& args) {
  const Isa active = active_isa();
  for (const KernelTable* table : kMatmulTables) {
    if (table->isa > active) continue;
    const auto qtype = static_cast<int>(args.qtype);
    const auto& cell = args.x_is_int8 ? table->int8[qtype] : table->matmul[qtype][static_cast<int>(args.x_dtype)];
    if (const MatmulKernel* kernel = first_supporting(cell, args)) return {table->isa, kernel};
  }
  throw Error("[matmul] internal: no kernel serves this call");
}

const QuantizeKernels& quantize_kernels() {
  const Isa active = active_isa();
  for (const QuantizeKernels* table : kQuantizeTables) {
    if (table->isa <= active) return *table;
  }
  return quanto_quantize_portable;
}

}  // namespace quanto::kernels
