// The kernel for many rows: decode a block of weights to float32 once, then multiply all rows with it in registers.
//
// Rows of activations are the lanes of a vector, because that keeps the decoded weights in the order of the checkpoint
// (a contiguous run for each channel) and makes every weight a broadcast. prepare() transposes the activations into
// blocks of kBlockRows rows; run() holds kTile channels x kBlockRows rows of sums in registers while it walks along K.
//
// The including unit defines `Simd`: V, kLanes, load, store, broadcast, multiply_add; kRowVectors and kTile, the shape
// of the sums in registers; kFewestPanelRows, from which on this beats the kernel of rows-inl.h; and Narrow, vectors of
// half the width (or Simd itself).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/codes_panel-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/few_rows-inl.h"
#include "kernels/int8_dots-inl.h"
#include "kernels/int8_rows-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/panel_units-inl.h"
#include "kernels/rows-inl.h"
#include "kernels/transpose-inl.h"

namespace quanto::kernels {
namespace {

constexpr std::int64_t kBlockRows = Simd::kLanes * Simd::kRowVectors;
constexpr std::int64_t kTile = Simd::kTile;
constexpr std::int64_t kPanelChannels = 8 * kTile;  // decoded together, so that a block of activations is read from L2
constexpr std::int64_t kPanelDepth = 512;           // with 48 channels: 96 KiB of decoded weights
constexpr std::int64_t kPanelRows = 512;            // rows that share one decoding: 96 KiB of sums

/// The transposed activations: blocks of kBlockRows rows, each K x kBlockRows, the last one filled up with zeros.
inline float* block_at(const MatmulArgs& a, std::int64_t block, std::int64_t k) {
  return static_cast<float*>(a.workspace) + (block * a.K + k) * kBlockRows;
}

std::size_t panel_workspace_bytes(const MatmulArgs& a) {
  return static_cast<std::size_t>(ceil_div(a.M, kBlockRows) * kBlockRows * a.K) * sizeof(float);
}

/// kLanes rows from m on, as many columns from k on.
template <DType kDType>
inline void prepare_square(const MatmulArgs& a, std::int64_t m, std::int64_t k) {
  const auto count = static_cast<int>(smaller(kLanes, a.K - k));
  BitLanes square[kLanes];
  for (std::int64_t r = 0; r < kLanes; ++r) {
    const std::int64_t from = (m + r) * a.x_stride + k;
    square[r] = m + r >= a.M      ? BitLanes{}
                : count == kLanes ? bits_from_float(load_floats(a.x, kDType, from, kLanes))
                                  : bits_from_float(load_floats(a.x, kDType, from, count));
  }
  transpose(square);
  float* out = block_at(a, m / kBlockRows, k) + m % kBlockRows;
  for (int column = 0; column < count; ++column) store(out + column * kBlockRows, square[column], kLanes);
}

/// Squares of kLanes rows, each by whoever has its first one; the last rows of a block may not exist.
template <DType kDType>
void panel_prepare(const MatmulArgs& a, std::int64_t begin, std::int64_t end) {
  static_assert(kBlockRows % kLanes == 0);
  const std::int64_t filled = end == a.M ? round_up(a.M, kBlockRows) : end;
  for (std::int64_t m = round_up(begin, kLanes); m < filled; m += kLanes) {
    for (std::int64_t k = 0; k < a.K; k += kLanes) prepare_square<kDType>(a, m, k);
  }
}

/// The activations that the next block will read are fetched from the L3 cache meanwhile, a part with each tile:
/// waiting for them took a quarter of the time for 512 rows.
constexpr std::int64_t kFetchedAtOnce = kBlockRows * kTile / kPanelChannels;

/// sums[c][rows] += w[c][k] * x[k][rows] over k, for kChannels channels and kVectors vectors of rows.
template <class Vec, int kChannels, int kVectors>
inline void multiply_tile(const float* x, const float* w, std::int64_t depth, const float* next, float* sums) {
  using V = typename Vec::V;
  V acc[kChannels][kVectors];
  for (int c = 0; c < kChannels; ++c) {
    for (int v = 0; v < kVectors; ++v) acc[c][v] = Vec::load(sums + c * kPanelRows + v * Vec::kLanes);
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    __builtin_prefetch(next + k * kFetchedAtOnce, 0, 2);
    V rows[kVectors];
    for (int v = 0; v < kVectors; ++v) rows[v] = Vec::load(x + k * kBlockRows + v * Vec::kLanes);
    for (int c = 0; c < kChannels; ++c) {
      const V weight = Vec::broadcast(w[c * kPanelDepth + k]);
      for (int v = 0; v < kVectors; ++v) acc[c][v] = Vec::multiply_add(weight, rows[v], acc[c][v]);
    }
  }
  for (int c = 0; c < kChannels; ++c) {
    for (int v = 0; v < kVectors; ++v) Vec::store(sums + c * kPanelRows + v * Vec::kLanes, acc[c][v]);
  }
}

template <class Vec, int kChannels, int kVectors>
inline void multiply_tiles(std::int64_t channels, const float* x, const float* w, std::int64_t depth, const float* next,
                           float* sums) {
  static_assert(kPanelChannels % kChannels == 0);
  for (std::int64_t c = 0; c < channels; c += kChannels) {
    multiply_tile<Vec, kChannels, kVectors>(x, w + c * kPanelDepth, depth, next + c / kTile * depth * kFetchedAtOnce,
                                            sums + c * kPanelRows);
  }
}

/// A block of rows with the weights of a panel. Few rows take narrower vectors and more channels: with 8 rows in
/// vectors of 16 half of the work would be lost, and 6 sums would not hide the latency of a multiply-add.
inline void multiply_block(std::int64_t rows, std::int64_t channels, const float* x, const float* w, std::int64_t depth,
                           const float* next, float* sums) {
  static_assert(Simd::kRowVectors == 2 || Simd::kRowVectors == 4);
  constexpr int kThree = Simd::kRowVectors == 4 ? 3 : 2;  // never taken with 2
  if (rows <= Simd::Narrow::kLanes) {
    return multiply_tiles<typename Simd::Narrow, 2 * kTile, 1>(channels, x, w, depth, next, sums);
  }
  switch (ceil_div(rows, Simd::kLanes)) {
    case 1:
      return multiply_tiles<Simd, 2 * kTile, 1>(channels, x, w, depth, next, sums);
    case 2:
      return multiply_tiles<Simd, kTile, 2>(channels, x, w, depth, next, sums);
    case 3:
      return multiply_tiles<Simd, kTile, kThree>(channels, x, w, depth, next, sums);
    default:
      return multiply_tiles<Simd, kTile, Simd::kRowVectors>(channels, x, w, depth, next, sums);
  }
}

using Unit = PanelUnit<kPanelChannels, kPanelRows>;

std::size_t panel_scratch_bytes(const MatmulArgs&) {
  return static_cast<std::size_t>(kPanelChannels * (kPanelDepth + kPanelRows)) * sizeof(float);
}

inline void clear(float* values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) values[i] = 0.0f;
}

template <QType kQType>
inline void run_unit(const MatmulArgs& a, const Unit& u, float* weights, float* sums) {
  const std::int64_t sums_each = ceil_div(u.rows, kBlockRows) * kBlockRows;
  for (std::int64_t c = 0; c < kPanelChannels; ++c) clear(sums + c * kPanelRows, sums_each);
  clear(weights + u.channels * kPanelDepth, (kPanelChannels - u.channels) * kPanelDepth);
  for (std::int64_t k = 0; k < a.K; k += kPanelDepth) {
    const std::int64_t depth = smaller(kPanelDepth, a.K - k);
    for (std::int64_t c = 0; c < u.channels; ++c) {
      decode_channel<kQType>(a, u.n_begin + c, k, k + depth, weights + c * kPanelDepth);
    }
    for (std::int64_t m = 0; m < u.rows; m += kBlockRows) {
      const float* x = block_at(a, (u.m_begin + m) / kBlockRows, k);
      const float* next = m + kBlockRows < u.rows
                              ? x + a.K * kBlockRows
                              : block_at(a, u.m_begin / kBlockRows, k + depth < a.K ? k + depth : 0);
      multiply_block(smaller(kBlockRows, u.rows - m), u.channels, x, weights, depth, next, sums + m);
    }
  }
  store_unit<is_affine_qtype(kQType), kPanelRows>(a, u, sums);
}

template <QType kQType>
void panel_run(const MatmulArgs& a, void* scratch, std::int64_t begin, std::int64_t end) {
  auto* weights = static_cast<float*>(scratch);
  for (std::int64_t unit = begin; unit < end; ++unit) {
    run_unit<kQType>(a, Unit(a, unit), weights, weights + kPanelChannels * kPanelDepth);
  }
}

bool panel_supports(const MatmulArgs& a) { return a.M >= Simd::kFewestPanelRows; }

template <QType kQType, DType kDType>
constexpr MatmulKernel kPanelKernel = {"panel", panel_supports,      panel_workspace_bytes, panel_prepare<kDType>,
                                       nullptr, panel_scratch_bytes, Unit::count,           panel_run<kQType>};

/// Best first; the last one serves what the others do not.
template <QType kQType, DType kDType, bool kPacked = is_affine_qtype(kQType)>
struct Cell {
  static constexpr MatmulKernel kKernels[] = {
      kPanelKernel<kQType, kDType>,
      kFewRowsKernel<FloatDots<kQType>, kDType, Simd::kFewestPanelRows - 1>,
      kRowsKernel<kQType, kDType>,
  };
};
template <QType kQType, DType kDType>
struct Cell<kQType, kDType, true> {
  static constexpr MatmulKernel kKernels[] = {
      kPanelKernel<kQType, kDType>,
      kFewRowsKernel<FloatDots<kQType>, kDType, Simd::kFewestPanelRows - 1>,
      kFewRowsKernel<OneField<FloatDots<kQType>>, kDType, Simd::kFewestPanelRows - 1>,
      kRowsKernel<kQType, kDType>,
  };
};

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
  static constexpr MatmulKernel kKernels[] = {
      CodesPanel<Int8Pairs, kQType, Simd::kRowVectors, Simd::kTile, Simd::kFewestPanelRows>::kKernel,
      kFewRowsKernel<Int8PairDots<kQType>, DType::float32, Simd::kFewestPanelRows - 1>,
      kInt8RowsKernel<kQType>,
  };
};
#if defined(__AVX2__)
template <QType kQType>
struct Int8Cell<kQType, true> {
  static constexpr MatmulKernel kKernels[] = {
      CodesPanel<Int8SmallQuads, kQType, Simd::kRowVectors, Simd::kTile, Simd::kFewestPanelRows>::kKernel,
      kFewRowsKernel<Int8SmallDots<kQType>, DType::float32, Simd::kFewestPanelRows - 1>,
      kFewRowsKernel<Int8PairDots<kQType>, DType::float32, Simd::kFewestPanelRows - 1>,
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

/// A table whose every cell holds the kernels of this file and of rows-inl.h.
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
