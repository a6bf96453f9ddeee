// How codes of weights meet bfloat16 activations in dot products of pairs, for the panel of panel-inl.h. For
// units with AVX-512 VBMI and BF16. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/bf16_codes-inl.h"
#include "kernels/int8_steps-inl.h"

namespace quanto::kernels {
namespace {

/// Two bfloat16 numbers in a lane. What is missing of a channel's last vector of codes is zeros, which decode to zeros.
template <QType kQType>
struct Bf16Pairs : LaneSteps {
  static constexpr bool kIntegers = false;
  static constexpr bool kTakesAllValues = false;  // see Bf16Dots
  static constexpr std::int64_t kStep = 2;
  static constexpr std::int32_t kCentre = 0;
  using Code = std::uint16_t;
  using Sum = FloatLanes;
  using Activation = std::uint16_t;

  static inline FloatLanes multiply_add(IntLanes w, IntLanes x, FloatLanes sum) {
    return multiply_add_pairs((__m512i)w, (__m512i)x, sum);
  }
  static inline BitLanes load_activations(const std::uint16_t* x, std::int64_t count) {
    return (BitLanes)load_bf16(x, 0, count);
  }
  static constexpr bool kTakesPlanes = true;
  static inline BitLanes step_of(const BitLanes (&x)[kStep]) { return x[0] | x[1] << 16; }
  static constexpr std::int32_t kOnes = 0x3f803f80;

  /// Plain are zeros and what lies between the smallest and the largest magnitude (see Bf16Dots).
  struct Values {
    __m512i largest = _mm512_setzero_si512(),
            smallest_less_one = _mm512_set1_epi16(-1);  // zeros come out as the largest
    void add(BitLanes lanes) {
      const __m512i magnitude = _mm512_and_si512((__m512i)lanes, _mm512_set1_epi16(0x7fff));
      largest = _mm512_max_epu16(largest, magnitude);
      smallest_less_one = _mm512_min_epu16(smallest_less_one, _mm512_sub_epi16(magnitude, _mm512_set1_epi16(1)));
    }
    bool plain() const {
      const __m512i too_large = _mm512_set1_epi16(static_cast<short>(kLargestPlain >> 16));
      const __m512i least = _mm512_set1_epi16(static_cast<short>((kSmallestPlain >> 16) - 1));
      return (_mm512_cmpge_epu16_mask(largest, too_large) | _mm512_cmplt_epu16_mask(smallest_less_one, least)) == 0;
    }
  };

  /// Both write whole vectors.
  static inline void widen(const std::uint8_t* codes, std::int64_t count, Code* out) {
    for_vectors<64>(count, [&](std::int64_t k, std::int64_t left) {
      const __mmask64 mask = ~__mmask64{0} >> (64 - left);
      widen_vector(left == 64 ? _mm512_loadu_si512(codes + k) : _mm512_maskz_loadu_epi8(mask, codes + k), out + k);
    });
  }
  template <int kBits>
  static inline void unpack(const std::uint8_t* bytes, std::int64_t count, int shift, Code* out) {
    const __m512i table = _mm512_load_si512(kWordTable<kBits, 0>.values);
    const __m128i bits = _mm_cvtsi32_si128(shift);
    for_vectors<32>(count, [&](std::int64_t k, std::int64_t left) {
      const __mmask32 mask = ~__mmask32{0} >> (32 - left);
      const __m256i codes = left == 32 ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + k))
                                       : _mm256_maskz_loadu_epi8(mask, bytes + k);
      const __m512i index = _mm512_srl_epi16(_mm512_cvtepu8_epi16(codes), bits);
      _mm512_storeu_si512(out + k, _mm512_permutexvar_epi16(index, table));
    });
  }

 private:
  /// body(index, elements) for each vector of kElements, or fewer at the end: whole ones need no masks, which would
  /// take as long as the rest.
  template <std::int64_t kElements, class Body>
  static QUANTO_INLINE void for_vectors(std::int64_t count, Body body) {
    std::int64_t k = 0;
    for (; k + kElements <= count; k += kElements) body(k, kElements);
    if (k < count) body(k, count - k);
  }
  static QUANTO_INLINE void widen_vector(__m512i codes, Code* out) {
    const __m512i unpacked_order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    const Bf16Halves halves = decode_to_bf16<kQType>(_mm512_permutexvar_epi64(unpacked_order, codes));
    _mm512_storeu_si512(out, halves.of[0]);
    _mm512_storeu_si512(out + 32, halves.of[1]);
  }
};

}  // namespace
}  // namespace quanto::kernels
