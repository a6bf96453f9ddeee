// Conversions between float32 and every stored number format, exact and without branches. Each is written once, for
// one number or for a vector of them: `cond ? a : b`, the operators and __builtin_bit_cast mean the same for the
// compiler's vector types, lane by lane. Internal linkage and no std: the per-ISA units include this file too.
//
// Subnormal codes are decoded and encoded with normal float32 numbers only, so that results do not depend on a flush to
// zero that the host program may have switched on.
#pragma once

#include <cstdint>

#include "quanto/types.h"

namespace quanto {

/// The types that belong to T, one 32-bit lane or a vector of lanes: bit patterns, signed integers and floats.
template <class T>
struct LaneTypes {
  typedef std::uint32_t Bits __attribute__((vector_size(sizeof(T))));
  typedef std::int32_t Int __attribute__((vector_size(sizeof(T))));
  typedef float Float __attribute__((vector_size(sizeof(T))));
};
struct OneLane {
  using Bits = std::uint32_t;
  using Int = std::int32_t;
  using Float = float;
};
template <>
struct LaneTypes<std::uint32_t> : OneLane {};
template <>
struct LaneTypes<std::int32_t> : OneLane {};
template <>
struct LaneTypes<float> : OneLane {};

template <class T>
using BitsOf = typename LaneTypes<T>::Bits;
template <class T>
using IntOf = typename LaneTypes<T>::Int;
template <class T>
using FloatOf = typename LaneTypes<T>::Float;

constexpr std::uint32_t kMagnitudeMask = 0x7fffffffu;
constexpr std::uint32_t kInfinityBits = 0x7f800000u;

template <class Bits>
static inline constexpr FloatOf<Bits> float_from_bits(Bits bits) {
  return __builtin_bit_cast(FloatOf<Bits>, bits);
}
template <class Float>
static inline constexpr BitsOf<Float> bits_from_float(Float value) {
  return __builtin_bit_cast(BitsOf<Float>, value);
}

/// bits > limit for patterns without a sign bit; signed, because SSE2 and AVX2 compare nothing else.
template <class Bits>
static inline constexpr auto exceeds(Bits bits, std::uint32_t limit) {
  return __builtin_bit_cast(IntOf<Bits>, bits) > static_cast<std::int32_t>(limit);
}

template <class Float>
static inline auto is_nan(Float value) {
  return value != value;
}
template <class Float>
static inline auto is_inf(Float value) {
  return (bits_from_float(value) & kMagnitudeMask) == kInfinityBits;
}

// 16-bit formats. Their codes travel in the low half of 32-bit lanes.

template <class Bits>
static inline FloatOf<Bits> decode_bfloat16(Bits code) {
  return float_from_bits(code << 16);
}

/// Rounds half to even; a NaN becomes 0x7fc0 with its sign.
template <class Float>
static inline BitsOf<Float> encode_bfloat16(Float value) {
  using Bits = BitsOf<Float>;
  const Bits bits = bits_from_float(value);
  const Bits rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const Bits nan = (bits >> 16 & 0x8000u) | 0x7fc0u;
  return exceeds(bits & kMagnitudeMask, kInfinityBits) ? nan : rounded;
}

template <class Bits>
static inline FloatOf<Bits> decode_float16(Bits code) {
  const Bits sign = (code & 0x8000u) << 16;
  const Bits magnitude = (code & 0x7fffu) << 13;
  const Bits normal = magnitude + 0x38000000u;
  // m * 2^-24 = 2^-14 * (1 + m / 1024) - 2^-14
  const Bits subnormal = bits_from_float(float_from_bits(magnitude + 0x38800000u) - 0x1p-14f);
  const Bits infinity = magnitude + 0x70000000u;
  const Bits quiet = exceeds(magnitude, 0x0f800000u) ? infinity | 0x00400000u : infinity;
  const Bits finite = exceeds(magnitude, 0x007fffffu) ? normal : subnormal;
  return float_from_bits(sign | (exceeds(magnitude, 0x0f7fffffu) ? quiet : finite));
}

/// Rounds half to even; overflow gives infinity, a NaN keeps its sign and the upper bits of its payload.
template <class Float>
static inline BitsOf<Float> encode_float16(Float value) {
  using Bits = BitsOf<Float>;
  const Bits bits = bits_from_float(value);
  const Bits sign = bits >> 16 & 0x8000u;
  const Bits magnitude = bits & kMagnitudeMask;
  // Below 2^-14 results are multiples of 2^-24, the unit in the last place of 0.5: the addition rounds to one of them.
  const Bits small = bits_from_float(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  const Bits normal = (magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13;
  const Bits nan = 0x7e00u | (magnitude >> 13 & 0x03ffu);
  const Bits finite = exceeds(magnitude, 0x387fffffu) ? normal : small;
  // From 65520 on, rounding carries into the exponent of infinity.
  const Bits bounded = exceeds(magnitude, 0x477fefffu) ? Bits{} + 0x7c00u : finite;
  return sign | (exceeds(magnitude, kInfinityBits) ? nan : bounded);
}

static inline float bfloat16_to_float(std::uint16_t code) { return decode_bfloat16(std::uint32_t{code}); }
static inline float float16_to_float(std::uint16_t code) {
#if defined(__F16C__)
  return static_cast<float>(__builtin_bit_cast(_Float16, code));  // a single instruction
#else
  return decode_float16(std::uint32_t{code});
#endif
}
static inline std::uint16_t float_to_bfloat16(float value) {
  return static_cast<std::uint16_t>(encode_bfloat16(value));
}
static inline std::uint16_t float_to_float16(float value) { return static_cast<std::uint16_t>(encode_float16(value)); }

// float8: one description per format, from which both directions follow.

struct Float8Format {
  int mantissa_bits;
  int bias;
  std::uint32_t max_code;       ///< magnitude bits of the largest finite value
  std::uint32_t overflow_code;  ///< magnitude bits of what larger values become: infinity, else NaN
  std::uint32_t nan_code;
  bool nan_is_negative_zero;  ///< the "uz" formats: no negative zero, its code is the only NaN
};

constexpr Float8Format kE4M3FN{3, 7, 0x7e, 0x7f, 0x7f, false};
constexpr Float8Format kE4M3FNUZ{3, 8, 0x7f, 0x80, 0x80, true};
constexpr Float8Format kE5M2{2, 15, 0x7b, 0x7c, 0x7f, false};

static inline constexpr const Float8Format& float8_format(QType qtype) {
  return qtype == QType::qfloat8_e4m3fn ? kE4M3FN : qtype == QType::qfloat8_e4m3fnuz ? kE4M3FNUZ : kE5M2;
}

/// The bits of 2^(exponent) as a float32.
constexpr std::uint32_t power_of_two(int exponent) { return static_cast<std::uint32_t>(127 + exponent) << 23; }

/// The value of the code in the low byte of each lane.
template <class Bits>
static inline constexpr FloatOf<Bits> decode_float8(const Float8Format& f, Bits code) {
  const int shift = 23 - f.mantissa_bits;
  const Bits sign = (code & 0x80u) << 24;
  const Bits field = code & 0x7fu;
  const Bits magnitude = field << shift;
  const Bits normal = magnitude + static_cast<std::uint32_t>(127 - f.bias) * (1u << 23);
  // As for float16: a fraction of the smallest normal number, made by adding and removing that number.
  const std::uint32_t smallest = power_of_two(1 - f.bias);
  const Bits subnormal = bits_from_float(float_from_bits(magnitude + smallest) - float_from_bits(smallest));
  const Bits finite = sign | (exceeds(magnitude, 0x007fffffu) ? normal : subnormal);
  const Bits nan = 0x7fc00000u | (f.nan_is_negative_zero ? Bits{} : sign);
  if (f.nan_is_negative_zero) return float_from_bits(code == f.nan_code ? nan : finite);
  const bool has_infinity = f.overflow_code != f.nan_code;
  const Bits infinity = sign | kInfinityBits;
  const Bits special = has_infinity ? (field == f.overflow_code ? infinity : nan) : nan;
  return float_from_bits(exceeds(field, f.max_code) ? special : finite);
}

/// The nearest code, ties to even; the sign is dropped where the format has no negative zero.
template <class Float>
static inline BitsOf<Float> encode_float8(const Float8Format& f, Float value) {
  using Bits = BitsOf<Float>;
  const int shift = 23 - f.mantissa_bits;
  const Bits bits = bits_from_float(value);
  const Bits sign = bits >> 24 & 0x80u;
  const Bits magnitude = bits & kMagnitudeMask;
  // Subnormal results are multiples of 2^(1 - bias - mantissa_bits): added to the power of two whose unit in the last
  // place that is, the value rounds to one of them.
  const std::uint32_t anchor = power_of_two(23 + 1 - f.bias - f.mantissa_bits);
  const Bits small = bits_from_float(float_from_bits(magnitude) + float_from_bits(anchor)) - anchor;
  const std::uint32_t half = (1u << (shift - 1)) - 1;
  const std::uint32_t rebias = static_cast<std::uint32_t>(127 - f.bias) << 23;
  const Bits normal = (magnitude + half + (magnitude >> shift & 1u) - rebias) >> shift;
  const Bits finite = exceeds(magnitude, power_of_two(1 - f.bias) - 1) ? normal : small;
  // The first value that rounds past the largest finite one: half a step beyond it, and a tie goes to the even code.
  const std::uint32_t past = ((f.max_code << shift) + rebias) + half + (f.max_code & 1u ? 1u : 2u);
  const Bits bounded = exceeds(magnitude, past - 1) ? Bits{} + f.overflow_code : finite;
  const Bits code = exceeds(magnitude, kInfinityBits) ? Bits{} + f.nan_code : bounded;
  const Bits with_sign = sign | code;
  return f.nan_is_negative_zero ? (code == 0u ? code : with_sign) : with_sign;
}

static inline constexpr float float8_to_float(const Float8Format& f, std::uint8_t code) {
  return decode_float8(f, std::uint32_t{code});
}
static inline std::uint8_t float_to_float8(const Float8Format& f, float value) {
  return static_cast<std::uint8_t>(encode_float8(f, value));
}

}  // namespace quanto
