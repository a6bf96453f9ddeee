// The kernel for many rows of bfloat16 activations: decode a block of codes to bfloat16 once, then multiply all rows
// with it in registers by dot products of pairs. As panel-inl.h, rows are the lanes of a vector and weights are
// broadcast, in pairs of neighbours along K. Codes are multiplied as they are; the scales of groups and what their
// shifts contribute are applied to the sums where a group ends (see few_rows-inl.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/bf16_codes-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/panel_units-inl.h"
#include "kernels/transpose-inl.h"

namespace quanto::kernels {
namespace {

constexpr int kRowVectors = 4;
constexpr int kSumVectors = 24;  // with 4 vectors of rows and a pair of weights they fill 32 registers
constexpr std::int64_t kBlockRows = kRowVectors * kLanes;
constexpr std::int64_t kPanelChannels = 2 * kSumVectors;
constexpr std::int64_t kPanelDepth = 512;
constexpr std::int64_t kPanelRows = 512;
using Unit = PanelUnit<kPanelChannels, kPanelRows>;

/// What prepare() leaves for run(): pairs of activations of kBlockRows rows beside each other, the sums of their groups
/// likewise, and whether a row's activations are of magnitudes that the instruction serves. Missing rows and the second
/// half of the last pair are zeros.
struct PreparedPairs {
  std::uint32_t* pairs;
  float* sums;
  bool* plain;
  std::int64_t blocks, depth, groups;

  template <class Args>
  PreparedPairs(const Args& a, bool affine)
      : pairs(static_cast<std::uint32_t*>(a.workspace)),
        blocks(ceil_div(a.M, kBlockRows)),
        depth(ceil_div(a.K, 2)),
        groups(affine ? a.groups : 0) {
    sums = reinterpret_cast<float*>(pairs + blocks * depth * kBlockRows);
    plain = reinterpret_cast<bool*>(sums + blocks * groups * kBlockRows);
  }

  std::size_t bytes() const {
    return static_cast<std::size_t>(blocks * kBlockRows) *
           (static_cast<std::size_t>(depth + groups) * sizeof(float) + sizeof(bool));
  }
  std::uint32_t* pairs_at(std::int64_t block, std::int64_t pair) const {
    return pairs + (block * depth + pair) * kBlockRows;
  }
  float* sums_at(std::int64_t block, std::int64_t group) const { return sums + (block * groups + group) * kBlockRows; }
};

template <QType kQType>
std::size_t bf16_panel_workspace_bytes(const MatmulArgs& a) {
  return PreparedPairs(a, is_affine_qtype(kQType)).bytes();
}

/// The 16 x 16 matrix of pairs that starts at row m of x, transposed: lane m of vector k.
inline void transpose_pairs(const MatmulArgs& a, std::int64_t m, std::int64_t pair, std::uint32_t* out) {
  __m512i rows[16];
  for (int r = 0; r < 16; ++r) {
    rows[r] = m + r < a.M ? load_bf16(a.x, (m + r) * a.x_stride + 2 * pair, a.K - 2 * pair) : _mm512_setzero_si512();
  }
  transpose_16x16(rows);
  const std::int64_t count = smaller(16, ceil_div(a.K, 2) - pair);
  for (std::int64_t k = 0; k < count; ++k) _mm512_storeu_si512(out + k * kBlockRows, rows[k]);
}

/// Sums and magnitudes of one row.
template <QType kQType>
inline void summarize_row(const MatmulArgs& a, const PreparedPairs& prepared, std::int64_t m) {
  float* sums = prepared.sums_at(m / kBlockRows, 0) + m % kBlockRows;
  bool plain = true;
  for (std::int64_t begin = 0; begin < a.K; begin += a.group_size) {
    const std::int64_t end = begin + a.group_size;
    __m512 sum = _mm512_setzero_ps();
    for (std::int64_t k = begin; k < end; k += 32) {
      const __m512i x = load_bf16(a.x, m * a.x_stride + k, end - k);
      plain &= all_plain(x);
      sum = _mm512_add_ps(sum, pair_sums(x));
    }
    if constexpr (is_affine_qtype(kQType)) sums[begin / a.group_size * kBlockRows] = sum_lanes((FloatLanes)sum);
  }
  prepared.plain[m] = plain;
}

/// Blocks of 16 rows, each by whoever has its first one.
template <QType kQType>
void bf16_panel_prepare(const MatmulArgs& a, std::int64_t begin, std::int64_t end) {
  const PreparedPairs prepared(a, is_affine_qtype(kQType));
  const std::int64_t filled = end == a.M ? round_up(a.M, kBlockRows) : end;
  for (std::int64_t m = round_up(begin, 16); m < filled; m += 16) {
    for (std::int64_t pair = 0; pair < prepared.depth; pair += 16) {
      transpose_pairs(a, m, pair, prepared.pairs_at(m / kBlockRows, pair) + m % kBlockRows);
    }
  }
  for (std::int64_t m = begin; m < end; ++m) summarize_row<kQType>(a, prepared, m);
  for (std::int64_t m = end; m < (end == a.M ? filled : end); ++m) {
    for (std::int64_t j = 0; j < prepared.groups; ++j) {
      prepared.sums_at(m / kBlockRows, j)[m % kBlockRows] = 0.0f;
    }
  }
}

template <QType kQType>
bool bf16_panel_serves_values(const MatmulArgs& a) {
  const PreparedPairs prepared(a, is_affine_qtype(kQType));
  bool plain = true;
  for (std::int64_t m = 0; m < a.M; ++m) plain &= prepared.plain[m];
  return plain;
}

// Decoding, in the order of K. What is missing of a channel's last vector is zeros, which decode to zeros.

template <QType kQType>
inline void decode_bytes_to_bf16(const std::uint8_t* codes, std::int64_t count, std::uint16_t* out) {
  const __m512i unpacked_order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  for (std::int64_t k = 0; k < count; k += 64) {
    const std::int64_t left = count - k;
    const __mmask64 mask = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
    const __m512i v = _mm512_permutexvar_epi64(unpacked_order, _mm512_maskz_loadu_epi8(mask, codes + k));
    const Bf16Halves halves = decode_to_bf16<kQType>(v);
    _mm512_storeu_si512(out + k, halves.of[0]);
    _mm512_storeu_si512(out + k + 32, halves.of[1]);
  }
}

/// One field of `count` packed bytes; writes whole vectors of 32.
template <int kBits>
inline void decode_field_to_bf16(const std::uint8_t* bytes, std::int64_t count, int field, std::uint16_t* out) {
  const __m512i table = _mm512_load_si512(kWordTable<kBits, 0>.values);
  for (std::int64_t k = 0; k < count; k += 32) {
    const std::int64_t left = count - k;
    const __mmask32 mask = left >= 32 ? ~__mmask32{0} : (__mmask32{1} << left) - 1;
    const __m512i words = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(mask, bytes + k));
    const __m512i index = _mm512_srl_epi16(words, _mm_cvtsi32_si128(kBits * field));
    _mm512_storeu_si512(out + k, _mm512_permutexvar_epi16(index, table));
  }
}

/// The codes of channel n for k in [begin, end).
template <QType kQType>
inline void decode_channel_to_bf16(const MatmulArgs& a, std::int64_t n, std::int64_t begin, std::int64_t end,
                                   std::uint16_t* out) {
  if constexpr (!is_affine_qtype(kQType)) {
    decode_bytes_to_bf16<kQType>(a.w + n * a.K + begin, end - begin, out);
  } else {
    for (std::int64_t k = begin; k < end;) {
      const std::int64_t within = k % a.group_size, r = n * a.groups + k / a.group_size;
      const std::int64_t count = smaller(a.group_size - within, end - k);
      const std::uint8_t* bytes = a.w + r % a.packed_rows * a.group_size + within;
      decode_field_to_bf16<bits_of(kQType)>(bytes, count, static_cast<int>(r / a.packed_rows), out + (k - begin));
      k += count;
    }
  }
}

// Multiplying.

/// A thread's memory: decoded codes, a channel after the other, and the sums of a unit.
struct PanelScratch {
  std::uint16_t* codes;
  float* sums;  ///< kPanelRows for each channel

  explicit PanelScratch(void* memory)
      : codes(static_cast<std::uint16_t*>(memory)), sums(reinterpret_cast<float*>(codes + kPanelChannels * kCodes)) {}
  /// Vectors are written whole, past the end of a group by up to 31 codes.
  static constexpr std::int64_t kCodes = kPanelDepth + 64;
  static constexpr std::size_t kBytes = kPanelChannels * (kCodes * 2 + kPanelRows * 4);
};

std::size_t bf16_panel_scratch_bytes(const MatmulArgs&) { return PanelScratch::kBytes; }

/// The scales and offsets of the channels of a panel for one group.
struct GroupScales {
  float scale[kPanelChannels];
  float minus_offset[kPanelChannels];
};

/// What is multiplied at once: a run of pairs that share their scales.
struct PanelSegment {
  const std::uint32_t* x;  ///< of kBlockRows rows
  const std::uint16_t* w;  ///< of a channel
  std::int64_t pairs;
  float* sums;                        ///< of a channel
  const float* group_sums;            ///< of kBlockRows rows, or null where sums are not scaled here
  const float *scale, *minus_offset;  ///< from the channel on
};

template <int kChannels, int kVectors>
inline void multiply_tile(const PanelSegment& s) {
  FloatLanes acc[kChannels][kVectors];
  for (int c = 0; c < kChannels; ++c) {
    for (int v = 0; v < kVectors; ++v) {
      acc[c][v] =
          s.group_sums == nullptr ? load<FloatLanes>(s.sums + c * kPanelRows + v * kLanes, kLanes) : FloatLanes{};
    }
  }
  const auto* w = reinterpret_cast<const char*>(s.w);
  for (std::int64_t p = 0; p < s.pairs; ++p) {
    __m512i rows[kVectors];
    for (int v = 0; v < kVectors; ++v) rows[v] = _mm512_loadu_si512(s.x + p * kBlockRows + v * kLanes);
    for (int c = 0; c < kChannels; ++c) {
      std::int32_t pair;
      __builtin_memcpy(&pair, w + (c * PanelScratch::kCodes + 2 * p) * 2, 4);
      const __m512i weights = _mm512_set1_epi32(pair);
      for (int v = 0; v < kVectors; ++v) acc[c][v] = multiply_add_pairs(weights, rows[v], acc[c][v]);
    }
  }
  for (int c = 0; c < kChannels; ++c) {
    for (int v = 0; v < kVectors; ++v) {
      float* at = s.sums + c * kPanelRows + v * kLanes;
      FloatLanes sum = acc[c][v];
      if (s.group_sums != nullptr) {
        const auto x_sum = load<FloatLanes>(s.group_sums + v * kLanes, kLanes);
        const FloatLanes shifted = multiply_add(broadcast(s.minus_offset[c]), x_sum, load<FloatLanes>(at, kLanes));
        sum = multiply_add(broadcast(s.scale[c]), sum, shifted);
      }
      store(at, sum, kLanes);
    }
  }
}

template <int kChannels, int kVectors>
inline void multiply_tiles(std::int64_t channels, PanelSegment s) {
  static_assert(kPanelChannels % kChannels == 0);
  for (std::int64_t c = 0; c < channels; c += kChannels) {
    multiply_tile<kChannels, kVectors>(s);
    s.w += kChannels * PanelScratch::kCodes;
    s.sums += kChannels * kPanelRows;
    s.scale += kChannels;
    s.minus_offset += kChannels;
  }
}

/// Fewer vectors of rows take more channels: with fewer sums the dot products would wait for each other.
inline void multiply_segment(std::int64_t rows, std::int64_t channels, const PanelSegment& s) {
  switch (ceil_div(rows, kLanes)) {
    case 1:
      return multiply_tiles<kSumVectors, 1>(channels, s);
    case 2:
      return multiply_tiles<kSumVectors / 2, 2>(channels, s);
    case 3:
      return multiply_tiles<kSumVectors / 3, 3>(channels, s);
    default:
      return multiply_tiles<kSumVectors / 4, 4>(channels, s);
  }
}

/// A group's shift is applied once, with its first codes.
inline void read_scales(const MatmulArgs& a, const Unit& u, std::int64_t k, GroupScales& scales) {
  const std::int64_t group = k / a.group_size;
  const bool first = k % a.group_size == 0;
  for (std::int64_t c = 0; c < kPanelChannels; ++c) {
    const ScaleOffset so =
        c < u.channels ? scale_offset(a, (u.n_begin + c) * a.groups + group) : ScaleOffset{0.0f, 0.0f};
    scales.scale[c] = so.scale;
    scales.minus_offset[c] = first ? -so.offset : 0.0f;
  }
}

template <QType kQType>
inline void multiply_depth(const MatmulArgs& a, const Unit& u, const PreparedPairs& prepared, std::int64_t begin,
                           std::int64_t end, const PanelScratch& scratch) {
  for (std::int64_t c = 0; c < u.channels; ++c) {
    decode_channel_to_bf16<kQType>(a, u.n_begin + c, begin, end, scratch.codes + c * PanelScratch::kCodes);
  }
  for (std::int64_t k = begin; k < end;) {
    const std::int64_t group = k / a.group_size;
    const std::int64_t k_end = is_affine_qtype(kQType) ? smaller((group + 1) * a.group_size, end) : end;
    GroupScales scales;
    if constexpr (is_affine_qtype(kQType)) read_scales(a, u, k, scales);
    for (std::int64_t m = 0; m < u.rows; m += kBlockRows) {
      const std::int64_t block = (u.m_begin + m) / kBlockRows;
      multiply_segment(
          smaller(kBlockRows, u.rows - m), u.channels,
          {prepared.pairs_at(block, k / 2), scratch.codes + (k - begin), ceil_div(k_end - k, 2), scratch.sums + m,
           is_affine_qtype(kQType) ? prepared.sums_at(block, group) : nullptr, scales.scale, scales.minus_offset});
    }
    k = k_end;
  }
}

template <QType kQType>
void bf16_panel_run(const MatmulArgs& a, void* memory, std::int64_t begin, std::int64_t end) {
  const PanelScratch scratch(memory);
  const PreparedPairs prepared(a, is_affine_qtype(kQType));
  for (std::int64_t unit = begin; unit < end; ++unit) {
    const Unit u(a, unit);
    const auto sums_bytes = static_cast<std::size_t>(round_up(u.rows, kBlockRows)) * sizeof(float);
    for (std::int64_t c = 0; c < kPanelChannels; ++c) __builtin_memset(scratch.sums + c * kPanelRows, 0, sums_bytes);
    // Channels that the weight does not have are multiplied all the same.
    const std::int64_t missing = kPanelChannels - u.channels;
    __builtin_memset(scratch.codes + u.channels * PanelScratch::kCodes, 0,
                     static_cast<std::size_t>(missing * PanelScratch::kCodes) * sizeof(std::uint16_t));
    for (std::int64_t k = 0; k < a.K; k += kPanelDepth) {
      multiply_depth<kQType>(a, u, prepared, k, smaller(k + kPanelDepth, a.K), scratch);
    }
    store_unit<is_affine_qtype(kQType)>(a, u, scratch.sums);
  }
}

/// Pairs may not straddle groups. From `kFewestRows` on this beats the kernel for few rows.
template <QType kQType, std::int64_t kFewestRows>
bool bf16_panel_supports(const MatmulArgs& a) {
  return a.M >= kFewestRows && !a.special_values && (a.groups == 1 || a.group_size % 2 == 0);
}

template <QType kQType, std::int64_t kFewestRows>
constexpr MatmulKernel kBf16PanelKernel = {
    "panel",
    bf16_panel_supports<kQType, kFewestRows>,
    bf16_panel_workspace_bytes<kQType>,
    bf16_panel_prepare<kQType>,
    bf16_panel_serves_values<kQType>,
    bf16_panel_scratch_bytes,
    Unit::count,
    bf16_panel_run<kQType>,
};

}  // namespace
}  // namespace quanto::kernels
