// One element of a float array of any dtype at any address, as float32. Internal linkage, no std: the per-ISA units
// include this file too.
#pragma once

#include <cstdint>

#include "codec-inl.h"
#include "quanto/types.h"

namespace quanto {

static inline float load_float(const void* base, DType dtype, std::int64_t index) {
  const char* at = static_cast<const char*>(base);
  if (dtype == DType::float32) {
    float value;
    __builtin_memcpy(&value, at + index * 4, 4);
    return value;
  }
  std::uint16_t bits;
  __builtin_memcpy(&bits, at + index * 2, 2);
  return dtype == DType::bfloat16 ? bfloat16_to_float(bits) : float16_to_float(bits);
}

/// Rounds half to even.
static inline void store_float(void* base, DType dtype, std::int64_t index, float value) {
  char* at = static_cast<char*>(base);
  if (dtype == DType::float32) {
    __builtin_memcpy(at + index * 4, &value, 4);
    return;
  }
  const std::uint16_t bits = dtype == DType::bfloat16 ? float_to_bfloat16(value) : float_to_float16(value);
  __builtin_memcpy(at + index * 2, &bits, 2);
}

}  // namespace quanto
