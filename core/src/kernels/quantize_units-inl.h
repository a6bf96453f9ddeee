// The table of quantize_table.h as the including unit's instruction set compiles it.
#pragma once

#include "kernels/fake_quantize-inl.h"
#include "kernels/hqq-inl.h"
#include "kernels/quantize-inl.h"

namespace quanto::kernels {
namespace {

constexpr QuantizeKernels quantize_kernels(Isa isa) {
  return {isa,
          absmax,
          minmax,
          column_absmax,
          column_minmax,
          quantize_symmetric,
          quantize_affine,
          dequantize_symmetric,
          dequantize_affine,
          fake_quantize_symmetric,
          fake_quantize_affine,
          hqq_step};
}

}  // namespace
}  // namespace quanto::kernels
