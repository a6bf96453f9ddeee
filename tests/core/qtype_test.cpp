#include "quanto/qtype.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "quanto/error.h"

namespace quanto {
namespace {

TEST(QTypes, EveryRowIsFoundByItsTypeAndByItsName) {
  ASSERT_EQ(qtypes().size(), static_cast<std::size_t>(kQTypeCount));
  std::set<std::string_view> names;
  for (const QTypeInfo& info : qtypes()) {
    EXPECT_EQ(&qtype_info(info.qtype), &info);
    EXPECT_EQ(qtype_from_name(info.name), info.qtype);
    names.insert(info.name);
  }
  EXPECT_EQ(names.size(), qtypes().size());
}

TEST(QTypes, RangesFollowFromTheBits) {
  for (const QTypeInfo& info : qtypes()) {
    if (info.is_floating_point) {
      EXPECT_EQ(info.qmin, -info.qmax) << info.name;
      EXPECT_EQ("q" + std::string(info.storage), info.name);
    } else {
      EXPECT_EQ(info.qmin, -(1 << (info.bits - 1))) << info.name;
      EXPECT_EQ(info.qmax, (1 << (info.bits - 1)) - 1) << info.name;
      EXPECT_EQ("qint" + std::to_string(info.bits), info.name);
    }
    EXPECT_EQ(is_affine(info.qtype), info.bits < 8) << info.name;
  }
}

TEST(QTypes, AnUnknownNameIsAnErrorThatListsTheKnownOnes) {
  try {
    qtype_from_name("qint3");
    FAIL() << "expected an error";
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("[qtype_from_name] name: got 'qint3', expected one of"), std::string::npos) << message;
    for (const QTypeInfo& info : qtypes()) EXPECT_NE(message.find(info.name), std::string::npos) << message;
  }
  EXPECT_THROW(qtype_from_name(""), Error);
  EXPECT_THROW(qtype_from_name("QINT4"), Error);
}

TEST(DTypes, NamesAndSizes) {
  EXPECT_EQ(dtype_name(DType::float32), "float32");
  EXPECT_EQ(dtype_name(DType::bfloat16), "bfloat16");
  EXPECT_EQ(dtype_name(DType::float16), "float16");
  EXPECT_EQ(dtype_size(DType::float32), 4u);
  EXPECT_EQ(dtype_size(DType::bfloat16), 2u);
  EXPECT_EQ(dtype_size(DType::float16), 2u);
}

}  // namespace
}  // namespace quanto
