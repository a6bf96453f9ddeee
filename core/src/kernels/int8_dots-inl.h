// Dot products of codes with int8 activations for the kernel for few rows (see dots-inl.h): sums are int32, exact as
// far as codes share a scale. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/int8_steps-inl.h"
#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

/// What all of them share.
template <QType kType>
struct Int8Dots {
  static constexpr QType kQType = kType;
  static constexpr bool kIntegers = true;
  using Sum = IntLanes;
  /// Codes whose products the sums hold.
  static constexpr std::int64_t kMostTogether = kMaxInt8Group;
  static constexpr int kFields = 8 / bits_of(kType);
  static constexpr bool kDecodesNan = true;
  static constexpr bool kTakesAllValues = true;
  static constexpr float field_factor(int) { return 1.0f; }
};

/// Bytes of codes, two in a word.
struct WordsOfCodes {
  struct Codes {
    UnsignedWords words;
  };
  static QUANTO_INLINE Codes load_codes(const std::uint8_t* at) {
    Codes codes;
    __builtin_memcpy(&codes.words, at, kVectorBytes);
    return codes;
  }
  /// The codes with the field that starts at `bit` of a byte moved to its lowest bits.
  static QUANTO_INLINE Codes shifted(const Codes& codes, int bit) {
    return {codes.words >> static_cast<std::uint16_t>(bit)};
  }
};

/// The bytes of even index, as int16 numbers, meet the activations of even index, then those of odd index likewise.
template <QType kType>
struct Int8PairDots : Int8Dots<kType>, WordsOfCodes {
  static constexpr int kVectors = 2;
  static constexpr std::int64_t kChunk = kVectorBytes;
  static constexpr std::int32_t kCentre = Int8Pairs::kCentre;
  using X = IntLanes;

  static QUANTO_INLINE X decode(const Codes& codes, int field, int v) {
    if constexpr (is_affine_qtype(kType)) {
      constexpr int kBits = bits_of(kType);
      return (X)(codes.words >> (8 * v + kBits * field) & static_cast<std::uint16_t>((1 << kBits) - 1));
    } else {
      const auto first = v == 0 ? (SignedWords)(codes.words << 8) : (SignedWords)codes.words;
      return (X)(first >> 8);
    }
  }
  static QUANTO_INLINE IntLanes add_products(X w, X x, IntLanes sum) { return Int8Pairs::multiply_add(w, x, sum); }
  template <DType>
  static inline bool prepare(const void* x, std::int64_t index, std::int64_t count, X* out) {
    std::int16_t dealt[2][kVectorBytes / 2] = {};
    const std::int8_t* from = static_cast<const std::int8_t*>(x) + index;
    for (std::int64_t i = 0; i < count; ++i) dealt[i % 2][i / 2] = from[i];
    __builtin_memcpy(out, dealt, sizeof(dealt));
    return true;
  }
};

#if defined(__AVX2__)
/// Packed codes are so small that int16 sums hold the products of a group, which takes half the instructions.
template <QType kType>
struct Int8SmallDots : Int8Dots<kType>, WordsOfCodes {
  static_assert(is_affine_qtype(kType));
  static constexpr int kVectors = 1;
  static constexpr std::int64_t kChunk = kVectorBytes;
  static constexpr std::int32_t kCentre = Int8SmallQuads<bits_of(kType)>::kCentre;
  static constexpr int kBits = bits_of(kType);
  static constexpr int kLargestCode = (1 << kBits) - 1;
  static constexpr std::int64_t kMostTogether = kPairsInWord<kBits> * kChunk;
  using X = IntLanes;
  using Sum = SignedWords;

  static QUANTO_INLINE X decode(const Codes& codes, int field, int) {
    return (X)(codes.words >> (kBits * field) & static_cast<std::uint16_t>(kLargestCode * 0x0101));
  }
  static QUANTO_INLINE Sum add_products(X w, X x, Sum sum) { return sum + products_of_pairs(w, x); }
  template <DType>
  static inline bool prepare(const void* x, std::int64_t index, std::int64_t count, X* out) {
    *out = (X)Int8SmallQuads<kBits>::load_activations(static_cast<const std::int8_t*>(x) + index, count);
    return true;
  }
};
#endif

#if defined(__AVX512VNNI__)
template <QType kType>
struct Int8QuadDots : Int8Dots<kType> {
  static constexpr int kVectors = 1;
  static constexpr std::int64_t kChunk = 64;
  static constexpr std::int32_t kCentre = is_affine_qtype(kType) ? 0 : Int8Quads::kCentre;
  using X = __m512i;
  struct Codes {
    __m512i bytes;
  };

  static QUANTO_INLINE Codes load_codes(const std::uint8_t* at) {
    const __m512i bytes = _mm512_loadu_si512(at);
    return {is_affine_qtype(kType) ? bytes : _mm512_xor_si512(bytes, _mm512_set1_epi8(-128))};
  }
  static QUANTO_INLINE Codes shifted(const Codes& codes, int bit) {
    return {_mm512_srl_epi16(codes.bytes, _mm_cvtsi32_si128(bit))};
  }
  static QUANTO_INLINE X decode(const Codes& codes, int field, int) {
    if constexpr (!is_affine_qtype(kType)) return codes.bytes;
    constexpr int kBits = bits_of(kType);
    const __m512i shifted = _mm512_srli_epi16(codes.bytes, static_cast<unsigned>(kBits * field));
    return _mm512_and_si512(shifted, _mm512_set1_epi8((1 << kBits) - 1));
  }
  static QUANTO_INLINE IntLanes add_products(X w, X x, IntLanes sum) {
    return Int8Quads::multiply_add((IntLanes)w, (IntLanes)x, sum);
  }
  template <DType>
  static inline bool prepare(const void* x, std::int64_t index, std::int64_t count, X* out) {
    *out = Int8Quads::load_bytes(static_cast<const std::int8_t*>(x) + index, count);
    return true;
  }
};
#endif

}  // namespace
}  // namespace quanto::kernels
