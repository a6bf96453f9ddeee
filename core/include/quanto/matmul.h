// y = x * transpose(W) + bias on quantized weights in their checkpoint layout.
#pragma once

#include <cstdint>
#include <string>

#include "quanto/types.h"

namespace quanto {

/// A quantized weight of N = out_features rows and K = in_features columns, not owned. Any byte alignment.
///
/// 8-bit qtypes: `data` is row-major N x K codes, `scale` one element per row (or a single one), no shift.
/// 2- and 4-bit qtypes: the codes of N x K, viewed as R = N * K / group_size rows of group_size (R = N rows of K if
/// group_size is 0), packed along the first dimension (pack.h); `scale` and `shift` hold R elements.
struct WeightView {
  QType qtype;
  const void* data;
  std::int64_t out_features;
  std::int64_t in_features;
  std::int64_t group_size = 0;  ///< 0: one scale per output channel; else a divisor of in_features (affine only)
  const void* scale;
  DType scale_dtype;
  bool per_tensor_scale = false;  ///< 8-bit only: `scale` is a single element
  const void* shift = nullptr;
  ShiftKind shift_kind = ShiftKind::none;
};

/// M rows of K = in_features activations, `row_stride` elements apart; the elements of a row are contiguous.
struct ActivationView {
  const void* data;
  DType dtype;
  std::int64_t rows;
  std::int64_t row_stride;
};

/// y = x * transpose(W) [+ bias], in exact float semantics: products of activations with the decoded codes are summed
/// in float32 and the scales and shifts are applied in float32; the result is rounded once, to x.dtype. `bias`: N
/// elements of x.dtype or null. `y`: contiguous M x N elements of x.dtype, not overlapping the inputs. Throws Error for
/// group sizes that do not divide K, negative sizes, and a missing scale or shift. The bytes of the result do not
/// depend on the number of threads.
void matmul(const ActivationView& x, const WeightView& w, const void* bias, void* y);

/// Name of the kernel that matmul would run with the active ISA: "<isa>/<qtype>/<dtype>/<regime>", for instance
/// "avx2/qint4/bfloat16/few_rows". Only the shapes and types of the views are read.
std::string matmul_kernel_name(const ActivationView& x, const WeightView& w);

/// M rows of int8 activation codes, contiguous.
struct Int8Activations {
  const std::int8_t* data;
  std::int64_t rows;
};

/// N x K int8 weight codes, contiguous.
struct Int8Weight {
  const std::int8_t* data;
  std::int64_t out_features;
  std::int64_t in_features;
};

/// What a sum of products of codes is worth: one scale per output channel, or a single one.
struct OutputScale {
  const void* data;
  DType dtype;
  bool per_tensor;
};

/// y = (x * transpose(W)) * scale for integer codes: the sums are exact in int32 (K below 2^17), scaled in float32 and
/// rounded once. `y`: contiguous M x N elements of scale.dtype.
void matmul_int8(const Int8Activations& x, const Int8Weight& w, const OutputScale& scale, void* y);

}  // namespace quanto
