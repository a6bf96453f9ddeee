// Reading the fields of a MatmulArgs: scales, shifts, where the codes of a channel lie. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "float_io.h"
#include "kernels/kernel_table.h"

namespace quanto::kernels {
namespace {

constexpr bool is_affine_qtype(QType qtype) { return qtype == QType::qint4 || qtype == QType::qint2; }
constexpr int bits_of(QType qtype) { return qtype == QType::qint4 ? 4 : qtype == QType::qint2 ? 2 : 8; }

/// A group's value is scale * code - offset; the offset of an integer shift is scale * shift.
struct ScaleOffset {
  float scale;
  float offset;
};

inline ScaleOffset scale_offset(const MatmulArgs& a, std::int64_t grouped_row) {
  const float scale = load_float(a.scale, a.scale_dtype, grouped_row);
  if (a.shift_kind == ShiftKind::floating) return {scale, load_float(a.shift, a.scale_dtype, grouped_row)};
  return {scale, scale * static_cast<float>(static_cast<const std::uint8_t*>(a.shift)[grouped_row])};
}

inline float channel_scale(const MatmulArgs& a, std::int64_t n) {
  return load_float(a.scale, a.scale_dtype, n * a.scale_step);
}

inline float row_scale(const MatmulArgs& a, std::int64_t m) { return a.row_scale[m * a.row_scale_step]; }

/// Stores y(m, n), scaled by its row's scale and with its bias added.
inline void store_output(const MatmulArgs& a, std::int64_t m, std::int64_t n, float value) {
  if (a.row_scale != nullptr) value *= row_scale(a, m);
  if (a.bias != nullptr) value += load_float(a.bias, a.y_dtype, n);
  store_float(a.y, a.y_dtype, m * a.N + n, value);
}

/// Whether all of n flags are set.
inline bool all_set(const bool* flags, std::int64_t n) {
  bool all = true;
  for (std::int64_t i = 0; i < n; ++i) all &= flags[i];
  return all;
}

constexpr std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
constexpr std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

}  // namespace
}  // namespace quanto::kernels
