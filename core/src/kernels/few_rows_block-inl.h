// The innermost loops of the kernel for few rows (few_rows-inl.h): a block of some stripes and some rows, whose sums
// are in registers, and the codes that are fetched meanwhile. Internal linkage, no std.
#pragma once

#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/few_rows_prepare-inl.h"
#include "kernels/few_rows_units-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"
#include "kernels/product_sums-inl.h"
#include "kernels/stripes-inl.h"

namespace quanto::kernels {
namespace {

/// How far ahead of their use codes are fetched: in bytes of each stripe, and for a single row of all stripes together.
constexpr std::int64_t kFetchAhead = 2048;
template <class Dots>
constexpr std::int64_t kRowFetchAhead = kVectorBytes == 64 && is_affine_qtype(Dots::kQType) ? 10240 : 8192;
/// Whether codes further on are fetched in the order of memory, as many as are multiplied, where rows are several. They
/// gain by it; but not where vectors are so wide and codes so large that few rows take no longer than memory does.
/// Fields that take turns at the codes of a unit leave no other order.
template <class Dots, int kRows>
constexpr bool kFetchesInOrder = kIsOneField<Dots> ||
                                 (kRows > 1 && (kVectorBytes < 64 || is_affine_qtype(Dots::kQType)));

/// Zen 4 drops some of the fetches into its L2 cache, and what it has dropped takes as long as memory does. Codes are
/// fetched again some time later, where rows are so many that memory has time for that: 0.95 of the time of eight rows
/// of 8-bit codes, 0.98 of that of two rows of float32 and int4, some of which are fetched no more than kFetchedAhead
/// before their use.
template <class Dots, int kRows>
constexpr bool kFetchesTwice = kRows >= (is_affine_qtype(Dots::kQType) ? 2 : 4);
template <class Dots, int kRows>
constexpr std::int64_t kBeforeSecondFetch = std::int64_t{!is_affine_qtype(Dots::kQType) ? 16
                                                         : kRows == 2                   ? 4
                                                                                        : 8}
                                            << 10;

/// What is multiplied at once: codes of some stripes with some rows, from k on.
struct FewRowsBlock {
  const std::uint8_t* codes;  ///< of the first stripe
  std::int64_t apart;         ///< bytes from a stripe to the next
  const std::uint8_t* next;   ///< the codes that are needed after these
  const std::uint8_t* later;  ///< what is fetched meanwhile: as many bytes as these codes, in the order of memory;
                              ///< may lie behind the last codes, where a fetch does no harm
  std::int64_t stripe;        ///< the first one, counted within the unit
  std::int64_t m;
  std::int64_t k, depth;  ///< whole chunks, at most segment_depth()
  int field;              ///< that the codes are in, of OneField

  template <class Dots>
  void skip(std::int64_t stripes) {
    codes += stripes * apart;
    later += stripes * depth / kFieldsInTurn<Dots>;
    stripe += stripes;
  }
};

/// How many lines are fetched for a chunk of kStripes stripes: as many as are multiplied, or where fields take turns at
/// them, the share of each.
template <class Dots, int kStripes>
constexpr int kFetchedLines = kStripes >= kFieldsInTurn<Dots> ? kStripes / kFieldsInTurn<Dots> : 1;

/// Where codes are fetched from while others are multiplied: some way ahead in the stripe or in the stripes after it.
/// A single row's stripes are read straight through, whatever their length.
template <class Dots, int kStripes, int kRows>
struct FewRowsFetch {
  std::int64_t near, far;  ///< from the codes that are multiplied
  std::int64_t turn;       ///< from where on in a stripe it is `far`
  bool into_l2;            ///< instead: codes further on in the order of memory, FewRowsBlock::later

  FewRowsFetch(const MatmulArgs& a, const FewRowsBlock& block) : near(0), far(0), into_l2(fetches_into_l2(a)) {
    std::int64_t ahead = kRows == 1 ? kRowFetchAhead<Dots> / kStripes : smaller(kFetchAhead, block.depth);
    if constexpr (kRows == 1) {
      for (; ahead >= block.depth; ahead -= block.depth) near += kStripes * block.apart;
    }
    turn = block.depth - ahead;
    far = near + kStripes * block.apart - turn;
    near += ahead;
  }
  /// Fetches as many codes as are multiplied at once, while those at `offset` are.
  QUANTO_INLINE void next(const FewRowsBlock& block, std::int64_t offset) const {
    // A single row reads codes once: kept out of the outer caches, they leave there what the rest of a model works
    // with. Decoding a small language model takes a fifth less time so, but on Zen 4.
    constexpr int kLocality = kRows == 1 ? 0 : 3;
    if (into_l2) {
      fetch_in_order<2>(block, offset);
    } else if constexpr (kFetchesInOrder<Dots, kRows>) {
      fetch_in_order<3>(block, offset);
    } else {
      const std::uint8_t* fetched = of(block, offset);
      QUANTO_UNROLL for (int s = 0; s < kStripes; ++s) __builtin_prefetch(fetched + s * block.apart, 0, kLocality);
    }
  }

 private:
  QUANTO_INLINE const std::uint8_t* of(const FewRowsBlock& block, std::int64_t offset) const {
    if (offset < turn) return block.codes + near + offset;
    return (kRows == 1 ? block.codes + far : block.next - turn) + offset;
  }
  template <int kLocality>
  static QUANTO_INLINE void fetch_in_order(const FewRowsBlock& block, std::int64_t offset) {
    const std::uint8_t* fetched = block.later + offset * kStripes / kFieldsInTurn<Dots>;
    QUANTO_UNROLL for (int s = 0; s < kFetchedLines<Dots, kStripes>; ++s) {
      __builtin_prefetch(fetched + s * Dots::kChunk, 0, kLocality);
      if constexpr (kLocality == 2 && kFetchesTwice<Dots, kRows>) {
        __builtin_prefetch(fetched + s * Dots::kChunk - kBeforeSecondFetch<Dots, kRows>, 0, kLocality);
      }
    }
  }
};

/// Where the scales of some stripes are, in the scratch memory of a unit. Addresses are made as they are needed: all of
/// them would fill the registers and then the stack.
template <class Dots, int kStripes>
struct UnitScales {
  const float* of_stripe[kStripes];
  std::int64_t field_step;

  UnitScales(const UnitScratch<Dots>& scratch, const float* first) : field_step(scratch.stripes * scratch.groups) {
    for (int s = 0; s < kStripes; ++s) of_stripe[s] = first + s * scratch.groups;
  }
  QUANTO_INLINE const float* of(int s, int f, std::int64_t j) const {
    std::int64_t step = field_step;
    asm("" : "+r"(step));
    return of_stripe[s] + j + f * step;
  }
};

/// Whether registers hold the totals of groups beside so many sums.
template <int kCount>
constexpr bool kHoldsTotals = 3 * kCount <= kSums;

/// Whether codes are decoded from where they have been prepared in memory.
template <class Dots>
constexpr bool kThroughMemory = requires(typename Dots::Codes& codes) {
  Dots::put_into_memory(codes);
};

/// Sums of products in registers.
template <class Dots, int kStripes, int kFirst, int kFields, int kRows>
struct BlockSums : ProductSums<Dots, typename SumsOf<Dots>::Sum, kStripes, kFirst, kFields, kRows> {
  /// totals += sums * scale(stripe, field)
  template <class Scale, class Totals>
  QUANTO_INLINE void add_scaled(Scale scale, Totals& totals) {
    QUANTO_UNROLL for (int s = 0; s < kStripes; ++s) {
      QUANTO_UNROLL for (int f = 0; f < kFields; ++f) {
        FloatLanes factor = scale(s, f);
        QUANTO_IN_REGISTER(factor);
        QUANTO_UNROLL for (int m = 0; m < kRows; ++m) {
          totals[s][f][m] = multiply_add(as_floats(this->of[s][f][m]), factor, totals[s][f][m]);
        }
      }
    }
  }

  /// Looks for NaN codes that are decoded to numbers, in all stripes together.
  static QUANTO_INLINE void mark_nan(const FewRowsBlock& block, std::int64_t offset, WholeBytes& marks) {
    constexpr bool kRegisterIsFree = kVectorBytes == 64 || kStripes * kRows < kSums;
    WholeBytes new_marks = kRegisterIsFree ? marks : WholeBytes{};
    QUANTO_UNROLL for (int s = 0; s < kStripes; ++s) {
      new_marks = Dots::mark_nan(block.codes + s * block.apart + offset, new_marks);
      QUANTO_IN_REGISTER(new_marks);
    }
    if constexpr (kRegisterIsFree) {
      marks = new_marks;
    } else {
      marks = larger_bytes(marks, new_marks);
      asm("" : "+m"(marks));
    }
  }

  QUANTO_INLINE void add_chunk(const FewRowsBlock& block, std::int64_t offset, const typename Dots::X* x,
                               WholeBytes& nan_marks) {
    typename Dots::Codes codes_of_stripes[kStripes];
    typename Dots::Codes* loaded = codes_of_stripes;
    // Zen 5 is slow to load from the stack half of what was stored there; it knows the stack by the address register.
    if constexpr (kThroughMemory<Dots>) asm("" : "+r"(loaded));
    QUANTO_UNROLL for (int s = 0; s < kStripes; ++s) {
      loaded[s] = Dots::load_codes(block.codes + s * block.apart + offset);
      if constexpr (kThroughMemory<Dots>) Dots::put_into_memory(loaded[s]);
      if constexpr (kIsOneField<Dots>) loaded[s] = Dots::shifted(loaded[s], bits_of(Dots::kQType) * block.field);
    }
    if constexpr (!Dots::kDecodesNan) mark_nan(block, offset, nan_marks);
    QUANTO_UNROLL for (int v = 0; v < Dots::kVectors; ++v) {
      this->add_products(
          loaded, v, [&](int m) __attribute__((always_inline)) { return x[m * Dots::kVectors + v]; });
    }
  }

  /// The chunks of [begin, end), counted from the block's first code on; `x` is that of `begin`.
  QUANTO_INLINE void add_chunks(const FewRowsBlock& block, const FewRowsFetch<Dots, kStripes, kRows>& fetch,
                                std::int64_t begin, std::int64_t end, const typename Dots::X* x,
                                WholeBytes& nan_marks) {
    for (std::int64_t i = begin; i < end; i += Dots::kChunk, x += kRows * Dots::kVectors) {
      if constexpr (kFirst == 0) fetch.next(block, i);
      add_chunk(block, i, x, nan_marks);
    }
  }
};

/// kGroupsOfTwoChunks: that every group is exactly two chunks, known to the compiler where what other groups need would
/// take registers away.
template <class Dots, int kStripes, int kFirst, int kFields, int kRows, bool kGroupsOfTwoChunks>
QUANTO_INLINE void multiply_block(const MatmulArgs& a, const FewRowsBlock& block,
                                  const FewRowsFetch<Dots, kStripes, kRows>& fetch, const typename Dots::X* x,
                                  const UnitScratch<Dots>& scratch) {
  using Sums = BlockSums<Dots, kStripes, kFirst, kFields, kRows>;
  FloatLanes* totals[kStripes][kFields];
  std::int64_t apart = scratch.rows;
  asm("" : "+r"(apart));  // or the compiler makes vectors of addresses
  for (int s = 0; s < kStripes; ++s) {
    for (int f = 0; f < kFields; ++f) {
      totals[s][f] = scratch.totals_of(block.stripe, kFirst) + block.m + (s * Dots::kFields + f) * apart;
    }
  }
  Sums sums;
  if constexpr (!is_affine_qtype(Dots::kQType)) {
    using Sum = typename Sums::Sum;  // totals of integers are their bits
    if (kStartsWithZeros<Dots> && block.k == 0) {
      sums = Sums{};
    } else {
      sums.for_each([&](int s, int f, int m, Sum& sum) { sum = (Sum)totals[s][f][m]; });
    }
    WholeBytes nan_marks{};
    sums.add_chunks(block, fetch, 0, block.depth, x, nan_marks);
    sums.for_each([&](int s, int f, int m, Sum& sum) { totals[s][f][m] = (FloatLanes)sum; });
    if constexpr (!Dots::kDecodesNan) {
      const bool found = any((IntLanes)(nan_marks == 0xff) != 0);
      for (int s = 0; s < kStripes; ++s) scratch.maybe_nan[block.stripe + s] |= found;
    }
    return;
  }
  const std::int64_t group_size = a.groups == 1 ? round_up(a.K, Dots::kChunk) : a.group_size;
  const std::int64_t first_group = block.k / (kGroupsOfTwoChunks ? 2 * Dots::kChunk : group_size);
  const UnitScales<Dots, kStripes> scales(scratch, scratch.scales_of(block.stripe, kFirst) + first_group);
  const auto multiply_groups = [&](auto& sums_of_groups) __attribute__((always_inline)) {
    const auto multiply_run = [&](std::int64_t k, std::int64_t run) __attribute__((always_inline)) {
      sums = Sums{};
      WholeBytes nan_marks{};
      sums.add_chunks(block, fetch, k, k + run, x + k / Dots::kChunk * (kRows * Dots::kVectors), nan_marks);
    };
    const auto scale_by = [&](std::int64_t j) __attribute__((always_inline)) {
      sums.add_scaled([&](int s, int f) { return broadcast(*scales.of(s, f, j)); }, sums_of_groups);
    };
    // Lanes hold neighbouring codes, so the next group has the upper half of each vector; after the last one they hold
    // zeros, and what follows its scale is that of another channel.
    const auto scale_halves_by = [&](std::int64_t j) __attribute__((always_inline)) {
      const bool last = first_group + j + 1 == a.groups;
      sums.add_scaled(
          [&](int s, int f) {
            const float* scale = scales.of(s, f, j);
            return broadcast_halves(scale[0], last ? 0.0f : scale[1]);
          },
          sums_of_groups);
    };
    std::int64_t k = 0, j = 0;
    // Groups of two chunks, and of one and a half, have no need to look for their ends.
    if (kGroupsOfTwoChunks || (group_size == 2 * Dots::kChunk && block.k % group_size == 0)) {
      for (; k + 2 * Dots::kChunk <= block.depth; k += 2 * Dots::kChunk, ++j) {
        multiply_run(k, 2 * Dots::kChunk);
        scale_by(j);
      }
      if constexpr (kGroupsOfTwoChunks) return;
    }
    if (2 * group_size == 3 * Dots::kChunk && block.k % (2 * group_size) == 0) {
      for (; k + 2 * group_size <= block.depth; k += 2 * group_size, j += 2) {
        multiply_run(k, Dots::kChunk);
        scale_by(j);
        multiply_run(k + Dots::kChunk, Dots::kChunk);
        scale_halves_by(j);
        multiply_run(k + 2 * Dots::kChunk, Dots::kChunk);
        scale_by(j + 1);
      }
    }
    std::int64_t left = (first_group + j + 1) * group_size - block.k - k;  // codes of the group that are still to come
    while (k < block.depth) {
      const bool straddles = left < Dots::kChunk;
      const std::int64_t run = straddles ? Dots::kChunk : smaller(left / Dots::kChunk * Dots::kChunk, block.depth - k);
      multiply_run(k, run);
      if (!straddles) {
        scale_by(j);
      } else {
        scale_halves_by(j);
        ++j;
        left += group_size;
      }
      left -= run;
      if (left == 0) {
        ++j;
        left = group_size;
      }
      k += run;
    }
  };
  if constexpr (kHoldsTotals<kStripes * kFields * kRows>) {
    FloatLanes kept[kStripes][kFields][kRows];
    sums.for_each([&](int s, int f, int m, auto&) { kept[s][f][m] = totals[s][f][m]; });
    multiply_groups(kept);
    sums.for_each([&](int s, int f, int m, auto&) { totals[s][f][m] = kept[s][f][m]; });
  } else {
    multiply_groups(totals);
  }
}

template <class Dots, int kStripes, int kFirst, int kFields, int kRows>
__attribute__((noinline)) void multiply_block_apart(const MatmulArgs& a, const FewRowsBlock& block,
                                                    const FewRowsFetch<Dots, kStripes, kRows>& fetch,
                                                    const typename Dots::X* x, const UnitScratch<Dots>& scratch) {
  multiply_block<Dots, kStripes, kFirst, kFields, kRows, false>(a, block, fetch, x, scratch);
}

}  // namespace
}  // namespace quanto::kernels
