// The kernel for few rows, where the time goes into reading the weights: decode them in registers, a chunk at a time,
// and multiply them at once with up to kRowsAtOnce rows of activations. Each byte of weights comes from memory once;
// more rows find it in the cache again.
//
// Codes are multiplied as they are. A channel's 8-bit codes have one scale, which its sum is multiplied with; the
// packed qtypes have one for each group, whose products are summed on their own and then scaled. Their shifts meet the
// sums of the activations of a group, which are taken once per call:
//   sum over k of (scale * code - shift) * x  =  scale * sum of code * x  -  shift * sum of x.
// No term is larger than |scale * code * x| or |shift * x|, and a group of zeros gives zero.
//
// The order of the additions is the same for every row, whatever the other rows are, so a row has the same bytes in
// every batch: products of a chunk go to the lanes of a vector, segments are what kSegment says.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

// Sums in registers. A multiply-add every cycle wants more of them than its latency suggests: with 8 the pipes of Zen 4
// are at 75 %, with 16 at 93 %.
constexpr int kSums = kVectorBytes == 64 ? 16 : 8;
constexpr std::int64_t kRowsAtOnce = kSums / 2;
constexpr std::int64_t kStripesPerUnit = 8;
constexpr std::int64_t kCacheLine = 64;

/// Codes in a byte. Stripe i, the K bytes from i * K on, holds the codes of the channels i, i + N / fields, ...
/// Codes that are multiplied before the next stripes are: their activations, 16 KiB, stay in the L1 cache.
template <class Dots>
constexpr std::int64_t kSegment = Dots::kChunk*((1 << 14) / (kRowsAtOnce * Dots::kVectors *
                                                             static_cast<std::int64_t>(sizeof(typename Dots::X))));

template <class Dots>
QUANTO_INLINE std::int64_t stripe_count(const MatmulArgs& a) {
  return a.N / Dots::kFields;
}

/// The sizes of blocks of rows that code is generated for: what a number of rows up to kRowsAtOnce is padded to.
constexpr std::int64_t padded_block(std::int64_t rows) { return rows <= 4 ? rows : round_up(rows, 2); }
constexpr std::int64_t padded_rows(std::int64_t rows) {
  return rows / kRowsAtOnce * kRowsAtOnce + padded_block(rows % kRowsAtOnce);
}

/// What prepare() leaves for run(): the activations in the order of the chunks, the sums of their groups, and whether
/// every one is of a magnitude that this kernel serves. Rows that are multiplied at once lie beside each other, chunk
/// by chunk, so that one pointer reaches them all.
template <class Dots>
struct PreparedRows {
  static constexpr bool kAffine = is_affine_qtype(Dots::kQType);
  typename Dots::X* activations;
  float* sums;
  bool* plain;
  std::int64_t rows;  ///< a.M, filled up with zeros
  std::int64_t chunks, sums_each;

  explicit PreparedRows(const MatmulArgs& a)
      : activations(static_cast<typename Dots::X*>(a.workspace)),
        rows(padded_rows(a.M)),
        chunks(ceil_div(a.K, Dots::kChunk)),
        sums_each(kAffine ? round_up(a.groups, kLanes) : 0) {
    sums = reinterpret_cast<float*>(activations + rows * chunks * Dots::kVectors);
    plain = reinterpret_cast<bool*>(sums + rows * sums_each);
  }

  std::size_t bytes() const {
    return static_cast<std::size_t>(rows) *
           (static_cast<std::size_t>(chunks * Dots::kVectors) * sizeof(typename Dots::X) +
            static_cast<std::size_t>(sums_each) * sizeof(float) + sizeof(bool));
  }
  /// Chunk c of row m; the following rows of its block are kVectors further each.
  typename Dots::X* x(std::int64_t m, std::int64_t c) const {
    const std::int64_t block = m / kRowsAtOnce * kRowsAtOnce;
    const std::int64_t together = smaller(kRowsAtOnce, rows - block);
    return activations + (block * chunks + c * together + (m - block)) * Dots::kVectors;
  }
  float* group_sums(std::int64_t m) const { return sums + m * sums_each; }
};

template <class Dots>
std::size_t few_rows_workspace_bytes(const MatmulArgs& a) {
  return PreparedRows<Dots>(a).bytes();
}

template <class Dots, DType kDType>
void few_rows_prepare(const MatmulArgs& a, std::int64_t begin, std::int64_t end) {
  const PreparedRows<Dots> rows(a);
  if (end == a.M) end = rows.rows;
  for (std::int64_t m = begin; m < end; ++m) {
    const std::int64_t K = m < a.M ? a.K : 0;
    bool plain = true;
    float* sums = rows.group_sums(m);
    for (std::int64_t j = 0; j < rows.sums_each; ++j) sums[j] = 0.0f;
    for (std::int64_t c = 0; c < rows.chunks; ++c) {
      const std::int64_t k = c * Dots::kChunk;
      const ChunkSummary summary = Dots::template prepare<kDType>(
          a.x, m * a.x_stride + k, K < k ? 0 : smaller(Dots::kChunk, K - k), rows.x(m, c));
      plain &= summary.plain;
      if constexpr (rows.kAffine) sums[k / a.group_size] += summary.sum;
    }
    rows.plain[m] = plain;
  }
}

template <class Dots>
bool few_rows_serves_values(const MatmulArgs& a) {
  if constexpr (Dots::kTakesAllValues) return true;
  const PreparedRows<Dots> rows(a);
  bool plain = true;
  for (std::int64_t m = 0; m < a.M; ++m) plain &= rows.plain[m];
  return plain;
}

/// A thread's memory: the sums of a unit, a vector for each (stripe, field, row), and its scales.
template <class Dots>
struct UnitScratch {
  FloatLanes* totals;
  float* scales;  ///< of (stripe, field, group), with the field's factor
  std::int64_t rows, scale_row;

  UnitScratch(const MatmulArgs& a, void* memory)
      : totals(static_cast<FloatLanes*>(memory)),
        scales(reinterpret_cast<float*>(totals + kStripesPerUnit * Dots::kFields * padded_rows(a.M))),
        rows(padded_rows(a.M)),
        scale_row(PreparedRows<Dots>::kAffine ? round_up(a.groups, kLanes) : 0) {}

  std::size_t bytes() const {
    return static_cast<std::size_t>(kStripesPerUnit * Dots::kFields) *
           (static_cast<std::size_t>(rows) * sizeof(FloatLanes) + static_cast<std::size_t>(scale_row) * sizeof(float));
  }
  FloatLanes* totals_of(std::int64_t stripe, int field) const {
    return totals + (stripe * Dots::kFields + field) * rows;
  }
  float* scales_of(std::int64_t stripe, int field) const {
    return scales + (stripe * Dots::kFields + field) * scale_row;
  }
};

template <class Dots>
std::size_t few_rows_scratch_bytes(const MatmulArgs& a) {
  return UnitScratch<Dots>(a, nullptr).bytes();
}

/// What is multiplied at once: codes of some stripes with some rows, from k on.
struct FewRowsBlock {
  const std::uint8_t* codes;  ///< of the first stripe
  std::int64_t apart;         ///< bytes from a stripe to the next
  const std::uint8_t* next;   ///< the codes that are needed after these
  std::int64_t stripe;        ///< the first one, counted within the unit
  std::int64_t m;
  std::int64_t k, depth;  ///< whole chunks, at most kSegment

  FewRowsBlock from_stripe(std::int64_t s) const {
    FewRowsBlock block = *this;
    block.codes += (s - stripe) * apart;
    block.stripe = s;
    return block;
  }
};

/// Sums of products in registers.
template <class Dots, int kStripes, int kFirst, int kFields, int kRows>
struct BlockSums {
  FloatLanes of[kStripes][kFields][kRows];

  template <class Visit>
  QUANTO_INLINE void for_each(Visit visit) {
    QUANTO_UNROLL for (int s = 0; s < kStripes; ++s) {
      QUANTO_UNROLL for (int f = 0; f < kFields; ++f) {
        QUANTO_UNROLL for (int m = 0; m < kRows; ++m) visit(s, f, m, of[s][f][m]);
      }
    }
  }

  QUANTO_INLINE void add_chunk(const std::uint8_t* codes, std::int64_t apart, const typename Dots::X* x) {
    typename Dots::Codes loaded[kStripes];
    QUANTO_UNROLL for (int s = 0; s < kStripes; ++s) loaded[s] = Dots::load_codes(codes + s * apart);
    QUANTO_UNROLL for (int v = 0; v < Dots::kVectors; ++v) {
      typename Dots::X rows[kRows];
      QUANTO_UNROLL for (int m = 0; m < kRows; ++m) {
        rows[m] = x[m * Dots::kVectors + v];
        // Without this the compiler loads them again for every stripe and field.
        if constexpr (kStripes * kFields > 1) asm("" : "+v"(rows[m]));
      }
      QUANTO_UNROLL for (int s = 0; s < kStripes; ++s) {
        QUANTO_UNROLL for (int f = 0; f < kFields; ++f) {
          const typename Dots::X w = Dots::decode(loaded[s], kFirst + f, v);
          QUANTO_UNROLL for (int m = 0; m < kRows; ++m) of[s][f][m] = Dots::add_products(w, rows[m], of[s][f][m]);
        }
      }
    }
  }

  QUANTO_INLINE void add_chunks(const FewRowsBlock& block, std::int64_t offset, std::int64_t depth,
                                const typename Dots::X* x) {
    const std::uint8_t* codes = block.codes + offset;
    const std::uint8_t* next = block.next + offset;
    for (std::int64_t i = 0; i < depth; i += Dots::kChunk, x += kRows * Dots::kVectors) {
      if constexpr (kFirst == 0) {
        QUANTO_UNROLL for (int s = 0; s < kStripes; ++s) __builtin_prefetch(next + s * block.apart + i);
      }
      add_chunk(codes + i, block.apart, x);
    }
  }
};

template <class Dots, int kStripes, int kFirst, int kFields, int kRows>
__attribute__((noinline)) void multiply_block(const MatmulArgs& a, const FewRowsBlock& block,
                                              const UnitScratch<Dots>& scratch) {
  using Sums = BlockSums<Dots, kStripes, kFirst, kFields, kRows>;
  const typename Dots::X* x = PreparedRows<Dots>(a).x(block.m, block.k / Dots::kChunk);
  FloatLanes* totals[kStripes][kFields];
  for (int st = 0; st < kStripes; ++st) {
    for (int f = 0; f < kFields; ++f) totals[st][f] = scratch.totals_of(block.stripe + st, kFirst + f) + block.m;
  }
  Sums sums;
  if constexpr (!is_affine_qtype(Dots::kQType)) {
    sums.for_each([&](int s, int f, int m, FloatLanes& sum) { sum = totals[s][f][m]; });
    sums.add_chunks(block, 0, block.depth, x);
    sums.for_each([&](int s, int f, int m, FloatLanes& sum) { totals[s][f][m] = sum; });
    return;
  }
  const float* scales[kStripes][kFields];
  const std::int64_t first_group = block.k / a.group_size;
  for (int st = 0; st < kStripes; ++st) {
    for (int f = 0; f < kFields; ++f) scales[st][f] = scratch.scales_of(block.stripe + st, kFirst + f) + first_group;
  }
  std::int64_t left_in_group = (first_group + 1) * a.group_size - block.k;
  const std::int64_t whole_depth = smaller(block.depth, a.K - block.k);  // the last chunk reaches past the last group
  for (std::int64_t k = 0, j = 0; k < whole_depth; ++j) {
    const std::int64_t depth = smaller(left_in_group, whole_depth - k);
    sums = Sums{};
    sums.add_chunks(block, k, depth, x + k / Dots::kChunk * (kRows * Dots::kVectors));
    sums.for_each([&](int s, int f, int m, FloatLanes& sum) {
      totals[s][f][m] = multiply_add(sum, broadcast(scales[s][f][j]), totals[s][f][m]);
    });
    k += depth;
    left_in_group = a.group_size;
  }
}

/// How the sums in registers are shared out: the fields of a byte first, then stripes.
template <class Dots, int kRows>
constexpr int kFieldsAtOnce = smaller(Dots::kFields, kSums / kRows);
template <class Dots, int kRows>
constexpr int kStripesAtOnce = smaller(4, kSums / kRows / kFieldsAtOnce<Dots, kRows>);

/// All fields of some stripes, as many together as registers hold sums for.
template <class Dots, int kStripes, int kRows, int kFirst = 0>
inline void multiply_fields(const MatmulArgs& a, const FewRowsBlock& block, const UnitScratch<Dots>& scratch) {
  constexpr int kFields = kFieldsAtOnce<Dots, kRows>;
  multiply_block<Dots, kStripes, kFirst, kFields, kRows>(a, block, scratch);
  if constexpr (kFirst + kFields < Dots::kFields) {
    multiply_fields<Dots, kStripes, kRows, kFirst + kFields>(a, block, scratch);
  }
}

/// kRows rows with all stripes up to `last`.
template <class Dots, int kRows>
inline void multiply_stripes(const MatmulArgs& a, const FewRowsBlock& block, std::int64_t last,
                             const UnitScratch<Dots>& scratch) {
  constexpr int kStripes = kStripesAtOnce<Dots, kRows>;
  for (std::int64_t s = block.stripe; s < last;) {
    FewRowsBlock part = block.from_stripe(s);
    const bool all = s + kStripes <= last;
    s += all ? kStripes : 1;
    if (s < last) part.next = part.codes + (all ? kStripes : 1) * block.apart;
    all ? multiply_fields<Dots, kStripes, kRows>(a, part, scratch) : multiply_fields<Dots, 1, kRows>(a, part, scratch);
  }
}

/// `count` <= kRows rows, a number that padded_block() gives.
template <class Dots, int kRows>
inline void multiply_rest(const MatmulArgs& a, const FewRowsBlock& block, std::int64_t last, std::int64_t count,
                          const UnitScratch<Dots>& scratch) {
  if constexpr (kRows > 0) {
    if constexpr (padded_block(kRows) == kRows) {
      if (count == kRows) return multiply_stripes<Dots, kRows>(a, block, last, scratch);
    }
    multiply_rest<Dots, kRows - 1>(a, block, last, count, scratch);
  }
}

template <class Dots>
inline void multiply_all_rows(const MatmulArgs& a, FewRowsBlock block, std::int64_t last,
                              const UnitScratch<Dots>& scratch) {
  const std::int64_t rows = padded_rows(a.M);
  for (; block.m + kRowsAtOnce <= rows; block.m += kRowsAtOnce) {
    multiply_stripes<Dots, kRowsAtOnce>(a, block, last, scratch);
  }
  multiply_rest<Dots, kRowsAtOnce - 1>(a, block, last, rows - block.m, scratch);
}

/// The stripes [begin, end) of a unit, whose codes are `codes`. What is left of K after whole chunks is copied to where
/// zeros follow it.
template <class Dots>
inline void multiply_stripe_range(const MatmulArgs& a, const std::uint8_t* codes, std::int64_t begin, std::int64_t end,
                                  const UnitScratch<Dots>& scratch) {
  const std::int64_t whole = a.K / Dots::kChunk * Dots::kChunk;
  codes += begin * a.K;
  for (std::int64_t k = 0; k < whole; k += kSegment<Dots>) {
    const std::int64_t depth = smaller(kSegment<Dots>, whole - k);
    const std::uint8_t* next = k + depth < whole ? codes + k + depth : codes + (end - begin) * a.K;
    multiply_all_rows<Dots>(a, {codes + k, a.K, next, begin, 0, k, depth}, end, scratch);
  }
  if (whole == a.K) return;
  std::uint8_t rest[kStripesPerUnit * Dots::kChunk] = {};
  for (std::int64_t s = begin; s < end; ++s) {
    __builtin_memcpy(rest + (s - begin) * Dots::kChunk, codes + (s - begin) * a.K + whole,
                     static_cast<std::size_t>(a.K - whole));
  }
  multiply_all_rows<Dots>(a, {rest, Dots::kChunk, rest, begin, 0, whole, Dots::kChunk}, end, scratch);
}

// Units.

/// Reads the scales of a channel and starts its sums with what its shifts contribute.
template <class Dots>
inline void start_channel(const MatmulArgs& a, std::int64_t n, std::int64_t stripe, int field,
                          const UnitScratch<Dots>& scratch) {
  const PreparedRows<Dots> rows(a);
  FloatLanes* totals = scratch.totals_of(stripe, field);
  for (std::int64_t m = 0; m < rows.rows; ++m) totals[m] = FloatLanes{};
  if constexpr (is_affine_qtype(Dots::kQType)) {
    float* scales = scratch.scales_of(stripe, field);
    for_chunks(a.groups, [&](std::int64_t j, auto chunk) {
      const ScaleOffsets so = scale_offsets(a, n * a.groups + j, chunk.count);
      store(scales + j, so.scale * Dots::field_factor(field), kLanes);
      for (std::int64_t m = 0; m < a.M; ++m) {
        totals[m] = multiply_add(-so.offset, load<FloatLanes>(rows.group_sums(m) + j, kLanes), totals[m]);
      }
    });
  }
}

template <class Dots>
inline void store_channel(const MatmulArgs& a, std::int64_t n, const FloatLanes* totals) {
  float scale = 1.0f;
  if constexpr (!is_affine_qtype(Dots::kQType)) {
    scale = !Dots::kDecodesNan && has_nan_code<Dots::kQType>(a.w + n * a.K, a.K)
                ? __builtin_nanf("")
                : channel_scale(a, n) * Dots::field_factor(0);
  }
  for (std::int64_t m = 0; m < a.M; ++m) store_output(a, m, n, scale * sum_lanes(totals[m]));
}

template <class Dots, class Visit>
inline void for_channels(const MatmulArgs& a, std::int64_t first, std::int64_t count, Visit visit) {
  for (std::int64_t i = 0; i < count; ++i) {
    for (int f = 0; f < Dots::kFields; ++f) visit(f * stripe_count<Dots>(a) + first + i, i, f);
  }
}

template <class Dots>
void few_rows_run(const MatmulArgs& a, void* memory, std::int64_t begin, std::int64_t end) {
  const UnitScratch<Dots> scratch(a, memory);
  // One row leaves the L1 cache to the weights, which are then best read straight through.
  const std::int64_t together = a.M == 1 ? kStripesAtOnce<Dots, 1> : kStripesPerUnit;
  for (std::int64_t unit = begin; unit < end; ++unit) {
    const std::int64_t first = unit * kStripesPerUnit;
    const std::int64_t count = smaller(kStripesPerUnit, stripe_count<Dots>(a) - first);
    for_channels<Dots>(a, first, count,
                       [&](std::int64_t n, std::int64_t i, int f) { start_channel<Dots>(a, n, i, f, scratch); });
    for (std::int64_t i = 0; i < count; i += together) {
      multiply_stripe_range<Dots>(a, a.w + first * a.K, i, smaller(i + together, count), scratch);
    }
    for_channels<Dots>(a, first, count, [&](std::int64_t n, std::int64_t i, int f) {
      store_channel<Dots>(a, n, scratch.totals_of(i, f));
    });
  }
}

/// Channels that share bytes lie regularly only if N is a multiple of their number, and groups have to end where chunks
/// do.
template <class Dots, std::int64_t kMostRows>
bool few_rows_supports(const MatmulArgs& a) {
  return a.M <= kMostRows && a.N % Dots::kFields == 0 && (Dots::kTakesAllValues || !a.special_values) &&
         (a.groups == 1 || a.group_size % Dots::kChunk == 0);
}

template <class Dots>
std::int64_t few_rows_unit_count(const MatmulArgs& a) {
  return ceil_div(stripe_count<Dots>(a), kStripesPerUnit);
}

template <class Dots, DType kDType, std::int64_t kMostRows>
constexpr MatmulKernel kFewRowsKernel = {
    "few_rows",
    few_rows_supports<Dots, kMostRows>,
    few_rows_workspace_bytes<Dots>,
    few_rows_prepare<Dots, kDType>,
    few_rows_serves_values<Dots>,
    few_rows_scratch_bytes<Dots>,
    few_rows_unit_count<Dots>,
    few_rows_run<Dots>,
};

}  // namespace
}  // namespace quanto::kernels
