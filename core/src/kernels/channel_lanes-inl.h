// The kernel for some rows, neither one nor very many, with AVX-512: channels are the lanes of its vectors. Squares of
// codes, 64 of each of kLanes channels, are transposed into columns, four codes of each channel to a lane; what a
// column decodes to meets one activation of each row, broadcast. Where codes are of two bits it may meet tables, a
// vector each, in place of activations (table_columns-inl.h): so few instructions that they serve few rows too.
//
// Unlike in few_rows-inl.h lanes of sums are not added up, a group's scales are a vector, which is multiplied once for
// all of its products, and activations take a sixteenth of the cache's bandwidth. Broadcasts of 32 or 64 bits cost no
// more than the load; of 128 bits, which would spare most of the transposing, they take a shuffle's place on AMD's
// cores. Transposing costs four to six cycles for 64 bytes of codes, so that a few rows are needed to make up for it.
//
// Codes are fetched while others are multiplied, one cache line for each column, in the order of memory. Fetched while
// others are transposed, they would keep memory busy then and leave it idle afterwards.
//
// Columns (bf16_columns-inl.h, float_columns-inl.h) says what a column decodes to and what it is multiplied with, or in
// which tables it looks up what it adds (table_columns-inl.h). Codes are multiplied as they are, and what shifts
// contribute comes from the sums of the activations, as in few_rows-inl.h. The order of the additions is the same for
// every row, whatever the others are: that of K, cut where groups and segments end, with tables that of columns four
// apart where squares are whole. What shifts contribute is added with each group, with tables before all of them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lane_channels-inl.h"
#include "kernels/lane_sums-inl.h"
#include "kernels/lanes-inl.h"
#include "kernels/product_sums-inl.h"
#include "kernels/square_steps-inl.h"
#include "kernels/stripes-inl.h"
#include "kernels/transpose-inl.h"

namespace quanto::kernels {
namespace {

/// From how many rows on channels are better the lanes of vectors than neighbours along K are.
constexpr std::int64_t fewest_lane_rows(int bits) { return bits == 8 ? 9 : bits == 4 ? 4 : 3; }
/// Up to where, in blocks of 12 rows, they cost no more than a panel, which is for 16, 32, 48 or 64.
constexpr std::int64_t kMostLaneRows = 48;

/// Whether a column meets tables of sums of products, made once per call, instead of activations (table_columns-inl.h).
template <class Columns>
constexpr bool kHasTables = requires {
  Columns::kTable;
};

template <class Columns>
struct ChannelLanes {
  static constexpr bool kTables = kHasTables<Columns>;
  static constexpr std::int64_t kFewestRows = kTables ? 1 : fewest_lane_rows(bits_of(Columns::kQType));
  static constexpr std::int64_t kMostRows = kTables ? 8 : kMostLaneRows;
  /// Words that a vector of a column meets, of each row.
  static constexpr std::int64_t kWords = kTables ? kLanes : 1;
  static constexpr QType kQType = Columns::kQType;
  static constexpr bool kGrouped = is_affine_qtype(kQType);
  static constexpr int kFields = Columns::kFields;
  static constexpr int kVectors = Columns::kVectors;  // that a column decodes to, of each field
  static constexpr std::int64_t kColumnBytes = 4;
  /// Bytes of each stripe that are transposed and multiplied with all rows before the next: their columns stay in the
  /// L1 cache, those of several squares that meet the same tables in the L2 cache, and memory is read in pieces long
  /// enough.
  static constexpr std::int64_t kSegment = 1024;
  /// Four fields have sums enough in one. But tables of a segment come from further away than the L1 cache, the more so
  /// the more rows there are: those serve several squares.
  static constexpr int kMostSquares = kTables ? 4 : kFields <= 2 ? 2 : 1;

  template <int kRows>
  static constexpr int kFieldsAtOnce = smaller(kFields, power_of_two_up_to(kSums / kRows));
  template <int kRows>
  static constexpr int kSquaresAtOnce = smaller(kMostSquares, power_of_two_up_to(kSums / kRows / kFieldsAtOnce<kRows>));

  /// What prepare() leaves for run(): activations in the order of the columns, those of a block of rows beside each
  /// other; the sums of their groups likewise; whether every one is of a magnitude that this kernel serves. Blocks have
  /// the same number of rows, the last one filled up with zeros.
  struct Prepared {
    std::uint32_t* words;
    float* sums;
    bool* plain;
    std::int64_t blocks, each, columns, groups;

    explicit Prepared(const MatmulArgs& a)
        : words(static_cast<std::uint32_t*>(a.workspace)),
          blocks(ceil_div(a.M, kRowsAtOnce)),
          each(ceil_div(a.M, blocks)),
          columns(round_up(a.K, kVectorBytes) / kColumnBytes),
          groups(kGrouped ? a.groups : 0) {
      sums = reinterpret_cast<float*>(words + blocks * columns * kVectors * each * kWords);
      plain = reinterpret_cast<bool*>(sums + blocks * sums_each() * each);
    }
    std::size_t bytes() const {
      return static_cast<std::size_t>(blocks * each) *
             (static_cast<std::size_t>(columns * kVectors * kWords + sums_each()) * sizeof(float) + sizeof(bool));
    }
    /// With tables the sums of a row are neighbours, filled up with zeros to whole vectors.
    std::int64_t sums_each() const { return kTables ? round_up(groups, kLanes) : groups; }
    std::uint32_t* words_at(std::int64_t block, std::int64_t column) const {
      return words + (block * columns + column) * kVectors * each * kWords;
    }
    /// Of row i of a block. All rows of tables are in one block.
    float* sums_at(std::int64_t block, std::int64_t group, std::int64_t i) const {
      return sums + (kTables ? i * sums_each() + group : (block * groups + group) * each + i);
    }
  };
  static std::size_t workspace_bytes(const MatmulArgs& a) { return Prepared(a).bytes(); }

  /// The words of a block of rows, transposed, of which there are at most kMost: 4, 8 or 16.
  template <int kMost>
  static void prepare_words(const MatmulArgs& a, const Prepared& p, std::int64_t block) {
    const std::int64_t m = block * p.each, count = smaller(p.each, a.M - m);
    bool plain[kMost];
    for (bool& of_row : plain) of_row = true;
    std::uint32_t* out = p.words_at(block, 0);
    for (std::int64_t k = 0; k < p.columns * kColumnBytes; k += kLanes / kVectors * kColumnBytes) {
      BitLanes words[kMost] = {};
      QUANTO_UNROLL for (int i = 0; i < kMost; ++i) {
        if (i >= count) break;
        words[i] = Columns::load_words(a.x, (m + i) * a.x_stride + k, a.K - k, plain[i]);
      }
      store_columns(words, out, p.each);
      out += kLanes * p.each;
    }
    for (std::int64_t i = 0; i < count; ++i) p.plain[m + i] = plain[i];
  }
  /// Whether groups end where squares do. Then the columns of tables come in the order of SquareSteps, for all rows.
  static bool takes_whole_squares(const MatmulArgs& a) {
    return kTables && a.K % kVectorBytes == 0 && a.group_size % kVectorBytes == 0;
  }
  /// The tables of row m, each where its word would be. All rows are in one block.
  static void prepare_tables(const MatmulArgs& a, const Prepared& p, std::int64_t m) {
    static_assert(!kTables || kMostRows <= kRowsAtOnce);
    bool plain = true;
    const bool as_steps = takes_whole_squares(a);
    const auto column_at = [&](int i) { return as_steps ? SquareSteps::column_at(i) : i; };
    for (std::int64_t column = 0; column < p.columns; column += kLanes) {
      const std::int64_t k = column * kColumnBytes;
      Columns::make_tables(a.x, m * a.x_stride + k, a.K - k, column_at, p.words_at(0, column) + m * kWords,
                           p.each * kWords, plain);
    }
    p.plain[m] = plain;
  }
  static void prepare_sums(const MatmulArgs& a, const Prepared& p, std::int64_t block, std::int64_t i) {
    const std::int64_t m = block * p.each + i;
    for (std::int64_t j = 0; j < p.sums_each(); ++j) {
      const bool exists = m < a.M && j < p.groups;
      *p.sums_at(block, j, i) = exists ? Columns::sum_of(a.x, m * a.x_stride + j * a.group_size, a.group_size) : 0.0f;
    }
  }
  static void prepare_block(const MatmulArgs& a, const Prepared& p, std::int64_t block) {
    static_assert(kRowsAtOnce <= kLanes);
    p.each <= 4   ? prepare_words<4>(a, p, block)
    : p.each <= 8 ? prepare_words<8>(a, p, block)
                  : prepare_words<kLanes>(a, p, block);
  }

  /// Each block by whoever has its first row; tables row by row.
  static void prepare(const MatmulArgs& a, std::int64_t begin, std::int64_t end) {
    const Prepared p(a);
    if constexpr (kTables) {
      for (std::int64_t m = begin; m < end; ++m) {
        prepare_sums(a, p, 0, m);
        prepare_tables(a, p, m);
      }
    } else {
      for (std::int64_t block = ceil_div(begin, p.each); block < p.blocks && block * p.each < end; ++block) {
        for (std::int64_t i = 0; i < p.each; ++i) prepare_sums(a, p, block, i);
        prepare_block(a, p, block);
      }
    }
  }

  static bool serves_values(const MatmulArgs& a) { return all_set(Prepared(a).plain, a.M); }

  /// Squares of a unit: as many as are multiplied at once, or may meet the same tables. With four fields, few rows take
  /// fewer of the latter, so that threads share them evenly: in units of two squares one row of 4096 x 4096 codes took
  /// 1.02 times as long, of four 1.08. One where there are very few units for the threads to share: with up to two
  /// fields it has too few sums to hide the latency of dot products and takes half as long again for each square.
  static std::int64_t squares_each(const MatmulArgs& a) {
    const auto sums = static_cast<int>(kSums / Prepared(a).each);
    const int at_once = smaller(kMostSquares, power_of_two_up_to(sums / smaller(kFields, power_of_two_up_to(sums))));
    const int few = a.M == 1 ? 1 : a.M <= 4 ? 2 : kMostSquares;
    const int squares = !kTables ? at_once : kIsOneField<Columns> ? kMostSquares : few;
    const std::int64_t units_at_least = a.threads > 2 ? 2 * a.threads : 4;
    return stripes_of_units<Columns>(a) < units_at_least * squares * kLanes ? 1 : squares;
  }
  static std::int64_t unit_count(const MatmulArgs& a) {
    return ceil_div(stripes_of_units<Columns>(a), squares_each(a) * kLanes);
  }

  /// A thread's memory.
  struct Scratch {
    static constexpr std::int64_t kColumns = kSegment / kColumnBytes;
    static constexpr std::int64_t kScaleVectors = kTables ? 1 : 2;
    BitLanes* columns;   ///< of a segment, of one square after the other
    FloatLanes* totals;  ///< of (square, field, row)
    FloatLanes* scales;  ///< of (group, square, field), and but for tables the negated offsets after each
    std::int64_t rows, squares;

    Scratch(const MatmulArgs& a, void* memory) : columns(static_cast<BitLanes*>(memory)) {
      const Prepared p(a);
      rows = p.blocks * p.each;
      squares = kTables ? squares_each(a) : kMostSquares;  // the next group's close by: two rows take 0.98 of the time
      totals = reinterpret_cast<FloatLanes*>(columns + kMostSquares * kColumns);
      scales = totals + kMostSquares * kFields * rows;
    }
    std::size_t bytes(const MatmulArgs& a) const {
      const std::int64_t scale_vectors = kGrouped ? kScaleVectors * a.groups * squares * kFields : 0;
      return static_cast<std::size_t>(kMostSquares * (kColumns + kFields * rows) + scale_vectors) * kVectorBytes;
    }
    FloatLanes* totals_of(std::int64_t square, std::int64_t field) const {
      return totals + (square * kFields + field) * rows;
    }
    FloatLanes* scales_of(std::int64_t group, std::int64_t square, std::int64_t field) const {
      return scales + ((group * squares + square) * kFields + field) * kScaleVectors;
    }
  };
  static std::size_t scratch_bytes(const MatmulArgs& a) { return Scratch(a, nullptr).bytes(a); }

  /// Bytes of each stripe that are multiplied before the next: up to kSegment, as evenly as whole vectors allow.
  static std::int64_t segment_of(const MatmulArgs& a) {
    return round_up(ceil_div(a.K, ceil_div(a.K, kSegment)), kVectorBytes);
  }

  /// The codes of `count` stripes, whole squares of them or fewer, from k on: those that are missing are the last
  /// one's, missing codes zeros.
  template <bool kWhole>
  static QUANTO_INLINE void load_square(const MatmulArgs& a, const std::uint8_t* codes, std::int64_t count,
                                        std::int64_t k, BitLanes (&square)[kLanes]) {
    if constexpr (kWhole) {
      QUANTO_UNROLL for (int i = 0; i < kLanes; i += 4) {
        const std::uint8_t* four = codes + i * a.K + k;
        QUANTO_UNROLL for (int j = 0; j < 4; ++j) square[i + j] = (BitLanes)_mm512_loadu_si512(four + j * a.K);
      }
    } else {
      const std::int64_t left = a.K - k;
      const auto mask = left >= kVectorBytes ? ~std::uint64_t{0} : (std::uint64_t{1} << left) - 1;
      for (std::int64_t i = 0; i < kLanes; ++i) {
        square[i] = (BitLanes)_mm512_maskz_loadu_epi8(mask, codes + smaller(i, count - 1) * a.K + k);
      }
    }
  }

  /// The codes of the channel that straddles fields, from k on.
  static BitLanes load_straddling(const MatmulArgs& a, const UnitStripes& u, std::int64_t k) {
    std::uint8_t codes[kVectorBytes] = {};
    copy_straddling_channel<kQType>(a, u.first + u.whole, u.field, k, smaller(k + kVectorBytes, a.K), codes);
    return load<BitLanes>(codes, kLanes);
  }

  /// A segment of all squares of a unit to columns. `kAsSteps`: in the order of SquareSteps.
  template <bool kAsSteps>
  static __attribute__((noinline)) void transpose_segment(const MatmulArgs& a, const UnitStripes& u,
                                                          const Scratch& scratch, std::int64_t begin,
                                                          std::int64_t end) {
    for (std::int64_t first = 0; first < u.count; first += kLanes) {
      const std::uint8_t* codes = u.codes + first * a.K;
      const std::int64_t count = u.whole - first;
      BitLanes* out = scratch.columns + first / kLanes * Scratch::kColumns;
      for (std::int64_t k = begin; k < end; k += kVectorBytes, out += kLanes) {
        BitLanes square[kLanes];
        if (count >= kLanes && k + kVectorBytes <= a.K) {
          load_square<true>(a, codes, count, k, square);
        } else if (count > 0) {
          load_square<false>(a, codes, count, k, square);
        } else {
          for (BitLanes& row : square) row = BitLanes{};
        }
        if constexpr (kIsOneField<Columns>) {
          if (count < kLanes && u.whole < u.count) square[count] = load_straddling(a, u, k);
        }
        transpose(square);
        QUANTO_UNROLL for (int i = 0; i < kLanes; ++i) { out[i] = square[kAsSteps ? SquareSteps::column_at(i) : i]; }
      }
    }
  }

  /// What is multiplied at once: squares from `square` on, the columns of k in [begin, end), a block of rows.
  struct Block {
    std::int64_t square, begin, end, number;
    const std::uint8_t* later;  ///< what is fetched meanwhile: the segment of the first of these stripes that is next
    int field;                  ///< that the codes are in, of OneField
    const std::uint8_t* codes;  ///< of the first stripe, where squares are transposed as they are multiplied
  };

  template <int kSquares, int kFirst, int kFieldsNow, int kRows>
  struct Sums : ProductSums<Columns, FloatLanes, kSquares, kFirst, kFieldsNow, kRows> {
    QUANTO_INLINE void add_column(const BitLanes* column, const std::uint32_t* x, int bit) {
      typename Columns::Codes codes[kSquares];
      QUANTO_UNROLL for (int s = 0; s < kSquares; ++s) {
        codes[s] = codes_of_column<Columns>(column[s * Scratch::kColumns], bit);
      }
      QUANTO_UNROLL for (int v = 0; v < kVectors; ++v) {
        this->add_products(
            codes,
            v, [&](int m) __attribute__((always_inline)) { return Columns::load_x(x + (v * kRows + m) * kWords); });
      }
    }
  };

  /// `kAtOnce`: columns come from codes that are transposed meanwhile, not from those of transpose_segment().
  template <int kSquares, int kFirst, int kFieldsNow, int kRows, bool kAtOnce = false>
  static __attribute__((noinline)) void multiply(const MatmulArgs& a, const Scratch& scratch, const Block& b) {
    static_assert(!kAtOnce || (kSquares == 1 && kRows == 1 && kVectors == 2));
    const Prepared p(a);
    Sums<kSquares, kFirst, kFieldsNow, kRows> sums;
    FloatLanes* totals[kSquares][kFieldsNow];
    for (int s = 0; s < kSquares; ++s) {
      for (int f = 0; f < kFieldsNow; ++f) {
        totals[s][f] = scratch.totals_of(b.square + s, kFirst + f) + b.number * kRows;
      }
    }
    const BitLanes* column = scratch.columns + b.square * Scratch::kColumns;
    const std::uint32_t* x = p.words_at(b.number, b.begin / kColumnBytes);
    StripeFetch<2> fetch(a, b.later, segment_of(a), a.K);
    std::int64_t next = b.begin;
    SquareSteps square;  // at `next`, of which the first four columns are finished
    if constexpr (kAtOnce) {
      QUANTO_UNROLL for (int i = 0; i < kLanes; ++i) square.read(i, b.codes + next, a.K);
      QUANTO_UNROLL for (int step = 0; step < 4; ++step) square.finish(0, step);
    }
    const auto add_columns = [&](std::int64_t count) __attribute__((always_inline)) {
      if constexpr (kAtOnce) {
        for (std::int64_t i = 0; i < count; i += kLanes, next += kVectorBytes) {
          const std::uint8_t* codes_then = b.codes + (next + kVectorBytes < b.end ? next + kVectorBytes : next);
          SquareSteps following;
          QUANTO_UNROLL for (int j = 0; j < kLanes; ++j, x += kVectors * kRows * kWords) {
            if (kFirst == 0) fetch.next();
            const auto codes = Columns::codes_of((BitLanes)square.of[SquareSteps::column_at(j)]);
            const auto add = [&](int v) __attribute__((always_inline)) {
              sums.add_products(
                  &codes, v, [&](int) __attribute__((always_inline)) { return Columns::load_x(x + v * kWords); });
            };
            add(0);
            if (j < kLanes - 4) square.finish(j / 4 + 1, j % 4);
            add(1);
            following.read(j, codes_then, a.K);
          }
          square = following;
          QUANTO_UNROLL for (int step = 0; step < 4; ++step) square.finish(0, step);
        }
        return;
      }
      for (std::int64_t i = 0; i < count; ++i, ++column, x += kVectors * kRows * kWords) {
        if (kFirst == 0 && i % kFieldsInTurn<Columns> == 0) {
          QUANTO_UNROLL for (int s = 0; s < kSquares; ++s) fetch.next();
        }
        sums.add_column(column, x, b.field * bits_of(kQType));
      }
    };
    if constexpr (!kGrouped) {
      sums.for_each([&](int s, int f, int m, FloatLanes& sum) { sum = totals[s][f][m]; });
      add_columns(ceil_div(b.end - b.begin, kColumnBytes));
      sums.for_each([&](int s, int f, int m, FloatLanes& sum) { totals[s][f][m] = sum; });
      return;
    }
    std::int64_t group = b.begin / a.group_size;
    for (std::int64_t k = b.begin; k < b.end; ++group) {
      const bool starts = k == group * a.group_size;
      const std::int64_t end = smaller((group + 1) * a.group_size, b.end);
      sums.for_each([](int, int, int, FloatLanes& sum) { sum = FloatLanes{}; });
      add_columns(ceil_div(end - k, kColumnBytes));
      const float* x_sums = p.sums_at(b.number, group, 0);
      QUANTO_UNROLL for (int s = 0; s < kSquares; ++s) {
        QUANTO_UNROLL for (int f = 0; f < kFieldsNow; ++f) {
          const FloatLanes* scales = scratch.scales_of(group, b.square + s, kFirst + f);
          const FloatLanes scale = scales[0];
          FloatLanes minus_offset{};
          if (!kTables && starts) minus_offset = scales[1];
          QUANTO_UNROLL for (int m = 0; m < kRows; ++m) {
            FloatLanes total = totals[s][f][m];
            if constexpr (!kTables) total = multiply_add(minus_offset, broadcast(x_sums[m]), total);
            totals[s][f][m] = multiply_add(scale, sums.of[s][f][m], total);
          }
        }
      }
      k = end;
    }
  }

  template <int kSquares, int kRows, int kFirst = 0>
  static void multiply_fields(const MatmulArgs& a, const Scratch& scratch, const Block& b) {
    constexpr int kFieldsNow = kFieldsAtOnce<kRows>;
    multiply<kSquares, kFirst, kFieldsNow, kRows>(a, scratch, b);
    if constexpr (kFirst + kFieldsNow < kFields) {
      multiply_fields<kSquares, kRows, kFirst + kFieldsNow>(a, scratch, b);
    }
  }

  /// The squares from b.square on, as many at once as registers hold sums for.
  template <int kSquares, int kRows>
  static void multiply_squares(const MatmulArgs& a, const Scratch& scratch, Block b, std::int64_t squares) {
    constexpr std::int64_t kFetched = kSquares * kLanes / kFieldsInTurn<Columns>;
    for (; b.square + kSquares <= squares; b.square += kSquares, b.later += kFetched * a.K) {
      multiply_fields<kSquares, kRows>(a, scratch, b);
    }
    if constexpr (kSquares > 1) multiply_squares<kSquares / 2, kRows>(a, scratch, b, squares);
  }

  /// A single row, whose units are squares, looks columns up that are in registers, and transposes the square that
  /// follows meanwhile: 0.88 of the time. Groups have to end where squares do. Two and three rows have no registers for
  /// it.
  template <int kRows>
  static constexpr bool kMayTransposeAtOnce = kTables && !kIsOneField<Columns> && kRows == 1;
  static bool transposes_at_once(const MatmulArgs& a, const UnitStripes& u) {
    return u.count == kLanes && takes_whole_squares(a);
  }

  template <int kRows>
  static void multiply_unit(const MatmulArgs& a, const UnitStripes& u, const Scratch& scratch) {
    const std::int64_t blocks = Prepared(a).blocks;
    const std::int64_t segment = segment_of(a), next_unit = u.first + squares_each(a) * kLanes;
    for (std::int64_t k = 0; k < a.K; k += segment) {
      const std::int64_t end = smaller(k + segment, a.K);
      if (kGrouped && fetches_into_l2(a)) {  // a share of the next unit's scales: memory takes long for all of them
        const std::int64_t first = u.next * k / a.K;
        fetch_scales<Columns>(a, next_unit + first, u.next * end / a.K - first);
      }
      const std::uint8_t* later = kIsOneField<Columns> ? u.later + k : end < a.K ? u.codes + end : u.later;
      if constexpr (kMayTransposeAtOnce<kRows>) {
        if (transposes_at_once(a, u)) {
          multiply<1, 0, kFields, kRows, true>(a, scratch, {0, k, end, 0, later, u.field, u.codes});
          continue;
        }
      }
      takes_whole_squares(a) ? transpose_segment<kTables>(a, u, scratch, k, end)
                             : transpose_segment<false>(a, u, scratch, k, end);
      for (std::int64_t i = 0; i < blocks; ++i) {
        multiply_squares<kSquaresAtOnce<kRows>, kRows>(a, scratch, {0, k, end, i, later, u.field, nullptr},
                                                       ceil_div(u.count, kLanes));
      }
    }
  }

  /// Blocks of `rows` <= kRows rows.
  template <int kRows = smaller(kRowsAtOnce, kMostRows)>
  static void multiply_rows(const MatmulArgs& a, const UnitStripes& u, std::int64_t rows, const Scratch& scratch) {
    if constexpr (kRows > 0) {
      if constexpr (kRows >= smaller(kFewestRows, kRowsAtOnce / 2)) {
        if (rows == kRows) return multiply_unit<kRows>(a, u, scratch);
      }
      multiply_rows<kRows - 1>(a, u, rows, scratch);
    }
  }

  /// The scales of all groups: groups are neighbours in memory, here channels are. Missing ones are zeros.
  static void read_scales(const MatmulArgs& a, const UnitStripes& u, const Scratch& scratch) {
    for (std::int64_t s = 0; s < ceil_div(u.count, kLanes); ++s) {
      for (int f = 0; f < kFields; ++f) {
        const std::int64_t n = f * stripe_count<Columns>(a) + u.first + s * kLanes;
        for_chunks(a.groups, [&](std::int64_t j, auto chunk) {
          BitLanes scale[kLanes] = {}, minus_offset[kLanes] = {};
          for (std::int64_t i = 0; i < smaller(kLanes, u.count - s * kLanes); ++i) {
            const ScaleOffsets so = scale_offsets(a, (n + i) * a.groups + j, chunk.count);
            scale[i] = (BitLanes)(so.scale * Columns::field_factor(f));
            minus_offset[i] = (BitLanes)-so.offset;
          }
          transpose(scale);
          transpose(minus_offset);
          for (int i = 0; i < chunk.count; ++i) {
            FloatLanes* out = scratch.scales_of(j + i, s, f);
            out[0] = (FloatLanes)scale[i];
            out[1] = (FloatLanes)minus_offset[i];
          }
        });
      }
    }
  }

  /// Starts the sums of a square's channels in a field with what their shifts contribute to kRows rows, or fewer.
  template <int kRows>
  static void start_rows(const MatmulArgs& a, std::int64_t row, std::int64_t count, FloatLanes* totals) {
    const Prepared p(a);
    FloatLanes sums[kRows][kLanes] = {};
    for (std::int64_t i = 0; i < count; ++i) {
      FloatLanes of_channel[kRows] = {};
      for_chunks(
          a.groups, [&](std::int64_t j, auto chunk) __attribute__((always_inline)) {
            const FloatLanes minus_offset = -scale_offsets(a, row + i * a.groups + j, chunk.count).offset;
            QUANTO_UNROLL for (int m = 0; m < kRows; ++m) {
              const float* x_sums = p.sums_at(0, j, smaller(m, a.M - 1));
              of_channel[m] = multiply_add(minus_offset, load<FloatLanes>(x_sums, kLanes), of_channel[m]);
            }
          });
      QUANTO_UNROLL for (int m = 0; m < kRows; ++m) sums[m][i] = of_channel[m];
    }
    const auto add = [](FloatLanes x, FloatLanes y) { return x + y; };
    for (std::int64_t m = 0; m < a.M; ++m) totals[m] = sums_of_lanes(sums[m], 1, kLanes, add);
  }

  /// Reads the scales of all groups where tables are met, and starts the sums of all channels: offsets are added up as
  /// neighbours in memory, channel by channel, so that scales alone are transposed.
  static void start_unit(const MatmulArgs& a, const UnitStripes& u, const Scratch& scratch) {
    static_assert(!kTables || Columns::field_factor(kFields - 1) == 1.0f);
    for (std::int64_t s = 0; s < ceil_div(u.count, kLanes); ++s) {
      const std::int64_t count = smaller(kLanes, u.count - s * kLanes);
      for (int f = 0; f < kFields; ++f) {
        const std::int64_t row = (f * stripe_count<Columns>(a) + u.first + s * kLanes) * a.groups;
        for_chunks(a.groups, [&](std::int64_t j, auto chunk) {
          BitLanes scale[kLanes];
          QUANTO_UNROLL for (int i = 0; i < kLanes; ++i) {
            scale[i] =
                (BitLanes)load_floats(a.scale, a.scale_dtype, row + smaller(i, count - 1) * a.groups + j, chunk.count);
          }
          transpose(scale);
          QUANTO_UNROLL for (int i = 0; i < kLanes; ++i) {
            if (i < chunk.count) scratch.scales_of(j + i, s, f)[0] = (FloatLanes)scale[i];
          }
        });
        FloatLanes* totals = scratch.totals_of(s, f);
        a.M == 1   ? start_rows<1>(a, row, count, totals)
        : a.M == 2 ? start_rows<2>(a, row, count, totals)
        : a.M <= 4 ? start_rows<4>(a, row, count, totals)
                   : start_rows<8>(a, row, count, totals);
      }
    }
  }

  static void store_sums(const MatmulArgs& a, const UnitStripes& u, const Scratch& scratch) {
    store_channels<Columns>(a, u.first, u.count,
                            [&](std::int64_t i, int f, std::int64_t m) { return scratch.totals_of(i / kLanes, f)[m]; });
  }

  static void run(const MatmulArgs& a, void* memory, std::int64_t begin, std::int64_t end) {
    const Prepared p(a);
    const Scratch scratch(a, memory);
    const std::int64_t each = squares_each(a) * kLanes;
    const auto multiply = [&](const UnitStripes& u) {
      if constexpr (kTables) {
        start_unit(a, u, scratch);
      } else {
        const std::int64_t totals = ceil_div(u.count, kLanes) * kFields * scratch.rows;
        for (std::int64_t i = 0; i < totals; ++i) scratch.totals[i] = FloatLanes{};
        if constexpr (kGrouped) read_scales(a, u, scratch);
      }
      multiply_rows(a, u, p.each, scratch);
      store_sums(a, u, scratch);
    };
    for (std::int64_t unit = begin; unit < end; ++unit) for_stripes_of_unit<Columns>(a, unit, each, multiply);
  }

  /// Groups have to end where columns do. Tables take half of the instructions of multiply-adds. But for a single row
  /// transposing takes as many as that saves: there few_rows stays in place, but on Zen 4, where it was measured.
  static bool supports(const MatmulArgs& a) {
    if (kTables && a.M == 1 && a.cores != Cores::zen4) return false;
    return a.M >= kFewestRows && a.M <= kMostRows && a.N % kFields == 0 &&
           (Columns::kTakesAllValues || !a.special_values) && (a.groups == 1 || a.group_size % kColumnBytes == 0);
  }

  static constexpr const char* kName = kTables                ? (kIsOneField<Columns> ? "tables_by_field" : "tables")
                                       : kIsOneField<Columns> ? "channel_lanes_by_field"
                                                              : "channel_lanes";
  static constexpr MatmulKernel kKernel = {kName,         supports,      workspace_bytes, prepare,
                                           serves_values, scratch_bytes, unit_count,      run};
};

}  // namespace
}  // namespace quanto::kernels
