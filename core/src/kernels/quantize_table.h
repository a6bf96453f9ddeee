// The row kernels of scale search, quantization and dequantization: one table per instruction set, plain data only, as
// kernel_table.h explains. Every table computes the same bytes.
#pragma once

#include <cstdint>

#include "quanto/types.h"

namespace quanto::kernels {

/// A run of n elements with their scales (and shifts). `scale_step` 0: all use the first scale; 1: one scale each.
struct QuantizeRow {
  const void* values;  ///< floats in (quantize) of `dtype`
  void* out;           ///< floats out (dequantize) of `dtype`
  const std::uint8_t* codes_in;
  std::uint8_t* codes_out;
  std::int64_t n;
  DType dtype;  ///< of values, out, scale and a floating shift
  QType qtype;
  const void* scale;
  const void* shift;
  ShiftKind shift_kind;  ///< none for the symmetric functions
  std::int64_t scale_step;
  int field_offset;        ///< affine: bit position of the code in its byte
  bool keep_other_fields;  ///< affine quantize: or into codes_out instead of storing
};

struct QuantizeKernels {
  Isa isa;
  /// Largest bit pattern of |x|, as float32 bits; NaN patterns compare above infinity.
  std::uint32_t (*absmax)(DType dtype, const void* values, std::int64_t n);
  /// running[c] = max(running[c], |values[c]|), in float32 bits.
  void (*column_absmax)(DType dtype, const void* values, std::int64_t n, std::uint32_t* running);
  /// Extremes in `ordered` form: float32 bits mapped to integers of the same order (NaN beyond infinity).
  void (*minmax)(DType dtype, const void* values, std::int64_t n, std::int32_t* lowest, std::int32_t* highest);
  void (*column_minmax)(DType dtype, const void* values, std::int64_t n, std::int32_t* lowest, std::int32_t* highest);
  void (*quantize_symmetric)(const QuantizeRow& row);
  void (*quantize_affine)(const QuantizeRow& row);
  void (*dequantize_symmetric)(const QuantizeRow& row);
  void (*dequantize_affine)(const QuantizeRow& row);
};

}  // namespace quanto::kernels

extern "C" {
extern const quanto::kernels::QuantizeKernels quanto_quantize_portable;
extern const quanto::kernels::QuantizeKernels quanto_quantize_avx2;
extern const quanto::kernels::QuantizeKernels quanto_quantize_avx512;
}
