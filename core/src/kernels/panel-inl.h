// The kernel for many rows: decode a block of weights once, then multiply all rows with it in registers.
//
// Rows of activations are the lanes of a vector, because that keeps what is decoded in the order of the checkpoint (a
// contiguous run for each channel) and makes every weight a broadcast, or Step::kStep neighbours along K of them.
// prepare() transposes the activations into blocks of rows, or copies them there where they lie in planes; run() holds
// kTile channels x kRowVectors vectors of sums in registers while it walks along K.
//
// Step says what is multiplied: float32 weights (float_steps-inl.h), or codes as they are, with bfloat16 activations
// (bf16_steps-inl.h) or with int8 ones, in vectors (int8_steps-inl.h) or in AMX tiles (amx_int8-inl.h). Sums of codes
// are scaled where a group ends and added up in float32 in the order of K; what its shift contributes comes from the
// sum of its activations (see few_rows-inl.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/int8_steps-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/panel_units-inl.h"
#include "kernels/planes-inl.h"
#include "kernels/transpose-inl.h"

namespace quanto::kernels {
namespace {

/// kRowVectors x kTile sums are in registers at once.
template <class Step, QType kQType, int kRowVectors, int kTile, std::int64_t kFewestRows>
struct DecodedPanel {
  /// Whether sums are scaled group by group.
  static constexpr bool kGrouped = is_affine_qtype(kQType) && Step::kMultipliesCodes;
  static constexpr bool kFillsEarly = Step::kIntegers && !Step::kTiles && kLanes > 4;
  static constexpr bool kHasSums = kGrouped || Step::kCentre != 0;
  static constexpr int kSums = kRowVectors * kTile;
  static constexpr std::int64_t kBlockRows = kRowVectors * kLanes;
  static constexpr std::int64_t kChannels = 8 * kTile;
  /// Decoded at once, along K: sums leave the registers, and mostly the L1 cache, as often as there are such pieces.
  static constexpr std::int64_t kDepth = Step::kTiles ? 1024 : sizeof(typename Step::Code) == 4 ? 768 : 1536;
  static constexpr std::int64_t kSquare = 32;  // channels and rows of what tiles multiply at once
  static constexpr std::int64_t kRows = Step::kTiles ? 576 : 512;
  /// From the sums of a channel to those of the next, not a power of two: their cache lines would share sets.
  static constexpr std::int64_t kSumsApart = Step::kTiles ? kRows : kRows + kLanes;
  /// Whole vectors of codes are written, past the end of a group by up to 63.
  static constexpr std::int64_t kCodes = kDepth + 64;
  using Code = typename Step::Code;
  using Sum = typename Step::Sum;
  using Activation = typename Step::Activation;
  using Unit = PanelUnit<kChannels, Step::kTiles ? kChannels : kTile, Step::kTiles ? kRows : kBlockRows>;
  using Factors = ChannelFactors<kChannels>;

  static const Activation* row(const MatmulArgs& a, std::int64_t m) {
    return static_cast<const Activation*>(a.x) + m * a.x_stride;
  }

  /// What prepare() leaves for run(): the lanes of a block of rows beside each other, step by step; the sums of the
  /// activations of their groups as floats, which hold those of integers exactly; and whether the kLanes rows that a
  /// row is prepared with are values that Step serves. Missing rows and codes are zeros.
  struct Prepared {
    std::uint32_t* lanes;
    float* sums;
    bool* plain;
    std::int64_t rows, blocks, steps, groups;

    explicit Prepared(const MatmulArgs& a)
        : lanes(static_cast<std::uint32_t*>(a.workspace)),
          rows(round_up(a.M, Step::kTiles ? kBlockRows : kLanes)),
          blocks(ceil_div(a.M, kBlockRows)),
          steps(round_up(ceil_div(a.K, Step::kStep), Step::kStepsAtOnce)),
          groups(kHasSums ? a.groups : 0) {
      sums = reinterpret_cast<float*>(lanes + blocks * steps * kBlockRows);
      plain = reinterpret_cast<bool*>(sums + blocks * groups * kBlockRows);
    }
    std::size_t bytes() const {
      return static_cast<std::size_t>(blocks * kBlockRows) * (static_cast<std::size_t>(steps + groups) * 4 + 1);
    }
    /// Rows of a block; the last one is as narrow as can be, so that a few rows lie close together in the cache.
    std::int64_t width(std::int64_t block) const { return smaller(kBlockRows, rows - block * kBlockRows); }
    std::uint32_t* lanes_at(std::int64_t block, std::int64_t step) const {
      return lanes + block * steps * kBlockRows + step * width(block);
    }
    float* sums_at(std::int64_t block, std::int64_t group) const {
      return sums + (block * groups + group) * kBlockRows;
    }
  };

  static std::size_t workspace_bytes(const MatmulArgs& a) { return Prepared(a).bytes(); }

  using Values = typename Step::Values;

  /// kLanes rows from m on and as many steps from `step` on. What squares further on read is fetched meanwhile: rows
  /// may each lie in a page of their own, where nothing else goes ahead.
  static void prepare_square(const MatmulArgs& a, const Prepared& p, std::int64_t m, std::int64_t step,
                             Values& values) {
    constexpr std::int64_t kWidth = kLanes * Step::kStep, kAhead = 4 * kWidth;
    BitLanes rows[kLanes];
    const std::int64_t k = step * Step::kStep;
    if (m + kLanes <= a.M && k + kWidth <= a.K) {
      const Activation* from = row(a, m) + k;
      QUANTO_UNROLL for (std::int64_t r = 0; r < kLanes; ++r) {
        rows[r] = Step::load_activations(from + r * a.x_stride, kWidth);
        __builtin_prefetch(from + r * a.x_stride + kAhead);
      }
    } else {
      for (std::int64_t r = 0; r < kLanes; ++r) {
        rows[r] = m + r < a.M ? Step::load_activations(row(a, m + r) + k, smaller(a.K - k, kWidth)) : BitLanes{};
      }
    }
    for (const BitLanes& row : rows) values.add(row);
    transpose(rows);
    std::uint32_t* out = p.lanes_at(m / kBlockRows, step) + m % kBlockRows;
    const std::int64_t count = smaller(kLanes, p.steps - step), apart = p.width(m / kBlockRows);
    if (count == kLanes) {
      QUANTO_UNROLL for (std::int64_t s = 0; s < kLanes; ++s) store(out + s * apart, rows[s], kLanes);
    } else {
      for (std::int64_t s = 0; s < count; ++s) store(out + s * apart, rows[s], kLanes);
    }
  }

  /// kLanes rows from m on that lie in planes. Nothing is transposed, they are lanes already.
  static void prepare_planes(const MatmulArgs& a, const Prepared& p, std::int64_t m, Values& values) {
    const LaneRuns rows(a.planes->run_offsets, a.planes->run, m, a.M);
    rows.with_load<Activation>(a.planes->readable_around,
                               [&](auto load_row) { prepare_lanes(a, p, m, load_row, values); });
  }

  /// The same with what loads the activations of one k.
  template <class LoadRow>
  static QUANTO_INLINE void prepare_lanes(const MatmulArgs& a, const Prepared& p, std::int64_t m, LoadRow load_row,
                                          Values& values) {
    const auto* x = static_cast<const Activation*>(a.x);
    const std::int64_t* k_offsets = a.planes->k_offsets;
    const std::int64_t block = m / kBlockRows, apart = p.width(block), K = a.K;
    std::uint32_t* out = p.lanes_at(block, 0) + m % kBlockRows;
    BitLanes x_k[Step::kStep];
    const auto store_step = [&] {
      const BitLanes lanes = Step::step_of(x_k);
      values.add(lanes);
      store(out, lanes, kLanes);
    };
    std::int64_t k = 0;
    for (; k + Step::kStep <= K; k += Step::kStep, out += apart) {
      QUANTO_UNROLL for (std::int64_t i = 0; i < Step::kStep; ++i) x_k[i] = load_row(x + k_offsets[k + i]);
      store_step();
    }
    if (k == K) return;
    for (std::int64_t i = 0; i < Step::kStep; ++i) x_k[i] = k + i < K ? load_row(x + k_offsets[k + i]) : BitLanes{};
    store_step();
  }

  /// From the lanes of kLanes rows from m on: the sums of their groups.
  static void sum_groups(const MatmulArgs& a, const Prepared& p, std::int64_t m) {
    constexpr std::int64_t kSumsAtOnce = 4;  // additions need not wait for each other
    const std::int64_t block = m / kBlockRows, apart = p.width(block);
    const std::int64_t group_steps = ceil_div(a.group_size, Step::kStep);
    const std::uint32_t* x = p.lanes_at(block, 0) + m % kBlockRows;
    const IntLanes ones = broadcast_int(Step::kOnes);
    for (std::int64_t j = 0; j < a.groups; ++j) {
      Sum sums[kSumsAtOnce] = {};
      const auto add = [&](Sum& sum) {
        sum = Step::multiply_add(ones, load<IntLanes>(x, kLanes), sum);
        x += apart;
      };
      std::int64_t s = 0;
      for (; s + kSumsAtOnce <= group_steps; s += kSumsAtOnce) {
        QUANTO_UNROLL for (std::int64_t i = 0; i < kSumsAtOnce; ++i) add(sums[i]);
      }
      for (; s < group_steps; ++s) add(sums[0]);
      store(p.sums_at(block, j) + m % kBlockRows,
            (as_floats(sums[0]) + as_floats(sums[1])) + (as_floats(sums[2]) + as_floats(sums[3])), kLanes);
    }
  }

  static void prepare_rows(const MatmulArgs& a, const Prepared& p, std::int64_t m, Values& values) {
    if constexpr (Step::kTakesPlanes) {
      if (a.planes != nullptr) return prepare_planes(a, p, m, values);
    }
    for (std::int64_t step = 0; step < p.steps; step += kLanes) prepare_square(a, p, m, step, values);
  }

  /// kLanes rows at a time, each by whoever has the first one.
  static void prepare(const MatmulArgs& a, std::int64_t begin, std::int64_t end) {
    const Prepared p(a);
    const std::int64_t filled = end == a.M ? p.rows : end;
    for (std::int64_t m = round_up(begin, kLanes); m < filled; m += kLanes) {
      Values values;
      prepare_rows(a, p, m, values);
      if constexpr (!Step::kTakesAllValues) __builtin_memset(p.plain + m, values.plain(), kLanes);
      if constexpr (kHasSums) sum_groups(a, p, m);
    }
  }

  static bool serves_values(const MatmulArgs& a) { return all_set(Prepared(a).plain, a.M); }

  /// A thread's memory: codes, a channel after the other, the sums of a unit, of Step's type until they are scaled, and
  /// its scales and negated offsets, group by group.
  struct Scratch {
    Code* codes;
    float* sums;    ///< kSumsApart for each channel
    float* scales;  ///< of the channels, then their offsets, for each group

    explicit Scratch(void* memory)
        : codes(static_cast<Code*>(memory)),
          sums(reinterpret_cast<float*>(codes + kChannels * kCodes)),
          scales(sums + kChannels * kSumsApart) {}
    float* scales_of(std::int64_t group) const { return scales + group * 2 * kChannels; }
  };
  static std::size_t scratch_bytes(const MatmulArgs& a) {
    const std::int64_t floats = kSumsApart + (kGrouped ? 2 * a.groups : 0);
    return static_cast<std::size_t>(kChannels) *
           (kCodes * sizeof(Code) + static_cast<std::size_t>(floats) * sizeof(float));
  }

  /// The codes of channel n for k in [begin, end). Those of one field lie one after the other, whatever their groups.
  static void unpack_codes(const MatmulArgs& a, std::int64_t n, std::int64_t begin, std::int64_t end, Code* out) {
    if constexpr (!Step::kMultipliesCodes) {
      Step::decode(a, n, begin, end, out);
    } else if constexpr (!kGrouped) {
      Step::widen(a.w + n * a.K + begin, end - begin, out);
    } else {
      constexpr int kBits = bits_of(kQType);
      const std::int64_t field_codes = a.packed_rows * a.group_size;
      std::int64_t at = n * a.K + begin;
      int field = 0;
      for (; at >= field_codes; at -= field_codes) ++field;
      for (std::int64_t left = end - begin; left > 0; ++field) {
        const std::int64_t count = smaller(field_codes - at, left);
        Step::template unpack<kBits>(a.w + at, count, field * kBits, out);
        out += count;
        left -= count;
        at = 0;
      }
    }
  }

  /// The same of `count` channels of a unit from c on. Those that the weight does not have are multiplied all the same.
  static void unpack_channels(const MatmulArgs& a, const Unit& u, std::int64_t c, std::int64_t count,
                              std::int64_t begin, std::int64_t end, Code* out) {
    for (std::int64_t i = c; i < c + count; ++i, out += kCodes) {
      if (i < u.channels) {
        unpack_codes(a, u.n_begin + i, begin, end, out);
      } else {
        __builtin_memset(out, 0, kCodes * sizeof(Code));
      }
    }
  }

  /// The scales of all groups of a unit: groups are neighbours in memory, here channels are. Missing ones are zeros.
  static void read_scales(const MatmulArgs& a, const Unit& u, const Scratch& scratch) {
    static_assert(kChannels % kLanes == 0);
    for_chunks(a.groups, [&](std::int64_t j, auto chunk) {
      for (std::int64_t c = 0; c < kChannels; c += kLanes) {
        BitLanes scale[kLanes] = {}, minus_offset[kLanes] = {};
        for (std::int64_t i = 0; i < smaller(kLanes, u.channels - c); ++i) {
          const ScaleOffsets so = scale_offsets(a, (u.n_begin + c + i) * a.groups + j, chunk.count);
          scale[i] = (BitLanes)so.scale;
          minus_offset[i] = (BitLanes)-so.offset;
        }
        transpose(scale);
        transpose(minus_offset);
        for (std::int64_t i = 0; i < chunk.count; ++i) {
          store(scratch.scales_of(j + i) + c, scale[i], kLanes);
          store(scratch.scales_of(j + i) + kChannels + c, minus_offset[i], kLanes);
        }
      }
    });
  }

  /// Codes that are unpacked at once: whole groups or a part of one, as evenly as that allows.
  static std::int64_t piece_depth(const MatmulArgs& a) {
    if constexpr (Step::kTiles) return kDepth;
    const bool whole = kGrouped && a.group_size <= kDepth;
    const std::int64_t unit = whole ? a.group_size : 64;
    const std::int64_t units = ceil_div(kGrouped && !whole ? a.group_size : a.K, unit);
    return ceil_div(units, ceil_div(units, kDepth / unit)) * unit;
  }

  /// Codes of a unit that are unpacked at once, for k in [begin, end).
  struct Piece {
    std::int64_t begin, end;
    const std::uint8_t* next;  ///< what is unpacked after these, as far as it is known
  };
  static const std::uint8_t* codes_at(const MatmulArgs& a, std::int64_t n, std::int64_t k) {
    return a.w + (n * a.K + k) % (a.packed_rows * a.group_size);
  }

  /// What some channels and a block of rows multiply: the steps of a piece, group by group.
  struct Run {
    const std::uint32_t* x;    ///< of the block
    const Code* w;             ///< of the first channel
    Code* unpacked;            ///< where the codes of each tile are unpacked first, as w, or null: they all have been
    std::int64_t begin, end;   ///< of the piece along K
    float* sums;               ///< of the first channel
    const float* x_sums;       ///< of the block's rows and the first group
    const float* scales;       ///< of the first group and channel, and kChannels further its negated offset
    const std::uint8_t* next;  ///< codes to fetch meanwhile, of the first channel, or null
    const std::uint32_t* next_x;  ///< activations to fetch meanwhile, or null
  };

  /// The next codes of each channel are fetched as far as these get on. Nothing else would do it: 64 of them are a
  /// cache line, and those of the next channel lie in another page.
  static constexpr std::int64_t kFetchSteps = 64 / Step::kStep;
  /// With each tile a part of the activations that the next block multiplies.
  static constexpr std::int64_t kFetchedAtOnce = kFetchSteps * kBlockRows * kTile / kChannels;

  /// The next `steps` steps of a run, one or more.
  template <class Products, int kC, int kV>
  static QUANTO_INLINE void add_products(const MatmulArgs& a, const Run& r, std::int64_t steps,
                                         Products (&acc)[kC][kV]) {
    const auto* w = reinterpret_cast<const char*>(r.w);
    std::int64_t s = 0;
    do {
      if (r.next != nullptr) {
        QUANTO_UNROLL for (int c = 0; c < kC; ++c) __builtin_prefetch(r.next + c * a.K + s * Step::kStep, 0, 2);
      }
      if (r.next_x != nullptr) {
        const std::uint32_t* next_x = r.next_x + s / kFetchSteps * kFetchedAtOnce;
        for (std::int64_t i = 0; i < kFetchedAtOnce; i += 16) __builtin_prefetch(next_x + i, 0, 2);
      }
      const std::int64_t last = smaller(s + kFetchSteps, steps);
      do {
        IntLanes rows[kV];
        QUANTO_UNROLL for (int v = 0; v < kV; ++v) rows[v] = load<IntLanes>(r.x + (s * kV + v) * kLanes, kLanes);
        QUANTO_UNROLL for (int c = 0; c < kC; ++c) {
          std::int32_t codes;
          __builtin_memcpy(&codes, w + c * kCodes * static_cast<std::int64_t>(sizeof(Code)) + s * 4, 4);
          const IntLanes weights = broadcast_int(codes);
          QUANTO_UNROLL for (int v = 0; v < kV; ++v) acc[c][v] = Step::multiply_add(weights, rows[v], acc[c][v]);
        }
      } while (++s < last);
    } while (s < steps);
  }

  /// The same by way of sums of Step::Products, of as many steps as those hold. The others are in the L1 cache
  /// meanwhile.
  template <int kC, int kV>
  static QUANTO_INLINE void add_products_in_parts(const MatmulArgs& a, Run r, std::int64_t steps, Sum (&acc)[kC][kV]) {
    constexpr std::int64_t kMost = Step::kMostProducts;
    constexpr std::int64_t kPart = kMost > kFetchSteps ? kMost / kFetchSteps * kFetchSteps : kMost;
    static_assert(kPart % kFetchSteps == 0 || kFetchSteps % kPart == 0);
    Run part = r;
    for (std::int64_t s = 0; s < steps; s += kPart) {
      const bool fetches = s % kFetchSteps == 0;
      part.next = fetches && r.next != nullptr ? r.next + s * Step::kStep : nullptr;
      part.next_x = fetches && r.next_x != nullptr ? r.next_x + s / kFetchSteps * kFetchedAtOnce : nullptr;
      typename Step::Products products[kC][kV] = {};
      add_products(a, part, smaller(kPart, steps - s), products);
      QUANTO_UNROLL for (int c = 0; c < kC; ++c) {
        QUANTO_UNROLL for (int v = 0; v < kV; ++v) acc[c][v] = Step::add(acc[c][v], products[c][v]);
      }
      part.x += kPart * kV * kLanes;
      part.w += kPart * Step::kStep;
    }
  }

  /// Sums begin with what takes the centre of the codes out again.
  static Sum start_of(const float* x_sums) {
    if constexpr (kGrouped || Step::kCentre == 0) {
      return Sum{};
    } else {
      return (Sum)((BitLanes)to_int(load<FloatLanes>(x_sums, kLanes)) * -std::uint32_t{Step::kCentre});
    }
  }

  /// Sums are in memory between pieces only.
  template <int kC, int kV>
  static QUANTO_INLINE void multiply_ungrouped_tile(const MatmulArgs& a, const Run& r) {
    Sum acc[kC][kV];
    if (r.begin == 0) {
      QUANTO_UNROLL for (int v = 0; v < kV; ++v) {
        const Sum start = start_of(r.x_sums + v * kLanes);
        QUANTO_UNROLL for (int c = 0; c < kC; ++c) acc[c][v] = start;
      }
    } else {
      QUANTO_UNROLL for (int c = 0; c < kC; ++c) {
        QUANTO_UNROLL for (int v = 0; v < kV; ++v) acc[c][v] = load<Sum>(r.sums + c * kSumsApart + v * kLanes, kLanes);
      }
    }
    add_products(a, r, ceil_div(r.end - r.begin, Step::kStep), acc);
    QUANTO_UNROLL for (int c = 0; c < kC; ++c) {
      QUANTO_UNROLL for (int v = 0; v < kV; ++v) store(r.sums + c * kSumsApart + v * kLanes, acc[c][v], kLanes);
    }
  }

  /// Sums are in the L1 cache between groups: all of a piece's follow each other.
  template <int kC, int kV>
  static QUANTO_INLINE void multiply_grouped_tile(const MatmulArgs& a, Run r) {
    for (std::int64_t k = r.begin, group_end = round_up(r.begin + 1, a.group_size); k < r.end;) {
      const std::int64_t end = smaller(group_end, r.end), steps = ceil_div(end - k, Step::kStep);
      Sum acc[kC][kV] = {};
      if constexpr (Step::kMostProducts > 0) {
        add_products_in_parts(a, r, steps, acc);
      } else {
        add_products(a, r, steps, acc);
      }
      // Parts of a group after the first find its shift applied.
      const bool first = k == group_end - a.group_size;
      FloatLanes x_sums[kV] = {};
      if (first) {
        QUANTO_UNROLL for (int v = 0; v < kV; ++v) x_sums[v] = load<FloatLanes>(r.x_sums + v * kLanes, kLanes);
      }
      QUANTO_UNROLL for (int c = 0; c < kC; ++c) {
        const FloatLanes scale = broadcast(r.scales[c]), minus_offset = broadcast(r.scales[kChannels + c]);
        QUANTO_UNROLL for (int v = 0; v < kV; ++v) {
          float* at = r.sums + c * kSumsApart + v * kLanes;
          const FloatLanes before = k == 0 ? FloatLanes{} : load<FloatLanes>(at, kLanes);
          store(at, multiply_add(scale, as_floats(acc[c][v]), multiply_add(minus_offset, x_sums[v], before)), kLanes);
        }
      }
      r.x += steps * kV * kLanes;
      r.w += end - k;
      r.x_sums += kBlockRows;
      r.scales += 2 * kChannels;
      if (r.next != nullptr) r.next += end - k;
      if (r.next_x != nullptr) r.next_x += steps * kBlockRows * kC / kChannels;
      k = end;
      group_end += a.group_size;
    }
  }

  template <int kC, int kV>
  static void multiply_tiles(const MatmulArgs& a, const Unit& u, Run r) {
    static_assert(kChannels % kC == 0);
    const std::int64_t fetched = ceil_div(r.end - r.begin, Step::kStep) * kBlockRows * kC / kChannels;
    for (std::int64_t c = 0; c < u.channels; c += kC) {
      if (r.unpacked != nullptr) unpack_channels(a, u, c, kC, r.begin, r.end, r.unpacked);
      if constexpr (kGrouped) {
        multiply_grouped_tile<kC, kV>(a, r);
      } else {
        multiply_ungrouped_tile<kC, kV>(a, r);
      }
      if (r.unpacked == nullptr) r.w += kC * kCodes;
      r.sums += kC * kSumsApart;
      r.scales += kC;
      if (r.next != nullptr) r.next += kC * a.K;
      if (r.next_x != nullptr) r.next_x += fetched;
    }
  }

  /// Fewer vectors of rows take more channels: with fewer sums the instructions would wait for each other.
  static void multiply_block(const MatmulArgs& a, const Unit& u, std::int64_t width, const Run& r) {
    constexpr int kThree = smaller(3, kRowVectors);  // never taken with 2
    switch (width / kLanes) {
      case 1:
        return multiply_tiles<kSums, 1>(a, u, r);
      case 2:
        return multiply_tiles<kSums / 2, 2>(a, u, r);
      case 3:
        return multiply_tiles<kSums / kThree, kThree>(a, u, r);
      default:
        return multiply_tiles<kSums / kRowVectors, kRowVectors>(a, u, r);
    }
  }

  /// The last block of rows fetches what is unpacked next, and each block's sums are stored once they are complete.
  static void multiply_piece(const MatmulArgs& a, const Unit& u, const Prepared& prepared, const Piece& p,
                             const Factors& factors, const Scratch& scratch) {
    const bool whole = p.begin == 0 && p.end == a.K;
    // What a single block multiplies once need not leave the L1 cache: a tile's codes are unpacked just before.
    Code* unpacked = u.rows <= kBlockRows ? scratch.codes : nullptr;
    if (unpacked == nullptr) unpack_channels(a, u, 0, round_up(u.channels, kSums), p.begin, p.end, scratch.codes);
    const std::int64_t group = kGrouped ? p.begin / a.group_size : 0;
    for (std::int64_t m = 0; m < u.rows; m += kBlockRows) {
      const std::int64_t block = (u.m_begin + m) / kBlockRows;
      const bool last = m + kBlockRows >= u.rows;
      // Sums that nothing is added to later may lie where those of the block before were.
      float* sums = scratch.sums + (whole ? 0 : m);
      multiply_block(a, u, prepared.width(block),
                     {prepared.lanes_at(block, p.begin / Step::kStep), scratch.codes, unpacked, p.begin, p.end, sums,
                      kHasSums ? prepared.sums_at(block, group) : nullptr, scratch.scales_of(group),
                      last ? p.next : nullptr, last ? nullptr : prepared.lanes_at(block + 1, p.begin / Step::kStep)});
      if (p.end == a.K) store_sums(a, u, factors, m, smaller(kBlockRows, u.rows - m), sums);
    }
  }

  /// The same with tiles: the codes of 32 channels stay in the L1 cache while all rows go by, and a square of sums
  /// while groups do. All rows and channels of a square have memory, though not all of them count.
  static void multiply_piece_in_tiles(const MatmulArgs& a, const Unit& u, const Prepared& prepared, const Piece& p,
                                      const Scratch& scratch) {
    static_assert(kBlockRows == kSquare && kChannels % kSquare == 0 &&
                  kDepth % (Step::kStep * Step::kStepsAtOnce) == 0);
    for (std::int64_t c = 0; c < u.channels; c += kSquare) {
      for (std::int64_t m = 0; m < u.rows; m += kSquare) {
        const std::int64_t block = (u.m_begin + m) / kBlockRows;
        float* sums = scratch.sums + c * kSumsApart + m;
        for (std::int64_t k = p.begin; k < p.end;) {
          const std::int64_t group = k / a.group_size;
          const std::int64_t k_end = smaller((group + 1) * a.group_size, p.end);
          const TileOperands operands{scratch.codes + c * kCodes + (k - p.begin), kCodes,
                                      prepared.lanes_at(block, k / Step::kStep), kBlockRows * 4,
                                      round_up(ceil_div(k_end - k, Step::kStep), Step::kStepsAtOnce)};
          if constexpr (!kGrouped) {
            Step::template multiply_square<true>(operands, sums, kSumsApart * 4);
          } else {
            alignas(64) std::int32_t products[kSquare][kSquare];
            Step::template multiply_square<false>(operands, products, sizeof(products[0]));
            const bool first = k % a.group_size == 0;
            finish_square(products, first ? prepared.sums_at(block, group) : nullptr, scratch.scales_of(group) + c,
                          sums);
          }
          k = k_end;
        }
      }
    }
  }

  static void finish_square(const std::int32_t (&products)[kSquare][kSquare], const float* x_sums, const float* scales,
                            float* sums) {
    constexpr int kVectors = kSquare / kLanes;
    FloatLanes x[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      x[v] = x_sums == nullptr ? FloatLanes{} : load<FloatLanes>(x_sums + v * kLanes, kLanes);
    }
    for (int c = 0; c < kSquare; ++c) {
      const FloatLanes scale = broadcast(scales[c]), minus_offset = broadcast(scales[kChannels + c]);
      for (int v = 0; v < kVectors; ++v) {
        float* at = sums + c * kSumsApart + v * kLanes;
        const auto product = to_float(load<IntLanes>(products[c] + v * kLanes, kLanes));
        store(at, multiply_add(scale, product, multiply_add(minus_offset, x[v], load<FloatLanes>(at, kLanes))), kLanes);
      }
    }
  }

  static void start_sums(const Unit& u, const Prepared& prepared, float* sums) {
    for (std::int64_t m = 0; m < u.rows; m += kLanes) {
      const std::int64_t row = u.m_begin + m;
      const Sum start = start_of(kHasSums ? prepared.sums_at(row / kBlockRows, 0) + row % kBlockRows : nullptr);
      for (std::int64_t c = 0; c < kChannels; ++c) store(sums + c * kSumsApart + m, start, kLanes);
    }
  }

  /// Sums of groups are floats and scaled; others are of Step's type.
  static void store_sums(const MatmulArgs& a, const Unit& u, const Factors& factors, std::int64_t m, std::int64_t rows,
                         const float* sums) {
    const auto store_as = [&](auto type) {
      if (a.planes != nullptr && a.planes->run_outputs != nullptr) {
        store_planes<decltype(type), kSumsApart>(a, factors, u.n_begin, u.channels, u.m_begin + m, rows, sums);
      } else {
        store_rows<decltype(type), kSumsApart, is_affine_qtype(kQType)>(a, factors, u.n_begin, u.channels,
                                                                        u.m_begin + m, rows, sums);
      }
    };
    if constexpr (kGrouped) {
      store_as(FloatLanes{});
    } else {
      store_as(Sum{});
    }
  }

  static void run_unit(const MatmulArgs& a, const Unit& u, const Unit* next, const Prepared& prepared,
                       const Scratch& scratch) {
    const Factors factors(a, u.n_begin, u.channels, is_affine_qtype(kQType));
    if constexpr (Step::kTiles) start_sums(u, prepared, scratch.sums);
    if constexpr (kGrouped) read_scales(a, u, scratch);
    const std::int64_t depth = piece_depth(a);
    for (std::int64_t k = 0; k < a.K;) {
      // Parts of a group end where it does.
      const std::int64_t rest = kGrouped && depth < a.group_size ? a.group_size - k % a.group_size : a.K - k;
      const std::int64_t end = k + smaller(depth, rest);
      const Piece piece{k, end,
                        end < a.K         ? codes_at(a, u.n_begin, end)
                        : next != nullptr ? codes_at(a, next->n_begin, 0)
                                          : nullptr};
      if constexpr (Step::kTiles) {
        unpack_channels(a, u, 0, kChannels, k, end, scratch.codes);
        for (std::int64_t c = 0; !kGrouped && c < u.channels; ++c) {
          fetch(a.w + (u.n_begin + c) * a.K + end, smaller(kDepth, a.K - end));
        }
        multiply_piece_in_tiles(a, u, prepared, piece, scratch);
      } else {
        multiply_piece(a, u, prepared, piece, factors, scratch);
      }
      k = end;
    }
    if constexpr (Step::kTiles) store_sums(a, u, factors, 0, u.rows, scratch.sums);
  }

  /// Codes that tiles multiply next, from memory to the L2 cache.
  static void fetch(const std::uint8_t* codes, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += 64) __builtin_prefetch(codes + i, 0, 2);
  }

  /// The rows of a unit: kRows, or fewer, so that each thread multiplies the rows that it has prepared. From another
  /// thread's cache they may come no faster than from memory, and to prepare the next call's in their place takes twice
  /// as long. Where channels are many, decoding them for fewer rows costs more than that.
  static std::int64_t unit_rows(const MatmulArgs& a) {
    constexpr std::int64_t kFewest = 256, kMostChannels = 1024;
    if (Step::kTiles || a.N > kMostChannels) return kRows;
    const std::int64_t shares = round_up(ceil_div(a.M, kRows), a.threads);
    const std::int64_t rows = round_up(ceil_div(a.M, shares), kBlockRows);
    return rows >= kFewest ? rows : kRows;
  }
  static std::int64_t unit_count(const MatmulArgs& a) { return Unit::count(a, unit_rows(a)); }

  static void run(const MatmulArgs& a, void* memory, std::int64_t begin, std::int64_t end) {
    const Scratch scratch(memory);
    const Prepared prepared(a);
    [[maybe_unused]] const typename Step::Scope scope;
    const std::int64_t rows = unit_rows(a), units = Unit::count(a, rows);
    for (std::int64_t unit = begin; unit < end; ++unit) {
      const Unit next(a, rows, unit + 1);  // mostly this thread's too, even if it is not told yet
      run_unit(a, Unit(a, rows, unit), unit + 1 < units ? &next : nullptr, prepared, scratch);
    }
  }

  /// Steps may not straddle groups. From `kFewestRows` on this beats the kernel for few rows, with integers also where
  /// a little fewer fill all lanes of wide vectors.
  static bool supports(const MatmulArgs& a) {
    const bool fills = kFillsEarly && a.M % kLanes == 0 && a.M + kLanes >= kFewestRows;
    return (a.M >= kFewestRows || fills) && (Step::kTakesAllValues || !a.special_values) &&
           (a.groups == 1 || a.group_size % (Step::kStep * Step::kStepsAtOnce) == 0);
  }

  static constexpr MatmulKernel kKernel = {
      "panel",    supports, workspace_bytes,    prepare, Step::kTakesAllValues ? nullptr : serves_values, scratch_bytes,
      unit_count, run,      Step::kTakesPlanes, true};
  static_assert(kPreparedTogether % kLanes == 0);
};

}  // namespace
}  // namespace quanto::kernels
