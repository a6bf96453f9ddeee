// What the kernels whose lanes are channels, all of them, every second one or four to a quarter, have in common: how
// codes are fetched, and how the sums of channels are stored. For units with AVX-512. Internal linkage, no std.
#pragma once

#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"
#include "kernels/stripes-inl.h"

namespace quanto::kernels {
namespace {

/// Fetches a piece of stripe after stripe, a cache line at a time, in the order of memory, while other codes are
/// multiplied. `depth`: bytes of each stripe; `apart`: from a stripe to the next; `kLocality`: of __builtin_prefetch,
/// without effect where lines go into the L2 cache (fetches_into_l2).
template <int kLocality>
struct StripeFetch {
  const std::uint8_t* at;
  std::int64_t left, lines, skipped;  ///< lines of a stripe; bytes from its last one to the next stripe
  bool into_l2;

  StripeFetch(const MatmulArgs& a, const std::uint8_t* first, std::int64_t depth, std::int64_t apart)
      : at(first),
        left(ceil_div(depth, std::int64_t{64})),
        lines(left),
        skipped(apart - 64 * (lines - 1)),
        into_l2(fetches_into_l2(a)) {}
  QUANTO_INLINE void next() {
    into_l2 ? __builtin_prefetch(at, 0, 2) : __builtin_prefetch(at, 0, kLocality);
    const bool ends = --left == 0;
    at += ends ? skipped : 64;
    left = ends ? lines : left;
  }
};

/// The codes of a column; of OneField those that start at `bit` of each byte.
template <class Columns>
QUANTO_INLINE typename Columns::Codes codes_of_column(BitLanes column, [[maybe_unused]] int bit) {
  if constexpr (kIsOneField<Columns>) column = (BitLanes)_mm512_srl_epi32((__m512i)column, _mm_cvtsi32_si128(bit));
  return Columns::codes_of(column);
}

/// Stores the results of the channels of the stripes [first, first + count). `sums_of(i, f, m)`: the sums of row m for
/// field f of the stripes from first + i on, scaled already where scales belong to groups.
template <class Columns, class SumsOf>
inline void store_channels(const MatmulArgs& a, std::int64_t first, std::int64_t count, SumsOf sums_of) {
  constexpr bool kGrouped = is_affine_qtype(Columns::kQType);
  for (int f = 0; f < Columns::kFields; ++f) {
    for_chunks(count, [&](std::int64_t i, auto chunk) {
      const std::int64_t n = f * stripe_count<Columns>(a) + first + i;
      FloatLanes scales{}, bias{};
      if constexpr (!kGrouped) {
        scales =
            a.scale_step == 0 ? broadcast(channel_scale(a, 0)) : load_floats(a.scale, a.scale_dtype, n, chunk.count);
      }
      if (a.bias != nullptr) bias = load_floats(a.bias, a.y_dtype, n, chunk.count);
      for (std::int64_t m = 0; m < a.M; ++m) {
        FloatLanes y = sums_of(i, f, m);
        if constexpr (!kGrouped) y = y * Columns::field_factor(0) * scales;
        if (a.row_scale != nullptr) y *= broadcast(row_scale(a, m));
        if (a.bias != nullptr) y += bias;
        store_floats(a.y, a.y_dtype, m * a.N + n, y, chunk.count);
      }
    });
  }
}

}  // namespace
}  // namespace quanto::kernels
