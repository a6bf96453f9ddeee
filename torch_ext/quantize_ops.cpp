// Scale search, quantization, dequantization and packing. See the headers of the core for the arithmetic.
#include <string>
#include <tuple>

#include "quanto/fake_quantize.h"
#include "quanto/pack.h"
#include "quanto/qtype.h"
#include "recurring.h"
#include "tensors.h"

namespace quanto::torch_ext {
namespace {

using Index = std::int64_t;
using OptionalIndex = std::optional<std::int64_t>;

constexpr Index kMostSteps = 1 << 20;  // of a search

ConstMatrix matrix_of(const char* op, const Tensor& dense, const MatrixShape& shape) {
  return {dense.const_data_ptr(), float_dtype(op, "base", dense), shape.rows, shape.cols};
}

Index count_of(const MatrixShape& shape) { return scale_count(shape.axis, shape.rows, shape.cols); }

/// The shape of the scales of `sizes`: ones, but for the quantization axis; no dimensions for a single scale.
std::vector<Index> scale_sizes(const std::vector<Index>& sizes, Axis axis) {
  if (axis == Axis::tensor) return {};
  std::vector<Index> out(sizes.size(), 1);
  if (sizes.size() == 1) return out;
  (axis == Axis::first ? out.front() : out.back()) = axis == Axis::first ? sizes.front() : sizes.back();
  return out;
}

/// Arithmetic between tensors of different float dtypes happens in the wider one, as in torch.
ScalarType promoted(ScalarType a, ScalarType b) { return a == b ? a : ScalarType::Float; }

/// base and scale in the dtype that their division happens in; a scale without dimensions takes that of the base.
std::pair<Tensor, Tensor> same_dtype(const char* op, const Tensor& base, const Tensor& scale) {
  float_dtype(op, "base", base);
  float_dtype(op, "scale", scale);
  const ScalarType dtype = scale.dim() == 0 ? dtype_of(base) : promoted(dtype_of(base), dtype_of(scale));
  return {with_dtype(base, dtype), as_contiguous(with_dtype(scale, dtype))};
}

void check_symmetric_scale(const char* op, const Tensor& base, OptionalIndex axis, const Tensor& scale) {
  if (!axis.has_value()) {
    if (scale.dim() > 0) fail_value(op, "scale", shape_text(scale), "a scalar when quantizing per-tensor");
    return;
  }
  if (base.dim() < 2) fail_value(op, "base", shape_text(base), "at least 2 dimensions to quantize along one of them");
  if (base.size(*axis) == 1) {
    fail_value(op, "axis", std::to_string(*axis) + " of " + shape_text(base), "a dimension of more than one element");
  }
  if (scale.dim() != base.dim()) {
    fail_value(op, "scale", shape_text(scale), "as many dimensions as the base of " + shape_text(base));
  }
  if (scale.size(*axis) != scale.numel()) {
    fail_value(op, "scale", shape_text(scale), "one dimension of more than one element");
  }
}

void check_same_dtype(const char* op, const char* what, const Tensor& t, const Tensor& base) {
  if (dtype_of(t) != dtype_of(base)) {
    fail(op, what, dtype_text(dtype_of(t)), dtype_text(dtype_of(base)) + ", the dtype of the base");
  }
}

Tensor quantize_symmetric_op(Tensor base, ScalarType dtype, OptionalIndex axis, Tensor scale) {
  constexpr const char* kOp = "quantize_symmetric";
  const QType qtype = code_qtype(kOp, "dtype", dtype);
  const auto sizes = sizes_of(base);
  const MatrixShape shape = matrix_shape(kOp, sizes, axis);
  check_symmetric_scale(kOp, base, axis, scale);
  check_count(kOp, "scale", scale, count_of(shape));
  const auto [values, scales] = same_dtype(kOp, base, scale);
  const Tensor dense = as_contiguous(values);
  Tensor codes = empty_codes(sizes, dtype);
  quantize_symmetric(matrix_of(kOp, dense, shape), qtype, shape.axis, scales.const_data_ptr(),
                     codes.mutable_data_ptr());
  return codes;
}

/// Codes, and one scale for each row of the last dimension.
std::tuple<Tensor, Tensor> quantize_per_token_op(Tensor input, ScalarType dtype) {
  constexpr const char* kOp = "quantize_per_token";
  const QType qtype = code_qtype(kOp, "dtype", dtype);
  float_dtype(kOp, "input", input);
  if (input.dim() == 0) fail(kOp, "input", shape_text(input), "at least 1 dimension");
  const Rows rows = rows_of(input);
  auto sizes = sizes_of(input);
  Tensor codes = empty(sizes, dtype);
  sizes.back() = 1;
  Tensor scale = empty(sizes, dtype_of(input));
  const std::int64_t cols = input.size(input.dim() - 1);
  quantize_per_token({rows.tensor.const_data_ptr(), float_dtype(kOp, "input", input), scale.numel(), cols, rows.stride},
                     qtype, scale.mutable_data_ptr(), codes.mutable_data_ptr());
  return {codes, scale};
}

/// The tensors and shapes of an affine quantization, checked.
struct AffineInputs {
  QType qtype;
  Grouping grouping;
  Tensor base, scale;
  ShiftTensor shift;
  std::vector<Index> sizes;  ///< of the codes
};

AffineInputs affine_inputs(const char* op, const Tensor& base, Index bits, Index axis, OptionalIndex group_size,
                           const Tensor& scale, const Tensor& shift) {
  const QType qtype = affine_qtype(op, bits);
  const auto sizes = sizes_of(base);
  const Grouping g = grouping(op, sizes, axis, group_size);
  check_count(op, "scale", scale, count_of(g.matrix));
  const auto [values, scales] = same_dtype(op, base, scale);
  ShiftTensor shifts = shift_tensor(op, shift, dtype_of(scales), count_of(g.matrix));
  return {qtype, g, grouped_base(values, g), scales, shifts, grouped_sizes(g, sizes)};
}

Tensor quantize_affine_op(Tensor base, Index bits, Index axis, OptionalIndex group_size, Tensor scale, Tensor shift) {
  constexpr const char* kOp = "quantize_affine";
  const AffineInputs in = affine_inputs(kOp, base, bits, axis, group_size, scale, shift);
  Tensor codes = empty_codes(in.sizes, ScalarType::Byte);
  quantize_affine(matrix_of(kOp, in.base, in.grouping.matrix), in.qtype, in.grouping.matrix.axis,
                  in.scale.const_data_ptr(), in.shift.view, static_cast<std::uint8_t*>(codes.mutable_data_ptr()));
  return codes;
}

/// Packing joins rows of the first dimension: a matrix of rows x (the other dimensions).
std::pair<Index, Index> packing_matrix(const std::vector<Index>& sizes) {
  Index cols = 1;
  for (std::size_t i = 1; i < sizes.size(); ++i) cols *= sizes[i];
  return {sizes.empty() ? 1 : sizes[0], cols};
}

std::vector<Index> with_first(std::vector<Index> sizes, Index first) {
  sizes.empty() ? sizes.push_back(first) : static_cast<void>(sizes[0] = first);
  return sizes;
}

Tensor pack_codes(const std::uint8_t* codes, const std::vector<Index>& sizes, int bits) {
  const auto [rows, cols] = packing_matrix(sizes);
  Tensor packed = empty_codes(with_first(sizes, packed_rows(rows, bits)), ScalarType::Byte);
  pack(codes, rows, cols, bits, static_cast<std::uint8_t*>(packed.mutable_data_ptr()));
  return packed;
}

Tensor quantize_affine_packed_op(Tensor base, Index bits, Index axis, OptionalIndex group_size, Tensor scale,
                                 Tensor shift) {
  constexpr const char* kOp = "quantize_affine_packed";
  const AffineInputs in = affine_inputs(kOp, base, bits, axis, group_size, scale, shift);
  const ConstMatrix matrix = matrix_of(kOp, in.base, in.grouping.matrix);
  const auto [rows, cols] = packing_matrix(in.sizes);
  if (matrix.rows == rows && matrix.cols == cols) {
    Tensor packed = empty_codes(with_first(in.sizes, packed_rows(rows, static_cast<int>(bits))), ScalarType::Byte);
    quantize_affine_packed(matrix, in.qtype, in.grouping.matrix.axis, in.scale.const_data_ptr(), in.shift.view,
                           static_cast<std::uint8_t*>(packed.mutable_data_ptr()));
    return packed;
  }
  // More than two dimensions along the last axis, ungrouped: the matrix of the scales is not the one that is packed.
  Tensor codes = quantize_affine_op(base, bits, axis, group_size, scale, shift);
  return pack_codes(static_cast<const std::uint8_t*>(codes.const_data_ptr()), in.sizes, static_cast<int>(bits));
}

Tensor absmax_scale_op(Tensor base, std::string qtype_name, OptionalIndex axis) {
  constexpr const char* kOp = "absmax_scale";
  const auto sizes = sizes_of(base);
  const MatrixShape shape = matrix_shape(kOp, sizes, axis);
  const Tensor dense = as_contiguous(base);
  Tensor scale = empty(scale_sizes(sizes, shape.axis), dtype_of(base));
  absmax_scale(matrix_of(kOp, dense, shape), qtype_from_name(qtype_name), shape.axis, scale.mutable_data_ptr());
  return scale;
}

std::tuple<Tensor, Tensor> minmax_scale_op(Tensor base, std::string qtype_name, Index axis, OptionalIndex group_size) {
  constexpr const char* kOp = "minmax_scale";
  const auto sizes = sizes_of(base);
  const Grouping g = grouping(kOp, sizes, axis, group_size);
  const Tensor grouped = grouped_base(base, g);
  const auto out_sizes = scale_sizes(grouped_sizes(g, sizes), g.matrix.axis);
  Tensor scale = empty(out_sizes, dtype_of(base));
  Tensor shift = empty(out_sizes, dtype_of(base));
  minmax_scale(matrix_of(kOp, grouped, g.matrix), qtype_from_name(qtype_name), g.matrix.axis, scale.mutable_data_ptr(),
               shift.mutable_data_ptr());
  return {scale, shift};
}

/// Scale, shift and the errors of the steps (scale.h).
std::tuple<Tensor, Tensor, Tensor> hqq_scale_op(Tensor base, std::string qtype_name, Index axis, double lp_norm,
                                                double beta, double kappa, Index iters) {
  constexpr const char* kOp = "hqq_scale";
  const auto sizes = sizes_of(base);
  const MatrixShape shape = matrix_shape(kOp, sizes, axis);
  if (iters < 0 || iters > kMostSteps) fail_value(kOp, "iters", std::to_string(iters), "a number of steps");
  const Tensor dense = as_contiguous(base);
  const auto out_sizes = scale_sizes(sizes, shape.axis);
  Tensor scale = empty(out_sizes, dtype_of(base));
  Tensor shift = empty(out_sizes, dtype_of(base));
  Tensor errors = empty({iters + 1}, ScalarType::Float);
  const HqqParameters parameters{lp_norm, beta, kappa, static_cast<int>(iters)};
  hqq_scale(matrix_of(kOp, dense, shape), qtype_from_name(qtype_name), shape.axis, parameters, scale.mutable_data_ptr(),
            shift.mutable_data_ptr(), static_cast<float*>(errors.mutable_data_ptr()));
  return {scale, shift, errors};
}

/// The axis that a scale's shape stands for: its only dimension longer than one must be the first or the last.
MatrixShape shape_of_scale(const char* op, const std::vector<Index>& sizes, const Tensor& scale) {
  if (scale.numel() == 1) return matrix_shape(op, sizes, std::nullopt);
  const bool same_dims = scale.dim() == static_cast<Index>(sizes.size()) && scale.dim() > 0;
  if (same_dims && scale.size(0) == scale.numel() && scale.size(0) == sizes[0]) return matrix_shape(op, sizes, 0);
  if (same_dims && scale.size(-1) == scale.numel() && scale.size(-1) == sizes.back())
    return matrix_shape(op, sizes, -1);
  fail(op, "scale", shape_text(scale), "a single element or one for each index of the first or the last dimension");
}

Tensor dequantize_symmetric_op(Tensor data, Tensor scale) {
  constexpr const char* kOp = "dequantize_symmetric";
  const QType qtype = code_qtype(kOp, "data", dtype_of(data));
  const DType dtype = float_dtype(kOp, "scale", scale);
  const auto sizes = sizes_of(data);
  const MatrixShape shape = shape_of_scale(kOp, sizes, scale);
  const Tensor codes = as_contiguous(data);
  const Tensor scales = as_contiguous(scale);
  Tensor out = empty(sizes, dtype_of(scale));
  dequantize_symmetric(codes.const_data_ptr(), qtype, shape.rows, shape.cols, shape.axis, scales.const_data_ptr(),
                       dtype, out.mutable_data_ptr());
  return out;
}

Index product(const std::vector<Index>& sizes) {
  Index result = 1;
  for (const Index size : sizes) result *= size;
  return result;
}

Tensor unpack_bytes(const Tensor& packed, int bits) {
  const Tensor dense = as_contiguous(packed);
  const auto sizes = sizes_of(packed);
  const auto [rows, cols] = packing_matrix(sizes);
  Tensor codes = empty(with_first(sizes, rows * (8 / bits)), ScalarType::Byte);
  unpack(static_cast<const std::uint8_t*>(dense.const_data_ptr()), rows, cols, bits,
         static_cast<std::uint8_t*>(codes.mutable_data_ptr()));
  return codes;
}

void check_bytes(const char* op, const Tensor& t) {
  if (dtype_of(t) != ScalarType::Byte) fail(op, "data", dtype_text(dtype_of(t)), "uint8");
}

/// The values of a matrix that was regrouped because its scales run along the last axis, in their own order.
Tensor ungrouped(const Tensor& values, const Grouping& g, const std::vector<Index>& sizes) {
  if (g.group_size == 0 || g.matrix.axis != Axis::last) return values;
  Tensor out = empty(sizes, dtype_of(values));
  ungroup_last(values.const_data_ptr(), values.element_size(), g.groups, g.group_size,
               g.groups == 0 ? 0 : g.matrix.cols / g.groups, out.mutable_data_ptr());
  return out;
}

Tensor dequantize_affine_op(Tensor data, Tensor scale, Tensor shift, Index bits, Index axis, OptionalIndex group_size,
                            std::vector<Index> size, bool packed) {
  constexpr const char* kOp = "dequantize_affine";
  const QType qtype = affine_qtype(kOp, bits);
  const Grouping g = grouping(kOp, size, axis, group_size);
  const DType dtype = float_dtype(kOp, "scale", scale);
  check_bytes(kOp, data);
  check_count(kOp, "scale", scale, count_of(g.matrix));
  const ShiftTensor shifts = shift_tensor(kOp, shift, dtype_of(scale), count_of(g.matrix));
  const Tensor scales = as_contiguous(scale);
  const auto code_sizes = grouped_sizes(g, size);
  const auto [rows, cols] = packing_matrix(code_sizes);
  check_count(kOp, "data", data, packed ? packed_rows(rows, static_cast<int>(bits)) * cols : product(size));
  const bool direct = packed && g.matrix.rows == rows && g.matrix.cols == cols;
  const Tensor bytes = packed && !direct ? unpack_bytes(data, static_cast<int>(bits)) : as_contiguous(data);
  const auto* codes = static_cast<const std::uint8_t*>(bytes.const_data_ptr());
  const bool regroup = g.group_size != 0 && g.matrix.axis == Axis::last;
  Tensor out = empty(regroup ? code_sizes : size, dtype_of(scale));
  (direct ? dequantize_affine_packed : dequantize_affine)(codes, qtype, g.matrix.rows, g.matrix.cols, g.matrix.axis,
                                                          scales.const_data_ptr(), shifts.view, dtype,
                                                          out.mutable_data_ptr());
  return ungrouped(out, g, size);
}

/// What a tensor holds after quantize_symmetric and dequantize_symmetric; without a scale, with that of absmax_scale.
Tensor fake_quantize_symmetric_op(Tensor base, std::string qtype_name, OptionalIndex axis,
                                  std::optional<Tensor> scale) {
  constexpr const char* kOp = "fake_quantize_symmetric";
  const auto sizes = sizes_of(base);
  const MatrixShape shape = matrix_shape(kOp, sizes, axis);
  const Tensor dense = as_contiguous(base);
  const ConstMatrix matrix = matrix_of(kOp, dense, shape);
  std::optional<Tensor> scales;
  if (scale.has_value()) {
    check_symmetric_scale(kOp, base, axis, *scale);
    check_count(kOp, "scale", *scale, count_of(shape));
    check_same_dtype(kOp, "scale", *scale, base);
    scales = as_contiguous(*scale);
  }
  Tensor out = empty_recurring(sizes, dtype_of(base));
  fake_quantize_symmetric(matrix, qtype_from_name(qtype_name), shape.axis,
                          scales.has_value() ? scales->const_data_ptr() : nullptr, out.mutable_data_ptr());
  return out;
}

/// What a tensor holds after quantize_affine and dequantize_affine; without scale and shift, with those of
/// minmax_scale.
Tensor fake_quantize_affine_op(Tensor base, std::string qtype_name, Index axis, OptionalIndex group_size,
                               std::optional<Tensor> scale, std::optional<Tensor> shift) {
  constexpr const char* kOp = "fake_quantize_affine";
  const QType qtype = qtype_from_name(qtype_name);
  const auto sizes = sizes_of(base);
  const Grouping g = grouping(kOp, sizes, axis, group_size);
  const Tensor grouped = grouped_base(base, g);
  const ConstMatrix matrix = matrix_of(kOp, grouped, g.matrix);
  const bool regrouped = g.group_size != 0 && g.matrix.axis == Axis::last;
  Tensor out = empty_recurring(regrouped ? grouped_sizes(g, sizes) : sizes, dtype_of(base));
  if (scale.has_value() != shift.has_value()) {
    fail(kOp, scale.has_value() ? "shift" : "scale", "none", "both a scale and a shift, or neither");
  }
  if (!scale.has_value()) {
    fake_quantize_minmax(matrix, qtype, g.matrix.axis, out.mutable_data_ptr());
    return ungrouped(out, g, sizes);
  }
  check_count(kOp, "scale", *scale, count_of(g.matrix));
  check_same_dtype(kOp, "scale", *scale, base);
  const Tensor scales = as_contiguous(*scale);
  const ShiftTensor shifts = shift_tensor(kOp, *shift, dtype_of(base), count_of(g.matrix));
  fake_quantize_affine(matrix, qtype, g.matrix.axis, scales.const_data_ptr(), shifts.view, out.mutable_data_ptr());
  return ungrouped(out, g, sizes);
}

Tensor pack_op(Tensor self, Index bits) {
  affine_qtype("pack", bits);
  check_bytes("pack", self);
  const Tensor codes = as_contiguous(self);
  return pack_codes(static_cast<const std::uint8_t*>(codes.const_data_ptr()), sizes_of(self), static_cast<int>(bits));
}

Tensor unpack_op(Tensor self, Index bits) {
  affine_qtype("unpack", bits);
  check_bytes("unpack", self);
  return unpack_bytes(self, static_cast<int>(bits));
}

Tensor all_finite_op(Tensor base) {
  constexpr const char* kOp = "all_finite";
  const Tensor dense = as_contiguous(base);
  const bool finite = all_finite(matrix_of(kOp, dense, {1, base.numel(), Axis::tensor}));
  Tensor out = empty({}, ScalarType::Bool);
  *static_cast<bool*>(out.mutable_data_ptr()) = finite;
  return out;
}

}  // namespace
}  // namespace quanto::torch_ext

STABLE_TORCH_LIBRARY_IMPL(quanto, CPU, m) {
  using namespace quanto::torch_ext;
  m.impl("quantize_symmetric", TORCH_BOX(&quantize_symmetric_op));
  m.impl("quantize_affine", TORCH_BOX(&quantize_affine_op));
  m.impl("quantize_affine_packed", TORCH_BOX(&quantize_affine_packed_op));
  m.impl("absmax_scale", TORCH_BOX(&absmax_scale_op));
  m.impl("quantize_per_token", TORCH_BOX(&quantize_per_token_op));
  m.impl("minmax_scale", TORCH_BOX(&minmax_scale_op));
  m.impl("hqq_scale", TORCH_BOX(&hqq_scale_op));
  m.impl("dequantize_symmetric", TORCH_BOX(&dequantize_symmetric_op));
  m.impl("dequantize_affine", TORCH_BOX(&dequantize_affine_op));
  m.impl("fake_quantize_symmetric", TORCH_BOX(&fake_quantize_symmetric_op));
  m.impl("fake_quantize_affine", TORCH_BOX(&fake_quantize_affine_op));
  m.impl("pack", TORCH_BOX(&pack_op));
  m.impl("unpack", TORCH_BOX(&unpack_op));
  m.impl("all_finite", TORCH_BOX(&all_finite_op));
}
