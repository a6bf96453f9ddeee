// How the kernel for few rows (few_rows-inl.h) starts and ends a unit, a few stripes whose sums a thread holds in
// memory of its own: reads their scales, and stores their results. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/few_rows_prepare-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lane_sums-inl.h"
#include "kernels/lanes-inl.h"
#include "kernels/stripes-inl.h"

namespace quanto::kernels {
namespace {

/// A multiple of what is multiplied at once, whatever the number of rows.
template <class Dots>
constexpr std::int64_t kStripesPerUnit = kVectorBytes == 64 || is_affine_qtype(Dots::kQType) ? 8 : 24;
/// Of packed codes with short stripes, where what each unit costs by itself counts more: of a single row, though no
/// codes are fetched in the meantime, 0.86 to 0.96 of the time of 576 columns, but up to 1.08 of it of 1536 columns; of
/// more on Zen 4, which fetches those of the next unit, if there are units enough for the threads, 0.95 of the time of
/// 576 columns and two rows. Of 8-bit codes there, too: of stripes that are short for the number of rows, each of which
/// costs a unit as much again, with 576 columns 0.75 to 0.8 of the time; and of more rows than four, segments of whose
/// activations each unit reads from the L2 cache, whose bandwidth codes on their way there have to share: 0.88 of it.
template <class Dots>
constexpr std::int64_t kMostStripesPerUnit = kVectorBytes < 64               ? kStripesPerUnit<Dots>
                                             : is_affine_qtype(Dots::kQType) ? 16
                                                                             : 32;
template <class Dots>
constexpr std::int64_t stripes_per_unit(const MatmulArgs& a) {
  constexpr std::int64_t kMost = kMostStripesPerUnit<Dots>;
  const std::int64_t units_at_least = a.threads > 2 ? 4 * a.threads : 4;
  const bool fetched = a.cores == Cores::zen4 && stripes_of_units<Dots>(a) >= units_at_least * kMost;
  const bool more =
      is_affine_qtype(Dots::kQType) ? a.K <= 768 && (a.M == 1 || fetched) : fetched && (a.M > 4 || a.K <= 768 * a.M);
  return more ? kMost : kStripesPerUnit<Dots>;
}

/// A thread's memory: the sums of a unit, a vector for each (stripe, field, row), and its scales.
template <class Dots>
struct UnitScratch {
  FloatLanes* totals;
  float* scales;             ///< of (field, stripe, group), with the field's factor
  float* offsets;            ///< of (stripe, group) of one field, negated
  bool* maybe_nan;           ///< of each stripe, where codes are decoded without their NaN: whether to look for it
  std::uint8_t* straddling;  ///< the codes of a channel that straddles fields, of OneField
  std::int64_t rows, groups, stripes, straddling_bytes;

  UnitScratch(const MatmulArgs& a, void* memory)
      : totals(static_cast<FloatLanes*>(memory)),
        rows(padded_rows(a.M)),
        groups(PreparedRows<Dots>::kAffine ? a.groups : 0),
        stripes(stripes_per_unit<Dots>(a)),
        straddling_bytes(kIsOneField<Dots> ? a.K : 0) {
    scales = reinterpret_cast<float*>(totals + stripes * Dots::kFields * rows);
    offsets = scales + Dots::kFields * stripes * groups + kLanes;  // vectors end behind the last of either
    maybe_nan = reinterpret_cast<bool*>(offsets + stripes * groups + kLanes);
    straddling = reinterpret_cast<std::uint8_t*>(maybe_nan + stripes);
  }

  std::size_t bytes() const {
    const auto channels = static_cast<std::size_t>(stripes * Dots::kFields);
    const std::int64_t floats = stripes * (Dots::kFields + 1) * groups + 2 * kLanes;
    return channels * static_cast<std::size_t>(rows) * sizeof(FloatLanes) +
           static_cast<std::size_t>(floats) * sizeof(float) + static_cast<std::size_t>(stripes) * sizeof(bool) +
           static_cast<std::size_t>(straddling_bytes);
  }
  FloatLanes* totals_of(std::int64_t stripe, int field) const {
    return totals + (stripe * Dots::kFields + field) * rows;
  }
  float* scales_of(std::int64_t stripe, int field) const { return scales + (field * stripes + stripe) * groups; }
};

template <class Dots>
std::size_t few_rows_scratch_bytes(const MatmulArgs& a) {
  return UnitScratch<Dots>(a, nullptr).bytes();
}

/// Whether sums start with zeros, which registers have without memory.
template <class Dots>
constexpr bool kStartsWithZeros = !is_affine_qtype(Dots::kQType) && !SumsOf<Dots>::kIntegers;

/// What takes the centre of the codes out of a channel's sums of integers again.
template <class Dots>
inline FloatLanes start_of_sums(const float* x_sums) {
  IntLanes start{};
  start[0] = static_cast<std::int32_t>(static_cast<std::uint32_t>(-Dots::kCentre) *
                                       static_cast<std::uint32_t>(static_cast<std::int32_t>(x_sums[0])));
  return (FloatLanes)start;
}

/// Of n elements; `b` is filled up to whole vectors.
inline FloatLanes sum_of_products(const float* a, const float* b, std::int64_t n) {
  FloatLanes sum{};
  for_chunks(n, [&](std::int64_t i, auto chunk) {
    sum = multiply_add(load<FloatLanes>(a + i, chunk.count), load<FloatLanes>(b + i, kLanes), sum);
  });
  return sum;
}

/// Reads the scales of `count` groups, and returns what the sums of their activations are multiplied with.
template <class Dots>
QUANTO_INLINE FloatLanes read_scales(const MatmulArgs& a, std::int64_t row, int field, float* scales, int count) {
  const ScaleOffsets so = scale_offsets(a, row, count);
  store(scales, so.scale * Dots::field_factor(field), kLanes);
  return -so.offset;
}

/// The same for `count` channels of a unit from grouped row `row` on, whose groups fill vectors, and starts their sums
/// with what their shifts contribute. No vector has groups of two channels, so offsets stay in registers, as do the
/// sums of the rows that packed codes meet in this kernel most often, up to four.
template <class Dots, int kRows>
inline void start_channels_of_whole_vectors(const MatmulArgs& a, std::int64_t row, std::int64_t count, int field,
                                            const PreparedRows<Dots>& rows, const UnitScratch<Dots>& scratch) {
  float* scales = scratch.scales_of(0, field);
  for (std::int64_t stripe = 0, i = 0; stripe < count; ++stripe) {
    FloatLanes sums[kRows] = {};
    for (std::int64_t j = 0; j < a.groups; j += kLanes, i += kLanes) {
      const FloatLanes offsets = read_scales<Dots>(a, row + i, field, scales + i, kLanes);
      QUANTO_UNROLL for (int m = 0; m < kRows; ++m) {
        sums[m] = multiply_add(offsets, load<FloatLanes>(rows.group_sums(m) + j, kLanes), sums[m]);
      }
    }
    QUANTO_UNROLL for (int m = 0; m < kRows; ++m) scratch.totals_of(stripe, field)[m] = sums[m];
  }
}

/// The same for the channels of a unit whose codes are in one field, whatever their groups. The channels are
/// neighbours, so that what belongs to them is read through at once, however few groups each has.
template <class Dots>
inline void start_packed_channels(const MatmulArgs& a, std::int64_t first, std::int64_t count, int field,
                                  const PreparedRows<Dots>& rows, const UnitScratch<Dots>& scratch) {
  const std::int64_t row = (field * stripe_count<Dots>(a) + first) * a.groups;
  if (a.groups % kLanes == 0) {
    if (rows.rows == 1) return start_channels_of_whole_vectors<Dots, 1>(a, row, count, field, rows, scratch);
    if (rows.rows == 2) return start_channels_of_whole_vectors<Dots, 2>(a, row, count, field, rows, scratch);
    if (rows.rows == 3) return start_channels_of_whole_vectors<Dots, 3>(a, row, count, field, rows, scratch);
    if (rows.rows == 4) return start_channels_of_whole_vectors<Dots, 4>(a, row, count, field, rows, scratch);
  }
  float* scales = scratch.scales_of(0, field);
  for_chunks(count * a.groups, [&](std::int64_t i, auto chunk) {
    store(scratch.offsets + i, read_scales<Dots>(a, row + i, field, scales + i, chunk.count), kLanes);
  });
  for (std::int64_t stripe = 0; stripe < count; ++stripe) {
    for (std::int64_t m = 0; m < rows.rows; ++m) {
      scratch.totals_of(stripe, field)[m] =
          sum_of_products(scratch.offsets + stripe * a.groups, rows.group_sums(m), a.groups);
    }
  }
}

/// Starts the sums of the channels of a unit.
template <class Dots>
inline void start_channels(const MatmulArgs& a, std::int64_t first, std::int64_t count, const PreparedRows<Dots>& rows,
                           const UnitScratch<Dots>& scratch) {
  for (int field = 0; field < Dots::kFields; ++field) {
    if constexpr (is_affine_qtype(Dots::kQType)) {
      start_packed_channels<Dots>(a, first, count, field, rows, scratch);
    } else if constexpr (!kStartsWithZeros<Dots>) {
      for (std::int64_t stripe = 0; stripe < count; ++stripe) {
        for (std::int64_t m = 0; m < rows.rows; ++m) {
          scratch.totals_of(stripe, field)[m] = start_of_sums<Dots>(rows.group_sums(m));
        }
      }
    }
  }
  if constexpr (!is_affine_qtype(Dots::kQType)) {
    for (std::int64_t stripe = 0; stripe < count; ++stripe) scratch.maybe_nan[stripe] = false;
  }
}

/// The sums of channels in the stripes from `stripe` on, for row m. What lies beyond `count` is not for use.
template <class Dots>
inline FloatLanes sums_of_channels(const UnitScratch<Dots>& scratch, std::int64_t m, std::int64_t stripe, int field,
                                   int count) {
  const FloatLanes* first = scratch.totals_of(stripe, field) + m;
  const std::int64_t apart = Dots::kFields * scratch.rows;
  if constexpr (SumsOf<Dots>::kIntegers && !is_affine_qtype(Dots::kQType)) {
    const auto add = [](FloatLanes x, FloatLanes y) { return (FloatLanes)((BitLanes)x + (BitLanes)y); };
    return to_float((IntLanes)sums_of_lanes(first, apart, count, add));
  }
  return sums_of_lanes(first, apart, count, [](FloatLanes x, FloatLanes y) { return x + y; });
}

/// What the sums of `count` channels from n on are multiplied with. `maybe_nan` is set only where NaN codes have to be
/// looked for.
template <class Dots>
inline FloatLanes scales_of_channels(const MatmulArgs& a, std::int64_t n, int count, const bool* maybe_nan) {
  FloatLanes scales =
      a.scale_step == 0 ? broadcast(channel_scale(a, 0)) : load_floats(a.scale, a.scale_dtype, n, count);
  if constexpr (!Dots::kDecodesNan) {
    for (int i = 0; i < count; ++i) {
      if (maybe_nan[i] && has_nan_code<Dots::kQType>(a.w + (n + i) * a.K, a.K)) scales[i] = __builtin_nanf("");
    }
  }
  return scales;
}

/// The outputs of `count` channels from n on, the sums of which lie in the stripes of one field.
template <class Dots>
inline void store_channels(const MatmulArgs& a, std::int64_t n, std::int64_t count, int field,
                           const UnitScratch<Dots>& scratch) {
  for_chunks(count, [&](std::int64_t i, auto chunk) {
    FloatLanes scales{};
    if constexpr (!is_affine_qtype(Dots::kQType)) {
      scales = scales_of_channels<Dots>(a, n + i, chunk.count, scratch.maybe_nan + i);
    }
    for (std::int64_t m = 0; m < a.M; ++m) {
      FloatLanes y = sums_of_channels<Dots>(scratch, m, i, field, chunk.count);
      if constexpr (!is_affine_qtype(Dots::kQType)) y = y * Dots::field_factor(0) * scales;
      if (a.row_scale != nullptr) y *= broadcast(row_scale(a, m));
      if (a.bias != nullptr) y += load_floats(a.bias, a.y_dtype, n + i, chunk.count);
      store_floats(a.y, a.y_dtype, m * a.N + n + i, y, chunk.count);
    }
  });
}

}  // namespace
}  // namespace quanto::kernels
