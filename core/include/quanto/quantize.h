// Codes from floats and back. All arithmetic rounds to the dtype of the floats after every step
// (division, addition, multiplication), as tensor arithmetic in that dtype does, so that results equal those of
// optimum-quanto 0.2.7 bit for bit; only where a step would overflow for finite operands is it taken in a wider type.
#pragma once

#include <cstdint>

#include "quanto/scale.h"
#include "quanto/types.h"

namespace quanto {

/// Shifts of an affine quantization, one per scale. `data` holds elements of the scale's dtype
/// (ShiftKind::floating) or single bytes (ShiftKind::integer).
struct ConstShift {
  const void* data;
  ShiftKind kind;
};

/// 8-bit symmetric codes: clamp(round_half_even(base / scale), qmin, qmax); float8: encode(clamp(base / scale)).
/// A zero scale gives zero codes. NaN gives the code 0 for qint8 and a NaN code for float8.
/// `scale`: scale_count(axis, ...) elements of base.dtype. `codes`: rows x cols bytes.
void quantize_symmetric(const ConstMatrix& base, QType qtype, Axis axis, const void* scale, void* codes);

/// Rows of `cols` floats, `row_stride` elements apart; the elements of a row are contiguous.
struct RowsView {
  const void* data;
  DType dtype;
  std::int64_t rows;
  std::int64_t cols;
  std::int64_t row_stride;
};

/// absmax_scale and quantize_symmetric along the rows, in one pass over memory: what activations quantized while a
/// model runs take. The same bytes as those two give. `scale`: `rows` elements of base.dtype. `codes`: contiguous
/// rows x cols bytes of an 8-bit qtype.
void quantize_per_token(const RowsView& base, QType qtype, void* scale, void* codes);

/// Affine codes in 0 .. 2^bits - 1, one per byte: clamp(round((base + shift) / scale)) for a floating shift,
/// clamp(round(base / scale) + shift) for an integer one. A zero scale gives code 0 (floating) or the shift (integer).
/// `codes`: rows x cols bytes.
void quantize_affine(const ConstMatrix& base, QType qtype, Axis axis, const void* scale, const ConstShift& shift,
                     std::uint8_t* codes);

/// quantize_affine followed by pack, without the intermediate codes. `packed`: packed_rows(rows) x cols bytes.
void quantize_affine_packed(const ConstMatrix& base, QType qtype, Axis axis, const void* scale, const ConstShift& shift,
                            std::uint8_t* packed);

/// scale * code, rounded to `dtype`, saturating to the largest finite number if scale and code are finite.
/// `codes`: rows x cols bytes of an 8-bit qtype. `out`: rows x cols elements of `dtype`, the dtype of `scale`.
void dequantize_symmetric(const void* codes, QType qtype, std::int64_t rows, std::int64_t cols, Axis axis,
                          const void* scale, DType dtype, void* out);

/// scale * code - shift (floating) or scale * (code - shift) (integer), each step rounded to `dtype`, saturating as
/// above. `codes`: rows x cols bytes, one code each. `out`: rows x cols elements of `dtype`, the dtype of `scale`.
void dequantize_affine(const std::uint8_t* codes, QType qtype, std::int64_t rows, std::int64_t cols, Axis axis,
                       const void* scale, const ConstShift& shift, DType dtype, void* out);

/// unpack followed by dequantize_affine, without the intermediate codes. `packed`: packed_rows(rows) x cols bytes.
void dequantize_affine_packed(const std::uint8_t* packed, QType qtype, std::int64_t rows, std::int64_t cols, Axis axis,
                              const void* scale, const ConstShift& shift, DType dtype, void* out);

/// The instruction set whose kernels search scales and quantize: the active one, or the next less capable one that has
/// its own. They give the same bytes on all of them.
Isa quantizer_isa();

}  // namespace quanto
