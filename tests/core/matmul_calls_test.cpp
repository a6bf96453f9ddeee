// Calls of matmul: of nothing, in other processes, with bad arguments.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <limits>
#include <string>

#include "cases.h"
#include "each_isa.h"
#include "oracle.h"
#include "quanto/cores.h"
#include "quanto/error.h"
#include "quanto/isa.h"
#include "quanto/matmul.h"
#include "quanto/parallel.h"

namespace quanto::testing {
namespace {

TEST(MatmulEdges, EmptyShapes) {
  for (const QType qtype : {QType::qint8, QType::qint4}) {
    for (const auto& [M, N, K] : {std::tuple{0, 4, 8}, std::tuple{4, 0, 8}, std::tuple{0, 0, 0}}) {
      MatmulCase c({qtype, DType::float32, DType::float32, M, N, K});
      EXPECT_NO_THROW(c.run());
    }
    MatmulCase no_products({qtype, DType::float32, DType::float32, 3, 4, 0});
    no_products.run();
    EXPECT_EQ(check_matmul(no_products.x(), no_products.w(), no_products.bias(), no_products.y()), "");
  }
}

/// What a process may use, its threads and its children may use too.
TEST(MatmulProcess, GivesTheSameBytesInAForkedChild) {
  for_each_choice([] {
    MatmulCase c({QType::qint4, DType::bfloat16, DType::bfloat16, 40, 130, 256, 64});
    c.run();
    const auto expected = c.result();
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      c.run();
      _exit(std::memcmp(c.y(), expected.data(), expected.size()) == 0 ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  });
}

/// Whether a call asks for other threads than its own. In a forked child, which keeps its backend for itself.
bool asks_for_threads(const CaseShape& shape) {
  static int asked;
  asked = 0;
  MatmulCase c(shape);
  const pid_t child = fork();
  if (child == 0) {
    set_parallel_backend({[](std::int64_t size, std::int64_t, ParallelBody body, void* context) {
                            ++asked;
                            body(context, 0, size);
                          },
                          [] { return 4; }});
    c.run();
    _exit(asked);
  }
  int status = -1;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << status;
  return WEXITSTATUS(status) != 0;
}

/// Waking one costs more than it saves, on some cores for longer than on others.
TEST(MatmulProcess, SmallCallsStayOnOneThread) {
  for_each_choice([] {
    for (const QType qtype : {QType::qint2, QType::qint4, QType::qint8, QType::qfloat8_e4m3fn}) {
      for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
        for (const auto& [M, N, K] : {std::tuple{1, 64, 64}, {32, 64, 64}, {4, 128, 256}, {1, 256, 512}}) {
          EXPECT_FALSE(asks_for_threads({qtype, dtype, dtype, M, N, K})) << M << " x " << N << " x " << K;
        }
        for (const auto& [M, N, K] : {std::tuple{1, 2048, 1024}, {64, 256, 256}}) {
          EXPECT_TRUE(asks_for_threads({qtype, dtype, dtype, M, N, K})) << M << " x " << N << " x " << K;
        }
      }
      const bool zen4 = active_cores() == Cores::zen4;
      const auto asks = [&](DType dtype, std::int64_t M) {
        return asks_for_threads({qtype, dtype, dtype, M, 192, 576});
      };
      if (active_isa() == Isa::avx512) {
        EXPECT_EQ(asks(DType::float32, 4), zen4);
      } else if (active_isa() == Isa::avx512_bf16) {
        EXPECT_EQ(asks(DType::bfloat16, 8), zen4);
      }
    }
  });
}

template <class Call>
std::string error_in(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

/// Of the multiplication; fetching for it has to find the same.
std::string error_of(const ActivationView& x, const WeightView& w) {
  float y[64];
  const std::string found = error_in([&] { matmul(x, w, nullptr, y); });
  EXPECT_EQ(error_in([&] { matmul_fetch(x, w); }), found);
  return found;
}

TEST(MatmulErrors, NameTheArgument) {
  MatmulCase c({QType::qint4, DType::float32, DType::float32, 1, 4, 64, 32});
  WeightView w = c.w();
  w.group_size = 48;
  EXPECT_EQ(error_of(c.x(), w), "[matmul] group_size: got 48, expected 0 or a divisor of in_features = 64");
  w = c.w();
  w.shift = nullptr;
  EXPECT_EQ(error_of(c.x(), w), "[matmul] shift: got none, expected one for each group");
  w = c.w();
  w.scale = nullptr;
  EXPECT_EQ(error_of(c.x(), w), "[matmul] scale: got none, expected one for each channel or group");
  w = c.w();
  w.in_features = -1;
  EXPECT_NE(error_of(c.x(), w).find("[matmul] "), std::string::npos);
  w.in_features = std::numeric_limits<std::int64_t>::max() / 2;
  EXPECT_NE(error_of(c.x(), w).find("[matmul] shape"), std::string::npos);
  w = c.w();
  w.per_tensor_scale = true;
  EXPECT_EQ(error_of(c.x(), w), "[matmul] scale: got a single element, expected one for each group");
  MatmulCase bytes({QType::qint8, DType::float32, DType::float32, 1, 4, 64});
  w = bytes.w();
  w.group_size = 32;
  EXPECT_EQ(error_of(bytes.x(), w), "[matmul] group_size: got 32, expected 0 for an 8-bit qtype");
  w = bytes.w();
  w.shift_kind = ShiftKind::floating;
  EXPECT_EQ(error_of(bytes.x(), w), "[matmul] shift: got a shift, expected none for an 8-bit qtype");
  ActivationView x = bytes.x();
  x.rows = -1;
  EXPECT_NE(error_of(x, bytes.w()).find("[matmul] shape"), std::string::npos);
  x.rows = 2;
  x.row_stride = -64;
  EXPECT_NE(error_of(x, bytes.w()).find("[matmul] row_stride: got -64"), std::string::npos);
  x.row_stride = std::numeric_limits<std::int64_t>::max() / 4;
  EXPECT_NE(error_of(x, bytes.w()).find("[matmul] shape"), std::string::npos);
}

}  // namespace
}  // namespace quanto::testing
