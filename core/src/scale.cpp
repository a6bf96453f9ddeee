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

namespace quanto {
namespace {

using kernels::QuantizeKernels;

constexpr std::int64_t kGrain = 1 << 15;  // elements that are worth a thread
constexpr std::uint32_t kInfinityBits = 0x7f800000u;
constexpr std::int32_t kLowest = std::numeric_limits<std::int32_t>::max();
constexpr std::int32_t kHighest = std::numeric_limits<std::int32_t>::min();

const char* element(const ConstMatrix& m, std::int64_t row, std::int64_t col) {
  return static_cast<const char*>(m.data) + (row * m.cols + col) * static_cast<std::int64_t>(dtype_size(m.dtype));
}

std::int64_t grain_of(std::int64_t items_each) {
  return std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, items_each));
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

float symmetric_scale(DType dtype, QType qtype, std::uint32_t absmax_bits) {
  const float absmax = float_from_bits(absmax_bits);
  return stored_scale(dtype, absmax / static_cast<float>(qtype_info(qtype).qmax), absmax == 0.0f);
}

float from_ordered(std::int32_t value) {
  return float_from_bits(static_cast<std::uint32_t>(
      value ^ static_cast<std::int32_t>(static_cast<std::uint32_t>(value >> 31) & 0x7fffffffu)));
}

struct ScaleShift {
  float scale;
  float shift;
};

ScaleShift affine_scale(DType dtype, QType qtype, std::int32_t lowest, std::int32_t highest) {
  const float low = from_ordered(lowest), high = from_ordered(highest);
  if (std::isnan(low) || std::isnan(high)) return {std::nanf(""), std::nanf("")};
  const float levels = static_cast<float>((1 << qtype_info(qtype).bits) - 1);
  const float range = rounded_to(dtype, high - low);
  const bool overflow = std::isinf(range) && std::isfinite(low) && std::isfinite(high);
  const float scale = overflow ? static_cast<float>((double{high} - double{low}) / double{levels}) : range / levels;
  return {stored_scale(dtype, scale, high == low), -low};
}

std::uint32_t absmax_of_all(const QuantizeKernels& kernels, const ConstMatrix& m) {
  std::atomic<std::uint32_t> largest{0};
  parallel_for(m.rows * m.cols, kGrain, [&](std::int64_t begin, std::int64_t end) {
    const std::uint32_t part = kernels.absmax(m.dtype, element(m, 0, begin), end - begin);
    std::uint32_t seen = largest.load(std::memory_order_relaxed);
    while (part > seen && !largest.compare_exchange_weak(seen, part, std::memory_order_relaxed)) {
    }
  });
  return largest.load();
}

/// body(begin, end) over ranges of columns that one thread reads row by row.
template <class Body>
void for_column_blocks(const ConstMatrix& m, Body body) {
  constexpr std::int64_t kBlock = 256;
  const std::int64_t blocks = (m.cols + kBlock - 1) / kBlock;
  parallel_for(blocks, grain_of(kBlock * m.rows), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < end; ++b) body(b * kBlock, std::min((b + 1) * kBlock, m.cols));
  });
}

void absmax_of_columns(const QuantizeKernels& kernels, const ConstMatrix& m, QType qtype, void* scale) {
  for_column_blocks(m, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::uint32_t> running(static_cast<std::size_t>(end - begin), 0);
    for (std::int64_t r = 0; r < m.rows; ++r) {
      kernels.column_absmax(m.dtype, element(m, r, begin), end - begin, running.data());
    }
    for (std::int64_t c = begin; c < end; ++c) {
      store_float(scale, m.dtype, c, symmetric_scale(m.dtype, qtype, running[static_cast<std::size_t>(c - begin)]));
    }
  });
}

void minmax_of_columns(const QuantizeKernels& kernels, const ConstMatrix& m, QType qtype, void* scale, void* shift) {
  for_column_blocks(m, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::int32_t> low(static_cast<std::size_t>(end - begin), kLowest), high(low.size(), kHighest);
    for (std::int64_t r = 0; r < m.rows; ++r) {
      kernels.column_minmax(m.dtype, element(m, r, begin), end - begin, low.data(), high.data());
    }
    for (std::int64_t c = begin; c < end; ++c) {
      const auto i = static_cast<std::size_t>(c - begin);
      const ScaleShift found = affine_scale(m.dtype, qtype, low[i], high[i]);
      store_float(scale, m.dtype, c, found.scale);
      store_float(shift, m.dtype, c, found.shift);
    }
  });
}

void minmax_of_row(const QuantizeKernels& kernels, const ConstMatrix& m, QType qtype, std::int64_t row, void* scale,
                   void* shift) {
  std::int32_t low = kLowest, high = kHighest;
  kernels.minmax(m.dtype, element(m, row, 0), m.cols, &low, &high);
  const ScaleShift found = affine_scale(m.dtype, qtype, low, high);
  store_float(scale, m.dtype, row, found.scale);
  store_float(shift, m.dtype, row, found.shift);
}

}  // namespace

std::int64_t scale_count(Axis axis, std::int64_t rows, std::int64_t cols) {
  return axis == Axis::tensor ? 1 : axis == Axis::first ? rows : cols;
}

void absmax_scale(const ConstMatrix& base, QType qtype, Axis axis, void* scale) {
  check_shape("absmax_scale", base.rows, base.cols);
  const QuantizeKernels& kernels = kernels::quantize_kernels();
  if (axis == Axis::tensor) {
    store_float(scale, base.dtype, 0, symmetric_scale(base.dtype, qtype, absmax_of_all(kernels, base)));
  } else if (axis == Axis::last) {
    absmax_of_columns(kernels, base, qtype, scale);
  } else {
    parallel_for(base.rows, grain_of(base.cols), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const std::uint32_t bits = kernels.absmax(base.dtype, element(base, r, 0), base.cols);
        store_float(scale, base.dtype, r, symmetric_scale(base.dtype, qtype, bits));
      }
    });
  }
}

void minmax_scale(const ConstMatrix& base, QType qtype, Axis axis, void* scale, void* shift) {
  check_affine("minmax_scale", qtype);
  check_shape("minmax_scale", base.rows, base.cols);
  const bool has_scales = scale_count(axis, base.rows, base.cols) > 0;
  if (has_scales && (base.rows == 0 || base.cols == 0)) {
    fail("minmax_scale", "base", "shape " + shape_text(base.rows, base.cols), "at least one element for each scale");
  }
  const QuantizeKernels& kernels = kernels::quantize_kernels();
  if (axis == Axis::last) return minmax_of_columns(kernels, base, qtype, scale, shift);
  const bool whole = axis == Axis::tensor;
  const ConstMatrix view{base.data, base.dtype, whole ? 1 : base.rows, whole ? base.rows * base.cols : base.cols};
  parallel_for(view.rows, grain_of(view.cols), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) minmax_of_row(kernels, view, qtype, r, scale, shift);
  });
}

bool all_finite(const ConstMatrix& base) {
  check_shape("all_finite", base.rows, base.cols);
  return absmax_of_all(kernels::quantize_kernels(), base) < kInfinityBits;
}

}  // namespace quanto
