// The subcommands of `quanto`, a file each.
#pragma once

#include <CLI/CLI.hpp>

namespace quanto::cli {

/// `quanto isas`: the instruction sets, and which kernels serve on this machine.
void add_isas(CLI::App& app);

/// `quanto qtypes`: the table of quantized types.
void add_qtypes(CLI::App& app);

}  // namespace quanto::cli
