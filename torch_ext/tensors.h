// Between torch's tensors and the views of the core.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "quanto/quantize.h"
#include "quanto/scale.h"
#include "quanto/types.h"

namespace quanto::torch_ext {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

/// Throws "[op] what: got ..., expected ...", which arrives in Python as a RuntimeError.
[[noreturn]] void fail(const char* op, const std::string& what, const std::string& got, const std::string& expected);

/// The same, but it arrives as a ValueError: for what optimum-quanto 0.2.7 raises as one.
[[noreturn]] void fail_value(const char* op, const std::string& what, const std::string& got,
                             const std::string& expected);

std::string shape_text(const Tensor& t);
std::string dtype_text(ScalarType dtype);

std::vector<std::int64_t> sizes_of(const Tensor& t);

/// What Tensor::scalar_type returns, after one call of libtorch in place of up to a dozen.
ScalarType dtype_of(const Tensor& t);

/// float32, bfloat16 or float16; anything else fails, naming `what`.
DType float_dtype(const char* op, const char* what, const Tensor& t);
DType float_dtype(const char* op, const char* what, ScalarType dtype);

/// int8 or float8 codes; anything else fails, naming `what`.
QType code_qtype(const char* op, const char* what, ScalarType dtype);

ScalarType scalar_type(DType dtype);

/// An uninitialized contiguous CPU tensor.
Tensor empty(const std::vector<std::int64_t>& sizes, ScalarType dtype);
/// The same for codes, of a byte each, which may be a weight's and read again and again.
Tensor empty_codes(const std::vector<std::int64_t>& sizes, ScalarType dtype);
Tensor empty_strided(const std::vector<std::int64_t>& sizes, const std::vector<std::int64_t>& strides,
                     ScalarType dtype);

/// `t` itself if it is contiguous, else a contiguous copy.
Tensor as_contiguous(Tensor t);

/// A tensor of any leading shape as rows of its last dimension, `stride` elements apart: itself, or a contiguous copy
/// where its strides do not allow that.
struct Rows {
  Tensor tensor;
  std::int64_t stride;
};
Rows rows_of(Tensor t);

/// `t` itself if it has that dtype, else a copy converted to it.
Tensor with_dtype(Tensor t, ScalarType dtype);

/// A tensor seen as a matrix whose scales run along `axis`.
struct MatrixShape {
  std::int64_t rows, cols;
  Axis axis;
};

/// The matrix of an ungrouped tensor: its first dimension against the rest, or the rest against its last one. A vector
/// has one scale along its only axis.
/// `axis`: 0, -1 or the last dimension's index, or none for a single scale.
MatrixShape matrix_shape(const char* op, const std::vector<std::int64_t>& sizes, std::optional<std::int64_t> axis);

/// A tensor cut into groups along the dimensions other than `axis`.
struct Grouping {
  MatrixShape matrix;
  std::int64_t group_size = 0;  ///< 0: not grouped
  std::int64_t groups = 0;      ///< along the last axis: groups to each of its elements
};

Grouping grouping(const char* op, const std::vector<std::int64_t>& sizes, std::int64_t axis,
                  std::optional<std::int64_t> group_size);

/// The shape of the grouped tensor: two dimensions, or `sizes` where it is not grouped.
std::vector<std::int64_t> grouped_sizes(const Grouping& g, const std::vector<std::int64_t>& sizes);

/// The contiguous matrix of `base`, regrouped if its scales run along the last axis.
Tensor grouped_base(const Tensor& base, const Grouping& g);

/// The shift of an affine quantization: floating in the scale's dtype, or one byte each.
struct ShiftTensor {
  Tensor tensor;
  ConstShift view;
};
ShiftTensor shift_tensor(const char* op, Tensor shift, ScalarType scale_dtype, std::int64_t count);

/// Fails unless `t` has `count` elements.
void check_count(const char* op, const char* what, const Tensor& t, std::int64_t count);

/// Fails unless `bits` is 2 or 4.
QType affine_qtype(const char* op, std::int64_t bits);

}  // namespace quanto::torch_ext
