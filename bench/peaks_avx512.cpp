#include <immintrin.h>

#include "peaks-inl.h"

namespace quanto::bench {
namespace {

constexpr int kChains = 24;

void fp32(std::int64_t steps) {
  const __m512 half = _mm512_set1_ps(0.5f);
  run_chains<kChains>(steps, _mm512_set1_ps(1), [=](__m512 sum) { return _mm512_fmadd_ps(sum, half, half); });
}

// Without VNNI: products of int16 in pairs to int32; additions run beside them.
void int8(std::int64_t steps) {
  const __m512i ones = _mm512_set1_epi16(1);
  run_chains<kChains>(steps, ones, [=](__m512i sum) { return _mm512_madd_epi16(ones, sum); });
}

// Products of bytes in pairs to int16, which holds some sums of those of packed codes.
void packed(std::int64_t steps) {
  const __m512i ones = _mm512_set1_epi8(1);
  run_chains<kChains>(steps, ones, [=](__m512i sum) { return _mm512_maddubs_epi16(ones, sum); });
}

}  // namespace
}  // namespace quanto::bench

extern "C" const quanto::bench::Peaks quanto_peaks_avx512 = {"avx512",
                                                             {16 * quanto::bench::kChains, quanto::bench::fp32},
                                                             {},
                                                             {32 * quanto::bench::kChains, quanto::bench::int8},
                                                             quanto::bench::read_vectors<__m512i>,
                                                             {64 * quanto::bench::kChains, quanto::bench::packed}};
