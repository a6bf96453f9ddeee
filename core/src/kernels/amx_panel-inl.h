// The kernel for many rows on AMX: decode the codes of some channels to bfloat16 tiles, multiply all rows with them,
// and scale the sums. Codes are multiplied as they are, exactly: bfloat16 holds them all, and activations are sums of
// bfloat16 terms (amx_activations-inl.h). Scales and shifts meet float32 sums, as in few_rows-inl.h.
//
// Products of two blocks of rows with two tiles of channels take 64 cycles a step and leave most of the core idle, so
// everything else is done between their instructions, a little with each step: the next codes are decoded, the last
// products scaled, added up and stored. What a step has room for, measured: 64 instructions of vectors, of them 48
// shuffles; loads cost 0.6 cycles each, because tiles take the same ports.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx_activations-inl.h"
#include "kernels/amx_codes-inl.h"
#include "kernels/amx_tiles-inl.h"
#include "kernels/args-inl.h"
#include "kernels/kernel_table.h"

namespace quanto::kernels {
namespace {

constexpr std::int64_t kPanelBlocks = 32;  ///< 512 rows of activations share one decoding
constexpr std::int64_t kPanelPairs = 8;    ///< 256 channels share one reading of the activations
/// Columns decoded together, in steps: two tiles of channels then fill three quarters of the L1 cache.
constexpr std::int64_t kPieceSteps = 18;

/// Spreads `count` things evenly over `steps` steps.
struct Pace {
  std::int64_t count, steps, credit = 0;

  template <class Do>
  void step(Do one) {
    for (credit += count; credit >= steps; credit -= steps) one();
  }
};

/// Rows and channels that a thread multiplies.
struct Panel {
  std::int64_t block_begin, blocks;     ///< of 16 rows
  std::int64_t pair_begin, pair_count;  ///< of tiles of 16 channels
};

/// What is multiplied at once, with all rows of a panel: a pair of tiles of channels, some columns.
struct Piece {
  std::int64_t pair;
  std::int64_t k_begin, k_end;
};

/// Columns of a piece: whole groups, as many as scales have room for, unless they are larger.
inline std::int64_t piece_depth(const MatmulArgs& a) {
  const std::int64_t group_steps = a.groups == 1 ? 1 : a.group_size / kStepDepth;
  const std::int64_t unit = group_steps > kPieceSteps ? 1 : group_steps;
  const std::int64_t most = smaller(kPieceSteps, PairOutputs::kGroups * unit) / unit * unit;
  const std::int64_t steps = ceil_div(a.K, kStepDepth);
  return round_up(ceil_div(steps, ceil_div(steps, most)), unit) * kStepDepth;
}

/// A thread's memory. Products and sums are four tiles: those of two blocks with a pair, block by block.
struct PanelScratch {
  static constexpr std::int64_t kTileFloats = kTileRows * kLanes;
  static constexpr std::int64_t kStepCodes = 2 * kTileBytes;
  static constexpr std::int64_t kPieceCodes = kPieceSteps * kStepCodes;
  std::uint8_t* codes;
  float* products;
  PairOutputs* outputs;
  float* sums;
  std::int64_t block_pairs, sums_apart;

  PanelScratch(const MatmulArgs& a, void* memory)
      : codes(static_cast<std::uint8_t*>(memory)),
        block_pairs(ceil_div(smaller(kPanelBlocks, ceil_div(a.M, kTileRows)), 2)),
        sums_apart(piece_depth(a) >= a.K ? 0 : 4 * kTileFloats) {
    products = reinterpret_cast<float*>(codes + 2 * kPieceCodes);
    outputs = reinterpret_cast<PairOutputs*>(products + 2 * 4 * kTileFloats);
    sums = reinterpret_cast<float*>(outputs + 3);
  }

  std::size_t bytes() const {
    return static_cast<std::size_t>(reinterpret_cast<std::uint8_t*>(sums_of(kPanelPairs, 0) + 4 * kTileFloats) - codes);
  }
  /// Pieces take turns.
  std::uint8_t* codes_of(std::int64_t piece) const { return codes + piece % 2 * kPieceCodes; }
  float* products_of(std::int64_t group) const { return products + group % 2 * 4 * kTileFloats; }
  /// These are needed until the last products of the piece have met them.
  PairOutputs& outputs_of(std::int64_t piece) const { return outputs[piece % 3]; }
  /// Those of a piece with all columns are complete when the next ones begin.
  float* sums_of(std::int64_t pair, std::int64_t block_pair) const {
    return sums + (pair * block_pairs + block_pair) * sums_apart;
  }
};

std::size_t amx_panel_scratch_bytes(const MatmulArgs& a) { return PanelScratch(a, nullptr).bytes(); }

/// In one term after the other an infinite code meets zeros, and what should be infinite is a NaN.
template <QType kQType, DType kDType>
constexpr bool kTermsLoseInfinity = kQType == QType::qfloat8_e5m2&& kTerms<kDType> > 1;

template <QType kQType>
inline float multiply_one(const MatmulArgs& a, std::int64_t m, std::int64_t n) {
  float sum = 0.0f;
  for (std::int64_t k = 0; k < a.K; ++k) {
    sum += load_float(a.x, a.x_dtype, m * a.x_stride + k) * float8_to_float(float8_format(kQType), a.w[n * a.K + k]);
  }
  return sum;
}

/// Products of a group, or of a piece where groups do not end in it, that are not in the sums yet.
template <QType kQType, DType kDType>
struct Unfinished {
  static constexpr std::int64_t kRows = 8;  ///< finished at a time
  const MatmulArgs* a;
  const float* products;
  float* sums;
  const PairOutputs* outputs;
  std::int64_t group;   ///< of the outputs
  const float* x_sums;  ///< of the first block; the next one's are x_sums_apart further
  std::int64_t x_sums_apart;
  bool first, last;  ///< there are no sums yet; the sums are complete
  std::int64_t m;
  std::int64_t row = 2 * kTileRows;  ///< the next one to finish

  std::int64_t times() const { return (2 * kTileRows - row) / kRows; }
  /// Some rows of both tiles. A function of its own, so that the registers of the loop around it are not spilled.
  __attribute__((noinline)) void finish_rows() {
    if (m + row < a->M) {
      if (!last) {
        add_rows();
      } else if (!store_whole_rows()) {
        store_any_rows();
      }
    }
    row += kRows;
  }
  void finish() {
    while (row < 2 * kTileRows) finish_rows();
  }

 private:
  /// Of a row and a tile, among products and sums.
  std::int64_t index(std::int64_t r, int t) const {
    return ((row + r) / kTileRows * 2 + t) * PanelScratch::kTileFloats + (row + r) % kTileRows * kLanes;
  }
  /// Calls each(r, t, sums) with the sums of the rows and tiles.
  template <class Each>
  QUANTO_INLINE void for_sums(Each each) const {
    const __mmask16 has_sums = first ? 0 : 0xffff;
    const std::int64_t at = index(0, 0);
    const float *old = sums + at, *added = products + at;
    [[maybe_unused]] FloatLanes scale[2], minus_offset[2];
    [[maybe_unused]] const float* x = x_sums + row / kTileRows * x_sums_apart + row % kTileRows;
    if constexpr (is_affine_qtype(kQType)) {
      QUANTO_UNROLL for (int t = 0; t < 2; ++t) {
        scale[t] = outputs->scale[group][t];
        minus_offset[t] = outputs->minus_offset[group][t];
      }
    }
    QUANTO_UNROLL for (int r = 0; r < kRows; ++r) {
      [[maybe_unused]] FloatLanes x_sum;
      if constexpr (is_affine_qtype(kQType)) x_sum = broadcast(x[r]);
      QUANTO_UNROLL for (int t = 0; t < 2; ++t) {
        const std::int64_t here = t * PanelScratch::kTileFloats + r * kLanes;
        auto sum = (FloatLanes)_mm512_maskz_load_ps(has_sums, old + here);
        const auto product = load<FloatLanes>(added + here, kLanes);
        if constexpr (is_affine_qtype(kQType)) {
          sum = multiply_add(scale[t], product, multiply_add(minus_offset[t], x_sum, sum));
        } else {
          sum += product;
        }
        each(r, t, sum);
      }
    }
  }

  void add_rows() const {
    float* out = sums + index(0, 0);
    for_sums(
        [&](int r, int t, FloatLanes sum) { store(out + t * PanelScratch::kTileFloats + r * kLanes, sum, kLanes); });
  }

  /// Whole rows of bfloat16 results, with an instruction that converts 16 of them. It takes subnormal numbers for zero,
  /// so they are declined, and so is NaN, of which others keep nothing but the sign.
  bool store_whole_rows() const {
    const bool whole = outputs->channels[0] == kLanes && outputs->channels[1] == kLanes && m + row + kRows <= a->M;
    if (a->y_dtype != DType::bfloat16 || a->row_scale != nullptr || !whole) return false;
    constexpr int kQuietNan = 0x01, kSubnormal = 0x20, kSignalingNan = 0x80;
    __mmask16 declined = 0;
    const FloatLanes scale[2] = {outputs->channel_scale[0], outputs->channel_scale[1]};
    const FloatLanes bias[2] = {outputs->bias[0], outputs->bias[1]};
    char* out = static_cast<char*>(a->y) + (m + row) * a->N * 2;
    char* const tiles[2] = {out + outputs->n[0] * 2, out + outputs->n[1] * 2};
    const std::int64_t row_bytes = a->N * 2;
    for_sums([&](int r, int t, FloatLanes sum) {
      const auto y = (__m512)(is_affine_qtype(kQType) ? sum + bias[t] : sum * scale[t] + bias[t]);
      declined |= _mm512_fpclass_ps_mask(y, kQuietNan | kSubnormal | kSignalingNan);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(tiles[t] + r * row_bytes), (__m256i)_mm512_cvtneps_pbh(y));
    });
    return declined == 0;
  }

  /// Any number of rows and channels, all types.
  __attribute__((noinline)) void store_any_rows() const {
    FloatLanes complete[kRows][2];
    for_sums([&](int r, int t, FloatLanes sum) { complete[r][t] = sum; });
    const std::int64_t count = smaller(kRows, a->M - m - row);
    for (std::int64_t r = 0; r < count; ++r) {
      for (int t = 0; t < 2; ++t) {
        if (outputs->channels[t] > 0) store_row(m + row + r, t, complete[r][t]);
      }
    }
  }
  void store_row(std::int64_t at, int t, FloatLanes y) const {
    const auto channels = static_cast<int>(outputs->channels[t]);
    if constexpr (kTermsLoseInfinity<kQType, kDType>) {
      for (int c = 0; any(is_nan(y)) && c < channels; ++c) {
        if (is_nan(y[c])) y[c] = multiply_one<kQType>(*a, at, outputs->n[t] + c);
      }
    }
    if constexpr (!is_affine_qtype(kQType)) y *= outputs->channel_scale[t];
    if (a->row_scale != nullptr) y *= broadcast(row_scale(*a, at));
    store_floats(a->y, a->y_dtype, at * a->N + outputs->n[t], y + outputs->bias[t], channels);
  }
};

/// What a thread does: piece after piece.
template <QType kQType, DType kDType>
class PanelRunner {
 public:
  PanelRunner(const MatmulArgs& a, void* memory)
      : a_(a), x_(tile_activations<kQType, kDType>(a)), scratch_(a, memory), depth_(piece_depth(a)) {}

  void run(const Panel& p) {
    panel_ = p;
    Piece piece{0, 0, smaller(depth_, a_.K)};
    for (std::int64_t i = 0; i < decodings(piece); ++i) decode(piece, after(piece), i);
    while (piece.pair < p.pair_count) {
      const Piece next = after(piece);
      multiply(piece, next);
      piece = next;
    }
    unfinished_.finish();
  }

 private:
  /// The same columns of the next pair; after some pairs the next columns of the first of them.
  Piece after(const Piece& piece) const {
    const std::int64_t first = piece.pair / kPanelPairs * kPanelPairs;
    const std::int64_t end = smaller(first + kPanelPairs, panel_.pair_count);
    if (piece.pair + 1 < end) return {piece.pair + 1, piece.k_begin, piece.k_end};
    if (piece.k_end < a_.K) return {first, piece.k_end, smaller(piece.k_end + depth_, a_.K)};
    return {end, 0, smaller(depth_, a_.K)};
  }
  static std::int64_t steps_of(const Piece& piece) { return ceil_div(piece.k_end - piece.k_begin, kStepDepth); }

  /// A piece is decoded in so many parts: steps of its tiles, and what their products meet.
  std::int64_t decodings(const Piece& piece) const {
    return piece.pair < panel_.pair_count ? 2 * (steps_of(piece) + 1) : 0;
  }
  std::int64_t tile_of(const Piece& piece, int t) const { return 2 * (panel_.pair_begin + piece.pair) + t; }
  /// Asks for the codes of the `following` piece on the way.
  __attribute__((noinline)) void decode(const Piece& piece, const Piece& following, std::int64_t part) const {
    const int t = static_cast<int>(part % 2);
    const std::int64_t step = part / 2, tile = tile_of(piece, t);
    if (following.pair < panel_.pair_count) {
      fetch_stripes<kQType>(a_, tile_of(following, t), following.k_begin + step * kStepDepth);
    }
    if (step < steps_of(piece)) {
      decode_step<kQType>(a_, tile, piece.k_begin + step * kStepDepth,
                          scratch_.codes_of(decoded_) + step * PanelScratch::kStepCodes + t * kTileBytes);
    } else {
      read_outputs<kQType>(a_, tile, t, piece.k_begin, piece.k_end, scratch_.outputs_of(decoded_));
    }
  }

  /// The activations that meet the next columns, from memory to the L2 cache: of the two blocks from b on, the share
  /// that one of the pairs with the same columns asks for.
  struct Fetch {
    const std::uint8_t* at;
    std::int64_t lines;
  };
  Fetch activations_after(const Piece& piece, std::int64_t b) const {
    if (depth_ >= a_.K) return {nullptr, 0};
    const std::int64_t k = piece.k_end < a_.K ? piece.k_end : 0;
    const std::int64_t steps = smaller(depth_ / kStepDepth, x_.steps - k / kStepDepth);
    const std::int64_t share = ceil_div(steps * x_.terms * TileActivations::kNextTerm / kTileRowBytes, kPanelPairs);
    return {x_.tiles_at(panel_.block_begin + b, k / kStepDepth) + piece.pair % kPanelPairs * share * kTileRowBytes,
            share};
  }

  /// Multiplies the piece that was decoded last, and decodes the next one.
  void multiply(const Piece& piece, const Piece& next) {
    const std::int64_t now = decoded_++;
    asm volatile("" ::: "memory");  // GCC's tile loads do not say what they read
    const std::int64_t first_step = piece.k_begin / kStepDepth;
    const Piece following = after(next);
    std::int64_t part = 0;
    Pace decoding{decodings(next), ceil_div(panel_.blocks, 2) * steps_of(piece)};
    for (std::int64_t b = 0; b < panel_.blocks; b += 2) {
      Fetch fetch = activations_after(piece, b);
      Pace fetching{fetch.lines, steps_of(piece)};
      for (std::int64_t k = piece.k_begin; k < piece.k_end;) {
        const std::int64_t end =
            is_affine_qtype(kQType) ? smaller((k / a_.group_size + 1) * a_.group_size, piece.k_end) : piece.k_end;
        const std::int64_t step = k / kStepDepth, steps = ceil_div(end, kStepDepth) - step;
        Pace finishing{unfinished_.times(), steps};
        multiply_2x2(scratch_.codes_of(now) + (step - first_step) * PanelScratch::kStepCodes,
                     x_.tiles_at(panel_.block_begin + b, step), steps, [&] {
                       finishing.step([&] { unfinished_.finish_rows(); });
                       fetching.step([&] {
                         __builtin_prefetch(fetch.at, 0, 2);
                         fetch.at += kTileRowBytes;
                       });
                       decoding.step([&] { decode(next, following, part++); });
                     });
        float* products = scratch_.products_of(multiplied_++);
        store_products(products);
        unfinished_ = unfinished(piece, now, b, k, end, products);
        k = end;
      }
    }
  }

  Unfinished<kQType, kDType> unfinished(const Piece& piece, std::int64_t number, std::int64_t b, std::int64_t k,
                                        std::int64_t end, const float* products) const {
    const std::int64_t block = panel_.block_begin + b, group = is_affine_qtype(kQType) ? k / a_.group_size : 0;
    const std::int64_t in_piece = is_affine_qtype(kQType) ? group - piece.k_begin / a_.group_size : 0;
    return {&a_,
            products,
            scratch_.sums_of(piece.pair % kPanelPairs, b / 2),
            &scratch_.outputs_of(number),
            in_piece,
            x_.sums_at(block, group),
            x_.groups * kTileRows,
            k == 0,
            end == a_.K,
            block * kTileRows,
            0};
  }

  /// Tiles 0 to 3 are sums, 4 and 5 codes, 6 and 7 activations. Codes stay in the L1 cache, activations pass it by.
  template <class Meanwhile>
  static void multiply_2x2(const std::uint8_t* w, const std::uint8_t* x, std::int64_t steps, Meanwhile meanwhile) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (std::int64_t s = 0; s < steps; ++s) {
      _tile_loadd(4, w, kTileRowBytes);
      _tile_loadd(5, w + kTileBytes, kTileRowBytes);
      for (int t = 0; t < kTerms<kDType>; ++t) {
        _tile_stream_loadd(6, x, kTileRowBytes);
        _tile_dpbf16ps(0, 6, 4);
        _tile_dpbf16ps(1, 6, 5);
        _tile_stream_loadd(7, x + kTileBytes, kTileRowBytes);
        _tile_dpbf16ps(2, 7, 4);
        _tile_dpbf16ps(3, 7, 5);
        x += TileActivations::kNextTerm;
      }
      w += PanelScratch::kStepCodes;
      meanwhile();
    }
  }
  static void store_products(float* out) {
    _tile_stored(0, out, kTileRowBytes);
    _tile_stored(1, out + PanelScratch::kTileFloats, kTileRowBytes);
    _tile_stored(2, out + 2 * PanelScratch::kTileFloats, kTileRowBytes);
    _tile_stored(3, out + 3 * PanelScratch::kTileFloats, kTileRowBytes);
  }

  const MatmulArgs& a_;
  const TileActivations x_;
  const PanelScratch scratch_;
  const std::int64_t depth_;
  Panel panel_{};
  std::int64_t decoded_ = 0, multiplied_ = 0;  ///< pieces, groups
  Unfinished<kQType, kDType> unfinished_{};
};

/// Rows are divided evenly among panels, by pairs of blocks.
inline std::int64_t panel_blocks(const MatmulArgs& a) {
  const std::int64_t blocks = ceil_div(a.M, kTileRows);
  return round_up(ceil_div(blocks, ceil_div(blocks, kPanelBlocks)), 2);
}

template <QType kQType>
std::int64_t panel_pairs(const MatmulArgs& a) {
  return ceil_div(Channels<kQType>::tiles(a), 2);
}

template <QType kQType>
std::int64_t amx_panel_unit_count(const MatmulArgs& a) {
  return panel_pairs<kQType>(a) * ceil_div(ceil_div(a.M, kTileRows), panel_blocks(a));
}

/// Units are pairs of channels with a panel of rows; those of the same rows that a thread takes at once share readings
/// of the activations.
template <QType kQType, DType kDType>
void amx_panel_run(const MatmulArgs& a, void* memory, std::int64_t begin, std::int64_t end) {
  const TileScope tiles;
  PanelRunner<kQType, kDType> runner(a, memory);
  const std::int64_t pairs = panel_pairs<kQType>(a), blocks = ceil_div(a.M, kTileRows), together = panel_blocks(a);
  while (begin < end) {
    const std::int64_t pair = begin % pairs, block = begin / pairs * together;
    const std::int64_t count = smaller(end - begin, pairs - pair);
    runner.run({block, smaller(together, blocks - block), pair, count});
    begin += count;
  }
}

/// Groups end where steps do.
template <std::int64_t kFewestRows>
bool amx_panel_supports(const MatmulArgs& a) {
  return a.M >= kFewestRows && !a.special_values && (a.groups == 1 || a.group_size % kStepDepth == 0);
}

template <QType kQType, DType kDType, std::int64_t kFewestRows>
constexpr MatmulKernel kAmxPanelKernel = {
    "panel",
    amx_panel_supports<kFewestRows>,
    amx_workspace_bytes<kQType, kDType>,
    amx_prepare<kQType, kDType>,
    amx_serves_values<kQType, kDType>,
    amx_panel_scratch_bytes,
    amx_panel_unit_count<kQType>,
    amx_panel_run<kQType, kDType>,
};

}  // namespace
}  // namespace quanto::kernels
