// One step of half-quadratic quantization (scale.h) for rows: what the codes of the present shift miss, and the shift
// that makes up for it. Every operation is rounded to the dtype, as in a sequence of tensor operations, and sums are
// taken in an order that does not depend on the length of vectors.
#pragma once

#include "kernels/quantize-inl.h"

namespace quanto::kernels {
namespace {

/// Sixteen running sums, of the elements whose indices leave the same remainder.
struct OrderedSum {
  static constexpr int kVectors = 16 / kLanes;

  float total() const {
    float sums[kVectors * kLanes];
    for (int v = 0; v < kVectors; ++v) store(sums + v * kLanes, running[v], kLanes);
    for (int half = kVectors * kLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
    }
    return sums[0];
  }

  FloatLanes running[kVectors]{};
};

/// body(index, vector of an OrderedSum, chunk) for each vector of n elements.
template <class Body>
inline __attribute__((always_inline)) void for_ordered_chunks(std::int64_t n, Body body) {
  constexpr int kStep = OrderedSum::kVectors * kLanes;
  std::int64_t i = 0;
  for (; i + kStep <= n; i += kStep) {
#pragma GCC unroll 4
    for (int v = 0; v < OrderedSum::kVectors; ++v) body(i + v * kLanes, v, WholeChunk{});
  }
#pragma GCC unroll 4
  for (int v = 0; v < OrderedSum::kVectors; ++v) {
    const std::int64_t left = n - i - v * kLanes;
    if (left >= kLanes) body(i + v * kLanes, v, WholeChunk{});
    if (left > 0 && left < kLanes) body(i + v * kLanes, v, LastChunk{static_cast<int>(left)});
  }
}

inline FloatLanes magnitude_of(FloatLanes v) { return float_from_bits(bits_from_float(v) & kMagnitudeMask); }

/// m^y for m >= 0 and -1 < y < 0, to about two units in the last place; subnormal numbers count as the smallest normal
/// one. As 2^(y * log2 m), where the part of the product that comes from the exponent of m is exact.
inline FloatLanes power(FloatLanes m, float y) {
  const float high = float_from_bits(bits_from_float(y) & 0xfffff000u), low = y - high;
  const BitLanes bits = bits_from_float(greater_of(m, broadcast(0x1p-126f)));
  constexpr std::uint32_t kSqrtHalf = 0x3f3504f3u;
  const IntLanes exponent = (IntLanes)(bits - kSqrtHalf) >> 23;
  const FloatLanes significand = float_from_bits(bits - ((BitLanes)exponent << 23));  // sqrt(1/2) to sqrt(2)
  const FloatLanes whole = to_float(exponent);

  // log2 of the significand by the series of the inverse hyperbolic tangent, 2 / (ln 2 (2k + 1)) s^(2k + 1).
  const FloatLanes s = (significand - 1.0f) / (significand + 1.0f), s2 = s * s;
  const FloatLanes logarithm =
      s * (2.88539008f + s2 * (0.961796694f + s2 * (0.577078016f + s2 * (0.412198583f + s2 * 0.320598898f))));

  const FloatLanes exact = high * whole, rest = low * whole + y * logarithm;
  const FloatLanes nearest = greater_of(round_half_even(exact + rest), broadcast(-125.0f));
  const FloatLanes r = (exact - nearest) + rest;  // within 1/2
  const FloatLanes fraction =
      1.0f + r * (0.693147181f +
                  r * (0.240226507f + r * (0.0555041087f +
                                           r * (0.00961812911f +
                                                r * (0.00133335581f + r * (0.000154035304f + r * 0.0000152527338f))))));
  return float_from_bits(bits_from_float(fraction) + ((BitLanes)to_int(nearest) << 23));
}

/// An error after the proximal operator of the norm: less by a threshold, and zero below it.
template <class F, bool kIsL1>
inline FloatLanes shrunk(FloatLanes error, FloatLanes size, float exponent, float inverse_beta) {
  FloatLanes threshold = F::round(broadcast(inverse_beta));  // as torch rounds a number that it subtracts
  if constexpr (!kIsL1) threshold = F::round(F::round(power(size, exponent)) * inverse_beta);
  const FloatLanes left = greater_of(F::round(size - threshold), FloatLanes{});
  return float_from_bits(bits_from_float(left) | (bits_from_float(error) & ~kMagnitudeMask));
}

template <class F, bool kIsL1>
void hqq_step_rows(const HqqArgs& args, std::int64_t begin, std::int64_t end) {
  const HqqArgs a = args;
  const QuantizeArgs m = a.matrix;
  const float high = m.qtype == QType::qint4 ? 15.0f : 3.0f;
  for (std::int64_t r = begin; r < end; ++r) {
    const FieldRow<F, ShiftKind::floating> row(m, r);
    const FloatLanes scale = row.scale, shift = row.shift;
    const bool safe = is_finite(F::round(scale * 15.0f + magnitude_of(shift)));
    const char* values = static_cast<const char*>(m.values) + row.offset;
    OrderedSum errors, shifts;
    for_ordered_chunks(m.cols, [&, scale, shift](std::int64_t i, int v, auto chunk) {
      const FloatLanes base = F::load(values + i * F::kBytes, chunk.count);
      FloatLanes code = affine_code<F>(base, shift, scale, high);
      code = scale == 0.0f ? FloatLanes{} : code;
      const FloatLanes product = F::round(scale * code);
      const FloatLanes value =
          safe ? F::round(product - shift) : saturated_affine_values<F, ShiftKind::floating>(code, scale, shift);
      const FloatLanes error = F::round(base - value), size = magnitude_of(error);
      const FloatLanes kept = shrunk<F, kIsL1>(error, size, a.exponent, a.inverse_beta);
      const FloatLanes wanted = F::round(product - F::round(base - kept));
      const bool whole = chunk.count == kLanes;
      const IntLanes counts = lane_numbers() < chunk.count;
      errors.running[v] += whole ? size : counts ? size : FloatLanes{};
      shifts.running[v] += whole ? wanted : counts ? wanted : FloatLanes{};
    });
    a.errors[r] = errors.total();
    const FloatLanes mean = F::round(broadcast(shifts.total() / static_cast<float>(m.cols)));
    const bool usable = is_finite(mean) && scale[0] != 0.0f;
    F::store(static_cast<char*>(a.shift_out) + r * F::kBytes, usable ? mean : shift, 1);
  }
}

void hqq_step(const HqqArgs& args, std::int64_t begin, std::int64_t end) {
  const auto run = [&](auto f) {
    using F = decltype(f);
    (args.exponent == 0.0f ? hqq_step_rows<F, true> : hqq_step_rows<F, false>)(args, begin, end);
  };
  switch (args.matrix.dtype) {
    case DType::bfloat16:
      return run(BFloat16{});
    case DType::float16:
      return run(Float16{});
    default:
      return run(Float32{});
  }
}

}  // namespace
}  // namespace quanto::kernels
