// Argument checks shared by the public functions of the core.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "quanto/error.h"
#include "quanto/qtype.h"

namespace quanto {

[[noreturn]] inline void fail(std::string_view function, std::string_view what, std::string_view got,
                              std::string_view expected) {
  std::string message = "[";
  message.append(function).append("] ").append(what).append(": got ").append(got);
  message.append(", expected ").append(expected);
  throw Error(message);
}

inline std::string shape_text(std::int64_t rows, std::int64_t cols) {
  std::string text = "(";
  return text.append(std::to_string(rows)).append(", ").append(std::to_string(cols)).append(")");
}

/// Non-negative sizes whose product, in elements of 8 bytes, fits the address space.
inline void check_shape(std::string_view function, std::int64_t rows, std::int64_t cols) {
  std::int64_t bytes = 0;
  if (rows < 0 || cols < 0 || __builtin_mul_overflow(rows, cols, &bytes) || __builtin_mul_overflow(bytes, 8, &bytes)) {
    fail(function, "shape", shape_text(rows, cols), "non-negative sizes whose product fits in memory");
  }
}

inline void check_symmetric(std::string_view function, QType qtype) {
  if (is_affine(qtype)) fail(function, "qtype", qtype_info(qtype).name, "an 8-bit qtype");
}

inline void check_affine(std::string_view function, QType qtype) {
  if (!is_affine(qtype)) fail(function, "qtype", qtype_info(qtype).name, "qint4 or qint2");
}

}  // namespace quanto
