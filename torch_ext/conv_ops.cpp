// Convolutions with quantized weights over one or two spatial dimensions.
#include "quanto/conv.h"
#include "tensors.h"
#include "weights.h"

namespace quanto::torch_ext {
namespace {

using Sizes = std::vector<std::int64_t>;

PaddingMode padding_mode_from(const char* op, const std::string& name) {
  if (name == "zeros") return PaddingMode::zeros;
  if (name == "reflect") return PaddingMode::reflect;
  if (name == "replicate") return PaddingMode::replicate;
  if (name == "circular") return PaddingMode::circular;
  fail(op, "padding_mode", name, "zeros, reflect, replicate or circular");
}

/// How a convolution walks over its input: a value for each spatial dimension, two for the padding.
struct Walk {
  Sizes stride, padding, dilation;
  std::string padding_mode;
};

void check_length(const char* op, const char* what, const Sizes& values, std::size_t length) {
  if (values.size() != length) {
    fail(op, what, std::to_string(values.size()) + " values", std::to_string(length));
  }
}

/// `d` counts the spatial dimensions, of which a missing height is the first.
ConvAxis axis_of(const Sizes& input, const Sizes& weight, const Walk& walk, std::size_t d) {
  const std::size_t from_the_end = walk.stride.size() - d;
  return {input[input.size() - from_the_end],
          weight[weight.size() - from_the_end],
          walk.stride[d],
          walk.dilation[d],
          walk.padding[2 * d],
          walk.padding[2 * d + 1]};
}

/// The shape of a convolution of an input with or without a batch dimension.
ConvShape shape_of(const char* op, const Tensor& input, const Sizes& weight, const Walk& walk) {
  const std::size_t dims = weight.size() - 2;
  check_length(op, "stride", walk.stride, dims);
  check_length(op, "dilation", walk.dilation, dims);
  check_length(op, "padding", walk.padding, 2 * dims);
  const Sizes sizes = sizes_of(input);
  const bool batched = sizes.size() == dims + 2;
  if (!batched && sizes.size() != dims + 1) {
    fail(op, "input", shape_text(input), std::to_string(dims + 1) + " or " + std::to_string(dims + 2) + " dimensions");
  }
  return {.batch = batched ? sizes[0] : 1,
          .channels = sizes[sizes.size() - dims - 1],
          .height = dims == 2 ? axis_of(sizes, weight, walk, 0) : ConvAxis{1, 1},
          .width = axis_of(sizes, weight, walk, dims - 1),
          .padding_mode = padding_mode_from(op, walk.padding_mode)};
}

/// The strides that a tensor of four dimensions has with its channels last.
Sizes channels_last_strides(const Sizes& s) { return {s[1] * s[2] * s[3], 1, s[3] * s[1], s[1]}; }

bool has_channels_last(const Tensor& t) {
  if (t.dim() != 4 || t.is_contiguous()) return false;
  const Sizes sizes = sizes_of(t), strides = channels_last_strides(sizes);
  for (std::int64_t d = 0; d < 4; ++d) {
    const auto i = static_cast<std::size_t>(d);
    if (sizes[i] != 1 && t.stride(d) != strides[i]) return false;
  }
  return true;
}

Tensor convolve(const char* op, const Tensor& input, const Sizes& weight_size, const WeightView& w,
                const std::optional<Tensor>& bias, const Walk& walk) {
  const DType dtype = float_dtype(op, "input", input);
  const ConvShape shape = shape_of(op, input, weight_size, walk);
  const auto layout = has_channels_last(input) ? ImageLayout::channels_last : ImageLayout::planar;
  const Tensor x = layout == ImageLayout::planar ? as_contiguous(input) : input;
  const auto dense_bias = bias_tensor(op, bias, w.out_features, dtype_of(input));
  check_conv(shape, w);
  Sizes sizes = sizes_of(input);
  const std::size_t dims = weight_size.size() - 2, first = sizes.size() - dims;
  sizes[first - 1] = w.out_features;
  if (dims == 2) sizes[first] = shape.height.outputs();
  sizes.back() = shape.width.outputs();
  Tensor out = layout == ImageLayout::planar ? empty(sizes, dtype_of(input))
                                             : empty_strided(sizes, channels_last_strides(sizes), dtype_of(input));
  conv(shape, {x.const_data_ptr(), dtype, layout}, w, data_or_null(dense_bias), out.mutable_data_ptr());
  return out;
}

void check_weight_dims(const char* op, const Sizes& size) {
  if (size.size() != 3 && size.size() != 4) {
    fail(op, "weight", std::to_string(size.size()) + " dimensions", "3 or 4 (one or two spatial ones)");
  }
}

Tensor conv_qbytes_op(Tensor input, Tensor data, Tensor scale, std::optional<Tensor> bias, Sizes stride, Sizes padding,
                      Sizes dilation, std::string padding_mode) {
  constexpr const char* kOp = "conv_qbytes";
  const Sizes size = sizes_of(data);
  check_weight_dims(kOp, size);
  const WeightTensors w = qbytes_weight(kOp, data, scale);
  return convolve(kOp, input, size, w.view, bias, {stride, padding, dilation, padding_mode});
}

Tensor conv_qbits_op(Tensor input, Tensor data, Tensor scale, Tensor shift, std::int64_t bits, std::int64_t group_size,
                     Sizes size, std::optional<Tensor> bias, Sizes stride, Sizes padding, Sizes dilation,
                     std::string padding_mode) {
  constexpr const char* kOp = "conv_qbits";
  check_weight_dims(kOp, size);
  std::int64_t K = 1;
  for (std::size_t d = 1; d < size.size(); ++d) K *= size[d];
  const WeightTensors w = qbits_weight(kOp, data, scale, shift, bits, group_size, size[0], K);
  return convolve(kOp, input, size, w.view, bias, {stride, padding, dilation, padding_mode});
}

}  // namespace
}  // namespace quanto::torch_ext

STABLE_TORCH_LIBRARY_IMPL(quanto, CPU, m) {
  using namespace quanto::torch_ext;
  m.impl("conv_qbytes", TORCH_BOX(&conv_qbytes_op));
  m.impl("conv_qbits", TORCH_BOX(&conv_qbits_op));
}
