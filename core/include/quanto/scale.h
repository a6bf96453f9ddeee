// Scale search: float matrix -> scale[, shift].
#pragma once

#include <cstdint>

#include "quanto/types.h"

namespace quanto {

/// A contiguous row-major matrix of floats, not owned. Any byte alignment.
struct ConstMatrix {
  const void* data;
  DType dtype;
  std::int64_t rows;
  std::int64_t cols;
};

/// Number of scales that `axis` gives for a rows x cols matrix: 1, rows or cols.
std::int64_t scale_count(Axis axis, std::int64_t rows, std::int64_t cols);

/// Symmetric scale: max |base| / qmax over the whole matrix, each row or each column, rounded to base.dtype.
/// Zero for all-zero input; the dtype's smallest positive number where a non-zero maximum would round to a zero scale.
/// NaN anywhere in the range of a scale gives a NaN scale.
/// `scale`: scale_count(axis, rows, cols) elements of base.dtype.
void absmax_scale(const ConstMatrix& base, QType qtype, Axis axis, void* scale);

/// Affine scale and shift: scale = (max - min) / (2^bits - 1), shift = -min, each rounded to base.dtype.
/// Where max - min overflows the dtype, the difference is taken in a wider type so that the scale stays finite.
/// A constant range has scale 0 and is represented exactly by its shift.
/// `scale`, `shift`: scale_count(axis, rows, cols) elements of base.dtype.
void minmax_scale(const ConstMatrix& base, QType qtype, Axis axis, void* scale, void* shift);

/// True if every element is finite. Reads memory once, in parallel.
bool all_finite(const ConstMatrix& base);

}  // namespace quanto
