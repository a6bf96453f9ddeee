#include "quanto/isa.h"

#include <gtest/gtest.h>

#include <string>

#include "quanto/error.h"

namespace quanto {
namespace {

TEST(Isa, PortableIsAlwaysThere) {
  const IsaInfo& portable = isas().front();
  EXPECT_EQ(portable.isa, Isa::portable);
  EXPECT_EQ(portable.name, "portable");
  EXPECT_TRUE(portable.supported);
}

TEST(Isa, SupportedOnesAreCompiled) {
  for (const IsaInfo& isa : isas()) EXPECT_TRUE(isa.compiled || !isa.supported) << isa.name;
}

TEST(Isa, ForcingOneMakesItActiveUntilItIsRestored) {
  const Isa before = active_isa();
  force_isa("portable");
  EXPECT_EQ(active_isa(), Isa::portable);
  force_isa("");
  EXPECT_EQ(active_isa(), before);
}

TEST(Isa, ForcingAnUnknownOneIsAnErrorThatListsTheOthers) {
  const Isa before = active_isa();
  try {
    force_isa("quantum");
    FAIL() << "expected an error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("got 'quantum'"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("portable"), std::string::npos) << error.what();
  }
  EXPECT_EQ(active_isa(), before);
}

}  // namespace
}  // namespace quanto
