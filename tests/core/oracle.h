// The truth that all matmul tests compare with: double precision, and a bound for each element of the result.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "float_io.h"
#include "quanto/float8.h"
#include "quanto/matmul.h"
#include "quanto/qtype.h"

namespace quanto::testing {

/// The largest relative error of rounding once to a dtype.
inline double unit_roundoff(DType dtype) {
  return dtype == DType::float32 ? 0x1p-24 : dtype == DType::bfloat16 ? 0x1p-8 : 0x1p-11;
}

/// Half the smallest positive number of a dtype: the absolute error of rounding a tiny result to it.
inline double underflow(DType dtype) {
  return dtype == DType::float32 ? 0x1p-150 : dtype == DType::bfloat16 ? 0x1p-134 : 0x1p-25;
}

struct WeightElement {
  double value;      ///< scale * code - shift
  double magnitude;  ///< |scale * code| + |shift|, what the rounding errors are relative to
};

inline WeightElement weight_at(const WeightView& w, std::int64_t n, std::int64_t k) {
  const auto* bytes = static_cast<const std::uint8_t*>(w.data);
  if (!is_affine(w.qtype)) {
    const std::uint8_t byte = bytes[n * w.in_features + k];
    const double code = w.qtype == QType::qint8 ? static_cast<double>(static_cast<std::int8_t>(byte))
                                                : static_cast<double>(float8_decode(w.qtype, byte));
    const double scale = static_cast<double>(load_float(w.scale, w.scale_dtype, w.per_tensor_scale ? 0 : n));
    return {scale * code, std::fabs(scale * code)};
  }
  const int bits = qtype_info(w.qtype).bits;
  const std::int64_t group = w.group_size == 0 ? w.in_features : w.group_size;
  const std::int64_t rows = w.out_features * (w.in_features / group);
  const std::int64_t packed = (rows + 8 / bits - 1) / (8 / bits);
  const std::int64_t row = n * (w.in_features / group) + k / group;
  const int code = bytes[row % packed * group + k % group] >> (row / packed * bits) & ((1 << bits) - 1);
  const double scale = static_cast<double>(load_float(w.scale, w.scale_dtype, row));
  if (w.shift_kind == ShiftKind::integer) {
    const double shift = static_cast<const std::uint8_t*>(w.shift)[row];
    return {scale * (code - shift), std::fabs(scale) * (code + shift)};
  }
  const double shift = static_cast<double>(load_float(w.shift, w.scale_dtype, row));
  return {scale * code - shift, std::fabs(scale * code) + std::fabs(shift)};
}

/// An element of the result, and how far from it one may be that was summed in float32 and rounded once.
struct Expected {
  double value, bound;
};

/// A row of activations, `x`, times `row`, a row of the weight, plus b. The bound is
/// terms * 2^-24 * sum |x| * magnitude + 2 * u_out * |value|. `terms`: roundings that an element is a sum of.
inline Expected expected_of(const double* x, const std::vector<WeightElement>& row, double b, DType dtype,
                            double terms) {
  double value = b, magnitude = std::fabs(b);
  for (std::size_t k = 0; k < row.size(); ++k) {
    value += x[k] * row[k].value;
    magnitude += std::fabs(x[k]) * row[k].magnitude;
  }
  return {value, terms * 0x1p-24 * magnitude + 2 * unit_roundoff(dtype) * std::fabs(value) + 2 * underflow(dtype)};
}

/// Row n of the weight.
inline std::vector<WeightElement> weight_row(const WeightView& w, std::int64_t n) {
  std::vector<WeightElement> row(static_cast<std::size_t>(w.in_features));
  for (std::int64_t k = 0; k < w.in_features; ++k) row[static_cast<std::size_t>(k)] = weight_at(w, n, k);
  return row;
}

/// Activations as the oracle reads them.
struct OracleRows {
  std::int64_t rows;
  double (*value)(const void* context, std::int64_t m, std::int64_t k);
  const void* context;
};

/// Compares y, M x N elements of `dtype`, with x * transpose(w) + bias. Empty if every element lies within its bound
/// (see expected_of); else the first that does not. A NaN or infinity where the reference is finite never does.
inline std::string check_product(const OracleRows& x, const WeightView& w, const void* bias, DType dtype, const void* y,
                                 double terms) {
  const std::int64_t K = w.in_features, N = w.out_features;
  std::vector<double> values(static_cast<std::size_t>(x.rows * K));
  for (std::int64_t i = 0; i < x.rows * K; ++i) {
    values[static_cast<std::size_t>(i)] = x.value(x.context, i / K, i % K);
  }
  for (std::int64_t n = 0; n < N; ++n) {
    const std::vector<WeightElement> row = weight_row(w, n);
    const double b = bias == nullptr ? 0.0 : static_cast<double>(load_float(bias, dtype, n));
    for (std::int64_t m = 0; m < x.rows; ++m) {
      const Expected expected = expected_of(values.data() + m * K, row, b, dtype, terms);
      const double got = static_cast<double>(load_float(y, dtype, m * N + n));
      if (!(std::fabs(got - expected.value) <= expected.bound)) {
        return "y(" + std::to_string(m) + ", " + std::to_string(n) + "): got " + std::to_string(got) + ", expected " +
               std::to_string(expected.value) + " within " + std::to_string(expected.bound);
      }
    }
  }
  return "";
}

/// Float activations: K + 2 terms.
inline std::string check_matmul(const ActivationView& x, const WeightView& w, const void* bias, const void* y) {
  const auto value = [](const void* context, std::int64_t m, std::int64_t k) {
    const auto& view = *static_cast<const ActivationView*>(context);
    return static_cast<double>(load_float(view.data, view.dtype, m * view.row_stride + k));
  };
  return check_product({x.rows, value, &x}, w, bias, x.dtype, y, static_cast<double>(w.in_features) + 2);
}

inline double activation_at(const CodesView& x, std::int64_t m, std::int64_t k) {
  const std::uint8_t byte = static_cast<const std::uint8_t*>(x.data)[m * x.row_stride + k];
  const double code = x.qtype == QType::qint8 ? static_cast<double>(static_cast<std::int8_t>(byte))
                                              : static_cast<double>(float8_decode(x.qtype, byte));
  if (x.scale == nullptr) return code;
  return code * static_cast<double>(load_float(x.scale, x.scale_dtype, x.per_row_scale ? m : 0));
}

/// Activations given as codes, whose scale is one more factor. Sums of integers that share a scale are exact, so that
/// only their scaled sums round: two terms for each group, whatever K is.
inline std::string check_matmul_codes(const CodesView& x, const WeightView& w, const void* bias, DType dtype,
                                      const void* y) {
  const auto value = [](const void* context, std::int64_t m, std::int64_t k) {
    return activation_at(*static_cast<const CodesView*>(context), m, k);
  };
  const std::int64_t group = w.group_size == 0 ? w.in_features : w.group_size;
  const bool integers = x.qtype == QType::qint8 && !qtype_info(w.qtype).is_floating_point && group < (1 << 17);
  const std::int64_t terms = integers ? 2 * (group == 0 ? 0 : w.in_features / group) + 8 : w.in_features + 3;
  return check_product({x.rows, value, &x}, w, bias, dtype, y, static_cast<double>(terms));
}

}  // namespace quanto::testing
