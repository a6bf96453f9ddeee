// Vectors of sums whose lanes are added up, several at once. Internal linkage, no std.
#pragma once

#include <cstdint>

#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

#if defined(__AVX512F__)
template <int kLow, int kHigh, class Add>
inline FloatLanes add_quarters(FloatLanes x, FloatLanes y, Add add) {
  return add((FloatLanes)_mm512_shuffle_f32x4((__m512)x, (__m512)y, kLow),
             (FloatLanes)_mm512_shuffle_f32x4((__m512)x, (__m512)y, kHigh));
}
/// The sums of eight vectors that lie `apart`, each twice: those of the first four in the lanes 0, 4, 8 and 12.
template <class Add>
inline FloatLanes sums_of_eight(const FloatLanes* v, std::int64_t apart, Add add) {
  FloatLanes fours[2];  // four lanes of each of four vectors
  for (int i = 0; i < 2; ++i) {
    const FloatLanes* at = v + 4 * i * apart;
    const FloatLanes a = add_quarters<0x44, 0xee>(at[0], at[apart], add);
    const FloatLanes b = add_quarters<0x44, 0xee>(at[2 * apart], at[3 * apart], add);
    fours[i] = add_quarters<0x88, 0xdd>(a, b, add);
  }
  const __m512 p = (__m512)fours[0], q = (__m512)fours[1];
  const FloatLanes twos = add((FloatLanes)_mm512_shuffle_ps(p, q, 0x44), (FloatLanes)_mm512_shuffle_ps(p, q, 0xee));
  return add(twos, (FloatLanes)_mm512_permute_ps((__m512)twos, 0xb1));
}
#endif

/// The sum of the lanes of each of `count` vectors that lie `apart`, in the lanes of one. Each is summed in halves, as
/// sum_lanes() does, but all at once: a quarter of the instructions. Whole eights of vectors are read.
template <class Add>
inline FloatLanes sums_of_lanes(const FloatLanes* v, std::int64_t apart, [[maybe_unused]] int count, Add add) {
#if defined(__AVX512F__)
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 16, 20, 24, 28, 18, 22, 26, 30);
  const FloatLanes first = sums_of_eight(v, apart, add);
  const FloatLanes second = count > 8 ? sums_of_eight(v + 8 * apart, apart, add) : first;
  return (FloatLanes)_mm512_permutex2var_ps((__m512)first, order, (__m512)second);
#elif defined(__AVX2__)
  FloatLanes twos[2];  // two lanes of each of four vectors
  for (int i = 0; i < 2; ++i) {
    const FloatLanes* at = v + 4 * i * apart;
    const auto halves = [&](FloatLanes x, FloatLanes y) {
      return (__m256)add((FloatLanes)_mm256_permute2f128_ps((__m256)x, (__m256)y, 0x20),
                         (FloatLanes)_mm256_permute2f128_ps((__m256)x, (__m256)y, 0x31));
    };
    const __m256 p = halves(at[0], at[apart]), q = halves(at[2 * apart], at[3 * apart]);
    twos[i] = add((FloatLanes)_mm256_shuffle_ps(p, q, 0x44), (FloatLanes)_mm256_shuffle_ps(p, q, 0xee));
  }
  const __m256 p = (__m256)twos[0], q = (__m256)twos[1];
  const FloatLanes sums = add((FloatLanes)_mm256_shuffle_ps(p, q, 0x88), (FloatLanes)_mm256_shuffle_ps(p, q, 0xdd));
  return (FloatLanes)_mm256_permutevar8x32_ps((__m256)sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#else
  FloatLanes sums{};
  for (int i = 0; i < count; ++i) {
    const FloatLanes x = v[i * apart];
    const FloatLanes halves = add(x, FloatLanes{x[2], x[3], 0, 0});
    sums[i] = add(halves, FloatLanes{halves[1], 0, 0, 0})[0];
  }
  return sums;
#endif
}

}  // namespace
}  // namespace quanto::kernels
