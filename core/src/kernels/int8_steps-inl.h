// How codes of weights meet int8 activations in integer instructions: several neighbours along K in each 32-bit lane,
// whose products are added up to its int32 sum. Exact: sums wrap, and what they stand for fits (kMaxInt8Group).
// Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

inline const std::int8_t* int8_row(const MatmulArgs& a, std::int64_t m) {
  return static_cast<const std::int8_t*>(a.x) + m * a.x_stride;
}

inline std::int32_t sum_of_codes(const std::int8_t* x, std::int64_t n) {
  std::int32_t sum = 0;
  for (std::int64_t k = 0; k < n; ++k) sum += x[k];
  return sum;
}

inline IntLanes broadcast_int(std::int32_t v) {
#if defined(__AVX512F__)
  return (IntLanes)_mm512_set1_epi32(v);
#elif defined(__AVX2__)
  return (IntLanes)_mm256_set1_epi32(v);
#else
  return IntLanes{v, v, v, v};
#endif
}

/// A step without state of its own, multiplied lane by lane: by default int8 activations, of integer sums.
struct LaneSteps {
  struct Scope {};
  static constexpr bool kTiles = false;
  static constexpr std::int64_t kStepsAtOnce = 1;
  static constexpr bool kIntegers = true;
  static constexpr bool kMultipliesCodes = true;
  static constexpr bool kTakesAllValues = true;
  static constexpr bool kTakesPlanes = false;
  using Sum = IntLanes;
  using Activation = std::int8_t;
  /// How many steps' products a smaller type, Products, holds the sum of, which they are added up in first; 0: none.
  static constexpr std::int64_t kMostProducts = 0;

  /// Whether the lanes of activations that were added hold nothing but what the step serves.
  struct Values {
    void add(BitLanes /*lanes*/) {}
    bool plain() const { return true; }
  };
};

/// Two int16 numbers in a lane: what every instruction set multiplies.
struct Int8Pairs : LaneSteps {
  static constexpr std::int64_t kStep = 2;
  static constexpr std::int32_t kOnes = 0x00010001;  // a lane of codes that are 1
  using Code = std::int16_t;
  /// What is added to signed codes.
  static constexpr std::int32_t kCentre = 0;

  static inline IntLanes multiply_add(IntLanes w, IntLanes x, IntLanes sum) {
#if defined(__AVX512F__)
    return (IntLanes)_mm512_add_epi32((__m512i)sum, _mm512_madd_epi16((__m512i)w, (__m512i)x));
#elif defined(__AVX2__)
    return (IntLanes)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16((__m256i)w, (__m256i)x));
#elif defined(__SSE2__)
    return (IntLanes)_mm_add_epi32((__m128i)sum, _mm_madd_epi16((__m128i)w, (__m128i)x));
#else
    const IntLanes low = ((IntLanes)((BitLanes)w << 16) >> 16) * ((IntLanes)((BitLanes)x << 16) >> 16);
    return (IntLanes)((BitLanes)sum + (BitLanes)low + (BitLanes)((w >> 16) * (x >> 16)));
#endif
  }

  /// The lanes of `count` activations, zeros after them.
  static inline BitLanes load_activations(const std::int8_t* x, std::int64_t count) {
#if defined(__AVX2__) && defined(__F16C__)
    if (count >= 2 * kLanes) return (BitLanes)load_signed_bytes(reinterpret_cast<const std::uint8_t*>(x));
#endif
    std::int16_t wide[2 * kLanes] = {};
    for (std::int64_t i = 0; i < count; ++i) wide[i] = x[i];
    BitLanes lanes;
    __builtin_memcpy(&lanes, wide, sizeof(lanes));
    return lanes;
  }

  static inline void widen(const std::uint8_t* codes, std::int64_t count, Code* out) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<std::int8_t>(codes[i]);
  }
  /// The codes of kBits bits from bit `shift` of each byte on.
  template <int kBits>
  static inline void unpack(const std::uint8_t* bytes, std::int64_t count, int shift, Code* out) {
    for (std::int64_t i = 0; i < count; ++i) out[i] = static_cast<Code>(bytes[i] >> shift & ((1 << kBits) - 1));
  }
};

#if defined(__AVX2__)
/// In int16 lanes: the sums of the products of neighbouring bytes, unsigned ones of w and signed ones of x.
inline SignedWords products_of_pairs(IntLanes w, IntLanes x) {
#if defined(__AVX512F__)
  return (SignedWords)_mm512_maddubs_epi16((__m512i)w, (__m512i)x);
#else
  return (SignedWords)_mm256_maddubs_epi16((__m256i)w, (__m256i)x);
#endif
}
/// The sums of neighbouring int16 lanes.
inline IntLanes sums_of_pairs(SignedWords words) {
#if defined(__AVX512F__)
  return (IntLanes)_mm512_madd_epi16((__m512i)words, _mm512_set1_epi16(1));
#else
  return (IntLanes)_mm256_madd_epi16((__m256i)words, _mm256_set1_epi16(1));
#endif
}
/// How many products_of_pairs with codes of kBits bits an int16 lane holds the sum of.
template <int kBits>
constexpr std::int64_t kPairsInWord = 32767 / (2 * 128 * ((1 << kBits) - 1));

/// Four bytes in a lane, of packed codes, which are unsigned and so small that int16 lanes hold the products of several
/// steps: to add those up first takes half the multiplications.
template <int kBitsOfCodes>
struct Int8SmallQuads : LaneSteps {
  static constexpr std::int64_t kStep = 4;
  static constexpr std::int32_t kOnes = 0x01010101;
  using Code = std::uint8_t;
  static constexpr std::int32_t kCentre = 0;
  using Products = SignedWords;
  static constexpr std::int64_t kMostProducts = kPairsInWord<kBitsOfCodes>;

  static inline Products multiply_add(IntLanes w, IntLanes x, Products sum) { return sum + products_of_pairs(w, x); }
  static inline IntLanes multiply_add(IntLanes w, IntLanes x, IntLanes sum) {
    return add(sum, products_of_pairs(w, x));
  }
  static inline IntLanes add(IntLanes sum, Products products) {
    return (IntLanes)((BitLanes)sum + (BitLanes)sums_of_pairs(products));
  }

  static inline BitLanes load_activations(const std::int8_t* x, std::int64_t count) {
    if (count >= kVectorBytes) return load<BitLanes>(x, kLanes);
    BitLanes lanes{};
    if (count > 0) __builtin_memcpy(&lanes, x, static_cast<std::size_t>(count));
    return lanes;
  }
  /// Writes whole vectors.
  template <int kBits>
  static inline void unpack(const std::uint8_t* bytes, std::int64_t count, int shift, Code* out) {
    constexpr std::uint16_t kMask = ((1 << kBits) - 1) * 0x0101;
    for (std::int64_t i = 0; i < count; i += kVectorBytes) {
      const auto words = (UnsignedWords)load_activations(reinterpret_cast<const std::int8_t*>(bytes + i), count - i);
      const UnsignedWords codes = words >> static_cast<std::uint16_t>(shift) & kMask;
      __builtin_memcpy(out + i, &codes, sizeof(codes));
    }
  }
};
#endif

/// What tiles multiply: 32 channels of codes and 32 rows of activations, `apart` bytes from one channel or step to the
/// next.
struct TileOperands {
  const void* codes;
  std::int64_t codes_apart;
  const void* x;
  std::int64_t x_apart;
  std::int64_t steps;
};

#if defined(__AVX512VNNI__)
/// Four bytes in a lane. The instruction multiplies unsigned with signed ones: codes are the unsigned ones, signed
/// codes with 128 added, whose products are the sum of the activations times 128.
struct Int8Quads : LaneSteps {
  static constexpr std::int64_t kStep = 4;
  static constexpr std::int32_t kOnes = 0x01010101;
  using Code = std::uint8_t;
  static constexpr std::int32_t kCentre = 128;

  static inline IntLanes multiply_add(IntLanes w, IntLanes x, IntLanes sum) {
    return (IntLanes)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
  }
  static inline __m512i load_bytes(const void* from, std::int64_t count) {
    return count >= 64 ? _mm512_loadu_si512(from)
                       : _mm512_maskz_loadu_epi8(count <= 0 ? 0 : ~__mmask64{0} >> (64 - count), from);
  }
  static inline BitLanes load_activations(const std::int8_t* x, std::int64_t count) {
    return (BitLanes)load_bytes(x, count);
  }

  /// Both write whole vectors.
  static inline void widen(const std::uint8_t* codes, std::int64_t count, Code* out) {
    for (std::int64_t i = 0; i < count; i += 64) {
      _mm512_storeu_si512(out + i, _mm512_xor_si512(load_bytes(codes + i, count - i), _mm512_set1_epi8(-128)));
    }
  }
  template <int kBits>
  static inline void unpack(const std::uint8_t* bytes, std::int64_t count, int shift, Code* out) {
    const __m512i mask = _mm512_set1_epi8((1 << kBits) - 1);
    for (std::int64_t i = 0; i < count; i += 64) {
      const __m512i shifted = _mm512_srl_epi16(load_bytes(bytes + i, count - i), _mm_cvtsi32_si128(shift));
      _mm512_storeu_si512(out + i, _mm512_and_si512(shifted, mask));
    }
  }
};
#endif

}  // namespace
}  // namespace quanto::kernels
