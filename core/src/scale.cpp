#include "quanto/scale.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "float_io.h"
#include "kernels/registry.h"
#include "quanto/parallel.h"
#include "quanto/qtype.h"
#include "symmetric_scale.h"

namespace quanto {
namespace {

using kernels::QuantizeKernels;

constexpr std::int64_t kGrain = 1 << 15;     // elements that are worth a thread
constexpr std::int64_t kRowBlock = 256;      // rows scanned between two rounds of scale arithmetic
constexpr std::int64_t kColumnBlock = 1024;  // columns that one thread walks down: 4 KB of each row

const char* element(const ConstMatrix& m, std::int64_t row, std::int64_t col) {
  return static_cast<const char*>(m.data) + (row * m.cols + col) * static_cast<std::int64_t>(dtype_size(m.dtype));
}

std::int64_t grain_of(std::int64_t items_each) {
  return std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, items_each));
}

/// The number that a bit pattern of `dtype` stands for.
float from_pattern(DType dtype, std::uint32_t pattern) {
  switch (dtype) {
    case DType::bfloat16:
      return decode_bfloat16(pattern);
    case DType::float16:
      return decode_float16(pattern);
    default:
      return float_from_bits(pattern);
  }
}

/// The number behind an ordered integer of QuantizeKernels::minmax.
float from_ordered(DType dtype, std::int32_t value) {
  const std::uint32_t sign = dtype == DType::float32 ? 0x80000000u : 0x8000u;
  const auto bits = static_cast<std::uint32_t>(value);
  return from_pattern(dtype, (value < 0 ? ~bits | sign : bits) & (sign | (sign - 1)));
}

float rounded_to(DType dtype, float value) {
  switch (dtype) {
    case DType::bfloat16:
      return bfloat16_to_float(float_to_bfloat16(value));
    case DType::float16:
      return float16_to_float(float_to_float16(value));
    default:
      return value;
  }
}

float smallest_positive(DType dtype) {
  return dtype == DType::float16 ? 0x1p-24f : dtype == DType::bfloat16 ? 0x1p-133f : 0x1p-149f;
}

/// The scale in its dtype, kept from rounding to zero where the range that it stands for is not empty.
float stored_scale(DType dtype, float scale, bool range_is_empty) {
  const float rounded = rounded_to(dtype, scale);
  return rounded == 0.0f && !range_is_empty ? smallest_positive(dtype) : rounded;
}

struct ScaleShift {
  float scale;
  float shift;
};

ScaleShift affine_scale(DType dtype, float levels, float low, float high) {
  if (std::isnan(low) || std::isnan(high)) return {std::nanf(""), std::nanf("")};
  const float range = rounded_to(dtype, high - low);
  const bool overflow = std::isinf(range) && std::isfinite(low) && std::isfinite(high);
  const float scale = overflow ? static_cast<float>((double{high} - double{low}) / double{levels}) : range / levels;
  return {stored_scale(dtype, scale, high == low), -low};
}

/// Where the scales of one call go.
struct SymmetricResult {
  DType dtype;
  float qmax;
  void* scale;

  void store(std::int64_t index, std::uint32_t pattern) const {
    store_float(scale, dtype, index, symmetric_scale(dtype, qmax, pattern));
  }
};

struct AffineResult {
  DType dtype;
  float levels;
  void* scale;
  void* shift;

  void store(std::int64_t index, std::int32_t lowest, std::int32_t highest) const {
    const ScaleShift found = affine_scale(dtype, levels, from_ordered(dtype, lowest), from_ordered(dtype, highest));
    store_float(scale, dtype, index, found.scale);
    store_float(shift, dtype, index, found.shift);
  }
};

/// body(begin, end) over blocks of rows of which a thread takes several.
template <class Body>
void for_row_blocks(const ConstMatrix& m, Body body) {
  parallel_for(m.rows, grain_of(m.cols), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; r += kRowBlock) body(r, std::min(r + kRowBlock, end));
  });
}

/// body(begin, end) over blocks of columns that one thread walks down.
template <class Body>
void for_column_blocks(const ConstMatrix& m, Body body) {
  const std::int64_t blocks = (m.cols + kColumnBlock - 1) / kColumnBlock;
  parallel_for(blocks, grain_of(kColumnBlock * m.rows), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) body(b * kColumnBlock, std::min((b + 1) * kColumnBlock, m.cols));
  });
}

void absmax_of_rows(const QuantizeKernels& kernels, const ConstMatrix& m, const SymmetricResult& result) {
  for_row_blocks(m, [&](std::int64_t begin, std::int64_t end) {
    std::uint32_t largest[kRowBlock];
    kernels.absmax(m.dtype, element(m, begin, 0), end - begin, m.cols, largest);
    for (std::int64_t r = begin; r < end; ++r) result.store(r, largest[r - begin]);
  });
}

void absmax_of_columns(const QuantizeKernels& kernels, const ConstMatrix& m, const SymmetricResult& result) {
  for_column_blocks(m, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::uint32_t> largest(static_cast<std::size_t>(end - begin), 0);
    for (std::int64_t r = 0; r < m.rows; ++r) {
      kernels.column_absmax(m.dtype, element(m, r, begin), end - begin, largest.data());
    }
    for (std::int64_t c = begin; c < end; ++c) result.store(c, largest[static_cast<std::size_t>(c - begin)]);
  });
}

std::uint32_t absmax_of_all(const QuantizeKernels& kernels, const ConstMatrix& m) {
  std::atomic<std::uint32_t> largest{0};
  parallel_for(m.rows * m.cols, kGrain, [&](std::int64_t begin, std::int64_t end) {
    std::uint32_t part = 0;
    kernels.absmax(m.dtype, element(m, 0, begin), 1, end - begin, &part);
    std::uint32_t seen = largest.load(std::memory_order_relaxed);
    while (part > seen && !largest.compare_exchange_weak(seen, part, std::memory_order_relaxed)) {
    }
  });
  return largest.load();
}

void minmax_of_rows(const QuantizeKernels& kernels, const ConstMatrix& m, const AffineResult& result) {
  for_row_blocks(m, [&](std::int64_t begin, std::int64_t end) {
    std::int32_t lowest[kRowBlock], highest[kRowBlock];
    kernels.minmax(m.dtype, element(m, begin, 0), end - begin, m.cols, lowest, highest);
    for (std::int64_t r = begin; r < end; ++r) result.store(r, lowest[r - begin], highest[r - begin]);
  });
}

void minmax_of_columns(const QuantizeKernels& kernels, const ConstMatrix& m, const AffineResult& result) {
  using Limits = std::numeric_limits<std::int32_t>;
  for_column_blocks(m, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::int32_t> lowest(static_cast<std::size_t>(end - begin), Limits::max());
    std::vector<std::int32_t> highest(lowest.size(), Limits::min());
    for (std::int64_t r = 0; r < m.rows; ++r) {
      kernels.column_minmax(m.dtype, element(m, r, begin), end - begin, lowest.data(), highest.data());
    }
    for (std::int64_t c = begin; c < end; ++c) {
      const auto i = static_cast<std::size_t>(c - begin);
      result.store(c, lowest[i], highest[i]);
    }
  });
}

/// The whole matrix as a single row.
ConstMatrix as_row(const ConstMatrix& m) { return {m.data, m.dtype, 1, m.rows * m.cols}; }

void check_not_empty(const char* function, const ConstMatrix& base, Axis axis) {
  if (scale_count(axis, base.rows, base.cols) > 0 && base.rows * base.cols == 0) {
    fail(function, "base", "shape " + shape_text(base.rows, base.cols), "at least one element for each scale");
  }
}

}  // namespace

float symmetric_scale(DType dtype, float qmax, std::uint32_t absmax_pattern) {
  const float absmax = from_pattern(dtype, absmax_pattern);
  return stored_scale(dtype, absmax / qmax, absmax == 0.0f);
}

std::int64_t scale_count(Axis axis, std::int64_t rows, std::int64_t cols) {
  return axis == Axis::tensor ? 1 : axis == Axis::first ? rows : cols;
}

void absmax_scale(const ConstMatrix& base, QType qtype, Axis axis, void* scale) {
  check_shape("absmax_scale", base.rows, base.cols);
  const QuantizeKernels& kernels = kernels::quantize_kernels();
  const SymmetricResult result{base.dtype, static_cast<float>(qtype_info(qtype).qmax), scale};
  switch (axis) {
    case Axis::tensor:
      return result.store(0, absmax_of_all(kernels, base));
    case Axis::first:
      return absmax_of_rows(kernels, base, result);
    case Axis::last:
      return absmax_of_columns(kernels, base, result);
  }
}

void minmax_scale(const ConstMatrix& base, QType qtype, Axis axis, void* scale, void* shift) {
  check_affine("minmax_scale", qtype);
  check_shape("minmax_scale", base.rows, base.cols);
  check_not_empty("minmax_scale", base, axis);
  const QuantizeKernels& kernels = kernels::quantize_kernels();
  const int levels = (1 << qtype_info(qtype).bits) - 1;
  const AffineResult result{base.dtype, static_cast<float>(levels), scale, shift};
  if (axis == Axis::last) return minmax_of_columns(kernels, base, result);
  minmax_of_rows(kernels, axis == Axis::tensor ? as_row(base) : base, result);
}

bool all_finite(const ConstMatrix& base) {
  check_shape("all_finite", base.rows, base.cols);
  return std::isfinite(from_pattern(base.dtype, absmax_of_all(kernels::quantize_kernels(), base)));
}

}  // namespace quanto
