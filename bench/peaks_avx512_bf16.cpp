#include <immintrin.h>

#include "peaks-inl.h"

namespace quanto::bench {
namespace {

constexpr int kChains = 24;

void bf16(std::int64_t steps) {
  const __m512bh ones = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1), _mm512_set1_ps(1));
  run_chains<kChains>(steps, _mm512_setzero_ps(), [=](__m512 sum) { return _mm512_dpbf16_ps(sum, ones, ones); });
}

void int8(std::int64_t steps) {
  const __m512i ones = _mm512_set1_epi8(1);
  run_chains<kChains>(steps, _mm512_setzero_si512(), [=](__m512i sum) { return _mm512_dpbusd_epi32(sum, ones, ones); });
}

}  // namespace
}  // namespace quanto::bench

extern "C" const quanto::bench::Peaks quanto_peaks_avx512_bf16 = {"avx512_bf16",
                                                                  {},
                                                                  {32 * quanto::bench::kChains, quanto::bench::bf16},
                                                                  {64 * quanto::bench::kChains, quanto::bench::int8},
                                                                  nullptr};
