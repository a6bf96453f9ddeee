// Every 2- and 4-bit byte, every number of rows around a multiple of the codes per byte, and grouping.
#include "quanto/pack.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "cases.h"
#include "quanto/error.h"

namespace quanto {
namespace {

using testing::AtPageStart;
using testing::GuardedBytes;
using Bytes = std::vector<std::uint8_t>;

/// `count` elements that `function(out)` writes from `in`, each between guarded pages.
template <class T, class Function>
std::vector<T> in_guarded_pages(const std::vector<T>& in, std::size_t count, Function function) {
  std::vector<T> results[2];
  for (const bool at_start : {false, true}) {
    const AtPageStart place(at_start);
    GuardedBytes from(in.size() * sizeof(T)), to(count * sizeof(T));
    std::copy_n(reinterpret_cast<const std::uint8_t*>(in.data()), from.size(), from.data());
    std::fill_n(to.data(), to.size(), std::uint8_t{0xa5});
    function(from.data(), to.data());
    results[at_start].resize(count);
    std::copy_n(to.data(), to.size(), reinterpret_cast<std::uint8_t*>(results[at_start].data()));
  }
  EXPECT_EQ(results[0], results[1]);
  return results[0];
}

Bytes packed(const Bytes& codes, std::int64_t rows, std::int64_t cols, int bits) {
  return in_guarded_pages(codes, static_cast<std::size_t>(packed_rows(rows, bits) * cols),
                          [&](const std::uint8_t* from, std::uint8_t* to) { pack(from, rows, cols, bits, to); });
}

/// With the padding rows.
Bytes unpacked(const Bytes& packed, std::int64_t packed_rows, std::int64_t cols, int bits) {
  return in_guarded_pages(
      packed, static_cast<std::size_t>(8 / bits * packed_rows * cols),
      [&](const std::uint8_t* from, std::uint8_t* to) { unpack(from, packed_rows, cols, bits, to); });
}

class Pack : public ::testing::TestWithParam<int> {
 protected:
  int bits() const { return GetParam(); }
  int per_byte() const { return 8 / GetParam(); }
  std::uint8_t mask() const { return static_cast<std::uint8_t>((1 << GetParam()) - 1); }
};

TEST_P(Pack, EveryByteUnpacksToItsFieldsAndPacksBack) {
  Bytes bytes(256);
  std::iota(bytes.begin(), bytes.end(), 0);
  const Bytes codes = unpacked(bytes, 1, 256, bits());
  for (int field = 0; field < per_byte(); ++field) {
    for (int byte = 0; byte < 256; ++byte) {
      ASSERT_EQ(codes[static_cast<std::size_t>(field * 256 + byte)], (byte >> (field * bits())) & mask());
    }
  }
  EXPECT_EQ(packed(codes, per_byte(), 256, bits()), bytes);
}

TEST_P(Pack, ByteRowsJoinRowsThatArePackedRowsApart) {
  for (std::int64_t rows = 0; rows <= 13; ++rows) {
    for (const std::int64_t cols : {0, 1, 3, 64, 67}) {
      Bytes codes(static_cast<std::size_t>(rows * cols));
      for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i * 7 + i / 5) & mask();
      const std::int64_t step = packed_rows(rows, bits());
      const Bytes bytes = packed(codes, rows, cols, bits());
      for (std::int64_t r = 0; r < step * per_byte(); ++r) {
        for (std::int64_t c = 0; c < cols; ++c) {
          const int byte = bytes[static_cast<std::size_t>(r % step * cols + c)];
          const int expected = r < rows ? codes[static_cast<std::size_t>(r * cols + c)] : 0;
          ASSERT_EQ((byte >> (r / step * bits())) & mask(), expected) << rows << "x" << cols << " at " << r << "," << c;
        }
      }
      const Bytes again = unpacked(bytes, step, cols, bits());
      EXPECT_TRUE(std::equal(codes.begin(), codes.end(), again.begin()));
    }
  }
}

TEST_P(Pack, LargeMatricesDoNotDependOnHowTheyAreShared) {
  const std::int64_t rows = 1001, cols = 513;
  Bytes codes(static_cast<std::size_t>(rows * cols));
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::uint8_t>(i * 2654435761u >> 24) & mask();
  const Bytes again = unpacked(packed(codes, rows, cols, bits()), packed_rows(rows, bits()), cols, bits());
  EXPECT_TRUE(std::equal(codes.begin(), codes.end(), again.begin()));
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
  const auto grouped = in_guarded_pages(
      in, in.size(), [&](const void* from, void* to) { group_last(from, sizeof(T), groups, group_size, cols, to); });
  for (std::int64_t i = 0; i < groups; ++i) {
    for (std::int64_t j = 0; j < group_size; ++j) {
      for (std::int64_t d = 0; d < cols; ++d) {
        ASSERT_EQ(grouped[static_cast<std::size_t>(j * cols * groups + d * groups + i)],
                  in[static_cast<std::size_t>((i * group_size + j) * cols + d)]);
      }
    }
  }
  EXPECT_EQ(in_guarded_pages(
                grouped, in.size(),
                [&](const void* from, void* to) { ungroup_last(from, sizeof(T), groups, group_size, cols, to); }),
            in);
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
