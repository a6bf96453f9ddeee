// How kernels walk through codes whose vectors hold a set of stripes each, four or eight, and some places along K: unit
// by unit, segment by segment, as many sets at once as registers hold sums for. For units with AVX-512. Internal
// linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lane_channels-inl.h"
#include "kernels/lanes-inl.h"
#include "kernels/product_sums-inl.h"
#include "kernels/stripes-inl.h"

namespace quanto::kernels {
namespace {

/// What is multiplied at once: codes of some sets from k on.
struct SetsBlock {
  const std::uint8_t* codes;  ///< of the first stripe
  std::int64_t apart;         ///< bytes from a stripe to the next
  std::int64_t set;           ///< the first one, counted within the unit
  std::int64_t k, depth;      ///< whole chunks
  const std::uint8_t* next;   ///< codes that follow those of all sets: `next_depth` bytes of each stripe are fetched
  std::int64_t next_depth;
  int field;           ///< that the codes are in, of OneField
  std::int64_t ahead;  ///< bytes between the codes that follow and what is fetched
};

/// Short stripes are multiplied before those that follow have come from memory, unless they are fetched kFetchedAhead:
/// one row of 576 columns and 49152 int4 channels takes 0.8 of the time so, two 0.89. Where threads have less than this
/// each, what is fetched first and last counts more.
constexpr std::int64_t kFewestBytesPerThread = std::int64_t{128} << 10;

/// Fetches as many codes as are multiplied meanwhile. Those that go into the L2 cache are often whole stripes, which
/// lie one after the other: then no line is asked whether a stripe ends with it, which takes one row 0.95 of the time.
template <int kLocality>
struct SetsFetch {
  StripeFetch<kLocality> stripes;
  bool whole;

  SetsFetch(const MatmulArgs& a, const SetsBlock& b)
      : stripes(a, b.next, b.next_depth, b.apart),
        whole(stripes.into_l2 && b.next_depth == b.apart && b.next_depth % 64 == 0) {}
  template <int kLines>
  QUANTO_INLINE void next() {
    if (whole) {
      QUANTO_UNROLL for (int i = 0; i < kLines; ++i) __builtin_prefetch(stripes.at + 64 * i, 0, 2);
      stripes.at += 64 * kLines;
    } else {
      QUANTO_UNROLL for (int i = 0; i < kLines; ++i) stripes.next();
    }
  }
};

/// The base of a kernel, which is `Kernel` and adds
///   Prepared, what prepare() leaves for run(): its bytes(), and in `plain` of each row whether it is served,
///   Scratch, a thread's memory, with its scales behind SetsScratch: its bytes(),
///   kChunk, codes of a stripe that are multiplied at once, segment_of(), those before the next stripes are,
///   multiply<sets, first field, fields, rows>(), which adds a block's products to the totals in Scratch, or starts
///   them where k is 0, start_unit(), which starts them before that, multiply_rows(), which calls multiply_unit() for
///   the rows, and store_sums().
template <class Kernel, class ColumnsOf, int kStripesOfSet>
struct LaneSets {
  using Columns = ColumnsOf;
  static constexpr QType kQType = Columns::kQType;
  static constexpr bool kGrouped = is_affine_qtype(kQType);
  static constexpr int kFields = Columns::kFields;
  static constexpr int kVectors = Columns::kVectors;  ///< that a column decodes to, of each field
  static constexpr int kSetStripes = kStripesOfSet;
  static constexpr int kSetsPerUnit = kLanes / kSetStripes;
  /// Sums in registers of more than one set. More of them would push out the columns of the sets: three to six rows
  /// took up to 1.3 times as long.
  static constexpr int kMostSums = 16;

  template <int kRows>
  static constexpr int kFieldsAtOnce = smaller(kFields, power_of_two_up_to(kSums / kRows));
  template <int kRows>
  static constexpr int kSetsAtOnce = smaller(kSetsPerUnit,
                                             power_of_two_up_to(kMostSums / kRows / kFieldsAtOnce<kRows>));

  /// A thread's memory, without its scales, which follow at end().
  struct SetsScratch {
    FloatLanes* totals;   ///< of (set, field, row): lanes are those of the products
    std::uint8_t* codes;  ///< of a set with fewer stripes or of chunks with fewer codes, filled up with zeros
    std::int64_t rows;

    SetsScratch(const MatmulArgs& a, void* memory) : totals(static_cast<FloatLanes*>(memory)), rows(a.M) {
      codes = reinterpret_cast<std::uint8_t*>(totals + kSetsPerUnit * kFields * rows);
    }
    std::uint8_t* end(const MatmulArgs& a) const { return codes + kSetStripes * Kernel::segment_of(a); }
    std::size_t bytes(const MatmulArgs& a) const {
      return static_cast<std::size_t>(end(a) - reinterpret_cast<std::uint8_t*>(totals));
    }
    FloatLanes* totals_of(std::int64_t set, std::int64_t field) const {
      return totals + (set * kFields + field) * rows;
    }
  };

  /// What multiply() starts with: the totals that a block's products are added to, its codes, and what is fetched
  /// meanwhile, into which caches: see SetsFetch.
  template <int kSets, int kFirst, int kFieldsNow, int kLocality = 3>
  struct Block {
    FloatLanes* totals[kSets][kFieldsNow];
    const std::uint8_t* codes;
    SetsFetch<kLocality> fetch;
    int bit;  ///< where the codes of a byte start, of OneField

    QUANTO_INLINE Block(const MatmulArgs& a, const SetsScratch& scratch, const SetsBlock& b)
        : codes(b.codes), fetch(a, b), bit(b.field * bits_of(kQType)) {
      for (int s = 0; s < kSets; ++s) {
        for (int f = 0; f < kFieldsNow; ++f) totals[s][f] = scratch.totals_of(b.set + s, kFirst + f);
      }
    }
  };
  /// totals += sums * scale_of(set, field)
  template <int kSets, int kFieldsNow, class Sums, class Totals, class ScaleOf>
  static QUANTO_INLINE void add_scaled(const Sums& sums, Totals (&totals)[kSets][kFieldsNow], ScaleOf scale_of) {
    QUANTO_UNROLL for (int s = 0; s < kSets; ++s) {
      QUANTO_UNROLL for (int f = 0; f < kFieldsNow; ++f) {
        const FloatLanes scale = scale_of(s, f);
        QUANTO_UNROLL for (int m = 0; m < Sums::kRowCount; ++m) {
          totals[s][f][m] = multiply_add(scale, sums.of[s][f][m], totals[s][f][m]);
        }
      }
    }
  }

  static std::size_t workspace_bytes(const MatmulArgs& a) { return typename Kernel::Prepared(a).bytes(); }
  static bool serves_values(const MatmulArgs& a) { return all_set(typename Kernel::Prepared(a).plain, a.M); }
  static std::size_t scratch_bytes(const MatmulArgs& a) { return typename Kernel::Scratch(a, nullptr).bytes(a); }
  /// Codes that share a scale: whole chunks of them where all do.
  static std::int64_t group_size_of(const MatmulArgs& a) {
    return a.groups == 1 ? round_up(a.K, Kernel::kChunk) : a.group_size;
  }
  static std::int64_t unit_count(const MatmulArgs& a) { return ceil_div(stripes_of_units<Columns>(a), kLanes); }

  template <int kSets, int kRows, int kFirst = 0, class Scratch>
  static void multiply_fields(const MatmulArgs& a, const Scratch& scratch, const SetsBlock& b) {
    constexpr int kFieldsNow = kFieldsAtOnce<kRows>;
    Kernel::template multiply<kSets, kFirst, kFieldsNow, kRows>(a, scratch, b);
    if constexpr (kFirst + kFieldsNow < kFields) multiply_fields<kSets, kRows, kFirst + kFieldsNow>(a, scratch, b);
  }

  /// `sets` of them, as many at once as registers hold sums for.
  template <int kSets, int kRows, class Scratch>
  static void multiply_sets(const MatmulArgs& a, const Scratch& scratch, SetsBlock b, std::int64_t sets) {
    for (; sets >= kSets; sets -= kSets) {
      SetsBlock now = b;
      b.set += kSets;
      b.codes += kSets * kSetStripes * b.apart;
      if constexpr (kIsOneField<Columns>) {
        b.next += kSets * kSetStripes * b.apart / kFieldsInTurn<Columns>;
      } else if (sets > kSets) {
        now.next = b.codes + b.ahead;
        now.next_depth = b.depth;
      }
      multiply_fields<kSets, kRows>(a, scratch, now);
    }
    if constexpr (kSets > 1) multiply_sets<kSets / 2, kRows>(a, scratch, b, sets);
  }

  /// Copies the codes of stripe i of a unit for k in [begin, end).
  static void copy_codes(const MatmulArgs& a, const UnitStripes& u, std::int64_t i, std::int64_t begin,
                         std::int64_t end, std::uint8_t* out) {
    if (i < u.whole) {
      __builtin_memcpy(out, u.codes + i * a.K + begin, static_cast<std::size_t>(end - begin));
    } else if constexpr (kIsOneField<Columns>) {
      copy_straddling_channel<kQType>(a, u.first + i, u.field, begin, end, out);
    }
  }

  /// SetsBlock::ahead of whole stripes, kSets at once: 0 unless as many codes follow the unit, and for rows that take
  /// longer than memory does anyway.
  template <int kSets>
  static std::int64_t ahead_of(const MatmulArgs& a, const UnitStripes& u) {
    const std::int64_t bytes = stripe_count<Columns>(a) * a.K;
    if (!kGrouped || kIsOneField<Columns> || a.M > 4 || !fetches_into_l2(a)) return 0;
    if (bytes < a.threads * kFewestBytesPerThread) return 0;
    const std::int64_t at_once = kSets * kSetStripes * a.K, left = bytes - u.first * a.K;
    const std::int64_t ahead = round_up(kFetchedAhead - at_once, 64);
    return ahead > 0 && kLanes * a.K + ahead + at_once <= left ? ahead : 0;
  }

  template <int kRows, int kSets = kSetsAtOnce<kRows>, class Scratch>
  static void multiply_unit(const MatmulArgs& a, const UnitStripes& u, const Scratch& scratch) {
    const std::int64_t segment = Kernel::segment_of(a), whole = a.K / Kernel::kChunk * Kernel::kChunk;
    const std::int64_t sets = u.whole / kSetStripes;
    for (std::int64_t k = 0; k < whole; k += segment) {
      const std::int64_t depth = smaller(segment, whole - k);
      SetsBlock block{u.codes + k, a.K, 0, k, depth, u.later, depth, u.field, 0};
      if constexpr (kIsOneField<Columns>) {
        block.next += k;
      } else if (k + depth < whole) {
        block.next = u.codes + k + depth;
        block.next_depth = smaller(segment, whole - (k + depth));
      } else {
        block.next_depth = smaller(segment, whole);
        if (depth == a.K) block.ahead = ahead_of<kSets>(a, u);
        block.next += block.ahead;
      }
      multiply_sets<kSets, kRows>(a, scratch, block, sets);
    }
    // What is left of K, and sets of which not all stripes lie in memory.
    for (std::int64_t set = 0; set < ceil_div(u.count, kSetStripes); ++set) {
      const std::int64_t stripes = smaller(kSetStripes, u.count - set * kSetStripes);
      for (std::int64_t k = set < sets ? whole : 0; k < a.K; k += segment) {
        const std::int64_t depth = smaller(segment, a.K - k), padded = round_up(depth, Kernel::kChunk);
        __builtin_memset(scratch.codes, 0, static_cast<std::size_t>(kSetStripes * padded));
        for (std::int64_t i = 0; i < stripes; ++i) {
          copy_codes(a, u, set * kSetStripes + i, k, k + depth, scratch.codes + i * padded);
        }
        multiply_sets<1, kRows>(a, scratch, {scratch.codes, padded, set, k, padded, scratch.codes, padded, u.field, 0},
                                1);
      }
    }
  }

  static void run(const MatmulArgs& a, void* memory, std::int64_t begin, std::int64_t end) {
    const typename Kernel::Scratch scratch(a, memory);
    const auto multiply = [&](const UnitStripes& u) {
      Kernel::start_unit(a, u.first, u.count, scratch);
      fetch_scales<Columns>(a, u.first + kLanes, u.next);
      Kernel::multiply_rows(a, u, scratch);
      Kernel::store_sums(a, u.first, u.count, scratch);
    };
    for (std::int64_t unit = begin; unit < end; ++unit) for_stripes_of_unit<Columns>(a, unit, kLanes, multiply);
  }
};

}  // namespace
}  // namespace quanto::kernels
