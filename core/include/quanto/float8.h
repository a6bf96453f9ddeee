// float8 codecs (OCP e4m3fn and e5m2, and the e4m3fnuz of Noune et al., arXiv:2206.02915).
#pragma once

#include <array>
#include <cstdint>

#include "quanto/types.h"

namespace quanto {

/// The value of a float8 code, exactly; NaN and infinity codes decode to NaN and infinity.
float float8_decode(QType qtype, std::uint8_t code);

/// The code nearest to `value`, ties to even. Beyond the finite range: NaN for e4m3fn and e4m3fnuz, infinity for e5m2
/// (callers clamp first). e4m3fnuz has no negative zero: -0 encodes as 0.
std::uint8_t float8_encode(QType qtype, float value);

/// All 256 values of float8_decode.
const std::array<float, 256>& float8_table(QType qtype);

}  // namespace quanto
