// Matrix multiplication with quantized weights: one operator call for a linear layer.
#include "quanto/matmul.h"
#include "quanto/pack.h"
#include "quanto/qtype.h"
#include "tensors.h"

namespace quanto::torch_ext {
namespace {

/// An input of any leading shape as rows of K activations.
struct InputRows {
  Tensor tensor;
  ActivationView view;
};

InputRows input_rows(const char* op, const Tensor& input, std::int64_t K) {
  const DType dtype = float_dtype(op, "input", input);
  if (input.dim() == 0 || input.size(input.dim() - 1) != K) {
    fail(op, "input", shape_text(input), "a last dimension of " + std::to_string(K));
  }
  const Rows rows = rows_of(input);
  return {rows.tensor, {rows.tensor.const_data_ptr(), dtype, K == 0 ? 0 : input.numel() / K, rows.stride}};
}

Tensor linear(const char* op, const Tensor& input, const WeightView& w, const std::optional<Tensor>& bias) {
  InputRows x = input_rows(op, input, w.in_features);
  auto sizes = sizes_of(input);
  sizes.back() = w.out_features;
  Tensor out = empty(sizes, input.scalar_type());
  if (w.in_features == 0) {
    x.view.rows = w.out_features == 0 ? 0 : out.numel() / w.out_features;
    x.view.row_stride = 0;
  }
  std::optional<Tensor> dense_bias;
  if (bias.has_value()) {
    check_count(op, "bias", *bias, w.out_features);
    float_dtype(op, "bias", *bias);
    dense_bias = as_contiguous(with_dtype(*bias, input.scalar_type()));
  }
  matmul(x.view, w, dense_bias.has_value() ? dense_bias->const_data_ptr() : nullptr, out.mutable_data_ptr());
  return out;
}

Tensor linear_qbytes_op(Tensor input, Tensor data, Tensor scale, std::optional<Tensor> bias) {
  constexpr const char* kOp = "linear_qbytes";
  const QType qtype = code_qtype(kOp, "data", data.scalar_type());
  if (data.dim() != 2) fail(kOp, "data", shape_text(data), "2 dimensions");
  const Tensor codes = as_contiguous(data);
  const Tensor scales = as_contiguous(scale);
  const bool single = scale.numel() == 1;
  if (!single) check_count(kOp, "scale", scale, data.size(0));
  const WeightView w{.qtype = qtype,
                     .data = codes.const_data_ptr(),
                     .out_features = data.size(0),
                     .in_features = data.size(1),
                     .scale = scales.const_data_ptr(),
                     .scale_dtype = float_dtype(kOp, "scale", scale),
                     .per_tensor_scale = single};
  return linear(kOp, input, w, bias);
}

Tensor linear_qbits_op(Tensor input, Tensor data, Tensor scale, Tensor shift, std::int64_t bits,
                       std::int64_t group_size, std::int64_t out_features, std::optional<Tensor> bias) {
  constexpr const char* kOp = "linear_qbits";
  const QType qtype = affine_qtype(kOp, bits);
  if (data.scalar_type() != ScalarType::Byte) fail(kOp, "data", dtype_text(data.scalar_type()), "uint8");
  if (input.dim() == 0) fail(kOp, "input", shape_text(input), "at least 1 dimension");
  if (out_features < 0) fail(kOp, "out_features", std::to_string(out_features), "0 or more");
  const std::int64_t K = input.size(input.dim() - 1);
  const std::int64_t cols = group_size == 0 ? K : group_size;
  if (group_size < 0 || (group_size > 0 && K % group_size != 0)) {
    fail(kOp, "group_size", std::to_string(group_size), "0 or a divisor of " + std::to_string(K));
  }
  const std::int64_t count = out_features * (cols == 0 ? 1 : K / cols);
  check_count(kOp, "data", data, packed_rows(count, static_cast<int>(bits)) * cols);
  check_count(kOp, "scale", scale, count);
  const DType scale_dtype = float_dtype(kOp, "scale", scale);
  const ShiftTensor shifts = shift_tensor(kOp, shift, scale.scalar_type(), count);
  const Tensor codes = as_contiguous(data);
  const Tensor scales = as_contiguous(scale);
  const WeightView w{.qtype = qtype,
                     .data = codes.const_data_ptr(),
                     .out_features = out_features,
                     .in_features = K,
                     .group_size = group_size,
                     .scale = scales.const_data_ptr(),
                     .scale_dtype = scale_dtype,
                     .shift = shifts.view.data,
                     .shift_kind = shifts.view.kind};
  return linear(kOp, input, w, bias);
}

/// Integer activations times integer weights, exact up to the scaling of the sums.
Tensor int8_mm(const char* op, const Tensor& a, const Tensor& b, const Tensor& scales) {
  if (a.dim() == 0 || a.size(a.dim() - 1) != b.size(1)) {
    fail(op, "A", shape_text(a), "a last dimension of " + std::to_string(b.size(1)));
  }
  const Tensor x = as_contiguous(a);
  const Tensor w = as_contiguous(b);
  const Tensor s = as_contiguous(scales);
  auto sizes = sizes_of(a);
  sizes.back() = b.size(0);
  Tensor out = empty(sizes, scales.scalar_type());
  const std::int64_t rows = b.size(0) == 0 ? 0 : out.numel() / b.size(0);
  matmul_int8({static_cast<const std::int8_t*>(x.const_data_ptr()), rows},
              {static_cast<const std::int8_t*>(w.const_data_ptr()), b.size(0), b.size(1)},
              {s.const_data_ptr(), float_dtype(op, "scales", scales), scales.numel() == 1}, out.mutable_data_ptr());
  return out;
}

/// The product in the dtype of the scales. Activations are floats, or codes whose scale is already part of `scales`.
Tensor qbytes_mm_op(Tensor A, Tensor B, Tensor scales) {
  constexpr const char* kOp = "qbytes_mm";
  if (B.dim() != 2) fail(kOp, "B", shape_text(B), "2 dimensions");
  if (scales.numel() != 1) check_count(kOp, "scales", scales, B.size(0));
  if (A.scalar_type() == ScalarType::Char && B.scalar_type() == ScalarType::Char) return int8_mm(kOp, A, B, scales);
  return linear_qbytes_op(with_dtype(A, scales.scalar_type()), B, scales, std::nullopt);
}

}  // namespace
}  // namespace quanto::torch_ext

STABLE_TORCH_LIBRARY_IMPL(quanto, CPU, m) {
  using namespace quanto::torch_ext;
  m.impl("linear_qbytes", TORCH_BOX(&linear_qbytes_op));
  m.impl("linear_qbits", TORCH_BOX(&linear_qbits_op));
  m.impl("qbytes_mm", TORCH_BOX(&qbytes_mm_op));
}
