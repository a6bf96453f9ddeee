// Activations as AMX multiplies them: bfloat16 numbers in tiles of 16 rows and 32 columns. bfloat16 activations are
// their own only term; a float16 number is the sum of two terms, a float32 number of three, all exact: each takes the
// upper 8 bits of what the ones before it left. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx_tiles-inl.h"
#include "kernels/args-inl.h"
#include "kernels/bf16_codes-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

constexpr std::int64_t kStepDepth = 32;  ///< columns that a tile product multiplies

template <DType kDType>
constexpr int kTerms = kDType == DType::float32   ? 3
                       : kDType == DType::float16 ? 2
                                                  : 1;

/// What prepare() leaves for run(): tiles of 16 rows ("blocks"), the sums of their groups, and whether a row's values
/// are of magnitudes whose terms and products the instruction does not take for zero. Missing columns are zeros,
/// missing rows anything. The tiles of two blocks alternate, so that a product with both reads a single stream. Of four
/// columns the inner two change places: pairs of columns are multiplied with pairs of codes (amx_codes-inl.h).
struct TileActivations {
  std::uint8_t* tiles;
  float* sums;
  bool* plain;
  std::int64_t rows, blocks, steps, groups, terms;

  TileActivations(const MatmulArgs& a, bool affine, int terms_each)
      : tiles(static_cast<std::uint8_t*>(a.workspace)),
        rows(a.M),
        blocks(round_up(ceil_div(a.M, kTileRows), 2)),
        steps(ceil_div(a.K, kStepDepth)),
        groups(affine ? a.groups : 0),
        terms(terms_each) {
    sums = reinterpret_cast<float*>(tiles + blocks * steps * terms * kTileBytes);
    plain = reinterpret_cast<bool*>(sums + blocks * groups * kTileRows);
  }

  std::size_t bytes() const {
    return static_cast<std::size_t>(blocks * (steps * terms * kTileBytes + groups * kTileRowBytes) + rows);
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

/// Columns in the order of the tiles: where those of a step are among its words, and among the upper halves of its
/// floats.
struct ColumnOrder {
  alignas(64) std::uint8_t bytes[64];
  alignas(64) std::uint16_t halves[32];

  constexpr ColumnOrder() : bytes(), halves() {
    for (int i = 0; i < 32; ++i) {
      const int column = i / 4 * 4 + (i % 4 == 1 ? 2 : i % 4 == 2 ? 1 : i % 4);
      for (int byte = 0; byte < 2; ++byte) {
        bytes[2 * i + byte] = static_cast<std::uint8_t>(2 * (column % 8) + byte);
      }
      halves[i] = static_cast<std::uint16_t>(2 * column + 1);
    }
  }
};
constexpr ColumnOrder kColumnOrder{};

/// Stores the terms of the 32 columns of a step and adds the columns up. False if they are not plain.
template <DType kDType>
inline bool prepare_step(const void* x, std::int64_t index, std::int64_t count, std::uint8_t* out, FloatLanes& sum) {
  if constexpr (kDType == DType::bfloat16) {
    const __m512i columns = load_bf16(x, index, count);
    _mm512_store_si512(out, _mm512_shuffle_epi8(columns, _mm512_load_si512(kColumnOrder.bytes)));
    sum += (FloatLanes)pair_sums(columns);
    return all_plain(columns);
  } else {
    FloatLanes low = load_remaining<kDType>(x, index, count);
    FloatLanes high = load_remaining<kDType>(x, index + kLanes, count - kLanes);
    sum += low + high;
    const bool plain = all_plain(low) && all_plain(high);
    for (int t = 0; t < kTerms<kDType>; ++t) {
      const BitLanes a = bits_from_float(low) & 0xffff0000u, b = bits_from_float(high) & 0xffff0000u;
      _mm512_store_si512(out + t * TileActivations::kNextTerm,
                         _mm512_permutex2var_epi16((__m512i)a, _mm512_load_si512(kColumnOrder.halves), (__m512i)b));
      low -= float_from_bits(a);
      high -= float_from_bits(b);
    }
    return plain;
  }
}

template <QType kQType, DType kDType>
inline void prepare_row(const MatmulArgs& a, const TileActivations& prepared, std::int64_t m) {
  const std::int64_t block = m / kTileRows, row = m % kTileRows;
  std::uint8_t* out = prepared.tiles_at(block, 0) + row * kTileRowBytes;
  bool plain = true;
  FloatLanes sum{};
  for (std::int64_t k = 0; k < a.K; k += kStepDepth) {
    plain &= prepare_step<kDType>(a.x, m * a.x_stride + k, a.K - k, out, sum);
    out += prepared.terms * TileActivations::kNextTerm;
    if constexpr (is_affine_qtype(kQType)) {
      const std::int64_t end = smaller(k + kStepDepth, a.K);
      if (end % a.group_size == 0) {
        prepared.sums_at(block, end / a.group_size - 1)[row] = sum_lanes(sum);
        sum = FloatLanes{};
      }
    }
  }
  prepared.plain[m] = plain;
}

template <QType kQType, DType kDType>
void amx_prepare(const MatmulArgs& a, std::int64_t begin, std::int64_t end) {
  const TileActivations prepared = tile_activations<kQType, kDType>(a);
  for (std::int64_t m = begin; m < end; ++m) prepare_row<kQType, kDType>(a, prepared, m);
}

template <QType kQType, DType kDType>
bool amx_serves_values(const MatmulArgs& a) {
  return all_set(tile_activations<kQType, kDType>(a).plain, a.M);
}

}  // namespace
}  // namespace quanto::kernels
