#include "kernels/rows-inl.h"

extern "C" const quanto::kernels::KernelTable quanto_kernels_avx512 = quanto::kernels::rows_table(quanto::Isa::avx512);
