// Codes as AMX multiplies them: decoded to bfloat16 tiles of 16 channels and 32 columns, and the scales of their
// groups. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx_activations-inl.h"
#include "kernels/amx_tiles-inl.h"
#include "kernels/args-inl.h"
#include "kernels/bf16_codes-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/kernel_table.h"

namespace quanto::kernels {
namespace {

constexpr std::int64_t kPanelSteps = 16;  // 512 columns decoded together: a pair of tiles has 32 KiB
constexpr std::int64_t kUnitTiles = 4;

/// Where the channels are. Stripe s of packed codes, K bytes, holds the channels s, s + stripes, ... if N is a multiple
/// of their number; else a channel's groups are scattered, but channels are numbered the same way.
template <QType kQType>
struct Channels {
  static constexpr int kFields = 8 / bits_of(kQType);
  static constexpr std::int64_t kUnitStripes = kUnitTiles / kFields * kTileRows;

  static std::int64_t stripes(const MatmulArgs& a) { return ceil_div(a.N, kFields); }
  static std::int64_t units(const MatmulArgs& a) { return ceil_div(stripes(a), kUnitStripes); }
  static std::int64_t first_stripe(std::int64_t unit, int tile) {
    return unit * kUnitStripes + tile / kFields * kTileRows;
  }
  static std::int64_t first(const MatmulArgs& a, std::int64_t unit, int tile) {
    return tile % kFields * stripes(a) + first_stripe(unit, tile);
  }
  /// How many a tile has, 0 to 16.
  static std::int64_t count(const MatmulArgs& a, std::int64_t unit, int tile) {
    const std::int64_t left = smaller(stripes(a) - first_stripe(unit, tile), a.N - first(a, unit, tile));
    return left < 0 ? 0 : smaller(left, kTileRows);
  }
};

// Pairs of tiles alternate, step by step, so that a product with both reads a single stream; the other pair of the unit
// follows. Two steps are decoded at a time, so there is room for one more.
constexpr std::int64_t kTilePairBytes = 2 * kTileBytes;
constexpr std::int64_t kCodePairBytes = (kPanelSteps + 1) * kTilePairBytes;
constexpr std::int64_t kUnitCodeBytes = kUnitTiles / 2 * kCodePairBytes;

inline std::uint8_t* tile_row(std::uint8_t* unit, std::int64_t step, std::int64_t tile, std::int64_t row) {
  return unit + tile / 2 * kCodePairBytes + (step * 2 + tile % 2) * kTileBytes + row * kTileRowBytes;
}

/// Stripes ahead whose codes are asked for while one is decoded. Each gives a few cache lines only before the next one
/// begins, too few for the prefetchers of the hardware: without this 16 rows take half as long again.
constexpr std::int64_t kStripesAhead = 8;

inline __m512i load_bytes(const std::uint8_t* at, std::int64_t count) {
  if (count >= 64) return _mm512_loadu_si512(at);
  return _mm512_maskz_loadu_epi8((__mmask64{1} << count) - 1, at);
}

inline __m512i load_as_words(const std::uint8_t* at, std::int64_t count) {
  if (count >= 32) return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  return _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8((1u << count) - 1, at));
}

/// `count` 8-bit codes of a channel. `next`: codes that are wanted soon, at any address.
template <QType kQType>
inline void decode_bytes_to_tiles(const std::uint8_t* codes, std::int64_t count, const std::uint8_t* next,
                                  std::uint8_t* out) {
  const __m512i unpacked_order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  for (std::int64_t k = 0; k < count; k += 2 * kStepDepth) {
    __builtin_prefetch(next + k);
    const Bf16Halves halves =
        decode_to_bf16<kQType>(_mm512_permutexvar_epi64(unpacked_order, load_bytes(codes + k, count - k)));
    _mm512_store_si512(out, halves.of[0]);
    _mm512_store_si512(out + kTilePairBytes, halves.of[1]);
    out += 2 * kTilePairBytes;
  }
}

/// kFields fields from `first` on of `count` packed bytes, each to a tile of its own.
template <int kBits, int kFields>
inline void decode_fields_to_tiles(const std::uint8_t* bytes, std::int64_t count, const std::uint8_t* next, int first,
                                   std::uint8_t* out) {
  const __m512i table = _mm512_load_si512(kWordTable<kBits, 0>.values);
  for (std::int64_t k = 0; k < count; k += kStepDepth) {
    if (k % 64 == 0) __builtin_prefetch(next + k);
    __m512i words = _mm512_srl_epi16(load_as_words(bytes + k, count - k), _mm_cvtsi32_si128(kBits * first));
    for (int f = 0; f < kFields; ++f) {
      _mm512_store_si512(tile_row(out, 0, f, 0), _mm512_permutexvar_epi16(words, table));
      words = _mm512_srli_epi16(words, kBits);
    }
    out += kTilePairBytes;
  }
}

/// Channel n alone, group by group.
template <int kBits>
inline void decode_scattered_to_tiles(const MatmulArgs& a, std::int64_t n, std::int64_t begin, std::int64_t end,
                                      std::uint8_t* out) {
  for (std::int64_t k = begin; k < end;) {
    const std::int64_t within = k % a.group_size, r = n * a.groups + k / a.group_size;
    const std::int64_t count = smaller(a.group_size - within, end - k);
    decode_fields_to_tiles<kBits, 1>(a.w + r % a.packed_rows * a.group_size + within, count, nullptr,
                                     static_cast<int>(r / a.packed_rows), out);
    k += count;
    out += ceil_div(count, kStepDepth) * kTilePairBytes;
  }
}

/// The codes of a unit's channels for k in [begin, end), begin a multiple of kStepDepth. Rows of channels that the
/// weight does not have keep what they held: their sums are never read.
template <QType kQType>
inline void decode_unit(const MatmulArgs& a, std::int64_t unit, std::int64_t begin, std::int64_t end,
                        std::uint8_t* tiles) {
  using C = Channels<kQType>;
  const bool together = a.N % C::kFields == 0;
  for (int tile = 0; tile < kUnitTiles; tile += together ? C::kFields : 1) {
    const std::int64_t count = C::count(a, unit, tile);
    for (std::int64_t row = 0; row < count; ++row) {
      const std::uint8_t* codes = a.w + (C::first_stripe(unit, tile) + row) * a.K + begin;
      const auto* next = reinterpret_cast<const std::uint8_t*>(reinterpret_cast<std::uintptr_t>(codes) +
                                                               static_cast<std::uintptr_t>(kStripesAhead * a.K));
      std::uint8_t* out = tile_row(tiles, 0, tile, row);
      if constexpr (!is_affine_qtype(kQType)) {
        decode_bytes_to_tiles<kQType>(codes, end - begin, next, out);
      } else if (together) {
        decode_fields_to_tiles<bits_of(kQType), C::kFields>(codes, end - begin, next, 0, out);
      } else {
        decode_scattered_to_tiles<bits_of(kQType)>(a, C::first(a, unit, tile) + row, begin, end, out);
      }
    }
  }
  asm volatile("" ::: "memory");  // GCC's tile loads do not say what they read
}

/// The scales and offsets of a unit's channels for the groups that a panel's columns touch.
struct UnitScales {
  static constexpr std::int64_t kGroups = kPanelSteps;
  float scale[kUnitTiles * kTileRows][kGroups];
  float minus_offset[kUnitTiles * kTileRows][kGroups];
};

/// A group's shift is applied once, with its first codes.
template <QType kQType>
inline void read_scales(const MatmulArgs& a, std::int64_t unit, std::int64_t begin, std::int64_t end, UnitScales& out) {
  using C = Channels<kQType>;
  const std::int64_t first = begin / a.group_size;
  const int count = static_cast<int>(ceil_div(end, a.group_size) - first);
  const bool whole = begin % a.group_size == 0;
  for (int tile = 0; tile < kUnitTiles; ++tile) {
    const std::int64_t channels = C::count(a, unit, tile);
    for (std::int64_t row = 0; row < channels; ++row) {
      const std::int64_t channel = tile * kTileRows + row;
      const ScaleOffsets so = scale_offsets(a, (C::first(a, unit, tile) + row) * a.groups + first, count);
      store(out.scale[channel], so.scale, kLanes);
      store(out.minus_offset[channel], -so.offset, kLanes);
      if (!whole) out.minus_offset[channel][0] = 0.0f;
    }
  }
}

}  // namespace
}  // namespace quanto::kernels
