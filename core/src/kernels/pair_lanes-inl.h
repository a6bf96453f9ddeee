// The kernel for a few rows, more than one, with AVX-512: a lane has four codes of a channel, two lanes after one
// another are neighbours along K, and the eight such pairs of a vector are channels.
//
// The 32 bytes of eight stripes become such columns by twelve shuffles in registers, without a store. Activations meet
// them as broadcasts of 64 bits, which AMD's cores load without a shuffle. So channel_lanes-inl.h, whose columns take
// more shuffles, a store and a phase of their own, is better only where rows make up for that. And few_rows-inl.h,
// whose vectors are of one channel each, scales eight times as many sums for each group and loads eight times as much
// of the activations. Codes of the stripes to come are fetched a few cache lines beside each column: as many at once as
// there are stripes would have all other loads wait.
//
// Columns (float_columns-inl.h, bf16_columns-inl.h) says what a column decodes to and what it is multiplied with. Codes
// are multiplied as they are, and what shifts contribute comes from the sums of the activations, as in few_rows-inl.h.
// The order of the additions is the same for every row, whatever the others are: that of K, cut where groups end.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lane_channels-inl.h"
#include "kernels/lane_sets-inl.h"
#include "kernels/lanes-inl.h"
#include "kernels/product_sums-inl.h"
#include "kernels/stripes-inl.h"

namespace quanto::kernels {
namespace {

/// Eight rows of 64-bit elements, transposed: four columns of them.
struct PairColumns {
  static constexpr int kRows = 8, kColumns = 4;

  /// Of the rows 0 and 2, 1 and 3, 4 and 6, 5 and 7 four elements in either half.
  static QUANTO_INLINE void transpose(__m512i r02, __m512i r13, __m512i r46, __m512i r57,
                                      BitLanes (&columns)[kColumns]) {
    const __m512i even = _mm512_unpacklo_epi64(r02, r13), odd = _mm512_unpackhi_epi64(r02, r13);
    const __m512i more_even = _mm512_unpacklo_epi64(r46, r57), more_odd = _mm512_unpackhi_epi64(r46, r57);
    columns[0] = (BitLanes)_mm512_shuffle_i64x2(even, more_even, 0x88);
    columns[1] = (BitLanes)_mm512_shuffle_i64x2(odd, more_odd, 0x88);
    columns[2] = (BitLanes)_mm512_shuffle_i64x2(even, more_even, 0xdd);
    columns[3] = (BitLanes)_mm512_shuffle_i64x2(odd, more_odd, 0xdd);
  }
  /// The first 32 bytes of each row.
  static QUANTO_INLINE void load(const std::uint8_t* codes, std::int64_t apart, BitLanes (&columns)[kColumns]) {
    const auto half = [&](int i) __attribute__((always_inline)) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i * apart));
    };
    const auto two = [&](int i, int j) __attribute__((always_inline)) {
      return _mm512_inserti64x4(_mm512_castsi256_si512(half(i)), half(j), 1);
    };
    transpose(two(0, 2), two(1, 3), two(4, 6), two(5, 7), columns);
  }
  /// The same of 64 bytes, of which the second half is left in memory for load_rest().
  static QUANTO_INLINE void load(const std::uint8_t* codes, std::int64_t apart, BitLanes (&columns)[kColumns],
                                 __m512i* rest) {
    const auto two = [&](int i, int j, int n) __attribute__((always_inline)) {
      const __m512i a = _mm512_loadu_si512(codes + i * apart), b = _mm512_loadu_si512(codes + j * apart);
      _mm512_store_si512(rest + n, _mm512_shuffle_i64x2(a, b, 0xee));
      return _mm512_inserti64x4(a, _mm512_castsi512_si256(b), 1);
    };
    transpose(two(0, 2, 0), two(1, 3, 1), two(4, 6, 2), two(5, 7, 3), columns);
  }
  static QUANTO_INLINE void load_rest(const __m512i* rest, BitLanes (&columns)[kColumns]) {
    transpose(_mm512_load_si512(rest), _mm512_load_si512(rest + 1), _mm512_load_si512(rest + 2),
              _mm512_load_si512(rest + 3), columns);
  }
  /// All eight columns of four whole vectors.
  using Half = __m256i;
  static QUANTO_INLINE void transpose(const BitLanes (&rows)[4], Half (&columns)[2 * kColumns]) {
    const auto row = [&](int i) { return (__m512i)rows[i]; };
    const __m512i even = _mm512_unpacklo_epi64(row(0), row(1)), more_even = _mm512_unpacklo_epi64(row(2), row(3));
    const __m512i odd = _mm512_unpackhi_epi64(row(0), row(1)), more_odd = _mm512_unpackhi_epi64(row(2), row(3));
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                  high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    const auto put = [&](int i, __m512i two) {
      columns[i] = _mm512_castsi512_si256(two);
      columns[i + 2] = _mm512_extracti64x4_epi64(two, 1);
    };
    put(0, _mm512_permutex2var_epi64(even, low, more_even));
    put(1, _mm512_permutex2var_epi64(odd, low, more_odd));
    put(4, _mm512_permutex2var_epi64(even, high, more_even));
    put(5, _mm512_permutex2var_epi64(odd, high, more_odd));
  }
  /// All eight columns of eight whole vectors.
  static QUANTO_INLINE void transpose(const BitLanes (&rows)[kRows], BitLanes (&columns)[2 * kColumns]) {
    BitLanes half[kColumns];
    const auto low = [&](int i, int j) { return _mm512_shuffle_i64x2((__m512i)rows[i], (__m512i)rows[j], 0x44); };
    transpose(low(0, 2), low(1, 3), low(4, 6), low(5, 7), half);
    for (int i = 0; i < kColumns; ++i) columns[i] = half[i];
    const auto high = [&](int i, int j) { return _mm512_shuffle_i64x2((__m512i)rows[i], (__m512i)rows[j], 0xee); };
    transpose(high(0, 2), high(1, 3), high(4, 6), high(5, 7), half);
    for (int i = 0; i < kColumns; ++i) columns[kColumns + i] = half[i];
  }
};

/// kRowCounts: the numbers of rows that it serves.
template <class Columns, std::int64_t... kRowCounts>
struct PairLanes : LaneSets<PairLanes<Columns, kRowCounts...>, Columns, PairColumns::kRows> {
  using Sets = LaneSets<PairLanes, Columns, PairColumns::kRows>;
  using Sets::kFields, Sets::kGrouped, Sets::kSetStripes, Sets::kSetsPerUnit, Sets::kVectors;
  using typename Sets::SetsScratch;
  static constexpr std::int64_t kChunk = 32;
  static constexpr std::int64_t kColumnBytes = 8;

  template <std::int64_t>
  struct Number {};

  /// What prepare() leaves for run(): the activations of a column, for each of its vectors a pair of lanes of each row;
  /// the sums of their groups, likewise in pairs; whether every one is of a magnitude that this kernel serves.
  struct Prepared {
    std::uint64_t* pairs;
    std::uint64_t* sums;
    bool* plain;
    std::int64_t rows, columns, group_pairs;

    explicit Prepared(const MatmulArgs& a)
        : pairs(static_cast<std::uint64_t*>(a.workspace)),
          rows(a.M),
          columns(round_up(a.K, kVectorBytes) / kColumnBytes),
          group_pairs(kGrouped ? ceil_div(a.groups, 2) : 0) {
      sums = pairs + rows * columns * kVectors;
      plain = reinterpret_cast<bool*>(sums + rows * group_pairs);
    }
    std::size_t bytes() const {
      return static_cast<std::size_t>(rows) *
             (static_cast<std::size_t>(columns * kVectors + group_pairs) * sizeof(std::uint64_t) + sizeof(bool));
    }
    std::uint64_t* pairs_at(std::int64_t column) const { return pairs + column * kVectors * rows; }
  };

  /// A vector of words as load_words() gives them, those of two places along K beside each other.
  static QUANTO_INLINE BitLanes in_pairs(BitLanes words) {
    const BitLanes lane = (BitLanes)lane_numbers(), pair = lane >> 1;
    const BitLanes index = pair / kVectors * (2 * kVectors) + pair % kVectors + (lane & 1) * kVectors;
    return (BitLanes)_mm512_permutexvar_epi32((__m512i)index, (__m512i)words);
  }

  /// The pairs of the rows [m, m + count), of which there are at most kRows, 4 or 8.
  template <class Source, int kRows>
  static void prepare_pairs(const MatmulArgs& a, const Prepared& p, std::int64_t m, std::int64_t count) {
    constexpr std::int64_t kStep = kLanes * kColumnBytes / (2 * kVectors);  // codes of as many activations
    constexpr int kColumns = kLanes / 2;
    bool plain[kRows];
    for (bool& of_row : plain) of_row = true;
    std::uint64_t* out = p.pairs + m;
    for (std::int64_t k = 0; k < p.columns * kColumnBytes; k += kStep) {
      BitLanes words[kRows] = {};
      QUANTO_UNROLL for (int i = 0; i < kRows; ++i) {
        if (i >= count) break;
        words[i] = in_pairs(Source::load_words(a.x, (m + i) * a.x_stride + k, a.K - k, plain[i]));
      }
      if constexpr (kRows == 4) {
        PairColumns::Half columns[kColumns];
        PairColumns::transpose(words, columns);
        QUANTO_UNROLL for (int i = 0; i < kColumns; ++i, out += p.rows) {
          _mm256_mask_storeu_epi64(out, static_cast<__mmask8>((1u << count) - 1), columns[i]);
        }
      } else {
        BitLanes columns[kColumns];
        PairColumns::transpose(words, columns);
        QUANTO_UNROLL for (int i = 0; i < kColumns; ++i, out += p.rows) {
          store(out, columns[i], static_cast<int>(2 * count));
        }
      }
    }
    for (std::int64_t i = 0; i < count; ++i) p.plain[m + i] = plain[i];
  }

  /// Source: the columns of the activations' type.
  template <class Source>
  static void prepare(const MatmulArgs& a, std::int64_t begin, std::int64_t end) {
    const Prepared p(a);
    for (std::int64_t m = begin; m < end; m += PairColumns::kRows) {
      const std::int64_t count = smaller(PairColumns::kRows, end - m);
      count <= 4 ? prepare_pairs<Source, 4>(a, p, m, count) : prepare_pairs<Source, 8>(a, p, m, count);
      for (std::int64_t i = m; i < m + count; ++i) {
        auto* sums = reinterpret_cast<float*>(p.sums);
        for (std::int64_t j = 0; j < 2 * p.group_pairs; ++j) {
          sums[(j / 2 * p.rows + i) * 2 + j % 2] =
              j < a.groups ? Source::sum_of(a.x, i * a.x_stride + j * a.group_size, a.group_size) : 0.0f;
        }
      }
    }
  }

  /// Codes that are multiplied before the next stripes are: whole chunks and whole groups. The activations of as many
  /// stay in the L2 cache.
  static std::int64_t segment_of(const MatmulArgs& a) {
    constexpr std::int64_t kBytes = std::int64_t{128} << 10;
    const std::int64_t most = kBytes / (a.M * kVectors * kChunk);
    const std::int64_t chunks = ceil_div(a.K, kChunk), segment = kChunk * ceil_div(chunks, ceil_div(chunks, most));
    if (!kGrouped) return segment;
    if (a.groups == 1) return kChunk * chunks;
    return round_up(segment, a.group_size);
  }

  /// A thread's memory.
  struct Scratch : SetsScratch {
    BitLanes* scales;  ///< of (set, field, pair of groups)
    std::int64_t group_pairs;

    Scratch(const MatmulArgs& a, void* memory)
        : SetsScratch(a, memory),
          scales(reinterpret_cast<BitLanes*>(this->end(a))),
          group_pairs(kGrouped ? round_up(a.groups, kLanes) / 2 : 0) {}
    std::size_t bytes(const MatmulArgs& a) const {
      return SetsScratch::bytes(a) + static_cast<std::size_t>(kSetsPerUnit * kFields * group_pairs * kVectorBytes);
    }
    BitLanes* scales_of(std::int64_t set, std::int64_t field) const {
      return scales + (set * kFields + field) * group_pairs;
    }
  };

  template <int kSets, int kFirst, int kFieldsNow, int kRows>
  struct Sums : ProductSums<Columns, FloatLanes, kSets, kFirst, kFieldsNow, kRows> {
    using SetColumns = BitLanes[kSets][PairColumns::kColumns];

    template <class Block>
    QUANTO_INLINE void add_columns(const SetColumns& columns, const std::uint64_t* x, Block& block) {
      QUANTO_UNROLL for (int c = 0; c < PairColumns::kColumns; ++c) {
        if (kFirst == 0 && c % kFieldsInTurn<Columns> == 0) {
          block.fetch.template next<kSets>();
        }
        typename Columns::Codes codes[kSets];
        QUANTO_UNROLL for (int s = 0; s < kSets; ++s) { codes[s] = codes_of_column<Columns>(columns[s][c], block.bit); }
        QUANTO_UNROLL for (int v = 0; v < kVectors; ++v) {
          this->add_products(
              codes, v, [&](int m) __attribute__((always_inline)) {
                return (typename Columns::X)_mm512_set1_epi64(
                    static_cast<std::int64_t>(x[(c * kVectors + v) * kRows + m]));
              });
        }
      }
    }
    template <class Block>
    QUANTO_INLINE void add_chunk(const std::uint8_t* codes, std::int64_t apart, const std::uint64_t* x, Block& block) {
      SetColumns columns;
      QUANTO_UNROLL for (int s = 0; s < kSets; ++s) {
        PairColumns::load(codes + s * kSetStripes * apart, apart, columns[s]);
      }
      add_columns(columns, x, block);
    }
    /// Of two chunks after one another. Stripes are often multiples of 4 KB apart, so that all of them at one k share a
    /// place in the L1 cache, which has room for twelve: of two sets each cache line is read only once.
    template <class Block>
    QUANTO_INLINE void add_two_chunks(const std::uint8_t* codes, std::int64_t apart, const std::uint64_t* x,
                                      __m512i (*rest)[PairColumns::kColumns], Block& block) {
      constexpr std::int64_t kNext = PairColumns::kColumns * kVectors * kRows;
      if constexpr (kSets == 1) {
        add_chunk(codes, apart, x, block);
        add_chunk(codes + kChunk, apart, x + kNext, block);
      } else {
        SetColumns columns;
        QUANTO_UNROLL for (int s = 0; s < kSets; ++s) {
          PairColumns::load(codes + s * kSetStripes * apart, apart, columns[s], rest[s]);
        }
        add_columns(columns, x, block);
        QUANTO_UNROLL for (int s = 0; s < kSets; ++s) PairColumns::load_rest(rest[s], columns[s]);
        add_columns(columns, x + kNext, block);
      }
    }
  };

  template <int kSets, int kFirst, int kFieldsNow, int kRows>
  static __attribute__((noinline)) void multiply(const MatmulArgs& a, const Scratch& scratch, const SetsBlock& b) {
    const std::uint64_t* x = Prepared(a).pairs_at(b.k / kColumnBytes);
    Sums<kSets, kFirst, kFieldsNow, kRows> sums;
    typename Sets::template Block<kSets, kFirst, kFieldsNow> block(a, scratch, b);
    __m512i memory[kSets][PairColumns::kColumns];
    auto* rest = memory;
    asm("" : "+r"(rest));  // or the compiler keeps it in registers, which pushes out others
    const auto add_chunks = [&](std::int64_t count) __attribute__((always_inline)) {
      constexpr std::int64_t kNext = PairColumns::kColumns * kVectors * kRows;
      for (; count >= 2; count -= 2, block.codes += 2 * kChunk, x += 2 * kNext) {
        sums.add_two_chunks(block.codes, b.apart, x, rest, block);
      }
      if (count > 0) {
        sums.add_chunk(block.codes, b.apart, x, block);
        block.codes += kChunk;
        x += kNext;
      }
    };
    if constexpr (!kGrouped) {
      sums.for_each([&](int s, int f, int m, FloatLanes& sum) { sum = block.totals[s][f][m]; });
      add_chunks(b.depth / kChunk);
      sums.for_each([&](int s, int f, int m, FloatLanes& sum) { block.totals[s][f][m] = sum; });
      return;
    }
    const std::int64_t group_size = Sets::group_size_of(a);
    std::int64_t j = b.k / group_size;
    for (std::int64_t k = 0; k < b.depth; k += group_size, ++j) {
      const std::int64_t run = smaller(group_size, b.depth - k);
      sums.for_each([](int, int, int, FloatLanes& sum) { sum = FloatLanes{}; });
      add_chunks(run / kChunk);
      Sets::add_scaled(
          sums, block.totals, [&](int s, int f) __attribute__((always_inline)) {
            const auto two = (__m512)scratch.scales_of(b.set + s, kFirst + f)[j / 2];
            return (FloatLanes)(j % 2 == 0 ? _mm512_moveldup_ps(two) : _mm512_movehdup_ps(two));
          });
    }
  }

  static void multiply_rows(const MatmulArgs& a, const UnitStripes& u, const Scratch& scratch) {
    const auto if_rows = [&]<std::int64_t kRows>(Number<kRows>) {
      if (a.M == kRows) Sets::template multiply_unit<kRows>(a, u, scratch);
    };
    (if_rows(Number<kRowCounts>{}), ...);
  }

  /// Reads the scales of `count` <= kSetStripes channels, from n on, and starts their sums with what their shifts
  /// contribute.
  static void start_set(const MatmulArgs& a, std::int64_t n, std::int64_t count, float factor, BitLanes* out,
                        FloatLanes* totals) {
    const Prepared p(a);
    for (std::int64_t m = 0; m < p.rows; ++m) totals[m] = FloatLanes{};
    for_chunks(a.groups, [&](std::int64_t j, auto chunk) {
      BitLanes scale[kSetStripes] = {}, minus_offset[kSetStripes] = {}, columns[kSetStripes];
      for (std::int64_t i = 0; i < count; ++i) {
        const ScaleOffsets so = scale_offsets(a, (n + i) * a.groups + j, chunk.count);
        scale[i] = (BitLanes)(so.scale * factor);
        minus_offset[i] = (BitLanes)-so.offset;
      }
      PairColumns::transpose(scale, columns);
      for (int i = 0; i < kSetStripes; ++i) out[j / 2 + i] = columns[i];
      PairColumns::transpose(minus_offset, columns);
      const std::int64_t pairs = ceil_div(static_cast<std::int64_t>(chunk.count), std::int64_t{2});
      for (std::int64_t m = 0; m < p.rows; ++m) {
        FloatLanes total = totals[m];
        for (std::int64_t i = 0; i < pairs; ++i) {
          const auto x = (FloatLanes)_mm512_set1_epi64(static_cast<std::int64_t>(p.sums[(j / 2 + i) * p.rows + m]));
          total = multiply_add((FloatLanes)columns[i], x, total);
        }
        totals[m] = total;
      }
    });
  }

  static void start_unit(const MatmulArgs& a, std::int64_t first, std::int64_t count, const Scratch& scratch) {
    if constexpr (!kGrouped) {
      for (std::int64_t i = 0; i < kSetsPerUnit * scratch.rows; ++i) scratch.totals[i] = FloatLanes{};
    } else {
      for (int field = 0; field < kFields; ++field) {
        for (std::int64_t set = 0; set < kSetsPerUnit; ++set) {
          const std::int64_t n = field * stripe_count<Columns>(a) + first + set * kSetStripes;
          const std::int64_t channels = count - set * kSetStripes;
          start_set(a, n, channels < 0 ? 0 : smaller(channels, std::int64_t{kSetStripes}), Columns::field_factor(field),
                    scratch.scales_of(set, field), scratch.totals_of(set, field));
        }
      }
    }
  }

  /// The sums of a unit's channels in a field, for one row: both places of each are added up.
  static void store_sums(const MatmulArgs& a, std::int64_t first, std::int64_t count, const Scratch& scratch) {
    store_channels<Columns>(a, first, count, [&](std::int64_t, int f, std::int64_t m) {
      const Parted places = part(scratch.totals_of(0, f)[m], scratch.totals_of(1, f)[m]);
      return places.even + places.odd;
    });
  }

  /// Of 8-bit codes, how many rows Zen 4 leaves to few_rows: up to four, with which it waits for memory, 64 float8
  /// codes that meet two rows of bfloat16 take 8 cycles there, and 12 here. Dot products of more rows gain by it too.
  static bool few_rows_are_better(const MatmulArgs& a) {
    constexpr bool kDotProducts = kVectors == 2;  // of pairs of words: floats are four vectors
    return bits_of(Columns::kQType) == 8 && a.cores == Cores::zen4 && (kDotProducts || a.M <= 4);
  }

  /// Groups have to end where chunks do. Where they end between two that could be multiplied at once, channel_lanes is
  /// better.
  static bool supports(const MatmulArgs& a) {
    constexpr int kBits = bits_of(Columns::kQType);
    if (few_rows_are_better(a)) return false;
    const std::int64_t step = kBits == 8 || (kBits == 4 && a.M == 3) ? kChunk : 2 * kChunk;
    return ((a.M == kRowCounts) || ...) && a.N % kFields == 0 && (Columns::kTakesAllValues || !a.special_values) &&
           (a.groups == 1 || a.group_size % step == 0);
  }

  template <class Source = Columns>
  static constexpr MatmulKernel kKernel = {kIsOneField<Columns> ? "pair_lanes_by_field" : "pair_lanes",
                                           supports,
                                           Sets::workspace_bytes,
                                           prepare<Source>,
                                           Sets::serves_values,
                                           Sets::scratch_bytes,
                                           Sets::unit_count,
                                           Sets::run};
};

}  // namespace
}  // namespace quanto::kernels
