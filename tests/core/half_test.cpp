// float32 <-> bfloat16 and float16: every code, every tie between two codes and its neighbours.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>

#include "codec-inl.h"
#include "reference.h"

namespace quanto {
namespace {

using testing::format_of;
using testing::ieee_value;
using testing::round_to;

struct Codec {
  DType dtype;
  int exponent_bits, mantissa_bits;
  float (*decode)(std::uint16_t);
  std::uint16_t (*encode)(float);

  std::uint32_t infinity() const { return ((1u << exponent_bits) - 1) << mantissa_bits; }
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  bool is_nan(std::uint32_t code) const { return (code & 0x7fffu) > infinity(); }
};

const Codec kCodecs[] = {{DType::bfloat16, 8, 7, bfloat16_to_float, float_to_bfloat16},
                         {DType::float16, 5, 10, float16_to_float, float_to_float16}};

class Half : public ::testing::TestWithParam<int> {
 protected:
  const Codec& codec() const { return kCodecs[GetParam()]; }

  void expect_rounds_like_the_definition(float value) const {
    const double expected = round_to(format_of(codec().dtype), value);
    const float actual = codec().decode(codec().encode(value));
    ASSERT_EQ(bits_from_float(actual), bits_from_float(static_cast<float>(expected))) << std::hexfloat << value;
  }
};

TEST_P(Half, EveryCodeDecodesToItsDefinitionAndEncodesBack) {
  for (std::uint32_t code = 0; code < 0x10000; ++code) {
    const float value = codec().decode(static_cast<std::uint16_t>(code));
    if (codec().is_nan(code)) {
      ASSERT_TRUE(std::isnan(value)) << code;
      ASSERT_EQ(std::signbit(value), code >= 0x8000) << code;
      ASSERT_TRUE(codec().is_nan(codec().encode(value))) << code;
      continue;
    }
    const double expected = (code & 0x7fff) == codec().infinity()
                                ? std::copysign(HUGE_VAL, code >= 0x8000 ? -1.0 : 1.0)
                                : ieee_value(code, codec().exponent_bits, codec().mantissa_bits, codec().bias());
    ASSERT_EQ(static_cast<double>(value), expected) << code;
    ASSERT_EQ(codec().encode(value), code) << code;
  }
}

TEST_P(Half, TiesGoToTheEvenCodeAndTheirNeighboursToTheNearest) {
  for (std::uint32_t code = 0; code < codec().infinity(); ++code) {
    const double low = codec().decode(static_cast<std::uint16_t>(code));
    const double next = ieee_value(code + 1, codec().exponent_bits, codec().mantissa_bits, codec().bias());
    const float tie = static_cast<float>(low + (next - low) / 2);
    for (const float value : {tie, std::nextafter(tie, 0.0f), std::nextafter(tie, HUGE_VALF)}) {
      expect_rounds_like_the_definition(value);
      expect_rounds_like_the_definition(-value);
    }
  }
}

TEST_P(Half, RandomFloatsRoundLikeTheDefinition) {
  std::mt19937 generator(1);
  for (int i = 0; i < 1'000'000; ++i) {
    const float value = float_from_bits(static_cast<std::uint32_t>(generator()));
    if (std::isnan(value)) {
      ASSERT_TRUE(codec().is_nan(codec().encode(value)));
    } else {
      expect_rounds_like_the_definition(value);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, Half, ::testing::Values(0, 1),
                         [](const auto& param) { return std::string(dtype_name(kCodecs[param.param].dtype)); });

}  // namespace
}  // namespace quanto
