// Activations as AMX multiplies them: bfloat16 numbers in tiles of 16 rows and 32 columns, pairs of columns beside each
// other. bfloat16 activations are their own only term; a float16 number is the sum of two terms, a float32 number of
// three, all exact: each takes the upper 8 bits of what the ones before it left. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx_tiles-inl.h"
#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"
#include "kernels/transpose-inl.h"

namespace quanto::kernels {
namespace {

constexpr std::int64_t kStepDepth = 32;  ///< columns that a tile product multiplies

template <DType kDType>
constexpr int kTerms = kDType == DType::float32   ? 3
                       : kDType == DType::float16 ? 2
                                                  : 1;

/// What prepare() leaves for run(): tiles of 16 rows ("blocks"), the sums of their groups, and whether a block's values
/// are of magnitudes whose terms and products the instruction does not take for zero. Missing rows and columns are
/// zeros. The tiles of two blocks alternate, so that a product with both reads a single stream.
struct TileActivations {
  std::uint8_t* tiles;
  float* sums;
  bool* plain;
  std::int64_t blocks, steps, groups, terms;

  TileActivations(const MatmulArgs& a, bool affine, int terms_each)
      : tiles(static_cast<std::uint8_t*>(a.workspace)),
        blocks(ceil_div(a.M, kTileRows)),
        steps(ceil_div(a.K, kStepDepth)),
        groups(affine ? a.groups : 0),
        terms(terms_each) {
    sums = reinterpret_cast<float*>(tiles + round_up(blocks, 2) * steps * terms * kTileBytes);
    plain = reinterpret_cast<bool*>(sums + blocks * groups * kTileRows);
  }

  std::size_t bytes() const {
    return static_cast<std::size_t>(round_up(blocks, 2) * steps * terms * kTileBytes +
                                    blocks * (groups * kTileRowBytes + 1));
  }
  /// The next term is kNextTerm further, the next step kNextTerm * terms.
  static constexpr std::int64_t kNextTerm = 2 * kTileBytes;
  std::uint8_t* tiles_at(std::int64_t block, std::int64_t step) const {
    return tiles + ((block / 2 * steps + step) * terms * 2 + block % 2) * kTileBytes;
  }
  float* sums_at(std::int64_t block, std::int64_t group) const { return sums + (block * groups + group) * kTileRows; }
};

template <QType kQType, DType kDType>
TileActivations tile_activations(const MatmulArgs& a) {
  return TileActivations(a, is_affine_qtype(kQType), kTerms<kDType>);
}

template <QType kQType, DType kDType>
std::size_t amx_workspace_bytes(const MatmulArgs& a) {
  return tile_activations<kQType, kDType>(a).bytes();
}

/// 16 columns of 16 rows, each column a vector.
template <DType kDType>
inline void load_columns(const MatmulArgs& a, std::int64_t m, std::int64_t k, __m512i (&columns)[kTileRows]) {
  const std::int64_t rows = a.M - m, count = a.K - k;
  for (std::int64_t r = 0; r < kTileRows; ++r) {
    FloatLanes x{};
    if (r < rows && count >= kLanes) {
      x = load_floats(a.x, kDType, (m + r) * a.x_stride + k, kLanes);
    } else if (r < rows && count > 0) {
      x = load_floats(a.x, kDType, (m + r) * a.x_stride + k, static_cast<int>(count));
    }
    columns[r] = (__m512i)x;
  }
  transpose_16x16(columns);
}

/// Stores the terms of a pair of columns, the first one in the lower halves of the lanes.
template <int kCount>
inline void store_terms(FloatLanes first, FloatLanes second, std::uint8_t* out) {
  for (int t = 0; t < kCount; ++t) {
    const BitLanes a = bits_from_float(first) & 0xffff0000u, b = bits_from_float(second) & 0xffff0000u;
    store(out + t * TileActivations::kNextTerm, a >> 16 | b, kLanes);
    first -= float_from_bits(a);
    second -= float_from_bits(b);
  }
}

/// All lanes zero or of a magnitude in [kSmallestPlain, kLargestPlain).
inline BitLanes not_plain(FloatLanes x) {
  const BitLanes magnitude = bits_from_float(x) & kMagnitudeMask;
  return (BitLanes)(magnitude != 0) & (BitLanes)(magnitude - kSmallestPlain >= kLargestPlain - kSmallestPlain);
}

/// One block of 16 rows.
template <QType kQType, DType kDType>
inline void prepare_block(const MatmulArgs& a, const TileActivations& prepared, std::int64_t block) {
  BitLanes odd{};
  FloatLanes sum{};
  for (std::int64_t step = 0; step < prepared.steps; ++step) {
    std::uint8_t* tile = prepared.tiles_at(block, step);
    for (std::int64_t k = step * kStepDepth; k < (step + 1) * kStepDepth; k += kTileRows) {
      __m512i columns[kTileRows];
      load_columns<kDType>(a, block * kTileRows, k, columns);
      for (int c = 0; c < kTileRows; c += 2, tile += kTileRowBytes) {
        const auto first = (FloatLanes)columns[c], second = (FloatLanes)columns[c + 1];
        store_terms<kTerms<kDType>>(first, second, tile);
        sum += first + second;
        odd |= not_plain(first) | not_plain(second);
      }
    }
    if constexpr (is_affine_qtype(kQType)) {
      const std::int64_t end = smaller((step + 1) * kStepDepth, a.K);
      if (end % a.group_size == 0) {
        store(prepared.sums_at(block, end / a.group_size - 1), sum, kLanes);
        sum = FloatLanes{};
      }
    }
  }
  prepared.plain[block] = !any((IntLanes)odd);
}

/// Blocks are prepared by whoever has their first row.
template <QType kQType, DType kDType>
void amx_prepare(const MatmulArgs& a, std::int64_t begin, std::int64_t end) {
  const TileActivations prepared = tile_activations<kQType, kDType>(a);
  for (std::int64_t block = ceil_div(begin, kTileRows); block * kTileRows < end; ++block) {
    prepare_block<kQType, kDType>(a, prepared, block);
  }
}

template <QType kQType, DType kDType>
bool amx_serves_values(const MatmulArgs& a) {
  const TileActivations prepared = tile_activations<kQType, kDType>(a);
  bool plain = true;
  for (std::int64_t block = 0; block < prepared.blocks; ++block) plain &= prepared.plain[block];
  return plain;
}

}  // namespace
}  // namespace quanto::kernels
