// Matrix multiplication with quantized weights: one operator call for a linear layer.
#include <utility>

#include "quanto/matmul.h"
#include "quanto/qtype.h"
#include "tensors.h"
#include "weights.h"

namespace quanto::torch_ext {
namespace {

/// An input of any leading shape as rows of K elements, and what comes out of it.
struct LinearShape {
  Rows rows;
  std::int64_t count;  ///< of rows
  std::vector<std::int64_t> out_sizes;
};

LinearShape linear_shape(const char* op, const Tensor& input, const WeightView& w) {
  auto sizes = sizes_of(input);
  if (sizes.empty() || sizes.back() != w.in_features) {
    fail(op, "input", shape_text(input), "a last dimension of " + std::to_string(w.in_features));
  }
  std::int64_t count = 1;
  for (std::size_t i = 0; i + 1 < sizes.size(); ++i) count *= sizes[i];
  sizes.back() = w.out_features;
  return {rows_of(input), count, std::move(sizes)};
}

Tensor linear(const char* op, const Tensor& input, const WeightView& w, const std::optional<Tensor>& bias) {
  const ScalarType type = dtype_of(input);
  const DType dtype = float_dtype(op, "input", type);
  const LinearShape shape = linear_shape(op, input, w);
  const ActivationView x{shape.rows.tensor.const_data_ptr(), dtype, shape.count, shape.rows.stride};
  matmul_fetch(x, w);
  const auto b = bias_tensor(op, bias, w.out_features, type);
  Tensor out = empty(shape.out_sizes, type);
  matmul(x, w, data_or_null(b), out.mutable_data_ptr());
  return out;
}

/// Activations as codes. `input_scale`: one element or one for each row; none where the weight's scales hold it.
Tensor linear_of_codes(const char* op, const Tensor& input, const std::optional<Tensor>& input_scale,
                       const WeightView& w, const std::optional<Tensor>& bias, ScalarType dtype) {
  const DType out_dtype = float_dtype(op, "dtype", dtype);
  const LinearShape shape = linear_shape(op, input, w);
  CodesView x{.data = shape.rows.tensor.const_data_ptr(),
              .qtype = code_qtype(op, "input", dtype_of(input)),
              .rows = shape.count,
              .row_stride = shape.rows.stride};
  std::optional<Tensor> scales;
  if (input_scale.has_value()) {
    x.per_row_scale = input_scale->numel() != 1;
    if (x.per_row_scale) check_count(op, "input_scale", *input_scale, shape.count);
    x.scale_dtype = float_dtype(op, "input_scale", *input_scale);
    scales = as_contiguous(*input_scale);
    x.scale = scales->const_data_ptr();
  }
  const auto b = bias_tensor(op, bias, w.out_features, dtype);
  Tensor out = empty(shape.out_sizes, dtype);
  matmul_codes(x, w, data_or_null(b), out_dtype, out.mutable_data_ptr());
  return out;
}

/// Activations that are quantized on the way, with a single scale or with one for each row.
Tensor linear_quantizing(const char* op, const Tensor& input, ScalarType code_dtype,
                         const std::optional<Tensor>& input_scale, const WeightTensors& w,
                         const std::optional<Tensor>& bias) {
  const LinearShape shape = linear_shape(op, input, w.view);
  QuantizingView x{
      .values = {shape.rows.tensor.const_data_ptr(), float_dtype(op, "input", input), shape.count, shape.rows.stride},
      .qtype = code_qtype(op, "dtype", code_dtype)};
  if (input_scale.has_value()) {
    if (input_scale->dim() != 0) fail_value(op, "input_scale", shape_text(*input_scale), "a scalar");
    x.scale_dtype = float_dtype(op, "input_scale", *input_scale);
    x.scale = input_scale->const_data_ptr();
  }
  const ScalarType dtype = dtype_of(w.scale);
  const auto b = bias_tensor(op, bias, w.view.out_features, dtype);
  Tensor out = empty(shape.out_sizes, dtype);
  matmul_quantizing(x, w.view, data_or_null(b), w.view.scale_dtype, out.mutable_data_ptr());
  return out;
}

WeightTensors matrix_weight(const char* op, const char* what, Tensor data, Tensor scale) {
  if (data.dim() != 2) fail(op, what, shape_text(data), "2 dimensions");
  return qbytes_weight(op, std::move(data), std::move(scale));
}

std::int64_t in_features(const char* op, const Tensor& input) {
  if (input.dim() == 0) fail(op, "input", shape_text(input), "at least 1 dimension");
  return input.size(input.dim() - 1);
}

Tensor linear_qbytes_op(Tensor input, Tensor data, Tensor scale, std::optional<Tensor> bias) {
  constexpr const char* kOp = "linear_qbytes";
  const WeightTensors w = matrix_weight(kOp, "data", std::move(data), std::move(scale));
  return linear(kOp, input, w.view, bias);
}

Tensor linear_qbits_op(Tensor input, Tensor data, Tensor scale, Tensor shift, std::optional<Tensor> bias,
                       std::int64_t bits) {
  constexpr const char* kOp = "linear_qbits";
  const WeightTensors w =
      qbits_matrix(kOp, std::move(data), std::move(scale), std::move(shift), bits, in_features(kOp, input));
  return linear(kOp, input, w.view, bias);
}

Tensor linear_codes_qbytes_op(Tensor input, Tensor input_scale, Tensor data, Tensor scale, std::optional<Tensor> bias,
                              ScalarType dtype) {
  constexpr const char* kOp = "linear_codes_qbytes";
  const WeightTensors w = matrix_weight(kOp, "data", std::move(data), std::move(scale));
  return linear_of_codes(kOp, input, input_scale, w.view, bias, dtype);
}

Tensor linear_codes_qbits_op(Tensor input, Tensor input_scale, Tensor data, Tensor scale, Tensor shift,
                             std::optional<Tensor> bias, ScalarType dtype, std::int64_t bits) {
  constexpr const char* kOp = "linear_codes_qbits";
  const WeightTensors w =
      qbits_matrix(kOp, std::move(data), std::move(scale), std::move(shift), bits, in_features(kOp, input));
  return linear_of_codes(kOp, input, input_scale, w.view, bias, dtype);
}

Tensor linear_quantizing_qbytes_op(Tensor input, ScalarType dtype, std::optional<Tensor> input_scale, Tensor data,
                                   Tensor scale, std::optional<Tensor> bias) {
  constexpr const char* kOp = "linear_quantizing_qbytes";
  const WeightTensors w = matrix_weight(kOp, "data", std::move(data), std::move(scale));
  return linear_quantizing(kOp, input, dtype, input_scale, w, bias);
}

Tensor linear_quantizing_qbits_op(Tensor input, ScalarType dtype, std::optional<Tensor> input_scale, Tensor data,
                                  Tensor scale, Tensor shift, std::optional<Tensor> bias, std::int64_t bits) {
  constexpr const char* kOp = "linear_quantizing_qbits";
  const WeightTensors w =
      qbits_matrix(kOp, std::move(data), std::move(scale), std::move(shift), bits, in_features(kOp, input));
  return linear_quantizing(kOp, input, dtype, input_scale, w, bias);
}

/// The product in the dtype of the scales. Activations are floats, or codes whose scale is already part of `scales`.
Tensor qbytes_mm_op(Tensor A, Tensor B, Tensor scales) {
  constexpr const char* kOp = "qbytes_mm";
  const WeightTensors w = matrix_weight(kOp, "B", B, scales);
  if (dtype_of(A) == ScalarType::Char && dtype_of(B) == ScalarType::Char) {
    return linear_of_codes(kOp, A, std::nullopt, w.view, std::nullopt, dtype_of(scales));
  }
  return linear(kOp, with_dtype(A, dtype_of(scales)), w.view, std::nullopt);
}

}  // namespace
}  // namespace quanto::torch_ext

STABLE_TORCH_LIBRARY_IMPL(quanto, CPU, m) {
  using namespace quanto::torch_ext;
  m.impl("linear_qbytes", TORCH_BOX(&linear_qbytes_op));
  m.impl("linear_qbits", TORCH_BOX(&linear_qbits_op));
  m.impl("linear_codes_qbytes", TORCH_BOX(&linear_codes_qbytes_op));
  m.impl("linear_codes_qbits", TORCH_BOX(&linear_codes_qbits_op));
  m.impl("linear_quantizing_qbytes", TORCH_BOX(&linear_quantizing_qbytes_op));
  m.impl("linear_quantizing_qbits", TORCH_BOX(&linear_quantizing_qbits_op));
  m.impl("qbytes_mm", TORCH_BOX(&qbytes_mm_op));
}
