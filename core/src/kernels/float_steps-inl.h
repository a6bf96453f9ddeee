// Activations of floats and weights decoded to float32, for the panel of panel-inl.h: what every instruction set
// multiplies. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/decode-inl.h"
#include "kernels/int8_steps-inl.h"
#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

template <DType kDType>
struct ActivationOf {
  using Type = std::uint16_t;
};
template <>
struct ActivationOf<DType::float32> {
  using Type = float;
};

/// A float in a lane.
template <QType kQType, DType kDType>
struct FloatWeights : LaneSteps {
  static constexpr bool kIntegers = false;
  static constexpr bool kMultipliesCodes = false;
  static constexpr std::int64_t kStep = 1;
  static constexpr std::int32_t kCentre = 0;
  using Code = float;
  using Sum = FloatLanes;
  using Activation = typename ActivationOf<kDType>::Type;

  static inline FloatLanes multiply_add(IntLanes w, IntLanes x, FloatLanes sum) {
    return kernels::multiply_add((FloatLanes)w, (FloatLanes)x, sum);
  }
  static inline BitLanes load_activations(const Activation* x, std::int64_t count) {
    return (BitLanes)load_remaining<kDType>(x, 0, count);
  }
  static constexpr bool kTakesPlanes = true;
  /// A step of activations that lie one in each lane (LaneRuns).
  static inline BitLanes step_of(const BitLanes (&x)[kStep]) {
    if constexpr (kDType == DType::float32) return x[0];
    if constexpr (kDType == DType::bfloat16) return (BitLanes)decode_bfloat16(x[0]);
    return (BitLanes)float16_lanes(narrow_to_words(x[0]));
  }
  /// The weights of channel n for k in [begin, end): final ones of the packed qtypes, else to be scaled.
  static inline void decode(const MatmulArgs& a, std::int64_t n, std::int64_t begin, std::int64_t end, Code* out) {
    decode_channel<kQType>(a, n, begin, end, out);
  }
};

}  // namespace
}  // namespace quanto::kernels
