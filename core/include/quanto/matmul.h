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

/// M rows of K = in_features activations, `row_stride` elements apart, 0 if all are the same one; the elements of a row
/// are contiguous.
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

/// Fetches what `matmul` reads first of the weight, where memory is what few rows wait for: for callers who have
/// something to do before they know where y is. Only the shapes and types of x are read. Errors as above.
void matmul_fetch(const ActivationView& x, const WeightView& w);

/// Name of the kernel that matmul would run with the active ISA: "<isa>/<qtype>/<dtype>/<regime>", for instance
/// "avx2/qint4/bfloat16/few_rows". Only the shapes and types of the views are read. `extreme_values`: the one that runs
/// where x holds values that some kernels decline: magnitudes below 2^-80 or from 2^100 on, infinities, NaN.
std::string matmul_kernel_name(const ActivationView& x, const WeightView& w, bool extreme_values = false);

/// M rows of K = in_features activations as codes of an 8-bit qtype, `row_stride` codes apart. `scale`: one element, or
/// one for each row; null for 1, where the weight's scales already hold it.
struct CodesView {
  const void* data;
  QType qtype;
  std::int64_t rows;
  std::int64_t row_stride;
  const void* scale = nullptr;
  DType scale_dtype = DType::float32;
  bool per_row_scale = false;
};

/// y = x * transpose(W) [+ bias] for activations given as codes. `bias`: N elements of `dtype` or null. `y`: contiguous
/// M x N elements of `dtype`. Errors and threads as above.
///
/// int8 activations and integer weights: products of codes are summed in int32, exactly, as far as they share a scale
/// (the whole row for qint8, a group for qint4 and qint2), and scaled in float32; the same sums on every instruction
/// set. Everything else, and more than 2^17 - 1 codes that share a scale, is decoded to bfloat16, which holds every
/// 8-bit code exactly, and multiplied as there: exact products, float32 sums. The activations' scale multiplies a sum
/// in float32 before the bias is added; the result is rounded once.
void matmul_codes(const CodesView& x, const WeightView& w, const void* bias, DType dtype, void* y);

/// Name of the kernel that matmul_codes would run: "<isa>/<qtype>/int8/<regime>", or as above where the activations are
/// decoded.
std::string matmul_codes_kernel_name(const CodesView& x, const WeightView& w);

/// Activations that are quantized on the way. `scale`: a single element, or null for one for each row, which is then
/// found as quantize_per_token does.
struct QuantizingView {
  ActivationView values;
  QType qtype;  ///< of the codes
  const void* scale = nullptr;
  DType scale_dtype = DType::float32;
};

/// quantize_symmetric of x, by its scale rounded to the dtype of x, or quantize_per_token, and matmul_codes in one go:
/// the same bytes, while the codes of many rows need not leave the caches.
void matmul_quantizing(const QuantizingView& x, const WeightView& w, const void* bias, DType dtype, void* y);

}  // namespace quanto
