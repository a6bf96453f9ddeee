// Runs a test body with every instruction set of the machine.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "quanto/isa.h"

namespace quanto::testing {

/// Makes one instruction set active for its lifetime.
class ScopedIsa {
 public:
  explicit ScopedIsa(std::string_view name) { force_isa(name); }
  ~ScopedIsa() { force_isa(""); }
  ScopedIsa(const ScopedIsa&) = delete;
  ScopedIsa& operator=(const ScopedIsa&) = delete;
};

template <class Body>
void for_each_isa(Body body) {
  for (const IsaInfo& isa : isas()) {
    if (!isa.supported) continue;
    SCOPED_TRACE(std::string(isa.name));
    const ScopedIsa scope(isa.name);
    ASSERT_EQ(active_isa(), isa.isa);
    body();
  }
}

}  // namespace quanto::testing
