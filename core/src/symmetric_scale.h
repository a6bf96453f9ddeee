// The arithmetic of symmetric scales, for every function that finds one.
#pragma once

#include <cstdint>

#include "quanto/types.h"

namespace quanto {

/// The scale of a range whose largest magnitude has this bit pattern in `dtype` (QuantizeKernels::absmax): see
/// absmax_scale.
float symmetric_scale(DType dtype, float qmax, std::uint32_t absmax_pattern);

}  // namespace quanto
