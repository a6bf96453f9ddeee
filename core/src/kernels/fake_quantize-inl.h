// Quantization and dequantization in one go, for rows whose scale was searched in the row itself: no code is stored,
// and the division by the scale becomes a multiplication.
//
// The results are those of quantize-inl.h, bit for bit: products of bfloat16 values as there. Where a product of
// float32 ones lies within 8 units in the last place of a rounding boundary, its vector is divided after all. Rows with
// scales that may overflow or vanish on the way, and float16, take the long way: quantize, then dequantize.
#pragma once

#include "kernels/quantize-inl.h"

namespace quanto::kernels {
namespace {

/// Whether |v - code| comes within 8 units in the last place of 1/2, for |v| up to 128.
inline IntLanes is_near_half(FloatLanes v, FloatLanes code) {
  const FloatLanes distance = float_from_bits(bits_from_float(v - code) & kMagnitudeMask);
  return distance > 0.5f - 0x1p-14f;
}

/// round(values / scale), the quotient rounded to F first.
template <class F>
inline FloatLanes nearest_integers(FloatLanes values, FloatLanes scale, FloatLanes reciprocal) {
  const FloatLanes product = F::round_finite(values * reciprocal);
  FloatLanes code = round_half_even(product);
  if constexpr (kIsFloat32<F>) {
    if (any(is_near_half(product, code))) code = round_half_even(values / scale);
  }
  return code;
}

/// Finite values of at most the format's largest magnitude, rounded to it as codes would round them.
template <QType kQType>
inline FloatLanes round_to_float8(FloatLanes v) {
  constexpr Float8Format kFormat = float8_format(kQType);
  constexpr int kShift = 23 - kFormat.mantissa_bits;
  const BitLanes bits = bits_from_float(v);
  const BitLanes sign = bits & ~kMagnitudeMask, magnitude = bits & kMagnitudeMask;
  const BitLanes normal = (magnitude + ((1u << (kShift - 1)) - 1) + (magnitude >> kShift & 1u)) & ~((1u << kShift) - 1);
  // Below the smallest normal number: multiples of the unit in the last place of this power of two.
  const FloatLanes anchor = broadcast(float_from_bits(power_of_two(23 + 1 - kFormat.bias - kFormat.mantissa_bits)));
  const BitLanes small = bits_from_float((float_from_bits(magnitude) + anchor) - anchor);
  const BitLanes rounded = exceeds(magnitude, power_of_two(1 - kFormat.bias) - 1) ? normal : small;
  if constexpr (kFormat.nan_is_negative_zero) return float_from_bits(rounded == 0u ? rounded : rounded | sign);
  return float_from_bits(rounded | sign);
}

/// Whether a quotient is within 8 units in the last place of a boundary: numbers of few mantissa bits.
template <QType kQType>
inline IntLanes is_near_float8_boundary(FloatLanes v) {
  constexpr std::uint32_t kMask = (1u << (22 - float8_format(kQType).mantissa_bits)) - 1;
  return ((bits_from_float(v) + 8u) & kMask) <= 16u;
}

/// The values of the codes that values / scale would get.
template <class F, QType kQType>
inline FloatLanes symmetric_code_values(FloatLanes values, FloatLanes scale, FloatLanes reciprocal) {
  if constexpr (kQType == QType::qint8) {
    return clamp(nearest_integers<F>(values, scale, reciprocal), -128.0f, 127.0f);
  } else {
    constexpr float kMax = largest_code<kQType>();
    FloatLanes quotient = F::round_finite(values * reciprocal);
    if constexpr (kIsFloat32<F>) {
      if (any(is_near_float8_boundary<kQType>(quotient))) quotient = values / scale;
    }
    return round_to_float8<kQType>(clamp(quotient, -kMax, kMax));
  }
}

template <class F, QType kQType>
void fake_quantize_symmetric_rows(const QuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  const QuantizeArgs a = args;
  for (std::int64_t r = begin; r < end; ++r) {
    const FloatLanes scale = broadcast_first<F>(scales_of_row<F>(a, r));
    if (!has_reciprocal<F>(scale[0])) {
      quantize_symmetric_rows<F, kQType, false>(a, r, r + 1);
      dequantize_symmetric_rows<F, kQType, false>(a, r, r + 1);
      continue;
    }
    const FloatLanes reciprocal = 1.0f / scale;
    const char* values = static_cast<const char*>(a.values) + r * a.cols * F::kBytes;
    char* out = static_cast<char*>(a.out) + r * a.cols * F::kBytes;
    for_chunks(a.cols, [=](std::int64_t i, auto chunk) {
      const FloatLanes value = F::load(values + i * F::kBytes, chunk.count);
      const FloatLanes code = symmetric_code_values<F, kQType>(value, scale, reciprocal);
      F::store(out + i * F::kBytes, F::round_finite(scale * code), chunk.count);
    });
  }
}

/// From codes 0 .. 15 of one scale and shift to their values.
template <class F, bool kLookedUp = (kLookupBits >= 4)>
struct AffineCodeValues {
  FloatLanes scale, shift;

  FloatLanes operator()(FloatLanes code) const { return F::round_finite(F::round_finite(scale * code) - shift); }
};

/// All of them fit one vector; the lowest bits of a number as large as this anchor are the code.
template <class F>
struct AffineCodeValues<F, true> {
  AffineCodeValues(FloatLanes scale, FloatLanes shift)
      : values(affine_values<F, ShiftKind::floating>(to_float(lane_numbers()), scale, shift)) {}

  FloatLanes values;

  template <int kBits = 4>
  FloatLanes operator()(FloatLanes code) const {
    return lookup<kBits>(values, bits_from_float(code + 0x1.8p23f));
  }
};

template <class F>
void fake_quantize_affine_rows(const QuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  const QuantizeArgs a = args;
  const float high = a.qtype == QType::qint4 ? 15.0f : 3.0f;
  for (std::int64_t r = begin; r < end; ++r) {
    const FieldRow<F, ShiftKind::floating> row(a, r);
    if (!has_reciprocal<F>(row.scale[0])) {
      quantize_affine_rows<F, ShiftKind::floating, false, 1>(a, r, r + 1);
      dequantize_affine_rows<F, ShiftKind::floating, false, 1>(a, r, r + 1);
      continue;
    }
    const FloatLanes scale = row.scale, shift = row.shift, reciprocal = 1.0f / scale;
    const AffineCodeValues<F> code_values{scale, shift};
    const char* values = static_cast<const char*>(a.values) + row.offset;
    char* out = static_cast<char*>(a.out) + row.offset;
    for_chunks(a.cols, [=](std::int64_t i, auto chunk) {
      const FloatLanes sum = F::round_finite(F::load(values + i * F::kBytes, chunk.count) + shift);
      const FloatLanes code = clamp(nearest_integers<F>(sum, scale, reciprocal), 0.0f, high);
      F::store(out + i * F::kBytes, code_values(code), chunk.count);
    });
  }
}

void fake_quantize_symmetric(const QuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  for_dtype(args, [&](auto f) -> RowsFunction {
    using F = decltype(f);
    switch (args.qtype) {
      case QType::qfloat8_e4m3fn:
        return fake_quantize_symmetric_rows<F, QType::qfloat8_e4m3fn>;
      case QType::qfloat8_e4m3fnuz:
        return fake_quantize_symmetric_rows<F, QType::qfloat8_e4m3fnuz>;
      case QType::qfloat8_e5m2:
        return fake_quantize_symmetric_rows<F, QType::qfloat8_e5m2>;
      default:
        return fake_quantize_symmetric_rows<F, QType::qint8>;
    }
  })(args, begin, end);
}
void fake_quantize_affine(const QuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  for_dtype(args, [](auto f) -> RowsFunction { return fake_quantize_affine_rows<decltype(f)>; })(args, begin, end);
}

}  // namespace
}  // namespace quanto::kernels
