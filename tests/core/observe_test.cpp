#include "quanto/observe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "matrix.h"
#include "quanto/error.h"
#include "quanto/parallel.h"
#include "quanto/quantize.h"

namespace quanto {
namespace {

using testing::Floats;
using testing::Shape;
using Counts = std::vector<std::int64_t>;

/// A histogram and its memory.
struct Observed {
  explicit Observed(std::int64_t bins = 2048) : counts(static_cast<std::size_t>(bins)) {}

  void add(const Floats& sample) {
    MagnitudeHistogram h = view();
    observe_magnitudes(sample.matrix({1, sample.count()}), h);
    exponent = h.exponent;
  }
  MagnitudeHistogram view() { return {counts.data(), static_cast<std::int64_t>(counts.size()), exponent}; }

  Counts counts;
  std::int64_t exponent = 0;
};

Floats sample_of(const std::vector<float>& values, DType dtype = DType::float32) {
  Floats out(dtype, static_cast<std::int64_t>(values.size()));
  for (std::size_t i = 0; i < values.size(); ++i) out.set(static_cast<std::int64_t>(i), values[i]);
  return out;
}

Floats normal_sample(DType dtype, std::int64_t count, unsigned seed) {
  Floats out(dtype, count);
  testing::fill_normal(out, {1, count}, seed);
  return out;
}

TEST(Observe, CountsMagnitudesInEqualBins) {
  Observed seen(8);
  seen.add(sample_of({0.0f, -0.1f, 0.25f, -0.5f, 0.9f, 0.99f, 0.99f}));
  EXPECT_EQ(seen.exponent, 0);
  EXPECT_EQ(seen.counts, (Counts{2, 0, 1, 0, 1, 0, 0, 3}));
}

TEST(Observe, WideningAddsUpPairsOfBins) {
  Observed seen(8);
  seen.add(sample_of({0.1f, 0.3f, 0.9f}));
  seen.add(sample_of({-3.5f}));
  EXPECT_EQ(seen.exponent, 2);
  EXPECT_EQ(seen.counts, (Counts{2, 1, 0, 0, 0, 0, 0, 1}));
}

TEST(Observe, TheOrderOfSamplesDoesNotMatter) {
  for (const DType dtype : testing::kDTypes) {
    const Floats a = normal_sample(dtype, 1013, 1), b = normal_sample(dtype, 71, 2), c = sample_of({900.0f}, dtype);
    Observed one, other;
    for (const Floats* sample : {&a, &b, &c}) one.add(*sample);
    for (const Floats* sample : {&c, &b, &a}) other.add(*sample);
    EXPECT_EQ(one.counts, other.counts);
    EXPECT_EQ(one.exponent, other.exponent);
    EXPECT_EQ(std::accumulate(one.counts.begin(), one.counts.end(), std::int64_t{0}), 1013 + 71 + 1);
  }
}

TEST(Observe, AnyNumberOfThreadsCountsTheSame) {
  const Floats sample = normal_sample(DType::float32, 200003, 3);
  const int before = thread_count();
  Observed expected;
  set_thread_count(1);
  expected.add(sample);
  for (const int threads : {2, 5}) {
    set_thread_count(threads);
    Observed seen;
    seen.add(sample);
    EXPECT_EQ(seen.counts, expected.counts);
  }
  set_thread_count(before);
}

TEST(Observe, TinyAndHugeMagnitudesHaveARange) {
  Observed seen(16);
  seen.add(sample_of({1e-45f}));
  EXPECT_GT(mse_scale(seen.view(), QType::qint8), 0.0f);
  seen.add(sample_of({3e38f}));
  EXPECT_EQ(seen.counts.front(), 1);
  EXPECT_EQ(std::accumulate(seen.counts.begin(), seen.counts.end(), std::int64_t{0}), 2);
  EXPECT_TRUE(std::isfinite(percentile_scale(seen.view(), QType::qint8, 100.0)));
}

TEST(Observe, NothingAndZerosHaveAZeroScale) {
  Observed seen;
  EXPECT_EQ(percentile_scale(seen.view(), QType::qint8, 99.0), 0.0f);
  seen.add(sample_of({}));
  seen.add(sample_of({0.0f, -0.0f}));
  EXPECT_EQ(percentile_scale(seen.view(), QType::qint8, 99.0), 0.0f);
  EXPECT_EQ(mse_scale(seen.view(), QType::qfloat8_e4m3fn), 0.0f);
}

TEST(Observe, PercentilesAreThoseOfTheSortedMagnitudes) {
  const Floats sample = normal_sample(DType::float32, 20011, 5);
  Observed seen;
  seen.add(sample);
  std::vector<double> sorted;
  for (std::int64_t i = 0; i < sample.count(); ++i) sorted.push_back(std::abs(double{sample.at(i)}));
  std::sort(sorted.begin(), sorted.end());
  const double width = std::ldexp(1.0 / 2048, static_cast<int>(seen.exponent));
  for (const double percentile : {0.5, 25.0, 50.0, 99.0, 99.9, 100.0}) {
    const auto rank = static_cast<std::size_t>(std::ceil(percentile / 100 * 20011)) - 1;
    for (const QType qtype : testing::kByteQTypes) {
      const double found = percentile_scale(seen.view(), qtype, percentile) * qtype_info(qtype).qmax;
      EXPECT_NEAR(found, sorted[rank], 1.01 * width) << percentile;
    }
  }
}

/// The squared error of a sample quantized with a scale, by the quantizers themselves.
double error_of(const Floats& sample, QType qtype, float scale_value) {
  const Floats scale = sample_of({scale_value});
  const auto n = static_cast<std::size_t>(sample.count());
  std::vector<std::uint8_t> codes(n);
  Floats values(DType::float32, sample.count());
  quantize_symmetric(sample.matrix({1, sample.count()}), qtype, Axis::tensor, scale.data(), codes.data());
  dequantize_symmetric(codes.data(), qtype, 1, sample.count(), Axis::tensor, scale.data(), DType::float32,
                       values.data());
  double error = 0.0;
  for (std::int64_t i = 0; i < sample.count(); ++i) error += std::pow(double{sample.at(i)} - values.at(i), 2);
  return error;
}

TEST(Observe, NoScaleOfTheSweepHasASmallerErrorThanTheBest) {
  Floats sample = normal_sample(DType::float32, 5003, 7);
  sample.set(17, 40.0f);  // an outlier
  Observed seen;
  seen.add(sample);
  for (const QType qtype : testing::kByteQTypes) {
    const float best = mse_scale(seen.view(), qtype);
    const float widest = percentile_scale(seen.view(), qtype, 100.0);
    double least = error_of(sample, qtype, widest);
    for (int k = 1; k < 400; ++k)
      least = std::min(least, error_of(sample, qtype, widest * static_cast<float>(k) / 400));
    EXPECT_LE(error_of(sample, qtype, best), 1.05 * least) << qtype_info(qtype).name;
    EXPECT_GT(error_of(sample, qtype, best / 2), error_of(sample, qtype, best));
  }
}

TEST(Observe, RefusesWhatItCannotCount) {
  Observed seen, odd(6);
  EXPECT_THROW(seen.add(sample_of({1.0f, std::nanf("")})), Error);
  EXPECT_THROW(seen.add(sample_of({-INFINITY})), Error);
  EXPECT_THROW(odd.add(sample_of({1.0f})), Error);
  EXPECT_THROW(percentile_scale(seen.view(), QType::qint8, 0.0), Error);
  EXPECT_THROW(percentile_scale(seen.view(), QType::qint8, 100.5), Error);
  EXPECT_THROW(percentile_scale(seen.view(), QType::qint4, 50.0), Error);
  seen.counts[3] = -1;
  EXPECT_THROW(mse_scale(seen.view(), QType::qint8), Error);
}

}  // namespace
}  // namespace quanto
