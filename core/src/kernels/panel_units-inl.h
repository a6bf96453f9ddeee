// What the kernels for many rows share: units of some channels and some rows, whose sums lie channel by channel in a
// thread's memory until they are complete. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"
#include "kernels/transpose-inl.h"

namespace quanto::kernels {
namespace {

/// One unit: up to kChannels channels and up to kRows rows.
template <std::int64_t kChannels, std::int64_t kRows>
struct PanelUnit {
  std::int64_t n_begin, channels;
  std::int64_t m_begin, rows;

  PanelUnit(const MatmulArgs& a, std::int64_t unit) {
    const std::int64_t panels = ceil_div(a.N, kChannels);
    n_begin = unit % panels * kChannels;
    channels = smaller(kChannels, a.N - n_begin);
    m_begin = unit / panels * kRows;
    rows = smaller(kRows, a.M - m_begin);
  }

  static std::int64_t count(const MatmulArgs& a) { return ceil_div(a.N, kChannels) * ceil_div(a.M, kRows); }
};

/// y(m, n) and the channels after it, from their sums.
inline void store_row(const MatmulArgs& a, std::int64_t m, std::int64_t n, FloatLanes sums, const float* scales,
                      int count) {
  FloatLanes y = sums * load<FloatLanes>(scales, kLanes);
  if (a.row_scale != nullptr) y *= broadcast(row_scale(a, m));
  if (a.bias != nullptr) y += load_floats(a.bias, a.y_dtype, n, count);
  store_floats(a.y, a.y_dtype, m * a.N + n, y, count);
}

/// Stores a unit's sums, those of a channel kApart floats after the one before: final ones of the affine qtypes, else
/// to be scaled. A square of rows and channels at a time, transposed: sums lie channel by channel, results row by row.
template <bool kScaled, std::int64_t kApart, std::int64_t kChannels, std::int64_t kRows>
inline void store_unit(const MatmulArgs& a, const PanelUnit<kChannels, kRows>& u, const float* sums) {
  static_assert(kChannels % kLanes == 0 && kRows % kLanes == 0);
  float scales[kChannels];
  for (std::int64_t c = 0; c < kChannels; ++c) {
    scales[c] = kScaled || c >= u.channels ? 1.0f : channel_scale(a, u.n_begin + c);
  }
  for (std::int64_t m = 0; m < u.rows; m += kLanes) {
    for_chunks(u.channels, [&](std::int64_t c, auto chunk) {
      BitLanes square[kLanes];
      for (std::int64_t i = 0; i < kLanes; ++i) square[i] = load<BitLanes>(sums + (c + i) * kApart + m, kLanes);
      transpose(square);
      for (std::int64_t r = 0; r < smaller(kLanes, u.rows - m); ++r) {
        store_row(a, u.m_begin + m + r, u.n_begin + c, (FloatLanes)square[r], scales + c, chunk.count);
      }
    });
  }
}

}  // namespace
}  // namespace quanto::kernels
