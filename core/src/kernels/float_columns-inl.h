// How columns of codes meet float32 activations, for channel_lanes-inl.h, pair_lanes-inl.h and quarter_lanes-inl.h: a
// lane's four codes one after the other. For units with AVX-512. Internal linkage, no std.
#pragma once

#include <cstdint>

#include "kernels/decode-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

/// What does not depend on the codes.
template <QType kType, DType kDType>
struct FloatColumnsOf {
  static constexpr QType kQType = kType;
  static constexpr int kFields = 8 / bits_of(kType);
  static constexpr int kVectors = 4;
  static constexpr bool kTakesAllValues = true;
  using X = FloatLanes;
  using Codes = BitLanes;

  static QUANTO_INLINE Codes codes_of(BitLanes column) { return column; }
  static QUANTO_INLINE X load_x(const std::uint32_t* x) { return kernels::broadcast(__builtin_bit_cast(float, *x)); }
  static QUANTO_INLINE FloatLanes add_products(X w, X x, FloatLanes sum) { return multiply_add(w, x, sum); }
  static constexpr float field_factor(int) { return 1.0f; }

  static inline BitLanes load_words(const void* x, std::int64_t index, std::int64_t left, bool&) {
    return (BitLanes)load_remaining<kDType>(x, index, left);
  }
  static inline float sum_of(const void* x, std::int64_t index, std::int64_t count) {
    FloatLanes sum{};
    for_chunks(count, [&](std::int64_t i, auto chunk) { sum += load_floats(x, kDType, index + i, chunk.count); });
    return sum_lanes(sum);
  }
};

/// int8 codes, whose signs are extended.
template <QType kType, DType kDType, bool kPacked = is_affine_qtype(kType)>
struct FloatColumns : FloatColumnsOf<kType, kDType> {
  static_assert(kType == QType::qint8);
  static QUANTO_INLINE FloatLanes decode(BitLanes codes, int, int v) {
    return to_float((IntLanes)(v == 3 ? codes : codes << (24 - 8 * v)) >> 24);
  }
};

/// Packed codes, each times a power of two, as MaskedInt4Dots has them: nothing is shifted.
template <QType kType, DType kDType>
struct FloatColumns<kType, kDType, true> : FloatColumnsOf<kType, kDType> {
  static constexpr bool kTakesAllValues = false;
  static constexpr int kBits = bits_of(kType);

  static QUANTO_INLINE FloatLanes decode(BitLanes codes, int field, int v) {
    const std::uint32_t mask = ((1u << kBits) - 1) << (kBits * field + 8 * v);
    return (FloatLanes)_mm512_cvtepu32_ps((__m512i)(codes & mask));
  }
  static constexpr float field_factor(int field) { return 1.0f / static_cast<float>(1 << (kBits * field)); }

  static inline BitLanes load_words(const void* x, std::int64_t index, std::int64_t left, bool& plain) {
    const FloatLanes values = load_remaining<kDType>(x, index, left);
    plain &= all_plain(values);
    const auto byte = (BitLanes)lane_numbers() & 3;
    return (BitLanes)(values * (FloatLanes)((127u - 8 * byte) << 23));  // times 2^(-8 * byte)
  }
};

}  // namespace
}  // namespace quanto::kernels
