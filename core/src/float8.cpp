#include "quanto/float8.h"

#include <string>

#include "codec-inl.h"
#include "quanto/error.h"
#include "quanto/qtype.h"

namespace quanto {
namespace {

const Float8Format& checked_format(const char* function, QType qtype) {
  if (!qtype_info(qtype).is_floating_point) {
    throw Error(std::string("[") + function + "] qtype: got " + std::string(qtype_info(qtype).name) +
                ", expected a float8 qtype");
  }
  return float8_format(qtype);
}

std::array<float, 256> make_table(const Float8Format& format) {
  std::array<float, 256> table;
  for (int code = 0; code < 256; ++code) table[code] = float8_to_float(format, static_cast<std::uint8_t>(code));
  return table;
}

}  // namespace

float float8_decode(QType qtype, std::uint8_t code) {
  return float8_to_float(checked_format("float8_decode", qtype), code);
}

std::uint8_t float8_encode(QType qtype, float value) {
  return float_to_float8(checked_format("float8_encode", qtype), value);
}

const std::array<float, 256>& float8_table(QType qtype) {
  checked_format("float8_table", qtype);
  static const std::array<float, 256> e4m3fn = make_table(kE4M3FN);
  static const std::array<float, 256> e4m3fnuz = make_table(kE4M3FNUZ);
  static const std::array<float, 256> e5m2 = make_table(kE5M2);
  return qtype == QType::qfloat8_e4m3fn ? e4m3fn : qtype == QType::qfloat8_e4m3fnuz ? e4m3fnuz : e5m2;
}

}  // namespace quanto
