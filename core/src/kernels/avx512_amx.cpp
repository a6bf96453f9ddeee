// AVX-512 with VBMI, BF16 and AMX: matmuls of more than a row or a few in tiles, for all types of activations. Fewer
// rows of bfloat16 are widened for multiply-adds: CPUs with AMX take two cycles for a bfloat16 dot product outside of
// tiles. Those of other activations are left to the kernels of AVX-512.
#include "kernels/amx_int8-inl.h"
#include "kernels/amx_panel-inl.h"
#include "kernels/amx_rows-inl.h"
#include "kernels/few_rows-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/panel-inl.h"

namespace quanto::kernels {
namespace {

/// The seam between few and many rows, where both cost the same. Panels read a weight in a time that hardly depends on
/// the rows; it is longer for 8-bit codes, and for activations that are two or three terms.
constexpr std::int64_t fewest_panel_rows(QType qtype, DType dtype) {
  const bool packed = is_affine_qtype(qtype);
  return dtype == DType::bfloat16 ? (packed ? 7 : 11) : (packed ? 9 : 13);
}

/// Between them tiles of a few rows, which read each weight once: from fewest_tile_rows() to most_tile_rows().
constexpr std::int64_t fewest_tile_rows(QType qtype, DType dtype) {
  const bool packed = is_affine_qtype(qtype);
  if (dtype == DType::bfloat16) return packed ? 1 : 4;
  if (dtype == DType::float16) return packed ? 2 : 4;
  return packed ? 3 : 5;
}
constexpr std::int64_t most_tile_rows(DType dtype) { return dtype == DType::bfloat16 ? 32 : 16; }

template <QType kQType, DType kDType>
constexpr MatmulKernel kFewRowsInTiles =
    kAmxRowsKernel<kQType, kDType, fewest_tile_rows(kQType, kDType), most_tile_rows(kDType)>;
template <QType kQType, DType kDType>
constexpr MatmulKernel kPanel = kAmxPanelKernel<kQType, kDType, fewest_panel_rows(kQType, kDType)>;

template <QType kQType, DType kDType>
constexpr MatmulKernel kKernels[] = {kFewRowsInTiles<kQType, kDType>, kPanel<kQType, kDType>};

template <QType kQType, bool kLookedUp = is_float8(kQType)>
struct WidenedDots : FloatDots<kQType> {};
template <QType kQType>
struct WidenedDots<kQType, true> : LookedUpFloatDots<kQType> {};

template <QType kQType>
constexpr MatmulKernel kBf16Kernels[] = {
    kFewRowsInTiles<kQType, DType::bfloat16>,
    kPanel<kQType, DType::bfloat16>,
    kFewRowsKernel<WidenedDots<kQType>, DType::bfloat16, fewest_panel_rows(kQType, DType::bfloat16) - 1>,
};

template <QType kQType>
constexpr MatmulKernel kInt8Kernels[] = {DecodedPanel<Int8Tiles, kQType, 2, 16, 17>::kKernel};

template <QType kQType>
constexpr void fill_cells(KernelTable& table) {
  auto* cells = table.matmul[static_cast<int>(kQType)];
  cells[static_cast<int>(DType::float32)] = {kKernels<kQType, DType::float32>, 2};
  cells[static_cast<int>(DType::bfloat16)] = {kBf16Kernels<kQType>, 3};
  cells[static_cast<int>(DType::float16)] = {kKernels<kQType, DType::float16>, 2};
}

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
  fill_cells<QType::qint2>(table);
  fill_cells<QType::qint4>(table);
  fill_cells<QType::qint8>(table);
  fill_cells<QType::qfloat8_e4m3fn>(table);
  fill_cells<QType::qfloat8_e4m3fnuz>(table);
  fill_cells<QType::qfloat8_e5m2>(table);
  return table;
}

}  // namespace
}  // namespace quanto::kernels

extern "C" const quanto::kernels::KernelTable quanto_kernels_avx512_amx = quanto::kernels::amx_table();
