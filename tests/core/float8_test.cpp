// float8: every code, every half-float input, every tie.
#include "quanto/float8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "codec-inl.h"
#include "quanto/error.h"
#include "quanto/qtype.h"
#include "reference.h"

namespace quanto {
namespace {

using testing::float8_value;
using testing::nearest_float8;

class Float8 : public ::testing::TestWithParam<QType> {
 protected:
  double max() const { return qtype_info(GetParam()).qmax; }

  /// What a value becomes, by search; past the range, from half a step beyond the largest number on, it overflows.
  std::uint8_t expected(float value) const {
    const double step = max() - float8_value(GetParam(), largest_code() - 1);
    const double magnitude = std::fabs(static_cast<double>(value));
    const bool tie_stays = largest_code() % 2 == 0;
    const double limit = max() + step / 2;
    const bool overflows = tie_stays ? magnitude > limit : magnitude >= limit;
    if (!overflows) return nearest_float8(GetParam(), std::fmin(magnitude, max()) * (std::signbit(value) ? -1 : 1));
    return overflow_code(std::signbit(value));
  }

  std::uint8_t overflow_code(bool negative) const {
    if (GetParam() == QType::qfloat8_e4m3fnuz) return 0x80;
    const int magnitude = GetParam() == QType::qfloat8_e5m2 ? 0x7c : 0x7f;
    return static_cast<std::uint8_t>(magnitude | (negative ? 0x80 : 0));
  }

  std::uint32_t largest_code() const {
    std::uint32_t code = 0;
    while (float8_value(GetParam(), code) != max()) ++code;
    return code;
  }

  void expect_encodes(float value) const {
    const std::uint8_t code = float8_encode(GetParam(), value);
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(float8_value(GetParam(), code)));
    } else {
      ASSERT_EQ(int{code}, int{expected(value)}) << std::hexfloat << value;
    }
  }
};

TEST_P(Float8, EveryCodeDecodesToItsDefinition) {
  for (std::uint32_t code = 0; code < 256; ++code) {
    const float value = float8_decode(GetParam(), static_cast<std::uint8_t>(code));
    const double expected_value = float8_value(GetParam(), code);
    if (std::isnan(expected_value)) {
      EXPECT_TRUE(std::isnan(value)) << code;
    } else {
      EXPECT_EQ(bits_from_float(value), bits_from_float(static_cast<float>(expected_value))) << code;
    }
    EXPECT_EQ(bits_from_float(float8_table(GetParam())[code]), bits_from_float(value)) << code;
  }
}

TEST_P(Float8, EveryNumberEncodesToItsCode) {
  for (std::uint32_t code = 0; code < 256; ++code) {
    const float value = float8_decode(GetParam(), static_cast<std::uint8_t>(code));
    if (!std::isnan(value)) {
      EXPECT_EQ(float8_encode(GetParam(), value), code);
    }
  }
}

TEST_P(Float8, EveryHalfFloatEncodesToTheNearestCode) {
  for (std::uint32_t half = 0; half < 0x10000; ++half) {
    expect_encodes(float16_to_float(static_cast<std::uint16_t>(half)));
    expect_encodes(bfloat16_to_float(static_cast<std::uint16_t>(half)));
  }
}

TEST_P(Float8, TiesGoToTheEvenCodeAndTheirNeighboursToTheNearest) {
  for (std::uint32_t code = 0; code <= largest_code(); ++code) {
    const double low = float8_value(GetParam(), code);
    const double below = code == 0 ? -float8_value(GetParam(), 1) : float8_value(GetParam(), code - 1);
    const double next = code == largest_code() ? low + (low - below) : float8_value(GetParam(), code + 1);
    const float tie = static_cast<float>((low + next) / 2);
    for (const float value : {tie, std::nextafter(tie, 0.0f), std::nextafter(tie, HUGE_VALF)}) {
      expect_encodes(value);
      expect_encodes(-value);
    }
  }
}

TEST_P(Float8, TinyAndHugeFloatsKeepToTheRange) {
  for (const float value : {0.0f, 0x1p-149f, 0x1p-126f, 0x1p-30f, 0x1p127f, 3.4e38f, HUGE_VALF}) {
    expect_encodes(value);
    expect_encodes(-value);
  }
}

INSTANTIATE_TEST_SUITE_P(QTypes, Float8,
                         ::testing::Values(QType::qfloat8_e4m3fn, QType::qfloat8_e4m3fnuz, QType::qfloat8_e5m2),
                         [](const auto& param) { return std::string(qtype_info(param.param).name); });

TEST(Float8Errors, OtherQTypesAreRefusedByName) {
  try {
    float8_decode(QType::qint8, 0);
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[float8_decode] qtype: got qint8, expected a float8 qtype");
  }
  EXPECT_THROW(float8_encode(QType::qint4, 0.0f), Error);
  EXPECT_THROW(float8_table(QType::qint2), Error);
}

}  // namespace
}  // namespace quanto
