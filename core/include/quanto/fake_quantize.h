// Floats rounded to what a qtype can hold: quantize.h there and back, without codes in memory. Training sees its
// weights through these functions. Results equal those of the functions that they stand for, bit for bit.
#pragma once

#include "quanto/quantize.h"
#include "quanto/scale.h"
#include "quanto/types.h"

namespace quanto {

/// dequantize_symmetric of quantize_symmetric. `scale`: scale_count(axis, ...) elements of base.dtype, or null for
/// those of absmax_scale. `out`: rows x cols elements of base.dtype.
void fake_quantize_symmetric(const ConstMatrix& base, QType qtype, Axis axis, const void* scale, void* out);

/// dequantize_affine of quantize_affine. `out`: rows x cols elements of base.dtype.
void fake_quantize_affine(const ConstMatrix& base, QType qtype, Axis axis, const void* scale, const ConstShift& shift,
                          void* out);

/// fake_quantize_affine with the scales and shifts of minmax_scale.
void fake_quantize_minmax(const ConstMatrix& base, QType qtype, Axis axis, void* out);

}  // namespace quanto
