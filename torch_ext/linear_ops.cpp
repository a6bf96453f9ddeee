// Matrix multiplication with quantized weights: one operator call for a linear layer.
#include "quanto/matmul.h"
#include "quanto/pack.h"
#include "quanto/qtype.h"
#include "tensors.h"

namespace quanto::torch_ext {
namespace {

/// An input of any leading shape as rows of K elements, and what comes out of it.
struct LinearShape {
  Rows rows;
  std::int64_t count;  ///< of rows
  std::vector<std::int64_t> out_sizes;
};

LinearShape linear_shape(const char* op, const Tensor& input, const WeightView& w) {
  if (input.dim() == 0 || input.size(input.dim() - 1) != w.in_features) {
    fail(op, "input", shape_text(input), "a last dimension of " + std::to_string(w.in_features));
  }
  auto sizes = sizes_of(input);
  std::int64_t count = 1;
  for (std::size_t i = 0; i + 1 < sizes.size(); ++i) count *= sizes[i];
  sizes.back() = w.out_features;
  return {rows_of(input), count, sizes};
}

/// The bias in the dtype of the results; empty if there is none.
std::optional<Tensor> dense_bias(const char* op, const std::optional<Tensor>& bias, const WeightView& w,
                                 ScalarType dtype) {
  if (!bias.has_value()) return std::nullopt;
  check_count(op, "bias", *bias, w.out_features);
  float_dtype(op, "bias", *bias);
  return as_contiguous(with_dtype(*bias, dtype));
}

const void* data_of(const std::optional<Tensor>& t) { return t.has_value() ? t->const_data_ptr() : nullptr; }

Tensor linear(const char* op, const Tensor& input, const WeightView& w, const std::optional<Tensor>& bias) {
  const DType dtype = float_dtype(op, "input", input);
  const LinearShape shape = linear_shape(op, input, w);
  const auto b = dense_bias(op, bias, w, input.scalar_type());
  Tensor out = empty(shape.out_sizes, input.scalar_type());
  matmul({shape.rows.tensor.const_data_ptr(), dtype, shape.count, shape.rows.stride}, w, data_of(b),
         out.mutable_data_ptr());
  return out;
}

/// Activations as codes. `input_scale`: one element or one for each row; none where the weight's scales hold it.
Tensor linear_of_codes(const char* op, const Tensor& input, const std::optional<Tensor>& input_scale,
                       const WeightView& w, const std::optional<Tensor>& bias, ScalarType dtype) {
  const DType out_dtype = float_dtype(op, "dtype", dtype);
  const LinearShape shape = linear_shape(op, input, w);
  CodesView x{.data = shape.rows.tensor.const_data_ptr(),
              .qtype = code_qtype(op, "input", input.scalar_type()),
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
  const auto b = dense_bias(op, bias, w, dtype);
  Tensor out = empty(shape.out_sizes, dtype);
  matmul_codes(x, w, data_of(b), out_dtype, out.mutable_data_ptr());
  return out;
}

/// The parts of a weight, contiguous, and the view of them.
struct Weight {
  Tensor codes, scales;
  std::optional<ShiftTensor> shifts;
  WeightView view;
};

Weight qbytes_weight(const char* op, const Tensor& data, const Tensor& scale) {
  const QType qtype = code_qtype(op, "data", data.scalar_type());
  if (data.dim() != 2) fail(op, "data", shape_text(data), "2 dimensions");
  const bool single = scale.numel() == 1;
  if (!single) check_count(op, "scale", scale, data.size(0));
  Weight w{as_contiguous(data), as_contiguous(scale), std::nullopt, {}};
  w.view = {.qtype = qtype,
            .data = w.codes.const_data_ptr(),
            .out_features = data.size(0),
            .in_features = data.size(1),
            .scale = w.scales.const_data_ptr(),
            .scale_dtype = float_dtype(op, "scale", scale),
            .per_tensor_scale = single};
  return w;
}

/// What a packed weight is besides its tensors.
struct PackedLayout {
  std::int64_t bits, group_size, out_features;
};

Weight qbits_weight(const char* op, const Tensor& input, const Tensor& data, const Tensor& scale, const Tensor& shift,
                    const PackedLayout& layout) {
  const QType qtype = affine_qtype(op, layout.bits);
  if (data.scalar_type() != ScalarType::Byte) fail(op, "data", dtype_text(data.scalar_type()), "uint8");
  if (input.dim() == 0) fail(op, "input", shape_text(input), "at least 1 dimension");
  if (layout.out_features < 0) fail(op, "out_features", std::to_string(layout.out_features), "0 or more");
  const std::int64_t K = input.size(input.dim() - 1), group_size = layout.group_size;
  const std::int64_t cols = group_size == 0 ? K : group_size;
  if (group_size < 0 || (group_size > 0 && K % group_size != 0)) {
    fail(op, "group_size", std::to_string(group_size), "0 or a divisor of " + std::to_string(K));
  }
  const std::int64_t count = layout.out_features * (cols == 0 ? 1 : K / cols);
  check_count(op, "data", data, packed_rows(count, static_cast<int>(layout.bits)) * cols);
  check_count(op, "scale", scale, count);
  const DType scale_dtype = float_dtype(op, "scale", scale);
  Weight w{as_contiguous(data), as_contiguous(scale), shift_tensor(op, shift, scale.scalar_type(), count), {}};
  w.view = {.qtype = qtype,
            .data = w.codes.const_data_ptr(),
            .out_features = layout.out_features,
            .in_features = K,
            .group_size = group_size,
            .scale = w.scales.const_data_ptr(),
            .scale_dtype = scale_dtype,
            .shift = w.shifts->view.data,
            .shift_kind = w.shifts->view.kind};
  return w;
}

Tensor linear_qbytes_op(Tensor input, Tensor data, Tensor scale, std::optional<Tensor> bias) {
  constexpr const char* kOp = "linear_qbytes";
  return linear(kOp, input, qbytes_weight(kOp, data, scale).view, bias);
}

Tensor linear_qbits_op(Tensor input, Tensor data, Tensor scale, Tensor shift, std::int64_t bits,
                       std::int64_t group_size, std::int64_t out_features, std::optional<Tensor> bias) {
  constexpr const char* kOp = "linear_qbits";
  const Weight w = qbits_weight(kOp, input, data, scale, shift, {bits, group_size, out_features});
  return linear(kOp, input, w.view, bias);
}

Tensor linear_codes_qbytes_op(Tensor input, Tensor input_scale, Tensor data, Tensor scale, std::optional<Tensor> bias,
                              ScalarType dtype) {
  constexpr const char* kOp = "linear_codes_qbytes";
  const Weight w = qbytes_weight(kOp, data, scale);
  return linear_of_codes(kOp, input, input_scale, w.view, bias, dtype);
}

Tensor linear_codes_qbits_op(Tensor input, Tensor input_scale, Tensor data, Tensor scale, Tensor shift,
                             std::int64_t bits, std::int64_t group_size, std::int64_t out_features,
                             std::optional<Tensor> bias, ScalarType dtype) {
  constexpr const char* kOp = "linear_codes_qbits";
  const Weight w = qbits_weight(kOp, input, data, scale, shift, {bits, group_size, out_features});
  return linear_of_codes(kOp, input, input_scale, w.view, bias, dtype);
}

/// The product in the dtype of the scales. Activations are floats, or codes whose scale is already part of `scales`.
Tensor qbytes_mm_op(Tensor A, Tensor B, Tensor scales) {
  constexpr const char* kOp = "qbytes_mm";
  const Weight w = qbytes_weight(kOp, B, scales);
  if (A.scalar_type() == ScalarType::Char && B.scalar_type() == ScalarType::Char) {
    return linear_of_codes(kOp, A, std::nullopt, w.view, std::nullopt, scales.scalar_type());
  }
  return linear(kOp, with_dtype(A, scales.scalar_type()), w.view, std::nullopt);
}

}  // namespace
}  // namespace quanto::torch_ext

STABLE_TORCH_LIBRARY_IMPL(quanto, CPU, m) {
  using namespace quanto::torch_ext;
  m.impl("linear_qbytes", TORCH_BOX(&linear_qbytes_op));
  m.impl("linear_qbits", TORCH_BOX(&linear_qbits_op));
  m.impl("linear_codes_qbytes", TORCH_BOX(&linear_codes_qbytes_op));
  m.impl("linear_codes_qbits", TORCH_BOX(&linear_codes_qbits_op));
  m.impl("qbytes_mm", TORCH_BOX(&qbytes_mm_op));
}
