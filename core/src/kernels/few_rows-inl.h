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
// Channels that share bytes lie side by side only if N is a multiple of their number. Where it is not, each channel is
// taken on its own (OneField): its codes are moved to the lowest field. A unit takes the channels of one field after
// those of the other, so that the bytes that they share come from memory once.
//
// The order of the additions is the same for every row, whatever the other rows are, so a row has the same bytes in
// every batch: products of a chunk go to the lanes of a vector, chunk after chunk.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/few_rows_block-inl.h"
#include "kernels/few_rows_prepare-inl.h"
#include "kernels/few_rows_units-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"
#include "kernels/stripes-inl.h"

namespace quanto::kernels {
namespace {

/// `count` times kStripes stripes, one after the other.
template <class Dots, int kStripes, int kFirst, int kFields, int kRows, bool kGroupsOfTwoChunks>
__attribute__((noinline)) void multiply_blocks(const MatmulArgs& a, FewRowsBlock block, std::int64_t count,
                                               const UnitScratch<Dots>& scratch) {
  const typename Dots::X* x = PreparedRows<Dots>(a).x(block.m, block.k / Dots::kChunk);
  const FewRowsFetch<Dots, kStripes, kRows> fetch(a, block);
  const std::uint8_t* after = block.next;
  for (; count > 0; --count, block.skip<Dots>(kStripes)) {
    block.next = count > 1 ? block.codes + kStripes * block.apart : after;
    // Constants that are kept from one block to the next save 40 cycles of a block of two stripes, where vectors have
    // 64 bytes; in blocks of four stripes they push sums out of the registers.
    if constexpr (is_affine_qtype(Dots::kQType) || kRows <= (Dots::kQType == QType::qint8 ? 3 : 2) ||
                  (kVectorBytes == 64 && kStripes <= 2)) {
      multiply_block<Dots, kStripes, kFirst, kFields, kRows, kGroupsOfTwoChunks>(a, block, fetch, x, scratch);
    } else {
      multiply_block_apart<Dots, kStripes, kFirst, kFields, kRows>(a, block, fetch, x, scratch);
    }
  }
}

/// How the sums in registers are shared out: the fields of a byte first, then stripes. Where there are 32, one row of
/// packed codes takes fewer stripes, so that the totals of groups find room beside them: 0.8 of the time where weights
/// are in a cache already. 8-bit codes are read up to 10 % faster from four places than from eight. Where there are 16,
/// those of 8-bit codes need not be powers of two: four rows of three stripes have twelve sums, which leave registers
/// for three decoded vectors and one of activations, but none for what preparing codes in memory takes.
template <class Dots, int kRows>
constexpr int kFieldsAtOnce = smaller(Dots::kFields, power_of_two_up_to(kSums / kRows));
template <class Dots, int kRows>
constexpr int kMostFields =  // of all stripes together
    kVectorBytes < 64                ? 8
    : !is_affine_qtype(Dots::kQType) ? 4
    : kRows == 1                     ? kSums / 3
                                     : kSums;
template <class Dots, int kRows>
constexpr int kStripesAtOnce =
    kVectorBytes<64 && kRows> 1 && !is_affine_qtype(Dots::kQType) && !(kThroughMemory<Dots> && kRows == 4)
        ? kSums / kRows
        : power_of_two_up_to(smaller(kMostFields<Dots, kRows>, kSums / kRows) / kFieldsAtOnce<Dots, kRows>);

/// Stripes of two rows of int4 codes whose totals find room beside the sums. Zen 4 starts one vector of products a
/// cycle and needs no more sums than those, while a store there takes the place of two products: 0.9 of the time.
template <class Dots>
constexpr int kStripesWithTotals = kSums / 3 / (2 * Dots::kFields);
template <class Dots, int kRows>
constexpr bool kMayHoldTotals = kVectorBytes == 64 && kRows == 2 && Dots::kFields == 2;

/// Whether Zen 4 fetches codes of two rows kFetchedAhead of the last of the stripes at once, where whole stripes, one
/// after the other, are multiplied: a unit is more, and so many codes nobody has fetched when a thread begins. 4096 x
/// 4096 int4 codes take 0.985 to 0.995 of the time. A single row, which takes no longer than memory does, takes 1.13
/// times as long so.
template <class Dots>
constexpr bool kMayFetchAhead = kMayHoldTotals<Dots, 2>&& is_affine_qtype(Dots::kQType) && !kIsOneField<Dots>;

/// All fields of `count` times kStripes stripes: of each in turn.
template <class Dots, int kStripes, int kRows, int kFirst = 0>
inline void multiply_fields(const MatmulArgs& a, FewRowsBlock block, std::int64_t count,
                            const UnitScratch<Dots>& scratch) {
  constexpr int kFields = kFieldsAtOnce<Dots, kRows>;
  constexpr bool kOfTheirOwn = kKeepsOrder<Dots, kStripes, kFields, kRows>;  // groups of two chunks have such a loop
  if (kOfTheirOwn && a.group_size == 2 * Dots::kChunk) {
    multiply_blocks<Dots, kStripes, kFirst, kFields, kRows, kOfTheirOwn>(a, block, count, scratch);
  } else {
    multiply_blocks<Dots, kStripes, kFirst, kFields, kRows, false>(a, block, count, scratch);
  }
  if constexpr (kFirst + kFields < Dots::kFields) {
    multiply_fields<Dots, kStripes, kRows, kFirst + kFields>(a, block, count, scratch);
  }
}

/// kRows rows with all stripes up to `last`, kStripes at once.
template <class Dots, int kRows, int kStripes>
inline void multiply_stripes(const MatmulArgs& a, FewRowsBlock block, std::int64_t last,
                             const UnitScratch<Dots>& scratch) {
  // Where registers hold the sums of some fields only, the codes of all of them are still at hand for the others.
  const std::int64_t most = kFieldsAtOnce<Dots, kRows> == Dots::kFields ? kMostStripesPerUnit<Dots> : 1;
  const std::uint8_t* after = block.next;
  while (block.stripe < last) {
    const std::int64_t left = last - block.stripe;
    const std::int64_t count = smaller(most, left >= kStripes ? left / kStripes : left);
    const std::int64_t stripes = left >= kStripes ? count * kStripes : count;
    block.next = stripes < left ? block.codes + stripes * block.apart : after;
    left >= kStripes ? multiply_fields<Dots, kStripes, kRows>(a, block, count, scratch)
                     : multiply_fields<Dots, 1, kRows>(a, block, count, scratch);
    block.skip<Dots>(stripes);
  }
}

/// `count` <= kRows rows, a number that padded_block() gives.
template <class Dots, int kRows = kRowsAtOnce>
inline void multiply_rows(const MatmulArgs& a, const FewRowsBlock& block, std::int64_t last, std::int64_t count,
                          const UnitScratch<Dots>& scratch) {
  if constexpr (kRows > 0) {
    if constexpr (padded_block(kRows) == kRows) {
      if (count == kRows) {
        if constexpr (kMayHoldTotals<Dots, kRows>) {
          static_assert(kHoldsTotals<kStripesWithTotals<Dots> * Dots::kFields * kRows>);
          if (a.cores == Cores::zen4) {
            return multiply_stripes<Dots, kRows, kStripesWithTotals<Dots>>(a, block, last, scratch);
          }
        }
        return multiply_stripes<Dots, kRows, kStripesAtOnce<Dots, kRows>>(a, block, last, scratch);
      }
    }
    multiply_rows<Dots, kRows - 1>(a, block, last, count, scratch);
  }
}

template <class Dots>
inline void multiply_all_rows(const MatmulArgs& a, FewRowsBlock block, std::int64_t last,
                              const UnitScratch<Dots>& scratch) {
  const std::int64_t rows = padded_rows(a.M), each = block_rows(a.M);
  for (; block.m < rows; block.m += each) {
    multiply_rows<Dots>(a, block, last, smaller(each, rows - block.m), scratch);
  }
}

/// Codes that are multiplied before the next stripes are: whole chunks and whole groups, so that a row's sums do not
/// depend on the number of rows. A single row is read straight through. The activations of several are read again for
/// each set of stripes: of up to four rows from the L2 cache, since each vector of theirs meets codes of several
/// stripes or fields; of more from the L1 cache, of which a part is left to the codes. AMD's cores read no more than 32
/// bytes a cycle from L2, where eight rows took up to 1.7 times as long.
template <class Dots>
QUANTO_INLINE std::int64_t segment_depth(const MatmulArgs& a) {
  const std::int64_t rows = block_rows(a.M);
  if (rows == 1) return a.K;
  const std::int64_t bytes = (rows <= 4 ? 128 : 24) << 10;
  const std::int64_t most = bytes / (rows * Dots::kVectors * static_cast<std::int64_t>(sizeof(typename Dots::X)));
  const std::int64_t chunks = ceil_div(a.K, Dots::kChunk), segments = ceil_div(chunks, most);
  if (!is_affine_qtype(Dots::kQType)) return Dots::kChunk * ceil_div(chunks, segments);
  if (a.groups == 1) return Dots::kChunk * chunks;
  const std::int64_t whole = a.group_size % Dots::kChunk == 0 ? a.group_size : 2 * a.group_size;
  return round_up(Dots::kChunk * ceil_div(chunks, segments), whole);
}

/// Codes of some stripes, one after the other.
struct StripeCodes {
  const std::uint8_t* first;
  const std::uint8_t* later;  ///< UnitStripes::later
  int field;
};

/// The stripes [begin, end) of a unit. What is left after whole chunks is copied to where zeros follow it.
template <class Dots>
inline void multiply_stripe_range(const MatmulArgs& a, const StripeCodes& codes, std::int64_t begin, std::int64_t end,
                                  const UnitScratch<Dots>& scratch) {
  const std::int64_t whole = a.K / Dots::kChunk * Dots::kChunk, stripes = end - begin;
  const std::int64_t segment = segment_depth<Dots>(a);
  for (std::int64_t k = 0; k < whole; k += segment) {
    const std::int64_t depth = smaller(segment, whole - k);
    const std::uint8_t* next = codes.first + (k + depth < whole ? k + depth : stripes * a.K);
    const std::uint8_t* later = codes.later + stripes * k / kFieldsInTurn<Dots>;
    if (kMayFetchAhead<Dots> && a.M == 2 && fetches_into_l2(a) && depth == a.K) {
      later = codes.first + smaller(stripes * a.K, kFetchedAhead + (kStripesWithTotals<Dots> - 1) * a.K);
    }
    multiply_all_rows<Dots>(a, {codes.first + k, a.K, next, later, begin, 0, k, depth, codes.field}, end, scratch);
  }
  if (whole == a.K) return;
  std::uint8_t rest[kMostStripesPerUnit<Dots> * Dots::kChunk];
  __builtin_memset(rest, 0, static_cast<std::size_t>(stripes * Dots::kChunk));
  for (std::int64_t s = 0; s < stripes; ++s) {
    __builtin_memcpy(rest + s * Dots::kChunk, codes.first + s * a.K + whole, static_cast<std::size_t>(a.K - whole));
  }
  multiply_all_rows<Dots>(a, {rest, Dots::kChunk, rest, rest, begin, 0, whole, Dots::kChunk, codes.field}, end,
                          scratch);
}

template <class Dots>
void few_rows_run(const MatmulArgs& a, void* memory, std::int64_t begin, std::int64_t end) {
  const PreparedRows<Dots> rows(a);
  const UnitScratch<Dots> scratch(a, memory);
  const auto multiply = [&](const UnitStripes& u) {
    start_channels<Dots>(a, u.first, u.count, rows, scratch);
    fetch_scales<Dots>(a, u.first + scratch.stripes, u.next);
    if (u.whole > 0) multiply_stripe_range<Dots>(a, {u.codes, u.later, u.field}, 0, u.whole, scratch);
    if (u.whole < u.count) {
      copy_straddling_channel<Dots::kQType>(a, u.first + u.whole, u.field, 0, a.K, scratch.straddling);
      multiply_stripe_range<Dots>(a, {scratch.straddling, scratch.straddling, u.field}, u.whole, u.count, scratch);
    }
    for (int f = 0; f < Dots::kFields; ++f) {
      store_channels<Dots>(a, f * stripe_count<Dots>(a) + u.first, u.count, f, scratch);
    }
  };
  for (std::int64_t unit = begin; unit < end; ++unit) for_stripes_of_unit<Dots>(a, unit, scratch.stripes, multiply);
}

/// Groups have to end where chunks or their halves do.
template <class Dots, std::int64_t kMostRows>
bool few_rows_supports(const MatmulArgs& a) {
  if constexpr (SumsOf<Dots>::kIntegers) {
    if (a.group_size > Dots::kMostTogether) return false;
  }
  return a.M <= kMostRows && a.N % Dots::kFields == 0 && (Dots::kTakesAllValues || !a.special_values) &&
         (a.groups == 1 || a.group_size % (Dots::kChunk / 2) == 0);
}

template <class Dots>
std::int64_t few_rows_unit_count(const MatmulArgs& a) {
  return ceil_div(stripes_of_units<Dots>(a), stripes_per_unit<Dots>(a));
}

template <class Dots, DType kDType, std::int64_t kMostRows>
constexpr MatmulKernel kFewRowsKernel = {
    kIsOneField<Dots> ? "few_rows_by_field" : "few_rows",
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
