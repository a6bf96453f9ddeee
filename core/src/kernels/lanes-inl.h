// Vectors as wide as the including unit's instruction set has them, in the compiler's vector types: arithmetic,
// comparisons and `mask ? a : b` work lane by lane. Only what those types lack, or what GCC compiles badly, is written
// in intrinsics: changes of width and the float16 conversions. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec-inl.h"

#if defined(__x86_64__)
// GCC 12 reports the deliberately undefined operands of its own AVX-512 intrinsics.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

namespace quanto::kernels {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;

typedef float FloatLanes __attribute__((vector_size(kVectorBytes)));
typedef std::int32_t IntLanes __attribute__((vector_size(kVectorBytes)));
typedef std::uint32_t BitLanes __attribute__((vector_size(kVectorBytes)));
typedef std::int16_t SignedWords __attribute__((vector_size(kVectorBytes)));
typedef std::uint16_t UnsignedWords __attribute__((vector_size(kVectorBytes)));

// Bytes and 16-bit words beside 32-bit lanes: one element per lane.
typedef std::uint8_t ByteLanes __attribute__((vector_size(kLanes)));
typedef std::uint16_t WordLanes __attribute__((vector_size(kLanes * 2)));

#if defined(__AVX512F__)
constexpr __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1); }
#elif defined(__AVX2__)
inline IntLanes first_lanes(int count) { return IntLanes{0, 1, 2, 3, 4, 5, 6, 7} < count; }
/// Up to four of them, put together in a register: what is stored in parts takes long to be loaded as a whole.
inline std::uint64_t first_words(const char* from, int count) {
  std::uint64_t all = 0;
  for (int i = 0; i < 4 && i < count; ++i) {
    std::uint16_t word;
    __builtin_memcpy(&word, from + 2 * i, sizeof(word));
    all |= static_cast<std::uint64_t>(word) << (16 * i);
  }
  return all;
}
#endif

/// The first `count` elements at any address (tensors mapped from files are not aligned), zeros after them.
template <class Vector>
inline Vector load(const void* from, int count) {
#if defined(__AVX512F__)
  if (!__builtin_constant_p(count)) {
    if constexpr (sizeof(Vector) == 4 * kLanes) return (Vector)_mm512_maskz_loadu_ps(first_lanes(count), from);
    if constexpr (sizeof(Vector) == 2 * kLanes) return (Vector)_mm256_maskz_loadu_epi16(first_lanes(count), from);
    if constexpr (sizeof(Vector) == kLanes) return (Vector)_mm_maskz_loadu_epi8(first_lanes(count), from);
  }
#elif defined(__AVX2__)
  if (!__builtin_constant_p(count)) {
    if constexpr (sizeof(Vector) == 4 * kLanes) {
      return (Vector)_mm256_maskload_ps(static_cast<const float*>(from), (__m256i)first_lanes(count));
    }
    if constexpr (sizeof(Vector) == 2 * kLanes) {
      const auto* words = static_cast<const char*>(from);
      const std::uint64_t low = first_words(words, count), high = count > 4 ? first_words(words + 8, count - 4) : 0;
      return (Vector)_mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low));
    }
  }
#endif
  Vector value{};
  __builtin_memcpy(&value, from, static_cast<std::size_t>(count) * (sizeof(Vector) / kLanes));
  return value;
}
template <class Vector>
inline void store(void* to, Vector value, int count) {
#if defined(__AVX512F__)
  if (!__builtin_constant_p(count)) {
    if constexpr (sizeof(Vector) == 4 * kLanes) return _mm512_mask_storeu_ps(to, first_lanes(count), (__m512)value);
    if constexpr (sizeof(Vector) == 2 * kLanes) return _mm256_mask_storeu_epi16(to, first_lanes(count), (__m256i)value);
    if constexpr (sizeof(Vector) == kLanes) return _mm_mask_storeu_epi8(to, first_lanes(count), (__m128i)value);
  }
#elif defined(__AVX2__)
  if (!__builtin_constant_p(count)) {
    if constexpr (sizeof(Vector) == 4 * kLanes) {
      return _mm256_maskstore_ps(static_cast<float*>(to), (__m256i)first_lanes(count), (__m256)value);
    }
  }
#endif
  __builtin_memcpy(to, &value, static_cast<std::size_t>(count) * (sizeof(Vector) / kLanes));
}

/// `count` floats that lie `apart` from one to the next, zeros after them.
inline FloatLanes gather(const float* from, std::int64_t apart, int count) {
  FloatLanes v{};
  for (int lane = 0; lane < count; ++lane) v[lane] = from[lane * apart];
  return v;
}

/// A full vector, with its length known to the compiler, or the elements that are left at the end.
struct WholeChunk {
  static constexpr int count = kLanes;
};
struct LastChunk {
  int count;
};

/// body(index, chunk) for each vector of n elements.
template <class Body>
inline __attribute__((always_inline)) void for_chunks(std::int64_t n, Body body) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, WholeChunk{});
  if (i < n) body(i, LastChunk{static_cast<int>(n - i)});
}

#if defined(__AVX512F__)

inline BitLanes widen(ByteLanes v) { return (BitLanes)_mm512_cvtepu8_epi32((__m128i)v); }
inline BitLanes widen(WordLanes v) { return (BitLanes)_mm512_cvtepu16_epi32((__m256i)v); }
inline ByteLanes narrow_to_bytes(BitLanes v) { return (ByteLanes)_mm512_cvtepi32_epi8((__m512i)v); }
inline WordLanes narrow_to_words(BitLanes v) { return (WordLanes)_mm512_cvtepi32_epi16((__m512i)v); }

#elif defined(__AVX2__)

inline BitLanes widen(ByteLanes v) {
  return (BitLanes)_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(__builtin_bit_cast(long long, v)));
}
inline BitLanes widen(WordLanes v) { return (BitLanes)_mm256_cvtepu16_epi32((__m128i)v); }
/// Of lanes below 2^16.
inline WordLanes narrow_to_words(BitLanes v) {
  const __m256i all = (__m256i)v;
  return (WordLanes)_mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}
/// Of lanes below 2^8.
inline ByteLanes narrow_to_bytes(BitLanes v) {
  const __m128i words = (__m128i)narrow_to_words(v);
  return __builtin_bit_cast(ByteLanes, _mm_cvtsi128_si64(_mm_packus_epi16(words, words)));
}

#elif defined(__SSE2__)

inline BitLanes widen(WordLanes v) {
  const __m128i words = _mm_cvtsi64_si128(__builtin_bit_cast(long long, v));
  return (BitLanes)_mm_unpacklo_epi16(words, _mm_setzero_si128());
}
inline BitLanes widen(ByteLanes v) {
  const __m128i bytes = _mm_cvtsi32_si128(__builtin_bit_cast(int, v));
  return widen(__builtin_bit_cast(WordLanes, _mm_cvtsi128_si64(_mm_unpacklo_epi8(bytes, _mm_setzero_si128()))));
}
/// Of lanes below 2^16: the packing instruction saturates signed numbers, so they move below 2^15 and back.
inline WordLanes narrow_to_words(BitLanes v) {
  const __m128i centred = (__m128i)(v - 0x8000u);
  const __m128i words = _mm_xor_si128(_mm_packs_epi32(centred, centred), _mm_set1_epi16(-0x8000));
  return __builtin_bit_cast(WordLanes, _mm_cvtsi128_si64(words));
}
/// Of lanes below 2^8.
inline ByteLanes narrow_to_bytes(BitLanes v) {
  const __m128i words = _mm_packs_epi32((__m128i)v, (__m128i)v);
  return __builtin_bit_cast(ByteLanes, _mm_cvtsi128_si32(_mm_packus_epi16(words, words)));
}

#else

inline BitLanes widen(ByteLanes v) { return __builtin_convertvector(v, BitLanes); }
inline BitLanes widen(WordLanes v) { return __builtin_convertvector(v, BitLanes); }
inline ByteLanes narrow_to_bytes(BitLanes v) { return __builtin_convertvector(v, ByteLanes); }
inline WordLanes narrow_to_words(BitLanes v) { return __builtin_convertvector(v, WordLanes); }

#endif

/// Four vectors of lanes below 2^8 as bytes.
inline void store_bytes(std::uint8_t* to, BitLanes a, BitLanes b, BitLanes c, BitLanes d) {
#if defined(__AVX512F__)
  const __m512i low = _mm512_packus_epi32((__m512i)a, (__m512i)b), high = _mm512_packus_epi32((__m512i)c, (__m512i)d);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, _mm512_packus_epi16(low, high)));
#elif defined(__AVX2__)
  const __m256i low = _mm256_packus_epi32((__m256i)a, (__m256i)b), high = _mm256_packus_epi32((__m256i)c, (__m256i)d);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
#else
  const BitLanes lanes[] = {a, b, c, d};
  for (int v = 0; v < 4; ++v) store(to + v * kLanes, narrow_to_bytes(lanes[v]), kLanes);
#endif
}

// The widenings that are single instructions on their own, and what a set of 16-bit lanes is for: float16.
#if defined(__AVX512F__)
constexpr bool kHasFloat16 = true;
inline IntLanes widen_signed(ByteLanes v) { return (IntLanes)_mm512_cvtepi8_epi32((__m128i)v); }
inline WordLanes widen_to_words(ByteLanes v) { return (WordLanes)_mm256_cvtepu8_epi16((__m128i)v); }
inline WordLanes widen_signed_to_words(ByteLanes v) { return (WordLanes)_mm256_cvtepi8_epi16((__m128i)v); }
#elif defined(__AVX2__) && defined(__F16C__)
constexpr bool kHasFloat16 = true;
inline __m128i in_low_half(ByteLanes v) { return _mm_cvtsi64_si128(__builtin_bit_cast(long long, v)); }
inline IntLanes widen_signed(ByteLanes v) { return (IntLanes)_mm256_cvtepi8_epi32(in_low_half(v)); }
inline WordLanes widen_to_words(ByteLanes v) { return (WordLanes)_mm_cvtepu8_epi16(in_low_half(v)); }
inline WordLanes widen_signed_to_words(ByteLanes v) { return (WordLanes)_mm_cvtepi8_epi16(in_low_half(v)); }
#else
constexpr bool kHasFloat16 = false;
inline IntLanes widen_signed(ByteLanes v) { return (IntLanes)(widen(v) << 24) >> 24; }
inline WordLanes widen_to_words(ByteLanes v) { return narrow_to_words(widen(v)); }
inline WordLanes widen_signed_to_words(ByteLanes v) { return narrow_to_words((BitLanes)widen_signed(v) & 0xffffu); }
#endif

#if defined(__AVX2__) && defined(__F16C__)
#if defined(__AVX512F__)
inline UnsignedWords load_signed_bytes(const std::uint8_t* at) {
  return (UnsignedWords)_mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}
inline FloatLanes float16_half(UnsignedWords v, bool upper) {
  const __m512i words = (__m512i)v;
  return (FloatLanes)_mm512_cvtph_ps(upper ? _mm512_extracti64x4_epi64(words, 1) : _mm512_castsi512_si256(words));
}
#else
inline UnsignedWords load_signed_bytes(const std::uint8_t* at) {
  return (UnsignedWords)_mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}
inline FloatLanes float16_half(UnsignedWords v, bool upper) {
  const __m256i words = (__m256i)v;
  return (FloatLanes)_mm256_cvtph_ps(upper ? _mm256_extracti128_si256(words, 1) : _mm256_castsi256_si128(words));
}
#endif
#endif

/// a > b ? a : b and a < b ? a : b, so b where one of them is NaN: single instructions that GCC does not find by
/// itself.
inline FloatLanes greater_of(FloatLanes a, FloatLanes b) {
#if defined(__AVX512F__)
  return (FloatLanes)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (FloatLanes)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (FloatLanes)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}
inline FloatLanes lesser_of(FloatLanes a, FloatLanes b) {
#if defined(__AVX512F__)
  return (FloatLanes)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (FloatLanes)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (FloatLanes)_mm_min_ps((__m128)a, (__m128)b);
#else
  return a < b ? a : b;
#endif
}

typedef std::uint8_t WholeBytes __attribute__((vector_size(kVectorBytes)));
inline WholeBytes larger_bytes(WholeBytes a, WholeBytes b) {
#if defined(__AVX512F__)
  return (WholeBytes)_mm512_max_epu8((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (WholeBytes)_mm256_max_epu8((__m256i)a, (__m256i)b);
#else
  return a > b ? a : b;
#endif
}

/// True if a lane of a comparison's result is.
inline bool any(IntLanes mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps((__m128)mask) != 0;
#else
  std::int32_t all = 0;
  for (int lane = 0; lane < kLanes; ++lane) all |= mask[lane];
  return all != 0;
#endif
}

inline FloatLanes broadcast(float v) {
#if defined(__AVX512F__)
  return (FloatLanes)_mm512_set1_ps(v);
#elif defined(__AVX2__)
  return (FloatLanes)_mm256_set1_ps(v);
#else
  return FloatLanes{v, v, v, v};
#endif
}

/// `low` in the lower half of the lanes, `high` in the upper one.
inline FloatLanes broadcast_halves(float low, float high) {
#if defined(__AVX512F__)
  return (FloatLanes)_mm512_mask_blend_ps(0xff00, _mm512_set1_ps(low), _mm512_set1_ps(high));
#elif defined(__AVX2__)
  return (FloatLanes)_mm256_blend_ps(_mm256_set1_ps(low), _mm256_set1_ps(high), 0xf0);
#else
  return FloatLanes{low, low, high, high};
#endif
}

/// The elements of even and of odd index of two vectors after one another.
struct Parted {
  FloatLanes even, odd;
};
inline Parted part(FloatLanes a, FloatLanes b) {
#if defined(__AVX512F__)
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  return {(FloatLanes)_mm512_permutex2var_ps((__m512)a, even, (__m512)b),
          (FloatLanes)_mm512_permutex2var_ps((__m512)a, odd, (__m512)b)};
#elif defined(__AVX2__)
  const auto in_order = [](__m256 v) { return (FloatLanes)_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8); };
  return {in_order(_mm256_shuffle_ps((__m256)a, (__m256)b, 0x88)),
          in_order(_mm256_shuffle_ps((__m256)a, (__m256)b, 0xdd))};
#else
  return {FloatLanes{a[0], a[2], b[0], b[2]}, FloatLanes{a[1], a[3], b[1], b[3]}};
#endif
}

/// a * b + c, rounded once where the instruction set can.
inline FloatLanes multiply_add(FloatLanes a, FloatLanes b, FloatLanes c) {
#if defined(__AVX512F__)
  return (FloatLanes)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (FloatLanes)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

/// Elements of tables that repeat every 2^bits lanes, by the lowest bits of each lane of `index`.
#if defined(__AVX512F__)
constexpr int kLookupBits = 4;
template <int kBits>
inline FloatLanes lookup(FloatLanes table, BitLanes index) {
  if constexpr (kBits <= 2) return (FloatLanes)_mm512_permutevar_ps((__m512)table, (__m512i)index);
  return (FloatLanes)_mm512_permutexvar_ps((__m512i)index, (__m512)table);
}
#elif defined(__AVX2__)
constexpr int kLookupBits = 2;
template <int kBits>
inline FloatLanes lookup(FloatLanes table, BitLanes index) {
  return (FloatLanes)_mm256_permutevar_ps((__m256)table, (__m256i)index);
}
#else
constexpr int kLookupBits = 0;
#endif

inline IntLanes lane_numbers() {
  IntLanes v;
  for (int lane = 0; lane < kLanes; ++lane) v[lane] = lane;
  return v;
}

/// The sum of all lanes, taken in halves.
inline float sum_lanes(FloatLanes v) {
#if defined(__AVX512F__)
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)v), _mm512_extractf32x8_ps((__m512)v, 1));
#elif defined(__AVX2__)
  const __m256 eight = (__m256)v;
#endif
#if defined(__AVX2__)
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return four[0] + four[1];
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

inline FloatLanes to_float(IntLanes v) { return __builtin_convertvector(v, FloatLanes); }
inline IntLanes to_int(FloatLanes v) { return __builtin_convertvector(v, IntLanes); }
/// Sums of either type.
inline FloatLanes as_floats(FloatLanes sums) { return sums; }
inline FloatLanes as_floats(IntLanes sums) { return to_float(sums); }

#if defined(__AVX512F__)
inline FloatLanes float16_lanes(WordLanes v) { return (FloatLanes)_mm512_cvtph_ps((__m256i)v); }
inline WordLanes float16_words(FloatLanes v) {
  return (WordLanes)_mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(__F16C__)
inline FloatLanes float16_lanes(WordLanes v) { return (FloatLanes)_mm256_cvtph_ps((__m128i)v); }
inline WordLanes float16_words(FloatLanes v) {
  return (WordLanes)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#else
inline FloatLanes float16_lanes(WordLanes v) { return decode_float16(widen(v)); }
inline WordLanes float16_words(FloatLanes v) { return narrow_to_words(encode_float16(v)); }
#endif

}  // namespace
}  // namespace quanto::kernels
