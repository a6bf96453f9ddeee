// AVX-512 with VBMI, BF16 and AMX. Cells that are empty here are left to the kernels of AVX-512 with BF16.
#include "kernels/amx_int8-inl.h"
#include "kernels/amx_tiles-inl.h"
#include "kernels/int8_panel-inl.h"
#include "kernels/kernel_table.h"

namespace quanto::kernels {
namespace {

template <QType kQType>
constexpr MatmulKernel kInt8Kernels[] = {Int8Panel<Int8Tiles, kQType, 2, 16, 17>::kKernel};

template <QType kQType>
constexpr void fill_int8_cell(KernelTable& table) {
  table.int8[static_cast<int>(kQType)] = {kInt8Kernels<kQType>, 1};
}

constexpr KernelTable amx_table() {
  KernelTable table{};
  table.isa = Isa::avx512_amx;
  fill_int8_cell<QType::qint2>(table);
  fill_int8_cell<QType::qint4>(table);
  fill_int8_cell<QType::qint8>(table);
  return table;
}

}  // namespace
}  // namespace quanto::kernels

extern "C" const quanto::kernels::KernelTable quanto_kernels_avx512_amx = quanto::kernels::amx_table();
