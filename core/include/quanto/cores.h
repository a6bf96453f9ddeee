// What is known of the machine's cores beyond their instruction set: which kernels are fastest on them, and how they
// read memory fastest. All kernels run on all cores, with results of the same accuracy, but not of the same bytes,
// since kernels differ in the order of their additions.
#pragma once

#include <string_view>

#include "quanto/types.h"

namespace quanto {

/// The kind that kernels are chosen for: the forced one, else the one named by the environment variable QUANTO_CORES
/// (read once), else that of this machine. Throws Error if QUANTO_CORES names an unknown one.
Cores active_cores();

/// Chooses kernels for cores called `name` in the whole process; an empty name restores the default. Throws Error,
/// changing nothing, if the name is unknown.
void force_cores(std::string_view name);

/// "general" or "zen4".
std::string_view cores_name(Cores cores);

}  // namespace quanto
