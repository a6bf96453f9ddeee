// A square of codes that is transposed in steps, beside the lookups of the square before it: the core does not look as
// far ahead as from one to the next, so lookups would wait for a square that is transposed at once. For units with
// AVX-512. Internal linkage, no std.
#pragma once

#include <cstdint>

#include "kernels/dots-inl.h"
#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

/// 64 bytes of each of kLanes stripes. Every step replaces vectors by as many, so that those of a square that comes are
/// never more than the columns that have been taken from the one before.
struct SquareSteps {
  /// Columns are finished in this order, four that are four apart after one another, and so are those of every kernel
  /// that shares tables with this one: the i-th is column_at(i). Its own inverse.
  static constexpr int column_at(int i) { return i % 4 * 4 + i / 4; }

  __m512i of[kLanes];

  /// Step `row`, in their order: of two rows, one after the other, the second one's reads both. After those of four
  /// rows of[4 * i + k] has the columns k, k + 4, k + 8, k + 12 of rows 4 * i to 4 * i + 3.
  QUANTO_INLINE void read(int row, const std::uint8_t* codes, std::int64_t apart) {
    if (row % 2 == 0) return;
    const std::uint8_t* four = codes + row / 4 * 4 * apart;
    const __m512i even = _mm512_loadu_si512(four + (row % 4 - 1) * apart);
    const __m512i odd = _mm512_loadu_si512(four + row % 4 * apart);
    of[row - 1] = _mm512_unpacklo_epi32(even, odd);
    of[row] = _mm512_unpackhi_epi32(even, odd);
    if (row % 4 == 1) return;
    const __m512i low = of[row - 3], high = of[row - 2], more_low = of[row - 1], more_high = of[row];
    of[row - 3] = _mm512_unpacklo_epi64(low, more_low);
    of[row - 2] = _mm512_unpackhi_epi64(low, more_low);
    of[row - 1] = _mm512_unpacklo_epi64(high, more_high);
    of[row] = _mm512_unpackhi_epi64(high, more_high);
  }
  /// Step 0 to 3 of the columns k, k + 4, k + 8 and k + 12, which then are in those vectors.
  QUANTO_INLINE void finish(int k, int step) {
    step == 0   ? deal_quarters(k, k + 4)
    : step == 1 ? deal_quarters(k + 8, k + 12)
    : step == 2 ? deal_quarters(k, k + 8)
                : deal_quarters(k + 4, k + 12);
  }

 private:
  QUANTO_INLINE void deal_quarters(int i, int j) {
    const __m512i x = of[i], y = of[j];
    of[i] = _mm512_shuffle_i32x4(x, y, 0x88);
    of[j] = _mm512_shuffle_i32x4(x, y, 0xdd);
  }
};

}  // namespace
}  // namespace quanto::kernels
