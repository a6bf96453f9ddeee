// From codes to the float32 weights that they stand for, vector by vector: 8-bit codes to the code's value, to be
// scaled later, 2- and 4-bit codes to fma(scale, code, -offset). Every kernel multiplies with these numbers, so
// infinite and NaN activations give what a float matmul with the dequantized weight gives. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec-inl.h"
#include "kernels/args-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

constexpr bool is_float8(QType qtype) { return !is_affine_qtype(qtype) && qtype != QType::qint8; }

/// True if a NaN code is among the n, which the float8 decoder below asks to be told.
template <QType kQType>
inline bool has_nan_code(const std::uint8_t* codes, std::int64_t n) {
  if constexpr (!is_float8(kQType) || kQType == QType::qfloat8_e5m2 || !kHasFloat16) {
    return false;
  } else {
    constexpr const Float8Format& kFormat = float8_format(kQType);
    constexpr std::uint8_t kCompared = kFormat.nan_is_negative_zero ? 0xff : 0x7f;
    WholeBytes found{};
    std::int64_t i = 0;
    for (; i + kVectorBytes <= n; i += kVectorBytes) {
      WholeBytes v;
      __builtin_memcpy(&v, codes + i, sizeof(v));
      found |= (WholeBytes)((v & kCompared) == static_cast<std::uint8_t>(kFormat.nan_code));
    }
    bool tail = false;
    for (; i < n; ++i) tail |= (codes[i] & kCompared) == kFormat.nan_code;
    return tail || any((IntLanes)found != 0);
  }
}

/// The values of 8-bit codes. With float16 conversions in hardware float8 goes through them, whose exponents hold those
/// of all its formats: exact for all codes, except that the NaN of e4m3 comes out as a number (has_nan_code).
template <QType kQType>
inline FloatLanes decode_bytes(ByteLanes codes) {
  if constexpr (kQType == QType::qint8) {
    return to_float(widen_signed(codes));
  } else if constexpr (!kHasFloat16) {
    return decode_float8(float8_format(kQType), widen(codes));
  } else if constexpr (kQType == QType::qfloat8_e5m2) {
    return float16_lanes(widen_to_words(codes) << 8);
  } else {
    constexpr float kFactor = kQType == QType::qfloat8_e4m3fn ? 0x1p8f : 0x1p7f;
    const WordLanes words = (widen_signed_to_words(codes) << 7) & std::uint16_t{0xbfff};
    return float16_lanes(words) * kFactor;
  }
}

/// `count` elements of a float array, zeros after them.
inline FloatLanes load_floats(const void* base, DType dtype, std::int64_t index, int count) {
  const char* at = static_cast<const char*>(base);
  if (dtype == DType::float32) return load<FloatLanes>(at + index * 4, count);
  const auto words = load<WordLanes>(at + index * 2, count);
  return dtype == DType::bfloat16 ? decode_bfloat16(widen(words)) : float16_lanes(words);
}

/// The next kLanes of a row of which `left` elements, or none, remain; zeros after them.
template <DType kDType>
inline FloatLanes load_remaining(const void* base, std::int64_t index, std::int64_t left) {
  return left >= kLanes ? load_floats(base, kDType, index, kLanes)
         : left > 0     ? load_floats(base, kDType, index, static_cast<int>(left))
                        : FloatLanes{};
}

/// Rounds half to even, as store_float.
inline void store_floats(void* base, DType dtype, std::int64_t index, FloatLanes values, int count) {
  char* at = static_cast<char*>(base);
  if (dtype == DType::float32) return store(at + index * 4, values, count);
  store(at + index * 2, dtype == DType::bfloat16 ? narrow_to_words(encode_bfloat16(values)) : float16_words(values),
        count);
}

/// The scales and offsets of consecutive grouped rows.
struct ScaleOffsets {
  FloatLanes scale, offset;
};

inline ScaleOffsets scale_offsets(const MatmulArgs& a, std::int64_t grouped_row, int count) {
  const FloatLanes scale = load_floats(a.scale, a.scale_dtype, grouped_row, count);
  if (a.shift_kind == ShiftKind::floating) return {scale, load_floats(a.shift, a.scale_dtype, grouped_row, count)};
  const auto shifts = load<ByteLanes>(static_cast<const std::uint8_t*>(a.shift) + grouped_row, count);
  return {scale, scale * to_float((IntLanes)widen(shifts))};
}

/// What turns the codes of one group into weights; `field` numbers the codes in a byte.
template <int kBits, bool kLookedUp = (kBits <= kLookupBits)>
struct GroupDecoder {
  FloatLanes scale, minus_offset;

  GroupDecoder() = default;
  explicit GroupDecoder(ScaleOffset so) : scale(broadcast(so.scale)), minus_offset(broadcast(-so.offset)) {}
  /// Lanes below 2^8.
  FloatLanes decode(BitLanes bytes, int field) const {
    const BitLanes shifted = bytes >> (kBits * field);
    const BitLanes codes = field == 8 / kBits - 1 ? shifted : shifted & ((1u << kBits) - 1);
    return multiply_add(to_float((IntLanes)codes), scale, minus_offset);
  }
};

/// All weights that a group can have fit one vector.
template <int kBits>
struct GroupDecoder<kBits, true> {
  FloatLanes weights;

  GroupDecoder() = default;
  explicit GroupDecoder(ScaleOffset so)
      : weights(
            multiply_add(to_float(lane_numbers() & ((1 << kBits) - 1)), broadcast(so.scale), broadcast(-so.offset))) {}
  FloatLanes decode(BitLanes bytes, int field) const { return lookup<kBits>(weights, bytes >> (kBits * field)); }
};

template <int kBits>
inline void decode_field(const std::uint8_t* bytes, std::int64_t n, int field, ScaleOffset so, float* out) {
  const GroupDecoder<kBits> decoder(so);
  for_chunks(n, [&](std::int64_t i, auto chunk) {
    store(out + i, decoder.decode(widen(load<ByteLanes>(bytes + i, chunk.count)), field), chunk.count);
  });
}

/// The weights of channel n for k in [begin, end). Grouped row r = n * groups + j has its codes in the field
/// r / packed_rows of packed row r % packed_rows, whatever N is. Divisions take as long as some vectors of weights.
template <int kBits>
inline void decode_affine_channel(const MatmulArgs& a, std::int64_t n, std::int64_t begin, std::int64_t end,
                                  float* out) {
  const std::int64_t j = begin / a.group_size;
  std::int64_t r = n * a.groups + j, within = begin - j * a.group_size;
  int field = 0;
  std::int64_t row = r;
  for (; row >= a.packed_rows; row -= a.packed_rows) ++field;
  for (std::int64_t left = end - begin; left > 0; ++r, ++row, within = 0) {
    if (row == a.packed_rows) {
      row = 0;
      ++field;
    }
    const std::int64_t count = smaller(a.group_size - within, left);
    decode_field<kBits>(a.w + row * a.group_size + within, count, field, scale_offset(a, r), out);
    out += count;
    left -= count;
  }
}

template <QType kQType>
inline void decode_byte_channel(const std::uint8_t* codes, std::int64_t n, float* out) {
  for_chunks(n, [&](std::int64_t i, auto chunk) {
    store(out + i, decode_bytes<kQType>(load<ByteLanes>(codes + i, chunk.count)), chunk.count);
  });
  if (!has_nan_code<kQType>(codes, n)) return;
  for (std::int64_t i = 0; i < n; ++i) out[i] = float8_to_float(float8_format(kQType), codes[i]);
}

/// The weights of channel n for k in [begin, end): final values for the affine qtypes, codes for the others.
template <QType kQType>
inline void decode_channel(const MatmulArgs& a, std::int64_t n, std::int64_t begin, std::int64_t end, float* out) {
  if constexpr (kQType == QType::qint4) {
    decode_affine_channel<4>(a, n, begin, end, out);
  } else if constexpr (kQType == QType::qint2) {
    decode_affine_channel<2>(a, n, begin, end, out);
  } else {
    decode_byte_channel<kQType>(a.w + n * a.K + begin, end - begin, out);
  }
}

}  // namespace
}  // namespace quanto::kernels
