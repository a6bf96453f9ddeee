#include "quanto/cores.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cases.h"
#include "each_isa.h"
#include "quanto/error.h"
#include "quanto/matmul.h"
#include "quanto/qtype.h"

namespace quanto::testing {
namespace {

TEST(Cores, ForcingAKindMakesItActiveUntilItIsRestored) {
  const Cores before = active_cores();
  for (const auto& [name, cores] : {std::pair{"general", Cores::general}, std::pair{"zen4", Cores::zen4}}) {
    const ScopedCores scope(name);
    EXPECT_EQ(active_cores(), cores);
    EXPECT_EQ(cores_name(active_cores()), name);
  }
  EXPECT_EQ(active_cores(), before);
}

TEST(Cores, ForcingAnUnknownKindIsAnErrorThatListsTheOthers) {
  const Cores before = active_cores();
  try {
    force_cores("apple");
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[force_cores] cores: got 'apple', expected one of general, zen4");
  }
  EXPECT_EQ(active_cores(), before);
}

/// How codes are fetched has no part in the result: where kernels are the same, so are the bytes.
TEST(Cores, GiveTheSameBytesWhereKernelsAreTheSame) {
  int compared = 0;
  for_each_isa([&] {
    for (const QType qtype : {QType::qint2, QType::qint4, QType::qint8, QType::qfloat8_e4m3fn}) {
      for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
        for (const std::int64_t M : {1, 2, 3, 4, 8, 14}) {
          MatmulCase c({qtype, dtype, dtype, M, 68, 320, is_affine(qtype) ? 64 : 0});
          std::string names[2];
          std::vector<std::uint8_t> results[2];
          for (const int kind : {0, 1}) {
            const ScopedCores scope(kind == 0 ? "general" : "zen4");
            names[kind] = matmul_kernel_name(c.x(), c.w());
            c.run();
            results[kind] = c.result();
          }
          if (names[0] != names[1]) continue;
          EXPECT_EQ(results[0], results[1]) << names[0] << " M = " << M;
          ++compared;
        }
      }
    }
  });
  EXPECT_GE(compared, 72);  // all of a single instruction set
}

}  // namespace
}  // namespace quanto::testing
