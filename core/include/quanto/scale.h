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

/// What hqq_scale minimizes, and how far it goes.
struct HqqParameters {
  double lp_norm = 0.7;  ///< p of the norm of the errors, in (0, 1]
  double beta = 10.0;    ///< first weight of the quadratic term
  double kappa = 1.01;   ///< what the weight is multiplied by after each step
  int iters = 20;        ///< largest number of steps
};

/// Affine scale and shift by half-quadratic quantization ("Half-Quadratic Quantization of Large Machine Learning
/// Models", Badri and Shaji, 2023): the scales of minmax_scale, and shifts that make the errors small in a norm that
/// ignores outliers. Each step shrinks the errors by the proximal operator of that norm and takes the mean shift that
/// is left; the search ends before the first step that does not lower the mean absolute error of the whole matrix.
/// Every operation is rounded to base.dtype. A shift that would not be finite stays as it was.
/// `scale`, `shift`: as of minmax_scale. `errors`: iters + 1 numbers, the mean absolute error at first and after each
/// step, -1 for steps that were not taken.
void hqq_scale(const ConstMatrix& base, QType qtype, Axis axis, const HqqParameters& parameters, void* scale,
               void* shift, float* errors);

/// True if every element is finite. Reads memory once, in parallel.
bool all_finite(const ConstMatrix& base);

}  // namespace quanto
