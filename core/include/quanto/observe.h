// Observers of activations: a histogram of magnitudes that widens with its samples, and the scales read from it.
#pragma once

#include <cstdint>

#include "quanto/scale.h"
#include "quanto/types.h"

namespace quanto {

/// Counts of |x| in `bins` equal bins over [0, 2^exponent). `bins` is a power of two, so that widening the range by a
/// factor of two adds up pairs of bins and no count is ever guessed. All counts zero: nothing was seen, and the first
/// sample chooses the exponent.
struct MagnitudeHistogram {
  std::int64_t* counts;
  std::int64_t bins;
  std::int64_t exponent;
};

/// Adds the magnitudes of `base`, widening the range so that it holds the largest. The counts do not depend on the
/// number of threads. Throws Error for NaN or infinite elements.
void observe_magnitudes(const ConstMatrix& base, MagnitudeHistogram& histogram);

/// Symmetric scale that clamps the magnitudes beyond a percentile: m / qmax for the m that `percentile` percent of the
/// magnitudes lie below, read linearly within its bin. Zero if nothing was seen or all of it was zero.
/// `percentile`: in (0, 100].
float percentile_scale(const MagnitudeHistogram& histogram, QType qtype, double percentile);

/// Symmetric scale of the least squared error: of 128 scales up to the one that clamps nothing, that for which the
/// magnitudes, each taken as the center of its bin, are nearest to the values that their codes stand for. Zero if
/// nothing was seen or all of it was zero.
float mse_scale(const MagnitudeHistogram& histogram, QType qtype);

}  // namespace quanto
