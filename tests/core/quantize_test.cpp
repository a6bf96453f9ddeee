#include "quanto/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "each_isa.h"
#include "matrix.h"
#include "quanto/error.h"
#include "quanto/float8.h"
#include "quanto/pack.h"
#include "quanto/parallel.h"
#include "reference.h"

namespace quanto {
namespace {

using testing::Floats;
using testing::GuardedBytes;
using testing::Shape;
using testing::step;
using Bytes = std::vector<std::uint8_t>;

constexpr ShiftKind kShiftKinds[] = {ShiftKind::floating, ShiftKind::integer};

std::size_t size_of(Shape s) { return static_cast<std::size_t>(s.rows * s.cols); }

Bytes bytes_of(const GuardedBytes& g) { return {g.data(), g.data() + g.size()}; }

/// Scales and shifts for a matrix. Integer shifts are any zero points.
struct Affine {
  Affine(const Floats& base, QType qtype, Axis axis, Shape s, ShiftKind shift_kind)
      : kind(shift_kind),
        scale(base.dtype(), scale_count(axis, s.rows, s.cols)),
        floating(base.dtype(), scale.count()),
        integer(static_cast<std::size_t>(scale.count())) {
    minmax_scale(base.matrix(s), qtype, axis, scale.data(), floating.data());
    for (std::size_t i = 0; i < integer.size(); ++i) {
      integer.data()[i] = static_cast<std::uint8_t>(i * 5 % (1u << qtype_info(qtype).bits));
    }
  }

  ConstShift shift() const { return {kind == ShiftKind::integer ? integer.data() : floating.data(), kind}; }
  double shift_at(std::int64_t i) const { return kind == ShiftKind::integer ? integer.data()[i] : floating.at(i); }

  ShiftKind kind;
  Floats scale, floating;
  GuardedBytes integer;
};

Bytes symmetric_codes(const Floats& base, QType qtype, Axis axis, Shape s, const Floats& scale) {
  GuardedBytes codes(size_of(s));
  quantize_symmetric(base.matrix(s), qtype, axis, scale.data(), codes.data());
  return bytes_of(codes);
}

Bytes affine_codes(const Floats& base, QType qtype, Axis axis, Shape s, const Affine& a) {
  GuardedBytes codes(size_of(s));
  quantize_affine(base.matrix(s), qtype, axis, a.scale.data(), a.shift(), codes.data());
  return bytes_of(codes);
}

Bytes packed_codes(const Floats& base, QType qtype, Axis axis, Shape s, const Affine& a) {
  GuardedBytes packed(static_cast<std::size_t>(packed_rows(s.rows, qtype_info(qtype).bits) * s.cols));
  quantize_affine_packed(base.matrix(s), qtype, axis, a.scale.data(), a.shift(), packed.data());
  return bytes_of(packed);
}

Floats symmetric_values(const Bytes& codes, QType qtype, Axis axis, Shape s, const Floats& scale) {
  Floats out(scale.dtype(), s.rows * s.cols);
  dequantize_symmetric(codes.data(), qtype, s.rows, s.cols, axis, scale.data(), scale.dtype(), out.data());
  return out;
}

Floats affine_values(const Bytes& codes, QType qtype, Axis axis, Shape s, const Affine& a) {
  Floats out(a.scale.dtype(), s.rows * s.cols);
  dequantize_affine(codes.data(), qtype, s.rows, s.cols, axis, a.scale.data(), a.shift(), a.scale.dtype(), out.data());
  return out;
}

Floats unpacked_values(const Bytes& packed, QType qtype, Axis axis, Shape s, const Affine& a) {
  Floats out(a.scale.dtype(), s.rows * s.cols);
  dequantize_affine_packed(packed.data(), qtype, s.rows, s.cols, axis, a.scale.data(), a.shift(), a.scale.dtype(),
                           out.data());
  return out;
}

void check_symmetric_against_the_formula(DType dtype, Axis axis, Shape s, QType qtype) {
  SCOPED_TRACE(testing::describe(qtype, dtype, axis, s));
  Floats base(dtype, s.rows * s.cols), scale(dtype, scale_count(axis, s.rows, s.cols));
  fill_normal(base, s);
  absmax_scale(base.matrix(s), qtype, axis, scale.data());
  const Bytes codes = symmetric_codes(base, qtype, axis, s, scale);
  const Floats values = symmetric_values(codes, qtype, axis, s, scale);
  for (std::int64_t i = 0; i < base.count(); ++i) {
    const double used = scale.at(testing::scale_index(axis, i / s.cols, i % s.cols));
    const std::uint8_t code = codes[static_cast<std::size_t>(i)];
    ASSERT_EQ(int{code}, int{testing::symmetric_code(dtype, qtype, base.at(i), used)}) << "at " << i;
    const double number = qtype == QType::qint8 ? static_cast<std::int8_t>(code) : testing::float8_value(qtype, code);
    ASSERT_EQ(values.at(i), step(dtype, used * number)) << "at " << i;
  }
}

void check_affine_against_the_formula(DType dtype, Axis axis, Shape s, QType qtype, ShiftKind kind) {
  SCOPED_TRACE(testing::describe(qtype, dtype, axis, s) + (kind == ShiftKind::integer ? " integer" : " floating"));
  Floats base(dtype, s.rows * s.cols);
  fill_normal(base, s);
  const Affine a(base, qtype, axis, s, kind);
  const Bytes codes = affine_codes(base, qtype, axis, s, a);
  const Floats values = affine_values(codes, qtype, axis, s, a);
  for (std::int64_t i = 0; i < base.count(); ++i) {
    const std::int64_t at = testing::scale_index(axis, i / s.cols, i % s.cols);
    const std::uint8_t code = codes[static_cast<std::size_t>(i)];
    if (a.scale.at(at) != 0.0f) {
      ASSERT_EQ(int{code}, int{testing::affine_code(dtype, qtype, kind, base.at(i), a.scale.at(at), a.shift_at(at))})
          << "at " << i;
    }
    ASSERT_EQ(values.at(i), testing::affine_value(dtype, kind, code, a.scale.at(at), a.shift_at(at))) << "at " << i;
  }
}

TEST(Quantize, EightBitCodesAndValuesFollowTheFormula) {
  testing::for_each_isa([] {
    testing::for_each_case([](DType dtype, Axis axis, Shape s) {
      for (const QType qtype : testing::kByteQTypes) check_symmetric_against_the_formula(dtype, axis, s, qtype);
    });
  });
}

/// Products with the reciprocal of a scale fall on the same side of every rounding boundary as quotients do: all
/// significands of both, from less than half a code to beyond the largest one.
TEST(Quantize, EveryQuotientOfTwoBFloat16SignificandsIsRoundedRight) {
  constexpr std::int64_t kSignificands = 128, kExponents = 12;
  constexpr int kFirstExponent = -3;
  constexpr Shape kShape = {1, 2 * kExponents * kSignificands};
  Floats base(DType::bfloat16, kShape.cols), scale(DType::bfloat16, 1);
  for (std::int64_t i = 0; i < kShape.cols; ++i) {
    const auto significand = 1.0f + static_cast<float>(i / 2 % kSignificands) / kSignificands;
    const float magnitude = std::ldexp(significand, kFirstExponent + static_cast<int>(i / 2 / kSignificands));
    base.set(i, i % 2 == 0 ? magnitude : -magnitude);
  }
  for (std::int64_t significand = 0; significand < kSignificands; ++significand) {
    scale.set(0, 1.0f + static_cast<float>(significand) / kSignificands);
    Bytes expected;
    for (std::int64_t i = 0; i < kShape.cols; ++i) {
      expected.push_back(testing::symmetric_code(DType::bfloat16, QType::qint8, base.at(i), scale.at(0)));
    }
    testing::for_each_isa(
        [&] { EXPECT_EQ(symmetric_codes(base, QType::qint8, Axis::tensor, kShape, scale), expected); });
  }
}

TEST(Quantize, AffineCodesAndValuesFollowTheFormula) {
  testing::for_each_isa([] {
    testing::for_each_case([](DType dtype, Axis axis, Shape s) {
      for (const QType qtype : testing::kBitQTypes) {
        for (const ShiftKind kind : kShiftKinds) check_affine_against_the_formula(dtype, axis, s, qtype, kind);
      }
    });
  });
}

TEST(Quantize, PerTokenIsTheScaleAndTheCodesOfEachRow) {
  testing::for_each_isa([] {
    for (const DType dtype : testing::kDTypes) {
      for (const QType qtype : testing::kByteQTypes) {
        for (const Shape s : testing::kShapes) {
          constexpr std::int64_t kGap = 3;  // elements between rows that belong to none
          SCOPED_TRACE(testing::describe(qtype, dtype, Axis::first, s));
          Floats wide(dtype, s.rows * (s.cols + kGap)), base(dtype, s.rows * s.cols);
          fill_normal(wide, {s.rows, s.cols + kGap});
          for (std::int64_t i = 0; i < base.count(); ++i)
            base.set(i, wide.at(i / s.cols * (s.cols + kGap) + i % s.cols));
          Floats scale(dtype, s.rows), expected(dtype, s.rows);
          absmax_scale(base.matrix(s), qtype, Axis::first, expected.data());
          GuardedBytes codes(size_of(s));
          quantize_per_token({wide.data(), dtype, s.rows, s.cols, s.cols + kGap}, qtype, scale.data(), codes.data());
          EXPECT_EQ(scale.bytes(), expected.bytes());
          EXPECT_EQ(bytes_of(codes), symmetric_codes(base, qtype, Axis::first, s, expected));
        }
      }
    }
  });
}

TEST(Quantize, PackedIsTheSameAsPackingTheCodes) {
  testing::for_each_isa([] {
    testing::for_each_case([](DType dtype, Axis axis, Shape s) {
      for (const QType qtype : testing::kBitQTypes) {
        for (const ShiftKind kind : kShiftKinds) {
          SCOPED_TRACE(testing::describe(qtype, dtype, axis, s));
          Floats base(dtype, s.rows * s.cols);
          fill_normal(base, s);
          const Affine a(base, qtype, axis, s, kind);
          const Bytes codes = affine_codes(base, qtype, axis, s, a);
          const Bytes packed = packed_codes(base, qtype, axis, s, a);
          Bytes expected(packed.size());
          pack(codes.data(), s.rows, s.cols, qtype_info(qtype).bits, expected.data());
          ASSERT_EQ(packed, expected);
          ASSERT_EQ(unpacked_values(packed, qtype, axis, s, a).bytes(),
                    affine_values(codes, qtype, axis, s, a).bytes());
        }
      }
    });
  });
}

/// Every function on arbitrary bit patterns, codes and scales; the bytes of all results. NaN values count as equal.
Bytes everything(const Floats& base, Axis axis, Shape s, const Floats& scale, const Floats& shift) {
  Bytes all;
  const auto append = [&all](const Bytes& bytes) { all.insert(all.end(), bytes.begin(), bytes.end()); };
  const auto append_values = [&](const Floats& values) {
    Floats canonical(values.dtype(), values.count());
    for (std::int64_t i = 0; i < values.count(); ++i) {
      canonical.set(i, std::isnan(values.at(i)) ? std::numeric_limits<float>::quiet_NaN() : values.at(i));
    }
    append(canonical.bytes());
  };
  Bytes any_codes(size_of(s));
  for (std::size_t i = 0; i < any_codes.size(); ++i) any_codes[i] = static_cast<std::uint8_t>(i * 37);
  for (const QType qtype : testing::kByteQTypes) {
    append(symmetric_codes(base, qtype, axis, s, scale));
    append_values(symmetric_values(any_codes, qtype, axis, s, scale));
  }
  for (const QType qtype : testing::kBitQTypes) {
    for (const ShiftKind kind : kShiftKinds) {
      Affine a(base, qtype, axis, s, kind);
      for (std::int64_t i = 0; i < scale.count(); ++i) a.scale.set(i, scale.at(i)), a.floating.set(i, shift.at(i));
      append(affine_codes(base, qtype, axis, s, a));
      append(packed_codes(base, qtype, axis, s, a));
      append_values(affine_values(any_codes, qtype, axis, s, a));
      append_values(unpacked_values(any_codes, qtype, axis, s, a));
    }
  }
  return all;
}

TEST(Quantize, EveryIsaComputesTheBytesOfThePortableCode) {
  testing::for_each_case([](DType dtype, Axis axis, Shape s) {
    for (const bool finite : {true, false}) {
      Floats base(dtype, s.rows * s.cols), scale(dtype, scale_count(axis, s.rows, s.cols)), shift(dtype, scale.count());
      fill_patterns(base, finite, 1);
      fill_patterns(scale, finite, 2);
      fill_patterns(shift, finite, 3);
      const Bytes portable = [&] {
        const testing::ScopedIsa scope("portable");
        return everything(base, axis, s, scale, shift);
      }();
      testing::for_each_isa([&] {
        ASSERT_EQ(everything(base, axis, s, scale, shift), portable)
            << testing::describe(QType::qint8, dtype, axis, s) << (finite ? " finite" : " any");
      });
    }
  });
}

/// Quantizes and dequantizes with every operand `gap` bytes before a guard page.
Bytes there_and_back(QType qtype, DType dtype, Axis axis, Shape s, std::size_t gap) {
  Floats base(dtype, s.rows * s.cols, gap), out(dtype, s.rows * s.cols, gap);
  Floats scale(dtype, scale_count(axis, s.rows, s.cols), gap), shift(dtype, scale.count(), gap);
  const bool affine = is_affine(qtype);
  const std::int64_t code_rows = affine ? packed_rows(s.rows, qtype_info(qtype).bits) : s.rows;
  GuardedBytes codes(static_cast<std::size_t>(code_rows * s.cols), gap);
  const ConstShift floating{shift.data(), ShiftKind::floating};
  fill_normal(base, s);
  if (affine) {
    minmax_scale(base.matrix(s), qtype, axis, scale.data(), shift.data());
    quantize_affine_packed(base.matrix(s), qtype, axis, scale.data(), floating, codes.data());
    dequantize_affine_packed(codes.data(), qtype, s.rows, s.cols, axis, scale.data(), floating, dtype, out.data());
  } else {
    absmax_scale(base.matrix(s), qtype, axis, scale.data());
    quantize_symmetric(base.matrix(s), qtype, axis, scale.data(), codes.data());
    dequantize_symmetric(codes.data(), qtype, s.rows, s.cols, axis, scale.data(), dtype, out.data());
  }
  Bytes all = bytes_of(codes);
  for (const Floats* floats : {&scale, &shift, &out}) {
    const Bytes bytes = floats->bytes();
    all.insert(all.end(), bytes.begin(), bytes.end());
  }
  return all;
}

TEST(Quantize, ResultsDoNotDependOnWhereOperandsLie) {
  testing::for_each_isa([] {
    for (const DType dtype : testing::kDTypes) {
      for (const Axis axis : testing::kAxes) {
        for (const QTypeInfo& info : qtypes()) {
          const Shape s{6, 77};
          const Bytes aligned = there_and_back(info.qtype, dtype, axis, s, 0);
          for (const std::size_t gap : {1, 2, 3}) {
            EXPECT_EQ(there_and_back(info.qtype, dtype, axis, s, gap), aligned)
                << testing::describe(info.qtype, dtype, axis, s) << " moved by " << gap;
          }
        }
      }
    }
  });
}

TEST(Quantize, ResultsDoNotDependOnTheNumberOfThreads) {
  const int threads = thread_count();
  for (const Shape s : {Shape{700, 513}, Shape{2, 100'003}}) {
    for (const Axis axis : testing::kAxes) {
      Floats base(DType::float16, s.rows * s.cols), scale(DType::float16, scale_count(axis, s.rows, s.cols));
      Floats shift(DType::float16, scale.count());
      fill_normal(base, s);
      minmax_scale(base.matrix(s), QType::qint4, axis, scale.data(), shift.data());
      set_thread_count(1);
      const Bytes expected = everything(base, axis, s, scale, shift);
      set_thread_count(3);
      EXPECT_EQ(everything(base, axis, s, scale, shift), expected);
    }
  }
  set_thread_count(threads);
}

class DegenerateValues : public ::testing::TestWithParam<DType> {
 protected:
  float max() const { return static_cast<float>(testing::format_of(GetParam()).max); }
  float tiny() const {
    const testing::Format f = testing::format_of(GetParam());
    return static_cast<float>(std::ldexp(1.0, f.min_exponent - f.precision + 1));
  }

  Floats row_of(std::initializer_list<float> values) const {
    Floats row(GetParam(), static_cast<std::int64_t>(values.size()));
    std::int64_t i = 0;
    for (const float value : values) row.set(i++, value);
    return row;
  }

  /// The row as `qtype` represents it, with the scale that the search finds.
  static Floats round_trip(const Floats& row, QType qtype) {
    const Shape s{1, row.count()};
    if (is_affine(qtype)) {
      const Affine a(row, qtype, Axis::first, s, ShiftKind::floating);
      return affine_values(affine_codes(row, qtype, Axis::first, s, a), qtype, Axis::first, s, a);
    }
    Floats scale(row.dtype(), 1);
    absmax_scale(row.matrix(s), qtype, Axis::first, scale.data());
    return symmetric_values(symmetric_codes(row, qtype, Axis::first, s, scale), qtype, Axis::first, s, scale);
  }

  template <class Check>
  static void for_each_qtype(const Floats& row, Check check) {
    testing::for_each_isa([&] {
      for (const QTypeInfo& info : qtypes()) {
        SCOPED_TRACE(std::string(info.name));
        check(round_trip(row, info.qtype));
      }
    });
  }
};

TEST_P(DegenerateValues, ZerosStayZero) {
  for_each_qtype(row_of({0.0f, -0.0f, 0.0f}), [](const Floats& values) {
    for (std::int64_t i = 0; i < values.count(); ++i) EXPECT_EQ(values.at(i), 0.0f);
  });
}

TEST_P(DegenerateValues, AScaleOfZeroGivesTheCodeOfZero) {
  testing::for_each_isa([&] {
    const Floats row = row_of({1.0f, -2.0f, max()});
    const Floats zero = row_of({0.0f});
    for (const QType qtype : testing::kByteQTypes) {
      EXPECT_EQ(symmetric_codes(row, qtype, Axis::first, {1, 3}, zero), Bytes(3, 0));
    }
    Affine a(row, QType::qint4, Axis::first, {1, 3}, ShiftKind::integer);
    a.scale.set(0, 0.0f);
    a.integer.data()[0] = 9;
    EXPECT_EQ(affine_codes(row, QType::qint4, Axis::first, {1, 3}, a), Bytes(3, 9));
    Affine f(row, QType::qint4, Axis::first, {1, 3}, ShiftKind::floating);
    f.scale.set(0, 0.0f);
    EXPECT_EQ(affine_codes(row, QType::qint4, Axis::first, {1, 3}, f), Bytes(3, 0));
  });
}

TEST_P(DegenerateValues, ConstantRowsOfAffineTypesAreExact) {
  testing::for_each_isa([&] {
    for (const float value : {2.5f, -0.375f, tiny(), max(), -max()}) {
      const Floats row = row_of({value, value});
      for (const QType qtype : testing::kBitQTypes) {
        EXPECT_EQ(round_trip(row, qtype).bytes(), row.bytes()) << value;
      }
    }
  });
}

TEST_P(DegenerateValues, TheSmallestNumbersAreRepresentedAsWellAsTheFormatCan) {
  for_each_qtype(row_of({0.0f, tiny(), 2 * tiny(), 3 * tiny()}), [this](const Floats& values) {
    for (std::int64_t i = 0; i < values.count(); ++i) {
      EXPECT_EQ(values.at(i), static_cast<float>(i) * tiny()) << i;
    }
  });
}

TEST_P(DegenerateValues, TheWidestRangeStaysFiniteAndCloseToItself) {
  const Floats row = row_of({max(), 0.5f * max(), 1.0f, -0.25f * max(), -max()});
  for_each_qtype(row, [&](const Floats& values) {
    for (std::int64_t i = 0; i < values.count(); ++i) {
      ASSERT_TRUE(std::isfinite(values.at(i))) << i;
      EXPECT_LE(std::fabs(double{values.at(i)} - double{row.at(i)}), 0.34 * max()) << i;  // half a step of qint2
    }
    EXPECT_GT(values.at(0), 0.98 * max());
    EXPECT_LT(values.at(4), -0.98 * max());
  });
}

TEST_P(DegenerateValues, AnyFinitePatternsGiveFiniteValues) {
  for (unsigned seed = 1; seed <= 50; ++seed) {
    Floats row(GetParam(), 67);
    fill_patterns(row, true, seed);
    for_each_qtype(row, [](const Floats& values) {
      for (std::int64_t i = 0; i < values.count(); ++i) ASSERT_TRUE(std::isfinite(values.at(i))) << i;
    });
  }
}

TEST_P(DegenerateValues, NaNIsACodeOfFloat8AndZeroOfQint8) {
  testing::for_each_isa([&] {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const Floats row = row_of({nan, 1.0f, -nan});
    const Floats one = row_of({1.0f});
    EXPECT_EQ(symmetric_codes(row, QType::qint8, Axis::first, {1, 3}, one), (Bytes{0, 1, 0}));
    for (const QType qtype : {QType::qfloat8_e4m3fn, QType::qfloat8_e4m3fnuz, QType::qfloat8_e5m2}) {
      const Bytes codes = symmetric_codes(row, qtype, Axis::first, {1, 3}, one);
      EXPECT_TRUE(std::isnan(float8_decode(qtype, codes[0])));
      EXPECT_EQ(float8_decode(qtype, codes[1]), 1.0f);
      EXPECT_TRUE(std::isnan(float8_decode(qtype, codes[2])));
    }
  });
}

TEST_P(DegenerateValues, ValuesBeyondTheRangeSaturate) {
  testing::for_each_isa([&] {
    const Floats row = row_of({max(), -max(), 1000.0f, -1000.0f});
    const Floats small = row_of({0.0078125f});
    EXPECT_EQ(symmetric_codes(row, QType::qint8, Axis::first, {1, 4}, small), (Bytes{127, 128, 127, 128}));
    for (const QType qtype : {QType::qfloat8_e4m3fn, QType::qfloat8_e4m3fnuz, QType::qfloat8_e5m2}) {
      const Bytes codes = symmetric_codes(row, qtype, Axis::first, {1, 4}, small);
      EXPECT_EQ(float8_decode(qtype, codes[0]), qtype_info(qtype).qmax);
      EXPECT_EQ(float8_decode(qtype, codes[1]), qtype_info(qtype).qmin);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(DTypes, DegenerateValues, ::testing::ValuesIn(testing::kDTypes),
                         [](const auto& param) { return std::string(dtype_name(param.param)); });

TEST(QuantizeErrors, NameTheFunctionAndTheValue) {
  float value = 1;
  std::uint8_t code = 0;
  const ConstMatrix one{&value, DType::float32, 1, 1};
  const ConstShift shift{&value, ShiftKind::floating};
  try {
    quantize_symmetric(one, QType::qint4, Axis::first, &value, &code);
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[quantize_symmetric] qtype: got qint4, expected an 8-bit qtype");
  }
  const ConstMatrix negative{&value, DType::float32, -1, 1};
  EXPECT_THROW(quantize_symmetric(negative, QType::qint8, Axis::first, &value, &code), Error);
  EXPECT_THROW(quantize_affine(one, QType::qint8, Axis::first, &value, shift, &code), Error);
  EXPECT_THROW(quantize_affine(one, QType::qint4, Axis::first, &value, {}, &code), Error);
  EXPECT_THROW(quantize_affine_packed(negative, QType::qint4, Axis::first, &value, shift, &code), Error);
  EXPECT_THROW(dequantize_symmetric(&code, QType::qint2, 1, 1, Axis::first, &value, DType::float32, &value), Error);
  EXPECT_THROW(dequantize_affine(&code, QType::qint4, 1, -1, Axis::first, &value, shift, DType::float32, &value),
               Error);
  EXPECT_THROW(
      dequantize_affine_packed(&code, QType::qfloat8_e5m2, 1, 1, Axis::first, &value, shift, DType::float32, &value),
      Error);
}

}  // namespace
}  // namespace quanto
