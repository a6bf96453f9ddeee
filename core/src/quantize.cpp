#include "quanto/quantize.h"

#include <algorithm>

#include "check.h"
#include "kernels/registry.h"
#include "quanto/pack.h"
#include "quanto/parallel.h"
#include "quanto/qtype.h"

namespace quanto {
namespace {

using kernels::QuantizeArgs;
using kernels::QuantizeKernels;

constexpr std::int64_t kGrain = 1 << 15;  // elements that are worth a thread: some 10 us

const char* advance(const void* data, std::int64_t elements, std::size_t size) {
  return static_cast<const char*>(data) + elements * static_cast<std::int64_t>(size);
}

using RowsKernel = void (*)(const QuantizeArgs&, std::int64_t, std::int64_t);

/// Elements [begin, end) of a matrix whose elements all use one scale, as a single row.
QuantizeArgs elements_of(QuantizeArgs a, std::int64_t begin, std::int64_t end) {
  const std::size_t size = dtype_size(a.dtype);
  if (a.values != nullptr) a.values = advance(a.values, begin, size);
  if (a.out != nullptr) a.out = const_cast<char*>(advance(a.out, begin, size));
  if (a.codes_in != nullptr) a.codes_in += begin;
  if (a.codes_out != nullptr) a.codes_out += begin;
  a.rows = 1;
  a.cols = end - begin;
  return a;
}

/// Runs the kernel over all rows of codes, or over all elements where rows do not matter.
void run(RowsKernel kernel, const QuantizeArgs& a) {
  if (a.cols == 0) return;
  if (a.axis == Axis::tensor && a.packed_rows == 0) {
    return parallel_for(a.rows * a.cols, kGrain,
                        [&](std::int64_t begin, std::int64_t end) { kernel(elements_of(a, begin, end), 0, 1); });
  }
  const std::int64_t byte_rows = a.packed_rows != 0 ? a.packed_rows : a.rows;
  parallel_for(byte_rows, std::max<std::int64_t>(1, kGrain / a.cols),
               [&](std::int64_t begin, std::int64_t end) { kernel(a, begin, end); });
}

const QuantizeKernels& active_kernels() { return kernels::quantize_kernels(); }

/// A matrix without scales, because a dimension is zero, needs no memory for its shifts.
void check_shift(const char* function, const ConstShift& shift, std::int64_t count) {
  const bool has_data = shift.data != nullptr || count == 0;
  if (shift.kind == ShiftKind::none || !has_data) fail(function, "shift", "none", "one for each scale");
}

/// What both directions share, checked.
QuantizeArgs symmetric_args(const char* function, std::int64_t rows, std::int64_t cols, DType dtype, QType qtype,
                            Axis axis, const void* scale) {
  check_symmetric(function, qtype);
  check_shape(function, rows, cols);
  QuantizeArgs a{};
  a.rows = rows;
  a.cols = cols;
  a.dtype = dtype;
  a.qtype = qtype;
  a.axis = axis;
  a.scale = scale;
  return a;
}

QuantizeArgs affine_args(const char* function, std::int64_t rows, std::int64_t cols, DType dtype, QType qtype,
                         Axis axis, const void* scale, const ConstShift& shift) {
  check_affine(function, qtype);
  check_shape(function, rows, cols);
  check_shift(function, shift, scale_count(axis, rows, cols));
  QuantizeArgs a{};
  a.rows = rows;
  a.cols = cols;
  a.dtype = dtype;
  a.qtype = qtype;
  a.axis = axis;
  a.scale = scale;
  a.shift = shift.data;
  a.shift_kind = shift.kind;
  return a;
}

}  // namespace

void quantize_symmetric(const ConstMatrix& base, QType qtype, Axis axis, const void* scale, void* codes) {
  QuantizeArgs a = symmetric_args("quantize_symmetric", base.rows, base.cols, base.dtype, qtype, axis, scale);
  a.values = base.data;
  a.codes_out = static_cast<std::uint8_t*>(codes);
  run(active_kernels().quantize_symmetric, a);
}

void quantize_affine(const ConstMatrix& base, QType qtype, Axis axis, const void* scale, const ConstShift& shift,
                     std::uint8_t* codes) {
  QuantizeArgs a = affine_args("quantize_affine", base.rows, base.cols, base.dtype, qtype, axis, scale, shift);
  a.values = base.data;
  a.codes_out = codes;
  run(active_kernels().quantize_affine, a);
}

void quantize_affine_packed(const ConstMatrix& base, QType qtype, Axis axis, const void* scale, const ConstShift& shift,
                            std::uint8_t* packed) {
  QuantizeArgs a = affine_args("quantize_affine_packed", base.rows, base.cols, base.dtype, qtype, axis, scale, shift);
  a.values = base.data;
  a.codes_out = packed;
  a.packed_rows = packed_rows(base.rows, qtype_info(qtype).bits);
  run(active_kernels().quantize_affine, a);
}

void dequantize_symmetric(const void* codes, QType qtype, std::int64_t rows, std::int64_t cols, Axis axis,
                          const void* scale, DType dtype, void* out) {
  QuantizeArgs a = symmetric_args("dequantize_symmetric", rows, cols, dtype, qtype, axis, scale);
  a.codes_in = static_cast<const std::uint8_t*>(codes);
  a.out = out;
  run(active_kernels().dequantize_symmetric, a);
}

void dequantize_affine(const std::uint8_t* codes, QType qtype, std::int64_t rows, std::int64_t cols, Axis axis,
                       const void* scale, const ConstShift& shift, DType dtype, void* out) {
  QuantizeArgs a = affine_args("dequantize_affine", rows, cols, dtype, qtype, axis, scale, shift);
  a.codes_in = codes;
  a.out = out;
  run(active_kernels().dequantize_affine, a);
}

void dequantize_affine_packed(const std::uint8_t* packed, QType qtype, std::int64_t rows, std::int64_t cols, Axis axis,
                              const void* scale, const ConstShift& shift, DType dtype, void* out) {
  QuantizeArgs a = affine_args("dequantize_affine_packed", rows, cols, dtype, qtype, axis, scale, shift);
  a.codes_in = packed;
  a.out = out;
  a.packed_rows = packed_rows(rows, qtype_info(qtype).bits);
  run(active_kernels().dequantize_affine, a);
}

Isa quantizer_isa() { return active_kernels().isa; }

}  // namespace quanto
