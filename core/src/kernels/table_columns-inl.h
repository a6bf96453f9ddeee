// Columns of two-bit codes that meet tables instead of activations, for channel_lanes-inl.h: a pair of codes, one after
// the other along K, chooses one of the sixteen sums that they can make with their two activations. A lookup and an
// addition so do what two decoded vectors and two multiply-adds would. The tables of a call are made once and met by
// all channels. For units with AVX-512. Internal linkage, no std.
#pragma once

#include <cstdint>

#include "kernels/decode-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/float_columns-inl.h"
#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

template <DType kDType>
struct TableColumns : FloatColumnsOf<QType::qint2, kDType> {
  static constexpr int kVectors = 2;              ///< pairs of codes in a lane
  static constexpr bool kTakesAllValues = false;  ///< a code of zero and an infinite activation have no sum
  static constexpr bool kTable = true;
  using X = FloatLanes;
  /// The codes of the fields 0 and 2, and of 1 and 3: in the low half of each byte of even index those of the first
  /// field with its neighbour in the next byte, in the high half those of the other.
  struct Codes {
    __m512i of[2];
  };

  /// The words of a column, `bits` to the right: by a multiplication, since shifts take the ports of lookups.
  template <int kBits>
  static QUANTO_INLINE __m512i shifted(__m512i words) {
    return _mm512_mulhi_epu16(words, _mm512_set1_epi16(static_cast<short>(1 << (16 - kBits))));
  }
  static QUANTO_INLINE Codes codes_of(BitLanes column) {
    const auto words = (__m512i)column;
    const __m512i first = _mm512_set1_epi8(0x33);
    return {{_mm512_ternarylogic_epi32(first, words, shifted<6>(words), 0xca),
             _mm512_ternarylogic_epi32(first, shifted<2>(words), shifted<8>(words), 0xca)}};
  }
  /// In the low four bits of each lane the v-th pair of its codes. Lookups ignore the others.
  static QUANTO_INLINE FloatLanes decode(const Codes& codes, int field, int v) {
    const __m512i pairs = field < 2 ? codes.of[field % 2] : shifted<4>(codes.of[field % 2]);
    const __m512i second = _mm512_set1_epi32(0x10000);  // the upper word, by a multiplication again
    return (FloatLanes)(v == 0 ? pairs : _mm512_madd_epi16(pairs, second));
  }
  static QUANTO_INLINE X load_x(const std::uint32_t* table) { return load<FloatLanes>(table, kLanes); }
  static QUANTO_INLINE FloatLanes add_products(FloatLanes pairs, X table, FloatLanes sum) {
    return sum + (FloatLanes)_mm512_permutexvar_ps((__m512i)pairs, (__m512)table);
  }

  /// The tables of the activations of a square's columns, 64, of which `left` exist: of pair after pair, of the column
  /// column_at(0) first, `apart` words after one another. Each takes its activations from memory, where a broadcast is
  /// nothing but a load.
  template <class ColumnAt>
  static inline void make_tables(const void* x, std::int64_t index, std::int64_t left, ColumnAt column_at,
                                 std::uint32_t* out, std::int64_t apart, bool& plain) {
    constexpr int kOfColumn = 2 * kVectors;
    float each[kOfColumn * kLanes];
    for (int i = 0; i < kOfColumn * kLanes; i += kLanes) {
      const FloatLanes values = load_remaining<kDType>(x, index + i, left - i);
      plain &= all_plain(values);
      store(each + i, values, kLanes);
    }
    const __m512i lane = (__m512i)lane_numbers();
    const auto low = (FloatLanes)_mm512_cvtepi32_ps(_mm512_and_si512(lane, _mm512_set1_epi32(3)));
    const auto high = (FloatLanes)_mm512_cvtepi32_ps(_mm512_srli_epi32(lane, 2));
    for (int i = 0; i < kLanes; ++i) {
      const float* of_column = each + kOfColumn * column_at(i);
      QUANTO_UNROLL for (int v = 0; v < kVectors; ++v, out += apart) {
        const FloatLanes first = low * broadcast(of_column[2 * v]);
        store(out, multiply_add(high, broadcast(of_column[2 * v + 1]), first), kLanes);
      }
    }
  }
};

}  // namespace
}  // namespace quanto::kernels
