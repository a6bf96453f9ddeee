// Codes as bfloat16 numbers, which hold every code of every qtype exactly, by table lookups in registers. For units
// with AVX-512 VBMI and BF16. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

/// The bits of a code's value as a bfloat16. The lower half of its float32 is zero.
template <QType kQType>
constexpr std::uint16_t bf16_of_code(int code) {
  const float value = is_float8(kQType) ? float8_to_float(float8_format(kQType), static_cast<std::uint8_t>(code))
                                        : static_cast<float>(code);
  return static_cast<std::uint16_t>(__builtin_bit_cast(std::uint32_t, value) >> 16);
}

/// The high byte of 128 as a bfloat16, the low one of which is zero.
constexpr std::uint8_t kHighByteOf128 = 0x43;

/// The values of the codes 0 to 127, their low and high bytes apart, as the byte lookups want them. High bytes of int8
/// codes are stored with the bits of kHighByteOf128 flipped.
template <QType kQType>
struct ByteTables {
  static constexpr std::uint8_t kFlipped = kQType == QType::qint8 ? kHighByteOf128 : 0;
  alignas(64) std::uint8_t low[128], high[128];

  constexpr ByteTables() : low(), high() {
    for (int code = 0; code < 128; ++code) {
      low[code] = static_cast<std::uint8_t>(bf16_of_code<kQType>(code));
      high[code] = static_cast<std::uint8_t>(bf16_of_code<kQType>(code) >> 8 ^ kFlipped);
    }
  }
};
template <QType kQType>
constexpr ByteTables<kQType> kByteTables;

/// The low and the high bytes of 64 values.
struct Bf16Bytes {
  __m512i low, high;
};

/// The sign of a float8 code is that of its value; an int8 code is looked up by its magnitude. The code 0x80 is
/// special: the NaN of the format without a negative zero, or -128, whose magnitude is looked up as that of zero. But a
/// shuffle of bytes gives zero for an index as large as that, so that high bytes are flipped back for all others.
///
/// No instruction for int8 takes the place of a dot product on Zen 4, where `vpabsb` and comparisons do.
template <QType kQType>
QUANTO_INLINE Bf16Bytes look_up_bf16(__m512i codes) {
  const auto& tables = kByteTables<kQType>;
  __m512i index = codes;
  if constexpr (kQType == QType::qint8) {
    __m512i negated = _mm512_sub_epi8(_mm512_setzero_si512(), codes);
    QUANTO_IN_REGISTER(negated);  // or the compiler may know it for vpabsb
    index = _mm512_max_epi8(codes, negated);
  }
  __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(tables.low), index, _mm512_load_si512(tables.low + 64));
  __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(tables.high), index, _mm512_load_si512(tables.high + 64));
  const __m512i sign = _mm512_set1_epi8(-128);
  if constexpr (kQType == QType::qint8) {
    high = _mm512_xor_si512(high, _mm512_shuffle_epi8(_mm512_set1_epi8(kHighByteOf128), index));
  }
  high = _mm512_ternarylogic_epi32(high, codes, sign, 0xf8);  // high | (codes & sign)
  if constexpr (kQType == QType::qfloat8_e4m3fnuz) {
    const __mmask64 nan = _mm512_cmpeq_epi8_mask(codes, sign);  // 0x7fc0
    high = _mm512_mask_blend_epi8(nan, high, _mm512_set1_epi8(0x7f));
    low = _mm512_mask_blend_epi8(nan, low, _mm512_set1_epi8(static_cast<char>(0xc0)));
  }
  return {low, high};
}

/// 64 values, the low and the high half of each 128-bit lane's codes apart.
struct Bf16Halves {
  __m512i of[2];
};

template <QType kQType>
QUANTO_INLINE Bf16Halves decode_to_bf16(__m512i codes) {
  const Bf16Bytes bytes = look_up_bf16<kQType>(codes);
  return {{_mm512_unpacklo_epi8(bytes.low, bytes.high), _mm512_unpackhi_epi8(bytes.low, bytes.high)}};
}

/// The values of packed codes by the five lowest bits of an index, of which kBits from bit kFirst on are the code.
template <int kBits, int kFirst>
struct WordTable {
  alignas(64) std::uint16_t values[32];

  constexpr WordTable() : values() {
    for (int i = 0; i < 32; ++i) values[i] = bf16_of_code<QType::qint8>(i >> kFirst & ((1 << kBits) - 1));
  }
};
template <int kBits, int kFirst>
constexpr WordTable<kBits, kFirst> kWordTable;

/// Each word's bits from bit `first` on, in the low bits of the word. On Intel's cores dot products and shifts of 512
/// bits share a port and stall each other: a dot product takes 2 cycles alone, 4 beside a shift. On AMD's it is the
/// other instruction that takes the place of a dot product: codes are shifted where that and not memory is what takes
/// the time.
template <bool kShifts>
QUANTO_INLINE __m512i words_from_bit(__m512i words, int first) {
  if (first == 0) return words;
  if constexpr (kShifts) return _mm512_srli_epi16(words, static_cast<unsigned>(first));
  return _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x3030202010100000 + first * 0x0101010101010101), words);
}

/// The values of the codes in field `field` of the bytes that start at bit `offset` of each word. An index of five bits
/// reaches two fields of two bits, so every second one needs no shift of its own.
template <int kBits, bool kShifts = kBits == 2>
QUANTO_INLINE __m512i decode_words(__m512i words, int field, int offset) {
  if constexpr (kBits == 4) {
    return _mm512_permutexvar_epi16(words_from_bit<kShifts>(words, offset + 4 * field),
                                    _mm512_load_si512(kWordTable<4, 0>.values));
  } else {
    const auto* table = field % 2 == 0 ? kWordTable<2, 0>.values : kWordTable<2, 2>.values;
    return _mm512_permutexvar_epi16(words_from_bit<kShifts>(words, offset + 4 * (field / 2)), _mm512_load_si512(table));
  }
}

/// Of each word's bit pattern, whether it is zero or of a magnitude in [kSmallestPlain, kLargestPlain).
QUANTO_INLINE bool all_plain(__m512i bf16) {
  const __m512i magnitude = _mm512_and_si512(bf16, _mm512_set1_epi16(0x7fff));
  const __m512i above = _mm512_sub_epi16(magnitude, _mm512_set1_epi16(static_cast<short>(kSmallestPlain >> 16)));
  const __m512i range = _mm512_set1_epi16(static_cast<short>((kLargestPlain - kSmallestPlain) >> 16));
  return (_mm512_cmpge_epu16_mask(above, range) & _mm512_test_epi16_mask(magnitude, magnitude)) == 0;
}

/// The words of even and of odd index added up as floats, in pairs.
QUANTO_INLINE __m512 pair_sums(__m512i bf16) {
  const __m512i odd = _mm512_and_si512(bf16, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
  return _mm512_add_ps(_mm512_castsi512_ps(_mm512_slli_epi32(bf16, 16)), _mm512_castsi512_ps(odd));
}

/// `count` bfloat16 numbers of which the first 32 are wanted, zeros after them.
QUANTO_INLINE __m512i load_bf16(const void* x, std::int64_t index, std::int64_t count) {
  const auto* at = static_cast<const char*>(x) + index * 2;
  if (count >= 32) return _mm512_loadu_si512(at);
  return _mm512_maskz_loadu_epi16(count <= 0 ? 0 : (1u << count) - 1, at);
}

QUANTO_INLINE FloatLanes multiply_add_pairs(__m512i w, __m512i x, FloatLanes sum) {
  return (FloatLanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)x);
}

/// Dot products of 64 codes with bfloat16 activations (see dots-inl.h). The instruction takes subnormal numbers for
/// zero, so activations that could make one are left to other kernels.
template <QType kType>
struct Bf16Dots {
  static constexpr QType kQType = kType;
  static constexpr int kFields = 8 / bits_of(kType);
  static constexpr int kVectors = 2;
  static constexpr std::int64_t kChunk = 64;
  static constexpr bool kDecodesNan = true;
  static constexpr bool kTakesAllValues = false;
  using X = __m512i;
  using Codes = Bf16Halves;  ///< the packed bytes, in the first half, where codes are packed

  static QUANTO_INLINE Codes load_codes(const std::uint8_t* at) {
    const __m512i codes = _mm512_loadu_si512(at);
    if constexpr (is_affine_qtype(kType)) {
      return {{codes, codes}};
    } else {
      return decode_to_bf16<kType>(codes);
    }
  }
  /// The codes with the field that starts at `bit` of a byte moved to its lowest bits.
  static QUANTO_INLINE Codes shifted(const Codes& codes, int bit) {
    return {{_mm512_srl_epi16(codes.of[0], _mm_cvtsi32_si128(bit)), codes.of[1]}};
  }
  static QUANTO_INLINE X decode(const Codes& codes, int field, int v) {
    if constexpr (is_affine_qtype(kType)) return decode_words<bits_of(kType)>(codes.of[0], field, 8 * v);
    return codes.of[v];
  }
  static QUANTO_INLINE FloatLanes add_products(X w, X x, FloatLanes sum) { return multiply_add_pairs(w, x, sum); }
  static constexpr float field_factor(int) { return 1.0f; }

  /// Packed codes meet activations of even index, then of odd index; bytes come as unpacking leaves them.
  template <DType>
  static inline bool prepare(const void* x, std::int64_t index, std::int64_t count, X* out) {
    const __m512i a = load_bf16(x, index, count), b = load_bf16(x, index + 32, count - 32);
    if constexpr (is_affine_qtype(kType)) {
      out[0] = words_of(0, a, b);
      out[1] = words_of(1, a, b);
    } else {
      out[0] = _mm512_shuffle_i64x2(a, b, 0x88);
      out[1] = _mm512_shuffle_i64x2(a, b, 0xdd);
    }
    return all_plain(a) && all_plain(b);
  }

 protected:
  /// The words of even or of odd index of two vectors.
  static __m512i words_of(int parity, __m512i a, __m512i b) {
    const __m512i index =
        _mm512_add_epi16(_mm512_load_si512(kEvenWords.index), _mm512_set1_epi16(static_cast<short>(parity)));
    return _mm512_permutex2var_epi16(a, index, b);
  }

 private:
  struct EvenWords {
    alignas(64) std::uint16_t index[32];
    constexpr EvenWords() : index() {
      for (int i = 0; i < 32; ++i) index[i] = static_cast<std::uint16_t>(2 * i);
    }
  };
  static constexpr EvenWords kEvenWords{};
};

/// Dot products of 64 packed codes with float16 activations, each of which is the sum of two bfloat16 numbers: of its
/// first eight bits and of the other three. A decoded vector meets both, so that decoding takes half as many lookups as
/// float32 numbers do for as many multiplications. Every finite float16 number and its parts are plain.
template <QType kType>
struct SplitFloat16Dots : Bf16Dots<kType> {
  static_assert(is_affine_qtype(kType));
  static constexpr int kVectors = 4;
  using Codes = typename Bf16Dots<kType>::Codes;
  using X = __m512i;

  static QUANTO_INLINE X decode(const Codes& codes, int field, int v) {
    return decode_words<bits_of(kType), true>(codes.of[0], field, 8 * (v / 2));
  }
  /// The first bits of the activations of even index, their other bits, and the same of odd index.
  template <DType kDType>
  static inline bool prepare(const void* x, std::int64_t index, std::int64_t count, X* out) {
    static_assert(kDType == DType::float16);
    __m512i first[2], rest[2];  // of 32 activations each
    bool plain = true;
    for (int i = 0; i < 2; ++i) {
      __m256i first_words[2], rest_words[2];
      for (int j = 0; j < 2; ++j) {
        const std::int64_t begin = (2 * i + j) * kLanes;
        const FloatLanes value = load_remaining<kDType>(x, index + begin, count - begin);
        plain &= all_plain(value);
        const BitLanes upper = bits_from_float(value) & 0xffff0000u;
        first_words[j] = upper_words(upper);
        rest_words[j] = upper_words(bits_from_float(value - (FloatLanes)upper));
      }
      first[i] = _mm512_inserti64x4(_mm512_castsi256_si512(first_words[0]), first_words[1], 1);
      rest[i] = _mm512_inserti64x4(_mm512_castsi256_si512(rest_words[0]), rest_words[1], 1);
    }
    for (int parity = 0; parity < 2; ++parity) {
      out[2 * parity] = Bf16Dots<kType>::words_of(parity, first[0], first[1]);
      out[2 * parity + 1] = Bf16Dots<kType>::words_of(parity, rest[0], rest[1]);
    }
    return plain;
  }

 private:
  static __m256i upper_words(BitLanes bits) { return _mm512_cvtepi32_epi16((__m512i)(bits >> 16)); }
};

/// Dot products of 64 float8 codes with float32 activations: the codes' bfloat16 values are the upper halves of float32
/// ones. Exact for every code, where the conversions from float16 have to look for NaN and to rescale.
template <QType kType>
struct LookedUpFloatDots {
  static_assert(is_float8(kType));
  static constexpr QType kQType = kType;
  static constexpr int kFields = 1;
  static constexpr int kVectors = 4;
  static constexpr std::int64_t kChunk = 64;
  static constexpr bool kDecodesNan = true;
  static constexpr bool kTakesAllValues = true;
  using X = FloatLanes;
  using Codes = Bf16Halves;

  static QUANTO_INLINE Codes load_codes(const std::uint8_t* at) {
    return decode_to_bf16<kType>(_mm512_loadu_si512(at));
  }
  /// The words of even index of the first half, those of odd index, and the same of the second half.
  static QUANTO_INLINE X decode(const Codes& codes, int, int v) {
    const __m512i words = codes.of[v / 2];
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return (X)(v % 2 == 0 ? _mm512_slli_epi32(words, 16) : _mm512_and_si512(words, upper));
  }
  static QUANTO_INLINE FloatLanes add_products(X w, X x, FloatLanes sum) { return multiply_add(w, x, sum); }
  static constexpr float field_factor(int) { return 1.0f; }
  static inline void arrange(FloatLanes (&x)[kVectors]) {
    const Parted low = part(x[0], x[1]), high = part(x[2], x[3]);
    x[0] = quarters<0x88>(low.even, high.even);
    x[1] = quarters<0x88>(low.odd, high.odd);
    x[2] = quarters<0xdd>(low.even, high.even);
    x[3] = quarters<0xdd>(low.odd, high.odd);
  }
  template <DType kDType>
  static inline bool prepare(const void* x, std::int64_t index, std::int64_t count, X* out) {
    return prepare_floats<LookedUpFloatDots, kDType>(x, index, count, out);
  }

 private:
  template <int kPick>
  static FloatLanes quarters(FloatLanes a, FloatLanes b) {
    return (FloatLanes)_mm512_shuffle_f32x4((__m512)a, (__m512)b, kPick);
  }
};

}  // namespace
}  // namespace quanto::kernels
