#include <immintrin.h>

#include "peaks-inl.h"

namespace quanto::bench {
namespace {

constexpr int kChains = 12;

void fp32(std::int64_t steps) {
  const __m256 half = _mm256_set1_ps(0.5f);
  run_chains<kChains>(steps, _mm256_set1_ps(1), [=](__m256 sum) { return _mm256_fmadd_ps(sum, half, half); });
}

// Without VNNI: products of int16 in pairs to int32; additions run beside them.
void int8(std::int64_t steps) {
  const __m256i ones = _mm256_set1_epi16(1);
  run_chains<kChains>(steps, ones, [=](__m256i sum) { return _mm256_madd_epi16(ones, sum); });
}

// Products of bytes in pairs to int16, which holds some sums of those of packed codes.
void packed(std::int64_t steps) {
  const __m256i ones = _mm256_set1_epi8(1);
  run_chains<kChains>(steps, ones, [=](__m256i sum) { return _mm256_maddubs_epi16(ones, sum); });
}

}  // namespace
}  // namespace quanto::bench

extern "C" const quanto::bench::Peaks quanto_peaks_avx2 = {"avx2",
                                                           {8 * quanto::bench::kChains, quanto::bench::fp32},
                                                           {},
                                                           {16 * quanto::bench::kChains, quanto::bench::int8},
                                                           quanto::bench::read_vectors<__m256i>,
                                                           {32 * quanto::bench::kChains, quanto::bench::packed}};
