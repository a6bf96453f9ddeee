#include "quanto/fake_quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "each_isa.h"
#include "matrix.h"
#include "quanto/error.h"
#include "quanto/parallel.h"

namespace quanto {
namespace {

using testing::Floats;
using testing::Shape;
using Bytes = std::vector<std::uint8_t>;

/// The bytes of an array in which every NaN is the same one.
Bytes canonical(const Floats& values) {
  Floats out(values.dtype(), values.count());
  std::memcpy(out.data(), values.data(), values.bytes().size());
  for (std::int64_t i = 0; i < out.count(); ++i) {
    if (std::isnan(out.at(i))) out.set(i, std::numeric_limits<float>::quiet_NaN());
  }
  return out.bytes();
}

struct ScaleShift {
  Floats scale, shift;
};

ScaleShift searched(const Floats& base, QType qtype, Axis axis, Shape s) {
  const std::int64_t count = scale_count(axis, s.rows, s.cols);
  ScaleShift found{Floats(base.dtype(), count), Floats(base.dtype(), count)};
  if (is_affine(qtype)) {
    minmax_scale(base.matrix(s), qtype, axis, found.scale.data(), found.shift.data());
  } else {
    absmax_scale(base.matrix(s), qtype, axis, found.scale.data());
  }
  return found;
}

Bytes there_and_back(const Floats& base, QType qtype, Axis axis, Shape s, const ScaleShift& with) {
  Bytes codes(static_cast<std::size_t>(s.rows * s.cols));
  Floats out(base.dtype(), s.rows * s.cols);
  if (is_affine(qtype)) {
    const ConstShift shift{with.shift.data(), ShiftKind::floating};
    quantize_affine(base.matrix(s), qtype, axis, with.scale.data(), shift, codes.data());
    dequantize_affine(codes.data(), qtype, s.rows, s.cols, axis, with.scale.data(), shift, base.dtype(), out.data());
  } else {
    quantize_symmetric(base.matrix(s), qtype, axis, with.scale.data(), codes.data());
    dequantize_symmetric(codes.data(), qtype, s.rows, s.cols, axis, with.scale.data(), base.dtype(), out.data());
  }
  return canonical(out);
}

Bytes fake_with_search(const Floats& base, QType qtype, Axis axis, Shape s) {
  Floats out(base.dtype(), s.rows * s.cols);
  if (is_affine(qtype)) {
    fake_quantize_minmax(base.matrix(s), qtype, axis, out.data());
  } else {
    fake_quantize_symmetric(base.matrix(s), qtype, axis, nullptr, out.data());
  }
  return canonical(out);
}

Bytes fake_with(const Floats& base, QType qtype, Axis axis, Shape s, const ScaleShift& with) {
  Floats out(base.dtype(), s.rows * s.cols);
  if (is_affine(qtype)) {
    fake_quantize_affine(base.matrix(s), qtype, axis, with.scale.data(), {with.shift.data(), ShiftKind::floating},
                         out.data());
  } else {
    fake_quantize_symmetric(base.matrix(s), qtype, axis, with.scale.data(), out.data());
  }
  return canonical(out);
}

/// What the search and the codes give, bit for bit.
void check(const Floats& base, QType qtype, Axis axis, Shape s) {
  SCOPED_TRACE(testing::describe(qtype, base.dtype(), axis, s));
  const ScaleShift found = searched(base, qtype, axis, s);
  const Bytes expected = there_and_back(base, qtype, axis, s, found);
  ASSERT_EQ(fake_with_search(base, qtype, axis, s), expected);
  ASSERT_EQ(fake_with(base, qtype, axis, s, found), expected);
}

template <class Fill>
void check_all_cases(Fill fill) {
  testing::for_each_isa([&] {
    testing::for_each_case([&](DType dtype, Axis axis, Shape s) {
      Floats base(dtype, s.rows * s.cols);
      fill(base, s);
      for (const QTypeInfo& info : qtypes()) check(base, info.qtype, axis, s);
    });
  });
}

TEST(FakeQuantize, IsQuantizationThereAndBack) {
  check_all_cases([](Floats& base, Shape s) { fill_normal(base, s); });
}

TEST(FakeQuantize, AlsoOfHugeTinyAndSubnormalNumbers) {
  check_all_cases([](Floats& base, Shape) { fill_patterns(base, true); });
}

TEST(FakeQuantize, AlsoOfInfinityAndNaN) {
  check_all_cases([](Floats& base, Shape) { fill_patterns(base, false); });
}

TEST(FakeQuantize, GivenScalesNeedNotFit) {
  testing::for_each_isa([] {
    testing::for_each_case([](DType dtype, Axis axis, Shape s) {
      const std::int64_t count = scale_count(axis, s.rows, s.cols);
      Floats base(dtype, s.rows * s.cols);
      ScaleShift with{Floats(dtype, count), Floats(dtype, count)};
      fill_patterns(base, false, 1);
      fill_patterns(with.scale, false, 2);
      fill_patterns(with.shift, false, 3);
      for (const QTypeInfo& info : qtypes()) {
        SCOPED_TRACE(testing::describe(info.qtype, dtype, axis, s));
        ASSERT_EQ(fake_with(base, info.qtype, axis, s, with), there_and_back(base, info.qtype, axis, s, with));
      }
    });
  });
}

// A reciprocal takes the place of the division: every number up to the largest of a row, for several such largest ones.
TEST(FakeQuantize, EveryBFloat16) {
  testing::for_each_isa([] {
    for (const float largest : {1.0f, 1.0078125f, 1.3671875f, 1.9921875f, 0x1.fep+90f, 0x1.26p-90f, 0x1.4ap-110f}) {
      std::vector<float> numbers;
      for (std::uint32_t code = 0; code < 0x10000; ++code) {
        const float value = bfloat16_to_float(static_cast<std::uint16_t>(code));
        if (std::abs(value) <= largest) numbers.push_back(value);
      }
      Floats base(DType::bfloat16, static_cast<std::int64_t>(numbers.size()));
      for (std::int64_t i = 0; i < base.count(); ++i) base.set(i, numbers[static_cast<std::size_t>(i)]);
      for (const QTypeInfo& info : qtypes()) check(base, info.qtype, Axis::first, {1, base.count()});
    }
  });
}

/// `steps` floats above or below a number.
float neighbour(float value, int steps) {
  const float towards = steps < 0 ? -std::numeric_limits<float>::infinity() : std::numeric_limits<float>::infinity();
  for (int i = 0; i < std::abs(steps); ++i) value = std::nextafterf(value, towards);
  return value;
}

/// float32 rows of the boundaries between codes and of the numbers around them, whose quotients round either way.
Floats boundaries(QType qtype, float largest) {
  std::vector<float> numbers = {largest, -largest};
  const auto add = [&](double boundary) {
    for (int steps = -4; steps <= 4; ++steps) {
      const float value = neighbour(static_cast<float>(boundary), steps);
      if (std::abs(value) <= largest) numbers.push_back(value);
    }
  };
  if (is_affine(qtype)) {
    const int levels = (1 << qtype_info(qtype).bits) - 1;
    const double scale = static_cast<double>(largest * 2 / static_cast<float>(levels));
    for (int code = 0; code < levels; ++code) add((code + 0.5) * scale - largest);
  } else {
    const double scale = static_cast<double>(largest / static_cast<float>(qtype_info(qtype).qmax));
    // Integers and a half, and numbers of four and five mantissa bits: the boundaries of all 8-bit types.
    for (int code = -128; code < 128; ++code) add((code + 0.5) * scale);
    for (int exponent = -17; exponent < 16; ++exponent) {
      for (int mantissa = 16; mantissa < 32; ++mantissa) add(std::ldexp(mantissa, exponent) * scale);
    }
  }
  Floats base(DType::float32, static_cast<std::int64_t>(numbers.size()));
  for (std::int64_t i = 0; i < base.count(); ++i) base.set(i, numbers[static_cast<std::size_t>(i)]);
  return base;
}

TEST(FakeQuantize, TheBoundariesBetweenCodesInFloat32) {
  testing::for_each_isa([] {
    for (const QTypeInfo& info : qtypes()) {
      for (int i = 0; i < 40; ++i) {
        const Floats base = boundaries(info.qtype, 0.3f + 0.0317f * static_cast<float>(i));
        check(base, info.qtype, Axis::first, {1, base.count()});
      }
    }
  });
}

TEST(FakeQuantize, BlocksAndThreadsDoNotShow) {
  const int threads = thread_count();
  for (const int count : {1, 3}) {
    set_thread_count(count);
    for (const Shape s : {Shape{700, 513}, Shape{2, 50'003}, Shape{3000, 32}}) {
      for (const Axis axis : testing::kAxes) {
        Floats base(DType::bfloat16, s.rows * s.cols);
        fill_normal(base, s);
        for (const QType qtype : {QType::qint8, QType::qint4}) check(base, qtype, axis, s);
      }
    }
  }
  set_thread_count(threads);
}

TEST(FakeQuantize, RefusesTheWrongKindOfQType) {
  Floats base(DType::float32, 4), out(DType::float32, 4);
  EXPECT_THROW(fake_quantize_symmetric(base.matrix({2, 2}), QType::qint4, Axis::first, nullptr, out.data()), Error);
  EXPECT_THROW(fake_quantize_minmax(base.matrix({2, 2}), QType::qint8, Axis::first, out.data()), Error);
  EXPECT_THROW(fake_quantize_affine(base.matrix({2, 2}), QType::qint4, Axis::first, base.data(),
                                    {nullptr, ShiftKind::none}, out.data()),
               Error);
}

}  // namespace
}  // namespace quanto
