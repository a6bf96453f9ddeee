// How columns of codes meet bfloat16 activations in dot products of pairs, for channel_lanes-inl.h and
// quarter_lanes-inl.h. For units with AVX-512 VBMI and BF16. Internal linkage, no std.
#pragma once

#include <cstdint>

#include "kernels/bf16_codes-inl.h"
#include "kernels/float_columns-inl.h"

namespace quanto::kernels {
namespace {

/// Of the four codes in a lane the first one and the third meet a pair of activations, then the second and the fourth:
/// so they lie in words.
template <QType kType>
struct Bf16Columns {
  static constexpr QType kQType = kType;
  static constexpr int kFields = 8 / bits_of(kType);
  static constexpr int kVectors = 2;
  static constexpr bool kTakesAllValues = false;  // see Bf16Dots
  using X = __m512i;
  struct Codes {
    __m512i of[2];  ///< packed bytes, or the values of either pair
  };

  static QUANTO_INLINE Codes codes_of(BitLanes column) {
    if constexpr (is_affine_qtype(kType)) {
      return {{(__m512i)column, (__m512i)column}};
    } else {
      QUANTO_IN_REGISTER(column);  // or else loaded by each instruction that takes it
      const Bf16Bytes bytes = look_up_bf16<kType>((__m512i)column);
      const __m512i lower = _mm512_set1_epi16(0x00ff), upper = _mm512_set1_epi16(static_cast<short>(0xff00));
      return {{_mm512_ternarylogic_epi32(bytes.low, lower, _mm512_slli_epi16(bytes.high, 8), 0xea),
               _mm512_ternarylogic_epi32(bytes.high, upper, _mm512_srli_epi16(bytes.low, 8), 0xea)}};
    }
  }
  /// As decode_words(), but by shifts for all codes. AMD's cores shift beside dot products, while `vpmultishiftqb`,
  /// which Intel's do, takes the place of one there.
  static QUANTO_INLINE X decode(const Codes& codes, int field, int v) {
    if constexpr (!is_affine_qtype(kType)) {
      return codes.of[v];
    } else {
      constexpr int kBits = bits_of(kType);
      const int first = 8 * v + (kBits == 4 ? 4 * field : 4 * (field / 2));
      const __m512i index = first == 0 ? codes.of[0] : _mm512_srli_epi16(codes.of[0], static_cast<unsigned>(first));
      const auto* table = kBits == 4 || field % 2 == 0 ? kWordTable<kBits, 0>.values : kWordTable<kBits, 2>.values;
      return _mm512_permutexvar_epi16(index, _mm512_load_si512(table));
    }
  }
  static QUANTO_INLINE X load_x(const std::uint32_t* x) { return _mm512_set1_epi32(static_cast<int>(*x)); }
  static QUANTO_INLINE FloatLanes add_products(X w, X x, FloatLanes sum) { return multiply_add_pairs(w, x, sum); }
  static constexpr float field_factor(int) { return 1.0f; }

  static inline BitLanes load_words(const void* x, std::int64_t index, std::int64_t left, bool& plain) {
    const __m512i words = load_bf16(x, index, left);
    plain &= all_plain(words);
    return (BitLanes)_mm512_shufflehi_epi16(_mm512_shufflelo_epi16(words, 0xd8), 0xd8);
  }
  static inline float sum_of(const void* x, std::int64_t index, std::int64_t count) {
    __m512 sum = _mm512_setzero_ps();
    for (std::int64_t k = 0; k < count; k += 32) {
      sum = _mm512_add_ps(sum, pair_sums(load_bf16(x, index + k, count - k)));
    }
    return sum_lanes((FloatLanes)sum);
  }
};

/// float8 codes with float32 activations: their bfloat16 values are the upper halves of float32 ones.
template <QType kType, DType kDType>
struct LookedUpColumns : FloatColumnsOf<kType, kDType> {
  using Codes = typename Bf16Columns<kType>::Codes;

  static QUANTO_INLINE Codes codes_of(BitLanes column) { return Bf16Columns<kType>::codes_of(column); }
  static QUANTO_INLINE FloatLanes decode(const Codes& codes, int, int v) {
    const __m512i words = codes.of[v % 2], upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return (FloatLanes)(v < 2 ? _mm512_slli_epi32(words, 16) : _mm512_and_si512(words, upper));
  }
};

}  // namespace
}  // namespace quanto::kernels
