// Runs a test body with every instruction set of the machine, and with the kernels of every kind of cores.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <string_view>

#include "quanto/cores.h"
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

/// Has kernels chosen for one kind of cores for its lifetime.
class ScopedCores {
 public:
  explicit ScopedCores(std::string_view name) { force_cores(name); }
  ~ScopedCores() { force_cores(""); }
  ScopedCores(const ScopedCores&) = delete;
  ScopedCores& operator=(const ScopedCores&) = delete;
};

/// Every choice of kernels for matrix products: instruction sets, and kinds of cores.
template <class Body>
void for_each_choice(Body body) {
  for_each_isa([&] {
    for (const std::string_view cores : {"general", "zen4"}) {
      if (active_isa() == Isa::portable && cores != "general") continue;  // chooses the same for all
      SCOPED_TRACE(std::string(cores));
      const ScopedCores scope(cores);
      body();
    }
  });
}

}  // namespace quanto::testing
