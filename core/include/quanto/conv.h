// Convolutions with quantized weights in their checkpoint layout.
#pragma once

#include <cstdint>

#include "quanto/matmul.h"
#include "quanto/types.h"

namespace quanto {

/// What lies beyond the border of an image, as in torch.nn.Conv2d.
enum class PaddingMode : std::uint8_t { zeros, reflect, replicate, circular };

/// One spatial dimension.
struct ConvAxis {
  std::int64_t size;    ///< of the input
  std::int64_t kernel;  ///< taps
  std::int64_t stride = 1;
  std::int64_t dilation = 1;  ///< between taps
  std::int64_t pad_before = 0;
  std::int64_t pad_after = 0;

  std::int64_t padded() const { return pad_before + size + pad_after; }
  std::int64_t extent() const { return dilation * (kernel - 1) + 1; }
  std::int64_t outputs() const { return (padded() - extent()) / stride + 1; }
};

/// A convolution over two dimensions; one over a single dimension has a height of 1.
struct ConvShape {
  std::int64_t batch;
  std::int64_t channels;  ///< of the input
  ConvAxis height;
  ConvAxis width;
  PaddingMode padding_mode = PaddingMode::zeros;

  std::int64_t outputs() const { return height.outputs() * width.outputs(); }  ///< of one image, per channel
};

/// How the elements of images lie, without gaps: (batch, channels, height, width) or (batch, height, width, channels).
enum class ImageLayout : std::uint8_t { planar, channels_last };

/// The input of a convolution.
struct ImageView {
  const void* data;
  DType dtype;
  ImageLayout layout;
};

/// Throws Error for shapes that do not fit each other, as conv() does.
void check_conv(const ConvShape& shape, const WeightView& w);

/// y = convolution of x with the weight [+ bias], in the semantics of matmul(): the patches of the input that the
/// outputs see are the rows of one. Many positions are multiplied from the planes of the input, without patches as a
/// matrix (im2col), where the kernel for so many rows reads them (not that of AMX). The weight has out_features filters
/// of in_features = channels * kernel height * kernel width elements, in that order. `bias`: out_features elements of
/// x.dtype or null. `y`: (batch, out_features, height.outputs(), width.outputs()) elements of x.dtype in the layout of
/// x.
void conv(const ConvShape& shape, const ImageView& x, const WeightView& w, const void* bias, void* y);

}  // namespace quanto
