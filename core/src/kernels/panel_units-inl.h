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
#include "kernels/planes-inl.h"
#include "kernels/transpose-inl.h"

namespace quanto::kernels {
namespace {

/// One unit: up to kChannels channels and up to `most_rows` rows. All channels of some rows come before other rows.
/// Units are as equal as multiples of kChannelStep channels and of kRowStep rows allow: threads wait for who has the
/// last.
template <std::int64_t kChannels, std::int64_t kChannelStep, std::int64_t kRowStep>
struct PanelUnit {
  std::int64_t n_begin, channels;
  std::int64_t m_begin, rows;

  PanelUnit(const MatmulArgs& a, std::int64_t most_rows, std::int64_t unit) {
    const std::int64_t panels = panel_count(a, most_rows), panel = unit % panels;
    const std::int64_t tiles = ceil_div(a.N, kChannelStep);
    n_begin = tiles * panel / panels * kChannelStep;
    channels = smaller(tiles * (panel + 1) / panels * kChannelStep, a.N) - n_begin;
    const std::int64_t groups = ceil_div(a.M, most_rows), group = unit / panels;
    const std::int64_t blocks = ceil_div(a.M, kRowStep);
    m_begin = blocks * group / groups * kRowStep;
    rows = smaller(blocks * (group + 1) / groups * kRowStep, a.M) - m_begin;
  }

  static std::int64_t count(const MatmulArgs& a, std::int64_t most_rows) {
    return panel_count(a, most_rows) * ceil_div(a.M, most_rows);
  }

 private:
  /// Where there are few units they are narrower, which costs little: every tile reads all activations anyhow.
  static std::int64_t panel_count(const MatmulArgs& a, std::int64_t most_rows) {
    constexpr std::int64_t kFewUnits = 8;
    const std::int64_t tiles = ceil_div(a.N, kChannelStep), groups = ceil_div(a.M, most_rows);
    std::int64_t panels = ceil_div(a.N, kChannels);
    while (panels * groups < kFewUnits && tiles >= 4 * panels) panels *= 2;
    return panels;
  }
};

/// Zero or between 2^-40 and 2^40. A sum of integers times two such factors is zero or between 2^-80 and 2^111, and
/// what it and a third one add up to is zero or at least 2^-65: normal numbers.
inline bool is_moderate(float v) {
  const float size = v < 0.0f ? -v : v;
  return size == 0.0f || (size >= 0x1p-40f && size <= 0x1p40f);
}

/// What turns the sums of a unit's channels into results. Missing scales are 1, missing biases -0, which change
/// nothing.
template <std::int64_t kChannels>
struct ChannelFactors {
  float scale[kChannels], bias[kChannels];
  bool moderate = true;  ///< whether all of them are

  /// `scaled`: the sums have been multiplied by their scales.
  ChannelFactors(const MatmulArgs& a, std::int64_t n, std::int64_t channels, bool scaled) {
    for (std::int64_t c = 0; c < kChannels; ++c) {
      const bool exists = c < channels;
      scale[c] = exists && !scaled ? channel_scale(a, n + c) : 1.0f;
      bias[c] = exists && a.bias != nullptr ? load_float(a.bias, a.y_dtype, n + c) : -0.0f;
      moderate &= is_moderate(scale[c]) && is_moderate(bias[c]);
    }
  }
};

/// The scales of `count` rows from m on, in the lanes.
inline FloatLanes row_scales(const MatmulArgs& a, std::int64_t m, int count) {
  if (a.row_scale_step == 0) return broadcast(*a.row_scale);
  return load<FloatLanes>(a.row_scale + m, count);
}

template <DType kDType>
inline BitLanes encode_words(FloatLanes v) {
  return kDType == DType::bfloat16 ? encode_bfloat16(v) : widen(float16_words(v));
}

/// 16-bit results of two channels, those of the first in the low halves.
template <DType kDType>
inline BitLanes encode_pairs(FloatLanes first, FloatLanes second) {
#if defined(__AVX512BF16__)
  // The instruction takes subnormal numbers for zero, and has NaNs of its own.
  constexpr int kNanOrSubnormal = 0xa1;
  if (kDType == DType::bfloat16 && (_mm512_fpclass_ps_mask((__m512)first, kNanOrSubnormal) |
                                    _mm512_fpclass_ps_mask((__m512)second, kNanOrSubnormal)) == 0) {
    const BitLanes lane = BitLanes{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const __m512i words = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    return (BitLanes)_mm512_permutexvar_epi16((__m512i)(lane | (lane + 16) << 16), words);
  }
#elif defined(__AVX512F__)
  // encode_bfloat16 of both at once: the upper words, and one more where the lower ones are above the half, or on it
  // and the upper one is odd.
  if (kDType == DType::bfloat16 && _mm512_cmpunord_ps_mask((__m512)first, (__m512)second) == 0) {
    const auto words_from = [&](std::uint32_t word) {
      const BitLanes word_of_each = BitLanes{0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30} + word;
      const __m512i order = (__m512i)(word_of_each | (word_of_each + 32) << 16);
      return _mm512_permutex2var_epi16((__m512i)first, order, (__m512i)second);
    };
    const __m512i upper = words_from(1), lower = words_from(0), one = _mm512_set1_epi16(1);
    const __m512i most = _mm512_sub_epi16(_mm512_set1_epi16(-0x8000), _mm512_and_si512(upper, one));
    return (BitLanes)_mm512_mask_add_epi16(upper, _mm512_cmpgt_epu16_mask(lower, most), upper, one);
  }
#endif
  return encode_words<kDType>(first) | encode_words<kDType>(second) << 16;
}

/// Stores the first `rows` of a square: row r at y + r * apart.
template <class Row, class Chunk>
inline void store_square(char* y, std::int64_t apart, const Row (&square)[kLanes], int rows, Chunk chunk) {
  if (rows == kLanes) {
    QUANTO_UNROLL for (int r = 0; r < kLanes; ++r) store(y + r * apart, square[r], chunk.count);
  } else {
    for (int r = 0; r < rows; ++r) store(y + r * apart, square[r], chunk.count);
  }
}

/// Stores the results of some rows of a unit from their sums, those of a channel kApart floats after the one before. A
/// square of rows and channels at a time, transposed: sums lie channel by channel, results row by row. 16-bit results
/// are rounded first, so that there is half as much to transpose. `kScaled`: all scales of channels are 1; `kOfRows`:
/// rows have scales of their own; `kNormal`: results are zero or normal numbers, and bfloat16.
template <DType kDType, class Sum, std::int64_t kApart, bool kScaled, bool kOfRows, bool kNormal = false,
          std::int64_t kChannels>
inline void store_rows_as(const MatmulArgs& a, const ChannelFactors<kChannels>& f, std::int64_t n,
                          std::int64_t channels, std::int64_t m, std::int64_t rows, const float* sums) {
  static_assert(kChannels % kLanes == 0);
  constexpr std::int64_t kSize = kDType == DType::float32 ? 4 : 2;
  for (std::int64_t first = 0; first < rows; first += kLanes) {
    const int count = static_cast<int>(smaller(kLanes, rows - first));
    const FloatLanes of_rows = kOfRows ? row_scales(a, m + first, count) : FloatLanes{};
    for_chunks(channels, [&](std::int64_t c, auto chunk) {
      const auto result = [&](int i) {
        FloatLanes value = as_floats(load<Sum>(sums + (c + i) * kApart + first, kLanes));
        if constexpr (!kScaled) value *= broadcast(f.scale[c + i]);
        if constexpr (kOfRows) value *= of_rows;
        return value + broadcast(f.bias[c + i]);
      };
      char* y = static_cast<char*>(a.y) + ((m + first) * a.N + n + c) * kSize;
      if constexpr (kDType == DType::float32) {
        BitLanes square[kLanes];
        QUANTO_UNROLL for (int i = 0; i < kLanes; ++i) square[i] = (BitLanes)result(i);
        transpose(square);
        store_square(y, a.N * kSize, square, count, chunk);
#if defined(__AVX512BF16__)
      } else if constexpr (kNormal) {
        __m512i apart[kLanes / 2];
        QUANTO_UNROLL for (int i = 0; i < kLanes / 2; ++i) {
          apart[i] = (__m512i)_mm512_cvtne2ps_pbh((__m512)result(i + kLanes / 2), (__m512)result(i));
        }
        WordLanes of_row[kLanes];
        transpose_words_apart(apart, of_row);
        store_square(y, a.N * kSize, of_row, count, chunk);
#endif
      } else {
        BitLanes pairs[kLanes / 2];
        QUANTO_UNROLL for (int i = 0; i < kLanes / 2; ++i) {
          pairs[i] = encode_pairs<kDType>(result(2 * i), result(2 * i + 1));
        }
        WordLanes of_row[kLanes];
        transpose_words(pairs, of_row);
        store_square(y, a.N * kSize, of_row, count, chunk);
      }
    });
  }
}

template <class Sum>
constexpr bool kIsInteger = false;
template <>
constexpr bool kIsInteger<IntLanes> = true;

template <DType kType>
struct OutputDType {
  static constexpr DType kDType = kType;
};

#if defined(__AVX512BF16__)
/// Whether the instruction that takes subnormal numbers for zeros rounds the results of sums of integers right.
template <std::int64_t kChannels>
inline bool gives_normal_numbers(const MatmulArgs& a, const ChannelFactors<kChannels>& f, std::int64_t m,
                                 std::int64_t rows) {
  if (a.y_dtype != DType::bfloat16 || a.row_scale == nullptr || !f.moderate) return false;
  bool moderate = true;
  for (std::int64_t i = 0; i < (a.row_scale_step == 0 ? 1 : rows); ++i) moderate &= is_moderate(row_scale(a, m + i));
  return moderate;
}
#endif

template <class Sum, std::int64_t kApart, bool kScaled, std::int64_t kChannels>
inline void store_rows(const MatmulArgs& a, const ChannelFactors<kChannels>& f, std::int64_t n, std::int64_t channels,
                       std::int64_t m, std::int64_t rows, const float* sums) {
#if defined(__AVX512BF16__)
  if constexpr (kIsInteger<Sum>) {
    if (gives_normal_numbers(a, f, m, rows)) {
      return store_rows_as<DType::bfloat16, Sum, kApart, kScaled, true, true>(a, f, n, channels, m, rows, sums);
    }
  }
#endif
  const auto store_as = [&](auto dtype) {
    constexpr DType kDType = decltype(dtype)::kDType;
    if (a.row_scale != nullptr) {
      return store_rows_as<kDType, Sum, kApart, kScaled, true>(a, f, n, channels, m, rows, sums);
    }
    return store_rows_as<kDType, Sum, kApart, kScaled, false>(a, f, n, channels, m, rows, sums);
  };
  switch (a.y_dtype) {
    case DType::float32:
      return store_as(OutputDType<DType::float32>{});
    case DType::bfloat16:
      return store_as(OutputDType<DType::bfloat16>{});
    case DType::float16:
      return store_as(OutputDType<DType::float16>{});
  }
}

/// The same into planes of results, in which rows are neighbours as they are in the sums. Rows have no scales: their
/// activations are floats.
template <class Sum, std::int64_t kApart, std::int64_t kChannels>
inline void store_planes(const MatmulArgs& a, const ChannelFactors<kChannels>& f, std::int64_t n, std::int64_t channels,
                         std::int64_t m, std::int64_t rows, const float* sums) {
  for (std::int64_t first = 0; first < rows; first += kLanes) {
    const LaneRuns to(a.planes->run_outputs, a.planes->run, m + first, a.M);
    for (std::int64_t c = 0; c < channels; ++c) {
      const FloatLanes sum = as_floats(load<Sum>(sums + c * kApart + first, kLanes));
      to.store(a.y, a.y_dtype, (n + c) * a.planes->channel_stride, sum * broadcast(f.scale[c]) + broadcast(f.bias[c]));
    }
  }
}

}  // namespace
}  // namespace quanto::kernels
