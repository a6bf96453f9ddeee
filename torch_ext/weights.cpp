#include "weights.h"

#include <utility>

#include "quanto/pack.h"
#include "quanto/qtype.h"

namespace quanto::torch_ext {

WeightTensors qbytes_weight(const char* op, Tensor data, Tensor scale) {
  const QType qtype = code_qtype(op, "data", dtype_of(data));
  if (data.dim() < 2) fail(op, "data", shape_text(data), "2 dimensions or more");
  const std::int64_t N = data.size(0);
  const bool single = scale.numel() == 1;
  if (!single) check_count(op, "scale", scale, N);
  const std::int64_t in_features = N == 0 ? data.size(1) : data.numel() / N;
  WeightTensors t{as_contiguous(std::move(data)), as_contiguous(std::move(scale)), std::nullopt, {}};
  t.view = {.qtype = qtype,
            .data = t.data.const_data_ptr(),
            .out_features = N,
            .in_features = in_features,
            .scale = t.scale.const_data_ptr(),
            .scale_dtype = float_dtype(op, "scale", t.scale),
            .per_tensor_scale = single};
  return t;
}

WeightTensors qbits_weight(const char* op, Tensor data, Tensor scale, Tensor shift, std::int64_t bits,
                           std::int64_t group_size, std::int64_t out_features, std::int64_t in_features) {
  const QType qtype = affine_qtype(op, bits);
  if (dtype_of(data) != ScalarType::Byte) fail(op, "data", dtype_text(dtype_of(data)), "uint8");
  if (out_features < 0) fail(op, "out_features", std::to_string(out_features), "0 or more");
  const std::int64_t cols = group_size == 0 ? in_features : group_size;
  if (group_size < 0 || (group_size > 0 && in_features % group_size != 0)) {
    fail(op, "group_size", std::to_string(group_size), "0 or a divisor of " + std::to_string(in_features));
  }
  const std::int64_t count = out_features * (cols == 0 ? 1 : in_features / cols);
  if (const std::int64_t bytes = packed_rows(count, static_cast<int>(bits)) * cols; data.numel() != bytes) {
    fail(op, "data", shape_text(data),
         std::to_string(bytes) + " elements for " + std::to_string(out_features) + " rows of " +
             std::to_string(in_features));
  }
  check_count(op, "scale", scale, count);
  ShiftTensor shifts = shift_tensor(op, std::move(shift), dtype_of(scale), count);
  WeightTensors t{as_contiguous(std::move(data)), as_contiguous(std::move(scale)), std::move(shifts.tensor), {}};
  t.view = {.qtype = qtype,
            .data = t.data.const_data_ptr(),
            .out_features = out_features,
            .in_features = in_features,
            .group_size = group_size,
            .scale = t.scale.const_data_ptr(),
            .scale_dtype = float_dtype(op, "scale", t.scale),
            .shift = shifts.view.data,
            .shift_kind = shifts.view.kind};
  return t;
}

WeightTensors qbits_matrix(const char* op, Tensor data, Tensor scale, Tensor shift, std::int64_t bits,
                           std::int64_t in_features) {
  if (data.dim() != 2) fail(op, "data", shape_text(data), "2 dimensions");
  const std::int64_t cols = data.size(1);
  if (cols != in_features && (cols == 0 || in_features == 0 || in_features % cols != 0)) {
    fail(op, "data", shape_text(data), "a number of columns that divides " + std::to_string(in_features));
  }
  const bool grouped = cols != in_features;
  const std::int64_t groups = grouped ? in_features / cols : 1, count = scale.numel();
  if (count % groups != 0) {
    fail(op, "scale", shape_text(scale), "a multiple of " + std::to_string(groups) + " elements");
  }
  return qbits_weight(op, std::move(data), std::move(scale), std::move(shift), bits, grouped ? cols : 0, count / groups,
                      in_features);
}

std::optional<Tensor> bias_tensor(const char* op, const std::optional<Tensor>& bias, std::int64_t count,
                                  ScalarType dtype) {
  if (!bias.has_value()) return std::nullopt;
  check_count(op, "bias", *bias, count);
  float_dtype(op, "bias", *bias);
  return as_contiguous(with_dtype(*bias, dtype));
}

}  // namespace quanto::torch_ext
