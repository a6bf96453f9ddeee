#include "quanto/fake_quantize.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "check.h"
#include "kernels/registry.h"
#include "quanto/parallel.h"
#include "quanto/qtype.h"

namespace quanto {
namespace {

// Elements that pass through all steps before the next ones come: floats, codes and results stay in the first levels of
// cache, so that memory is read once and written once.
constexpr std::int64_t kBlock = 1 << 13;

using Bytes = std::unique_ptr<std::uint8_t[]>;

Bytes uninitialized(std::int64_t size) { return Bytes(new std::uint8_t[static_cast<std::size_t>(size)]); }

/// Some rows of a matrix, where their values go, and room for what lies between.
struct Block {
  std::int64_t first_row;
  ConstMatrix values;
  void* out;
  std::uint8_t* codes;  ///< an element each
  void* scale;          ///< one float for each row, to be searched
  void* shift;
};

std::int64_t rows_of_block(std::int64_t cols) { return std::max<std::int64_t>(1, kBlock / cols); }

/// body(block) for all rows of `base`, in parallel.
template <class Body>
void for_blocks(const ConstMatrix& base, void* out, Body body) {
  if (base.rows * base.cols == 0) return;
  const std::int64_t step = std::min(base.rows, rows_of_block(base.cols));
  const auto size = static_cast<std::int64_t>(dtype_size(base.dtype));
  parallel_for(base.rows, step, [&](std::int64_t begin, std::int64_t end) {
    const Bytes codes = uninitialized(step * base.cols);
    const Bytes scales = uninitialized(2 * step * size);
    for (std::int64_t row = begin; row < end; row += step) {
      const std::int64_t offset = row * base.cols * size;
      body(Block{
          .first_row = row,
          .values = {static_cast<const char*>(base.data) + offset, base.dtype, std::min(step, end - row), base.cols},
          .out = static_cast<char*>(out) + offset,
          .codes = codes.get(),
          .scale = scales.get(),
          .shift = scales.get() + step * size});
    }
  });
}

/// Rows do not matter where all elements use one scale: a row for each, so that blocks divide the work.
ConstMatrix with_rows(const ConstMatrix& base, Axis axis) {
  return axis == Axis::tensor ? ConstMatrix{base.data, base.dtype, base.rows * base.cols, 1} : base;
}

/// The part of the scales or shifts that belongs to a block.
const void* of_block(const void* data, Axis axis, const Block& b, std::size_t size) {
  const std::int64_t skipped = axis == Axis::first ? b.first_row * static_cast<std::int64_t>(size) : 0;
  return static_cast<const char*>(data) + skipped;
}

void symmetric_block(const Block& b, QType qtype, Axis axis, const void* scale) {
  const ConstMatrix& m = b.values;
  quantize_symmetric(m, qtype, axis, scale, b.codes);
  dequantize_symmetric(b.codes, qtype, m.rows, m.cols, axis, scale, m.dtype, b.out);
}

void affine_block(const Block& b, QType qtype, Axis axis, const void* scale, const ConstShift& shift) {
  const ConstMatrix& m = b.values;
  quantize_affine(m, qtype, axis, scale, shift, b.codes);
  dequantize_affine(b.codes, qtype, m.rows, m.cols, axis, scale, shift, m.dtype, b.out);
}

/// The arguments of the kernels that take the scales found in the block itself.
kernels::QuantizeArgs searched(const Block& b, QType qtype) {
  return {.values = b.values.data,
          .out = b.out,
          .codes_in = b.codes,
          .codes_out = b.codes,
          .rows = b.values.rows,
          .cols = b.values.cols,
          .dtype = b.values.dtype,
          .qtype = qtype,
          .axis = Axis::first,
          .scale = b.scale,
          .shift = is_affine(qtype) ? b.shift : nullptr,
          .shift_kind = is_affine(qtype) ? ShiftKind::floating : ShiftKind::none,
          .packed_rows = 0};
}

std::vector<std::uint8_t> floats(const ConstMatrix& base, Axis axis) {
  return std::vector<std::uint8_t>(static_cast<std::size_t>(scale_count(axis, base.rows, base.cols)) *
                                   dtype_size(base.dtype));
}

}  // namespace

void fake_quantize_symmetric(const ConstMatrix& base, QType qtype, Axis axis, const void* scale, void* out) {
  constexpr const char* kFunction = "fake_quantize_symmetric";
  check_symmetric(kFunction, qtype);
  check_shape(kFunction, base.rows, base.cols);
  if (scale == nullptr && axis == Axis::first) {
    const kernels::QuantizeKernels& kernels = kernels::quantize_kernels();
    return for_blocks(base, out, [&](const Block& b) {
      absmax_scale(b.values, qtype, axis, b.scale);
      kernels.fake_quantize_symmetric(searched(b, qtype), 0, b.values.rows);
    });
  }
  std::vector<std::uint8_t> found;
  if (scale == nullptr) {
    found = floats(base, axis);
    absmax_scale(base, qtype, axis, found.data());
    scale = found.data();
  }
  for_blocks(with_rows(base, axis), out, [&](const Block& b) {
    symmetric_block(b, qtype, axis, of_block(scale, axis, b, dtype_size(base.dtype)));
  });
}

void fake_quantize_affine(const ConstMatrix& base, QType qtype, Axis axis, const void* scale, const ConstShift& shift,
                          void* out) {
  constexpr const char* kFunction = "fake_quantize_affine";
  check_affine(kFunction, qtype);
  check_shape(kFunction, base.rows, base.cols);
  const std::size_t size = dtype_size(base.dtype);
  const std::size_t shift_size = shift.kind == ShiftKind::integer ? 1 : size;
  for_blocks(with_rows(base, axis), out, [&](const Block& b) {
    const ConstShift shifts{of_block(shift.data, axis, b, shift_size), shift.kind};
    affine_block(b, qtype, axis, of_block(scale, axis, b, size), shifts);
  });
}

void fake_quantize_minmax(const ConstMatrix& base, QType qtype, Axis axis, void* out) {
  constexpr const char* kFunction = "fake_quantize_minmax";
  check_affine(kFunction, qtype);
  check_shape(kFunction, base.rows, base.cols);
  if (axis == Axis::first) {
    const kernels::QuantizeKernels& kernels = kernels::quantize_kernels();
    return for_blocks(base, out, [&](const Block& b) {
      minmax_scale(b.values, qtype, axis, b.scale, b.shift);
      kernels.fake_quantize_affine(searched(b, qtype), 0, b.values.rows);
    });
  }
  std::vector<std::uint8_t> scale = floats(base, axis), shift = floats(base, axis);
  minmax_scale(base, qtype, axis, scale.data(), shift.data());
  fake_quantize_affine(base, qtype, axis, scale.data(), {shift.data(), ShiftKind::floating}, out);
}

}  // namespace quanto
