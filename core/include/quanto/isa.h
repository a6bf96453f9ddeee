// The instruction sets that kernels exist for: list, active one, choice by name.
#pragma once

#include <span>
#include <string_view>

#include "quanto/types.h"

namespace quanto {

struct IsaInfo {
  Isa isa;
  std::string_view name;       ///< "portable", "avx2", "avx512", "avx512_bf16", "avx512_amx"
  std::string_view requires_;  ///< CPU features it needs, for people
  bool compiled;               ///< this build has its kernels
  bool supported;              ///< compiled, and this CPU and operating system can run it
};

/// All instruction sets, from least to most capable.
std::span<const IsaInfo> isas();

/// The instruction set whose kernels run: the forced one, else the one named by the environment variable QUANTO_ISA
/// (read once), else the most capable supported one. Throws Error if QUANTO_ISA names an unknown or unsupported one.
Isa active_isa();

/// Makes `name` the active instruction set for the whole process; an empty name restores the default.
/// Throws Error, changing nothing, if the name is unknown or this machine does not support it.
void force_isa(std::string_view name);

std::string_view isa_name(Isa isa);

}  // namespace quanto
