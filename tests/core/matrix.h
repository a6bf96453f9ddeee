// Random matrices of any dtype, and what the tests of scales and quantizers do with them.
#pragma once

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cases.h"
#include "float_io.h"
#include "quanto/qtype.h"
#include "quanto/scale.h"

namespace quanto::testing {

constexpr DType kDTypes[] = {DType::float32, DType::bfloat16, DType::float16};
constexpr Axis kAxes[] = {Axis::tensor, Axis::first, Axis::last};
constexpr QType kByteQTypes[] = {QType::qint8, QType::qfloat8_e4m3fn, QType::qfloat8_e4m3fnuz, QType::qfloat8_e5m2};
constexpr QType kBitQTypes[] = {QType::qint4, QType::qint2};

/// Sizes around the vector lengths of all instruction sets, primes, and nothing at all.
struct Shape {
  std::int64_t rows, cols;
};
constexpr Shape kShapes[] = {{0, 5},  {5, 0},  {1, 1},  {1, 31},  {2, 7},   {3, 16}, {7, 13},
                             {5, 17}, {6, 32}, {9, 33}, {13, 63}, {31, 65}, {4, 129}};

/// An array of floats of any dtype in GuardedBytes.
class Floats {
 public:
  Floats(DType dtype, std::int64_t count, std::size_t gap = 0)
      : dtype_(dtype),
        count_(count),
        bytes_(std::make_unique<GuardedBytes>(static_cast<std::size_t>(count) * dtype_size(dtype), gap)) {}

  float at(std::int64_t i) const { return load_float(data(), dtype_, i); }
  void set(std::int64_t i, float value) { store_float(data(), dtype_, i, value); }
  std::int64_t count() const { return count_; }
  DType dtype() const { return dtype_; }
  void* data() { return bytes_->data(); }
  const void* data() const { return bytes_->data(); }
  std::vector<std::uint8_t> bytes() const { return {bytes_->data(), bytes_->data() + bytes_->size()}; }

  ConstMatrix matrix(Shape s) const { return {data(), dtype_, s.rows, s.cols}; }

 private:
  DType dtype_;
  std::int64_t count_;
  std::unique_ptr<GuardedBytes> bytes_;
};

/// Normal values whose magnitude varies by row, rounded to the dtype.
inline void fill_normal(Floats& out, Shape shape, unsigned seed = 1) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  for (std::int64_t i = 0; i < out.count(); ++i) {
    const std::int64_t row = shape.cols == 0 ? 0 : i / shape.cols;
    out.set(i, normal(generator) * std::ldexp(1.0f, static_cast<int>(row % 7) - 3));
  }
}

/// Any bit patterns: huge, tiny and subnormal numbers; infinities and NaN only if asked for.
inline void fill_patterns(Floats& out, bool finite, unsigned seed = 1) {
  std::mt19937 generator(seed);
  for (std::int64_t i = 0; i < out.count(); ++i) {
    float value = float_from_bits(static_cast<std::uint32_t>(generator()));
    if (out.dtype() == DType::float16) value = float16_to_float(static_cast<std::uint16_t>(generator()));
    if (out.dtype() == DType::bfloat16) value = bfloat16_to_float(static_cast<std::uint16_t>(generator()));
    out.set(i, finite && !std::isfinite(value) ? 1.0f : value);
  }
}

/// Which scale element (row, col) uses.
inline std::int64_t scale_index(Axis axis, std::int64_t row, std::int64_t col) {
  return axis == Axis::tensor ? 0 : axis == Axis::first ? row : col;
}

inline std::string describe(QType qtype, DType dtype, Axis axis, Shape s) {
  constexpr const char* kNames[] = {"tensor", "first", "last"};
  return std::string(qtype_info(qtype).name) + " " + std::string(dtype_name(dtype)) + " axis " +
         kNames[static_cast<int>(axis)] + " " + std::to_string(s.rows) + "x" + std::to_string(s.cols);
}

/// body(dtype, axis, shape) for all combinations in which each scale has elements, with guarded pages at either end of
/// buffers.
template <class Body>
void for_each_case(Body body) {
  for (const bool at_start : {false, true}) {
    const AtPageStart place(at_start);
    for (const DType dtype : kDTypes) {
      for (const Axis axis : kAxes) {
        for (const Shape shape : kShapes) {
          const bool scale_without_elements =
              shape.rows * shape.cols == 0 && scale_count(axis, shape.rows, shape.cols) > 0;
          if (!scale_without_elements) body(dtype, axis, shape);
        }
      }
    }
  }
}

}  // namespace quanto::testing
