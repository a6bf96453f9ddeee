#include "quanto/observe.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "check.h"
#include "float_io.h"
#include "quanto/float8.h"
#include "quanto/parallel.h"
#include "quanto/qtype.h"

namespace quanto {
namespace {

constexpr std::int64_t kGrain = 1 << 14;  // elements that are worth a thread
constexpr int kCandidates = 128;          // scales that mse_scale compares
constexpr std::uint32_t kInfinity = 0x7f800000;

std::uint32_t magnitude_bits(const ConstMatrix& m, std::int64_t i) {
  return std::bit_cast<std::uint32_t>(load_float(m.data, m.dtype, i)) & 0x7fffffffu;
}

/// The largest magnitude; patterns of magnitudes order like the numbers, NaN above all.
float largest_magnitude(const ConstMatrix& base) {
  std::atomic<std::uint32_t> largest{0};
  parallel_for(base.rows * base.cols, kGrain, [&](std::int64_t begin, std::int64_t end) {
    std::uint32_t part = 0;
    for (std::int64_t i = begin; i < end; ++i) part = std::max(part, magnitude_bits(base, i));
    std::uint32_t seen = largest.load(std::memory_order_relaxed);
    while (part > seen && !largest.compare_exchange_weak(seen, part, std::memory_order_relaxed)) {
    }
  });
  if (largest >= kInfinity) fail("observe_magnitudes", "base", "NaN or infinite elements", "finite ones");
  return std::bit_cast<float>(largest.load());
}

/// The smallest exponent whose power of two is above `value`. For zero that of the smallest positive number.
int exponent_above(float value) {
  int exponent = 0;
  std::frexp(value == 0.0f ? std::numeric_limits<float>::denorm_min() : value, &exponent);
  return exponent;
}

void check_histogram(const char* function, const MagnitudeHistogram& h) {
  if (h.bins < 1 || !std::has_single_bit(static_cast<std::uint64_t>(h.bins))) {
    fail(function, "bins", std::to_string(h.bins), "a power of two");
  }
  if (std::any_of(h.counts, h.counts + h.bins, [](std::int64_t count) { return count < 0; })) {
    fail(function, "counts", "a negative one", "numbers of elements");
  }
}

bool is_empty(const MagnitudeHistogram& h) {
  return std::all_of(h.counts, h.counts + h.bins, [](std::int64_t count) { return count == 0; });
}

/// Adds up 2^doublings bins to one.
void widen(MagnitudeHistogram& h, std::int64_t doublings) {
  const auto shift = static_cast<int>(std::min<std::int64_t>(doublings, 62));
  for (std::int64_t i = 0; i < h.bins; ++i) {
    const std::int64_t count = h.counts[i];
    h.counts[i] = 0;
    h.counts[i >> shift] += count;
  }
  h.exponent += doublings;
}

void make_room(MagnitudeHistogram& h, float largest) {
  const std::int64_t exponent = exponent_above(largest);
  if (is_empty(h)) {
    h.exponent = exponent;
  } else if (exponent > h.exponent) {
    widen(h, exponent - h.exponent);
  }
}

double bin_width(const MagnitudeHistogram& h) {
  return std::ldexp(1.0 / static_cast<double>(h.bins), static_cast<int>(h.exponent));
}

/// Bins up to the last that is not empty.
std::int64_t used_bins(const MagnitudeHistogram& h) {
  std::int64_t used = h.bins;
  while (used > 0 && h.counts[used - 1] == 0) --used;
  return used;
}

/// Nothing but zeros, or nothing at all: a histogram of zeros has the smallest range there is.
bool holds_only_zeros(const MagnitudeHistogram& h) {
  return is_empty(h) || (used_bins(h) == 1 && h.exponent <= exponent_above(0.0f));
}

/// A scale that is not zero, in float32, which may be too small for it.
float stored(double scale) { return std::max(static_cast<float>(scale), std::numeric_limits<float>::denorm_min()); }

/// The values that the codes of one scale stand for. Magnitudes only.
struct Quantizer {
  QType qtype;
  double qmax;
  double scale;

  double operator()(double magnitude) const {
    const double ratio = std::min(magnitude / scale, qmax);
    if (qtype == QType::qint8) return scale * std::nearbyint(ratio);
    return scale * float8_decode(qtype, float8_encode(qtype, static_cast<float>(ratio)));
  }
};

double squared_error(const MagnitudeHistogram& h, std::int64_t used, const Quantizer& quantize) {
  const double width = bin_width(h);
  double error = 0.0;
  for (std::int64_t i = 0; i < used; ++i) {
    if (h.counts[i] == 0) continue;
    const double center = (static_cast<double>(i) + 0.5) * width;
    const double distance = center - quantize(center);
    error += static_cast<double>(h.counts[i]) * distance * distance;
  }
  return error;
}

}  // namespace

void observe_magnitudes(const ConstMatrix& base, MagnitudeHistogram& histogram) {
  check_shape("observe_magnitudes", base.rows, base.cols);
  check_histogram("observe_magnitudes", histogram);
  const std::int64_t size = base.rows * base.cols;
  if (size == 0) return;
  make_room(histogram, largest_magnitude(base));
  const double per_unit = 1.0 / bin_width(histogram);
  std::mutex mutex;
  parallel_for(size, kGrain, [&](std::int64_t begin, std::int64_t end) {
    std::vector<std::int64_t> counts(static_cast<std::size_t>(histogram.bins));
    for (std::int64_t i = begin; i < end; ++i) {
      // Exact: the product with a power of two, and truncation.
      ++counts[static_cast<std::size_t>(std::bit_cast<float>(magnitude_bits(base, i)) * per_unit)];
    }
    const std::lock_guard<std::mutex> lock(mutex);
    for (std::size_t b = 0; b < counts.size(); ++b) histogram.counts[b] += counts[b];
  });
}

float percentile_scale(const MagnitudeHistogram& histogram, QType qtype, double percentile) {
  check_histogram("percentile_scale", histogram);
  check_symmetric("percentile_scale", qtype);
  if (!(percentile > 0.0 && percentile <= 100.0)) {
    fail("percentile_scale", "percentile", std::to_string(percentile), "a number in (0, 100]");
  }
  if (holds_only_zeros(histogram)) return 0.0f;
  double total = 0.0;
  for (std::int64_t i = 0; i < histogram.bins; ++i) total += static_cast<double>(histogram.counts[i]);
  const double wanted = total * percentile / 100.0;
  double below = 0.0;
  std::int64_t bin = 0;
  while (bin + 1 < used_bins(histogram) && below + static_cast<double>(histogram.counts[bin]) < wanted) {
    below += static_cast<double>(histogram.counts[bin++]);
  }
  const double count = std::max(1.0, static_cast<double>(histogram.counts[bin]));
  const double part = std::clamp((wanted - below) / count, 0.0, 1.0);
  const double magnitude = (static_cast<double>(bin) + part) * bin_width(histogram);
  return stored(magnitude / qtype_info(qtype).qmax);
}

float mse_scale(const MagnitudeHistogram& histogram, QType qtype) {
  check_histogram("mse_scale", histogram);
  check_symmetric("mse_scale", qtype);
  if (holds_only_zeros(histogram)) return 0.0f;
  const std::int64_t used = used_bins(histogram);
  const double qmax = qtype_info(qtype).qmax;
  const double widest = static_cast<double>(used) * bin_width(histogram) / qmax;
  const auto candidate = [&](std::int64_t k) { return widest * static_cast<double>(k + 1) / kCandidates; };
  std::vector<double> errors(kCandidates);
  parallel_for(kCandidates, std::max<std::int64_t>(1, kGrain / used), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t k = begin; k < end; ++k) {
      errors[static_cast<std::size_t>(k)] = squared_error(histogram, used, {qtype, qmax, candidate(k)});
    }
  });
  const auto best = std::min_element(errors.begin(), errors.end()) - errors.begin();
  return stored(candidate(best));
}

}  // namespace quanto
