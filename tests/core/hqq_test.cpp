#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "each_isa.h"
#include "matrix.h"
#include "quanto/error.h"
#include "quanto/parallel.h"
#include "quanto/scale.h"
#include "reference.h"

namespace quanto {
namespace {

using testing::Floats;
using testing::Shape;
using testing::step;

struct Found {
  Floats scale, shift;
  std::vector<float> errors;

  /// Steps that lowered the error.
  int accepted() const {
    int steps = 0;
    while (steps + 1 < static_cast<int>(errors.size()) && errors[steps + 1] >= 0 && errors[steps + 1] < errors[steps])
      ++steps;
    return steps;
  }
};

Found search(const Floats& base, QType qtype, Axis axis, Shape s, const HqqParameters& parameters) {
  const std::int64_t count = scale_count(axis, s.rows, s.cols);
  Found f{Floats(base.dtype(), count), Floats(base.dtype(), count),
          std::vector<float>(static_cast<std::size_t>(parameters.iters) + 1)};
  hqq_scale(base.matrix(s), qtype, axis, parameters, f.scale.data(), f.shift.data(), f.errors.data());
  return f;
}

/// A step from the definition, in double precision; `dtype` rounds every operation but the sums.
struct Step {
  double error = 0;               ///< mean of the magnitudes
  std::vector<double> shift;      ///< the next one of each scale
  std::vector<double> tolerance;  ///< of it: a rounding of each threshold, of the sums and of the result
};

double unit(DType dtype) { return std::ldexp(1.0, -testing::format_of(dtype).precision); }

/// The smallest positive number.
double smallest(DType dtype) {
  const testing::Format f = testing::format_of(dtype);
  return std::ldexp(1.0, f.min_exponent - f.precision + 1);
}

/// How far a mean may lie from the exact one: the roundings of its sum in float32 and of the result.
double mean_tolerance(DType dtype, double mean) { return (unit(dtype) + 1e-5) * mean + smallest(dtype); }

Step reference_step(const Floats& base, QType qtype, Axis axis, Shape s, const Floats& scales,
                    const std::vector<double>& shifts, double p, double beta) {
  const DType dtype = base.dtype();
  const double u = unit(dtype);
  Step result{0, std::vector<double>(shifts.size()), std::vector<double>(shifts.size())};
  const double count = static_cast<double>(s.rows * s.cols) / static_cast<double>(shifts.size());
  for (std::int64_t r = 0; r < s.rows; ++r) {
    for (std::int64_t c = 0; c < s.cols; ++c) {
      const auto i = static_cast<std::size_t>(testing::scale_index(axis, r, c));
      const double x = base.at(r * s.cols + c), scale = scales.at(static_cast<std::int64_t>(i)), shift = shifts[i];
      const double code = scale == 0 ? 0 : testing::affine_code(dtype, qtype, ShiftKind::floating, x, scale, shift);
      const double error = step(dtype, x - testing::affine_value(dtype, ShiftKind::floating, code, scale, shift));
      const double size = std::fabs(error);
      const double threshold =
          p == 1 ? step(dtype, 1 / beta) : step(dtype, step(dtype, std::pow(size, step(dtype, p - 1))) * (1 / beta));
      const double kept = std::copysign(std::max(0.0, step(dtype, size - threshold)), error);
      const double wanted = step(dtype, step(dtype, scale * code) - step(dtype, x - kept));
      result.error += size / static_cast<double>(s.rows * s.cols);
      result.shift[i] += wanted / count;
      result.tolerance[i] += (4 * u * (size + std::fabs(kept)) + (count + 4) * 0x1p-24 * std::fabs(wanted)) / count;
    }
  }
  for (std::size_t i = 0; i < shifts.size(); ++i) {
    if (scales.at(static_cast<std::int64_t>(i)) == 0) result.shift[i] = shifts[i];
    result.tolerance[i] += 2 * u * std::fabs(result.shift[i]) + smallest(dtype);
  }
  return result;
}

std::vector<double> numbers(const Floats& values) {
  std::vector<double> out;
  for (std::int64_t i = 0; i < values.count(); ++i) out.push_back(values.at(i));
  return out;
}

struct Extremal {
  Floats scale, shift;
};
Extremal minmax(const Floats& base, QType qtype, Axis axis, Shape s) {
  const std::int64_t count = scale_count(axis, s.rows, s.cols);
  Extremal found{Floats(base.dtype(), count), Floats(base.dtype(), count)};
  minmax_scale(base.matrix(s), qtype, axis, found.scale.data(), found.shift.data());
  return found;
}

/// Few large and many small numbers: what the norm is for.
void fill_heavy_tailed(Floats& out, Shape s) {
  fill_normal(out, s);
  for (std::int64_t i = 0; i < out.count(); ++i) out.set(i, out.at(i) * out.at(i) * out.at(i) * 0.05f);
}

TEST(HqqScale, AStepIsThatOfTheDefinition) {
  testing::for_each_isa([] {
    int moved = 0;
    testing::for_each_case([&](DType dtype, Axis axis, Shape s) {
      if (s.rows * s.cols == 0) return;
      Floats base(dtype, s.rows * s.cols);
      fill_heavy_tailed(base, s);
      for (const QType qtype : testing::kBitQTypes) {
        for (const double p : {0.7, 0.5, 0.05, 1.0}) {
          SCOPED_TRACE(testing::describe(qtype, dtype, axis, s));
          const HqqParameters parameters{.lp_norm = p, .beta = p == 1 ? 300.0 : 10.0, .kappa = 1.0, .iters = 1};
          const Found found = search(base, qtype, axis, s, parameters);
          const Extremal start = minmax(base, qtype, axis, s);
          ASSERT_EQ(found.scale.bytes(), start.scale.bytes());
          const Step first =
              reference_step(base, qtype, axis, s, start.scale, numbers(start.shift), p, parameters.beta);
          ASSERT_NEAR(found.errors[0], first.error, mean_tolerance(dtype, first.error));
          if (found.accepted() == 0) {
            ASSERT_EQ(found.shift.bytes(), start.shift.bytes());
            continue;
          }
          ++moved;
          for (std::int64_t i = 0; i < found.shift.count(); ++i) {
            const auto index = static_cast<std::size_t>(i);
            ASSERT_NEAR(found.shift.at(i), first.shift[index], first.tolerance[index]) << "p " << p << " at " << i;
          }
          // The second error is that of the shifts that were found.
          const Step second =
              reference_step(base, qtype, axis, s, start.scale, numbers(found.shift), p, parameters.beta);
          ASSERT_NEAR(found.errors[1], second.error, mean_tolerance(dtype, second.error));
        }
      }
    });
    EXPECT_GT(moved, 300);
  });
}

TEST(HqqScale, GoesAsFarAsTheDefinition) {
  constexpr Shape kShape{48, 128};
  Floats base(DType::float32, kShape.rows * kShape.cols);
  fill_heavy_tailed(base, kShape);
  for (const QType qtype : testing::kBitQTypes) {
    const HqqParameters parameters{};
    const Found found = search(base, qtype, Axis::first, kShape, parameters);
    std::vector<double> shift = numbers(minmax(base, qtype, Axis::first, kShape).shift);
    double beta = parameters.beta, best = std::numeric_limits<double>::infinity();
    int steps = -1;
    for (; steps < parameters.iters; ++steps, beta *= parameters.kappa) {
      const Step next = reference_step(base, qtype, Axis::first, kShape, found.scale, shift, parameters.lp_norm, beta);
      if (!(next.error < best)) break;
      best = next.error;
      shift = next.shift;
    }
    EXPECT_EQ(found.accepted(), steps);
    EXPECT_GT(steps, 3);
    EXPECT_NEAR(found.errors[static_cast<std::size_t>(steps)], best, 1e-4 * best);
    EXPECT_LT(best, 0.99 * static_cast<double>(found.errors[0]));
  }
}

/// All bytes of a result.
std::vector<std::uint8_t> bytes_of(const Found& found) {
  std::vector<std::uint8_t> all = found.scale.bytes();
  const auto shift = found.shift.bytes();
  all.insert(all.end(), shift.begin(), shift.end());
  const auto* errors = reinterpret_cast<const std::uint8_t*>(found.errors.data());
  all.insert(all.end(), errors, errors + found.errors.size() * sizeof(float));
  return all;
}

TEST(HqqScale, InstructionSetsAndThreadsDoNotShow) {
  const int threads = thread_count();
  for (const Shape s : {Shape{300, 128}, Shape{5, 3001}, Shape{64, 33}}) {
    for (const DType dtype : testing::kDTypes) {
      for (const Axis axis : testing::kAxes) {
        Floats base(dtype, s.rows * s.cols);
        fill_heavy_tailed(base, s);
        std::vector<std::uint8_t> expected;
        for (const int count : {1, 3}) {
          set_thread_count(count);
          testing::for_each_isa([&] {
            const auto found = bytes_of(search(base, QType::qint4, axis, s, {}));
            if (expected.empty()) expected = found;
            ASSERT_EQ(found, expected) << testing::describe(QType::qint4, dtype, axis, s) << " threads " << count;
          });
        }
      }
    }
  }
  set_thread_count(threads);
}

TEST(HqqScale, FiniteNumbersGiveFiniteShifts) {
  testing::for_each_isa([] {
    testing::for_each_case([](DType dtype, Axis axis, Shape s) {
      Floats base(dtype, s.rows * s.cols);
      fill_patterns(base, true);
      for (const QType qtype : testing::kBitQTypes) {
        const Found found = search(base, qtype, axis, s, {});
        for (std::int64_t i = 0; i < found.shift.count(); ++i) {
          ASSERT_TRUE(std::isfinite(found.shift.at(i))) << testing::describe(qtype, dtype, axis, s) << " at " << i;
        }
      }
    });
  });
}

TEST(HqqScale, NaNLeavesTheExtremes) {
  constexpr Shape kShape{8, 64};
  Floats base(DType::bfloat16, kShape.rows * kShape.cols);
  fill_heavy_tailed(base, kShape);
  base.set(100, std::numeric_limits<float>::quiet_NaN());
  const Found found = search(base, QType::qint4, Axis::first, kShape, {});
  const Extremal start = minmax(base, QType::qint4, Axis::first, kShape);
  EXPECT_EQ(found.shift.bytes(), start.shift.bytes());
  EXPECT_TRUE(std::isnan(found.errors[0]));
}

TEST(HqqScale, AConstantRowIsExact) {
  constexpr Shape kShape{2, 100};
  Floats base(DType::float32, kShape.rows * kShape.cols);
  fill_heavy_tailed(base, kShape);
  for (std::int64_t c = 0; c < kShape.cols; ++c) base.set(c, 0.1f);
  const Found found = search(base, QType::qint4, Axis::first, kShape, {});
  EXPECT_GT(found.accepted(), 0);
  EXPECT_EQ(found.scale.at(0), 0.0f);
  EXPECT_EQ(found.shift.at(0), -0.1f);
}

TEST(HqqScale, NoStepsAreTheExtremes) {
  constexpr Shape kShape{8, 64};
  Floats base(DType::float16, kShape.rows * kShape.cols);
  fill_heavy_tailed(base, kShape);
  const Found found = search(base, QType::qint2, Axis::first, kShape, {.iters = 0});
  EXPECT_EQ(found.shift.bytes(), minmax(base, QType::qint2, Axis::first, kShape).shift.bytes());
  EXPECT_GT(found.errors[0], 0.0f);
}

TEST(HqqScale, RefusesParametersOutOfRange) {
  Floats base(DType::float32, 4);
  fill_normal(base, {2, 2});
  const auto refused = [&](const HqqParameters& p) {
    EXPECT_THROW(search(base, QType::qint4, Axis::first, {2, 2}, p), Error);
  };
  for (const double p : {0.0, -0.5, 1.1, std::nan("")}) refused({.lp_norm = p});
  for (const double number : {0.0, -1.0, HUGE_VAL, std::nan("")}) {
    refused({.beta = number});
    refused({.kappa = number});
  }
  EXPECT_THROW(search(base, QType::qint8, Axis::first, {2, 2}, {}), Error);
}

}  // namespace
}  // namespace quanto
