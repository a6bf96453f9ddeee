// The kernel for few rows on AMX, where the time goes into reading the weights: decode a few codes of 16 stripes to
// tiles that stay in the L1 cache, and multiply them at once. Each byte of weights comes from memory once.
//
// Codes are multiplied as they are, exactly: bfloat16 holds them all. Activations are sums of bfloat16 terms, each a
// column of a tile of its own: bfloat16 numbers are their own only term, a float16 number is the sum of two and a
// float32 number of three, exactly, because each takes the upper 8 bits of what the ones before it left. So one
// instruction serves up to 16 rows, or fewer rows of wider types. Scales and shifts meet float32 sums, as in
// few_rows-inl.h; a row's sums are added up in the order of K, whatever the other rows are.
//
// Channels are the rows of a tile, 16 at a time, so that codes need no transposition. Stripe s of packed codes, K
// bytes, holds the channels s, s + stripes, ...; each of its fields goes to a tile of its own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx_activations-inl.h"
#include "kernels/amx_codes-inl.h"
#include "kernels/amx_panel-inl.h"
#include "kernels/amx_tiles-inl.h"
#include "kernels/args-inl.h"
#include "kernels/bf16_codes-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/few_rows-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/transpose-inl.h"

namespace quanto::kernels {
namespace {

/// y(m, n) and the channels after it, from their sums.
inline void store_row(const MatmulArgs& a, std::int64_t m, std::int64_t n, FloatLanes sums, const float* scales,
                      int count) {
  FloatLanes y = sums * load<FloatLanes>(scales, kLanes);
  if (a.row_scale != nullptr) y *= broadcast(row_scale(a, m));
  if (a.bias != nullptr) y += load_floats(a.bias, a.y_dtype, n, count);
  store_floats(a.y, a.y_dtype, m * a.N + n, y, count);
}

constexpr std::int64_t kChunkCodes = 64;  ///< bytes of a stripe that are decoded at once: two tiles of each field
constexpr std::int64_t kChunkSteps = kChunkCodes / kStepDepth;
/// How far ahead of their use codes are fetched, in bytes of each stripe, to the L2 cache: in the L1 cache 16 stripes
/// whose distance is a multiple of 4096 bytes share their sets, and would push out the decoded tiles.
constexpr std::int64_t kTileFetchAhead = 1024;
constexpr std::int64_t kTileFloats = kTileRows * kLanes;

// Activations.

/// What prepare() leaves for run(): the terms of the activations as columns of tiles, a row's terms beside each other;
/// tiles are as narrow as powers of two allow and lie in blocks of up to 16 columns. Beside them the sums of groups,
/// those of a row in the column of its first term, repeated up to 16 lanes; and whether a block's values are of
/// magnitudes whose terms and products the instruction does not take for zero.
struct TileColumns {
  std::uint8_t* tiles;
  float* sums;
  bool* plain;
  std::int64_t terms, count, width, blocks, steps, groups;

  TileColumns(const MatmulArgs& a, bool affine, int terms_each)
      : tiles(static_cast<std::uint8_t*>(a.workspace)),
        terms(terms_each),
        count(a.M * terms_each),
        width(narrowest(count)),
        blocks(ceil_div(count, width)),
        steps(ceil_div(a.K, kChunkCodes) * kChunkSteps),
        groups(affine ? a.groups : 0) {
    sums = reinterpret_cast<float*>(tile_at(blocks, 0));
    plain = reinterpret_cast<bool*>(sums_at(blocks, 0));
  }

  static std::int64_t narrowest(std::int64_t columns) {
    std::int64_t width = 1;
    while (width < columns && width < kLanes) width *= 2;
    return width;
  }
  std::size_t bytes() const {
    return static_cast<std::size_t>(reinterpret_cast<std::uint8_t*>(plain + blocks) - tiles);
  }
  std::int64_t row_bytes() const { return 4 * width; }
  std::uint8_t* tile_at(std::int64_t block, std::int64_t step) const {
    return tiles + (block * steps + step) * kTileRows * row_bytes();
  }
  float* sums_at(std::int64_t block, std::int64_t group) const { return sums + (block * groups + group) * kLanes; }
};

template <QType kQType, DType kDType>
TileColumns tile_columns(const MatmulArgs& a) {
  return TileColumns(a, is_affine_qtype(kQType), kTerms<kDType>);
}

/// Term t of 32 activations from `index` on, of which `count` exist, as words in their order.
template <DType kDType>
inline __m512i load_term(const MatmulArgs& a, std::int64_t index, std::int64_t count, int t, BitLanes& odd) {
  if constexpr (kDType == DType::bfloat16) {
    const __m512i words = load_bf16(a.x, index, count);
    if (!all_plain(words)) odd = ~BitLanes{};
    return words;
  }
  FloatLanes x[2];
  for (int i = 0; i < 2; ++i) {
    x[i] = load_remaining<kDType>(a.x, index + i * kLanes, count - i * kLanes);
    odd |= not_plain(x[i]);
  }
  const Parted pairs = part(x[0], x[1]);
  FloatLanes first = pairs.even, second = pairs.odd;
  for (int i = 0;; ++i) {
    const BitLanes low = bits_from_float(first) & 0xffff0000u, high = bits_from_float(second) & 0xffff0000u;
    if (i == t) return (__m512i)(low >> 16 | high);
    first -= float_from_bits(low);
    second -= float_from_bits(high);
  }
}

/// A chunk of a column: pairs of neighbours along K, in the order in which decoding leaves codes.
struct ColumnChunk {
  __m512i of[kChunkSteps];
};

template <QType kQType, DType kDType>
inline ColumnChunk load_column(const MatmulArgs& a, std::int64_t column, std::int64_t k, BitLanes& odd) {
  const std::int64_t index = column / kTerms<kDType> * a.x_stride + k;
  const int t = static_cast<int>(column % kTerms<kDType>);
  const __m512i first = load_term<kDType>(a, index, a.K - k, t, odd);
  const __m512i second = load_term<kDType>(a, index + kStepDepth, a.K - k - kStepDepth, t, odd);
  if constexpr (is_affine_qtype(kQType)) return {{first, second}};
  return {{_mm512_shuffle_i64x2(first, second, 0x88), _mm512_shuffle_i64x2(first, second, 0xdd)}};
}

template <QType kQType, DType kDType>
inline void prepare_columns(const MatmulArgs& a, const TileColumns& prepared, std::int64_t block) {
  const std::int64_t first = block * prepared.width, count = smaller(prepared.count - first, prepared.width);
  BitLanes odd{};
  for (std::int64_t step = 0; step < prepared.steps; step += kChunkSteps) {
    ColumnChunk columns[kTileRows] = {};
    for (std::int64_t c = 0; c < count; ++c) {
      columns[c] = load_column<kQType, kDType>(a, first + c, step * kStepDepth, odd);
    }
    for (int s = 0; s < kChunkSteps; ++s) {
      std::uint8_t* tile = prepared.tile_at(block, step + s);
      if (prepared.width == 1) {
        store(tile, (BitLanes)columns[0].of[s], kLanes);
        continue;
      }
      __m512i rows[kTileRows];
      for (int c = 0; c < kTileRows; ++c) rows[c] = columns[c].of[s];
      transpose_16x16(rows);
      const int width = static_cast<int>(prepared.width);
      for (const __m512i& row : rows) {
        store(tile, (BitLanes)row, width);
        tile += prepared.row_bytes();
      }
    }
  }
  prepared.plain[block] = !any((IntLanes)odd);
  for (std::int64_t group = 0; group < prepared.groups; ++group) {
    float* sums = prepared.sums_at(block, group);
    for (std::int64_t c = 0; c < kLanes; ++c) {
      const std::int64_t column = first + c;
      const bool has_sum = c < count && column % prepared.terms == 0;
      sums[c] = c >= prepared.width ? sums[c - prepared.width]
                : has_sum ? sum_of<FloatDots<kQType>, kDType>(a, column / prepared.terms, group * a.group_size,
                                                              (group + 1) * a.group_size)
                          : 0.0f;
    }
  }
}

/// Blocks are prepared by whoever has their first row.
template <QType kQType, DType kDType>
void amx_rows_prepare(const MatmulArgs& a, std::int64_t begin, std::int64_t end) {
  const TileColumns prepared = tile_columns<kQType, kDType>(a);
  for (std::int64_t block = 0; block < prepared.blocks; ++block) {
    const std::int64_t m = block * prepared.width / prepared.terms;
    if (begin <= m && m < end) prepare_columns<kQType, kDType>(a, prepared, block);
  }
}

template <QType kQType, DType kDType>
bool amx_rows_serves_values(const MatmulArgs& a) {
  const TileColumns prepared = tile_columns<kQType, kDType>(a);
  return all_set(prepared.plain, prepared.blocks);
}

// Codes.

/// Bytes 32 h to 32 h + 31 of a vector, each twice.
struct TwiceIndex {
  alignas(64) std::uint8_t of[2][64];
  constexpr TwiceIndex() : of() {
    for (int i = 0; i < 128; ++i) of[i / 64][i % 64] = static_cast<std::uint8_t>(i / 2);
  }
};
constexpr TwiceIndex kTwiceIndex{};

/// The two bytes of a code's bfloat16 value, the upper one where bit 5 of the index is set. The code has kBits from bit
/// kFirst on; what other bits hold does not matter. Lookups of bytes take one cycle, those of words two.
template <int kBits, int kFirst>
struct PackedByteTable {
  alignas(64) std::uint8_t values[64];
  constexpr PackedByteTable() : values() {
    for (int i = 0; i < 64; ++i) {
      const std::uint16_t value = bf16_of_code<QType::qint8>(i >> kFirst & ((1 << kBits) - 1));
      values[i] = static_cast<std::uint8_t>(i < 32 ? value : value >> 8);
    }
  }
};
template <int kBits, int kFirst>
constexpr PackedByteTable<kBits, kFirst> kPackedByteTable;

template <int kBits, int kFirst>
QUANTO_INLINE void store_looked_up(__m512i index, std::uint8_t* out) {
  _mm512_store_si512(out, _mm512_permutexvar_epi8(index, _mm512_load_si512(kPackedByteTable<kBits, kFirst>.values)));
}

/// 64 bytes of a stripe to its row of the tiles of a chunk: those of the first step, field after field, then those of
/// the second.
template <QType kQType>
QUANTO_INLINE void decode_row(__m512i codes, std::uint8_t* out) {
  constexpr int kFields = Channels<kQType>::kFields;
  if constexpr (!is_affine_qtype(kQType)) {
    const Bf16Halves halves = decode_to_bf16<kQType>(codes);
    _mm512_store_si512(out, halves.of[0]);
    _mm512_store_si512(out + kTileBytes, halves.of[1]);
  } else {
    constexpr int kMerge = 0xe2;  // b ? a : c
    const __m512i upper = _mm512_set1_epi16(0x2000), chosen = _mm512_set1_epi8(0x1f);
    for (int s = 0; s < kChunkSteps; ++s, out += kFields * kTileBytes) {
      const __m512i twice = _mm512_permutexvar_epi8(_mm512_load_si512(kTwiceIndex.of[s]), codes);
      const __m512i high = _mm512_ternarylogic_epi32(_mm512_srli_epi16(twice, 4), chosen, upper, kMerge);
      const __m512i low = _mm512_ternarylogic_epi32(twice, chosen, upper, kMerge);
      if constexpr (kQType == QType::qint4) {
        store_looked_up<4, 0>(low, out);
        store_looked_up<4, 0>(high, out + kTileBytes);
      } else {
        store_looked_up<2, 0>(low, out);
        store_looked_up<2, 2>(low, out + kTileBytes);
        store_looked_up<2, 0>(high, out + 2 * kTileBytes);
        store_looked_up<2, 2>(high, out + 3 * kTileBytes);
      }
    }
  }
}

// Sums.

template <int kFields>
inline void multiply_step(const std::uint8_t* codes, const std::uint8_t* x, std::int64_t x_row_bytes) {
  _tile_loadd(6, x, x_row_bytes);
  _tile_loadd(4, codes, kTileRowBytes);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (kFields > 1) {
    _tile_loadd(5, codes + kTileBytes, kTileRowBytes);
    _tile_dpbf16ps(1, 5, 6);
  }
  if constexpr (kFields > 2) {
    _tile_loadd(4, codes + 2 * kTileBytes, kTileRowBytes);
    _tile_dpbf16ps(2, 4, 6);
    _tile_loadd(5, codes + 3 * kTileBytes, kTileRowBytes);
    _tile_dpbf16ps(3, 5, 6);
  }
}

/// The sums of products of each field in memory, those of a channel beside each other.
template <int kFields>
struct FieldTiles {
  static void store(float* to, std::int64_t row_bytes) {
    _tile_stored(0, to, row_bytes);
    if constexpr (kFields > 1) _tile_stored(1, to + kTileFloats, row_bytes);
    if constexpr (kFields > 2) {
      _tile_stored(2, to + 2 * kTileFloats, row_bytes);
      _tile_stored(3, to + 3 * kTileFloats, row_bytes);
    }
  }
  static void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
};

/// The scales of 16 channels for a group.
struct TileScales {
  float scale[kTileRows];
  float minus_offset[kTileRows];
};

/// sums += scale * products - offset * (sum of x), for `width` columns of 16 channels.
inline void add_scaled_columns(const float* products, const TileScales& scales, const float* x_sums, std::int64_t width,
                               bool first, float* sums) {
  const auto x = load<FloatLanes>(x_sums, kLanes);
  const auto add = [&](std::int64_t i, FloatLanes scale, FloatLanes minus_offset) {
    FloatLanes sum = first ? FloatLanes{} : load<FloatLanes>(sums + i * kLanes, kLanes);
    sum = multiply_add(minus_offset, x, sum);
    sum = multiply_add(scale, load<FloatLanes>(products + i * kLanes, kLanes), sum);
    store(sums + i * kLanes, sum, kLanes);
  };
  if (width == kLanes) {
    QUANTO_UNROLL for (int i = 0; i < kTileRows; ++i) {
      add(i, broadcast(scales.scale[i]), broadcast(scales.minus_offset[i]));
    }
    return;
  }
  const auto scale = (__m512)load<FloatLanes>(scales.scale, kLanes);
  const auto minus_offset = (__m512)load<FloatLanes>(scales.minus_offset, kLanes);
  __m512i channel = _mm512_srl_epi32((__m512i)lane_numbers(), _mm_cvtsi32_si128(__builtin_ctzll(width)));
  for (std::int64_t i = 0; i < width; ++i) {
    add(i, (FloatLanes)_mm512_permutexvar_ps(channel, scale), (FloatLanes)_mm512_permutexvar_ps(channel, minus_offset));
    channel = _mm512_add_epi32(channel, _mm512_set1_epi32(static_cast<int>(kLanes / width)));
  }
}

// Units. One is 16 stripes.

/// A thread's memory: two chunks of decoded codes, products that wait for their scales, and the sums and scales of a
/// unit.
template <QType kQType>
struct TileScratch {
  static constexpr int kFields = Channels<kQType>::kFields;
  static constexpr std::int64_t kChunkBytes = kChunkSteps * kFields * kTileBytes;
  static constexpr std::int64_t kUnitFloats = kFields * kTileFloats;
  std::uint8_t* codes;
  float* products;  ///< of two groups
  float* sums;
  TileScales* scales;
  std::int64_t blocks, groups;

  TileScratch(const TileColumns& columns, void* memory)
      : codes(static_cast<std::uint8_t*>(memory)),
        products(reinterpret_cast<float*>(codes + 2 * kChunkBytes)),
        sums(products + 2 * kUnitFloats),
        scales(reinterpret_cast<TileScales*>(sums + columns.blocks * kUnitFloats)),
        blocks(columns.blocks),
        groups(columns.groups) {}

  std::size_t bytes() const {
    return static_cast<std::size_t>(reinterpret_cast<std::uint8_t*>(scales_of(kFields)) - codes);
  }
  std::uint8_t* chunk(std::int64_t c) const { return codes + c % 2 * kChunkBytes; }
  float* products_of(std::int64_t group) const { return products + group % 2 * kUnitFloats; }
  float* sums_of(std::int64_t block) const { return sums + block * kUnitFloats; }
  TileScales* scales_of(int field) const { return scales + field * groups; }
};

template <QType kQType, DType kDType>
std::size_t amx_rows_scratch_bytes(const MatmulArgs& a) {
  return TileScratch<kQType>(tile_columns<kQType, kDType>(a), nullptr).bytes();
}

template <QType kQType>
std::int64_t amx_rows_unit_count(const MatmulArgs& a) {
  return ceil_div(Channels<kQType>::stripes(a), kTileRows);
}

/// Vectors of groups, one for each of `channels` channels, to vectors of channels, one for each group.
template <class Load>
QUANTO_INLINE void store_by_group(std::int64_t channels, int groups, Load load_groups, float* out) {
  __m512i rows[kTileRows];
  if (channels == kTileRows) {
    QUANTO_UNROLL for (int c = 0; c < kTileRows; ++c) rows[c] = (__m512i)load_groups(c);
  } else {
    for (int c = 0; c < kTileRows; ++c) rows[c] = (__m512i)(c < channels ? load_groups(c) : FloatLanes{});
  }
  transpose_16x16(rows);
  for (int j = 0; j < groups; ++j) {
    store(out + j * static_cast<std::int64_t>(sizeof(TileScales) / sizeof(float)), (FloatLanes)rows[j], kLanes);
  }
}

/// The scales of a unit, group by group; with floating shifts, if so, and scales of a type that is known.
template <QType kQType, bool kFloating, DType kScaleDType>
__attribute__((flatten)) void read_scales_of(const MatmulArgs& a, std::int64_t unit,
                                             const TileScratch<kQType>& scratch) {
  const std::int64_t stripe = unit * kTileRows, stripes = Channels<kQType>::stripes(a);
  const std::int64_t channels = smaller(kTileRows, stripes - stripe);
  for (int f = 0; f < Channels<kQType>::kFields; ++f) {
    TileScales* out = scratch.scales_of(f);
    for_chunks(a.groups, [&](std::int64_t group, auto chunk) {
      const auto row = [&](std::int64_t c) { return (f * stripes + stripe + c) * a.groups + group; };
      store_by_group(
          channels, chunk.count, [&](std::int64_t c) { return load_floats(a.scale, kScaleDType, row(c), chunk.count); },
          out[group].scale);
      store_by_group(
          channels, chunk.count,
          [&](std::int64_t c) {
            return kFloating ? -load_floats(a.shift, kScaleDType, row(c), chunk.count)
                             : -scale_offsets(a, row(c), chunk.count).offset;
          },
          out[group].minus_offset);
    });
  }
}

template <QType kQType, DType kScaleDType>
inline void read_scales_of(const MatmulArgs& a, std::int64_t unit, const TileScratch<kQType>& scratch) {
  a.shift_kind == ShiftKind::floating ? read_scales_of<kQType, true, kScaleDType>(a, unit, scratch)
                                      : read_scales_of<kQType, false, kScaleDType>(a, unit, scratch);
}

template <QType kQType>
inline void read_unit_scales(const MatmulArgs& a, std::int64_t unit, const TileScratch<kQType>& scratch) {
  switch (a.scale_dtype) {
    case DType::float32:
      return read_scales_of<kQType, DType::float32>(a, unit, scratch);
    case DType::bfloat16:
      return read_scales_of<kQType, DType::bfloat16>(a, unit, scratch);
    case DType::float16:
      return read_scales_of<kQType, DType::float16>(a, unit, scratch);
  }
}

/// The codes of a unit.
struct UnitCodes {
  const std::uint8_t* first;
  std::int64_t stripes;  ///< up to 16
};

/// The first codes of a unit that no unit before it has asked for. Units come a few at a time, so this takes a tenth
/// off.
template <QType kQType>
inline void fetch_first_codes(const MatmulArgs& a, std::int64_t unit) {
  const std::int64_t first = unit * kTileRows, last = smaller(first + kTileRows, Channels<kQType>::stripes(a));
  for (std::int64_t k = 0; k < smaller(kTileFetchAhead, a.K); k += kChunkCodes) {
    for (std::int64_t s = first; s < last; ++s) __builtin_prefetch(a.w + s * a.K + k, 0, 2);
  }
}

/// A chunk of all stripes, while later ones are fetched. Instructions stay in this order, stripe by stripe: mixed by
/// the compiler they take a fifth longer.
template <QType kQType, bool kWhole>
inline void decode_chunk(const MatmulArgs& a, const UnitCodes& unit, std::int64_t k, std::uint8_t* out) {
  const std::uint8_t* codes = unit.first + k;
  const std::int64_t left = a.K - k, ahead = kTileFetchAhead;
  // The next unit begins where the last stripe ends; what lies behind the weights is not fetched.
  std::uintptr_t fetched = reinterpret_cast<std::uintptr_t>(codes) +
                           static_cast<std::uintptr_t>(left > ahead ? ahead : (kTileRows - 1) * a.K + ahead);
  const auto decode = [&](std::int64_t s) __attribute__((always_inline)) {
    __builtin_prefetch(reinterpret_cast<const void*>(fetched), 0, 2);
    decode_row<kQType>(kWhole ? _mm512_loadu_si512(codes) : load_bytes(codes, left), out + s * kTileRowBytes);
    asm volatile("" ::: "memory");
    codes += a.K;
    fetched += static_cast<std::uintptr_t>(a.K);
  };
  if (kWhole && unit.stripes == kTileRows) {
    QUANTO_UNROLL for (int s = 0; s < kTileRows; ++s) decode(s);
  } else {
    for (std::int64_t s = 0; s < unit.stripes; ++s) decode(s);
  }
}

/// Where a block of columns is in its groups: products of a group wait for their scales while the next one is
/// multiplied.
template <QType kQType>
struct GroupWalk {
  static constexpr int kFields = Channels<kQType>::kFields;
  const TileColumns& columns;
  const TileScratch<kQType>& scratch;
  std::int64_t block, steps_each;
  std::int64_t group = 0, steps_left = steps_each;

  /// After a step.
  void advance() {
    if (--steps_left > 0) return;
    if (group > 0) scale(group - 1);
    FieldTiles<kFields>::store(scratch.products_of(group), columns.row_bytes());
    FieldTiles<kFields>::clear();
    ++group;
    steps_left = steps_each;
  }
  /// After the last one.
  void finish() const { scale(group - 1); }

 private:
  void scale(std::int64_t g) const {
    asm volatile("" ::: "memory");  // the intrinsics do not tell the compiler what tiles wrote
    for (int f = 0; f < kFields; ++f) {
      add_scaled_columns(scratch.products_of(g) + f * kTileFloats, scratch.scales_of(f)[g], columns.sums_at(block, g),
                         columns.width, g == 0, scratch.sums_of(block) + f * kTileFloats);
    }
  }
};

/// A unit with one block of columns. A chunk is multiplied after the next one is decoded: tiles cannot be loaded before
/// their stores are through.
template <QType kQType>
inline void multiply_unit(const MatmulArgs& a, const TileColumns& columns, const TileScratch<kQType>& scratch,
                          const UnitCodes& unit, std::int64_t block) {
  constexpr int kFields = Channels<kQType>::kFields;
  using Tiles = FieldTiles<kFields>;
  const std::int64_t chunks = ceil_div(a.K, kChunkCodes);
  // Of 8-bit codes both steps of a chunk have some of either half.
  const std::uint8_t *x = columns.tile_at(block, 0), *end = columns.tile_at(block, ceil_div(a.K, kStepDepth));
  GroupWalk<kQType> groups{columns, scratch, block, ceil_div(a.group_size, kStepDepth)};
  Tiles::clear();
  for (std::int64_t c = 0; c <= chunks; ++c) {
    if (c < a.K / kChunkCodes) {
      decode_chunk<kQType, true>(a, unit, c * kChunkCodes, scratch.chunk(c));
    } else if (c < chunks) {
      decode_chunk<kQType, false>(a, unit, c * kChunkCodes, scratch.chunk(c));
    }
    asm volatile("" ::: "memory");  // the intrinsics do not tell the compiler what tiles read
    for (int s = 0; c > 0 && s < kChunkSteps; ++s) {
      if (is_affine_qtype(kQType) && x == end) break;
      multiply_step<kFields>(scratch.chunk(c - 1) + s * kFields * kTileBytes, x, columns.row_bytes());
      x += kTileRows * columns.row_bytes();
      if constexpr (is_affine_qtype(kQType)) groups.advance();
    }
  }
  if constexpr (is_affine_qtype(kQType)) {
    groups.finish();
  } else {
    Tiles::store(scratch.sums_of(block), columns.row_bytes());
    asm volatile("" ::: "memory");
  }
}

/// The results of a unit: columns as vectors of its channels, field by field.
template <QType kQType, DType kDType>
inline void store_tile_unit(const MatmulArgs& a, const TileColumns& columns, const TileScratch<kQType>& scratch,
                            std::int64_t unit, FloatLanes* of_column) {
  const std::int64_t stripes = Channels<kQType>::stripes(a), stripe = unit * kTileRows;
  const int count = static_cast<int>(smaller(kTileRows, stripes - stripe));
  for (int f = 0; f < Channels<kQType>::kFields; ++f) {
    for (std::int64_t block = 0; block < columns.blocks; ++block) {
      const float* sums = scratch.sums_of(block) + f * kTileFloats;
      __m512i rows[kTileRows];
      for (std::int64_t c = 0; c < kTileRows; ++c) {
        rows[c] = (__m512i)load<FloatLanes>(sums + c * columns.width, static_cast<int>(columns.width));
      }
      transpose_16x16(rows);
      for (std::int64_t c = 0; c < columns.width; ++c) of_column[block * columns.width + c] = (FloatLanes)rows[c];
    }
    const std::int64_t n = f * stripes + stripe;
    float scales[kTileRows];
    for (int c = 0; c < kTileRows; ++c) {
      scales[c] = is_affine_qtype(kQType) || c >= count ? 1.0f : channel_scale(a, n + c);
    }
    for (std::int64_t m = 0; m < a.M; ++m) {
      FloatLanes sum = of_column[m * columns.terms];
      for (std::int64_t t = 1; t < columns.terms; ++t) sum += of_column[m * columns.terms + t];
      if constexpr (kTermsLoseInfinity<kQType, kDType>) {
        for (int c = 0; any(is_nan(sum)) && c < count; ++c) {
          if (is_nan(sum[c])) sum[c] = multiply_one<kQType>(a, m, n + c);
        }
      }
      store_row(a, m, n, sum, scales, count);
    }
  }
}

/// Tiles as wide as blocks of columns; those of codes, 4 and 5, are whole.
inline TilePalette palette_of(const TileColumns& columns) {
  TilePalette palette;
  for (int tile = 0; tile < 8; ++tile) {
    if (tile != 4 && tile != 5) palette.row_bytes[tile] = static_cast<std::uint16_t>(columns.row_bytes());
  }
  return palette;
}

template <QType kQType, DType kDType, std::int64_t kMostRows>
void amx_rows_run(const MatmulArgs& a, void* memory, std::int64_t begin, std::int64_t end) {
  const TileColumns columns = tile_columns<kQType, kDType>(a);
  const TileScratch<kQType> scratch(columns, memory);
  const TileScope tiles(palette_of(columns));
  FloatLanes of_column[round_up(kMostRows * kTerms<kDType>, kLanes)];
  fetch_first_codes<kQType>(a, begin);
  for (std::int64_t unit = begin; unit < end; ++unit) {
    const std::int64_t stripe = unit * kTileRows;
    const UnitCodes codes{a.w + stripe * a.K, smaller(kTileRows, Channels<kQType>::stripes(a) - stripe)};
    if constexpr (is_affine_qtype(kQType)) read_unit_scales<kQType>(a, unit, scratch);
    for (std::int64_t block = 0; block < columns.blocks; ++block) {
      multiply_unit<kQType>(a, columns, scratch, codes, block);
    }
    store_tile_unit<kQType, kDType>(a, columns, scratch, unit, of_column);
  }
}

/// Groups end where steps do, and channels that share bytes lie side by side.
template <QType kQType, std::int64_t kFewestRows, std::int64_t kMostRows>
bool amx_rows_supports(const MatmulArgs& a) {
  return kFewestRows <= a.M && a.M <= kMostRows && !a.special_values && a.N % Channels<kQType>::kFields == 0 &&
         (a.groups == 1 || a.group_size % kStepDepth == 0);
}

template <QType kQType, DType kDType>
std::size_t amx_rows_workspace_bytes(const MatmulArgs& a) {
  return tile_columns<kQType, kDType>(a).bytes();
}

template <QType kQType, DType kDType, std::int64_t kFewestRows, std::int64_t kMostRows>
constexpr MatmulKernel kAmxRowsKernel = {
    "few_rows_tiles",
    amx_rows_supports<kQType, kFewestRows, kMostRows>,
    amx_rows_workspace_bytes<kQType, kDType>,
    amx_rows_prepare<kQType, kDType>,
    amx_rows_serves_values<kQType, kDType>,
    amx_rows_scratch_bytes<kQType, kDType>,
    amx_rows_unit_count<kQType>,
    amx_rows_run<kQType, kDType, kMostRows>,
};

}  // namespace
}  // namespace quanto::kernels
