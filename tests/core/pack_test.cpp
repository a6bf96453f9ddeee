// Every 2- and 4-bit byte, every number of rows around a multiple of the codes per byte, and grouping.
#include "quanto/pack.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "quanto/error.h"

namespace quanto {
namespace {

using Bytes = std::vector<std::uint8_t>;

class Pack : public ::testing::TestWithParam<int> {
 protected:
  int bits() const { return GetParam(); }
  int per_byte() const { return 8 / GetParam(); }
  std::uint8_t mask() const { return static_cast<std::uint8_t>((1 << GetParam()) - 1); }
};

TEST_P(Pack, EveryByteUnpacksToItsFieldsAndPacksBack) {
  Bytes packed(256);
  std::iota(packed.begin(), packed.end(), 0);
  Bytes codes(256 * static_cast<std::size_t>(per_byte()));
  unpack(packed.data(), 1, 256, bits(), codes.data());
  for (int field = 0; field < per_byte(); ++field) {
    for (int byte = 0; byte < 256; ++byte) {
      ASSERT_EQ(codes[static_cast<std::size_t>(field * 256 + byte)], (byte >> (field * bits())) & mask());
    }
  }
  Bytes again(256, 0xa5);
  pack(codes.data(), per_byte(), 256, bits(), again.data());
  EXPECT_EQ(again, packed);
}

TEST_P(Pack, ByteRowsJoinRowsThatArePackedRowsApart) {
  for (std::int64_t rows = 0; rows <= 13; ++rows) {
    for (const std::int64_t cols : {0, 1, 3, 64, 67}) {
      Bytes codes(static_cast<std::size_t>(rows * cols));
      for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i * 7 + i / 5) & mask();
      const std::int64_t step = packed_rows(rows, bits());
      Bytes packed(static_cast<std::size_t>(step * cols), 0xa5);
      pack(codes.data(), rows, cols, bits(), packed.data());
      for (std::int64_t r = 0; r < step * per_byte(); ++r) {
        for (std::int64_t c = 0; c < cols; ++c) {
          const int byte = packed[static_cast<std::size_t>(r % step * cols + c)];
          const int expected = r < rows ? codes[static_cast<std::size_t>(r * cols + c)] : 0;
          ASSERT_EQ((byte >> (r / step * bits())) & mask(), expected) << rows << "x" << cols << " at " << r << "," << c;
        }
      }
      Bytes unpacked(static_cast<std::size_t>(step * per_byte() * cols));
      unpack(packed.data(), step, cols, bits(), unpacked.data());
      EXPECT_TRUE(std::equal(codes.begin(), codes.end(), unpacked.begin()));
    }
  }
}

TEST_P(Pack, LargeMatricesDoNotDependOnHowTheyAreShared) {
  const std::int64_t rows = 1001, cols = 513;
  Bytes codes(static_cast<std::size_t>(rows * cols));
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i * 2654435761u >> 24) & mask();
  const std::int64_t step = packed_rows(rows, bits());
  Bytes packed(static_cast<std::size_t>(step * cols));
  pack(codes.data(), rows, cols, bits(), packed.data());
  Bytes unpacked(static_cast<std::size_t>(step * per_byte() * cols));
  unpack(packed.data(), step, cols, bits(), unpacked.data());
  EXPECT_TRUE(std::equal(codes.begin(), codes.end(), unpacked.begin()));
}

INSTANTIATE_TEST_SUITE_P(Bits, Pack, ::testing::Values(2, 4));

TEST(PackErrors, NameWhatIsWrong) {
  std::uint8_t byte = 0;
  EXPECT_THROW(packed_rows(4, 3), Error);
  EXPECT_THROW(packed_rows(-1, 4), Error);
  EXPECT_THROW(pack(&byte, -1, 1, 4, &byte), Error);
  EXPECT_THROW(unpack(&byte, 1, -1, 4, &byte), Error);
  EXPECT_THROW(unpack(&byte, INT64_MAX / 2, 4, 4, &byte), Error);
  EXPECT_THROW(group_last(&byte, 3, 1, 1, 1, &byte), Error);
  try {
    pack(&byte, 1, 1, 8, &byte);
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "[pack] bits: got 8, expected 2 or 4");
  }
}

template <class T>
void check_grouping(std::int64_t groups, std::int64_t group_size, std::int64_t cols) {
  std::vector<T> in(static_cast<std::size_t>(groups * group_size * cols));
  std::iota(in.begin(), in.end(), T{1});
  std::vector<T> grouped(in.size()), back(in.size());
  group_last(in.data(), sizeof(T), groups, group_size, cols, grouped.data());
  for (std::int64_t i = 0; i < groups; ++i) {
    for (std::int64_t j = 0; j < group_size; ++j) {
      for (std::int64_t d = 0; d < cols; ++d) {
        ASSERT_EQ(grouped[static_cast<std::size_t>(j * cols * groups + d * groups + i)],
                  in[static_cast<std::size_t>((i * group_size + j) * cols + d)]);
      }
    }
  }
  ungroup_last(grouped.data(), sizeof(T), groups, group_size, cols, back.data());
  EXPECT_EQ(back, in);
}

TEST(Grouping, FollowsItsDefinitionAndHasAnInverse) {
  for (const std::int64_t cols : {0, 1, 5, 96}) {
    check_grouping<std::uint8_t>(3, 32, cols);
    check_grouping<std::uint16_t>(2, 128, cols);
    check_grouping<std::uint32_t>(1, 7, cols);
    check_grouping<std::uint32_t>(0, 32, cols);
  }
}

}  // namespace
}  // namespace quanto
