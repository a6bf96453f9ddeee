// The kernels that every instruction set has in the same form: those of floats and of int8 activations that need
// nothing but vectors. avx512_bf16.cpp and avx512_amx.cpp put better ones before them.
//
// The including unit defines `Simd`: kRowVectors and kTile, the shape of the sums that a panel holds in registers, and
// from how many rows on panels beat the kernels for few: kFewestPanelRows, kFewestInt8WeightPanelRows where weights are
// int8, and for int8 activations kFewestInt8PanelRows, or kFewestPackedInt8PanelRows where codes are packed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/few_rows-inl.h"
#include "kernels/float_steps-inl.h"
#include "kernels/int8_dots-inl.h"
#include "kernels/int8_rows-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/panel-inl.h"
#include "kernels/rows-inl.h"
#if defined(__AVX512F__)
#include "kernels/channel_lanes-inl.h"
#include "kernels/float_columns-inl.h"
#include "kernels/pair_lanes-inl.h"
#include "kernels/quarter_lanes-inl.h"
#include "kernels/table_columns-inl.h"
#endif

namespace quanto::kernels {
namespace {

template <QType kQType>
constexpr std::int64_t kFewestPanelRows =
    kQType == QType::qint8 ? Simd::kFewestInt8WeightPanelRows : Simd::kFewestPanelRows;

template <QType kQType, DType kDType>
constexpr MatmulKernel kPanelKernel = DecodedPanel<FloatWeights<kQType, kDType>, kQType, Simd::kRowVectors, Simd::kTile,
                                                   kFewestPanelRows<kQType>>::kKernel;

template <class Step, QType kQType, std::int64_t kFewestRows>
constexpr MatmulKernel kInt8PanelKernel =
    DecodedPanel<Step, kQType, Simd::kRowVectors, Simd::kTile, kFewestRows>::kKernel;

/// Best first; the last one serves what the others do not.
template <QType kQType, DType kDType, bool kPacked = is_affine_qtype(kQType)>
struct Cell {
  static constexpr MatmulKernel kKernels[] = {
      kPanelKernel<kQType, kDType>,
      kFewRowsKernel<FloatDots<kQType>, kDType, kFewestPanelRows<kQType> - 1>,
      kRowsKernel<kQType, kDType>,
  };
};
#if defined(__AVX512F__)
template <QType kQType, DType kDType>
constexpr MatmulKernel kLanesKernel = ChannelLanes<FloatColumns<kQType, kDType>>::kKernel;
template <QType kQType, DType kDType>
constexpr MatmulKernel kOneFieldLanesKernel = ChannelLanes<OneField<FloatColumns<kQType, kDType>>>::kKernel;

/// Where pairs of lanes are better than either few_rows-inl.h or whole vectors of channels.
template <class Columns, QType kQType>
struct PairsOf : PairLanes<Columns, 3, 4, 5, 6, 7, 8> {};
template <class Columns>
struct PairsOf<Columns, QType::qint8> : PairLanes<Columns, 4, 5, 6, 7, 8> {};
template <QType kQType, DType kDType>
constexpr MatmulKernel kPairsKernel =
    PairsOf<FloatColumns<kQType, DType::float32>, kQType>::template kKernel<FloatColumns<kQType, kDType>>;
template <QType kQType, DType kDType>
constexpr MatmulKernel kOneFieldPairsKernel =
    PairsOf<OneField<FloatColumns<kQType, DType::float32>>, kQType>::template kKernel<FloatColumns<kQType, kDType>>;
template <QType kQType, DType kDType>
constexpr MatmulKernel kQuartersKernel =
    QuarterLanes<FloatColumns<kQType, DType::float32>>::template kKernel<FloatColumns<kQType, kDType>>;
template <QType kQType, DType kDType>
constexpr MatmulKernel kOneFieldQuartersKernel =
    QuarterLanes<OneField<FloatColumns<kQType, DType::float32>>>::template kKernel<FloatColumns<kQType, kDType>>;

template <DType kDType>
struct Cell<QType::qint8, kDType, false> {
  static constexpr MatmulKernel kKernels[] = {
      kPairsKernel<QType::qint8, kDType>,
      kLanesKernel<QType::qint8, kDType>,
      kPanelKernel<QType::qint8, kDType>,
      kFewRowsKernel<FloatDots<QType::qint8>, kDType, kFewestPanelRows<QType::qint8> - 1>,
      kRowsKernel<QType::qint8, kDType>,
  };
};
/// Codes of two bits meet tables, up to as many rows as those serve.
template <DType kDType>
struct Cell<QType::qint2, kDType, true> {
  static constexpr MatmulKernel kKernels[] = {
      ChannelLanes<TableColumns<kDType>>::kKernel,
      ChannelLanes<OneField<TableColumns<kDType>>>::kKernel,
      kLanesKernel<QType::qint2, kDType>,
      kOneFieldLanesKernel<QType::qint2, kDType>,
      kPanelKernel<QType::qint2, kDType>,
      kFewRowsKernel<FloatDots<QType::qint2>, kDType, 1>,
      kFewRowsKernel<OneField<FloatDots<QType::qint2>>, kDType, 1>,
      kRowsKernel<QType::qint2, kDType>,
  };
};
template <QType kQType, DType kDType>
struct Cell<kQType, kDType, true> {
  static constexpr MatmulKernel kKernels[] = {
      kQuartersKernel<kQType, kDType>,
      kOneFieldQuartersKernel<kQType, kDType>,
      kPairsKernel<kQType, kDType>,
      kOneFieldPairsKernel<kQType, kDType>,
      kLanesKernel<kQType, kDType>,
      kOneFieldLanesKernel<kQType, kDType>,
      kPanelKernel<kQType, kDType>,
      kFewRowsKernel<FloatDots<kQType>, kDType, kFewestPanelRows<kQType> - 1>,
      kFewRowsKernel<OneField<FloatDots<kQType>>, kDType, kFewestPanelRows<kQType> - 1>,
      kRowsKernel<kQType, kDType>,
  };
};
#else
template <QType kQType, DType kDType>
struct Cell<kQType, kDType, true> {
  static constexpr MatmulKernel kKernels[] = {
      kPanelKernel<kQType, kDType>,
      kFewRowsKernel<FloatDots<kQType>, kDType, kFewestPanelRows<kQType> - 1>,
      kFewRowsKernel<OneField<FloatDots<kQType>>, kDType, kFewestPanelRows<kQType> - 1>,
      kRowsKernel<kQType, kDType>,
  };
};
#endif

template <QType kQType, DType kDType>
constexpr void fill_cell(KernelTable& table) {
  using Kernels = Cell<kQType, kDType>;
  table.matmul[static_cast<int>(kQType)][static_cast<int>(kDType)] = {
      Kernels::kKernels, static_cast<int>(sizeof(Kernels::kKernels) / sizeof(MatmulKernel))};
}

template <QType kQType>
constexpr void fill_cells(KernelTable& table) {
  fill_cell<kQType, DType::float32>(table);
  fill_cell<kQType, DType::bfloat16>(table);
  fill_cell<kQType, DType::float16>(table);
}

/// Int8 activations, best first.
template <QType kQType, bool kPacked>
struct Int8Cell {
  static constexpr std::int64_t kFewestRows = Simd::kFewestInt8PanelRows;
  static constexpr MatmulKernel kKernels[] = {
      kInt8PanelKernel<Int8Pairs, kQType, kFewestRows>,
      kFewRowsKernel<Int8PairDots<kQType>, DType::float32, kFewestRows - 1>,
      kInt8RowsKernel<kQType>,
  };
};
#if defined(__AVX2__)
template <QType kQType>
struct Int8Cell<kQType, true> {
  static constexpr std::int64_t kFewestRows = Simd::kFewestPackedInt8PanelRows;
  static constexpr MatmulKernel kKernels[] = {
      kInt8PanelKernel<Int8SmallQuads<bits_of(kQType)>, kQType, kFewestRows>,
      kFewRowsKernel<Int8SmallDots<kQType>, DType::float32, kFewestRows - 1>,
      kFewRowsKernel<OneField<Int8SmallDots<kQType>>, DType::float32, kFewestRows - 1>,
      kFewRowsKernel<Int8PairDots<kQType>, DType::float32, kFewestRows - 1>,
      kFewRowsKernel<OneField<Int8PairDots<kQType>>, DType::float32, kFewestRows - 1>,
      kInt8RowsKernel<kQType>,
  };
};
#else
template <QType kQType>
struct Int8Cell<kQType, true> {
  static constexpr std::int64_t kFewestRows = Simd::kFewestPackedInt8PanelRows;
  static constexpr MatmulKernel kKernels[] = {
      kInt8PanelKernel<Int8Pairs, kQType, kFewestRows>,
      kFewRowsKernel<Int8PairDots<kQType>, DType::float32, kFewestRows - 1>,
      kFewRowsKernel<OneField<Int8PairDots<kQType>>, DType::float32, kFewestRows - 1>,
      kInt8RowsKernel<kQType>,
  };
};
#endif

template <QType kQType>
constexpr void fill_int8_cell(KernelTable& table) {
  using Kernels = Int8Cell<kQType, is_affine_qtype(kQType)>;
  table.int8[static_cast<int>(kQType)] = {Kernels::kKernels,
                                          static_cast<int>(sizeof(Kernels::kKernels) / sizeof(MatmulKernel))};
}

constexpr void fill_int8_cells(KernelTable& table) {
  fill_int8_cell<QType::qint8>(table);
  fill_int8_cell<QType::qint4>(table);
  fill_int8_cell<QType::qint2>(table);
}

/// A table whose every cell holds a kernel that serves all shapes.
constexpr KernelTable generic_table(Isa isa) {
  KernelTable table{};
  table.isa = isa;
  fill_int8_cells(table);
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
