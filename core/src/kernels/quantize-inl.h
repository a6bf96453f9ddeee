// The row kernels of quantize_table.h, written once as loops that the compiler vectorizes for the instruction set of
// the including unit. Only IEEE additions, multiplications and divisions and integer operations: the same bytes
// everywhere.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec-inl.h"
#include "kernels/quantize_table.h"

namespace quanto::kernels {
namespace {

constexpr std::uint32_t kMagnitude = 0x7fffffffu;
constexpr std::uint32_t kInfinity = 0x7f800000u;

// One trait per float dtype: how it is stored, and how a float32 result is rounded to it.
struct Float32 {
  using Stored = float;
  static float load(Stored v) { return v; }
  static Stored store(float v) { return v; }
  static float round(float v) { return v; }
  static constexpr std::uint32_t kMaxBits = 0x7f7fffffu;
};
struct BFloat16 {
  using Stored = std::uint16_t;
  static float load(Stored v) { return bfloat16_to_float(v); }
  static Stored store(float v) { return float_to_bfloat16(v); }
  static float round(float v) { return load(store(v)); }
  static constexpr std::uint32_t kMaxBits = 0x7f7f0000u;
};
struct Float16 {
  using Stored = std::uint16_t;
  static float load(Stored v) { return float16_to_float(v); }
  static Stored store(float v) { return float_to_float16(v); }
  static float round(float v) { return load(store(v)); }
  static constexpr std::uint32_t kMaxBits = 0x477fe000u;
};

// Tensors mapped from files lie at any address.
template <class T>
inline T load_at(const void* base, std::int64_t index) {
  T value;
  __builtin_memcpy(&value, static_cast<const char*>(base) + index * static_cast<std::int64_t>(sizeof(T)), sizeof(T));
  return value;
}
template <class T>
inline void store_at(void* base, std::int64_t index, T value) {
  __builtin_memcpy(static_cast<char*>(base) + index * static_cast<std::int64_t>(sizeof(T)), &value, sizeof(T));
}
template <class F>
inline float load_float(const void* base, std::int64_t index) {
  return F::load(load_at<typename F::Stored>(base, index));
}

inline bool is_inf(float v) { return (bits_from_float(v) & kMagnitude) == kInfinity; }
inline bool is_nan(float v) { return (bits_from_float(v) & kMagnitude) > kInfinity; }

/// Integers that order like the floats they stand for; its own inverse.
inline std::int32_t ordered(std::uint32_t bits) {
  const auto i = static_cast<std::int32_t>(bits);
  return i ^ static_cast<std::int32_t>(static_cast<std::uint32_t>(i >> 31) & kMagnitude);
}

/// Nearest integer, ties to even, for |v| <= 2^22.
inline float round_half_even(float v) {
  constexpr float kAnchor = 0x1.8p23f;
  return (v + kAnchor) - kAnchor;
}

/// NaN gives `low`: the comparison is false.
inline float clamp(float v, float low, float high) {
  const float bounded = v > low ? v : low;
  return bounded < high ? bounded : high;
}

template <class F>
std::uint32_t absmax_of(const void* values, std::int64_t n) {
  std::uint32_t largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t bits = bits_from_float(load_float<F>(values, i)) & kMagnitude;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

template <class F>
void column_absmax_of(const void* values, std::int64_t n, std::uint32_t* running) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::uint32_t bits = bits_from_float(load_float<F>(values, i)) & kMagnitude;
    running[i] = bits > running[i] ? bits : running[i];
  }
}

template <class F>
void minmax_of(const void* values, std::int64_t n, std::int32_t* lowest, std::int32_t* highest) {
  std::int32_t low = *lowest, high = *highest;
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int32_t v = ordered(bits_from_float(load_float<F>(values, i)));
    low = v < low ? v : low;
    high = v > high ? v : high;
  }
  *lowest = low;
  *highest = high;
}

template <class F>
void column_minmax_of(const void* values, std::int64_t n, std::int32_t* lowest, std::int32_t* highest) {
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int32_t v = ordered(bits_from_float(load_float<F>(values, i)));
    lowest[i] = v < lowest[i] ? v : lowest[i];
    highest[i] = v > highest[i] ? v : highest[i];
  }
}

template <QType kQType>
inline std::uint8_t symmetric_code(float ratio) {
  if constexpr (kQType == QType::qint8) {
    const float bounded = is_nan(ratio) ? 0.0f : clamp(ratio, -128.0f, 127.0f);
    return static_cast<std::uint8_t>(static_cast<std::int32_t>(round_half_even(bounded)));
  } else {
    constexpr const Float8Format& kFormat = float8_format(kQType);
    constexpr float kMax = kQType == QType::qfloat8_e4m3fn     ? 448.0f
                           : kQType == QType::qfloat8_e4m3fnuz ? 240.0f
                                                               : 57344.0f;
    return float_to_float8(kFormat, is_nan(ratio) ? ratio : clamp(ratio, -kMax, kMax));
  }
}

template <QType kQType>
inline float code_value(std::uint8_t code) {
  if constexpr (kQType == QType::qint8) {
    return static_cast<float>(static_cast<std::int8_t>(code));
  } else {
    constexpr const Float8Format& kFormat = float8_format(kQType);
    return float8_to_float(kFormat, code);
  }
}

template <class F, QType kQType, bool kPerElement>
void quantize_symmetric_loop(const QuantizeRow& row) {
  const std::int64_t n = row.n;
  const void* values = row.values;
  std::uint8_t* codes = row.codes_out;
  const float first = n > 0 ? load_float<F>(row.scale, 0) : 0.0f;
  for (std::int64_t i = 0; i < n; ++i) {
    const float scale = kPerElement ? load_float<F>(row.scale, i) : first;
    const float ratio = F::round(load_float<F>(values, i) / scale);
    codes[i] = symmetric_code<kQType>(scale == 0.0f ? 0.0f : ratio);
  }
}

/// The largest finite value where rounding carried a finite product past it.
template <class F>
inline float saturate(float v, bool operands_finite) {
  const float largest = float_from_bits((bits_from_float(v) & ~kMagnitude) | F::kMaxBits);
  return is_inf(v) && operands_finite ? largest : v;
}

template <class F, QType kQType, bool kPerElement>
void dequantize_symmetric_loop(const QuantizeRow& row) {
  const std::int64_t n = row.n;
  const std::uint8_t* codes = row.codes_in;
  const float first = n > 0 ? load_float<F>(row.scale, 0) : 0.0f;
  for (std::int64_t i = 0; i < n; ++i) {
    const float scale = kPerElement ? load_float<F>(row.scale, i) : first;
    const float value = code_value<kQType>(codes[i]);
    const float product = saturate<F>(F::round(scale * value), !is_inf(scale) && !is_inf(value));
    store_at(row.out, i, F::store(product));
  }
}

/// round((base + shift) / scale), each step rounded to F. Where the sum overflows for finite operands, both sides of
/// the division are halved first.
template <class F>
inline float affine_ratio(float base, float shift, float scale) {
  const float sum = F::round(base + shift);
  const bool overflow = is_inf(sum);
  const float halved = 0.5f * base + 0.5f * shift;
  return F::round((overflow ? halved : sum) / (overflow ? 0.5f * scale : scale));
}

template <class F, ShiftKind kShift, bool kPerElement>
void quantize_affine_loop(const QuantizeRow& row) {
  const std::int64_t n = row.n;
  const float high = row.qtype == QType::qint4 ? 15.0f : 3.0f;
  const int offset = row.field_offset;
  const std::uint8_t kept = row.keep_other_fields ? 0xff : 0;
  std::uint8_t* codes = row.codes_out;
  const auto shift_at = [&row](std::int64_t i) {
    if constexpr (kShift == ShiftKind::floating) return load_float<F>(row.shift, i);
    return static_cast<float>(load_at<std::uint8_t>(row.shift, i));
  };
  const float first_scale = n > 0 ? load_float<F>(row.scale, 0) : 0.0f;
  const float first_shift = n > 0 ? shift_at(0) : 0.0f;
  for (std::int64_t i = 0; i < n; ++i) {
    const float scale = kPerElement ? load_float<F>(row.scale, i) : first_scale;
    const float shift = kPerElement ? shift_at(i) : first_shift;
    const float base = load_float<F>(row.values, i);
    float code;
    if constexpr (kShift == ShiftKind::floating) {
      code = round_half_even(clamp(affine_ratio<F>(base, shift, scale), 0.0f, high));
      code = scale == 0.0f ? 0.0f : code;
    } else {
      // Bounded before rounding so that the integer trick of round_half_even holds; 64 is past every code and shift.
      const float ratio = scale == 0.0f ? 0.0f : clamp(F::round(base / scale), -512.0f, 512.0f);
      code = clamp(round_half_even(ratio) + shift, 0.0f, high);
    }
    const std::uint32_t field = static_cast<std::uint32_t>(static_cast<std::int32_t>(code)) << offset;
    codes[i] = static_cast<std::uint8_t>((codes[i] & kept) | field);
  }
}

template <class F, ShiftKind kShift, bool kPerElement>
void dequantize_affine_loop(const QuantizeRow& row) {
  const std::int64_t n = row.n;
  const std::uint32_t mask = row.qtype == QType::qint4 ? 15u : 3u;
  const int offset = row.field_offset;
  const std::uint8_t* codes = row.codes_in;
  const auto shift_at = [&row](std::int64_t i) {
    if constexpr (kShift == ShiftKind::floating) return load_float<F>(row.shift, i);
    return static_cast<float>(load_at<std::uint8_t>(row.shift, i));
  };
  const float first_scale = n > 0 ? load_float<F>(row.scale, 0) : 0.0f;
  const float first_shift = n > 0 ? shift_at(0) : 0.0f;
  for (std::int64_t i = 0; i < n; ++i) {
    const float scale = kPerElement ? load_float<F>(row.scale, i) : first_scale;
    const float shift = kPerElement ? shift_at(i) : first_shift;
    const float code = static_cast<float>(static_cast<std::int32_t>(std::uint32_t{codes[i]} >> offset & mask));
    float value;
    if constexpr (kShift == ShiftKind::floating) {
      const float product = F::round(scale * code);
      const float plain = F::round(product - shift);
      // A product past the largest value whose difference is not: take it at half size, then double with saturation.
      const float halved = 0.5f * scale * code - 0.5f * shift;
      const bool finite = !is_inf(scale) && !is_inf(shift);
      value = saturate<F>(F::round(is_inf(product) && finite ? halved + halved : plain), finite);
    } else {
      value = saturate<F>(F::round(scale * (code - shift)), !is_inf(scale));
    }
    store_at(row.out, i, F::store(value));
  }
}

// From run-time values to instantiations.

template <class Body>
inline auto with_dtype(DType dtype, Body body) {
  switch (dtype) {
    case DType::bfloat16:
      return body(BFloat16{});
    case DType::float16:
      return body(Float16{});
    default:
      return body(Float32{});
  }
}

template <class F, QType kQType>
inline void symmetric_row(const QuantizeRow& row, bool quantize) {
  if (quantize) {
    row.scale_step ? quantize_symmetric_loop<F, kQType, true>(row) : quantize_symmetric_loop<F, kQType, false>(row);
  } else {
    row.scale_step ? dequantize_symmetric_loop<F, kQType, true>(row) : dequantize_symmetric_loop<F, kQType, false>(row);
  }
}

inline void symmetric(const QuantizeRow& row, bool quantize) {
  with_dtype(row.dtype, [&](auto f) {
    using F = decltype(f);
    switch (row.qtype) {
      case QType::qfloat8_e4m3fn:
        return symmetric_row<F, QType::qfloat8_e4m3fn>(row, quantize);
      case QType::qfloat8_e4m3fnuz:
        return symmetric_row<F, QType::qfloat8_e4m3fnuz>(row, quantize);
      case QType::qfloat8_e5m2:
        return symmetric_row<F, QType::qfloat8_e5m2>(row, quantize);
      default:
        return symmetric_row<F, QType::qint8>(row, quantize);
    }
  });
}

template <class F, ShiftKind kShift>
inline void affine_row(const QuantizeRow& row, bool quantize) {
  if (quantize) {
    row.scale_step ? quantize_affine_loop<F, kShift, true>(row) : quantize_affine_loop<F, kShift, false>(row);
  } else {
    row.scale_step ? dequantize_affine_loop<F, kShift, true>(row) : dequantize_affine_loop<F, kShift, false>(row);
  }
}

inline void affine(const QuantizeRow& row, bool quantize) {
  with_dtype(row.dtype, [&](auto f) {
    using F = decltype(f);
    row.shift_kind == ShiftKind::integer ? affine_row<F, ShiftKind::integer>(row, quantize)
                                         : affine_row<F, ShiftKind::floating>(row, quantize);
  });
}

std::uint32_t absmax(DType dtype, const void* values, std::int64_t n) {
  return with_dtype(dtype, [&](auto f) { return absmax_of<decltype(f)>(values, n); });
}
void column_absmax(DType dtype, const void* values, std::int64_t n, std::uint32_t* running) {
  with_dtype(dtype, [&](auto f) { column_absmax_of<decltype(f)>(values, n, running); });
}
void minmax(DType dtype, const void* values, std::int64_t n, std::int32_t* lowest, std::int32_t* highest) {
  with_dtype(dtype, [&](auto f) { minmax_of<decltype(f)>(values, n, lowest, highest); });
}
void column_minmax(DType dtype, const void* values, std::int64_t n, std::int32_t* lowest, std::int32_t* highest) {
  with_dtype(dtype, [&](auto f) { column_minmax_of<decltype(f)>(values, n, lowest, highest); });
}
void quantize_symmetric_row(const QuantizeRow& row) { symmetric(row, true); }
void dequantize_symmetric_row(const QuantizeRow& row) { symmetric(row, false); }
void quantize_affine_row(const QuantizeRow& row) { affine(row, true); }
void dequantize_affine_row(const QuantizeRow& row) { affine(row, false); }

constexpr QuantizeKernels quantize_kernels(Isa isa) {
  return {isa,
          absmax,
          column_absmax,
          minmax,
          column_minmax,
          quantize_symmetric_row,
          quantize_affine_row,
          dequantize_symmetric_row,
          dequantize_affine_row};
}

}  // namespace
}  // namespace quanto::kernels
