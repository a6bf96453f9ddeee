#include "quanto/scale.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "each_isa.h"
#include "matrix.h"
#include "quanto/error.h"
#include "quanto/parallel.h"
#include "reference.h"

namespace quanto {
namespace {

using testing::Floats;
using testing::Shape;
using testing::step;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Extremes {
  double low = HUGE_VAL, high = -HUGE_VAL, absmax = 0;
};

std::vector<Extremes> extremes(const Floats& base, Axis axis, Shape s) {
  std::vector<Extremes> found(static_cast<std::size_t>(scale_count(axis, s.rows, s.cols)));
  for (std::int64_t r = 0; r < s.rows; ++r) {
    for (std::int64_t c = 0; c < s.cols; ++c) {
      Extremes& e = found[static_cast<std::size_t>(testing::scale_index(axis, r, c))];
      const double value = base.at(r * s.cols + c);
      e.low = std::min(e.low, value);
      e.high = std::max(e.high, value);
      e.absmax = std::max(e.absmax, std::fabs(value));
    }
  }
  return found;
}

TEST(AbsmaxScale, IsTheLargestMagnitudeOverQmax) {
  testing::for_each_isa([] {
    testing::for_each_case([](DType dtype, Axis axis, Shape s) {
      Floats base(dtype, s.rows * s.cols);
      fill_normal(base, s);
      for (const QType qtype : testing::kByteQTypes) {
        Floats scale(dtype, scale_count(axis, s.rows, s.cols));
        absmax_scale(base.matrix(s), qtype, axis, scale.data());
        const auto expected = extremes(base, axis, s);
        for (std::int64_t i = 0; i < scale.count(); ++i) {
          ASSERT_EQ(scale.at(i), step(dtype, expected[static_cast<std::size_t>(i)].absmax / qtype_info(qtype).qmax))
              << testing::describe(qtype, dtype, axis, s) << " at " << i;
        }
      }
    });
  });
}

TEST(MinmaxScale, IsTheRangeOverTheLevelsAndTheNegatedMinimum) {
  testing::for_each_isa([] {
    testing::for_each_case([](DType dtype, Axis axis, Shape s) {
      Floats base(dtype, s.rows * s.cols);
      fill_normal(base, s);
      for (const QType qtype : testing::kBitQTypes) {
        const std::int64_t count = scale_count(axis, s.rows, s.cols);
        Floats scale(dtype, count), shift(dtype, count);
        minmax_scale(base.matrix(s), qtype, axis, scale.data(), shift.data());
        const auto expected = extremes(base, axis, s);
        const double levels = (1 << qtype_info(qtype).bits) - 1;
        for (std::int64_t i = 0; i < count; ++i) {
          const Extremes& e = expected[static_cast<std::size_t>(i)];
          ASSERT_EQ(scale.at(i), step(dtype, step(dtype, e.high - e.low) / levels))
              << testing::describe(qtype, dtype, axis, s) << " at " << i;
          ASSERT_EQ(shift.at(i), -e.low) << testing::describe(qtype, dtype, axis, s) << " at " << i;
        }
      }
    });
  });
}

/// The bytes of all scales of one input.
std::vector<std::uint8_t> all_scales(const Floats& base, Axis axis, Shape s) {
  const std::int64_t count = scale_count(axis, s.rows, s.cols);
  std::vector<std::uint8_t> all;
  const auto append = [&all](const Floats& f) {
    for (const std::uint8_t byte : f.bytes()) all.push_back(byte);
  };
  for (const QType qtype : testing::kByteQTypes) {
    Floats scale(base.dtype(), count);
    absmax_scale(base.matrix(s), qtype, axis, scale.data());
    append(scale);
  }
  for (const QType qtype : testing::kBitQTypes) {
    Floats scale(base.dtype(), count), shift(base.dtype(), count);
    minmax_scale(base.matrix(s), qtype, axis, scale.data(), shift.data());
    append(scale);
    append(shift);
  }
  return all;
}

TEST(Scales, EveryIsaComputesTheBytesOfThePortableCode) {
  testing::for_each_case([](DType dtype, Axis axis, Shape s) {
    for (const bool finite : {true, false}) {
      Floats base(dtype, s.rows * s.cols);
      fill_patterns(base, finite, static_cast<unsigned>(s.cols));
      const auto portable = [&] {
        const testing::ScopedIsa scope("portable");
        return all_scales(base, axis, s);
      }();
      testing::for_each_isa(
          [&] { ASSERT_EQ(all_scales(base, axis, s), portable) << testing::describe(QType::qint8, dtype, axis, s); });
    }
  });
}

TEST(Scales, DoNotDependOnTheNumberOfThreads) {
  const int threads = thread_count();
  for (const Shape s : {Shape{700, 513}, Shape{3, 100'003}}) {
    for (const Axis axis : testing::kAxes) {
      Floats base(DType::bfloat16, s.rows * s.cols);
      fill_normal(base, s);
      set_thread_count(1);
      const auto expected = all_scales(base, axis, s);
      set_thread_count(3);
      EXPECT_EQ(all_scales(base, axis, s), expected);
    }
  }
  set_thread_count(threads);
}

float smallest_positive(DType dtype) {
  return dtype == DType::float16 ? 0x1p-24f : dtype == DType::bfloat16 ? 0x1p-133f : 0x1p-149f;
}

float scale_of(const Floats& row, QType qtype) {
  Floats scale(row.dtype(), 1);
  absmax_scale(row.matrix({1, row.count()}), qtype, Axis::first, scale.data());
  return scale.at(0);
}

struct ScaleShift {
  float scale, shift;
};

ScaleShift affine_of(const Floats& row, QType qtype) {
  Floats scale(row.dtype(), 1), shift(row.dtype(), 1);
  minmax_scale(row.matrix({1, row.count()}), qtype, Axis::first, scale.data(), shift.data());
  return {scale.at(0), shift.at(0)};
}

Floats row_of(DType dtype, std::initializer_list<float> values) {
  Floats row(dtype, static_cast<std::int64_t>(values.size()));
  std::int64_t i = 0;
  for (const float value : values) row.set(i++, value);
  return row;
}

class DegenerateScales : public ::testing::TestWithParam<DType> {
 protected:
  float max() const { return static_cast<float>(testing::format_of(GetParam()).max); }
  float tiny() const { return smallest_positive(GetParam()); }
};

TEST_P(DegenerateScales, ZerosHaveScaleZero) {
  for (const QType qtype : testing::kByteQTypes) EXPECT_EQ(scale_of(row_of(GetParam(), {0.0f, -0.0f}), qtype), 0.0f);
  for (const QType qtype : testing::kBitQTypes)
    EXPECT_EQ(affine_of(row_of(GetParam(), {0.0f, -0.0f}), qtype).scale, 0.0f);
}

TEST_P(DegenerateScales, TinyRangesKeepAPositiveScale) {
  for (const QType qtype : testing::kByteQTypes) {
    EXPECT_EQ(scale_of(row_of(GetParam(), {0.0f, -tiny()}), qtype), tiny());
  }
  for (const QType qtype : testing::kBitQTypes) {
    const ScaleShift found = affine_of(row_of(GetParam(), {tiny(), 2 * tiny()}), qtype);
    EXPECT_EQ(found.scale, tiny());
    EXPECT_EQ(found.shift, -tiny());
  }
}

TEST_P(DegenerateScales, ConstantRowsHaveScaleZeroAndTheirValueAsShift) {
  for (const float value : {3.0f, -0.5f}) {
    const ScaleShift found = affine_of(row_of(GetParam(), {value, value, value}), QType::qint4);
    EXPECT_EQ(found.scale, 0.0f);
    EXPECT_EQ(found.shift, -value);
  }
}

TEST_P(DegenerateScales, TheWidestRangeHasAFiniteScale) {
  for (const QType qtype : testing::kBitQTypes) {
    const ScaleShift found = affine_of(row_of(GetParam(), {max(), 0.0f, -max()}), qtype);
    const double levels = (1 << qtype_info(qtype).bits) - 1;
    EXPECT_EQ(found.scale, step(GetParam(), 2.0 * max() / levels));
    EXPECT_EQ(found.shift, max());
  }
}

TEST_P(DegenerateScales, NaNAndInfinityAreNotHidden) {
  for (const float odd : {kNaN, -kNaN}) {
    Floats row(GetParam(), 70);
    fill_normal(row, {1, 70});
    row.set(69, odd);
    EXPECT_TRUE(std::isnan(scale_of(row, QType::qint8)));
    EXPECT_TRUE(std::isnan(affine_of(row, QType::qint4).scale));
    EXPECT_FALSE(all_finite(row.matrix({1, 70})));
  }
  for (const float odd : {kInfinity, -kInfinity}) {
    const Floats row = row_of(GetParam(), {1.0f, odd});
    EXPECT_EQ(scale_of(row, QType::qint8), kInfinity);
    EXPECT_EQ(affine_of(row, QType::qint4).scale, kInfinity);
    EXPECT_FALSE(all_finite(row.matrix({2, 1})));
  }
  EXPECT_TRUE(all_finite(row_of(GetParam(), {max(), -max(), tiny()}).matrix({1, 3})));
}

INSTANTIATE_TEST_SUITE_P(DTypes, DegenerateScales, ::testing::ValuesIn(testing::kDTypes),
                         [](const auto& param) { return std::string(dtype_name(param.param)); });

TEST(AllFinite, FindsOneBadElementAnywhere) {
  testing::for_each_isa([] {
    const Shape s{97, 1031};
    Floats base(DType::float32, s.rows * s.cols);
    fill_normal(base, s);
    ASSERT_TRUE(all_finite(base.matrix(s)));
    for (std::int64_t i = 0; i < base.count(); i += 9973) {
      const float before = base.at(i);
      base.set(i, i % 2 == 0 ? kNaN : -kInfinity);
      ASSERT_FALSE(all_finite(base.matrix(s))) << i;
      base.set(i, before);
    }
  });
  EXPECT_TRUE(all_finite({nullptr, DType::float32, 0, 7}));
}

TEST(ScaleErrors, NameTheFunctionAndTheValue) {
  float value = 1;
  try {
    minmax_scale({&value, DType::float32, 1, 1}, QType::qint8, Axis::first, &value, &value);
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[minmax_scale] qtype: got qint8, expected qint4 or qint2");
  }
  EXPECT_THROW(absmax_scale({&value, DType::float32, -1, 1}, QType::qint8, Axis::first, &value), Error);
  EXPECT_THROW(absmax_scale({&value, DType::float32, 1, -1}, QType::qint8, Axis::tensor, &value), Error);
  EXPECT_THROW(minmax_scale({&value, DType::float32, 2, 0}, QType::qint4, Axis::first, &value, &value), Error);
  EXPECT_THROW(all_finite({&value, DType::float32, INT64_MAX, 2}), Error);
}

}  // namespace
}  // namespace quanto
