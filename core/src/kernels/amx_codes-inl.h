// Codes as AMX multiplies them: decoded to bfloat16 tiles of 32 columns and 16 channels, and the scales of their
// groups. A row of a tile has a pair of columns of every channel, the pairs of amx_activations-inl.h. Internal linkage,
// no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx_activations-inl.h"
#include "kernels/amx_tiles-inl.h"
#include "kernels/args-inl.h"
#include "kernels/bf16_codes-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/transpose-inl.h"

namespace quanto::kernels {
namespace {

/// Where the channels are, in tiles of 16. Stripe s of packed codes, K bytes, holds the channels s, s + stripes, ... if
/// N is a multiple of their number; else a channel's groups are scattered, but channels are numbered the same way. The
/// fields of the same bytes are neighbouring tiles.
template <QType kQType>
struct Channels {
  static constexpr int kFields = 8 / bits_of(kQType);

  static std::int64_t stripes(const MatmulArgs& a) { return ceil_div(a.N, kFields); }
  static std::int64_t tiles(const MatmulArgs& a) { return ceil_div(stripes(a), kTileRows) * kFields; }
  static std::int64_t first_stripe(std::int64_t tile) { return tile / kFields * kTileRows; }
  static int field(std::int64_t tile) { return static_cast<int>(tile % kFields); }
  static std::int64_t first(const MatmulArgs& a, std::int64_t tile) {
    return field(tile) * stripes(a) + first_stripe(tile);
  }
  /// How many a tile has, 0 to 16.
  static std::int64_t count(const MatmulArgs& a, std::int64_t tile) {
    const std::int64_t left = smaller(stripes(a) - first_stripe(tile), a.N - first(a, tile));
    return left < 0 ? 0 : smaller(left, kTileRows);
  }
};

/// A square of codes: 16 of each of 16 channels, four neighbours in each lane.
constexpr std::int64_t kSquareDepth = 16;
struct CodeSquare {
  __m512i of[4];  ///< lane c of vector j: codes 4 * j to 4 * j + 3 of channel c
};

/// From 16 bytes of each channel: load(c) gives those of channel c.
template <class Load>
QUANTO_INLINE CodeSquare load_square(Load load) {
  __m512i rows[4];  // row r: the channels r, r + 4, r + 8, r + 12
  QUANTO_UNROLL for (int r = 0; r < 4; ++r) {
    rows[r] = _mm512_castsi128_si512(load(r));
    rows[r] = _mm512_inserti32x4(rows[r], load(r + 4), 1);
    rows[r] = _mm512_inserti32x4(rows[r], load(r + 8), 2);
    rows[r] = _mm512_inserti32x4(rows[r], load(r + 12), 3);
  }
  const __m512i a = _mm512_unpacklo_epi32(rows[0], rows[1]), b = _mm512_unpackhi_epi32(rows[0], rows[1]);
  const __m512i c = _mm512_unpacklo_epi32(rows[2], rows[3]), d = _mm512_unpackhi_epi32(rows[2], rows[3]);
  return {{_mm512_unpacklo_epi64(a, c), _mm512_unpackhi_epi64(a, c), _mm512_unpacklo_epi64(b, d),
           _mm512_unpackhi_epi64(b, d)}};
}

inline __m512i load_bytes(const std::uint8_t* at, std::int64_t count) {
  if (count >= 64) return _mm512_loadu_si512(at);
  return _mm512_maskz_loadu_epi8((__mmask64{1} << count) - 1, at);
}

inline __m128i load_codes(const std::uint8_t* at, std::int64_t count) {
  if (count >= kSquareDepth) return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  return _mm_maskz_loadu_epi8(static_cast<__mmask16>((1u << count) - 1), at);
}

/// The values of a vector of a square: of the first and third code of each lane, and of the second and fourth.
struct PairedValues {
  __m512i even, odd;
};

/// `first_bit`: where in its byte each channel's packed codes begin.
template <QType kQType>
QUANTO_INLINE PairedValues decode_pairs(__m512i codes, [[maybe_unused]] __m512i first_bit) {
  if constexpr (is_affine_qtype(kQType)) {
    const __m512i table = _mm512_load_si512(kWordTable<bits_of(kQType), 0>.values);
    const __m512i index = _mm512_srlv_epi32(codes, first_bit);
    return {_mm512_permutexvar_epi16(index, table), _mm512_permutexvar_epi16(_mm512_srli_epi16(index, 8), table)};
  } else {
    const Bf16Bytes bytes = look_up_bf16<kQType>(codes);
    const __m512i even = _mm512_set1_epi16(0xff);
    constexpr int kChoose = 0xca;
    return {_mm512_ternarylogic_epi32(even, bytes.low, _mm512_slli_epi16(bytes.high, 8), kChoose),
            _mm512_ternarylogic_epi32(even, _mm512_srli_epi16(bytes.low, 8), bytes.high, kChoose)};
  }
}

/// Asks for a cache line of the codes of each stripe of a tile, from column k on. Hardware does not foresee them: each
/// stripe gives a few lines before the next one begins.
template <QType kQType>
inline void fetch_stripes(const MatmulArgs& a, std::int64_t tile, std::int64_t k) {
  using C = Channels<kQType>;
  if (k % 64 != 0 || C::field(tile) != 0 || k >= a.K) return;
  const std::uint8_t* codes = a.w + C::first_stripe(tile) * a.K + k;
  const std::int64_t count = smaller(kTileRows, C::stripes(a) - C::first_stripe(tile));
  for (std::int64_t c = 0; c < count; ++c) __builtin_prefetch(codes + c * a.K, 0, 2);
}

/// The codes from column k on of the channels of a tile. Channels that the weight does not have repeat its last one.
template <QType kQType>
inline CodeSquare load_tile_square(const MatmulArgs& a, std::int64_t tile, std::int64_t channels, std::int64_t k,
                                   __m512i& first_bit) {
  using C = Channels<kQType>;
  constexpr int kBits = bits_of(kQType);
  if (a.N % C::kFields == 0) {
    const std::uint8_t* codes = a.w + C::first_stripe(tile) * a.K + k;
    first_bit = _mm512_set1_epi32(C::field(tile) * kBits);
    const std::int64_t count = a.K - k;
    if (channels == kTileRows && count >= kSquareDepth) {
      return load_square([&](int c) { return load_codes(codes + c * a.K, kSquareDepth); });
    }
    return load_square([&](int c) { return load_codes(codes + smaller(c, channels - 1) * a.K, count); });
  }
  alignas(64) std::int32_t shifts[kTileRows];
  const CodeSquare square = load_square([&](int c) {
    const std::int64_t n = C::first(a, tile) + smaller(c, channels - 1), r = n * a.groups + k / a.group_size;
    shifts[c] = static_cast<int>(r / a.packed_rows) * kBits;
    return load_codes(a.w + r % a.packed_rows * a.group_size + k % a.group_size, a.group_size - k % a.group_size);
  });
  first_bit = _mm512_load_si512(shifts);
  return square;
}

/// A step of a tile: its columns [k, k + kStepDepth), zeros from K on.
template <QType kQType>
inline void decode_step(const MatmulArgs& a, std::int64_t tile, std::int64_t k, std::uint8_t* out) {
  const std::int64_t channels = Channels<kQType>::count(a, tile);
  if (channels == 0) return;
  for (const std::int64_t end = k + kStepDepth; k < end; k += kSquareDepth) {
    if (k >= a.K) {
      __builtin_memset(out, 0, kTileBytes / 2);
      return;
    }
    __m512i first_bit;
    const CodeSquare square = load_tile_square<kQType>(a, tile, channels, k, first_bit);
    QUANTO_UNROLL for (int j = 0; j < 4; ++j) {
      const PairedValues values = decode_pairs<kQType>(square.of[j], first_bit);
      _mm512_store_si512(out, values.even);
      _mm512_store_si512(out + kTileRowBytes, values.odd);
      out += 2 * kTileRowBytes;
    }
  }
}

/// What the products of a pair of tiles meet: the scales and offsets of some groups, or of whole channels, and what
/// their results are. Vectors of 16 channels.
struct alignas(64) PairOutputs {
  static constexpr std::int64_t kGroups = kLanes;
  FloatLanes scale[kGroups][2], minus_offset[kGroups][2];
  FloatLanes channel_scale[2], bias[2];
  std::int64_t n[2], channels[2];
};

/// The groups that the columns [begin, end) touch, of the channels of a tile, the t-th of its pair. A group's shift is
/// applied once, with its first codes.
template <QType kQType>
inline void read_scales(const MatmulArgs& a, std::int64_t tile, int t, std::int64_t begin, std::int64_t end,
                        PairOutputs& out) {
  const std::int64_t first = begin / a.group_size, channels = Channels<kQType>::count(a, tile);
  const int count = static_cast<int>(ceil_div(end, a.group_size) - first);
  __m512i scales[kTileRows] = {}, offsets[kTileRows] = {};
  for (std::int64_t c = 0; c < channels; ++c) {
    const ScaleOffsets so = scale_offsets(a, (Channels<kQType>::first(a, tile) + c) * a.groups + first, count);
    scales[c] = (__m512i)so.scale;
    offsets[c] = (__m512i)-so.offset;
  }
  transpose_16x16(scales);
  transpose_16x16(offsets);
  if (begin % a.group_size != 0) offsets[0] = _mm512_setzero_si512();
  for (std::int64_t j = 0; j < count; ++j) {
    out.scale[j][t] = (FloatLanes)scales[j];
    out.minus_offset[j][t] = (FloatLanes)offsets[j];
  }
}

/// All of it for the t-th tile of a pair and the columns [begin, end).
template <QType kQType>
inline void read_outputs(const MatmulArgs& a, std::int64_t tile, int t, std::int64_t begin, std::int64_t end,
                         PairOutputs& out) {
  const std::int64_t n = out.n[t] = Channels<kQType>::first(a, tile);
  const auto channels = static_cast<int>(out.channels[t] = Channels<kQType>::count(a, tile));
  out.channel_scale[t] = broadcast(1.0f);
  out.bias[t] = FloatLanes{};
  if (channels == 0) return;
  if (a.bias != nullptr) out.bias[t] = load_floats(a.bias, a.y_dtype, n, channels);
  if constexpr (is_affine_qtype(kQType)) {
    read_scales<kQType>(a, tile, t, begin, end, out);
  } else {
    out.channel_scale[t] =
        a.scale_step == 0 ? broadcast(channel_scale(a, 0)) : load_floats(a.scale, a.scale_dtype, n, channels);
  }
}

}  // namespace
}  // namespace quanto::kernels
