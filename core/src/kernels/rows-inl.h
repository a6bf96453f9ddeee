// The kernel that serves every shape: decode the weights of one output channel to float32 once, then take its dot
// product with every row of activations. Written once as loops that the compiler vectorizes for the including unit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/kernel_table.h"

namespace quanto::kernels {
namespace {

constexpr std::int64_t kParts = 32;  // partial sums of a dot product, fixed so that its rounding is too
constexpr std::int64_t kChannelsPerUnit = 8;

inline float multiply_add(float a, float b, float c) {
#ifdef __FMA__
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

/// Adds up the partial sums of a dot product, in halves.
inline float sum_parts(float* parts) {
  for (std::int64_t width = kParts / 2; width > 0; width /= 2) {
    for (std::int64_t l = 0; l < width; ++l) parts[l] += parts[l + width];
  }
  return parts[0];
}

/// kRows dot products with the same weights, each in the order that a single one would take.
template <int kRows>
inline void dot_rows(const float* x, std::int64_t x_stride, const float* w, std::int64_t K, float* result) {
  float parts[kRows][kParts] = {};
  std::int64_t k = 0;
  for (; k + kParts <= K; k += kParts) {
    for (int m = 0; m < kRows; ++m) {
      for (std::int64_t l = 0; l < kParts; ++l) {
        parts[m][l] = multiply_add(x[m * x_stride + k + l], w[k + l], parts[m][l]);
      }
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (std::int64_t l = 0; l < K - k; ++l) {
      parts[m][l] = multiply_add(x[m * x_stride + k + l], w[k + l], parts[m][l]);
    }
    result[m] = sum_parts(parts[m]);
  }
}

template <int kRows>
inline void multiply_rows(const MatmulArgs& a, std::int64_t m, std::int64_t n, const float* x, const float* w,
                          float scale) {
  float sums[kRows];
  dot_rows<kRows>(x + m * a.K, a.K, w, a.K, sums);
  for (int i = 0; i < kRows; ++i) store_output(a, m + i, n, scale * sums[i]);
}

template <QType kQType>
void rows_run(const MatmulArgs& a, void* scratch, std::int64_t begin, std::int64_t end) {
  constexpr int kRows = 4;
  constexpr bool kAffine = kQType == QType::qint4 || kQType == QType::qint2;
  const auto* x = static_cast<const float*>(a.workspace);
  auto* w = static_cast<float*>(scratch);
  const std::int64_t last = smaller(end * kChannelsPerUnit, a.N);
  for (std::int64_t n = begin * kChannelsPerUnit; n < last; ++n) {
    decode_channel<kQType>(a, n, 0, a.K, w);
    const float scale = kAffine ? 1.0f : channel_scale(a, n);
    std::int64_t m = 0;
    for (; m + kRows <= a.M; m += kRows) multiply_rows<kRows>(a, m, n, x, w, scale);
    switch (a.M - m) {
      case 3:
        multiply_rows<3>(a, m, n, x, w, scale);
        break;
      case 2:
        multiply_rows<2>(a, m, n, x, w, scale);
        break;
      case 1:
        multiply_rows<1>(a, m, n, x, w, scale);
        break;
      default:
        break;
    }
  }
}

bool rows_supports(const MatmulArgs&) { return true; }
std::size_t rows_workspace_bytes(const MatmulArgs& a) { return static_cast<std::size_t>(a.M * a.K) * sizeof(float); }
std::size_t rows_scratch_bytes(const MatmulArgs& a) { return static_cast<std::size_t>(a.K) * sizeof(float); }
std::int64_t rows_unit_count(const MatmulArgs& a) { return (a.N + kChannelsPerUnit - 1) / kChannelsPerUnit; }

template <DType kDType>
void rows_prepare(const MatmulArgs& a, std::int64_t begin, std::int64_t end) {
  auto* out = static_cast<float*>(a.workspace);
  for (std::int64_t m = begin; m < end; ++m) {
    for (std::int64_t k = 0; k < a.K; ++k) out[m * a.K + k] = load_float(a.x, kDType, m * a.x_stride + k);
  }
}

template <QType kQType, DType kDType>
constexpr MatmulKernel kRowsKernel = {"rows",  rows_supports,      rows_workspace_bytes, rows_prepare<kDType>,
                                      nullptr, rows_scratch_bytes, rows_unit_count,      rows_run<kQType>};

}  // namespace
}  // namespace quanto::kernels
