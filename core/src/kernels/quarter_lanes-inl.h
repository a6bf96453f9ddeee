// The kernel for a few rows of packed codes with AVX-512: a lane has four codes of a channel, the four lanes of 128
// bits, a quarter of a vector, are four channels, and quarters are neighbours along K.
//
// Four stripes of 64 bytes become such columns by eight shuffles within quarters, which AMD's cores do on all four of
// their vector ports, beside dot products and without a store. The activations lie as neighbours too, and a shuffle of
// the same kind repeats one for the four channels of its quarter. So channel_lanes-inl.h, whose columns take shuffles
// across quarters, a store and a phase of their own, is better only where rows make up for that. And few_rows-inl.h,
// whose vectors are of one channel each, scales four times as many sums for each group.
//
// Columns (bf16_columns-inl.h, float_columns-inl.h) says what a column decodes to and what it is multiplied with. Codes
// are multiplied as they are, and what shifts contribute comes from the sums of the activations, as in few_rows-inl.h.
// The order of the additions is the same for every row, whatever the others are: that of K, cut where groups end.
//
// Sums of a group are scaled and added to totals. Where registers have no room for totals beside the sums, that takes a
// load and a store of each, and a store costs Zen 4 two dot products. There sums go on from group to group instead, in
// units of the scale of the group that is added: where one ends, they are multiplied by its scale over the next one
// (links of a chain), after the last one by its scale:
//   ((d0 * s0 / s1 + d1) * s1 / s2 + d2) * s2  =  d0 * s0 + d1 * s1 + d2 * s2.
// Scales that differ too much for that, or that are zero, are left to totals.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/few_groups-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lane_channels-inl.h"
#include "kernels/lane_sets-inl.h"
#include "kernels/lane_sums-inl.h"
#include "kernels/lanes-inl.h"
#include "kernels/product_sums-inl.h"
#include "kernels/scale_extremes-inl.h"
#include "kernels/stripes-inl.h"

namespace quanto::kernels {
namespace {

/// The columns of four stripes, of which it takes two at once.
struct QuarterColumns {
  static constexpr int kStripes = 4;

  /// Columns 2 * half and 2 * half + 1 of the vectors at `codes` and `apart` after one another: in quarter q of column
  /// j, lane 4 * q + j of each.
  static QUANTO_INLINE void load(const std::uint8_t* codes, std::int64_t apart, int half, BitLanes (&columns)[2]) {
    const auto stripe = [&](int i) { return _mm512_loadu_si512(codes + i * apart); };
    transpose_half(stripe(0), stripe(1), stripe(2), stripe(3), half, columns);
  }
  static QUANTO_INLINE void transpose_half(__m512i a, __m512i b, __m512i c, __m512i d, int half,
                                           BitLanes (&columns)[2]) {
    const __m512i ab = half == 0 ? _mm512_unpacklo_epi32(a, b) : _mm512_unpackhi_epi32(a, b);
    const __m512i cd = half == 0 ? _mm512_unpacklo_epi32(c, d) : _mm512_unpackhi_epi32(c, d);
    columns[0] = (BitLanes)_mm512_unpacklo_epi64(ab, cd);
    columns[1] = (BitLanes)_mm512_unpackhi_epi64(ab, cd);
  }
  /// Lane j of each quarter in all of its lanes.
  template <int kColumn, class X>
  static QUANTO_INLINE X repeat(X x) {
    return (X)_mm512_shuffle_epi32((__m512i)x, static_cast<_MM_PERM_ENUM>(0x55 * kColumn));
  }
};

/// `kOfChains`: sums go on from group to group, which makes a kernel of its own, since it rounds them elsewhere.
template <class Columns, bool kOfChains = false>
struct QuarterLanes : LaneSets<QuarterLanes<Columns, kOfChains>, Columns, QuarterColumns::kStripes> {
  using Sets = LaneSets<QuarterLanes, Columns, QuarterColumns::kStripes>;
  using Sets::kFields, Sets::kSetStripes, Sets::kSetsPerUnit, Sets::kVectors;
  using typename Sets::SetsScratch;
  static constexpr std::int64_t kChunk = kVectorBytes;
  static constexpr std::int64_t kMostRows = 8;
  /// Of a single row, but on Zen 4. Its codes are fetched past the outer caches, as in few_rows, sixteen stripes ahead
  /// of those that are multiplied: as many have to fit the L1 cache. With 4096 int2 takes 1.06 times as long as
  /// few_rows, with 2048 0.97, with 576 0.8.
  static constexpr std::int64_t kLongestSingleStripe = 2048;
  /// Whether registers hold as many totals of groups as sums, beside two columns of each set.
  template <int kSets, int kSumCount>
  static constexpr bool kHoldsTotals = 2 * kSumCount + 2 * kSets <= 28;
  /// How many sets Zen 4 takes at once if that leaves room for their totals. A store of 64 bytes takes the place of two
  /// vectors of products there: two rows of int4 take 0.87 of the time. Nor are sets more than two: stripes are often
  /// multiples of 4 KB apart, and more of them than share a place in the L1 cache push each other out, which takes a
  /// single row of int4 1.45 times as long.
  static constexpr int kFewSets = 2;
  template <int kRows>
  static constexpr int kUsualSets = Sets::template kSetsAtOnce<kRows>;
  template <int kRows>
  static constexpr int kSumsOfSet = Sets::template kFieldsAtOnce<kRows>* kRows;
  template <int kRows>
  static constexpr int kZen4Sets =
      kUsualSets<kRows> > kFewSets&& kHoldsTotals<kFewSets, kFewSets * kSumsOfSet<kRows>> ? kFewSets
                                                                                          : kUsualSets<kRows>;
  /// Whether sums may go on from group to group on Zen 4. Of fewer rows links cost more than totals: two of int2 take
  /// 1.02 of the time, while four take 0.97 and eight 0.94, of int4 0.96 and 0.92.
  template <int kRows>
  static constexpr bool kChains = kRows >= 4 && !kHoldsTotals<kZen4Sets<kRows>, kZen4Sets<kRows> * kSumsOfSet<kRows>>;
  static_assert(is_affine_qtype(Columns::kQType) && kMostRows <= kRowsAtOnce);

  /// Codes that are decoded to float32, each times a power of two, in four vectors to a column: there it has to be Zen
  /// 4 and three to six rows. Three take 0.96 of the time of pair_lanes-inl.h, four 0.94, six 0.97; two take 1.07 times
  /// as long as few_rows-inl.h, seven and eight 1.03 as long as pairs.
  static constexpr bool kDecodesToFloats = kVectors == 4;
  static_assert(!kOfChains || Columns::field_factor(kFields - 1) == 1.0f);  // links are of scales alone
  static constexpr bool serves_rows(std::int64_t rows) {
    return kDecodesToFloats ? rows >= 3 && rows <= 6 : rows <= kMostRows;
  }
  /// Where groups end within chunks, so that each chunk is scaled, four rows take 1.05 times as long as in
  /// channel_lanes-inl.h, and three as in pairs, but 0.6 to 0.8 of that with groups of half a chunk. Fields that have
  /// to take turns have no better kernel.
  static bool serves_groups(const MatmulArgs& a) {
    const bool in_turn = kIsOneField<Columns> && a.N % kFieldsInTurn<Columns> != 0;
    if (!kDecodesToFloats || in_turn || a.groups == 1 || a.group_size % kChunk == 0) return true;
    return a.M > 4 || (a.M == 3 && a.group_size < kChunk);
  }

  /// What prepare() leaves for run(): the activations of a chunk, row after row, in kVectors vectors each, of which
  /// lane i meets column i; the sums of their groups, each repeated for four channels, in four vectors for sixteen of
  /// them, as scales and shifts are put beside them; whether every one is of a magnitude that this kernel serves.
  struct Prepared {
    typename Columns::X* activations;
    FloatLanes* sums;
    bool* plain;
    std::int64_t rows, chunks, sums_each;

    explicit Prepared(const MatmulArgs& a)
        : activations(static_cast<typename Columns::X*>(a.workspace)),
          rows(a.M),
          chunks(ceil_div(a.K, kChunk)),
          sums_each(ceil_div(a.groups, kLanes) * 4) {
      sums = reinterpret_cast<FloatLanes*>(activations + rows * chunks * kVectors);
      plain = reinterpret_cast<bool*>(sums + rows * sums_each);
    }
    std::size_t bytes() const {
      return static_cast<std::size_t>(rows) *
             (static_cast<std::size_t>(chunks * kVectors + sums_each) * kVectorBytes + sizeof(bool));
    }
    typename Columns::X* x(std::int64_t m, std::int64_t chunk) const {
      return activations + (chunk * rows + m) * kVectors;
    }
    /// Those of the groups from j on, a multiple of kLanes.
    FloatLanes* sums_of(std::int64_t m, std::int64_t j) const { return sums + m * sums_each + j / kLanes * 4; }
  };

  template <class Loaded>
  static void prepare(const MatmulArgs& a, std::int64_t begin, std::int64_t end) {
    const Prepared p(a);
    for (std::int64_t m = begin; m < end; ++m) {
      bool plain = true;
      for (std::int64_t c = 0; c < p.chunks; ++c) {
        FloatLanes words[kVectors];  // those of a column after one another
        for (int v = 0; v < kVectors; ++v) {
          const std::int64_t k = c * kChunk + v * (kChunk / kVectors);
          words[v] = (FloatLanes)Loaded::load_words(a.x, m * a.x_stride + k, a.K - k, plain);
        }
        deal(words);
        for (int v = 0; v < kVectors; ++v) p.x(m, c)[v] = (typename Columns::X)words[v];
      }
      p.plain[m] = plain;
      for (std::int64_t j = 0; j < a.groups; j += kLanes) {
        float sums[kLanes] = {};
        for (std::int64_t i = 0; i < smaller(kLanes, a.groups - j); ++i) {
          sums[i] = Loaded::sum_of(a.x, m * a.x_stride + (j + i) * a.group_size, a.group_size);
        }
        const auto together = load<FloatLanes>(sums, kLanes);
        FloatLanes* out = p.sums_of(m, j);
        if (FewGroups::serves(a.groups)) {
          for (int v = 0; v < FewGroups::kVectors; ++v) out[v] = FewGroups::repeated(v, together);
          continue;
        }
        out[0] = QuarterColumns::repeat<0>(together);
        out[1] = QuarterColumns::repeat<1>(together);
        out[2] = QuarterColumns::repeat<2>(together);
        out[3] = QuarterColumns::repeat<3>(together);
      }
    }
  }

  /// Codes that are multiplied before the next stripes are: whole chunks and whole groups. The activations of as many
  /// stay in the L2 cache, from which each is loaded once for four columns. Shorter segments, for the L1 cache, have
  /// memory read in pieces too short: up to 1.3 times the time.
  static std::int64_t segment_of(const MatmulArgs& a) {
    constexpr std::int64_t kBytes = std::int64_t{128} << 10;
    const std::int64_t most = kBytes / (a.M * kVectors * kVectorBytes);
    const std::int64_t chunks = ceil_div(a.K, kChunk), segment = kChunk * ceil_div(chunks, ceil_div(chunks, most));
    if (a.groups == 1) return kChunk * chunks;
    return round_up(segment, a.group_size % kChunk == 0 ? a.group_size : 2 * a.group_size);
  }

  /// A thread's memory.
  struct Scratch : SetsScratch {
    FloatLanes* starts;  ///< what shifts contribute to the totals of a chain, which begins without
    float* scales;       ///< of (set, field, group), four channels each, or the links of chains
    bool* chained;       ///< whether they are those
    std::int64_t groups;
    bool few;  ///< whether groups are FewGroups

    Scratch(const MatmulArgs& a, void* memory)
        : SetsScratch(a, memory), groups(round_up(a.groups, kLanes)), few(FewGroups::serves(a.groups)) {
      starts = reinterpret_cast<FloatLanes*>(this->end(a));  // whole chunks of codes from where vectors begin
      scales = reinterpret_cast<float*>(starts + (kOfChains ? kSetsPerUnit * kFields * a.M : 0));
      chained = reinterpret_cast<bool*>(scales + kSetsPerUnit * kFields * groups * kSetStripes);
    }
    std::size_t bytes(const MatmulArgs&) const {
      return static_cast<std::size_t>(reinterpret_cast<std::uint8_t*>(chained + 1) -
                                      reinterpret_cast<std::uint8_t*>(this->totals));
    }
    float* scales_of(std::int64_t set, std::int64_t field) const {
      return scales + (set * kFields + field) * groups * kSetStripes;
    }
    FloatLanes* starts_of(std::int64_t set, std::int64_t field) const {
      return starts + (set * kFields + field) * this->rows;
    }
    /// Where those of a group lie among them: of sixteen groups as transposing leaves them, of few in their order.
    std::int64_t place_of(std::int64_t group) const {
      return (few ? group : group / kLanes * kLanes + group % 4 * 4 + group % kLanes / 4) * kSetStripes;
    }
  };

  template <int kSets, int kFirst, int kFieldsNow, int kRows>
  struct Sums : ProductSums<Columns, FloatLanes, kSets, kFirst, kFieldsNow, kRows> {
    template <int kColumn>
    QUANTO_INLINE void add_column(const BitLanes (&columns)[kSets][2], const typename Columns::X* x, int bit) {
      typename Columns::Codes codes[kSets];
      QUANTO_UNROLL for (int s = 0; s < kSets; ++s) {
        codes[s] = codes_of_column<Columns>(columns[s][kColumn % 2], bit);
      }
      QUANTO_UNROLL for (int v = 0; v < kVectors; ++v) {
        this->add_products(
            codes, v, [&](int m) __attribute__((always_inline)) {
              return QuarterColumns::repeat<kColumn>(x[m * kVectors + v]);
            });
      }
    }

    QUANTO_INLINE void add_chunk(const std::uint8_t* codes, std::int64_t apart, const typename Columns::X* x, int bit) {
      BitLanes columns[kSets][2];
      const auto load = [&](int half) __attribute__((always_inline)) {
        const std::uint8_t* at = codes;
        asm volatile("" : "+r"(at));  // or what one half has loaded is kept for the other, on the stack
        QUANTO_UNROLL for (int s = 0; s < kSets; ++s, at += kSetStripes * apart) {
          QuarterColumns::load(at, apart, half, columns[s]);
        }
      };
      // Where registers hold the columns of both halves beside sums and totals, cache lines are read once.
      if constexpr (kSets == kFewSets && kSums - 2 * kSets * kFieldsNow * kRows >= 4 * kSets) {
        BitLanes rest[kSets][2];
        QUANTO_UNROLL for (int s = 0; s < kSets; ++s) {
          QuarterColumns::load(codes + s * kSetStripes * apart, apart, 0, columns[s]);
          QuarterColumns::load(codes + s * kSetStripes * apart, apart, 1, rest[s]);
          QUANTO_UNROLL for (BitLanes& column : rest[s]) QUANTO_IN_REGISTER(column);
        }
        add_column<0>(columns, x, bit);
        add_column<1>(columns, x, bit);
        add_column<2>(rest, x, bit);
        add_column<3>(rest, x, bit);
      } else {
        load(0);
        add_column<0>(columns, x, bit);
        add_column<1>(columns, x, bit);
        load(1);
        add_column<2>(columns, x, bit);
        add_column<3>(columns, x, bit);
      }
    }
  };

  /// What a block starts with, and how it takes chunks. Its sums are variables of the caller: GCC would keep those of a
  /// member in memory.
  template <int kSets, int kFirst, int kFieldsNow, int kRows>
  struct ChunkLoop {
    const MatmulArgs& a;
    const Scratch& scratch;
    const SetsBlock& b;
    typename Sets::template Block<kSets, kFirst, kFieldsNow, kRows == 1 ? 0 : 3> block;
    const typename Columns::X* x;
    std::int64_t group_size, j, left;  ///< codes of group j that are still to come

    QUANTO_INLINE ChunkLoop(const MatmulArgs& args, const Scratch& memory, const SetsBlock& codes)
        : a(args),
          scratch(memory),
          b(codes),
          block(args, memory, codes),
          x(Prepared(args).x(0, codes.k / kChunk)),
          group_size(Sets::group_size_of(args)),
          j(codes.k / group_size),
          left((j + 1) * group_size - codes.k) {}

    template <class BlockSums>
    QUANTO_INLINE void add_chunks(BlockSums& sums, std::int64_t count) {
      for (; count > 0; --count, block.codes += kChunk, x += kRows * kVectors) {
        if constexpr (kFirst == 0) {
          block.fetch.template next<kSets * kSetStripes / kFieldsInTurn<Columns>>();
        }
        sums.add_chunk(block.codes, b.apart, x, block.bit);
      }
    }
    QUANTO_INLINE __m128 scales_at(int s, int f, std::int64_t place) const {
      return _mm_load_ps(scratch.scales_of(b.set + s, kFirst + f) + place);
    }
  };

  /// Scales the sums of each group and adds them to totals.
  template <int kSets, int kFirst, int kFieldsNow, int kRows>
  static QUANTO_INLINE void add_groups(const MatmulArgs& a, const Scratch& scratch, const SetsBlock& b) {
    Sums<kSets, kFirst, kFieldsNow, kRows> sums;
    ChunkLoop<kSets, kFirst, kFieldsNow, kRows> loop(a, scratch, b);
    constexpr bool kHolds = kHoldsTotals<kSets, kSets * kFieldsNow * kRows>;
    decltype(sums) held;  // totals that stay in registers
    if constexpr (kHolds) {
      held.for_each([&](int s, int f, int m, FloatLanes& total) { total = loop.block.totals[s][f][m]; });
    }
    for (std::int64_t k = 0; k < b.depth;) {
      // In a chunk that straddles groups the next one has the upper half of each vector. After the last group it holds
      // zeros.
      const bool straddles = loop.left < kChunk;
      const std::int64_t run = straddles ? kChunk : smaller(loop.left / kChunk * kChunk, b.depth - k);
      sums.for_each([](int, int, int, FloatLanes& sum) { sum = FloatLanes{}; });
      loop.add_chunks(sums, run / kChunk);
      const std::int64_t place = scratch.place_of(loop.j);
      const std::int64_t next = scratch.place_of(loop.j + 1 < a.groups ? loop.j + 1 : loop.j);
      const auto scale_of = [&](int s, int f) __attribute__((always_inline)) {
        const __m512 scale = _mm512_broadcast_f32x4(loop.scales_at(s, f, place));
        if (!straddles) return (FloatLanes)scale;
        return (FloatLanes)_mm512_mask_broadcast_f32x4(scale, 0xff00, loop.scales_at(s, f, next));
      };
      if constexpr (kHolds) {
        Sets::add_scaled(sums, held.of, scale_of);
      } else {
        Sets::add_scaled(sums, loop.block.totals, scale_of);
      }
      k += run;
      for (loop.left -= run; loop.left <= 0; loop.left += loop.group_size) ++loop.j;  // a chunk may hold two groups
    }
    if constexpr (kHolds) {
      held.for_each([&](int s, int f, int m, FloatLanes& total) { loop.block.totals[s][f][m] = total; });
    }
  }

  /// Lets the sums go on from group to group. What a block leaves in the totals is what the next one starts with.
  template <int kSets, int kFirst, int kFieldsNow, int kRows>
  static __attribute__((noinline)) void add_chain(const MatmulArgs& a, const Scratch& scratch, const SetsBlock& b) {
    Sums<kSets, kFirst, kFieldsNow, kRows> sums;
    ChunkLoop<kSets, kFirst, kFieldsNow, kRows> loop(a, scratch, b);
    if (b.k == 0) {
      sums.for_each([](int, int, int, FloatLanes& sum) { sum = FloatLanes{}; });
    } else {
      sums.for_each([&](int s, int f, int m, FloatLanes& sum) { sum = loop.block.totals[s][f][m]; });
    }
    for (std::int64_t k = 0; k < b.depth;) {
      const std::int64_t run = smaller(loop.left, b.depth - k);
      loop.add_chunks(sums, run / kChunk);
      k += run;
      loop.left -= run;
      if (loop.left > 0) break;
      const std::int64_t place = scratch.place_of(loop.j);
      sums.for_each([&](int s, int f, int, FloatLanes& sum) __attribute__((always_inline)) {
        sum *= (FloatLanes)_mm512_broadcast_f32x4(loop.scales_at(s, f, place));
        QUANTO_IN_REGISTER(sum);
      });
      ++loop.j;
      loop.left = loop.group_size;
    }
    if (b.k + b.depth >= a.K) {
      sums.for_each([&](int s, int f, int m, FloatLanes& sum) { sum += scratch.starts_of(b.set + s, kFirst + f)[m]; });
    }
    sums.for_each([&](int s, int f, int m, FloatLanes& sum) { loop.block.totals[s][f][m] = sum; });
  }

  template <int kSets, int kFirst, int kFieldsNow, int kRows>
  static __attribute__((noinline)) void multiply(const MatmulArgs& a, const Scratch& scratch, const SetsBlock& b) {
    if constexpr (kOfChains) {
      if (*scratch.chained) return add_chain<kSets, kFirst, kFieldsNow, kRows>(a, scratch, b);
    }
    add_groups<kSets, kFirst, kFieldsNow, kRows>(a, scratch, b);
  }

  template <int kRows = kMostRows>
  static void multiply_rows(const MatmulArgs& a, const UnitStripes& u, const Scratch& scratch) {
    if constexpr (serves_rows(kRows) && (!kOfChains || kChains<kRows>)) {
      if (a.M == kRows) {
        if constexpr (!kOfChains && !kDecodesToFloats && kZen4Sets<kRows> != kUsualSets<kRows>) {
          if (a.cores != Cores::zen4) return Sets::template multiply_unit<kRows>(a, u, scratch);
        }
        return Sets::template multiply_unit<kRows, kZen4Sets<kRows>>(a, u, scratch);
      }
    }
    if constexpr (kRows > 1) multiply_rows<kRows - 1>(a, u, scratch);
  }

  static QUANTO_INLINE void transpose_set(const __m512i (&stripes)[kSetStripes], BitLanes (&columns)[4]) {
    QUANTO_UNROLL for (int half = 0; half < 2; ++half) {
      BitLanes two[2];
      QuarterColumns::transpose_half(stripes[0], stripes[1], stripes[2], stripes[3], half, two);
      columns[2 * half] = two[0];
      columns[2 * half + 1] = two[1];
    }
  }

  /// Adds what the shifts of the groups from j on, in kCount vectors, contribute to the sums of four channels.
  template <int kCount>
  static QUANTO_INLINE void add_shifts(const Prepared& p, std::int64_t j, const FloatLanes (&minus_offset)[kCount],
                                       FloatLanes* totals) {
    for (std::int64_t m = 0; m < p.rows; ++m) {
      const FloatLanes* x = p.sums_of(m, j);
      FloatLanes total = j == 0 ? FloatLanes{} : totals[m];
      QUANTO_UNROLL for (int i = 0; i < kCount; ++i) total = multiply_add(minus_offset[i], x[i], total);
      totals[m] = total;
    }
  }

  /// Whether sums stay finite, and products normal, in units of any scale of a unit's channels.
  static bool chains(const MatmulArgs& a, std::int64_t first, std::int64_t count) {
    // Sums of K activations below 2^100 times codes below 2^4 stay below 2^127 if no scale is more than kMostTimes / K
    // times another.
    constexpr std::int64_t kMostTimes = std::int64_t{1} << 23;
    constexpr std::uint32_t kSmallest = (127u - 100u) << 23, kLargest = (127u + 100u) << 23;
    Extremes all = {kLargest, kSmallest};
    for (int field = 0; field < kFields; ++field) {
      const std::int64_t row = (field * stripe_count<Columns>(a) + first) * a.groups;
      const Extremes own = a.scale_dtype == DType::bfloat16 ? extremes_of_words(a, row, count * a.groups)
                                                            : extremes_of_floats(a, row, count * a.groups);
      all.least = own.least < all.least ? own.least : all.least;
      all.most = own.most > all.most ? own.most : all.most;
    }
    if (all.least < kSmallest || all.most >= kLargest) return false;  // zero, infinity and NaN among others
    return float_from_bits(all.most) < float_from_bits(all.least) * static_cast<float>(kMostTimes / a.K);
  }

  /// The scales at `row` and after it over those of the next groups; of `last` ones, which end a chain, as they are.
  static QUANTO_INLINE FloatLanes links(const MatmulArgs& a, FloatLanes scale, std::int64_t row, int count,
                                        __mmask16 last) {
    const auto following = (__m512)load_floats(a.scale, a.scale_dtype, row + 1, count);
    const auto next = (FloatLanes)_mm512_mask_blend_ps(last, following, _mm512_set1_ps(1.0f));
    return scale / next;
  }

  /// Reads the scales of kSetStripes channels in a field, from n on, or of as many as there are, and starts their sums
  /// with what their shifts contribute.
  template <bool kWhole, bool kChained>
  static void start_set(const MatmulArgs& a, std::int64_t n, std::int64_t count, int field, float* out,
                        FloatLanes* totals) {
    const Prepared p(a);
    for_chunks(a.groups, [&](std::int64_t j, auto chunk) {
      __m512i scale[kSetStripes] = {}, minus_offset[kSetStripes] = {};
      QUANTO_UNROLL for (int i = 0; i < kSetStripes; ++i) {
        if (!kWhole && i >= count) break;
        const std::int64_t row = (n + i) * a.groups + j;
        const ScaleOffsets so = scale_offsets(a, row, chunk.count);
        minus_offset[i] = (__m512i)-so.offset;
        if constexpr (kChained) {
          const int left = static_cast<int>(smaller(kLanes, a.groups - 1 - j));
          scale[i] = (__m512i)links(a, so.scale, row, left, static_cast<__mmask16>(~first_lanes(left)));
        } else {
          scale[i] = (__m512i)(so.scale * Columns::field_factor(field));
        }
      }
      BitLanes columns[4];
      transpose_set(scale, columns);
      QUANTO_UNROLL for (int i = 0; i < 4; ++i) store(out + (j + 4 * i) * kSetStripes, columns[i], kLanes);
      transpose_set(minus_offset, columns);
      const FloatLanes offsets[4] = {(FloatLanes)columns[0], (FloatLanes)columns[1], (FloatLanes)columns[2],
                                     (FloatLanes)columns[3]};
      add_shifts(p, j, offsets, totals);
    });
  }

  /// The same for a set that has few groups: start_set would transpose vectors that are partly empty.
  template <int kVectorCount, bool kWhole, bool kChained>
  static __attribute__((flatten)) void start_few(const FewGroups& few, const MatmulArgs& a, std::int64_t n,
                                                 std::int64_t count, int field, float* out, FloatLanes* totals) {
    // A set that a unit lacks may lie far behind the last one.
    const std::int64_t row = count == 0 ? 0 : n * few.groups, values = count * few.groups;
    FloatLanes scales[FewGroups::kVectors] = {}, offsets[FewGroups::kVectors] = {};
    QUANTO_UNROLL for (int v = 0; v < kVectorCount; ++v) {
      const auto here = [&](std::int64_t end) __attribute__((always_inline)) {
        if (kWhole && v + 1 < kVectorCount) return kLanes;
        return static_cast<int>(end < v * kLanes ? 0 : smaller(kLanes, end - v * kLanes));
      };
      ScaleOffsets so = scale_offsets(a, row + v * kLanes, here(values));
      offsets[v] = -so.offset;
      if constexpr (kChained) {
        const int following = here(values - 1);
        const auto last = static_cast<__mmask16>(few.last_groups >> (v * kLanes) | ~first_lanes(following));
        so.scale = links(a, so.scale, row + v * kLanes, following, last);
      }
      scales[v] = so.scale * Columns::field_factor(field);
    }
    constexpr bool kInAll = kVectorCount == FewGroups::kVectors;
    FloatLanes minus_offset[kVectorCount];
    QUANTO_UNROLL for (int v = 0; v < kVectorCount; ++v) {
      store(out + v * kLanes, few.groups_of<kInAll>(v, scales), kLanes);
      minus_offset[v] = few.groups_of<kInAll>(v, offsets);
    }
    add_shifts(Prepared(a), 0, minus_offset, totals);
  }
  template <bool kChained>
  static void start_few(const FewGroups& few, const MatmulArgs& a, std::int64_t n, std::int64_t count, int field,
                        float* out, FloatLanes* totals) {
    count < kSetStripes ? start_few<FewGroups::kVectors, false, kChained>(few, a, n, count, field, out, totals)
    : few.vectors == 1  ? start_few<1, true, kChained>(few, a, n, count, field, out, totals)
    : few.vectors == 2  ? start_few<2, true, kChained>(few, a, n, count, field, out, totals)
                        : start_few<3, true, kChained>(few, a, n, count, field, out, totals);
  }

  static void start_unit(const MatmulArgs& a, std::int64_t first, std::int64_t count, const Scratch& scratch) {
    const FewGroups few(a.groups);
    const bool chained = kOfChains && chains(a, first, count);
    *scratch.chained = chained;
    for (int field = 0; field < kFields; ++field) {
      for (std::int64_t set = 0; set < kSetsPerUnit; ++set) {
        const std::int64_t n = field * stripe_count<Columns>(a) + first + set * kSetStripes;
        const std::int64_t channels = count - set * kSetStripes;
        float* scales = scratch.scales_of(set, field);
        // Sets that a unit lacks start with zeros, which nothing is added to.
        FloatLanes* starts = chained && channels > 0 ? scratch.starts_of(set, field) : scratch.totals_of(set, field);
        if (scratch.few) {
          const std::int64_t there = channels <= 0 ? 0 : smaller(channels, kSetStripes);
          chained ? start_few<kOfChains>(few, a, n, there, field, scales, starts)
                  : start_few<false>(few, a, n, there, field, scales, starts);
        } else if (channels >= kSetStripes) {
          chained ? start_set<true, kOfChains>(a, n, kSetStripes, field, scales, starts)
                  : start_set<true, false>(a, n, kSetStripes, field, scales, starts);
        } else {
          chained ? start_set<false, kOfChains>(a, n, channels, field, scales, starts)
                  : start_set<false, false>(a, n, channels, field, scales, starts);
        }
      }
    }
  }

  /// The sums of a unit's channels in a field, for one row: quarters are added up.
  static QUANTO_INLINE FloatLanes sums_of_channels(const FloatLanes* totals, std::int64_t apart) {
    const auto add = [](FloatLanes x, FloatLanes y) { return x + y; };
    const FloatLanes low = add_quarters<0x44, 0xee>(totals[0], totals[apart], add);
    const FloatLanes high = add_quarters<0x44, 0xee>(totals[2 * apart], totals[3 * apart], add);
    return add_quarters<0x88, 0xdd>(low, high, add);
  }

  static void store_sums(const MatmulArgs& a, std::int64_t first, std::int64_t count, const Scratch& scratch) {
    store_channels<Columns>(a, first, count, [&](std::int64_t, int f, std::int64_t m) {
      return sums_of_channels(scratch.totals_of(0, f) + m, kFields * scratch.rows);
    });
  }

  /// Groups have to end where chunks or their halves do, those of chains where chunks do.
  static bool supports(const MatmulArgs& a) {
    if constexpr (kOfChains) {
      constexpr bool kMayChain[kMostRows] = {kChains<1>, kChains<2>, kChains<3>, kChains<4>,
                                             kChains<5>, kChains<6>, kChains<7>, kChains<8>};
      if (a.cores != Cores::zen4 || a.M > kMostRows || !kMayChain[a.M - 1]) return false;
    }
    if (!serves_rows(a.M) || !serves_groups(a) || (kDecodesToFloats && a.cores != Cores::zen4)) return false;
    if (a.M == 1 && (kIsOneField<Columns> || (a.cores != Cores::zen4 && a.K > kLongestSingleStripe))) return false;
    return a.N % kFields == 0 && (Columns::kTakesAllValues || !a.special_values) &&
           (a.groups == 1 || a.group_size % (kOfChains ? kChunk : kChunk / 2) == 0);
  }

  static constexpr const char* kName = kOfChains ? kIsOneField<Columns> ? "quarter_chains_by_field" : "quarter_chains"
                                       : kIsOneField<Columns> ? "quarter_lanes_by_field"
                                                              : "quarter_lanes";
  /// `Loaded`: columns of the activations' dtype.
  template <class Loaded = Columns>
  static constexpr MatmulKernel kKernel = {kName,
                                           supports,
                                           Sets::workspace_bytes,
                                           prepare<Loaded>,
                                           Sets::serves_values,
                                           Sets::scratch_bytes,
                                           Sets::unit_count,
                                           Sets::run};
};

}  // namespace
}  // namespace quanto::kernels
