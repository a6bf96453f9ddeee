// The oracle must catch what it is there for: each planted fault is one that a kernel could make.
#include "oracle.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "cases.h"

namespace quanto::testing {
namespace {

class Oracle : public ::testing::TestWithParam<QType> {
 protected:
  static constexpr std::int64_t kM = 3, kN = 10, kK = 128;

  Oracle() : case_(shape()) { case_.run(); }

  static CaseShape shape() {
    CaseShape s{GetParam(), DType::float32, DType::float32, kM, kN, kK};
    s.group_size = is_affine(GetParam()) ? 32 : 0;
    return s;
  }

  std::string check() { return check_matmul(case_.x(), case_.w(), case_.bias(), case_.y()); }
  float* y() { return static_cast<float*>(case_.y()); }

  /// The error text of a fault planted by writing a result made with other inputs.
  template <class Change>
  std::string check_with(Change change) {
    MatmulCase other(shape());
    change(other);
    other.run();
    std::copy_n(static_cast<const float*>(other.y()), kM * kN, y());
    return check();
  }

  MatmulCase case_;
};

TEST_P(Oracle, AcceptsTheTruth) { EXPECT_EQ(check(), ""); }

TEST_P(Oracle, CatchesAWrongScale) {
  EXPECT_NE(check_with([](MatmulCase& c) { reinterpret_cast<float*>(c.scale_data())[0] *= 1.01f; }), "");
}

TEST_P(Oracle, CatchesRotatedScales) {
  EXPECT_NE(check_with([](MatmulCase& c) {
              auto* scale = reinterpret_cast<float*>(c.scale_data());
              const std::int64_t count = is_affine(GetParam()) ? kN * 4 : kN;
              std::rotate(scale, scale + 1, scale + count);
            }),
            "");
}

TEST_P(Oracle, CatchesADroppedLastK) {
  EXPECT_NE(check_with([](MatmulCase& c) { reinterpret_cast<float*>(c.x_data())[kK - 1] = 0; }), "");
}

TEST_P(Oracle, CatchesSwappedColumns) {
  std::swap(y()[0], y()[1]);
  EXPECT_NE(check(), "");
}

TEST_P(Oracle, CatchesAZeroedRow) {
  std::fill_n(y() + kN, kN, 0.0f);
  EXPECT_NE(check(), "");
}

TEST_P(Oracle, CatchesANegatedElement) {
  y()[kN * kM - 1] = -y()[kN * kM - 1];
  EXPECT_NE(check(), "");
}

TEST_P(Oracle, CatchesOneNaN) {
  y()[5] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_NE(check(), "");
}

TEST_P(Oracle, CatchesAResultOfAnotherMagnitude) {
  for (std::int64_t i = 0; i < kM * kN; ++i) y()[i] *= 1000;
  EXPECT_NE(check(), "");
}

INSTANTIATE_TEST_SUITE_P(AllQTypes, Oracle,
                         ::testing::Values(QType::qint2, QType::qint4, QType::qint8, QType::qfloat8_e4m3fn,
                                           QType::qfloat8_e4m3fnuz, QType::qfloat8_e5m2),
                         [](const auto& param) { return std::string(qtype_info(param.param).name); });

}  // namespace
}  // namespace quanto::testing
