// The kernels of quantize_table.h for the vector width of the including unit. Only IEEE additions, multiplications and
// divisions and integer operations, so that every width computes the same bytes.
//
// Where one scale serves a row, bfloat16 values are multiplied by its reciprocal: 16 divisions take some ten cycles,
// all else some five. The quotient x / scale, rounded to bfloat16, is rounded again to a code. So the product x * (1 /
// scale), which may be two units in the last place off, must fall on the same side of every rounding boundary: x /
// scale is a quotient of integers below 2^8, a boundary an odd integer between 2^8 and 2^9 times a power of two. Two
// such numbers are not equal and differ by at least one part in 2^17; the product is exact to one part in 2^22.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/lanes-inl.h"
#include "kernels/quantize_table.h"
#include "kernels/scan-inl.h"

namespace quanto::kernels {
namespace {

// One trait per float dtype: how it is loaded, how a float32 result is rounded to it, and how a result that is rounded
// already is stored. round_finite may make anything of a NaN.
struct Float32 {
  static constexpr int kBytes = 4;
  static constexpr std::uint32_t kMaxBits = 0x7f7fffffu;
  static FloatLanes load(const char* from, int count) { return kernels::load<FloatLanes>(from, count); }
  static void store(char* to, FloatLanes v, int count) { kernels::store(to, v, count); }
  static FloatLanes round(FloatLanes v) { return v; }
  static FloatLanes round_finite(FloatLanes v) { return v; }
};

struct BFloat16 {
  static constexpr int kBytes = 2;
  static constexpr std::uint32_t kMaxBits = 0x7f7f0000u;
  static FloatLanes load(const char* from, int count) {
    return decode_bfloat16(widen(kernels::load<WordLanes>(from, count)));
  }
  static void store(char* to, FloatLanes v, int count) {
    kernels::store(to, narrow_to_words(bits_from_float(v) >> 16), count);
  }
  static FloatLanes round(FloatLanes v) { return decode_bfloat16(encode_bfloat16(v)); }
  static FloatLanes round_finite(FloatLanes v) {
    const BitLanes bits = bits_from_float(v);
    return float_from_bits((bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u);
  }
};

struct Float16 {
  static constexpr int kBytes = 2;
  static constexpr std::uint32_t kMaxBits = 0x477fe000u;
  static FloatLanes load(const char* from, int count) { return float16_lanes(kernels::load<WordLanes>(from, count)); }
  static void store(char* to, FloatLanes v, int count) { kernels::store(to, float16_words(v), count); }
  static FloatLanes round(FloatLanes v) { return float16_lanes(float16_words(v)); }
  static FloatLanes round_finite(FloatLanes v) { return round(v); }
};

template <class F>
constexpr bool kIsFloat32 = F::kMaxBits == Float32::kMaxBits;
template <class F>
constexpr bool kIsFloat16 = F::kMaxBits == Float16::kMaxBits;
template <class F>
constexpr bool kIsBFloat16 = F::kMaxBits == BFloat16::kMaxBits;

/// The first element of an array, in all lanes.
template <class F>
inline FloatLanes broadcast_first(const char* from) {
  return broadcast(F::load(from, 1)[0]);
}

inline FloatLanes widen_to_float(ByteLanes v) { return to_float((IntLanes)widen(v)); }

/// The lowest bits of its sum with a number |v| <= 2^22 are the nearest integer, ties to even.
constexpr float kAnchor = 0x1.8p23f;
inline FloatLanes round_half_even(FloatLanes v) { return (v + kAnchor) - kAnchor; }

/// NaN gives `low`.
inline FloatLanes clamp(FloatLanes v, float low, float high) {
  return lesser_of(greater_of(v, broadcast(low)), broadcast(high));
}

/// NaN stays NaN.
inline FloatLanes clamp_keeping_nan(FloatLanes v, float low, float high) {
  return lesser_of(broadcast(high), greater_of(broadcast(low), v));
}

/// The largest finite value of F where rounding carried past it, unless an operand was infinite.
template <class F, class Mask>
inline FloatLanes saturate(FloatLanes v, Mask operands_finite) {
  const FloatLanes largest = float_from_bits((bits_from_float(v) & ~kMagnitudeMask) | F::kMaxBits);
  return (is_inf(v) & operands_finite) ? largest : v;
}

/// Where the scales and shifts of a row begin: at its own element, or at the first one.
template <class F>
inline const char* scales_of_row(const QuantizeArgs& a, std::int64_t row) {
  return static_cast<const char*>(a.scale) + (a.axis == Axis::first ? row * F::kBytes : 0);
}

inline bool is_finite(const FloatLanes& v) { return (bits_from_float(v)[0] & kMagnitudeMask) < kInfinityBits; }

// 8-bit codes.

template <QType kQType>
constexpr float largest_code() {
  switch (kQType) {
    case QType::qfloat8_e4m3fn:
      return 448.0f;
    case QType::qfloat8_e4m3fnuz:
      return 240.0f;
    case QType::qfloat8_e5m2:
      return 57344.0f;
    default:
      return 128.0f;  // the magnitude of qint8's -128
  }
}

/// The codes of quotients, which are rounded to F on the way: after they were clamped, because the bounds are numbers
/// of every dtype, and what lies within them takes fewer instructions.
template <class F, QType kQType>
inline BitLanes symmetric_codes(FloatLanes ratio) {
  if constexpr (kQType == QType::qint8) {
    const FloatLanes number = is_nan(ratio) ? FloatLanes{} : ratio;
    return bits_from_float(F::round_finite(clamp(number, -128.0f, 127.0f)) + kAnchor) & 0xffu;
  } else {
    constexpr float kMax = largest_code<kQType>();
    // Operands of 16 bits give no NaN with lower bits than theirs, so rounding keeps it.
    return encode_float8(float8_format(kQType), F::round_finite(clamp_keeping_nan(ratio, -kMax, kMax)));
  }
}

template <QType kQType>
inline FloatLanes symmetric_values(ByteLanes codes) {
  if constexpr (kQType == QType::qint8) {
    return to_float((IntLanes)(widen(codes) << 24) >> 24);
  } else {
    return decode_float8(float8_format(kQType), widen(codes));
  }
}

/// A scale by whose reciprocal the values of its row can be multiplied: nothing overflows, and what becomes subnormal
/// is far below half a code.
template <class F>
inline bool has_reciprocal(float scale) {
  return !kIsFloat16<F> && scale >= 0x1p-100f && scale <= 0x1p100f;
}

/// Codes of quotients that ratio_of gives for the next `count` values from an index on.
template <class F, QType kQType, class RatioOf>
inline void quantize_row(const char* values, std::int64_t cols, std::uint8_t* codes, RatioOf ratio_of) {
  const auto codes_of = [=](std::int64_t i, int count) { return symmetric_codes<F, kQType>(ratio_of(i, count)); };
  std::int64_t whole = 0;
  for (; whole + 4 * kLanes <= cols; whole += 4 * kLanes) {
    for (int v = 0; v < 4 * kLanes * F::kBytes; v += 64)
      __builtin_prefetch(values + whole * F::kBytes + kFetchAhead + v);
    store_bytes(codes + whole, codes_of(whole, kLanes), codes_of(whole + kLanes, kLanes),
                codes_of(whole + 2 * kLanes, kLanes), codes_of(whole + 3 * kLanes, kLanes));
  }
  for_chunks(cols - whole, [=](std::int64_t i, auto chunk) {
    store(codes + whole + i, narrow_to_bytes(codes_of(whole + i, chunk.count)), chunk.count);
  });
}

#if defined(__AVX512F__)
/// The int8 codes of 32 bfloat16 values as int16 numbers, those of even and of odd index in turn in each 128 bits.
/// `highest`: 256 scales. A product is never on the boundary between two bfloat16 numbers, so that it may be rounded to
/// one in either direction there.
inline __m512i int8_codes_of_words(const char* values, __m512 reciprocal, __m512i highest) {
  const __m512i words = _mm512_loadu_si512(values);
  // Twice the magnitude of a NaN is above that of infinity; its code is zero. Words of positive numbers are in their
  // order: bounded, all convert to integers. What is too low for one becomes the lowest one.
  const __mmask32 numbers = _mm512_cmple_epu16_mask(_mm512_add_epi16(words, words), _mm512_set1_epi16(-0x100));
  const __m512i bounded = _mm512_maskz_min_epi16(numbers, words, highest);
  const __m512i upper = _mm512_set1_epi32(-0x10000);
  const auto codes_of = [=](__m512i floats) {
    const __m512i product = _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(floats), reciprocal));
    const __m512i rounded = _mm512_and_si512(_mm512_add_epi32(product, _mm512_set1_epi32(0x8000)), upper);
    return _mm512_cvtps_epi32(_mm512_castsi512_ps(rounded));
  };
  return _mm512_packs_epi32(codes_of(_mm512_slli_epi32(bounded, 16)), codes_of(_mm512_and_si512(bounded, upper)));
}

/// Int8 codes of bfloat16 values, 64 at a time, by the reciprocal of their scale. Returns how many.
inline std::int64_t quantize_words_to_int8(const char* values, std::int64_t cols, std::uint8_t* codes, float scale) {
  const __m512 reciprocal = _mm512_set1_ps(1.0f / scale);
  const __m512i highest = _mm512_set1_epi16(static_cast<std::int16_t>(bits_from_float(256.0f * scale) >> 16));
  const __m512i in_turn = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  std::int64_t i = 0;
  for (; i + 64 <= cols; i += 64) {
    const char* at = values + 2 * i;
    __builtin_prefetch(at + kFetchAhead);
    __builtin_prefetch(at + kFetchAhead + 64);
    const __m512i bytes = _mm512_packs_epi16(int8_codes_of_words(at, reciprocal, highest),
                                             int8_codes_of_words(at + 64, reciprocal, highest));
    _mm512_storeu_si512(codes + i, _mm512_permutexvar_epi64(order, _mm512_shuffle_epi8(bytes, in_turn)));
  }
  return i;
}
#endif

template <class F, QType kQType, bool kPerColumn>
void quantize_symmetric_rows(const QuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  const QuantizeArgs a = args;  // the compiler knows that stores of codes do not change a local
  for (std::int64_t r = begin; r < end; ++r) {
    const char* values = static_cast<const char*>(a.values) + r * a.cols * F::kBytes;
    std::uint8_t* codes = a.codes_out + r * a.cols;
    const char* scales = scales_of_row<F>(a, r);
    const FloatLanes row_scale = broadcast_first<F>(scales);
    if constexpr (kIsBFloat16<F> && !kPerColumn) {
      if (has_reciprocal<F>(row_scale[0])) {
        std::int64_t cols = a.cols;
#if defined(__AVX512F__)
        if constexpr (kQType == QType::qint8) {
          const std::int64_t done = quantize_words_to_int8(values, cols, codes, row_scale[0]);
          values += done * F::kBytes;
          codes += done;
          cols -= done;
        }
#endif
        const FloatLanes reciprocal = 1.0f / row_scale;
        quantize_row<F, kQType>(values, cols, codes, [=](std::int64_t i, int count) {
          return F::load(values + i * F::kBytes, count) * reciprocal;
        });
        continue;
      }
    }
    quantize_row<F, kQType>(values, a.cols, codes, [=](std::int64_t i, int count) {
      const FloatLanes scale = kPerColumn ? F::load(scales + i * F::kBytes, count) : row_scale;
      const FloatLanes ratio = F::load(values + i * F::kBytes, count) / scale;
      return scale == 0.0f ? FloatLanes{} : ratio;
    });
  }
}

template <class F, QType kQType, bool kPerColumn>
void dequantize_symmetric_rows(const QuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  const QuantizeArgs a = args;
  for (std::int64_t r = begin; r < end; ++r) {
    const std::uint8_t* codes = a.codes_in + r * a.cols;
    char* out = static_cast<char*>(a.out) + r * a.cols * F::kBytes;
    const char* scales = scales_of_row<F>(a, r);
    const FloatLanes row_scale = broadcast_first<F>(scales);
    // No product can overflow: nothing to saturate. NaN are those of codes, or zero times infinity: rounding keeps
    // both.
    const bool safe = !kPerColumn && is_finite(F::round(row_scale * largest_code<kQType>()));
    for_chunks(a.cols, [=](std::int64_t i, auto chunk) {
      const FloatLanes scale = kPerColumn ? F::load(scales + i * F::kBytes, chunk.count) : row_scale;
      __builtin_prefetch(out + i * F::kBytes + kFetchAhead, 1);
      const FloatLanes value = symmetric_values<kQType>(load<ByteLanes>(codes + i, chunk.count));
      FloatLanes product = scale * value;
      if (safe) {
        product = F::round_finite(product);
      } else {
        product = saturate<F>(F::round(product), ~(is_inf(scale) | is_inf(value)));
      }
      F::store(out + i * F::kBytes, product, chunk.count);
    });
  }
}

// 2- and 4-bit codes. A byte holds kFields codes of rows `step` apart; unpacked codes are bytes of one field.

template <class F, ShiftKind kShift>
inline constexpr int kShiftBytes = kShift == ShiftKind::integer ? 1 : F::kBytes;

template <class F, ShiftKind kShift>
inline FloatLanes load_shift(const char* from, int count) {
  if constexpr (kShift == ShiftKind::floating) return F::load(from, count);
  return widen_to_float(load<ByteLanes>(from, count));
}

/// The row of values behind one field of a row of bytes.
template <class F, ShiftKind kShift>
struct FieldRow {
  FieldRow(const QuantizeArgs& a, std::int64_t row)
      : offset(row * a.cols * F::kBytes),
        scales(scales_of_row<F>(a, row)),
        shifts(static_cast<const char*>(a.shift) + (a.axis == Axis::first ? row * kShiftBytes<F, kShift> : 0)),
        scale(broadcast_first<F>(scales)),
        shift(broadcast(load_shift<F, kShift>(shifts, 1)[0])) {}

  template <bool kPerColumn>
  FloatLanes scale_at(std::int64_t i, int count) const {
    return kPerColumn ? F::load(scales + i * F::kBytes, count) : scale;
  }
  template <bool kPerColumn>
  FloatLanes shift_at(std::int64_t i, int count) const {
    return kPerColumn ? load_shift<F, kShift>(shifts + i * kShiftBytes<F, kShift>, count) : shift;
  }

  std::int64_t offset;  ///< of its values, in bytes
  const char* scales;
  const char* shifts;
  FloatLanes scale, shift;
};

/// round((base + shift) / scale) within 0 and `high`, each step rounded to F; NaN becomes 0, whatever rounding made of
/// it. Where the sum overflows for finite operands, both sides of the division are halved first; that is so rare that a
/// branch around it is cheaper.
template <class F>
inline FloatLanes affine_code(FloatLanes base, FloatLanes shift, FloatLanes scale, float high) {
  FloatLanes sum = F::round_finite(base + shift);
  const auto overflow = is_inf(sum);
  if (any(overflow)) {
    sum = overflow ? 0.5f * base + 0.5f * shift : sum;
    scale = overflow ? 0.5f * scale : scale;
  }
  return round_half_even(F::round_finite(clamp(sum / scale, 0.0f, high)));
}

template <class F, ShiftKind kShift>
inline BitLanes affine_codes(FloatLanes base, FloatLanes scale, FloatLanes shift, float high) {
  FloatLanes code;
  if constexpr (kShift == ShiftKind::floating) {
    code = affine_code<F>(base, shift, scale, high);
    code = scale == 0.0f ? FloatLanes{} : code;
  } else {
    // Bounded so that rounding and the sum are exact; 512 lies past every code and shift.
    const FloatLanes ratio = F::round_finite(clamp(base / scale, -512.0f, 512.0f));
    code = clamp(round_half_even(scale == 0.0f ? FloatLanes{} : ratio) + shift, 0.0f, high);
  }
  return (BitLanes)to_int(code);
}

/// scale * code - shift, or scale * (code - shift).
template <class F, ShiftKind kShift>
inline FloatLanes affine_values(FloatLanes code, FloatLanes scale, FloatLanes shift) {
  if constexpr (kShift == ShiftKind::integer) return F::round_finite(scale * (code - shift));
  return F::round_finite(F::round_finite(scale * code) - shift);
}

/// The same for any scale and shift, where a step may overflow although the result does not: at half size, then doubled
/// with saturation.
template <class F, ShiftKind kShift>
inline FloatLanes saturated_affine_values(FloatLanes code, FloatLanes scale, FloatLanes shift) {
  const FloatLanes plain =
      kShift == ShiftKind::integer ? F::round(scale * (code - shift)) : F::round(F::round(scale * code) - shift);
  if constexpr (kShift == ShiftKind::integer) return saturate<F>(plain, ~is_inf(scale));
  const auto finite = ~(is_inf(scale) | is_inf(shift));
  const FloatLanes halved = 0.5f * scale * code - 0.5f * shift;
  return saturate<F>((is_inf(F::round(scale * code)) & finite) ? F::round(halved + halved) : plain, finite);
}

/// The rows behind one row of bytes; past the last row of the matrix there are none.
inline int fields_present(const QuantizeArgs& a, std::int64_t byte_row, int fields) {
  if (fields == 1) return 1;
  int present = 0;
  while (present < fields && byte_row + present * a.packed_rows < a.rows) ++present;
  return present;
}

template <class F, ShiftKind kShift, bool kPerColumn, int kFields>
void quantize_affine_rows(const QuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  const QuantizeArgs a = args;
  const float high = a.qtype == QType::qint4 ? 15.0f : 3.0f;
  for (std::int64_t p = begin; p < end; ++p) {
    std::uint8_t* codes = a.codes_out + p * a.cols;
    for (int f = 0; f < fields_present(a, p, kFields); ++f) {
      const FieldRow<F, kShift> row(a, p + f * a.packed_rows);
      const char* values = static_cast<const char*>(a.values) + row.offset;
      const int position = f * (8 / kFields);
      for_chunks(a.cols, [=](std::int64_t i, auto chunk) {
        __builtin_prefetch(values + i * F::kBytes + kFetchAhead);
        const FloatLanes base = F::load(values + i * F::kBytes, chunk.count);
        const BitLanes code = affine_codes<F, kShift>(base, row.template scale_at<kPerColumn>(i, chunk.count),
                                                      row.template shift_at<kPerColumn>(i, chunk.count), high);
        ByteLanes bytes = narrow_to_bytes(code << position);
        if (f > 0) bytes |= load<ByteLanes>(codes + i, chunk.count);
        store(codes + i, bytes, chunk.count);
      });
    }
  }
}

template <class F, ShiftKind kShift, bool kPerColumn, int kFields>
void dequantize_affine_rows(const QuantizeArgs& args, std::int64_t begin, std::int64_t end) {
  const QuantizeArgs a = args;
  const std::uint32_t mask = a.qtype == QType::qint4 ? 15u : 3u;
  for (std::int64_t p = begin; p < end; ++p) {
    const std::uint8_t* codes = a.codes_in + p * a.cols;
    for (int f = 0; f < fields_present(a, p, kFields); ++f) {
      const FieldRow<F, kShift> row(a, p + f * a.packed_rows);
      char* out = static_cast<char*>(a.out) + row.offset;
      const int position = f * (8 / kFields);
      const FloatLanes bound = row.scale * 15.0f + (row.shift < 0.0f ? -row.shift : row.shift);
      const bool safe = !kPerColumn && is_finite(F::round(bound));
      for_chunks(a.cols, [=](std::int64_t i, auto chunk) {
        const FloatLanes scale = row.template scale_at<kPerColumn>(i, chunk.count);
        const FloatLanes shift = row.template shift_at<kPerColumn>(i, chunk.count);
        __builtin_prefetch(out + i * F::kBytes + kFetchAhead, 1);
        const BitLanes code = widen(load<ByteLanes>(codes + i, chunk.count)) >> position & mask;
        const FloatLanes number = to_float((IntLanes)code);
        const FloatLanes value = safe ? affine_values<F, kShift>(number, scale, shift)
                                      : saturated_affine_values<F, kShift>(number, scale, shift);
        F::store(out + i * F::kBytes, value, chunk.count);
      });
    }
  }
}

// From run-time values to instantiations: function pointers, looked up once per call.

using RowsFunction = void (*)(const QuantizeArgs&, std::int64_t, std::int64_t);

template <class Pick>
inline RowsFunction for_dtype(const QuantizeArgs& a, Pick pick) {
  switch (a.dtype) {
    case DType::bfloat16:
      return pick(BFloat16{});
    case DType::float16:
      return pick(Float16{});
    default:
      return pick(Float32{});
  }
}

template <class F, QType kQType>
inline RowsFunction symmetric_rows(const QuantizeArgs& a, bool quantize) {
  if (a.axis == Axis::last) {
    return quantize ? quantize_symmetric_rows<F, kQType, true> : dequantize_symmetric_rows<F, kQType, true>;
  }
  return quantize ? quantize_symmetric_rows<F, kQType, false> : dequantize_symmetric_rows<F, kQType, false>;
}

inline RowsFunction symmetric_function(const QuantizeArgs& a, bool quantize) {
  return for_dtype(a, [&](auto f) {
    using F = decltype(f);
    switch (a.qtype) {
      case QType::qfloat8_e4m3fn:
        return symmetric_rows<F, QType::qfloat8_e4m3fn>(a, quantize);
      case QType::qfloat8_e4m3fnuz:
        return symmetric_rows<F, QType::qfloat8_e4m3fnuz>(a, quantize);
      case QType::qfloat8_e5m2:
        return symmetric_rows<F, QType::qfloat8_e5m2>(a, quantize);
      default:
        return symmetric_rows<F, QType::qint8>(a, quantize);
    }
  });
}

template <class F, ShiftKind kShift, int kFields>
inline RowsFunction affine_rows(const QuantizeArgs& a, bool quantize) {
  if (a.axis == Axis::last) {
    return quantize ? quantize_affine_rows<F, kShift, true, kFields> : dequantize_affine_rows<F, kShift, true, kFields>;
  }
  return quantize ? quantize_affine_rows<F, kShift, false, kFields> : dequantize_affine_rows<F, kShift, false, kFields>;
}

template <class F, ShiftKind kShift>
inline RowsFunction affine_rows(const QuantizeArgs& a, bool quantize) {
  if (a.packed_rows == 0) return affine_rows<F, kShift, 1>(a, quantize);
  return a.qtype == QType::qint4 ? affine_rows<F, kShift, 2>(a, quantize) : affine_rows<F, kShift, 4>(a, quantize);
}

inline RowsFunction affine_function(const QuantizeArgs& a, bool quantize) {
  return for_dtype(a, [&](auto f) {
    using F = decltype(f);
    return a.shift_kind == ShiftKind::integer ? affine_rows<F, ShiftKind::integer>(a, quantize)
                                              : affine_rows<F, ShiftKind::floating>(a, quantize);
  });
}

void quantize_symmetric(const QuantizeArgs& a, std::int64_t begin, std::int64_t end) {
  symmetric_function(a, true)(a, begin, end);
}
void dequantize_symmetric(const QuantizeArgs& a, std::int64_t begin, std::int64_t end) {
  symmetric_function(a, false)(a, begin, end);
}
void quantize_affine(const QuantizeArgs& a, std::int64_t begin, std::int64_t end) {
  affine_function(a, true)(a, begin, end);
}
void dequantize_affine(const QuantizeArgs& a, std::int64_t begin, std::int64_t end) {
  affine_function(a, false)(a, begin, end);
}

}  // namespace
}  // namespace quanto::kernels
