// The table of quantized types, and the names and sizes of float types.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "quanto/types.h"

namespace quanto {

/// One row of the qtype table. The command line, the operators and Python read their qtypes from here.
struct QTypeInfo {
  QType qtype;
  std::string_view name;     ///< "qint4", "qfloat8_e4m3fn", ...
  int bits;                  ///< bits a code takes in storage: 2, 4 or 8
  bool is_floating_point;    ///< float8 codes; otherwise integer codes
  std::string_view storage;  ///< torch dtype of unpacked codes: "int8", "float8_e4m3fn", ...
  double qmin;               ///< smallest code value
  double qmax;               ///< largest code value
};

/// All qtypes, in the order of the enumeration.
std::span<const QTypeInfo> qtypes();

/// The row of one qtype.
const QTypeInfo& qtype_info(QType qtype);

/// The qtype called `name`; throws Error listing the known names if there is none.
QType qtype_from_name(std::string_view name);

/// True for the qtypes of fewer than 8 bits: packed codes with a scale and a shift.
inline bool is_affine(QType qtype) { return qtype_info(qtype).bits < 8; }

/// "float32", "bfloat16" or "float16".
std::string_view dtype_name(DType dtype);

/// Bytes per element: 4 or 2.
std::size_t dtype_size(DType dtype);

}  // namespace quanto
