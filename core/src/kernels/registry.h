// Which kernels run: the one place that decides.
#pragma once

#include "kernels/kernel_table.h"
#include "kernels/quantize_table.h"

namespace quanto::kernels {

/// True if this build has the kernels of `isa`.
bool is_compiled(Isa isa);

/// A kernel and the instruction set that it comes from.
struct Choice {
  Isa isa;
  const MatmulKernel* kernel;
};

/// The first kernel that supports `args`, from the active instruction set downwards. There always is one: the portable
/// table serves everything.
Choice choose_matmul(const MatmulArgs& args);

/// The row kernels of the active instruction set, or of the next less capable one that has its own.
const QuantizeKernels& quantize_kernels();

}  // namespace quanto::kernels
