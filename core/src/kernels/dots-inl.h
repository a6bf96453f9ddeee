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
#define QUANTO_UNROLL _Pragma("GCC unroll 32")
/// Keeps the compiler from moving a vector out of its register or loading it again.
#if defined(__x86_64__)
#define QUANTO_IN_REGISTER(vector) asm("" : "+v"(vector))
#else
#define QUANTO_IN_REGISTER(vector) static_cast<void>(vector)
#endif

namespace quanto::kernels {
namespace {

/// Magnitudes of activations whose products with codes and powers of two down to 2^-24 are neither subnormal nor
/// infinite, as bits of a float32; zero is fine too.
constexpr std::uint32_t kSmallestPlain = (127u - 80u) << 23;
constexpr std::uint32_t kLargestPlain = (127u + 100u) << 23;

/// The lanes that are neither zero nor of a magnitude that powers of two may be factored out of.
inline BitLanes not_plain(FloatLanes x) {
  const BitLanes magnitude = bits_from_float(x) & kMagnitudeMask;
  return (BitLanes)(magnitude != 0) & (BitLanes)(magnitude - kSmallestPlain >= kLargestPlain - kSmallestPlain);
}
inline bool all_plain(FloatLanes x) { return !any((IntLanes)not_plain(x)); }

/// Element i of two vectors after one another becomes lane i / 2 of vector i % 2.
inline void deal(FloatLanes (&x)[2]) {
  const Parted parted = part(x[0], x[1]);
  x[0] = parted.even;
  x[1] = parted.odd;
}
/// Element i of four vectors after one another becomes lane i / 4 of vector i % 4.
inline void deal(FloatLanes (&x)[4]) {
  const Parted low = part(x[0], x[1]), high = part(x[2], x[3]);
  const Parted even = part(low.even, high.even), odd = part(low.odd, high.odd);
  x[0] = even.even;
  x[1] = odd.even;
  x[2] = even.odd;
  x[3] = odd.odd;
}

/// Stores `count` activations of one chunk, zeros after them, as Dots::arrange() wants them. True if all are plain.
template <class Dots, DType kDType>
inline bool prepare_floats(const void* x, std::int64_t index, std::int64_t count, FloatLanes* out) {
  FloatLanes values[Dots::kVectors];
  bool plain = true;
  for (int v = 0; v < Dots::kVectors; ++v) {
    values[v] = load_remaining<kDType>(x, index + v * kLanes, count - v * kLanes);
    if constexpr (!Dots::kTakesAllValues) plain &= all_plain(values[v]);
  }
  Dots::arrange(values);
  for (int v = 0; v < Dots::kVectors; ++v) out[v] = values[v];
  return plain;
}

/// 8-bit codes in the order of the checkpoint, each vector on its own.
template <QType kType>
struct ByteFloatDots {
  static constexpr QType kQType = kType;
  static constexpr int kFields = 1;
  static constexpr int kVectors = 4;
  static constexpr std::int64_t kChunk = kVectors * kLanes;
  static constexpr bool kDecodesNan = true;
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
  /// Brings the activations of a chunk into the order of the decoded vectors.
  static void arrange(FloatLanes (&)[kVectors]) {}
  template <DType kDType>
  static inline bool prepare(const void* x, std::int64_t index, std::int64_t count, X* out) {
    return prepare_floats<ByteFloatDots, kDType>(x, index, count, out);
  }
};

#if defined(__AVX2__) && defined(__F16C__)
/// float8 codes as float16 numbers, whose exponents hold those of all its formats. The numbers of e4m3 come out smaller
/// by a power of two, which the sums are multiplied with, and its NaN comes out as a number, which is looked for.
///
/// The words go through memory: from registers a conversion costs a shuffle or two more, which made it slower than
/// reading the weights.
template <QType kType>
struct Float16Dots : ByteFloatDots<kType> {
  static constexpr int kVectors = 4;
  static constexpr bool kDecodesNan = kType == QType::qfloat8_e5m2;
  static constexpr bool kTakesAllValues = kType == QType::qfloat8_e5m2;
  struct Codes {
    UnsignedWords of[kVectors / 2];
  };

  static QUANTO_INLINE Codes load_codes(const std::uint8_t* at) {
    Codes codes;
    QUANTO_UNROLL for (int i = 0; i < kVectors / 2; ++i) {
      const UnsignedWords words = load_signed_bytes(at + i * 2 * kLanes);
      codes.of[i] = kType == QType::qfloat8_e5m2 ? words << 8 : (words << 7) & std::uint16_t{0xbfff};
    }
    return codes;
  }
  static QUANTO_INLINE void put_into_memory(Codes& codes) { asm("" : "+m"(codes.of)); }
  /// The largest of bytes that are 0xff for a NaN and less for any other code.
  static QUANTO_INLINE WholeBytes mark_nan(const std::uint8_t* at, WholeBytes marks) {
    static_assert(ByteFloatDots<kType>::kChunk == kVectorBytes);
    WholeBytes bytes;
    __builtin_memcpy(&bytes, at, kVectorBytes);  // 0x7f and 0xff in one format, 0x80 alone in the other
    bytes = kType == QType::qfloat8_e4m3fn ? bytes | std::uint8_t{0x80} : bytes ^ std::uint8_t{0x7f};
    return larger_bytes(marks, bytes);
  }
  static QUANTO_INLINE FloatLanes decode(const Codes& codes, int, int v) {
    WordLanes words;
    __builtin_memcpy(&words, reinterpret_cast<const char*>(codes.of) + v * sizeof(words), sizeof(words));
    return float16_lanes(words);
  }
  static constexpr float field_factor(int) {
    return kType == QType::qfloat8_e5m2 ? 1.0f : kType == QType::qfloat8_e4m3fn ? 0x1p8f : 0x1p7f;
  }
  template <DType kDType>
  static inline bool prepare(const void* x, std::int64_t index, std::int64_t count, FloatLanes* out) {
    return prepare_floats<Float16Dots, kDType>(x, index, count, out);
  }
};
#endif

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
  /// The codes with the field that starts at `bit` of a byte moved to its lowest bits.
  static QUANTO_INLINE Codes shifted(const Codes& codes, int bit) { return {{codes.of[0] >> bit, codes.of[1] >> bit}}; }
  static QUANTO_INLINE X decode(const Codes& codes, int field, int v) {
    const std::uint32_t mask = ((1u << kBits) - 1) << (kBits * field + (v == 3 ? 0 : 8 * v));
    return to_float((IntLanes)(codes.of[v == 3 ? 1 : 0] & mask));
  }
  static QUANTO_INLINE FloatLanes add_products(X w, X x, FloatLanes sum) { return multiply_add(w, x, sum); }
  static constexpr float field_factor(int field) { return 1.0f / static_cast<float>(1 << (kBits * field)); }
  /// Lane l of vector v meets byte v of the four in a lane, whose power of two it undoes.
  static inline void arrange(FloatLanes (&x)[kVectors]) {
    deal(x);
    x[1] *= 0x1p-8f;
    x[2] *= 0x1p-16f;
  }
  template <DType kDType>
  static inline bool prepare(const void* x, std::int64_t index, std::int64_t count, X* out) {
    return prepare_floats<PackedFloatDots, kDType>(x, index, count, out);
  }
};

#if defined(__AVX512F__)
/// Conversions of unsigned numbers leave no byte to shift, and the field in a lane's lowest bits is looked up at once:
/// 23 instructions for 128 codes instead of 25. Lookups of the other fields, behind shifts, would save as much where
/// both have ports of their own and cost more on Zen 4.
struct MaskedInt4Dots : PackedFloatDots<4> {
  using Codes = BitLanes;

  /// sum += w * x, in the order of the source among others of its kind.
  static QUANTO_INLINE void add_products_in_order(X w, X x, FloatLanes& sum) {
    asm volatile("vfmadd231ps %1, %2, %0" : "+v"(sum) : "v"(w), "v"(x));
  }

  static QUANTO_INLINE Codes load_codes(const std::uint8_t* at) { return (BitLanes)_mm512_loadu_si512(at); }
  static QUANTO_INLINE Codes shifted(Codes codes, int bit) { return codes >> bit; }
  static QUANTO_INLINE X decode(Codes codes, int field, int v) {
    if (field == 0 && v == 0) {
      return (X)_mm512_permutexvar_ps((__m512i)codes, (__m512)to_float(lane_numbers()));
    }
    return (X)_mm512_cvtepu32_ps((__m512i)(codes & (0xfu << (4 * field + 8 * v))));
  }
  static inline void arrange(FloatLanes (&x)[kVectors]) {
    PackedFloatDots<4>::arrange(x);
    x[3] *= 0x1p-24f;
  }
  template <DType kDType>
  static inline bool prepare(const void* x, std::int64_t index, std::int64_t count, X* out) {
    return prepare_floats<MaskedInt4Dots, kDType>(x, index, count, out);
  }
};

/// Codes of two bits, looked up: an index of four bits reaches two fields, so that only every second one is shifted.
/// Two instructions for masking and conversion become one and a half.
struct LookedUpInt2Dots : PackedFloatDots<2> {
  using Codes = __m512i;

  static QUANTO_INLINE Codes load_codes(const std::uint8_t* at) { return _mm512_loadu_si512(at); }
  static QUANTO_INLINE Codes shifted(Codes codes, int bit) { return _mm512_srl_epi32(codes, _mm_cvtsi32_si128(bit)); }
  static QUANTO_INLINE X decode(Codes codes, int field, int v) {
    const int first = 8 * v + 4 * (field / 2);
    const __m512i index = first == 0 ? codes : _mm512_srli_epi32(codes, static_cast<unsigned>(first));
    const auto values = (IntLanes)((BitLanes)lane_numbers() >> (field % 2 == 0 ? 0 : 2)) & 3;
    return (X)_mm512_permutexvar_ps(index, (__m512)to_float(values));
  }
  static constexpr float field_factor(int) { return 1.0f; }
  static inline void arrange(FloatLanes (&x)[kVectors]) { deal(x); }
  template <DType kDType>
  static inline bool prepare(const void* x, std::int64_t index, std::int64_t count, X* out) {
    return prepare_floats<LookedUpInt2Dots, kDType>(x, index, count, out);
  }
};
#endif

/// What each qtype is multiplied with float32 activations by.
template <QType kType>
struct FloatDots : ByteFloatDots<kType> {};
#if defined(__AVX512F__)
template <>
struct FloatDots<QType::qint4> : MaskedInt4Dots {};
template <>
struct FloatDots<QType::qint2> : LookedUpInt2Dots {};
#else
template <>
struct FloatDots<QType::qint4> : PackedFloatDots<4> {};
template <>
struct FloatDots<QType::qint2> : PackedFloatDots<2> {};
#endif
#if defined(__AVX2__) && defined(__F16C__)
template <>
struct FloatDots<QType::qfloat8_e4m3fn> : Float16Dots<QType::qfloat8_e4m3fn> {};
template <>
struct FloatDots<QType::qfloat8_e4m3fnuz> : Float16Dots<QType::qfloat8_e4m3fnuz> {};
template <>
struct FloatDots<QType::qfloat8_e5m2> : Float16Dots<QType::qfloat8_e5m2> {};
#endif

}  // namespace
}  // namespace quanto::kernels
