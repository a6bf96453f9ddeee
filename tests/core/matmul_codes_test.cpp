// Activations given as codes: exact integer sums, float8 with exact products.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "cases.h"
#include "each_isa.h"
#include "oracle.h"
#include "quanto/error.h"
#include "quanto/matmul.h"
#include "quanto/parallel.h"
#include "quanto/quantize.h"

namespace quanto::testing {
namespace {

constexpr QType kWeightQTypes[] = {
    QType::qint2, QType::qint4, QType::qint8, QType::qfloat8_e4m3fn, QType::qfloat8_e4m3fnuz, QType::qfloat8_e5m2};
constexpr QType kCodeQTypes[] = {QType::qint8, QType::qfloat8_e4m3fn, QType::qfloat8_e4m3fnuz, QType::qfloat8_e5m2};
constexpr DType kDTypes[] = {DType::float32, DType::bfloat16, DType::float16};

using Cell = std::tuple<QType, QType>;  // of the activations, of the weight

class MatmulCodes : public ::testing::TestWithParam<Cell> {
 protected:
  QType x_qtype() const { return std::get<0>(GetParam()); }
  QType w_qtype() const { return std::get<1>(GetParam()); }
  bool integers() const { return x_qtype() == QType::qint8 && !qtype_info(w_qtype()).is_floating_point; }

  CaseShape shape(std::int64_t M, std::int64_t N, std::int64_t K, std::int64_t group_size = 0) const {
    CaseShape s{w_qtype(), DType::float32, DType::float32, M, N, K};
    s.group_size = is_affine(w_qtype()) ? group_size : 0;
    return s;
  }

  void expect_matches_oracle(const CaseShape& s, bool per_row_scale = true) const {
    CodesCase c(x_qtype(), s, per_row_scale);
    c.run();
    EXPECT_EQ(check_matmul_codes(c.x(), c.w(), c.bias(), c.dtype(), c.y()), "")
        << qtype_info(x_qtype()).name << " x " << describe(s) << " by " << matmul_codes_kernel_name(c.x(), c.w());
    const AtPageStart place;
    CodesCase moved(x_qtype(), s, per_row_scale);
    moved.run();
    EXPECT_EQ(moved.result(), c.result())
        << qtype_info(x_qtype()).name << " x " << describe(s) << " after a guarded page";
  }

  /// Odd sizes on purpose: primes, and one more and one less than what kernels work on at once.
  std::vector<CaseShape> shapes() const {
    std::vector<CaseShape> all;
    const auto add = [&](std::int64_t M, std::int64_t N, std::int64_t K, std::int64_t group_size) {
      all.push_back(shape(M, N, K, group_size));
    };
    for (const std::int64_t M : {1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 33, 49, 64, 67}) {
      add(M, 13, 67, 0);
      add(M, 64, 256, 128);
    }
    for (const std::int64_t N : {1, 2, 3, 4, 7, 8, 15, 17, 31, 47, 48, 49, 63, 65, 66, 130}) add(3, N, 192, 64);
    for (const std::int64_t N : {1, 4, 31, 32, 33, 48, 52, 68}) add(50, N, 160, 32);
    for (const std::int64_t K : {1, 2, 3, 4, 5, 15, 16, 31, 32, 33, 63, 64, 65, 127, 129, 257, 511}) {
      add(2, 34, K, 0);
      add(36, 20, K, 0);
    }
    for (const std::int64_t M : {1, 5, 40}) add(M, 44, 2115, 0);  // deeper than one block of k
    add(40, 330, 1152, 128);                                      // and wider than one of channels
    if (!integers() || !is_affine(w_qtype())) return all;
    for (const std::int64_t group_size : {1, 7, 32, 64, 96, 128, 160, 256}) {
      for (const std::int64_t N : {1, 3, 6, 8, 65, 68}) {
        for (const std::int64_t M : {1, 5, 19, 70}) add(M, N, 3 * group_size, group_size);
      }
      for (const std::int64_t M : {1, 4, 34}) add(M, 12, 1056 / group_size * group_size * 2, group_size);
    }
    return all;
  }
};

TEST_P(MatmulCodes, MatchesTheOracleForAllShapes) {
  for_each_choice([&] {
    for (const CaseShape& s : shapes()) expect_matches_oracle(s);
  });
}

TEST_P(MatmulCodes, TakesEveryDTypeOfScalesAndResults) {
  for_each_choice([&] {
    for (const DType scale_dtype : kDTypes) {
      for (const DType dtype : kDTypes) {
        for (const std::int64_t M : {1, 6, 37}) {
          CaseShape s = shape(M, 66, 128, 32);
          s.scale_dtype = scale_dtype;
          s.x_dtype = dtype;
          expect_matches_oracle(s, M % 2 == 0);
        }
      }
    }
  });
}

TEST_P(MatmulCodes, TakesIntegerShiftsSingleScalesStridedRowsAndNoBias) {
  for_each_choice([&] {
    for (const std::int64_t M : {1, 6, 37}) {
      for (const std::int64_t group_size : {0, 32, 64}) {
        CaseShape s = shape(M, 68, 128, group_size);
        s.shift_kind = ShiftKind::integer;
        s.per_tensor_scale = !is_affine(w_qtype());
        s.extra_stride = 5;
        s.with_bias = false;
        expect_matches_oracle(s, false);
      }
    }
  });
}

TEST_P(MatmulCodes, GivesTheSameBytesWhereverItsOperandsLie) {
  for_each_choice([&] {
    for (const std::int64_t M : {1, 6, 37}) {
      CaseShape s = shape(M, 66, 192, 64);
      CodesCase aligned(x_qtype(), s, true);
      aligned.run();
      for (const std::size_t gap : {1, 2, 3}) {
        s.gap = gap;
        CodesCase moved(x_qtype(), s, true);
        moved.run();
        EXPECT_EQ(moved.result(), aligned.result()) << describe(s) << " moved by " << gap;
      }
    }
  });
}

TEST_P(MatmulCodes, GivesTheSameBytesForAnyNumberOfThreads) {
  for_each_choice([&] {
    for (const std::int64_t M : {1, 7, 80}) {
      std::set<std::vector<std::uint8_t>> results;
      for (const int threads : {1, 2, 5}) {
        set_thread_count(threads);
        CodesCase c(x_qtype(), shape(M, 518, 512, 64), true);
        c.run();
        results.insert(c.result());
      }
      EXPECT_EQ(results.size(), 1u) << "M = " << M;
    }
    set_thread_count(2);
  });
}

TEST_P(MatmulCodes, GivesARowTheSameBytesInEveryBatchOfItsKernel) {
  for_each_choice([&] {
    for (const auto& [M, N, K, group_size] :
         {std::array{7, 66, 256, 64}, {70, 66, 256, 64}, {7, 67, 288, 96}, {7, 21, 16032, 96}}) {
      CodesCase batch(x_qtype(), shape(M, N, K, group_size), false);
      batch.run();
      const auto all = batch.result();
      const std::size_t row_bytes = static_cast<std::size_t>(N) * sizeof(float);
      for (std::int64_t m = 0; m < M; m += 3) {
        CodesView some = batch.x();
        some.rows = std::min<std::int64_t>(M - m, M == 7 ? 1 : 35);
        some.data = batch.x_data() + m * some.row_stride;
        if (matmul_codes_kernel_name(some, batch.w()) != matmul_codes_kernel_name(batch.x(), batch.w())) continue;
        std::vector<std::uint8_t> y(static_cast<std::size_t>(some.rows) * row_bytes);
        matmul_codes(some, batch.w(), batch.bias(), DType::float32, y.data());
        EXPECT_TRUE(std::equal(y.begin(), y.end(), all.begin() + m * static_cast<std::ptrdiff_t>(row_bytes)))
            << "rows from " << m << " of " << M << " with " << N << " channels";
      }
    }
  });
}

TEST_P(MatmulCodes, EmptyShapes) {
  for_each_choice([&] {
    for (const auto& [M, N, K] : {std::tuple{0, 4, 8}, std::tuple{4, 0, 8}, std::tuple{0, 0, 0}, std::tuple{3, 4, 0}}) {
      expect_matches_oracle(shape(M, N, K));
    }
  });
}

/// Floats to be quantized on the way, and what two steps make of them. The scale has the dtype of the weight's scales.
class QuantizingCase {
 public:
  QuantizingCase(QType qtype, const CaseShape& shape, float scale, unsigned seed = 1)
      : shape_(shape),
        qtype_(qtype),
        case_(shape, seed),
        scale_(dtype_size(shape.scale_dtype), shape.gap),
        y_(static_cast<std::size_t>(shape.M * shape.N) * dtype_size(shape.scale_dtype), shape.gap) {
    store_float(scale_.data(), shape.scale_dtype, 0, scale);
  }

  MatmulCase& floats() { return case_; }
  void set(std::int64_t m, std::int64_t k, float value) {
    store_float(case_.x_data(), shape_.x_dtype, m * (shape_.K + shape_.extra_stride) + k, value);
  }

  std::vector<std::uint8_t> in_one_step(bool per_token) {
    std::memset(y_.data(), 0xa5, y_.size());
    QuantizingView x{case_.x(), qtype_};
    if (!per_token) {
      x.scale = scale_.data();
      x.scale_dtype = shape_.scale_dtype;
    }
    matmul_quantizing(x, case_.w(), bias().data(), shape_.scale_dtype, y_.data());
    return {y_.data(), y_.data() + y_.size()};
  }

  std::vector<std::uint8_t> in_two_steps(bool per_token) {
    const std::int64_t M = shape_.M, K = shape_.K;
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(M * K)), y(y_.size());
    CodesView x{codes.data(), qtype_, M, K, scale_.data(), shape_.scale_dtype};
    std::vector<std::uint8_t> token_scales(static_cast<std::size_t>(M) * dtype_size(shape_.x_dtype));
    const ActivationView v = case_.x();
    if (per_token) {
      quantize_per_token({v.data, v.dtype, M, K, v.row_stride}, qtype_, token_scales.data(), codes.data());
      x.scale = token_scales.data();
      x.scale_dtype = v.dtype;
      x.per_row_scale = true;
    } else {
      std::uint32_t scale = 0;
      store_float(&scale, v.dtype, 0, load_float(scale_.data(), shape_.scale_dtype, 0));
      for (std::int64_t m = 0; m < M; ++m) {
        const auto* row = static_cast<const char*>(v.data) + m * v.row_stride * static_cast<int>(dtype_size(v.dtype));
        quantize_symmetric({row, v.dtype, 1, K}, qtype_, Axis::tensor, &scale, codes.data() + m * K);
      }
    }
    matmul_codes(x, case_.w(), bias().data(), shape_.scale_dtype, y.data());
    return y;
  }

 private:
  std::vector<std::uint8_t> bias() const {
    std::vector<std::uint8_t> all(static_cast<std::size_t>(shape_.N) * dtype_size(shape_.scale_dtype));
    for (std::int64_t n = 0; n < shape_.N; ++n) {
      store_float(all.data(), shape_.scale_dtype, n, static_cast<float>(n % 5) - 2.0f);
    }
    return all;
  }

  CaseShape shape_;
  QType qtype_;
  MatmulCase case_;
  GuardedBytes scale_, y_;
};

TEST_P(MatmulCodes, QuantizingOnTheWayGivesTheBytesOfTwoSteps) {
  const float unit = qtype_info(x_qtype()).is_floating_point ? 0x1p-6f : 0x1p-5f;  // some values are clamped
  for_each_choice([&] {
    int number = 0;
    for (const DType dtype : kDTypes) {
      for (const DType scale_dtype : kDTypes) {
        for (const std::int64_t M : {1, 3, 12, 17, 64, 65, 96, 131}) {
          CaseShape s = shape(M, 2 + 31 * (number % 3), 64 + 65 * (number % 2), 32 * (1 - number % 2));
          s.x_dtype = dtype;
          s.scale_dtype = scale_dtype;
          s.extra_stride = number % 3 == 1 ? 3 : 0;
          s.gap = static_cast<std::size_t>(number % 4);
          ++number;
          for (const bool per_token : {false, true}) {
            QuantizingCase c(x_qtype(), s, 1.1f * unit);
            EXPECT_EQ(c.in_one_step(per_token), c.in_two_steps(per_token)) << describe(s) << " " << per_token;
          }
        }
      }
    }
  });
}

TEST_P(MatmulCodes, QuantizingOnTheWayGivesTheBytesOfTwoStepsForSpecialValues) {
  constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();
  for_each_choice([&] {
    for (const DType dtype : kDTypes) {
      for (const std::int64_t M : {1, 7, 40, 130}) {
        CaseShape s = shape(M, 33, 96, 32);
        s.x_dtype = dtype;
        for (const float scale : {0.0f, -0.0f, 0.02f, -0.02f, 1e-42f, 3e38f, kInf, kNan}) {
          for (const float value : {kNan, -kNan, kInf, -kInf, 65504.0f, -3e38f, 1e-42f}) {
            QuantizingCase c(x_qtype(), s, scale);
            c.set(M - 1, 3, value);
            c.set(M / 2, 95, -value);
            for (const bool per_token : {false, true}) {
              EXPECT_EQ(c.in_one_step(per_token), c.in_two_steps(per_token))
                  << describe(s) << " " << value << " by " << scale << " " << per_token;
            }
          }
        }
      }
    }
  });
}

TEST_P(MatmulCodes, QuantizingOnTheWayDoesNotDependOnThreads) {
  for_each_choice([&] {
    for (const std::int64_t M : {1, 40, 300}) {
      std::set<std::vector<std::uint8_t>> results;
      for (const int threads : {1, 2, 5}) {
        set_thread_count(threads);
        for (const std::int64_t extra_stride : {0, 8}) {  // other activations, so other results, of several rows
          CaseShape s = shape(M, 130, 512, 64);
          s.x_dtype = DType::bfloat16;
          s.extra_stride = extra_stride;
          for (const bool per_token : {false, true}) {
            results.insert(QuantizingCase(x_qtype(), s, 0.02f).in_one_step(per_token));
          }
        }
      }
      EXPECT_EQ(results.size(), M == 1 ? 2u : 4u) << "M = " << M;
    }
    set_thread_count(2);
  });
}

TEST_P(MatmulCodes, QuantizingOnTheWayTakesEmptyShapes) {
  for_each_choice([&] {
    for (const auto& [M, N, K] : {std::tuple{0, 4, 8}, std::tuple{4, 0, 8}, std::tuple{0, 0, 0}, std::tuple{3, 4, 0}}) {
      for (const bool per_token : {false, true}) {
        QuantizingCase c(x_qtype(), shape(M, N, K), 0.02f);
        EXPECT_EQ(c.in_one_step(per_token), c.in_two_steps(per_token)) << M << " " << N << " " << K;
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(AllCells, MatmulCodes,
                         ::testing::Combine(::testing::ValuesIn(kCodeQTypes), ::testing::ValuesIn(kWeightQTypes)),
                         [](const auto& param) {
                           return std::string(qtype_info(std::get<0>(param.param)).name) + "_x_" +
                                  std::string(qtype_info(std::get<1>(param.param)).name);
                         });

struct Integers {
  std::int64_t M, N, K;
  std::vector<std::int8_t> x, w;

  template <class Next>
  Integers(std::int64_t rows, std::int64_t channels, std::int64_t depth, Next next)
      : M(rows), N(channels), K(depth), x(static_cast<std::size_t>(M * K)), w(static_cast<std::size_t>(N * K)) {
    for (auto& v : x) v = static_cast<std::int8_t>(next());
    for (auto& v : w) v = static_cast<std::int8_t>(next());
  }

  std::int64_t sum(std::int64_t m, std::int64_t n) const {
    std::int64_t total = 0;
    for (std::int64_t k = 0; k < K; ++k) {
      total += std::int64_t{x[static_cast<std::size_t>(m * K + k)]} * w[static_cast<std::size_t>(n * K + k)];
    }
    return total;
  }

  /// The sums, scaled by 1: what float32 makes of the exact ones.
  std::vector<float> multiply() const {
    constexpr float kOne = 1.0f;
    std::vector<float> y(static_cast<std::size_t>(M * N));
    const WeightView view{.qtype = QType::qint8,
                          .data = w.data(),
                          .out_features = N,
                          .in_features = K,
                          .scale = &kOne,
                          .scale_dtype = DType::float32,
                          .per_tensor_scale = true};
    matmul_codes({x.data(), QType::qint8, M, K}, view, nullptr, DType::float32, y.data());
    return y;
  }
};

void expect_exact(const Integers& c) {
  const std::vector<float> y = c.multiply();
  for (std::int64_t i = 0; i < c.M * c.N; ++i) {
    ASSERT_EQ(y[static_cast<std::size_t>(i)], static_cast<float>(c.sum(i / c.N, i % c.N)))
        << i / c.N << ", " << i % c.N << " of " << c.M << " x " << c.N << " x " << c.K;
  }
}

TEST(MatmulInt8, SumsAreExact) {
  for_each_choice([] {
    std::mt19937 generator(7);
    for (const auto& [M, N, K] : {std::tuple{1, 1, 1}, std::tuple{3, 37, 67}, std::tuple{5, 64, 4096},
                                  std::tuple{70, 49, 300}, std::tuple{2, 3, 100000}, std::tuple{40, 3, 70001}}) {
      expect_exact(Integers(M, N, K, [&] { return generator() % 8 == 0 ? 0x80u : generator(); }));
    }
  });
}

TEST(MatmulInt8, TheLargestSumsAreExact) {
  for_each_choice([] {
    for (const std::int64_t M : {1, 8, 40}) {
      expect_exact(Integers(M, 2, (1 << 17) - 1, [] { return -128; }));
      expect_exact(Integers(M, 2, 5000, [&, i = 0]() mutable { return ++i <= 5000 * M ? -128 : 127; }));
    }
  });
}

/// Whatever kernels keep sums of a group in.
TEST(MatmulInt8, TheLargestSumsOfPackedCodesAreExact) {
  constexpr std::int64_t kN = 8, kK = 4096;
  const std::vector<std::uint8_t> codes(kN * kK / 2, 0xff);
  const std::vector<float> scale(kN * kK / 16, 1.0f), shift(kN * kK / 16, 0.0f);
  for_each_choice([&] {
    for (const QType qtype : {QType::qint4, QType::qint2}) {
      const int largest = qtype == QType::qint4 ? 15 : 3;
      for (const std::int64_t group_size : {32, 64, 128, 256, 512, 1024, 2048, 4096}) {
        for (const std::int64_t M : {1, 5, 40}) {
          for (const int x : {-128, 127}) {
            const std::vector<std::int8_t> xs(static_cast<std::size_t>(M * kK), static_cast<std::int8_t>(x));
            const WeightView w{.qtype = qtype,
                               .data = codes.data(),
                               .out_features = kN,
                               .in_features = kK,
                               .group_size = group_size,
                               .scale = scale.data(),
                               .scale_dtype = DType::float32,
                               .shift = shift.data(),
                               .shift_kind = ShiftKind::floating};
            std::vector<float> y(static_cast<std::size_t>(M * kN));
            matmul_codes({xs.data(), QType::qint8, M, kK}, w, nullptr, DType::float32, y.data());
            for (const float got : y) {
              ASSERT_EQ(got, static_cast<float>(x * largest * kK))
                  << qtype_info(qtype).name << " in groups of " << group_size << ", " << M << " rows of " << x;
            }
          }
        }
      }
    }
  });
}

TEST(MatmulInt8, MoreCodesThanAnInt32HoldsAreMultipliedAsFloats) {
  const Integers c(1, 1, 1 << 17, [] { return -128; });
  EXPECT_EQ(c.multiply()[0], 0x1p31f);
  const WeightView w{.qtype = QType::qint8,
                     .data = c.w.data(),
                     .out_features = c.N,
                     .in_features = c.K,
                     .scale = nullptr,
                     .scale_dtype = DType::float32};
  EXPECT_NE(matmul_codes_kernel_name({c.x.data(), QType::qint8, c.M, c.K}, w).find("/bfloat16/"), std::string::npos);
}

/// Each operation on the exact sum rounds once, in this order, on every instruction set.
TEST(MatmulInt8, ResultsAreTheSameBytesOnEveryInstructionSet) {
  for (const std::int64_t M : {1, 5, 50}) {
    std::set<std::vector<std::uint8_t>> results;
    for_each_choice([&] {
      CodesCase c(QType::qint8, {QType::qint8, DType::bfloat16, DType::float16, M, 67, 1030}, true);
      c.run();
      results.insert(c.result());
    });
    EXPECT_EQ(results.size(), 1u) << "M = " << M;
  }
}

/// Instructions that round to bfloat16 may take subnormal numbers for zero and have NaNs of their own.
TEST(MatmulInt8, SubnormalAndInfiniteResultsAreTheSameBytesOnEveryInstructionSet) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  for (const bool per_row_scale : {false, true}) {
    for (const float scale : {0.0f, 1e-44f, 1e-40f, 1e-37f, 1e-30f, 1e30f, 3e38f, kInf, -kInf, kInf - kInf}) {
      for (const bool with_bias : {false, true}) {
        std::set<std::vector<std::uint8_t>> results;
        for_each_choice([&] {
          CaseShape s{QType::qint8, DType::bfloat16, DType::float32, 50, 67, 130};
          s.with_bias = with_bias;
          CodesCase c(QType::qint8, s, per_row_scale);
          store_float(c.x_scale_data(), DType::float32, per_row_scale ? 7 : 0, scale);
          c.run();
          results.insert(c.result());
        });
        EXPECT_EQ(results.size(), 1u) << scale << (per_row_scale ? " of a row" : "") << (with_bias ? " bias" : "");
      }
    }
  }
}

TEST(MatmulFloat8, SpecialCodesBehaveAsTheirValues) {
  for_each_choice([] {
    for (const std::int64_t M : {1, 5, 40}) {
      CodesCase c(QType::qfloat8_e5m2, {QType::qint8, DType::float32, DType::float32, M, 36, 64}, false);
      c.x_data()[7] = 0x7c;  // infinity
      c.run();
      for (std::int64_t n = 0; n < 36; ++n) {
        const double w = weight_at(c.w(), n, 7).value;
        const float got = load_float(c.y(), DType::float32, n);
        EXPECT_TRUE(w == 0 ? std::isnan(got) : got == std::copysign(std::numeric_limits<float>::infinity(), w)) << n;
      }
      c.x_data()[7] = 0x7f;  // NaN
      c.run();
      for (std::int64_t n = 0; n < 36; ++n) EXPECT_TRUE(std::isnan(load_float(c.y(), DType::float32, n))) << n;
    }
  });
}

std::string error_of(const CodesView& x, const WeightView& w) {
  float y[64];
  try {
    matmul_codes(x, w, nullptr, DType::float32, y);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(MatmulCodesErrors, NameTheArgument) {
  CodesCase c(QType::qint8, {QType::qint4, DType::float32, DType::float32, 1, 4, 64, 32}, false);
  CodesView x = c.x();
  x.qtype = QType::qint4;
  EXPECT_EQ(error_of(x, c.w()), "[matmul] qtype: got qint4, expected an 8-bit qtype");
  WeightView w = c.w();
  w.group_size = 48;
  EXPECT_EQ(error_of(c.x(), w), "[matmul] group_size: got 48, expected 0 or a divisor of in_features = 64");
}

/// The oracle must catch what it is there for.
class CodesOracle : public ::testing::TestWithParam<Cell> {
 protected:
  static constexpr std::int64_t kM = 3, kN = 10, kK = 128;

  static CaseShape shape() {
    const QType w = std::get<1>(GetParam());
    return {w, DType::float32, DType::float32, kM, kN, kK, is_affine(w) ? 32 : 0};
  }
  static CodesCase make() { return CodesCase(std::get<0>(GetParam()), shape(), true); }

  /// What the oracle says of a result made with other inputs.
  template <class Change>
  static std::string check_with(Change change) {
    CodesCase truth = make(), other = make();
    change(other);
    other.run();
    return check_matmul_codes(truth.x(), truth.w(), truth.bias(), truth.dtype(), other.y());
  }
};

TEST_P(CodesOracle, AcceptsTheTruth) {
  EXPECT_EQ(check_with([](CodesCase&) {}), "");
}
TEST_P(CodesOracle, CatchesAnotherActivation) {
  const std::uint8_t change = std::get<0>(GetParam()) == QType::qint8 ? 1 : 0x40;  // float8: of its exponent
  EXPECT_NE(check_with([=](CodesCase& c) { c.x_data()[5] ^= change; }), "");
}
TEST_P(CodesOracle, CatchesADroppedLastActivation) {
  EXPECT_NE(check_with([](CodesCase& c) { c.x_data()[kK * kM - 1] ^= 0x40; }), "");
}
TEST_P(CodesOracle, CatchesARowScaleOfAnotherRow) {
  EXPECT_NE(check_with([](CodesCase& c) {
              auto* scale = reinterpret_cast<float*>(c.x_scale_data());
              std::rotate(scale, scale + 1, scale + kM);
            }),
            "");
}
TEST_P(CodesOracle, CatchesAWrongScaleOfTheWeight) {
  EXPECT_NE(check_with([](CodesCase& c) { reinterpret_cast<float*>(c.weight().scale_data())[0] *= 1.0001f; }), "");
}
TEST_P(CodesOracle, CatchesAWeightThatIsOffByOneCode) {
  EXPECT_NE(check_with([](CodesCase& c) { c.weight().w_data()[3] ^= 1; }), "");
}

INSTANTIATE_TEST_SUITE_P(SomeCells, CodesOracle,
                         ::testing::Values(Cell{QType::qint8, QType::qint8}, Cell{QType::qint8, QType::qint4},
                                           Cell{QType::qint8, QType::qint2},
                                           Cell{QType::qfloat8_e4m3fn, QType::qfloat8_e5m2}),
                         [](const auto& param) {
                           return std::string(qtype_info(std::get<0>(param.param)).name) + "_x_" +
                                  std::string(qtype_info(std::get<1>(param.param)).name);
                         });

}  // namespace
}  // namespace quanto::testing
