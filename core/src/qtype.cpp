#include "quanto/qtype.h"

#include <array>
#include <string>

#include "quanto/error.h"

namespace quanto {
namespace {

// The one table of qtypes, in the order of the enumeration.
constexpr std::array<QTypeInfo, kQTypeCount> kQTypes = {{
    {QType::qint2, "qint2", 2, false, "int8", -2, 1},
    {QType::qint4, "qint4", 4, false, "int8", -8, 7},
    {QType::qint8, "qint8", 8, false, "int8", -128, 127},
    {QType::qfloat8_e4m3fn, "qfloat8_e4m3fn", 8, true, "float8_e4m3fn", -448, 448},
    {QType::qfloat8_e4m3fnuz, "qfloat8_e4m3fnuz", 8, true, "float8_e4m3fnuz", -240, 240},
    {QType::qfloat8_e5m2, "qfloat8_e5m2", 8, true, "float8_e5m2", -57344, 57344},
}};

constexpr bool in_enum_order() {
  for (int i = 0; i < kQTypeCount; ++i) {
    if (static_cast<int>(kQTypes[i].qtype) != i) return false;
  }
  return true;
}
static_assert(in_enum_order());

}  // namespace

std::span<const QTypeInfo> qtypes() { return kQTypes; }

const QTypeInfo& qtype_info(QType qtype) {
  const auto index = static_cast<std::size_t>(qtype);
  if (index >= kQTypes.size()) {
    throw Error("[qtype_info] qtype: got " + std::to_string(index) + ", expected a value of the enumeration");
  }
  return kQTypes[index];
}

QType qtype_from_name(std::string_view name) {
  std::string known;
  for (const QTypeInfo& info : kQTypes) {
    if (info.name == name) return info.qtype;
    known += (known.empty() ? "" : ", ") + std::string(info.name);
  }
  throw Error("[qtype_from_name] name: got '" + std::string(name) + "', expected one of " + known);
}

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return "float32";
    case DType::bfloat16:
      return "bfloat16";
    case DType::float16:
      return "float16";
  }
  throw Error("[dtype_name] dtype: got " + std::to_string(static_cast<int>(dtype)) +
              ", expected float32, bfloat16 or float16");
}

std::size_t dtype_size(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

}  // namespace quanto
