// AVX-512 with VBMI, VNNI and BF16: bfloat16 activations meet codes in dot product instructions, as do one or two rows
// of float16 ones with packed codes, and int8 ones those of integer weights; up to kMostLaneRows rows of other
// activations meet float8 codes that are looked up. All other cells are left to the kernels of AVX-512.
#include "kernels/bf16_codes-inl.h"
#include "kernels/bf16_columns-inl.h"
#include "kernels/bf16_steps-inl.h"
#include "kernels/channel_lanes-inl.h"
#include "kernels/few_rows-inl.h"
#include "kernels/int8_dots-inl.h"
#include "kernels/pair_lanes-inl.h"
#include "kernels/panel-inl.h"
#include "kernels/quarter_lanes-inl.h"

namespace quanto::kernels {
namespace {

// From where a panel, which is for 16 or 32 rows, costs no more than few rows do.
constexpr std::int64_t kFewestPanelRows = 23;
constexpr std::int64_t kFewestInt8PanelRows = 10, kFewestPackedInt8PanelRows = 13;
constexpr std::int64_t kMostLookedUpRows = 26;  // before the panel of avx512.cpp

// Sums in registers: with 4 vectors of rows and a pair of weights they fill 32.
constexpr int kRowVectors = 4, kTile = 6;

template <QType kQType>
constexpr MatmulKernel kBf16Panel =
    DecodedPanel<Bf16Pairs<kQType>, kQType, kRowVectors, kTile, kFewestPanelRows>::kKernel;

template <class Columns>
constexpr MatmulKernel kBf16Lanes = ChannelLanes<Columns>::kKernel;

template <QType kQType, bool kPacked = is_affine_qtype(kQType)>
struct Cell {
  static constexpr MatmulKernel kKernels[] = {
      PairLanes<Bf16Columns<kQType>, 2, 3, 4, 5, 6, 7, 8>::template kKernel<>,
      kBf16Lanes<Bf16Columns<kQType>>,
      kBf16Panel<kQType>,
      kFewRowsKernel<Bf16Dots<kQType>, DType::bfloat16, kFewestPanelRows - 1>,
  };
};
template <QType kQType>
struct Cell<kQType, true> {
  static constexpr MatmulKernel kKernels[] = {
      QuarterLanes<Bf16Columns<kQType>, true>::template kKernel<>,
      QuarterLanes<Bf16Columns<kQType>>::template kKernel<>,
      QuarterLanes<OneField<Bf16Columns<kQType>>, true>::template kKernel<>,
      QuarterLanes<OneField<Bf16Columns<kQType>>>::template kKernel<>,
      kBf16Lanes<Bf16Columns<kQType>>,
      kBf16Lanes<OneField<Bf16Columns<kQType>>>,
      kBf16Panel<kQType>,
      kFewRowsKernel<Bf16Dots<kQType>, DType::bfloat16, kFewestPanelRows - 1>,
      kFewRowsKernel<OneField<Bf16Dots<kQType>>, DType::bfloat16, kFewestPanelRows - 1>,
  };
};

template <QType kQType, bool kPacked = is_affine_qtype(kQType)>
struct Int8Cell {
  static constexpr MatmulKernel kKernels[] = {
      DecodedPanel<Int8Quads, kQType, kRowVectors, kTile, kFewestInt8PanelRows>::kKernel,
      kFewRowsKernel<Int8QuadDots<kQType>, DType::float32, kFewestInt8PanelRows - 1>,
  };
};
template <QType kQType>
struct Int8Cell<kQType, true> {
  static constexpr MatmulKernel kKernels[] = {
      DecodedPanel<Int8Quads, kQType, kRowVectors, kTile, kFewestPackedInt8PanelRows>::kKernel,
      kFewRowsKernel<Int8QuadDots<kQType>, DType::float32, kFewestPackedInt8PanelRows - 1>,
      kFewRowsKernel<OneField<Int8QuadDots<kQType>>, DType::float32, kFewestPackedInt8PanelRows - 1>,
  };
};

template <QType kQType>
constexpr void fill_int8_cell(KernelTable& table) {
  using Kernels = Int8Cell<kQType>;
  table.int8[static_cast<int>(kQType)] = {Kernels::kKernels,
                                          static_cast<int>(sizeof(Kernels::kKernels) / sizeof(MatmulKernel))};
}

template <QType kQType>
constexpr void fill_cell(KernelTable& table) {
  using Kernels = Cell<kQType>;
  table.matmul[static_cast<int>(kQType)][static_cast<int>(DType::bfloat16)] = {
      Kernels::kKernels, static_cast<int>(sizeof(Kernels::kKernels) / sizeof(MatmulKernel))};
}

template <QType kQType, DType kDType>
constexpr MatmulKernel kLookedUpKernels[] = {
    PairLanes<LookedUpColumns<kQType, DType::float32>, 3, 4, 5, 6, 7,
              8>::template kKernel<LookedUpColumns<kQType, kDType>>,
    ChannelLanes<LookedUpColumns<kQType, kDType>>::kKernel,
    kFewRowsKernel<LookedUpFloatDots<kQType>, kDType, kMostLookedUpRows>,
};

template <QType kQType>
constexpr void fill_float8_cells(KernelTable& table) {
  auto* cells = table.matmul[static_cast<int>(kQType)];
  cells[static_cast<int>(DType::float32)] = {kLookedUpKernels<kQType, DType::float32>, 3};
  cells[static_cast<int>(DType::float16)] = {kLookedUpKernels<kQType, DType::float16>, 3};
}

/// Up to where lookups take so much of the time that half as many are worth as many dot products as multiply-adds. From
/// two rows on codes of two bits meet tables.
template <QType kQType>
constexpr std::int64_t kMostSplitRows = kQType == QType::qint2 ? 1 : 2;
template <QType kQType>
constexpr MatmulKernel kSplitKernels[] = {
    kFewRowsKernel<SplitFloat16Dots<kQType>, DType::float16, kMostSplitRows<kQType>>,
    kFewRowsKernel<OneField<SplitFloat16Dots<kQType>>, DType::float16, kMostSplitRows<kQType>>,
};

template <QType kQType>
constexpr void fill_split_cell(KernelTable& table) {
  table.matmul[static_cast<int>(kQType)][static_cast<int>(DType::float16)] = {kSplitKernels<kQType>, 2};
}

constexpr KernelTable bf16_table() {
  KernelTable table{};
  table.isa = Isa::avx512_bf16;
  fill_cell<QType::qint2>(table);
  fill_cell<QType::qint4>(table);
  fill_cell<QType::qint8>(table);
  fill_cell<QType::qfloat8_e4m3fn>(table);
  fill_cell<QType::qfloat8_e4m3fnuz>(table);
  fill_cell<QType::qfloat8_e5m2>(table);
  fill_split_cell<QType::qint2>(table);
  fill_split_cell<QType::qint4>(table);
  fill_int8_cell<QType::qint2>(table);
  fill_int8_cell<QType::qint4>(table);
  fill_int8_cell<QType::qint8>(table);
  fill_float8_cells<QType::qfloat8_e4m3fn>(table);
  fill_float8_cells<QType::qfloat8_e4m3fnuz>(table);
  fill_float8_cells<QType::qfloat8_e5m2>(table);
  return table;
}

}  // namespace
}  // namespace quanto::kernels

extern "C" const quanto::kernels::KernelTable quanto_kernels_avx512_bf16 = quanto::kernels::bf16_table();
