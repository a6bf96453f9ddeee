// AVX-512 with VBMI, BF16 and AMX. Cells that are empty here are left to the kernels of AVX-512 with BF16.
#include "kernels/amx_tiles-inl.h"
#include "kernels/kernel_table.h"

namespace quanto::kernels {
namespace {

constexpr KernelTable amx_table() {
  KernelTable table{};
  table.isa = Isa::avx512_amx;
  return table;
}

}  // namespace
}  // namespace quanto::kernels

extern "C" const quanto::kernels::KernelTable quanto_kernels_avx512_amx = quanto::kernels::amx_table();
