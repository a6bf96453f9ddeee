// The kernel for int8 activations that serves every shape: unpack the codes of one output channel once, then take its
// integer dot products with every row of activations, group by group. Loops that the compiler vectorizes for the
// including unit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/int8_steps-inl.h"
#include "kernels/kernel_table.h"

namespace quanto::kernels {
namespace {

constexpr std::int64_t kInt8ChannelsPerUnit = 8;

/// Products of int8 codes fit int16 x int16 -> int32 multiply-adds, which this loop vectorizes to.
inline std::int32_t dot_of_codes(const std::int8_t* x, const std::int8_t* w, std::int64_t n) {
  std::int32_t sum = 0;
  for (std::int64_t k = 0; k < n; ++k) sum += static_cast<std::int16_t>(x[k]) * static_cast<std::int16_t>(w[k]);
  return sum;
}

/// The codes of channel n for k in [begin, end), one to a byte: signed ones of qint8, else from 0 on.
template <QType kQType>
inline void unpack_channel(const MatmulArgs& a, std::int64_t n, std::int64_t begin, std::int64_t end,
                           std::uint8_t* out) {
  if constexpr (kQType == QType::qint8) {
    __builtin_memcpy(out, a.w + n * a.K + begin, static_cast<std::size_t>(end - begin));
  } else {
    constexpr int kBits = bits_of(kQType);
    for (std::int64_t k = begin; k < end;) {
      const std::int64_t within = k % a.group_size, r = n * a.groups + k / a.group_size;
      const std::int64_t count = smaller(a.group_size - within, end - k);
      const std::uint8_t* bytes = a.w + r % a.packed_rows * a.group_size + within;
      const int shift = static_cast<int>(r / a.packed_rows) * kBits;
      for (std::int64_t i = 0; i < count; ++i) out[i] = bytes[i] >> shift & ((1 << kBits) - 1);
      out += count;
      k += count;
    }
  }
}

/// The sums of the activations of each group, as floats, which hold them exactly.
inline float* group_sums_of(const MatmulArgs& a, std::int64_t m) {
  return static_cast<float*>(a.workspace) + m * a.groups;
}

template <QType kQType>
inline float int8_output(const MatmulArgs& a, std::int64_t m, std::int64_t n, const std::int8_t* codes) {
  const std::int8_t* x = int8_row(a, m);
  if constexpr (!is_affine_qtype(kQType)) {
    return static_cast<float>(dot_of_codes(x, codes, a.K)) * channel_scale(a, n);
  }
  const float* sums = group_sums_of(a, m);
  float total = 0.0f;
  for (std::int64_t j = 0; j < a.groups; ++j) {
    const ScaleOffset so = scale_offset(a, n * a.groups + j);
    const std::int64_t k = j * a.group_size;
    total += so.scale * static_cast<float>(dot_of_codes(x + k, codes + k, a.group_size));
    total -= so.offset * sums[j];
  }
  return total;
}

template <QType kQType>
void int8_rows_run(const MatmulArgs& a, void* scratch, std::int64_t begin, std::int64_t end) {
  auto* codes = static_cast<std::uint8_t*>(scratch);
  for (std::int64_t n = begin * kInt8ChannelsPerUnit; n < smaller(end * kInt8ChannelsPerUnit, a.N); ++n) {
    unpack_channel<kQType>(a, n, 0, a.K, codes);
    for (std::int64_t m = 0; m < a.M; ++m) {
      store_output(a, m, n, int8_output<kQType>(a, m, n, reinterpret_cast<const std::int8_t*>(codes)));
    }
  }
}

template <QType kQType>
void int8_rows_prepare(const MatmulArgs& a, std::int64_t begin, std::int64_t end) {
  if constexpr (!is_affine_qtype(kQType)) return;
  for (std::int64_t m = begin; m < end; ++m) {
    for (std::int64_t j = 0; j < a.groups; ++j) {
      group_sums_of(a, m)[j] = static_cast<float>(sum_of_codes(int8_row(a, m) + j * a.group_size, a.group_size));
    }
  }
}

bool int8_rows_supports(const MatmulArgs&) { return true; }
template <QType kQType>
std::size_t int8_rows_workspace_bytes(const MatmulArgs& a) {
  return is_affine_qtype(kQType) ? static_cast<std::size_t>(a.M * a.groups) * sizeof(float) : 0;
}
std::size_t int8_rows_scratch_bytes(const MatmulArgs& a) { return static_cast<std::size_t>(a.K); }
std::int64_t int8_rows_unit_count(const MatmulArgs& a) { return ceil_div(a.N, kInt8ChannelsPerUnit); }

template <QType kQType>
constexpr MatmulKernel kInt8RowsKernel = {"rows",
                                          int8_rows_supports,
                                          int8_rows_workspace_bytes<kQType>,
                                          int8_rows_prepare<kQType>,
                                          nullptr,
                                          int8_rows_scratch_bytes,
                                          int8_rows_unit_count,
                                          int8_rows_run<kQType>};

}  // namespace
}  // namespace quanto::kernels
