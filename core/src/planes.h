// The matmul of activations that lie in planes, for conv.cpp.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "kernels/kernel_table.h"
#include "quanto/matmul.h"

namespace quanto {

/// Whether the kernel that multiplies `rows` rows of this dtype reads them from planes as well.
bool matmul_takes_planes(DType dtype, std::int64_t rows, const WeightView& w);

/// matmul() of `rows` activations in planes; y has the layout that `planes` says. False, with nothing written, if the
/// kernel that serves the values of x does not take planes. Only where matmul_takes_planes(). `workspace`: memory that
/// the blocks of a convolution share.
bool matmul_planes(const void* x, DType dtype, std::int64_t rows, const kernels::Planes& planes, const WeightView& w,
                   const void* bias, void* y, GrowingBuffer& workspace);

}  // namespace quanto
