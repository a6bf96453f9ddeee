// What the kernels for many rows share: units of some channels and some rows, whose sums lie channel by channel in a
// thread's memory until they are complete. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"
#include "kernels/transpose-inl.h"

namespace quanto::kernels {
namespace {

/// One unit: up to kChannels channels and up to `most_rows` rows. All channels of some rows come before other rows.
template <std::int64_t kChannels>
struct PanelUnit {
  std::int64_t n_begin, channels;
  std::int64_t m_begin, rows;

  PanelUnit(const MatmulArgs& a, std::int64_t most_rows, std::int64_t unit) {
    const std::int64_t panels = ceil_div(a.N, kChannels);
    n_begin = unit % panels * kChannels;
    channels = smaller(kChannels, a.N - n_begin);
    m_begin = unit / panels * most_rows;
    rows = smaller(most_rows, a.M - m_begin);
  }

  static std::int64_t count(const MatmulArgs& a, std::int64_t most_rows) {
    return ceil_div(a.N, kChannels) * ceil_div(a.M, most_rows);
  }
};

/// What turns the sums of a unit's channels into results. Missing scales are 1, missing biases -0, which change
/// nothing.
template <std::int64_t kChannels>
struct ChannelFactors {
  float scale[kChannels], bias[kChannels];

  /// `scaled`: the sums have been multiplied by their scales.
  ChannelFactors(const MatmulArgs& a, std::int64_t n, std::int64_t channels, bool scaled) {
    for (std::int64_t c = 0; c < kChannels; ++c) {
      const bool exists = c < channels;
      scale[c] = exists && !scaled ? channel_scale(a, n + c) : 1.0f;
      bias[c] = exists && a.bias != nullptr ? load_float(a.bias, a.y_dtype, n + c) : -0.0f;
    }
  }
};

/// The scales of `count` rows from m on, in the lanes.
inline FloatLanes row_scales(const MatmulArgs& a, std::int64_t m, int count) {
  if (a.row_scale == nullptr) return broadcast(1.0f);
  if (a.row_scale_step == 0) return broadcast(*a.row_scale);
  return load<FloatLanes>(a.row_scale + m, count);
}

template <DType kDType>
inline BitLanes encode_words(FloatLanes v) {
  return kDType == DType::bfloat16 ? encode_bfloat16(v) : widen(float16_words(v));
}

/// Stores the results of some rows of a unit from their sums, those of a channel kApart floats after the one before. A
/// square of rows and channels at a time, transposed: sums lie channel by channel, results row by row. 16-bit results
/// are rounded first, so that there is half as much to transpose.
template <DType kDType, class Sum, std::int64_t kApart, std::int64_t kChannels>
inline void store_rows_as(const MatmulArgs& a, const ChannelFactors<kChannels>& f, std::int64_t n,
                          std::int64_t channels, std::int64_t m, std::int64_t rows, const float* sums) {
  static_assert(kChannels % kLanes == 0);
  constexpr std::int64_t kSize = kDType == DType::float32 ? 4 : 2;
  for (std::int64_t first = 0; first < rows; first += kLanes) {
    const int count = static_cast<int>(smaller(kLanes, rows - first));
    const FloatLanes of_rows = row_scales(a, m + first, count);
    for_chunks(channels, [&](std::int64_t c, auto chunk) {
      const auto result = [&](int i) {
        const FloatLanes sum = as_floats(load<Sum>(sums + (c + i) * kApart + first, kLanes));
        return sum * broadcast(f.scale[c + i]) * of_rows + broadcast(f.bias[c + i]);
      };
      char* y = static_cast<char*>(a.y) + ((m + first) * a.N + n + c) * kSize;
      if constexpr (kDType == DType::float32) {
        BitLanes square[kLanes];
        QUANTO_UNROLL for (int i = 0; i < kLanes; ++i) square[i] = (BitLanes)result(i);
        transpose(square);
        for (int r = 0; r < count; ++r) store(y + r * a.N * kSize, square[r], chunk.count);
      } else {
        BitLanes pairs[kLanes / 2];
        QUANTO_UNROLL for (int i = 0; i < kLanes / 2; ++i) {
          pairs[i] = encode_words<kDType>(result(2 * i)) | encode_words<kDType>(result(2 * i + 1)) << 16;
        }
        WordLanes of_row[kLanes];
        transpose_words(pairs, of_row);
        for (int r = 0; r < count; ++r) store(y + r * a.N * kSize, of_row[r], chunk.count);
      }
    });
  }
}

template <class Sum, std::int64_t kApart, std::int64_t kChannels>
inline void store_rows(const MatmulArgs& a, const ChannelFactors<kChannels>& f, std::int64_t n, std::int64_t channels,
                       std::int64_t m, std::int64_t rows, const float* sums) {
  switch (a.y_dtype) {
    case DType::float32:
      return store_rows_as<DType::float32, Sum, kApart>(a, f, n, channels, m, rows, sums);
    case DType::bfloat16:
      return store_rows_as<DType::bfloat16, Sum, kApart>(a, f, n, channels, m, rows, sums);
    case DType::float16:
      return store_rows_as<DType::float16, Sum, kApart>(a, f, n, channels, m, rows, sums);
  }
}

}  // namespace
}  // namespace quanto::kernels
