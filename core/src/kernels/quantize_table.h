// The kernels of scale search, quantization and dequantization: one table per instruction set, plain data only, as
// kernel_table.h explains. Every table computes the same bytes.
#pragma once

#include <cstdint>

#include "quanto/types.h"

namespace quanto::kernels {

/// A matrix, its codes and its scales; one direction reads what the other one writes.
struct QuantizeArgs {
  const void* values;  ///< quantize: rows x cols floats of `dtype`
  void* out;           ///< dequantize: the same
  const std::uint8_t* codes_in;
  std::uint8_t* codes_out;
  std::int64_t rows, cols;
  DType dtype;  ///< of values, out, scale and a floating shift
  QType qtype;
  Axis axis;
  const void* scale;
  const void* shift;         ///< null for 8-bit qtypes
  ShiftKind shift_kind;      ///< none for 8-bit qtypes
  std::int64_t packed_rows;  ///< affine: rows of the packed matrix (pack.h); 0: one code per byte
};

/// A step of half-quadratic quantization (scale.h).
struct HqqArgs {
  QuantizeArgs matrix;  ///< without codes; scales and floating shifts along the first axis
  float exponent;       ///< p - 1; zero for the norm without a power
  float inverse_beta;
  void* shift_out;  ///< of `dtype`: the next shift of each row
  float* errors;    ///< of each row the sum of the magnitudes of its errors, with the present shift
};

struct QuantizeKernels {
  Isa isa;

  /// For each row the largest |x|, as the bit pattern of its dtype: NaN patterns compare above infinity.
  void (*absmax)(DType dtype, const void* values, std::int64_t rows, std::int64_t cols, std::uint32_t* largest);
  /// For each row its extremes as ordered integers: the patterns of `dtype` mapped to integers of the same order, NaN
  /// beyond infinity on both sides.
  void (*minmax)(DType dtype, const void* values, std::int64_t rows, std::int64_t cols, std::int32_t* lowest,
                 std::int32_t* highest);
  /// The same down the columns, one row at a time: updates `cols` running values.
  void (*column_absmax)(DType dtype, const void* values, std::int64_t cols, std::uint32_t* largest);
  void (*column_minmax)(DType dtype, const void* values, std::int64_t cols, std::int32_t* lowest,
                        std::int32_t* highest);

  /// Rows [begin, end) of codes: of the packed matrix if there is one.
  void (*quantize_symmetric)(const QuantizeArgs& args, std::int64_t begin, std::int64_t end);
  void (*quantize_affine)(const QuantizeArgs& args, std::int64_t begin, std::int64_t end);
  void (*dequantize_symmetric)(const QuantizeArgs& args, std::int64_t begin, std::int64_t end);
  void (*dequantize_affine)(const QuantizeArgs& args, std::int64_t begin, std::int64_t end);

  /// Rows [begin, end) from `values` to `out`, with scales (and floating shifts) along the first axis that absmax or
  /// minmax of the same row gave. `codes_in` and `codes_out` are the same memory, whose contents are not specified.
  void (*fake_quantize_symmetric)(const QuantizeArgs& args, std::int64_t begin, std::int64_t end);
  void (*fake_quantize_affine)(const QuantizeArgs& args, std::int64_t begin, std::int64_t end);

  /// Rows [begin, end).
  void (*hqq_step)(const HqqArgs& args, std::int64_t begin, std::int64_t end);
};

}  // namespace quanto::kernels

extern "C" {
extern const quanto::kernels::QuantizeKernels quanto_quantize_portable;
extern const quanto::kernels::QuantizeKernels quanto_quantize_avx2;
extern const quanto::kernels::QuantizeKernels quanto_quantize_avx512;
}
