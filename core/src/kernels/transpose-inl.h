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
#endif

}  // namespace
}  // namespace quanto::kernels
