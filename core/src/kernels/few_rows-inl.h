// The kernel for few rows, where the time goes into reading the weights: decode them in registers, a vector at a time,
// and multiply them at once with up to kRowsAtOnce rows of activations. Each byte of weights comes from memory once;
// more rows find it in the cache again.
//
// The products of kDepth codes are summed in vectors, those sums one after another: the same order for every row,
// whatever the other rows are, so a row has the same bytes in every batch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"
#include "kernels/rows-inl.h"

#define QUANTO_INLINE inline __attribute__((always_inline))
#define QUANTO_UNROLL _Pragma("GCC unroll 16")

namespace quanto::kernels {
namespace {

constexpr std::int64_t kFewRows = Simd::kFewestPanelRows - 1;
constexpr std::int64_t kRowsAtOnce = 4;
constexpr std::int64_t kDepth =
    1024;  // the activations of 4 rows, 16 KiB, stay in the L1 cache for all stripes of a unit
constexpr std::int64_t kStripesPerUnit = 8;
constexpr std::int64_t kCacheLine = 64;

/// Codes in a byte. Stripe i, the K bytes from i * K on, holds the codes of the channels i, i + N / fields, ...
template <QType kQType>
constexpr int kFieldsOf = 8 / bits_of(kQType);

template <QType kQType>
QUANTO_INLINE std::int64_t stripe_count(const MatmulArgs& a) {
  return a.N / kFieldsOf<kQType>;
}

/// What is multiplied at once: some stripes and some rows, for k in [begin, end).
struct FewRowsBlock {
  std::int64_t stripe, m;
  std::int64_t begin, end;
  const std::uint8_t* next;  ///< the codes that are needed after these
  float* sums;               ///< of (stripe, field, row), kFewRows rows each

  const float* x(const MatmulArgs& a) const { return static_cast<const float*>(a.workspace) + m * a.K; }
};

// 8-bit codes.

template <QType kQType, int kChannels, int kRows, class Chunk>
QUANTO_INLINE void add_products(const std::uint8_t* codes, const float* x, std::int64_t K, Chunk chunk,
                                FloatLanes (&sums)[kChannels][kRows]) {
  QUANTO_UNROLL for (int c = 0; c < kChannels; ++c) {
    const FloatLanes weights = decode_bytes<kQType>(load<ByteLanes>(codes + c * K, chunk.count));
    QUANTO_UNROLL for (int m = 0; m < kRows; ++m) {
      sums[c][m] = multiply_add(weights, load<FloatLanes>(x + m * K, chunk.count), sums[c][m]);
    }
  }
}

template <QType kQType, int kChannels, int kRows>
inline void multiply_bytes(const MatmulArgs& a, const FewRowsBlock& block) {
  const std::uint8_t* codes = a.w + block.stripe * a.K + block.begin;
  const float* x = block.x(a) + block.begin;
  const std::int64_t depth = block.end - block.begin;
  FloatLanes sums[kChannels][kRows] = {};
  std::int64_t k = 0;
  for (; k + kCacheLine <= depth; k += kCacheLine) {
    QUANTO_UNROLL for (int c = 0; c < kChannels; ++c) __builtin_prefetch(block.next + c * a.K + k);
    QUANTO_UNROLL for (int i = 0; i < kCacheLine; i += kLanes) {
      add_products<kQType>(codes + k + i, x + k + i, a.K, WholeChunk{}, sums);
    }
  }
  for_chunks(depth - k,
             [&](std::int64_t i, auto chunk) { add_products<kQType>(codes + k + i, x + k + i, a.K, chunk, sums); });
  for (int c = 0; c < kChannels; ++c) {
    for (int r = 0; r < kRows; ++r) block.sums[c * kFewRows + r] += sum_lanes(sums[c][r]);
  }
}

// 4- and 2-bit codes.

/// Sums of the fields [kFirst, kFirst + kFields) of a stripe. Vectors of codes go to two sums in turn, which gives the
/// processor independent additions.
template <int kBits, int kFirst, int kFields, int kRows>
struct FieldSums {
  GroupDecoder<kBits> decoders[kFields];
  FloatLanes at[kFields][kRows][2] = {};

  QUANTO_INLINE void start_group(const MatmulArgs& a, std::int64_t stripe, std::int64_t j) {
    const std::int64_t apart = a.N / (8 / kBits) * a.groups;
    QUANTO_UNROLL for (int f = 0; f < kFields; ++f) {
      decoders[f] = GroupDecoder<kBits>(scale_offset(a, (kFirst + f) * apart + stripe * a.groups + j));
    }
  }

  template <class Chunk>
  QUANTO_INLINE void add_products(const std::uint8_t* codes, const float* x, std::int64_t K, int turn, Chunk chunk) {
    const BitLanes bytes = widen(load<ByteLanes>(codes, chunk.count));
    QUANTO_UNROLL for (int f = 0; f < kFields; ++f) {
      const FloatLanes weights = decoders[f].decode(bytes, kFirst + f);
      QUANTO_UNROLL for (int m = 0; m < kRows; ++m) {
        at[f][m][turn] = multiply_add(weights, load<FloatLanes>(x + m * K, chunk.count), at[f][m][turn]);
      }
    }
  }

  /// `count` codes of one group.
  QUANTO_INLINE void add_group(const std::uint8_t* codes, const float* x, std::int64_t K, std::int64_t count) {
    std::int64_t i = 0;
    for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
      add_products(codes + i, x + i, K, 0, WholeChunk{});
      add_products(codes + i + kLanes, x + i + kLanes, K, 1, WholeChunk{});
    }
    for_chunks(count - i,
               [&](std::int64_t rest, auto chunk) { add_products(codes + i + rest, x + i + rest, K, 0, chunk); });
  }
};

template <int kBits, int kFirst, int kFields, int kRows>
inline void multiply_fields(const MatmulArgs& a, const FewRowsBlock& block) {
  const std::uint8_t* codes = a.w + block.stripe * a.K;
  const float* x = block.x(a);
  FieldSums<kBits, kFirst, kFields, kRows> sums;
  for (std::int64_t k = block.begin; k < block.end;) {
    const std::int64_t j = k / a.group_size;
    const std::int64_t end = smaller((j + 1) * a.group_size, block.end);
    if constexpr (kFirst == 0) {
      for (std::int64_t i = k; i < end; i += kCacheLine) __builtin_prefetch(block.next + (i - block.begin));
    }
    sums.start_group(a, block.stripe, j);
    sums.add_group(codes + k, x + k, a.K, end - k);
    k = end;
  }
  for (int f = 0; f < kFields; ++f) {
    for (int r = 0; r < kRows; ++r) {
      block.sums[(kFirst + f) * kFewRows + r] += sum_lanes(sums.at[f][r][0] + sums.at[f][r][1]);
    }
  }
}

/// All fields of a stripe, as many together as registers hold sums for.
template <int kBits, int kRows, int kFirst = 0>
inline void multiply_stripe(const MatmulArgs& a, const FewRowsBlock& block) {
  constexpr int kTogether = kRows == 1 ? 4 : kRows == 2 ? 2 : 1;
  constexpr int kFields = 8 / kBits < kTogether ? 8 / kBits : kTogether;
  multiply_fields<kBits, kFirst, kFields, kRows>(a, block);
  if constexpr (kFirst + kFields < 8 / kBits) multiply_stripe<kBits, kRows, kFirst + kFields>(a, block);
}

// Units.

/// Stripes that are multiplied at once with a number of rows: 4 or more independent sums, at most 8.
template <QType kQType, int kRows>
constexpr int kStripesAtOnce = is_affine_qtype(kQType) ? 1
                               : kRows <= 2            ? 4
                                                       : 2;

template <QType kQType, int kStripes, int kRows>
QUANTO_INLINE void multiply_block(const MatmulArgs& a, const FewRowsBlock& block) {
  if constexpr (is_affine_qtype(kQType)) {
    multiply_stripe<bits_of(kQType), kRows>(a, block);
  } else {
    multiply_bytes<kQType, kStripes, kRows>(a, block);
  }
}

/// kRows rows with `count` stripes from `first` on, for k in [begin, end).
template <QType kQType, int kRows>
inline void multiply_stripes(const MatmulArgs& a, FewRowsBlock block, std::int64_t count) {
  constexpr int kStripes = kStripesAtOnce<kQType, kRows>;
  const std::int64_t first = block.stripe;
  const std::uint8_t* following = block.next;
  for (std::int64_t i = 0; i < count;) {
    const bool all = i + kStripes <= count;
    const std::int64_t step = all ? kStripes : 1;
    block.stripe = first + i;
    block.next = i + step < count ? a.w + (first + i + step) * a.K + block.begin : following;
    if (all) {
      multiply_block<kQType, kStripes, kRows>(a, block);
    } else {
      multiply_block<kQType, 1, kRows>(a, block);
    }
    block.sums += step * kFieldsOf<kQType> * kFewRows;
    i += step;
  }
}

template <QType kQType>
inline void multiply_all_rows(const MatmulArgs& a, FewRowsBlock block, std::int64_t count) {
  for (; block.m + kRowsAtOnce <= a.M; block.m += kRowsAtOnce, block.sums += kRowsAtOnce) {
    multiply_stripes<kQType, 4>(a, block, count);
  }
  if (a.M - block.m == 3) multiply_stripes<kQType, 3>(a, block, count);
  if (a.M - block.m == 2) multiply_stripes<kQType, 2>(a, block, count);
  if (a.M - block.m == 1) multiply_stripes<kQType, 1>(a, block, count);
}

template <QType kQType>
inline void store_stripes(const MatmulArgs& a, std::int64_t first, std::int64_t count, const float* sums) {
  for (int f = 0; f < kFieldsOf<kQType>; ++f) {
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t n = f * stripe_count<kQType>(a) + first + i;
      float scale = 1.0f;
      if constexpr (!is_affine_qtype(kQType)) {
        scale = has_nan_code<kQType>(a.w + n * a.K, a.K) ? __builtin_nanf("") : channel_scale(a, n);
      }
      const float* of_channel = sums + (i * kFieldsOf<kQType> + f) * kFewRows;
      for (std::int64_t m = 0; m < a.M; ++m) store_output(a, m, n, scale * of_channel[m]);
    }
  }
}

template <QType kQType>
void few_rows_run(const MatmulArgs& a, void*, std::int64_t begin, std::int64_t end) {
  // One or two rows leave the L1 cache to the weights, which are then best read straight through.
  const std::int64_t together = a.M > 2 ? kStripesPerUnit : kStripesAtOnce<kQType, 1>;
  const std::int64_t last = smaller(end * kStripesPerUnit, stripe_count<kQType>(a));
  for (std::int64_t i = begin * kStripesPerUnit; i < last; i += together) {
    const std::int64_t count = smaller(together, last - i);
    float sums[kStripesPerUnit * kFieldsOf<kQType> * kFewRows] = {};
    for (std::int64_t k = 0; k < a.K; k += kDepth) {
      const std::int64_t k_end = smaller(k + kDepth, a.K);
      const std::uint8_t* next = a.w + (k_end < a.K ? i * a.K + k_end : (i + together) * a.K);
      multiply_all_rows<kQType>(a, {i, 0, k, k_end, next, sums}, count);
    }
    store_stripes<kQType>(a, i, count, sums);
  }
}

/// Channels that share bytes lie regularly only if N is a multiple of their number.
template <QType kQType>
bool few_rows_supports(const MatmulArgs& a) {
  return a.M <= kFewRows && a.N % kFieldsOf<kQType> == 0;
}

template <QType kQType>
std::int64_t few_rows_unit_count(const MatmulArgs& a) {
  return (stripe_count<kQType>(a) + kStripesPerUnit - 1) / kStripesPerUnit;
}

std::size_t few_rows_scratch_bytes(const MatmulArgs&) { return 0; }

template <QType kQType, DType kDType>
constexpr MatmulKernel kFewRowsKernel = {
    "few_rows",           few_rows_supports<kQType>, rows_workspace_bytes,
    rows_prepare<kDType>, few_rows_scratch_bytes,    few_rows_unit_count<kQType>,
    few_rows_run<kQType>,
};

}  // namespace
}  // namespace quanto::kernels

#undef QUANTO_INLINE
#undef QUANTO_UNROLL
