// Squares of 32-bit lanes, transposed in registers. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

#if defined(__AVX512F__)
/// Lane i of vector j becomes lane j of vector i.
inline void transpose_16x16(__m512i (&rows)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // t[i + k]: columns k, k + 4, k + 8, k + 12 of rows i to i + 3
    rows[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int k = 0; k < 4; ++k) {
    const __m512i a = _mm512_shuffle_i32x4(rows[k], rows[4 + k], 0x88),
                  b = _mm512_shuffle_i32x4(rows[8 + k], rows[12 + k], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(rows[k], rows[4 + k], 0xdd),
                  d = _mm512_shuffle_i32x4(rows[8 + k], rows[12 + k], 0xdd);
    t[k] = _mm512_shuffle_i32x4(a, b, 0x88);
    t[8 + k] = _mm512_shuffle_i32x4(a, b, 0xdd);
    t[4 + k] = _mm512_shuffle_i32x4(c, d, 0x88);
    t[12 + k] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
  __builtin_memcpy(rows, t, sizeof(t));
}

/// Lane i of vector j becomes lane j of vector i.
inline void transpose(BitLanes (&rows)[kLanes]) {
  __m512i lanes[kLanes];
  __builtin_memcpy(lanes, rows, sizeof(lanes));
  transpose_16x16(lanes);
  __builtin_memcpy(rows, lanes, sizeof(lanes));
}

/// Four rows: lane 4 * q + i of each in quarter q of columns[i].
inline void transpose_quarters(const BitLanes* rows, __m512i (&columns)[4]) {
  const auto row = [&](int i) { return (__m512i)rows[i]; };
  const __m512i low = _mm512_unpacklo_epi32(row(0), row(1)), more_low = _mm512_unpacklo_epi32(row(2), row(3));
  const __m512i high = _mm512_unpackhi_epi32(row(0), row(1)), more_high = _mm512_unpackhi_epi32(row(2), row(3));
  columns[0] = _mm512_unpacklo_epi64(low, more_low);
  columns[1] = _mm512_unpackhi_epi64(low, more_low);
  columns[2] = _mm512_unpacklo_epi64(high, more_high);
  columns[3] = _mm512_unpackhi_epi64(high, more_high);
}

/// Stores lane after lane of up to 4, 8 or 16 rows: `count` of them, as many rows as there are.
inline void store_columns(const BitLanes (&rows)[4], std::uint32_t* out, std::int64_t count) {
  const auto mask = static_cast<__mmask8>(first_lanes(static_cast<int>(count)));
  __m512i columns[4];
  transpose_quarters(rows, columns);
  for (int i = 0; i < 4; ++i) {
    const auto put = [&](int lane, __m128i column) { _mm_mask_storeu_epi32(out + lane * count, mask, column); };
    put(i, _mm512_castsi512_si128(columns[i]));
    put(4 + i, _mm512_extracti32x4_epi32(columns[i], 1));
    put(8 + i, _mm512_extracti32x4_epi32(columns[i], 2));
    put(12 + i, _mm512_extracti32x4_epi32(columns[i], 3));
  }
}
inline void store_columns(const BitLanes (&rows)[8], std::uint32_t* out, std::int64_t count) {
  const auto mask = static_cast<__mmask8>(first_lanes(static_cast<int>(count)));
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  __m512i columns[4], more[4];
  transpose_quarters(rows, columns);
  transpose_quarters(rows + 4, more);
  for (int i = 0; i < 4; ++i) {
    const auto put = [&](int lane, __m256i column) { _mm256_mask_storeu_epi32(out + lane * count, mask, column); };
    const __m512i first = _mm512_permutex2var_epi64(columns[i], low, more[i]);
    const __m512i second = _mm512_permutex2var_epi64(columns[i], high, more[i]);
    put(i, _mm512_castsi512_si256(first));
    put(4 + i, _mm512_extracti64x4_epi64(first, 1));
    put(8 + i, _mm512_castsi512_si256(second));
    put(12 + i, _mm512_extracti64x4_epi64(second, 1));
  }
}
inline void store_columns(const BitLanes (&rows)[kLanes], std::uint32_t* out, std::int64_t count) {
  BitLanes square[kLanes];
  __builtin_memcpy(square, rows, sizeof(square));
  transpose(square);
  for (int lane = 0; lane < kLanes; ++lane) store(out + lane * count, square[lane], static_cast<int>(count));
}

/// The 16-bit words of a lane of each vector, vector after vector: row r has two of each lane r.
inline void transpose_words(const BitLanes (&pairs)[kLanes / 2], WordLanes (&rows)[kLanes]) {
  __m512i t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm512_unpacklo_epi32((__m512i)pairs[i], (__m512i)pairs[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32((__m512i)pairs[i], (__m512i)pairs[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {  // u[i + k]: of rows k, k + 4, k + 8, k + 12, vectors i to i + 3
    u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  for (int k = 0; k < 4; ++k) {
    const __m512i a = _mm512_permutex2var_epi64(u[k], low, u[4 + k]);
    const __m512i b = _mm512_permutex2var_epi64(u[k], high, u[4 + k]);
    rows[k] = (WordLanes)_mm512_castsi512_si256(a);
    rows[4 + k] = (WordLanes)_mm512_extracti64x4_epi64(a, 1);
    rows[8 + k] = (WordLanes)_mm512_castsi512_si256(b);
    rows[12 + k] = (WordLanes)_mm512_extracti64x4_epi64(b, 1);
  }
}

/// The same of vectors that hold the words of two columns, 8 apart, one after the other.
inline void transpose_words_apart(const __m512i (&columns)[kLanes / 2], WordLanes (&rows)[kLanes]) {
  __m512i t[8], u[8];
  for (int i = 0; i < 8; i += 2) {  // rows 0 to 3, then 4 to 7, and those 8 further, of two columns
    t[i] = _mm512_unpacklo_epi16(columns[i], columns[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi16(columns[i], columns[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {  // u[i + k]: rows 2 * k and 2 * k + 1, and those 8 further, of four columns
    u[i] = _mm512_unpacklo_epi32(t[i], t[i + 2]);
    u[i + 1] = _mm512_unpackhi_epi32(t[i], t[i + 2]);
    u[i + 2] = _mm512_unpacklo_epi32(t[i + 1], t[i + 3]);
    u[i + 3] = _mm512_unpackhi_epi32(t[i + 1], t[i + 3]);
  }
  for (int k = 0; k < 4; ++k) {
    const __m512i even = _mm512_unpacklo_epi64(u[k], u[4 + k]), odd = _mm512_unpackhi_epi64(u[k], u[4 + k]);
    const __m512i a = _mm512_shuffle_i64x2(even, even, 0xd8), b = _mm512_shuffle_i64x2(odd, odd, 0xd8);
    rows[2 * k] = (WordLanes)_mm512_castsi512_si256(a);
    rows[2 * k + 8] = (WordLanes)_mm512_extracti64x4_epi64(a, 1);
    rows[2 * k + 1] = (WordLanes)_mm512_castsi512_si256(b);
    rows[2 * k + 9] = (WordLanes)_mm512_extracti64x4_epi64(b, 1);
  }
}
#elif defined(__AVX2__)
/// What a square is transposed from: of rows k and k + 4 in the two halves of vector k, four vectors of lanes.
inline void transpose_4x8(const BitLanes* lanes, __m256i (&out)[4]) {
  const __m256i ab_low = _mm256_unpacklo_epi32((__m256i)lanes[0], (__m256i)lanes[1]);
  const __m256i ab_high = _mm256_unpackhi_epi32((__m256i)lanes[0], (__m256i)lanes[1]);
  const __m256i cd_low = _mm256_unpacklo_epi32((__m256i)lanes[2], (__m256i)lanes[3]);
  const __m256i cd_high = _mm256_unpackhi_epi32((__m256i)lanes[2], (__m256i)lanes[3]);
  out[0] = _mm256_unpacklo_epi64(ab_low, cd_low);
  out[1] = _mm256_unpackhi_epi64(ab_low, cd_low);
  out[2] = _mm256_unpacklo_epi64(ab_high, cd_high);
  out[3] = _mm256_unpackhi_epi64(ab_high, cd_high);
}

/// Lane i of vector j becomes lane j of vector i.
inline void transpose(BitLanes (&rows)[kLanes]) {
  __m256i first[4], second[4];
  transpose_4x8(rows, first);
  transpose_4x8(rows + 4, second);
  for (int k = 0; k < 4; ++k) {
    rows[k] = (BitLanes)_mm256_permute2x128_si256(first[k], second[k], 0x20);
    rows[4 + k] = (BitLanes)_mm256_permute2x128_si256(first[k], second[k], 0x31);
  }
}

/// The 16-bit words of a lane of each vector, vector after vector: row r has two of each lane r.
inline void transpose_words(const BitLanes (&pairs)[kLanes / 2], WordLanes (&rows)[kLanes]) {
  __m256i halves[4];
  transpose_4x8(pairs, halves);
  for (int k = 0; k < 4; ++k) {
    rows[k] = (WordLanes)_mm256_castsi256_si128(halves[k]);
    rows[4 + k] = (WordLanes)_mm256_extracti128_si256(halves[k], 1);
  }
}
#else
/// Lane i of vector j becomes lane j of vector i.
inline void transpose(BitLanes (&rows)[kLanes]) {
  std::uint32_t in[kLanes][kLanes], out[kLanes][kLanes];
  __builtin_memcpy(in, rows, sizeof(in));
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < kLanes; ++j) out[i][j] = in[j][i];
  }
  __builtin_memcpy(rows, out, sizeof(out));
}

/// The 16-bit words of a lane of each vector, vector after vector: row r has two of each lane r.
inline void transpose_words(const BitLanes (&pairs)[kLanes / 2], WordLanes (&rows)[kLanes]) {
  for (int r = 0; r < kLanes; ++r) {
    for (int i = 0; i < kLanes / 2; ++i) {
      rows[r][2 * i] = static_cast<std::uint16_t>(pairs[i][r]);
      rows[r][2 * i + 1] = static_cast<std::uint16_t>(pairs[i][r] >> 16);
    }
  }
}
#endif

}  // namespace
}  // namespace quanto::kernels
