#include "kernels/rows-inl.h"

extern "C" const quanto::kernels::KernelTable quanto_kernels_portable =
    quanto::kernels::rows_table(quanto::Isa::portable);
