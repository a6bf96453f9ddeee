// The enumerations that every layer shares. Includes nothing but <cstdint>, so that the per-ISA kernel units may use
// it.
#pragma once

#include <cstdint>

namespace quanto {

/// Element type of float tensors: weights before quantization, activations, scales, float shifts, outputs.
enum class DType : std::uint8_t { float32, bfloat16, float16 };
inline constexpr int kDTypeCount = 3;

/// Quantized types. Their properties are the rows of the table in qtype.h.
enum class QType : std::uint8_t { qint2, qint4, qint8, qfloat8_e4m3fn, qfloat8_e4m3fnuz, qfloat8_e5m2 };
inline constexpr int kQTypeCount = 6;

/// How the shift of an affine weight is stored.
/// `floating`: w = scale * code - shift, the shift in the scale's dtype.
/// `integer`:  w = scale * (code - shift), the shift one byte (a zero point in [0, 2^bits - 1]).
enum class ShiftKind : std::uint8_t { none, floating, integer };

/// Which scale an element of a row-major rows x cols matrix uses: the only one, its row's or its column's.
enum class Axis : std::uint8_t { tensor, first, last };

/// Instruction sets that kernels are compiled for, from least to most capable.
enum class Isa : std::uint8_t { portable, avx2, avx512, avx512_bf16, avx512_amx };
inline constexpr int kIsaCount = 5;

/// Kinds of cores that kernels are chosen for, where the instruction set does not tell: see cores.h.
enum class Cores : std::uint8_t {
  general,  ///< those that are not listed below: measured on AMD's Zen 5 and Intel's Sapphire Rapids
  zen4,     ///< AMD's Zen 3 and Zen 4 (family 19h)
};

}  // namespace quanto
