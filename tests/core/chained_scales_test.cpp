// Packed codes whose scales differ from group to group: kernels may let sums go on from one group to the next, in units
// of a scale, and have to leave scales that are too far apart for that to others.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <random>
#include <string>

#include "cases.h"
#include "each_isa.h"
#include "oracle.h"
#include "quanto/matmul.h"

namespace quanto::testing {
namespace {

/// scale_of(i): the scale of the i-th group of the weight. Activations are random numbers times `magnitude`.
template <class ScaleOf>
void expect_matches_oracle_with(const CaseShape& shape, ScaleOf scale_of, float magnitude = 1) {
  MatmulCase c(shape);
  const std::int64_t groups = shape.N * (shape.group_size == 0 ? 1 : shape.K / shape.group_size);
  for (std::int64_t i = 0; i < groups; ++i) store_float(c.scale_data(), shape.scale_dtype, i, scale_of(i));
  for (std::int64_t i = 0; i < shape.M * shape.K; ++i) {
    store_float(c.x_data(), shape.x_dtype, i, load_float(c.x_data(), shape.x_dtype, i) * magnitude);
  }
  c.run();
  EXPECT_EQ(check_matmul(c.x(), c.w(), c.bias(), c.y()), "")
      << describe(shape) << " by " << matmul_kernel_name(c.x(), c.w());
}

template <class Visit>
void for_each_shape(Visit visit) {
  for_each_choice([&] {
    for (const QType qtype : {QType::qint2, QType::qint4}) {
      for (const DType dtype : {DType::bfloat16, DType::float32}) {
        for (const std::int64_t M : {2, 4, 6, 7, 8}) {
          for (const std::int64_t N : {60, 68, 63}) {  // units with sets that are not whole, a single field at a time
            for (const std::int64_t groups : {1, 2, 8, 9, 12, 13, 33}) {
              visit(CaseShape{qtype, dtype, dtype, M, N, groups * 64, 64});
            }
          }
        }
      }
    }
  });
}

TEST(ChainedScales, MayDifferBySomeFactorAndInSign) {
  for_each_shape([](const CaseShape& shape) {
    std::mt19937 generator(3);
    std::uniform_int_distribution<int> exponent(-10, 0), sign(0, 1);
    expect_matches_oracle_with(shape, [&](std::int64_t) {
      return std::ldexp(sign(generator) == 0 ? 0.71875f : -0.59375f, exponent(generator));
    });
  });
}

TEST(ChainedScales, GrowOrShrinkAlongARow) {
  for_each_shape([](const CaseShape& shape) {
    const std::int64_t groups = shape.K / shape.group_size;
    const auto along = [&](int step, float magnitude = 1) {
      expect_matches_oracle_with(
          shape, [&](std::int64_t i) { return std::ldexp(0.71875f, step * static_cast<int>(i % groups)); }, magnitude);
    };
    along(-1);
    along(1);
    if (groups > 9) return;
    along(9);
    along(-9);
    along(-9, 0x1p70f);  // in units of the last scale their products would be infinite
  });
}

/// Zeros among others, of which nothing can be a multiple: their groups count for nothing, those beside them for all.
TEST(ChainedScales, MayBeZeroOrFarApart) {
  for_each_shape([](const CaseShape& shape) {
    for (const float rare : {0.0f, 0x1p-120f, 0x1p-60f, 0x1p60f}) {
      expect_matches_oracle_with(shape, [&](std::int64_t i) { return i % 5 == 3 ? rare : 0.0078125f; });
    }
  });
}

/// Up to where sums in units of the least scale are finite, and beyond: magnitudes of results are those of 0.001.
TEST(ChainedScales, MayDifferUpToALimit) {
  for_each_choice([&] {
    for (const QType qtype : {QType::qint2, QType::qint4}) {
      for (const std::int64_t M : {4, 8}) {
        for (const int exponent : {11, 12, 13, 14, 24, 40}) {  // 2^13 = 2^23 / K
          const CaseShape shape{qtype, DType::bfloat16, DType::bfloat16, M, 68, 1024, 64};
          expect_matches_oracle_with(
              shape, [&](std::int64_t i) { return std::ldexp(1.0f, i % 16 == 15 ? -30 - exponent : -30); }, 0x1p98f);
        }
      }
    }
  });
}

TEST(ChainedScales, AreOfAnyDTypeWithAnyShift) {
  for_each_choice([&] {
    for (const QType qtype : {QType::qint2, QType::qint4}) {
      for (const DType scale_dtype : {DType::float32, DType::float16}) {
        for (const ShiftKind shift : {ShiftKind::floating, ShiftKind::integer}) {
          for (const std::int64_t groups : {3, 17}) {
            CaseShape shape{qtype, DType::bfloat16, scale_dtype, 8, 68, groups * 128, 128, shift};
            expect_matches_oracle_with(shape,
                                       [&](std::int64_t i) { return std::ldexp(0.6875f, -static_cast<int>(i % 7)); });
          }
        }
      }
    }
  });
}

/// Deeper than what is multiplied at once.
TEST(ChainedScales, GoOnFromBlockToBlock) {
  for_each_choice([&] {
    for (const QType qtype : {QType::qint2, QType::qint4}) {
      for (const std::int64_t M : {4, 8}) {
        for (const auto& [K, group_size] : {std::pair{20480, 128}, std::pair{16650, 0}}) {
          const CaseShape shape{qtype, DType::bfloat16, DType::bfloat16, M, 20, K, group_size};
          expect_matches_oracle_with(shape,
                                     [&](std::int64_t i) { return std::ldexp(0.71875f, -static_cast<int>(i % 5)); });
        }
      }
    }
  });
}

}  // namespace
}  // namespace quanto::testing
