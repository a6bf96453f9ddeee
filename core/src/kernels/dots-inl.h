// Dot products of codes with float32 activations, a vector of codes at a time: how they are decoded and how the
// activations lie beside them. What the kernel for few rows (few_rows-inl.h) is written in terms of.
//
// A chunk is kChunk codes that lie one after the other (for the packed qtypes: kChunk bytes, of several channels each).
// It decodes to kVectors vectors for each field, each to be multiplied with one vector of prepared activations.
// Decoded numbers are codes, in [0, 2^bits) for the affine qtypes: scales and shifts are applied to sums of products.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec-inl.h"
#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/lanes-inl.h"

#define QUANTO_INLINE inline __attribute__((always_inline))
#define QUANTO_UNROLL _Pragma("GCC unroll 16")

namespace quanto::kernels {
namespace {

/// Magnitudes of activations whose products with codes and powers of two down to 2^-24 are neither subnormal nor
/// infinite, as bits of a float32; zero is fine too.
constexpr std::uint32_t kSmallestPlain = (127u - 80u) << 23;
constexpr std::uint32_t kLargestPlain = (127u + 100u) << 23;

/// What a chunk of activations is like.
struct ChunkSummary {
  float sum;
  bool plain;  ///< all of magnitudes that powers of two may be factored out of
};

/// Stores `count` activations of one chunk, zeros after them, as Dots wants them.
template <class Dots, DType kDType>
inline ChunkSummary prepare_floats(const void* x, std::int64_t index, std::int64_t count, FloatLanes* out) {
  float values[Dots::kChunk] = {};
  for (std::int64_t i = 0; i < count; ++i) values[i] = load_float(x, kDType, index + i);
  float ordered[Dots::kChunk];
  for (int i = 0; i < Dots::kChunk; ++i) ordered[Dots::position(i)] = values[i] * Dots::factor(i);
  __builtin_memcpy(out, ordered, sizeof(ordered));
  if constexpr (Dots::kTakesAllValues) return {0.0f, true};
  FloatLanes sums{};
  BitLanes odd{};
  for (int i = 0; i < Dots::kChunk; i += kLanes) {
    const FloatLanes v = load<FloatLanes>(values + i, kLanes);
    sums += v;
    const BitLanes magnitude = bits_from_float(v) & kMagnitudeMask;
    odd |= (BitLanes)(magnitude != 0) & (BitLanes)(magnitude - kSmallestPlain >= kLargestPlain - kSmallestPlain);
  }
  return {sum_lanes(sums), !any((IntLanes)odd)};
}

/// 8-bit codes in the order of the checkpoint.
template <QType kType>
struct FloatDots {
  static constexpr QType kQType = kType;
  static constexpr int kFields = 1;
  static constexpr int kVectors = 4;
  static constexpr std::int64_t kChunk = kVectors * kLanes;
  /// The decoder makes a number of the NaN of e4m3, whose presence has to be found out separately.
  static constexpr bool kDecodesNan = !is_float8(kType) || kType == QType::qfloat8_e5m2 || !kHasFloat16;
  static constexpr bool kTakesAllValues = true;
  using X = FloatLanes;
  struct Codes {
    ByteLanes of[kVectors];
  };

  static QUANTO_INLINE Codes load_codes(const std::uint8_t* at) {
    Codes codes;
    QUANTO_UNROLL for (int v = 0; v < kVectors; ++v) codes.of[v] = load<ByteLanes>(at + v * kLanes, kLanes);
    return codes;
  }
  static QUANTO_INLINE X decode(const Codes& codes, int, int v) { return decode_bytes<kType>(codes.of[v]); }
  static QUANTO_INLINE FloatLanes add_products(X w, X x, FloatLanes sum) { return multiply_add(w, x, sum); }
  static constexpr float field_factor(int) { return 1.0f; }
  /// Where the activation i of a chunk goes, and the factor that it is stored with.
  static constexpr int position(int i) { return i; }
  static constexpr float factor(int) { return 1.0f; }
  template <DType kDType>
  static inline ChunkSummary prepare(const void* x, std::int64_t index, std::int64_t count, X* out) {
    return prepare_floats<FloatDots, kDType>(x, index, count, out);
  }
};

/// Packed codes: a lane holds four bytes, of which `& mask` leaves one field times a power of two. Activations carry
/// the inverse of the byte's power, the scale that of the field, so that no code has to be shifted; only the last byte
/// is, because conversions are signed.
template <int kBits>
struct PackedFloatDots {
  static constexpr QType kQType = kBits == 4 ? QType::qint4 : QType::qint2;
  static constexpr int kFields = 8 / kBits;
  static constexpr int kVectors = 4;
  static constexpr std::int64_t kChunk = kVectorBytes;
  static constexpr bool kDecodesNan = true;
  static constexpr bool kTakesAllValues = false;
  using X = FloatLanes;
  struct Codes {
    BitLanes of[2];  ///< all four bytes; the last one
  };

  static QUANTO_INLINE Codes load_codes(const std::uint8_t* at) {
    Codes codes;
    __builtin_memcpy(&codes.of[0], at, kVectorBytes);
    codes.of[1] = codes.of[0] >> 24;
    return codes;
  }
  static QUANTO_INLINE X decode(const Codes& codes, int field, int v) {
    const std::uint32_t mask = ((1u << kBits) - 1) << (kBits * field + (v == 3 ? 0 : 8 * v));
    return to_float((IntLanes)(codes.of[v == 3 ? 1 : 0] & mask));
  }
  static QUANTO_INLINE FloatLanes add_products(X w, X x, FloatLanes sum) { return multiply_add(w, x, sum); }
  static constexpr float field_factor(int field) { return 1.0f / static_cast<float>(1 << (kBits * field)); }
  static constexpr int position(int i) { return i % 4 * kLanes + i / 4; }
  static constexpr float factor(int i) { return i % 4 == 3 ? 1.0f : 1.0f / static_cast<float>(1 << (8 * (i % 4))); }
  template <DType kDType>
  static inline ChunkSummary prepare(const void* x, std::int64_t index, std::int64_t count, X* out) {
    return prepare_floats<PackedFloatDots, kDType>(x, index, count, out);
  }
};

template <>
struct FloatDots<QType::qint4> : PackedFloatDots<4> {};
template <>
struct FloatDots<QType::qint2> : PackedFloatDots<2> {};

}  // namespace
}  // namespace quanto::kernels
