// The smallest and the largest of many scales. For units with AVX-512. Internal linkage, no std.
#pragma once

#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

/// The smallest and the largest magnitude among scales, as bits of float32.
struct Extremes {
  std::uint32_t least, most;
};
inline Extremes extremes_of_floats(const MatmulArgs& a, std::int64_t first, std::int64_t count) {
  BitLanes least = BitLanes{} + ~0u, most{};
  for_chunks(count, [&](std::int64_t i, auto chunk) {
    const BitLanes magnitude =
        bits_from_float(load_floats(a.scale, a.scale_dtype, first + i, chunk.count)) & kMagnitudeMask;
    const __mmask16 there = first_lanes(chunk.count);
    least = (BitLanes)_mm512_mask_min_epu32((__m512i)least, there, (__m512i)least, (__m512i)magnitude);
    most = (BitLanes)_mm512_max_epu32((__m512i)most, (__m512i)magnitude);
  });
  return {_mm512_reduce_min_epu32((__m512i)least), _mm512_reduce_max_epu32((__m512i)most)};
}
/// Of bfloat16 scales, whose words are in the order of their magnitudes.
inline Extremes extremes_of_words(const MatmulArgs& a, std::int64_t first, std::int64_t count) {
  constexpr int kWords = 2 * kLanes;
  const auto* scales = static_cast<const std::uint16_t*>(a.scale) + first;
  const __m512i magnitude_mask = _mm512_set1_epi16(0x7fff);
  __m512i least = magnitude_mask, most = _mm512_setzero_si512();
  for (std::int64_t i = 0; i < count; i += kWords) {
    const __mmask32 there = count - i >= kWords ? ~0u : (1u << (count - i)) - 1;
    const __m512i magnitude = _mm512_and_si512(_mm512_maskz_loadu_epi16(there, scales + i), magnitude_mask);
    least = _mm512_mask_min_epu16(least, there, least, magnitude);
    most = _mm512_max_epu16(most, magnitude);
  }
  const __m512i low_word = _mm512_set1_epi32(0xffff);
  least = _mm512_min_epu32(_mm512_and_si512(least, low_word), _mm512_srli_epi32(least, 16));
  most = _mm512_max_epu32(_mm512_and_si512(most, low_word), _mm512_srli_epi32(most, 16));
  return {_mm512_reduce_min_epu32(least) << 16, _mm512_reduce_max_epu32(most) << 16};
}

}  // namespace
}  // namespace quanto::kernels
