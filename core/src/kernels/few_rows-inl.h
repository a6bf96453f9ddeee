// The kernel for few rows, where the time goes into reading the weights: decode them in registers, a vector at a time,
// and multiply them at once with up to 4 rows of activations. Each byte of weights comes from memory once; more rows
// find it in the cache again.
//
// Every row's products are added in the same order whatever the other rows are, so a row has the same bytes in every
// batch. Channels and rows that are worked on together give the processor independent sums to add to.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"
#include "kernels/rows-inl.h"

namespace quanto::kernels {
namespace {

constexpr std::int64_t kStripesPerUnit = 8;
constexpr std::int64_t kCacheLine = 64;
constexpr std::int64_t kPrefetchAhead = 1024;  // bytes

#define QUANTO_UNROLL _Pragma("GCC unroll 16")

/// Codes in a byte. Stripe i, K bytes from i * K on, holds the codes of the channels i, i + N / fields, ...
template <QType kQType>
constexpr int kFieldsOf = 8 / bits_of(kQType);

template <QType kQType>
inline std::int64_t stripe_count(const MatmulArgs& a) {
  return a.N / kFieldsOf<kQType>;
}

/// Asks for the cache line ahead in a row of K bytes; at its end, ahead in the row that follows `skipped` others.
inline void prefetch_ahead(const std::uint8_t* row, std::int64_t k, std::int64_t K, std::int64_t skipped) {
  const std::int64_t ahead = k + kPrefetchAhead;
  __builtin_prefetch(row + ahead + (ahead < K ? 0 : skipped * K));
}

// 8-bit codes.

template <int kChannels, int kRows>
struct ByteSums {
  FloatLanes at[kChannels][kRows] = {};
};

template <QType kQType, int kChannels, int kRows, class Chunk>
inline __attribute__((always_inline)) void add_products(const std::uint8_t* codes, const float* x, std::int64_t K,
                                                        Chunk chunk, ByteSums<kChannels, kRows>& sums) {
  QUANTO_UNROLL for (int c = 0; c < kChannels; ++c) {
    const FloatLanes weights = decode_bytes<kQType>(load<ByteLanes>(codes + c * K, chunk.count));
    QUANTO_UNROLL for (int m = 0; m < kRows; ++m) {
      sums.at[c][m] = multiply_add(weights, load<FloatLanes>(x + m * K, chunk.count), sums.at[c][m]);
    }
  }
}

/// kChannels channels from n on, kRows rows from m on.
template <QType kQType, int kChannels, int kRows>
inline void multiply_bytes(const MatmulArgs& a, std::int64_t n, std::int64_t m) {
  const std::uint8_t* codes = a.w + n * a.K;
  const float* x = static_cast<const float*>(a.workspace) + m * a.K;
  ByteSums<kChannels, kRows> sums;
  std::int64_t k = 0;
  for (; k + kCacheLine <= a.K; k += kCacheLine) {
    QUANTO_UNROLL for (int c = 0; c < kChannels; ++c) prefetch_ahead(codes + c * a.K, k, a.K, kChannels - 1);
    QUANTO_UNROLL for (int i = 0; i < kCacheLine; i += kLanes) {
      add_products<kQType>(codes + k + i, x + k + i, a.K, WholeChunk{}, sums);
    }
  }
  for_chunks(a.K - k,
             [&](std::int64_t i, auto chunk) { add_products<kQType>(codes + k + i, x + k + i, a.K, chunk, sums); });
  for (int c = 0; c < kChannels; ++c) {
    const bool is_nan = has_nan_code<kQType>(codes + c * a.K, a.K);
    const float scale = is_nan ? __builtin_nanf("") : channel_scale(a, n + c);
    for (int r = 0; r < kRows; ++r) store_output(a, m + r, n + c, scale * sum_lanes(sums.at[c][r]));
  }
}

// 4- and 2-bit codes.

/// Sums of the fields [kFirst, kFirst + kFields) of a stripe. Vectors of codes go to two sums in turn.
template <int kBits, int kFirst, int kFields, int kRows>
struct FieldSums {
  GroupDecoder<kBits> decoders[kFields];
  FloatLanes at[kFields][kRows][2] = {};

  inline __attribute__((always_inline)) void start_group(const MatmulArgs& a, std::int64_t stripe, std::int64_t j) {
    const std::int64_t apart = a.N / (8 / kBits) * a.groups;
    QUANTO_UNROLL for (int f = 0; f < kFields; ++f) {
      decoders[f] = GroupDecoder<kBits>(scale_offset(a, (kFirst + f) * apart + stripe * a.groups + j));
    }
  }

  template <class Chunk>
  inline __attribute__((always_inline)) void add_products(const std::uint8_t* codes, const float* x, std::int64_t K,
                                                          int turn, Chunk chunk) {
    const BitLanes bytes = widen(load<ByteLanes>(codes, chunk.count));
    QUANTO_UNROLL for (int f = 0; f < kFields; ++f) {
      const FloatLanes weights = decoders[f].decode(bytes, kFirst + f);
      QUANTO_UNROLL for (int m = 0; m < kRows; ++m) {
        at[f][m][turn] = multiply_add(weights, load<FloatLanes>(x + m * K, chunk.count), at[f][m][turn]);
      }
    }
  }
};

template <int kBits, int kFirst, int kFields, int kRows>
inline void multiply_fields(const MatmulArgs& a, std::int64_t stripe, std::int64_t m) {
  const std::uint8_t* codes = a.w + stripe * a.K;
  const float* x = static_cast<const float*>(a.workspace) + m * a.K;
  FieldSums<kBits, kFirst, kFields, kRows> sums;
  for (std::int64_t j = 0; j < a.groups; ++j, codes += a.group_size, x += a.group_size) {
    sums.start_group(a, stripe, j);
    if constexpr (kFirst == 0) {
      for (std::int64_t i = 0; i < a.group_size; i += kCacheLine) __builtin_prefetch(codes + i + kPrefetchAhead);
    }
    std::int64_t i = 0;
    for (; i + 2 * kLanes <= a.group_size; i += 2 * kLanes) {
      sums.add_products(codes + i, x + i, a.K, 0, WholeChunk{});
      sums.add_products(codes + i + kLanes, x + i + kLanes, a.K, 1, WholeChunk{});
    }
    for_chunks(a.group_size - i, [&](std::int64_t rest, auto chunk) {
      sums.add_products(codes + i + rest, x + i + rest, a.K, 0, chunk);
    });
  }
  for (int f = 0; f < kFields; ++f) {
    const std::int64_t n = (kFirst + f) * (a.N / (8 / kBits)) + stripe;
    for (int r = 0; r < kRows; ++r) store_output(a, m + r, n, sum_lanes(sums.at[f][r][0] + sums.at[f][r][1]));
  }
}

/// All fields of a stripe, as many together as registers hold sums for.
template <int kBits, int kRows, int kFirst = 0>
inline void multiply_stripe(const MatmulArgs& a, std::int64_t stripe, std::int64_t m) {
  constexpr int kTogether = kRows == 1 ? 4 : kRows == 2 ? 2 : 1;
  constexpr int kFields = 8 / kBits < kTogether ? 8 / kBits : kTogether;
  multiply_fields<kBits, kFirst, kFields, kRows>(a, stripe, m);
  if constexpr (kFirst + kFields < 8 / kBits) multiply_stripe<kBits, kRows, kFirst + kFields>(a, stripe, m);
}

// Units of kStripes stripes.

template <QType kQType, int kCount, int kRows>
inline void multiply_stripes(const MatmulArgs& a, std::int64_t first, std::int64_t m) {
  if constexpr (is_affine_qtype(kQType)) {
    for (int i = 0; i < kCount; ++i) multiply_stripe<bits_of(kQType), kRows>(a, first + i, m);
  } else {
    constexpr int kTogether = kRows >= 3 ? 2 : 4;
    constexpr int kChannels = kCount < kTogether ? kCount : kTogether;
    for (int i = 0; i < kCount; i += kChannels) multiply_bytes<kQType, kChannels, kRows>(a, first + i, m);
  }
}

template <QType kQType, int kCount>
inline void multiply_all_rows(const MatmulArgs& a, std::int64_t first) {
  std::int64_t m = 0;
  for (; m + 4 <= a.M; m += 4) multiply_stripes<kQType, kCount, 4>(a, first, m);
  if (a.M - m == 3) multiply_stripes<kQType, kCount, 3>(a, first, m);
  if (a.M - m == 2) multiply_stripes<kQType, kCount, 2>(a, first, m);
  if (a.M - m == 1) multiply_stripes<kQType, kCount, 1>(a, first, m);
}

template <QType kQType>
void few_rows_run(const MatmulArgs& a, void*, std::int64_t begin, std::int64_t end) {
  const std::int64_t last = smaller(end * kStripesPerUnit, stripe_count<kQType>(a));
  std::int64_t i = begin * kStripesPerUnit;
  for (; i + 4 <= last; i += 4) multiply_all_rows<kQType, 4>(a, i);
  for (; i < last; ++i) multiply_all_rows<kQType, 1>(a, i);
}

/// Channels that share bytes lie regularly only if N is a multiple of their number.
template <QType kQType>
bool few_rows_supports(const MatmulArgs& a) {
  return a.M < Simd::kFewestPanelRows && a.N % kFieldsOf<kQType> == 0;
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
