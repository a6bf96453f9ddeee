// The kernel for many rows on AMX: decode the codes of some channels to bfloat16 tiles, multiply all rows with them,
// and scale the sums. Codes are multiplied as they are, exactly: bfloat16 holds them all, and activations are sums of
// bfloat16 terms (amx_activations-inl.h). Scales and shifts meet float32 sums, as in few_rows-inl.h.
//
// Channels are the rows of a tile, so that codes need no transposition; rows of activations are its columns. A unit is
// kUnitTiles tiles of 16 channels. Those of packed codes take their channels from the fields of the same bytes.
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

constexpr std::int64_t kPanelBlocks = 32;  // 512 rows of activations share one decoding
constexpr std::int64_t kPanelUnits = 8;    // 512 channels share one reading of the activations

/// What is asked for while other things are multiplied, a few cache lines with each step, because more would hold up
/// the loads of that step: the first `lines_each` lines of some rows.
struct Ahead {
  const std::uint8_t* row;
  std::int64_t apart;  ///< bytes from a row to the next
  std::int64_t lines_each, rows;
  std::int64_t each_step;  ///< lines to ask for at a time
  std::int64_t line = 0;

  Ahead(const std::uint8_t* first, std::int64_t row_stride, std::int64_t row_bytes, std::int64_t row_count,
        std::int64_t steps)
      : row(first),
        apart(row_stride),
        lines_each(ceil_div(row_bytes, kTileRowBytes)),
        rows(lines_each == 0 ? 0 : row_count),
        each_step(ceil_div(rows * lines_each, steps)) {}

  void step() {
    for (std::int64_t i = 0; i < each_step && rows > 0; ++i) {
      __builtin_prefetch(row + line * kTileRowBytes, 0, 2);
      if (++line < lines_each) continue;
      line = 0;
      row += apart;
      --rows;
    }
  }
};

// Multiplying. Tiles 0 to 3 are sums, 4 and 5 codes, 6 and 7 activations.

/// A pair of tiles of channels with a pair of blocks of rows.
template <int kTermCount>
inline void multiply_2x2(const std::uint8_t* w, const std::uint8_t* x, std::int64_t steps, Ahead& w_ahead,
                         Ahead& x_ahead) {
  for (std::int64_t s = 0; s < steps; ++s) {
    w_ahead.step();
    x_ahead.step();
    _tile_loadd(4, w, kTileRowBytes);
    _tile_loadd(5, w + kTileBytes, kTileRowBytes);
    for (int t = 0; t < kTermCount; ++t) {
      _tile_loadd(6, x, kTileRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(2, 5, 6);
      _tile_loadd(7, x + kTileBytes, kTileRowBytes);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
      x += TileActivations::kNextTerm;
    }
    w += kTilePairBytes;
  }
}

/// The four tiles of a unit with one block of rows.
template <int kTermCount>
inline void multiply_4x1(const std::uint8_t* w, const std::uint8_t* x, std::int64_t steps) {
  for (std::int64_t s = 0; s < steps; ++s) {
    for (int t = 0; t < kTermCount; ++t) {
      _tile_loadd(6, x, kTileRowBytes);
      _tile_loadd(4, w, kTileRowBytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, w + kTileBytes, kTileRowBytes);
      _tile_dpbf16ps(1, 5, 6);
      _tile_loadd(4, w + kCodePairBytes, kTileRowBytes);
      _tile_dpbf16ps(2, 4, 6);
      _tile_loadd(5, w + kCodePairBytes + kTileBytes, kTileRowBytes);
      _tile_dpbf16ps(3, 5, 6);
      x += TileActivations::kNextTerm;
    }
    w += kTilePairBytes;
  }
}

/// The tiles 0 to 3 in memory.
struct FourTiles {
  float* of[4];

  void load() const {
    _tile_loadd(0, of[0], kTileRowBytes);
    _tile_loadd(1, of[1], kTileRowBytes);
    _tile_loadd(2, of[2], kTileRowBytes);
    _tile_loadd(3, of[3], kTileRowBytes);
  }
  void store() const {
    _tile_stored(0, of[0], kTileRowBytes);
    _tile_stored(1, of[1], kTileRowBytes);
    _tile_stored(2, of[2], kTileRowBytes);
    _tile_stored(3, of[3], kTileRowBytes);
  }
  static void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
};

/// sums += scale * products - offset * (sum of x), for a tile.
inline void add_scaled(const float* products, const float* scale, const float* minus_offset, const float* x_sums,
                       bool first, float* sums) {
  const auto x = load<FloatLanes>(x_sums, kLanes);
  QUANTO_UNROLL for (std::int64_t row = 0; row < kTileRows; ++row) {
    auto sum = first ? FloatLanes{} : load<FloatLanes>(sums + row * kLanes, kLanes);
    sum = multiply_add(broadcast(minus_offset[row * UnitScales::kGroups]), x, sum);
    sum = multiply_add(broadcast(scale[row * UnitScales::kGroups]), load<FloatLanes>(products + row * kLanes, kLanes),
                       sum);
    store(sums + row * kLanes, sum, kLanes);
  }
}

// Panels.

/// A thread's memory: decoded codes, scales, products that wait for them, and the sums of a panel, tile by tile.
struct AmxScratch {
  std::uint8_t* codes;
  float* products;
  UnitScales* scales;
  float* sums;
  std::int64_t blocks;

  AmxScratch(const MatmulArgs& a, void* memory)
      : codes(static_cast<std::uint8_t*>(memory)), blocks(smaller(kPanelBlocks, ceil_div(a.M, kTileRows))) {
    products = reinterpret_cast<float*>(codes + kPanelUnits * kUnitCodeBytes);
    scales = reinterpret_cast<UnitScales*>(products + 4 * kTileRows * kLanes);
    sums = reinterpret_cast<float*>(scales + kPanelUnits);
  }

  std::size_t bytes() const {
    return static_cast<std::size_t>(reinterpret_cast<std::uint8_t*>(sums_of(kPanelUnits, 0, 0)) - codes);
  }
  std::uint8_t* codes_of(std::int64_t unit) const { return codes + unit * kUnitCodeBytes; }
  float* sums_of(std::int64_t unit, std::int64_t tile, std::int64_t block) const {
    return sums + ((unit * kUnitTiles + tile) * blocks + block) * kTileRows * kLanes;
  }
  float* products_of(std::int64_t tile) const { return products + tile * kTileRows * kLanes; }
};

std::size_t amx_panel_scratch_bytes(const MatmulArgs& a) { return AmxScratch(a, nullptr).bytes(); }

template <QType kQType>
std::int64_t amx_panel_unit_count(const MatmulArgs& a) {
  return Channels<kQType>::units(a) * ceil_div(a.M, kPanelBlocks * kTileRows);
}

/// What is multiplied together: units of channels, blocks of rows, columns.
struct Panel {
  std::int64_t unit_begin, units;
  std::int64_t block_begin, blocks;
  std::int64_t k_begin, k_end;
};

/// kRowTiles = 2: the tiles `tile` and tile + 1 of a unit with the blocks b and b + 1; 1: all its tiles with block b.
template <QType kQType, DType kDType, int kRowTiles>
inline void multiply_tiles(const MatmulArgs& a, const Panel& p, const AmxScratch& scratch, std::int64_t unit, int tile,
                           std::int64_t b, Ahead& w_ahead, Ahead& x_ahead) {
  const TileActivations prepared = tile_activations<kQType, kDType>(a);
  const UnitScales& scales = scratch.scales[unit];
  FourTiles sums, products;
  for (int i = 0; i < 4; ++i) {
    sums.of[i] = kRowTiles == 2 ? scratch.sums_of(unit, tile + i / 2, b + i % 2) : scratch.sums_of(unit, i, b);
    products.of[i] = scratch.products_of(i);
  }
  const auto multiply = [&](std::int64_t k, std::int64_t end) {
    const std::int64_t step = k / kStepDepth, steps = ceil_div(end, kStepDepth) - step;
    const std::uint8_t* w = tile_row(scratch.codes_of(unit), step - p.k_begin / kStepDepth, tile, 0);
    const std::uint8_t* x = prepared.tiles_at(p.block_begin + b, step);
    kRowTiles == 2 ? multiply_2x2<kTerms<kDType>>(w, x, steps, w_ahead, x_ahead)
                   : multiply_4x1<kTerms<kDType>>(w, x, steps);
  };
  if constexpr (!is_affine_qtype(kQType)) {
    p.k_begin == 0 ? FourTiles::clear() : sums.load();
    multiply(p.k_begin, p.k_end);
    sums.store();
  } else {
    const std::int64_t first_group = p.k_begin / a.group_size;
    for (std::int64_t k = p.k_begin; k < p.k_end;) {
      const std::int64_t group = k / a.group_size, end = smaller((group + 1) * a.group_size, p.k_end);
      FourTiles::clear();
      multiply(k, end);
      products.store();
      for (int i = 0; i < 4; ++i) {
        const std::int64_t channel = (kRowTiles == 2 ? tile + i / 2 : i) * kTileRows;
        const std::int64_t block = p.block_begin + b + (kRowTiles == 2 ? i % 2 : 0);
        add_scaled(products.of[i], &scales.scale[channel][group - first_group],
                   &scales.minus_offset[channel][group - first_group], prepared.sums_at(block, group), k == 0,
                   sums.of[i]);
      }
      k = end;
    }
  }
}

/// The codes of a panel's channels that are decoded next.
template <QType kQType>
inline Ahead codes_after(const MatmulArgs& a, const Panel& p, std::int64_t steps) {
  const std::int64_t first = p.unit_begin * Channels<kQType>::kUnitStripes;
  const std::int64_t stripes = smaller(p.units * Channels<kQType>::kUnitStripes, Channels<kQType>::stripes(a) - first);
  return {a.w + first * a.K + p.k_end, a.K, smaller(kPanelSteps * kStepDepth, a.K - p.k_end), stripes, steps};
}

template <QType kQType, DType kDType>
inline void multiply_panel(const MatmulArgs& a, const Panel& p, const AmxScratch& scratch) {
  for (std::int64_t unit = 0; unit < p.units; ++unit) {
    decode_unit<kQType>(a, p.unit_begin + unit, p.k_begin, p.k_end, scratch.codes_of(unit));
    if constexpr (is_affine_qtype(kQType)) {
      read_scales<kQType>(a, p.unit_begin + unit, p.k_begin, p.k_end, scratch.scales[unit]);
    }
  }
  const TileActivations prepared = tile_activations<kQType, kDType>(a);
  const std::int64_t step = p.k_begin / kStepDepth, steps = ceil_div(p.k_end, kStepDepth) - step;
  const std::int64_t pair_steps = 2 * p.units * steps;
  Ahead w_ahead = codes_after<kQType>(a, p, ceil_div(p.blocks, 2) * pair_steps);
  for (std::int64_t b = 0; b < p.blocks; b += 2) {
    const bool last = b + 2 >= p.blocks;
    const std::uint8_t* x_next =
        last ? prepared.tiles_at(p.block_begin, step + steps) : prepared.tiles_at(p.block_begin + b + 2, step);
    const bool none = last && p.k_end == a.K;
    Ahead x_ahead(x_next, 0, none ? 0 : steps * prepared.terms * TileActivations::kNextTerm, 1, pair_steps);
    for (std::int64_t unit = 0; unit < p.units; ++unit) {
      if (b + 1 == p.blocks) {
        multiply_tiles<kQType, kDType, 1>(a, p, scratch, unit, 0, b, w_ahead, x_ahead);
      } else {
        multiply_tiles<kQType, kDType, 2>(a, p, scratch, unit, 0, b, w_ahead, x_ahead);
        multiply_tiles<kQType, kDType, 2>(a, p, scratch, unit, 2, b, w_ahead, x_ahead);
      }
    }
  }
}

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

/// y(m, n) and what lies right of and below it, from a tile of sums, a channel in each row.
template <QType kQType, DType kDType>
inline void store_tile(const MatmulArgs& a, const float* sums, std::int64_t m, std::int64_t n, int channels) {
  __m512i rows[kTileRows];
  for (int c = 0; c < kTileRows; ++c) rows[c] = _mm512_load_si512(sums + c * kLanes);
  transpose_16x16(rows);
  FloatLanes scale = broadcast(1.0f), bias{};
  if constexpr (!is_affine_qtype(kQType)) {
    scale = a.scale_step == 0 ? broadcast(channel_scale(a, 0)) : load_floats(a.scale, a.scale_dtype, n, channels);
  }
  if (a.bias != nullptr) bias = load_floats(a.bias, a.y_dtype, n, channels);
  const std::int64_t count = smaller(kTileRows, a.M - m);
  for (std::int64_t r = 0; r < count; ++r) {
    auto sum = (FloatLanes)rows[r];
    if constexpr (kTermsLoseInfinity<kQType, kDType>) {
      for (int c = 0; any(is_nan(sum)) && c < channels; ++c) {
        if (is_nan(sum[c])) sum[c] = multiply_one<kQType>(a, m + r, n + c);
      }
    }
    FloatLanes y = sum * scale;
    if (a.row_scale != nullptr) y *= broadcast(row_scale(a, m + r));
    y += bias;
    channels == kLanes ? store_floats(a.y, a.y_dtype, (m + r) * a.N + n, y, kLanes)
                       : store_floats(a.y, a.y_dtype, (m + r) * a.N + n, y, channels);
  }
}

/// Stores the sums of one block of rows.
template <QType kQType, DType kDType>
inline void store_unit_block(const MatmulArgs& a, const Panel& p, const AmxScratch& scratch, std::int64_t unit,
                             std::int64_t b) {
  for (int tile = 0; tile < kUnitTiles; ++tile) {
    const auto channels = static_cast<int>(Channels<kQType>::count(a, p.unit_begin + unit, tile));
    if (channels == 0) continue;
    store_tile<kQType, kDType>(a, scratch.sums_of(unit, tile, b), (p.block_begin + b) * kTileRows,
                               Channels<kQType>::first(a, p.unit_begin + unit, tile), channels);
  }
}

template <QType kQType, DType kDType>
inline void run_panel(const MatmulArgs& a, Panel p, const AmxScratch& scratch) {
  for (p.k_begin = 0; p.k_begin < a.K; p.k_begin = p.k_end) {
    p.k_end = smaller(p.k_begin + kPanelSteps * kStepDepth, a.K);
    multiply_panel<kQType, kDType>(a, p, scratch);
  }
  for (std::int64_t b = 0; b < p.blocks; ++b) {
    for (std::int64_t unit = 0; unit < p.units; ++unit) store_unit_block<kQType, kDType>(a, p, scratch, unit, b);
  }
}

/// Units of the same rows that a thread takes at once are multiplied together.
template <QType kQType, DType kDType>
void amx_panel_run(const MatmulArgs& a, void* memory, std::int64_t begin, std::int64_t end) {
  const TileScope tiles;
  const AmxScratch scratch(a, memory);
  const std::int64_t units = Channels<kQType>::units(a), blocks = ceil_div(a.M, kTileRows);
  while (begin < end) {
    const std::int64_t unit = begin % units, block = begin / units * kPanelBlocks;
    const std::int64_t together = smaller(smaller(end - begin, units - unit), kPanelUnits);
    run_panel<kQType, kDType>(a, {unit, together, block, smaller(kPanelBlocks, blocks - block), 0, 0}, scratch);
    begin += together;
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
