#include "kernels/quantize_units-inl.h"

extern "C" const quanto::kernels::QuantizeKernels quanto_quantize_avx512 =
    quanto::kernels::quantize_kernels(quanto::Isa::avx512);
