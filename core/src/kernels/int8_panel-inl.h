// The kernel for many rows of int8 activations: unpack the codes of a block of channels once, then multiply all rows
// with them in registers. As in the other panels, rows are the lanes of a vector and codes are broadcast, Step::kStep
// neighbours along K at a time. Sums are int32 as far as codes share a scale; groups are scaled and added up in float32
// in the order of K, and what their shifts contribute comes from the sums of their activations (see few_rows-inl.h).
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/int8_steps-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/panel_units-inl.h"
#include "kernels/transpose-inl.h"

namespace quanto::kernels {
namespace {

/// kRowVectors x kTile sums are in registers at once.
template <class Step, QType kQType, int kRowVectors, int kTile, std::int64_t kFewestRows>
struct Int8Panel {
  static constexpr bool kAffine = is_affine_qtype(kQType);
  static constexpr int kSums = kRowVectors * kTile;
  static constexpr std::int64_t kBlockRows = kRowVectors * kLanes;
  static constexpr std::int64_t kChannels = 8 * kTile;
  static constexpr std::int64_t kDepth = Step::kTiles ? 1024 : 512;
  static constexpr std::int64_t kSquare = 32;  // channels and rows of what tiles multiply at once
  /// Tiles read the sums of a channel every kRows floats, which should not be a power of two: their cache lines would
  /// share sets.
  static constexpr std::int64_t kRows = Step::kTiles ? 576 : 512;
  /// Whole vectors of codes are written, past the end of a group by up to 63.
  static constexpr std::int64_t kCodes = kDepth + 64;
  using Code = typename Step::Code;
  using Unit = PanelUnit<kChannels, kRows>;

  /// What prepare() leaves for run(): the lanes of kBlockRows rows beside each other, step by step, and the sums of the
  /// activations of their groups as floats, which hold them exactly. Missing rows and codes are zeros.
  struct Prepared {
    std::uint32_t* lanes;
    float* sums;
    std::int64_t blocks, steps, groups;

    explicit Prepared(const MatmulArgs& a)
        : lanes(static_cast<std::uint32_t*>(a.workspace)),
          blocks(ceil_div(a.M, kBlockRows)),
          steps(round_up(ceil_div(a.K, Step::kStep), Step::kStepsAtOnce)),
          groups(kAffine || Step::kCentre != 0 ? a.groups : 0) {
      sums = reinterpret_cast<float*>(lanes + blocks * steps * kBlockRows);
    }
    std::size_t bytes() const { return static_cast<std::size_t>(blocks * kBlockRows * (steps + groups)) * 4; }
    std::uint32_t* lanes_at(std::int64_t block, std::int64_t step) const {
      return lanes + (block * steps + step) * kBlockRows;
    }
    float* sums_at(std::int64_t block, std::int64_t group) const {
      return sums + (block * groups + group) * kBlockRows;
    }
  };

  static std::size_t workspace_bytes(const MatmulArgs& a) { return Prepared(a).bytes(); }

  /// kLanes rows from m on and as many steps from `step` on.
  static void prepare_square(const MatmulArgs& a, const Prepared& p, std::int64_t m, std::int64_t step) {
    BitLanes rows[kLanes];
    const std::int64_t k = step * Step::kStep;
    for (std::int64_t r = 0; r < kLanes; ++r) {
      rows[r] = m + r < a.M ? Step::load_activations(int8_row(a, m + r) + k, smaller(a.K - k, kLanes * Step::kStep))
                            : BitLanes{};
    }
    transpose(rows);
    std::uint32_t* out = p.lanes_at(m / kBlockRows, step) + m % kBlockRows;
    const std::int64_t count = smaller(kLanes, p.steps - step);
    for (std::int64_t s = 0; s < count; ++s) __builtin_memcpy(out + s * kBlockRows, &rows[s], sizeof(rows[s]));
  }

  /// Squares of kLanes rows, each by whoever has its first one.
  static void prepare(const MatmulArgs& a, std::int64_t begin, std::int64_t end) {
    const Prepared p(a);
    const std::int64_t filled = end == a.M ? round_up(a.M, kBlockRows) : end;
    for (std::int64_t m = round_up(begin, kLanes); m < filled; m += kLanes) {
      for (std::int64_t step = 0; step < p.steps; step += kLanes) prepare_square(a, p, m, step);
    }
    for (std::int64_t m = begin; m < filled; ++m) {
      for (std::int64_t j = 0; j < p.groups; ++j) {
        const float sum =
            m < a.M ? static_cast<float>(sum_of_codes(int8_row(a, m) + j * a.group_size, a.group_size)) : 0.0f;
        p.sums_at(m / kBlockRows, j)[m % kBlockRows] = sum;
      }
    }
  }

  /// A thread's memory: codes, a channel after the other, and the sums of a unit: int32 until they are scaled.
  struct Scratch {
    Code* codes;
    float* sums;  ///< kRows for each channel

    explicit Scratch(void* memory)
        : codes(static_cast<Code*>(memory)), sums(reinterpret_cast<float*>(codes + kChannels * kCodes)) {}
  };
  static std::size_t scratch_bytes(const MatmulArgs&) {
    return static_cast<std::size_t>(kChannels) * (kCodes * sizeof(Code) + kRows * sizeof(float));
  }

  static void unpack_codes(const MatmulArgs& a, std::int64_t n, std::int64_t begin, std::int64_t end, Code* out) {
    if constexpr (!kAffine) {
      Step::widen(a.w + n * a.K + begin, end - begin, out);
    } else {
      for (std::int64_t k = begin; k < end;) {
        const std::int64_t within = k % a.group_size, r = n * a.groups + k / a.group_size;
        const std::int64_t count = smaller(a.group_size - within, end - k);
        const std::uint8_t* bytes = a.w + r % a.packed_rows * a.group_size + within;
        constexpr int kBits = bits_of(kQType);
        Step::template unpack<kBits>(bytes, count, static_cast<int>(r / a.packed_rows) * kBits, out + (k - begin));
        k += count;
      }
    }
  }

  /// The scales and negated offsets of the channels of a unit for one group.
  struct GroupScales {
    float scale[kChannels];
    float minus_offset[kChannels];
  };

  /// A group's shift is applied once, with its first codes.
  static void read_scales(const MatmulArgs& a, const Unit& u, std::int64_t k, GroupScales& scales) {
    const std::int64_t group = k / a.group_size;
    const bool first = k % a.group_size == 0;
    for (std::int64_t c = 0; c < kChannels; ++c) {
      const ScaleOffset so =
          c < u.channels ? scale_offset(a, (u.n_begin + c) * a.groups + group) : ScaleOffset{0.0f, 0.0f};
      scales.scale[c] = so.scale;
      scales.minus_offset[c] = first ? -so.offset : 0.0f;
    }
  }

  /// What is multiplied at once: a run of steps that share their scales.
  struct Segment {
    const std::uint32_t* x;  ///< of kBlockRows rows
    const Code* w;           ///< of a channel
    std::int64_t steps;
    float* sums;              ///< of a channel
    const float* group_sums;  ///< of kBlockRows rows
    const float *scale, *minus_offset;
  };

  template <int kC, int kV>
  static void multiply_tile(const Segment& s) {
    IntLanes acc[kC][kV];
    for (int c = 0; c < kC; ++c) {
      for (int v = 0; v < kV; ++v) {
        acc[c][v] = kAffine ? IntLanes{} : load<IntLanes>(s.sums + c * kRows + v * kLanes, kLanes);
      }
    }
    const auto* w = reinterpret_cast<const char*>(s.w);
    for (std::int64_t p = 0; p < s.steps; ++p) {
      IntLanes rows[kV];
      for (int v = 0; v < kV; ++v) rows[v] = load<IntLanes>(s.x + p * kBlockRows + v * kLanes, kLanes);
      for (int c = 0; c < kC; ++c) {
        std::int32_t codes;
        __builtin_memcpy(&codes, w + c * kCodes * static_cast<std::int64_t>(sizeof(Code)) + p * 4, 4);
        const IntLanes weights = broadcast_int(codes);
        for (int v = 0; v < kV; ++v) acc[c][v] = Step::multiply_add(weights, rows[v], acc[c][v]);
      }
    }
    for (int c = 0; c < kC; ++c) {
      for (int v = 0; v < kV; ++v) finish_sum(s, c, v, acc[c][v]);
    }
  }

  static void finish_sum(const Segment& s, int c, int v, IntLanes sum) {
    float* at = s.sums + c * kRows + v * kLanes;
    if constexpr (!kAffine) {
      store(at, sum, kLanes);
    } else {
      const auto x_sums = load<FloatLanes>(s.group_sums + v * kLanes, kLanes);
      const FloatLanes shifted = multiply_add(broadcast(s.minus_offset[c]), x_sums, load<FloatLanes>(at, kLanes));
      store(at, multiply_add(broadcast(s.scale[c]), to_float(sum), shifted), kLanes);
    }
  }

  template <int kC, int kV>
  static void multiply_tiles(std::int64_t channels, Segment s) {
    static_assert(kChannels % kC == 0);
    for (std::int64_t c = 0; c < channels; c += kC) {
      multiply_tile<kC, kV>(s);
      s.w += kC * kCodes;
      s.sums += kC * kRows;
      s.scale += kC;
      s.minus_offset += kC;
    }
  }

  /// Fewer vectors of rows take more channels: with fewer sums the instructions would wait for each other.
  static void multiply_segment(std::int64_t rows, std::int64_t channels, const Segment& s) {
    switch (ceil_div(rows, kLanes)) {
      case 1:
        return multiply_tiles<kSums, 1>(channels, s);
      case 2:
        return multiply_tiles<kSums / 2, 2>(channels, s);
      case 3:
        return multiply_tiles<kSums / smaller(3, kRowVectors), smaller(3, kRowVectors)>(channels, s);
      default:
        return multiply_tiles<kSums / kRowVectors, kRowVectors>(channels, s);
    }
  }

  /// Codes that are needed when these are multiplied, from memory to the L2 cache.
  static void fetch(const std::uint8_t* codes, std::int64_t count) {
    for (std::int64_t i = 0; i < count; i += 64) __builtin_prefetch(codes + i, 0, 2);
  }

  static void unpack_depth(const MatmulArgs& a, const Unit& u, std::int64_t begin, std::int64_t end, Code* codes) {
    for (std::int64_t c = 0; c < u.channels; ++c) {
      unpack_codes(a, u.n_begin + c, begin, end, codes + c * kCodes);
      if constexpr (!kAffine) fetch(a.w + (u.n_begin + c) * a.K + end, smaller(kDepth, a.K - end));
    }
  }

  static void multiply_depth(const MatmulArgs& a, const Unit& u, const Prepared& prepared, std::int64_t begin,
                             std::int64_t end, const Scratch& scratch) {
    for (std::int64_t k = begin; k < end;) {
      const std::int64_t group = k / a.group_size;
      const std::int64_t k_end = smaller((group + 1) * a.group_size, end);
      GroupScales scales;
      if constexpr (kAffine) read_scales(a, u, k, scales);
      for (std::int64_t m = 0; m < u.rows; m += kBlockRows) {
        const std::int64_t block = (u.m_begin + m) / kBlockRows;
        multiply_segment(
            smaller(kBlockRows, u.rows - m), u.channels,
            {prepared.lanes_at(block, k / Step::kStep), scratch.codes + (k - begin), ceil_div(k_end - k, Step::kStep),
             scratch.sums + m, prepared.sums_at(block, group), scales.scale, scales.minus_offset});
      }
      k = k_end;
    }
  }

  /// The same with tiles: the codes of 32 channels stay in the L1 cache while all rows go by, and a square of sums
  /// while groups do. All rows and channels of a square have memory, though not all of them count.
  static void multiply_depth_in_tiles(const MatmulArgs& a, const Unit& u, const Prepared& prepared, std::int64_t begin,
                                      std::int64_t end, const Scratch& scratch) {
    static_assert(kBlockRows == kSquare && kChannels % kSquare == 0 &&
                  kDepth % (Step::kStep * Step::kStepsAtOnce) == 0);
    GroupScales scales[kAffine ? kDepth / (Step::kStep * Step::kStepsAtOnce) + 1 : 1];
    const std::int64_t first_group = begin / a.group_size;
    if constexpr (kAffine) {
      for (std::int64_t j = first_group; j * a.group_size < end; ++j) {
        read_scales(a, u, j * a.group_size < begin ? begin : j * a.group_size, scales[j - first_group]);
      }
    }
    for (std::int64_t c = 0; c < u.channels; c += kSquare) {
      for (std::int64_t m = 0; m < u.rows; m += kSquare) {
        const std::int64_t block = (u.m_begin + m) / kBlockRows;
        float* sums = scratch.sums + c * kRows + m;
        for (std::int64_t k = begin; k < end;) {
          const std::int64_t group = k / a.group_size;
          const std::int64_t k_end = smaller((group + 1) * a.group_size, end);
          const TileOperands operands{scratch.codes + c * kCodes + (k - begin), kCodes,
                                      prepared.lanes_at(block, k / Step::kStep), kBlockRows * 4,
                                      round_up(ceil_div(k_end - k, Step::kStep), Step::kStepsAtOnce)};
          if constexpr (!kAffine) {
            Step::template multiply_square<true>(operands, sums, kRows * 4);
          } else {
            alignas(64) std::int32_t products[kSquare][kSquare];
            Step::template multiply_square<false>(operands, products, sizeof(products[0]));
            const GroupScales& s = scales[group - first_group];
            finish_square(products, prepared.sums_at(block, group), s.scale + c, s.minus_offset + c, sums);
          }
          k = k_end;
        }
      }
    }
  }

  static void finish_square(const std::int32_t (&products)[kSquare][kSquare], const float* x_sums, const float* scale,
                            const float* minus_offset, float* sums) {
    constexpr int kVectors = kSquare / kLanes;
    FloatLanes x[kVectors];
    for (int v = 0; v < kVectors; ++v) x[v] = load<FloatLanes>(x_sums + v * kLanes, kLanes);
    for (int c = 0; c < kSquare; ++c) {
      const FloatLanes factor = broadcast(scale[c]), shift = broadcast(minus_offset[c]);
      for (int v = 0; v < kVectors; ++v) {
        float* at = sums + c * kRows + v * kLanes;
        const auto product = to_float(load<IntLanes>(products[c] + v * kLanes, kLanes));
        store(at, multiply_add(factor, product, multiply_add(shift, x[v], load<FloatLanes>(at, kLanes))), kLanes);
      }
    }
  }

  /// Sums begin with what takes the centre of the codes out again.
  static void start_sums(const Unit& u, const Prepared& prepared, float* sums) {
    for (std::int64_t m = 0; m < u.rows; m += kLanes) {
      IntLanes start{};
      if constexpr (!kAffine && Step::kCentre != 0) {
        const std::int64_t row = u.m_begin + m;
        const float* x_sums = prepared.sums_at(row / kBlockRows, 0) + row % kBlockRows;
        start = (IntLanes)((BitLanes)to_int(load<FloatLanes>(x_sums, kLanes)) * -std::uint32_t{Step::kCentre});
      }
      for (std::int64_t c = 0; c < kChannels; ++c) store(sums + c * kRows + m, start, kLanes);
    }
  }

  static void sums_to_floats(const Unit& u, float* sums) {
    for (std::int64_t c = 0; c < u.channels; ++c) {
      for (std::int64_t m = 0; m < u.rows; m += kLanes) {
        float* at = sums + c * kRows + m;
        store(at, to_float(load<IntLanes>(at, kLanes)), kLanes);
      }
    }
  }

  static void run(const MatmulArgs& a, void* memory, std::int64_t begin, std::int64_t end) {
    const Scratch scratch(memory);
    const Prepared prepared(a);
    [[maybe_unused]] const typename Step::Scope scope;
    for (std::int64_t unit = begin; unit < end; ++unit) {
      const Unit u(a, unit);
      start_sums(u, prepared, scratch.sums);
      for (std::int64_t k = 0; k < a.K; k += kDepth) {
        const std::int64_t k_end = smaller(k + kDepth, a.K);
        unpack_depth(a, u, k, k_end, scratch.codes);
        if constexpr (Step::kTiles) {
          multiply_depth_in_tiles(a, u, prepared, k, k_end, scratch);
        } else {
          multiply_depth(a, u, prepared, k, k_end, scratch);
        }
      }
      if constexpr (!kAffine) sums_to_floats(u, scratch.sums);
      store_unit<kAffine>(a, u, scratch.sums);
    }
  }

  /// Steps may not straddle groups.
  static bool supports(const MatmulArgs& a) {
    return a.M >= kFewestRows && (a.groups == 1 || a.group_size % (Step::kStep * Step::kStepsAtOnce) == 0);
  }

  static constexpr MatmulKernel kKernel = {"panel", supports,      workspace_bytes, prepare,
                                           nullptr, scratch_bytes, Unit::count,     run};
};

}  // namespace
}  // namespace quanto::kernels
