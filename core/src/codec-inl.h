// Scalar conversions between float32 and every stored number format, exact and without branches so that loops over them
// vectorize. Internal linkage and no std: the per-ISA units include this file too.
#pragma once

#include <cstdint>

#include "quanto/types.h"

namespace quanto {

static inline float float_from_bits(std::uint32_t bits) { return __builtin_bit_cast(float, bits); }
static inline std::uint32_t bits_from_float(float value) { return __builtin_bit_cast(std::uint32_t, value); }

static inline float bfloat16_to_float(std::uint16_t bits) { return float_from_bits(std::uint32_t{bits} << 16); }

/// Rounds half to even; a NaN becomes 0x7fc0 with its sign.
static inline std::uint16_t float_to_bfloat16(float value) {
  const std::uint32_t bits = bits_from_float(value);
  const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const std::uint32_t nan = (bits >> 16 & 0x8000u) | 0x7fc0u;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}

static inline float float16_to_float(std::uint16_t bits) {
  const std::uint32_t sign = (std::uint32_t{bits} & 0x8000u) << 16;
  const std::uint32_t magnitude = (std::uint32_t{bits} & 0x7fffu) << 13;
  // Exact, subnormals included: the product only rebiases the exponent.
  const std::uint32_t finite = bits_from_float(float_from_bits(magnitude) * 0x1p112f);
  const std::uint32_t special = 0x7f800000u | magnitude;
  return float_from_bits(sign | (magnitude >= 0x0f800000u ? special : finite));
}

/// Rounds half to even; overflow gives infinity, a NaN becomes 0x7e00 with its sign.
static inline std::uint16_t float_to_float16(float value) {
  const std::uint32_t bits = bits_from_float(value);
  const std::uint32_t sign = bits >> 16 & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 results are multiples of 2^-24, the unit in the last place of 0.5: the addition rounds to one of them.
  const std::uint32_t small = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  // From 65520 on, the carry runs into the exponent of infinity.
  const std::uint32_t normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
  std::uint32_t code = magnitude < 0x38800000u ? small : normal;
  code = magnitude >= 0x47800000u ? 0x7c00u : code;
  code = magnitude > 0x7f800000u ? 0x7e00u : code;
  return static_cast<std::uint16_t>(sign | code);
}

/// The layout of a float8 format, from which both directions of its codec follow.
struct Float8Format {
  int mantissa_bits;
  int bias;
  std::uint32_t max_code;       ///< magnitude bits of the largest finite value
  std::uint32_t overflow_code;  ///< what larger values become
  std::uint32_t nan_code;
  bool nan_is_negative_zero;  ///< the "uz" formats: no negative zero, its code means NaN
};

constexpr Float8Format kE4M3FN{3, 7, 0x7e, 0x7f, 0x7f, false};
constexpr Float8Format kE4M3FNUZ{3, 8, 0x7f, 0x80, 0x80, true};
constexpr Float8Format kE5M2{2, 15, 0x7b, 0x7c, 0x7f, false};

static inline float float8_to_float(const Float8Format& f, std::uint8_t code) {
  const std::uint32_t sign = (std::uint32_t{code} & 0x80u) << 24;
  const std::uint32_t magnitude = std::uint32_t{code} & 0x7fu;
  const int shift = 23 - f.mantissa_bits;
  const float rebias = float_from_bits(static_cast<std::uint32_t>(127 + 127 - f.bias) << 23);
  const std::uint32_t finite = sign | bits_from_float(float_from_bits(magnitude << shift) * rebias);
  const std::uint32_t nan = f.nan_is_negative_zero ? 0x7fc00000u : (sign | 0x7fc00000u);
  const std::uint32_t special =
      f.max_code + 1 == f.overflow_code && f.overflow_code != f.nan_code && magnitude == f.overflow_code
          ? (sign | 0x7f800000u)
          : nan;
  const bool is_finite = f.nan_is_negative_zero ? code != 0x80u : magnitude <= f.max_code;
  return float_from_bits(is_finite ? finite : special);
}

/// Rounds half to even. The sign is dropped where the format has no negative zero.
static inline std::uint8_t float_to_float8(const Float8Format& f, float value) {
  const std::uint32_t bits = bits_from_float(value);
  const std::uint32_t sign = bits >> 24 & 0x80u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const int shift = 23 - f.mantissa_bits;
  // Subnormal results are multiples of 2^(1 - bias - mantissa_bits): added to the power of two whose unit in the last
  // place that is, the value rounds to one of them.
  const std::uint32_t anchor = static_cast<std::uint32_t>(127 + 23 + 1 - f.bias - f.mantissa_bits) << 23;
  const std::uint32_t small = bits_from_float(float_from_bits(magnitude) + float_from_bits(anchor)) - anchor;
  const std::uint32_t half = (1u << (shift - 1)) - 1;
  const std::uint32_t rebias = static_cast<std::uint32_t>(127 - f.bias) << 23;
  const std::uint32_t normal = (magnitude + half + (magnitude >> shift & 1u) - rebias) >> shift;
  const std::uint32_t smallest_normal = static_cast<std::uint32_t>(127 + 1 - f.bias) << 23;
  std::uint32_t code = magnitude < smallest_normal ? small : normal;
  code = code > f.max_code || magnitude >= 0x7f800000u ? f.overflow_code : code;
  code = magnitude > 0x7f800000u ? f.nan_code : code;
  if (f.nan_is_negative_zero) return static_cast<std::uint8_t>(code == 0 || code == 0x80u ? code : (sign | code));
  return static_cast<std::uint8_t>(sign | code);
}

static inline constexpr const Float8Format& float8_format(QType qtype) {
  return qtype == QType::qfloat8_e4m3fn ? kE4M3FN : qtype == QType::qfloat8_e4m3fnuz ? kE4M3FNUZ : kE5M2;
}

}  // namespace quanto
