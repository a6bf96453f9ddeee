#include "quanto/quantize.h"

#include <algorithm>
#include <cstring>

#include "check.h"
#include "kernels/registry.h"
#include "quanto/pack.h"
#include "quanto/parallel.h"
#include "quanto/qtype.h"

namespace quanto {
namespace {

using kernels::QuantizeRow;

constexpr std::int64_t kGrain = 1 << 14;  // elements that are worth a thread

/// The matrix behind one call: what rows need to find their scales.
struct Layout {
  std::int64_t rows, cols;
  Axis axis;
  DType dtype;
  QType qtype;
  const void* scale;
  ConstShift shift;
};

const char* offset_by(const void* data, std::int64_t elements, std::size_t size) {
  return static_cast<const char*>(data) + elements * static_cast<std::int64_t>(size);
}

/// The part of a row that does not depend on the direction: its length and its scales.
QuantizeRow row_scales(const Layout& m, std::int64_t row) {
  QuantizeRow out{};
  const std::int64_t first = m.axis == Axis::first ? row : 0;
  out.n = m.cols;
  out.dtype = m.dtype;
  out.qtype = m.qtype;
  out.scale = offset_by(m.scale, first, dtype_size(m.dtype));
  out.shift_kind = m.shift.kind;
  if (m.shift.kind != ShiftKind::none) {
    out.shift = offset_by(m.shift.data, first, m.shift.kind == ShiftKind::integer ? 1 : dtype_size(m.dtype));
  }
  out.scale_step = m.axis == Axis::last ? 1 : 0;
  return out;
}

const void* values_row(const void* values, const Layout& m, std::int64_t row) {
  return offset_by(values, row * m.cols, dtype_size(m.dtype));
}

void* values_row(void* values, const Layout& m, std::int64_t row) {
  return const_cast<char*>(offset_by(values, row * m.cols, dtype_size(m.dtype)));
}

template <class Body>
void for_rows(std::int64_t rows, std::int64_t cols, Body body) {
  const std::int64_t grain = std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, cols));
  parallel_for(rows, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) body(r);
  });
}

/// A single scale for everything: cut the elements into rows that threads can share.
Layout flattened(Layout m) {
  constexpr std::int64_t kRow = 1 << 12;
  const std::int64_t size = m.rows * m.cols;
  if (m.axis != Axis::tensor || size % kRow != 0) return m;
  m.rows = size / kRow;
  m.cols = kRow;
  return m;
}

void check_shift(const char* function, const ConstShift& shift) {
  if (shift.kind == ShiftKind::none || shift.data == nullptr) fail(function, "shift", "none", "one for each scale");
}

}  // namespace

void quantize_symmetric(const ConstMatrix& base, QType qtype, Axis axis, const void* scale, void* codes) {
  check_symmetric("quantize_symmetric", qtype);
  check_shape("quantize_symmetric", base.rows, base.cols);
  const auto& kernels = kernels::quantize_kernels();
  const Layout m = flattened({base.rows, base.cols, axis, base.dtype, qtype, scale, {nullptr, ShiftKind::none}});
  for_rows(m.rows, m.cols, [&](std::int64_t r) {
    QuantizeRow row = row_scales(m, r);
    row.values = values_row(base.data, m, r);
    row.codes_out = static_cast<std::uint8_t*>(codes) + r * m.cols;
    kernels.quantize_symmetric(row);
  });
}

void quantize_affine(const ConstMatrix& base, QType qtype, Axis axis, const void* scale, const ConstShift& shift,
                     std::uint8_t* codes) {
  check_affine("quantize_affine", qtype);
  check_shape("quantize_affine", base.rows, base.cols);
  check_shift("quantize_affine", shift);
  const auto& kernels = kernels::quantize_kernels();
  const Layout m{base.rows, base.cols, axis, base.dtype, qtype, scale, shift};
  for_rows(m.rows, m.cols, [&](std::int64_t r) {
    QuantizeRow row = row_scales(m, r);
    row.values = values_row(base.data, m, r);
    row.codes_out = codes + r * m.cols;
    kernels.quantize_affine(row);
  });
}

void quantize_affine_packed(const ConstMatrix& base, QType qtype, Axis axis, const void* scale, const ConstShift& shift,
                            std::uint8_t* packed) {
  check_affine("quantize_affine_packed", qtype);
  check_shape("quantize_affine_packed", base.rows, base.cols);
  check_shift("quantize_affine_packed", shift);
  const auto& kernels = kernels::quantize_kernels();
  const Layout m{base.rows, base.cols, axis, base.dtype, qtype, scale, shift};
  const int bits = qtype_info(qtype).bits;
  const std::int64_t step = packed_rows(m.rows, bits);
  for_rows(step, m.cols * (8 / bits), [&](std::int64_t p) {
    for (int field = 0; field < 8 / bits && p + field * step < m.rows; ++field) {
      const std::int64_t r = p + field * step;
      QuantizeRow row = row_scales(m, r);
      row.values = values_row(base.data, m, r);
      row.codes_out = packed + p * m.cols;
      row.field_offset = field * bits;
      row.keep_other_fields = field > 0;
      kernels.quantize_affine(row);
    }
  });
}

void dequantize_symmetric(const void* codes, QType qtype, std::int64_t rows, std::int64_t cols, Axis axis,
                          const void* scale, DType dtype, void* out) {
  check_symmetric("dequantize_symmetric", qtype);
  check_shape("dequantize_symmetric", rows, cols);
  const auto& kernels = kernels::quantize_kernels();
  const Layout m = flattened({rows, cols, axis, dtype, qtype, scale, {nullptr, ShiftKind::none}});
  for_rows(m.rows, m.cols, [&](std::int64_t r) {
    QuantizeRow row = row_scales(m, r);
    row.codes_in = static_cast<const std::uint8_t*>(codes) + r * m.cols;
    row.out = values_row(out, m, r);
    kernels.dequantize_symmetric(row);
  });
}

void dequantize_affine(const std::uint8_t* codes, QType qtype, std::int64_t rows, std::int64_t cols, Axis axis,
                       const void* scale, const ConstShift& shift, DType dtype, void* out) {
  check_affine("dequantize_affine", qtype);
  check_shape("dequantize_affine", rows, cols);
  check_shift("dequantize_affine", shift);
  const auto& kernels = kernels::quantize_kernels();
  const Layout m{rows, cols, axis, dtype, qtype, scale, shift};
  for_rows(m.rows, m.cols, [&](std::int64_t r) {
    QuantizeRow row = row_scales(m, r);
    row.codes_in = codes + r * m.cols;
    row.out = values_row(out, m, r);
    kernels.dequantize_affine(row);
  });
}

void dequantize_affine_packed(const std::uint8_t* packed, QType qtype, std::int64_t rows, std::int64_t cols, Axis axis,
                              const void* scale, const ConstShift& shift, DType dtype, void* out) {
  check_affine("dequantize_affine_packed", qtype);
  check_shape("dequantize_affine_packed", rows, cols);
  check_shift("dequantize_affine_packed", shift);
  const auto& kernels = kernels::quantize_kernels();
  const Layout m{rows, cols, axis, dtype, qtype, scale, shift};
  const int bits = qtype_info(qtype).bits;
  const std::int64_t step = packed_rows(m.rows, bits);
  for_rows(m.rows, m.cols, [&](std::int64_t r) {
    QuantizeRow row = row_scales(m, r);
    row.codes_in = packed + r % step * m.cols;
    row.field_offset = static_cast<int>(r / step) * bits;
    row.out = values_row(out, m, r);
    kernels.dequantize_affine(row);
  });
}

}  // namespace quanto
