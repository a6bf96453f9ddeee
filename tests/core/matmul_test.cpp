#include "quanto/matmul.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <set>
#include <vector>

#include "cases.h"
#include "each_isa.h"
#include "oracle.h"
#include "quanto/isa.h"
#include "quanto/parallel.h"

namespace quanto::testing {
namespace {

constexpr DType kDTypes[] = {DType::float32, DType::bfloat16, DType::float16};

void expect_matches_oracle(const CaseShape& shape, unsigned seed = 1) {
  MatmulCase c(shape, seed);
  c.run();
  EXPECT_EQ(check_matmul(c.x(), c.w(), c.bias(), c.y()), "")
      << describe(shape) << " by " << matmul_kernel_name(c.x(), c.w());
  const AtPageStart place;
  MatmulCase moved(shape, seed);
  moved.run();
  EXPECT_EQ(moved.result(), c.result()) << describe(shape) << " after a guarded page";
}

/// Odd sizes on purpose: primes, and one more and one less than what kernels work on at once.
std::vector<CaseShape> shapes_of(QType qtype, DType x_dtype) {
  std::vector<CaseShape> shapes;
  const auto add = [&](std::int64_t M, std::int64_t N, std::int64_t K, std::int64_t group_size) {
    shapes.push_back({qtype, x_dtype, x_dtype, M, N, K, group_size});
  };
  for (const std::int64_t M : {1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 16, 17, 31, 32, 33, 43, 48, 67}) {
    add(M, 13, 67, 0);
    add(M, 64, 256, 0);
  }
  for (const std::int64_t N : {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 63, 64, 65, 66, 127, 128, 130}) {
    add(3, N, 192, 0);
    for (const std::int64_t M : {18, 29}) add(M, N, 224, 0);
  }
  for (const std::int64_t K : {1, 2, 3, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 257, 511}) {
    add(2, 34, K, 0);
    for (const std::int64_t M : {21, 29}) add(M, 34, K, 0);
  }
  add(1, 132, 1024, 0);
  add(44, 132, 640, 0);
  add(530, 34, 100, 0);  // more rows than share one decoding
  add(34, 1100, 64, 0);  // more channels than share one reading of the activations
  for (const std::int64_t M : {1, 2, 7, 12, 20}) add(M, 44, 2115, 0);  // deeper than one block of k
  add(14, 340, 1100, 0);                                               // and more channels than are multiplied together
  add(37, 340, 1700, 0);                                               // the same with more than a few rows
  add(514, 34, 1700, 0);
  add(8, 23, 9001, 0);  // a few rows deeper than one block of k
  for (const std::int64_t M :
       {1, 2, 3, 5, 8}) {  // several squares of channels that meet the same tables, and some more
    for (const std::int64_t N : {1027, 1068, 1088}) add(M, N, 100, 0);
  }
  for (const std::int64_t M : {1, 4}) add(M, 1068, 1100, 0);
  if (!is_affine(qtype)) return shapes;
  for (const std::int64_t group_size : {1, 7, 32, 64, 96, 128, 160}) {
    for (const std::int64_t N : {1, 3, 6, 8, 65, 68, 72}) {
      add(1, N, 3 * group_size, group_size);
      add(5, N, 2 * group_size, group_size);
      for (const std::int64_t M : {19, 29}) add(M, N, 4 * group_size, group_size);
    }
    for (const std::int64_t M : {1, 4, 14}) add(M, 12, 1056 / group_size * group_size * 2, group_size);
    for (const std::int64_t M : {14, 37}) add(M, 340, 1632 / group_size * group_size, group_size);
  }
  for (const std::int64_t M : {3, 37}) add(M, 68, 3200, 1600);  // groups deeper than one block of k
  for (const std::int64_t M : {1, 2, 3, 4, 5, 6, 7, 8}) {
    for (const std::int64_t group_size : {32, 64, 96, 128}) {
      for (const std::int64_t groups : {6, 12, 16, 18}) add(M, 76, groups * group_size, group_size);
      add(M, 56, 6 * group_size, group_size);  // an odd number of sets of channels
    }
  }
  for (const std::int64_t M : {1, 2, 3, 5, 8}) add(M, 1068, 192, 64);
  add(8, 20, 8832, 128);  // a few rows deeper than one block of k
  // Fewer rows, whose blocks are deeper, and groups that straddle what is multiplied at once.
  add(1, 20, 67584, 128);
  add(2, 20, 33280, 128);
  for (const std::int64_t N : {20, 23}) {
    add(3, N, 23040, 96);
    add(6, N, 11520, 96);
  }
  for (const std::int64_t M : {5, 8, 14}) add(M, 23, 8832, 128);  // the same where channels straddle fields
  return shapes;
}

using Cell = std::tuple<QType, DType>;

class Matmul : public ::testing::TestWithParam<Cell> {
 protected:
  QType qtype() const { return std::get<0>(GetParam()); }
  DType dtype() const { return std::get<1>(GetParam()); }

  CaseShape shape(std::int64_t M, std::int64_t N, std::int64_t K) const {
    CaseShape s{qtype(), dtype(), dtype(), M, N, K};
    s.group_size = is_affine(qtype()) && K % 32 == 0 ? 32 : 0;
    return s;
  }
};

TEST_P(Matmul, MatchesTheOracleForAllShapes) {
  for_each_choice([&] {
    for (const CaseShape& s : shapes_of(qtype(), dtype())) expect_matches_oracle(s);
  });
}

TEST_P(Matmul, FetchingReadsNothing) {
  // Memory that nobody may read, and of that an address of its own for each call: what was just fetched is not again.
  constexpr std::size_t kBytes = 1 << 20;
  const auto unreadable = std::shared_ptr<void>(mmap(nullptr, kBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
                                                [](void* at) { munmap(at, kBytes); });
  ASSERT_NE(unreadable.get(), MAP_FAILED);
  std::size_t calls = 0;
  for_each_choice([&] {
    for (const CaseShape& s : shapes_of(qtype(), dtype())) {
      const MatmulCase c(s);
      ActivationView x = c.x();
      WeightView w = c.w();
      x.data = w.data = w.scale = static_cast<const char*>(unreadable.get()) + calls++ * 64 % kBytes;
      if (w.shift != nullptr) w.shift = w.data;
      EXPECT_NO_THROW(matmul_fetch(x, w)) << describe(s);
    }
  });
}

TEST_P(Matmul, TakesEveryScaleDType) {
  for_each_choice([&] {
    for (const DType scale_dtype : kDTypes) {
      for (const std::int64_t M : {1, 6, 14, 45}) {
        CaseShape s = shape(M, 66, 128);
        s.scale_dtype = scale_dtype;
        expect_matches_oracle(s);
      }
    }
  });
}

TEST_P(Matmul, TakesIntegerShiftsAndSingleScales) {
  for_each_choice([&] {
    for (const std::int64_t M : {1, 6, 14, 45}) {
      CaseShape s = shape(M, 68, 128);
      s.shift_kind = ShiftKind::integer;
      s.per_tensor_scale = !is_affine(qtype());
      expect_matches_oracle(s);
    }
  });
}

TEST_P(Matmul, TakesStridedRowsAndNoBias) {
  for_each_choice([&] {
    for (const std::int64_t M : {1, 6, 14, 45}) {
      CaseShape s = shape(M, 20, 96);
      s.extra_stride = 5;
      s.with_bias = false;
      expect_matches_oracle(s);
    }
  });
}

TEST_P(Matmul, TakesOneRowManyTimes) {
  for_each_choice([&] {
    for (const std::int64_t M : {2, 3, 6, 14, 45, 70}) {
      MatmulCase c(shape(M, 66, 128));
      const auto row_bytes = 128 * static_cast<std::ptrdiff_t>(dtype_size(dtype()));
      for (std::int64_t m = 1; m < M; ++m) std::copy_n(c.x_data(), row_bytes, c.x_data() + m * row_bytes);
      c.run();
      const auto expected = c.result();
      GuardedBytes row(static_cast<std::size_t>(row_bytes));
      std::copy_n(c.x_data(), row_bytes, row.data());
      matmul({row.data(), dtype(), M, 0}, c.w(), c.bias(), c.y());
      EXPECT_EQ(c.result(), expected) << "M = " << M;
    }
  });
}

/// A tensor that is mapped from a file lies at any byte.
TEST_P(Matmul, GivesTheSameBytesWhereverItsOperandsLie) {
  for_each_choice([&] {
    for (const std::int64_t K : {67, 192}) {
      for (const std::int64_t M : {1, 6, 14, 45}) {
        CaseShape s = shape(M, 66, K);
        MatmulCase aligned(s);
        aligned.run();
        for (const std::size_t gap : {1, 2, 3}) {
          s.gap = gap;
          MatmulCase moved(s);
          moved.run();
          EXPECT_EQ(moved.result(), aligned.result()) << describe(s) << " moved by " << gap;
        }
      }
    }
  });
}

TEST_P(Matmul, GivesTheSameBytesForAnyNumberOfThreads) {
  for_each_choice([&] {
    // The last: so many rows that they are shared out.
    for (const auto& [M, N, K] :
         {std::array{1, 514, 1024}, {7, 514, 1024}, {5, 1100, 512}, {16, 514, 1024}, {48, 514, 1024}, {550, 98, 96}}) {
      std::vector<std::uint8_t> expected;
      for (const int threads : {1, 2, 5}) {
        set_thread_count(threads);
        MatmulCase c(shape(M, N, K));
        c.run();
        if (threads == 1) expected = c.result();
        EXPECT_EQ(c.result(), expected) << "M = " << M << ", " << threads << " threads";
      }
    }
    set_thread_count(2);
  });
}

/// `some` rows on their own, from each of a batch on, against the whole batch.
void expect_same_bytes_in_parts(const CaseShape& shape, std::int64_t some) {
  MatmulCase batch(shape);
  batch.run();
  const auto all = batch.result();
  const std::size_t row_bytes = static_cast<std::size_t>(shape.N) * dtype_size(shape.x_dtype);
  for (std::int64_t m = 0; m + some <= shape.M; ++m) {
    ActivationView part = batch.x();
    part.rows = some;
    part.data = batch.x_data() + static_cast<std::size_t>(m * part.row_stride) * dtype_size(shape.x_dtype);
    if (matmul_kernel_name(part, batch.w()) != matmul_kernel_name(batch.x(), batch.w())) continue;
    std::vector<std::uint8_t> y(row_bytes * static_cast<std::size_t>(some));
    matmul(part, batch.w(), batch.bias(), y.data());
    EXPECT_TRUE(std::equal(y.begin(), y.end(), all.begin() + m * static_cast<std::ptrdiff_t>(row_bytes)))
        << some << " rows from " << m << " of " << describe(shape);
  }
}

TEST_P(Matmul, GivesARowTheSameBytesInEveryBatchOfItsKernel) {
  for_each_choice([&] {
    for (const auto& [M, some] : {std::pair{7, 1}, std::pair{16, 9}, std::pair{30, 13}, std::pair{70, 7},
                                  std::pair{70, 23}, std::pair{70, 35}}) {
      expect_same_bytes_in_parts(shape(M, 66, 256), some);
    }
  });
}

/// Where K is deeper than what is multiplied at once, which depends on the number of rows.
TEST_P(Matmul, GivesARowTheSameBytesHoweverDeepItsBlocksAre) {
  for_each_choice([&] {
    for (const auto& [M, some] : {std::pair{2, 1}, std::pair{8, 1}, std::pair{8, 4}, std::pair{8, 5}, std::pair{8, 7},
                                  std::pair{10, 3}, std::pair{12, 5}}) {
      for (const std::int64_t group_size : {0, 96, 128, 160}) {
        if (group_size != 0 && !is_affine(qtype())) continue;
        for (const std::int64_t N : {20, 21}) {
          CaseShape s = shape(M, N, group_size == 0 ? 5003 : 5000 / group_size * group_size);
          s.group_size = group_size;
          expect_same_bytes_in_parts(s, some);
        }
      }
    }
  });
}

/// What a float matmul with the dequantized weight gives for one non-finite activation.
TEST_P(Matmul, TreatsNonFiniteActivationsAsAFloatMatmulDoes) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for_each_choice([&] {
    for (const float special : {kInfinity, -kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
      for (const std::int64_t M : {1, 2, 3, 4, 5, 7, 8, 13, 14, 44}) {
        MatmulCase c(shape(M, 36, 128));
        store_float(c.x_data(), dtype(), 77, special);
        c.run();
        for (std::int64_t n = 0; n < 36; ++n) {
          const double w = weight_at(c.w(), n, 77).value;
          const double expected = static_cast<double>(special) * w;
          const float got = load_float(c.y(), dtype(), n);
          // Where |w| is lost in the rounding of scale * code - shift, either sign or NaN may come out.
          if (std::fabs(w) < 1e-6) continue;
          EXPECT_TRUE(std::isnan(expected) ? std::isnan(got) : got == static_cast<float>(expected))
              << "n = " << n << ": got " << got << ", expected " << expected;
        }
      }
    }
  });
}

TEST_P(Matmul, KeepsTinyActivations) {
  for_each_choice([&] {
    for (const std::int64_t M : {1, 2, 3, 4, 5, 7, 8, 13, 14, 44}) {
      CaseShape s = shape(M, 36, 128);
      s.with_bias = false;
      MatmulCase c(s);
      const float tiny = dtype() == DType::float16 ? 0x1p-20f : 0x1p-130f;
      for (std::int64_t i = 0; i < M * 128; ++i) store_float(c.x_data(), dtype(), i, i % 3 == 0 ? tiny : 3 * tiny);
      c.run();
      EXPECT_EQ(check_matmul(c.x(), c.w(), c.bias(), c.y()), "") << "M = " << M;
    }
  });
}

/// Of bfloat16: float16 holds no scales as small, and float32 sums would be subnormal themselves.
TEST_P(Matmul, KeepsSubnormalResults) {
  if (dtype() != DType::bfloat16) return;
  for_each_choice([&] {
    for (const std::int64_t M : {1, 4, 13, 44, 70}) {
      CaseShape s = shape(M, 36, 128);
      s.with_bias = false;
      s.shift_kind = ShiftKind::integer;
      MatmulCase c(s);
      for (std::int64_t i = 0; i < M * 128; ++i) store_float(c.x_data(), dtype(), i, i % 3 == 0 ? 0x1p-38f : -0x1p-39f);
      const std::int64_t scales = 36 * (s.group_size == 0 ? 1 : 128 / s.group_size);
      for (std::int64_t i = 0; i < scales; ++i) store_float(c.scale_data(), s.scale_dtype, i, 0x1p-100f);
      c.run();
      EXPECT_EQ(check_matmul(c.x(), c.w(), c.bias(), c.y()), "") << "M = " << M;
    }
  });
}

/// Magnitudes between which kernels may take activations apart or factor powers of two out of them.
TEST_P(Matmul, KeepsActivationsOfEveryMagnitude) {
  if (dtype() == DType::float16) return;  // its exponents are from -24 to 15
  for_each_choice([&] {
    for (const int exponent : {-110, -104, -81, -80, -79, -60, 60, 99, 100}) {
      for (const std::int64_t M : {1, 2, 3, 4, 5, 6, 7, 8, 14, 40}) {
        CaseShape s = shape(M, 36, 128);
        s.with_bias = false;
        MatmulCase c(s);
        for (std::int64_t i = 0; i < M * 128; ++i) {
          const float significand = 1.0f + static_cast<float>(i * 7919 % 8388608) * 0x1p-23f;
          store_float(c.x_data(), dtype(), i, std::ldexp(i % 3 == 0 ? -significand : significand, exponent));
        }
        c.run();
        EXPECT_EQ(check_matmul(c.x(), c.w(), c.bias(), c.y()), "") << "2^" << exponent << ", M = " << M;
      }
    }
  });
}

/// What some kernels decline, of each dtype.
std::vector<float> extreme_values(DType dtype) {
  std::vector<float> values = {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()};
  if (dtype != DType::float16) values.insert(values.end(), {0x1p100f, 0x1p120f, 0x1p-81f, 0x1p-130f});
  return values;
}

/// The bytes of all rows but one.
std::vector<std::uint8_t> bytes_without_row(const std::vector<std::uint8_t>& all, std::int64_t rows, std::int64_t row) {
  const auto row_bytes = static_cast<std::ptrdiff_t>(all.size()) / rows;
  std::vector<std::uint8_t> others(all.begin(), all.begin() + row * row_bytes);
  others.insert(others.end(), all.begin() + (row + 1) * row_bytes, all.end());
  return others;
}

/// One value that a kernel declines has another one serve the whole batch. Nothing else of it reaches other rows.
TEST_P(Matmul, KeepsExtremeValuesOfARowFromTheOthers) {
  for_each_choice([&] {
    for (const std::int64_t M : {2, 3, 5, 8, 14, 40}) {
      const CaseShape s = shape(M, 36, 128);
      MatmulCase plain(s);
      plain.run();
      const bool declines = matmul_kernel_name(plain.x(), plain.w(), true) != matmul_kernel_name(plain.x(), plain.w());
      for (const std::int64_t row : {std::int64_t{0}, M / 2, M - 1}) {
        std::set<std::vector<std::uint8_t>> results;
        if (!declines) results.insert(bytes_without_row(plain.result(), M, row));
        for (const float value : extreme_values(dtype())) {
          MatmulCase c(s);
          store_float(c.x_data(), dtype(), row * 128 + 77, value);
          c.run();
          results.insert(bytes_without_row(c.result(), M, row));
          ActivationView part = c.x();
          part.rows = 1;
          for (std::int64_t m = 0; m < M; ++m) {
            if (m == row) continue;
            part.data = c.x_data() + static_cast<std::size_t>(m * 128) * dtype_size(dtype());
            const auto* y = static_cast<const char*>(c.y()) + static_cast<std::size_t>(m * 36) * dtype_size(dtype());
            EXPECT_EQ(check_matmul(part, c.w(), c.bias(), y), "") << value << " in row " << row << ", row " << m;
          }
        }
        EXPECT_EQ(results.size(), 1u) << "row " << row << " of " << M;
      }
    }
  });
}

/// The kernels that serve what others decline, with whatever shapes those would have served.
TEST_P(Matmul, ServesExtremeValuesInAllShapes) {
  const float value = dtype() == DType::float16 ? std::numeric_limits<float>::infinity() : 0x1p-100f;
  std::vector<CaseShape> shapes;
  const auto add = [&](std::int64_t M, std::int64_t N, std::int64_t K, std::int64_t group_size) {
    shapes.push_back({qtype(), dtype(), dtype(), M, N, K, group_size});
  };
  for (const std::int64_t M : {1, 2, 3, 4, 5, 6, 7, 8, 12, 14, 24, 33, 49}) {
    for (const std::int64_t K : {1, 3, 15, 17, 31, 33, 63, 65, 127, 129, 2115}) add(M, 34, K, 0);
    for (const std::int64_t N : {1, 3, 5, 13, 17, 36, 65, 68}) {
      add(M, N, 67, 0);
      if (!is_affine(qtype())) continue;
      for (const std::int64_t group_size : {32, 64, 96, 128}) add(M, N, 3 * group_size, group_size);
    }
  }
  for_each_choice([&] {
    for (const CaseShape& s : shapes) {
      MatmulCase c(s);
      store_float(c.x_data(), dtype(), s.M * s.K - 1, value);
      c.run();
      ActivationView finite = c.x();
      if (!std::isfinite(value)) --finite.rows;
      EXPECT_EQ(check_matmul(finite, c.w(), c.bias(), c.y()), "")
          << describe(s) << " by " << matmul_kernel_name(c.x(), c.w(), true);
      const AtPageStart place;
      MatmulCase moved(s);
      store_float(moved.x_data(), dtype(), s.M * s.K - 1, value);
      moved.run();
      EXPECT_EQ(bytes_without_row(moved.result(), s.M, s.M - 1), bytes_without_row(c.result(), s.M, s.M - 1))
          << describe(s) << " after a guarded page";
    }
  });
}

/// Each thread finds by itself whether the kernel serves its activations.
TEST_P(Matmul, KeepsTinyActivationsOnEveryThread) {
  const float tiny = dtype() == DType::float16 ? 0x1p-20f : 0x1p-130f;
  for_each_choice([&] {
    for (const std::int64_t M : {1, 4, 8}) {
      for (const int threads : {1, 2, 5}) {
        set_thread_count(threads);
        CaseShape s = shape(M, 514, 1024);
        s.with_bias = false;
        MatmulCase c(s);
        for (std::int64_t i = 0; i < M * 1024; ++i) store_float(c.x_data(), dtype(), i, i % 3 == 0 ? tiny : 3 * tiny);
        c.run();
        EXPECT_EQ(check_matmul(c.x(), c.w(), c.bias(), c.y()), "") << M << " rows, " << threads << " threads";
      }
    }
    set_thread_count(2);
  });
}

TEST_P(Matmul, RunsTheKernelsOfTheForcedInstructionSetOrBelow) {
  for_each_choice([&] {
    MatmulCase c(shape(1, 64, 128));
    const std::string name = matmul_kernel_name(c.x(), c.w());
    const auto served_by = name.substr(0, name.find('/'));
    bool at_or_below = false;
    for (const IsaInfo& other : isas()) at_or_below |= other.isa <= active_isa() && other.name == served_by;
    EXPECT_TRUE(at_or_below) << name;
  });
}

INSTANTIATE_TEST_SUITE_P(AllCells, Matmul,
                         ::testing::Combine(::testing::Values(QType::qint2, QType::qint4, QType::qint8,
                                                              QType::qfloat8_e4m3fn, QType::qfloat8_e4m3fnuz,
                                                              QType::qfloat8_e5m2),
                                            ::testing::ValuesIn(kDTypes)),
                         [](const auto& param) {
                           return std::string(qtype_info(std::get<0>(param.param)).name) + "_" +
                                  std::string(dtype_name(std::get<1>(param.param)));
                         });

/// Calls visit(case, kernel's name, what check says of its results) for activations of every dtype and for int8 ones,
/// and the shape of a packed weight.
template <class Visit>
void for_each_activation(QType qtype, std::int64_t M, std::int64_t N, std::int64_t K, std::int64_t group_size,
                         Visit visit) {
  for (const DType dtype : kDTypes) {
    MatmulCase c({qtype, dtype, dtype, M, N, K, group_size});
    visit(c, matmul_kernel_name(c.x(), c.w()), [&] { return check_matmul(c.x(), c.w(), c.bias(), c.y()); });
  }
  CodesCase c(QType::qint8, {qtype, DType::float32, DType::float32, M, N, K, group_size}, true);
  visit(c, matmul_codes_kernel_name(c.x(), c.w()),
        [&] { return check_matmul_codes(c.x(), c.w(), c.bias(), c.dtype(), c.y()); });
}

void expect_fast_kernel(const std::string& name, std::int64_t M, std::int64_t N, std::int64_t group_size) {
  EXPECT_NE(name.substr(name.rfind('/')), "/rows") << name << " M=" << M << " N=" << N << " g=" << group_size;
}

TEST(MatmulKernels, GroupsOfAnyMultipleOf32RunOnFastKernels) {
  for_each_choice([] {
    for (const QType qtype : {QType::qint2, QType::qint4}) {
      for (const std::int64_t group_size : {0, 32, 64, 96, 128, 160, 192, 224, 256}) {
        for (const std::int64_t N : {63, 64, 66}) {
          for (const std::int64_t M : {1, 2, 4, 8, 12, 17, 22, 45}) {
            for_each_activation(
                qtype, M, N, group_size == 0 ? 1000 : 3 * group_size, group_size,
                [&](auto&, const std::string& name, auto) { expect_fast_kernel(name, M, N, group_size); });
          }
        }
      }
    }
  });
}

TEST(MatmulKernels, ChannelsThatStraddleFieldsRunOnFastKernels) {
  for_each_choice([] {
    for (const QType qtype : {QType::qint2, QType::qint4}) {
      for (const std::int64_t group_size : {0, 32, 96, 128}) {
        for (const std::int64_t M : {1, 3, 8, 14, 30}) {
          for (const std::int64_t N : {1, 2, 3, 5, 7, 9, 17, 33, 71}) {
            for (const std::int64_t groups : {1, 2, 3, 4, 7}) {
              for_each_activation(qtype, M, N, group_size == 0 ? 75 * groups : group_size * groups, group_size,
                                  [&](auto& c, const std::string& name, auto check) {
                                    expect_fast_kernel(name, M, N, group_size);
                                    c.run();
                                    EXPECT_EQ(check(), "") << name << " M=" << M << " N=" << N << " g=" << group_size
                                                           << " groups=" << groups;
                                  });
            }
          }
        }
      }
    }
  });
}

TEST(MatmulKernels, FewRowsRunInTilesWhereThereAreSome) {
  for_each_choice([] {
    if (active_isa() != Isa::avx512_amx) return;
    for (const QType qtype : {QType::qint2, QType::qint4, QType::qint8, QType::qfloat8_e5m2}) {
      for (const DType dtype : kDTypes) {
        for (const std::int64_t M : {9, 12, 14, 16}) {
          MatmulCase c({qtype, dtype, dtype, M, 64, 256, is_affine(qtype) ? 64 : 0});
          const std::string name = matmul_kernel_name(c.x(), c.w());
          EXPECT_NE(name.find("/few_rows_tiles"), std::string::npos) << name << " M=" << M;
        }
      }
    }
  });
}

TEST(MatmulFloat8, DecodesEveryCode) {
  for_each_choice([] {
    for (const QType qtype : {QType::qfloat8_e4m3fn, QType::qfloat8_e4m3fnuz, QType::qfloat8_e5m2}) {
      for (const DType dtype : kDTypes) {
        // Rows that kernels block differently. With steps of 3 the codes of NaN lie in the first chunks.
        for (const auto& [M, step] :
             {std::pair{1, 1}, {2, 3}, {3, 3}, {4, 3}, {5, 1}, {6, 3}, {8, 3}, {14, 1}, {44, 1}}) {
          // One code per output channel: each result is that code, whatever its neighbours hold.
          constexpr std::int64_t kK = 150;  // codes lie in whole chunks of every kernel and after them
          std::vector<std::uint8_t> codes(256 * kK, 0);
          for (std::int64_t n = 0; n < 256; ++n)
            codes[static_cast<std::size_t>(n * kK + step * n % kK)] = static_cast<std::uint8_t>(n);
          std::vector<float> ones(static_cast<std::size_t>(M * kK), 0.0f), y(static_cast<std::size_t>(M * 256));
          for (std::int64_t i = 0; i < M * kK; ++i) store_float(ones.data(), dtype, i, 1.0f);
          const float scale = 1.0f;
          WeightView w{};
          w.qtype = qtype;
          w.data = codes.data();
          w.out_features = 256;
          w.in_features = kK;
          w.scale = &scale;
          w.scale_dtype = DType::float32;
          w.per_tensor_scale = true;
          matmul({ones.data(), dtype, M, kK}, w, nullptr, y.data());
          for (std::int64_t i = 0; i < M * 256; ++i) {
            const float expected = float8_decode(qtype, static_cast<std::uint8_t>(i % 256));
            const float got = load_float(y.data(), dtype, i);
            ASSERT_TRUE(std::isnan(expected) ? std::isnan(got) : got == expected)
                << qtype_info(qtype).name << " " << dtype_name(dtype) << " code " << i % 256 << ": got " << got
                << ", expected " << expected;
          }
        }
      }
    }
  });
}

TEST(Matmul, AScaleReachesItsOwnChannelOnly) {
  constexpr std::int64_t kChannels = 16, kGroups = 3, kSpoilt = 5;  // groups that end within a chunk
  for_each_choice([] {
    for (const QType qtype : {QType::qint4, QType::qint2}) {
      for (const DType dtype : {DType::bfloat16, DType::float32}) {
        for (const std::int64_t rows : {1, 3, 8, 20, 70}) {
          MatmulCase c({qtype, dtype, DType::float32, rows, kChannels, kGroups * 96, 96});
          c.run();
          const std::vector<std::uint8_t> expected = c.result();
          for (std::int64_t j = 0; j < kGroups; ++j) {
            store_float(c.scale_data(), DType::float32, kSpoilt * kGroups + j, std::numeric_limits<float>::infinity());
          }
          c.run();
          const std::vector<std::uint8_t> found = c.result();
          for (std::int64_t i = 0; i < rows * kChannels; ++i) {
            if (i % kChannels == kSpoilt) continue;
            EXPECT_EQ(load_float(found.data(), dtype, i), load_float(expected.data(), dtype, i))
                << rows << " rows, channel " << i % kChannels;
          }
        }
      }
    }
  });
}

}  // namespace
}  // namespace quanto::testing
