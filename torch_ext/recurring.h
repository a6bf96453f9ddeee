// Memory of large results that live for a part of each training step, such as the rounded weights.
#pragma once

#include "tensors.h"

namespace quanto::torch_ext {

/// An uninitialized contiguous CPU tensor. A large one lies apart from the heap, in memory that is kept for the next
/// one when it is freed; its storage cannot be resized.
Tensor empty_recurring(const std::vector<std::int64_t>& sizes, ScalarType dtype);

/// Gives the memory that is kept back to the operating system.
void release_recurring_memory();

}  // namespace quanto::torch_ext
