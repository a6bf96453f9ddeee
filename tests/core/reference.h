// Number formats and quantization formulas written from their definitions, in double precision and one element at a
// time: what the tests of codecs, scales and quantizers compare with. Nothing here uses the core's conversions.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "quanto/qtype.h"
#include "quanto/types.h"

namespace quanto::testing {

/// A binary floating-point format: p bits of significand (with the implicit one) and the exponents of its numbers.
struct Format {
  int precision;
  int min_exponent;  ///< of the smallest normal number, 2^min_exponent
  double max;
};

inline Format format_of(DType dtype) {
  switch (dtype) {
    case DType::bfloat16:
      return {8, -126, std::ldexp(255.0 / 128.0, 127)};
    case DType::float16:
      return {11, -14, 65504.0};
    default:
      return {24, -126, static_cast<double>(std::numeric_limits<float>::max())};
  }
}

/// `value` rounded half to even to the format, infinity where that passes the largest number.
inline double round_to(const Format& f, double value) {
  if (!std::isfinite(value) || value == 0) return value;
  int exponent = 0;
  std::frexp(value, &exponent);  // value = m * 2^exponent, 0.5 <= |m| < 1
  const int unit = std::max(exponent - 1, f.min_exponent) - (f.precision - 1);
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(value, -unit)), unit);
  return std::fabs(rounded) > f.max ? std::copysign(std::numeric_limits<double>::infinity(), value) : rounded;
}

/// One step of tensor arithmetic in `dtype`: computed in float32, then rounded.
inline double step(DType dtype, double exact) {
  return round_to(format_of(dtype), round_to(format_of(DType::float32), exact));
}

/// The value of a code of `exponent_bits` and `mantissa_bits`, infinities and NaN not considered.
inline double ieee_value(std::uint32_t code, int exponent_bits, int mantissa_bits, int bias) {
  const int exponent = static_cast<int>(code >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double fraction = std::ldexp(static_cast<double>(code & ((1u << mantissa_bits) - 1)), -mantissa_bits);
  const double magnitude = exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1.0 + fraction, exponent - bias);
  return (code >> (exponent_bits + mantissa_bits) & 1u) != 0 ? -magnitude : magnitude;
}

inline double float8_value(QType qtype, std::uint32_t code) {
  constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  switch (qtype) {
    case QType::qfloat8_e4m3fn:
      return (code & 0x7f) == 0x7f ? kNaN : ieee_value(code, 4, 3, 7);
    case QType::qfloat8_e4m3fnuz:
      return code == 0x80 ? kNaN : ieee_value(code, 4, 3, 8);
    default:
      if ((code & 0x7f) == 0x7c) return code == 0x7c ? kInfinity : -kInfinity;
      return (code & 0x7f) > 0x7c ? kNaN : ieee_value(code, 5, 2, 15);
  }
}

/// The finite code nearest to a value within the finite range, found by looking at all of them; ties to the even code.
inline std::uint8_t nearest_float8(QType qtype, double value) {
  const std::uint32_t sign = std::signbit(value) ? 0x80u : 0u;
  std::uint32_t best = 0;
  double best_distance = std::numeric_limits<double>::infinity();
  for (std::uint32_t magnitude = 0; magnitude < 0x80; ++magnitude) {
    const double candidate = float8_value(qtype, magnitude);
    if (!std::isfinite(candidate)) continue;
    const double distance = std::fabs(candidate - std::fabs(value));
    if (distance < best_distance || (distance == best_distance && magnitude % 2 == 0)) {
      best = magnitude;
      best_distance = distance;
    }
  }
  const bool negative_zero = best == 0 && qtype == QType::qfloat8_e4m3fnuz;
  return static_cast<std::uint8_t>(negative_zero ? 0 : sign | best);
}

inline double clamped(double value, double low, double high) { return std::fmin(std::fmax(value, low), high); }

/// The code of an 8-bit qtype for finite values and a scale that is not zero.
inline std::uint8_t symmetric_code(DType dtype, QType qtype, double value, double scale) {
  const QTypeInfo& info = qtype_info(qtype);
  const double ratio = clamped(step(dtype, value / scale), info.qmin, info.qmax);
  if (info.is_floating_point) return nearest_float8(qtype, ratio);
  return static_cast<std::uint8_t>(static_cast<std::int8_t>(std::nearbyint(ratio)));
}

/// The code of a 2- or 4-bit qtype, where no step overflows.
inline std::uint8_t affine_code(DType dtype, QType qtype, ShiftKind kind, double value, double scale, double shift) {
  const double high = (1 << qtype_info(qtype).bits) - 1;
  const double code = kind == ShiftKind::floating ? std::nearbyint(step(dtype, step(dtype, value + shift) / scale))
                                                  : std::nearbyint(step(dtype, value / scale)) + shift;
  return static_cast<std::uint8_t>(clamped(code, 0, high));
}

inline double affine_value(DType dtype, ShiftKind kind, double code, double scale, double shift) {
  if (kind == ShiftKind::integer) return step(dtype, scale * (code - shift));
  return step(dtype, step(dtype, scale * code) - shift);
}

}  // namespace quanto::testing
