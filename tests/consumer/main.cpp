// Quantizes a small matrix to int4 and multiplies with it.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "quanto/matmul.h"
#include "quanto/pack.h"
#include "quanto/quantize.h"
#include "quanto/scale.h"

int main() {
  constexpr std::int64_t kRows = 6, kCols = 64;
  std::vector<float> weight(kRows * kCols), x(kCols, 1.0f), y(kRows);
  for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = std::sin(static_cast<float>(i));
  const quanto::ConstMatrix base{weight.data(), quanto::DType::float32, kRows, kCols};
  std::vector<float> scale(kRows), shift(kRows);
  quanto::minmax_scale(base, quanto::QType::qint4, quanto::Axis::first, scale.data(), shift.data());
  std::vector<std::uint8_t> packed(static_cast<std::size_t>(quanto::packed_rows(kRows, 4) * kCols));
  quanto::quantize_affine_packed(base, quanto::QType::qint4, quanto::Axis::first, scale.data(),
                                 {shift.data(), quanto::ShiftKind::floating}, packed.data());
  quanto::WeightView w{};
  w.qtype = quanto::QType::qint4;
  w.data = packed.data();
  w.out_features = kRows;
  w.in_features = kCols;
  w.scale = scale.data();
  w.scale_dtype = quanto::DType::float32;
  w.shift = shift.data();
  w.shift_kind = quanto::ShiftKind::floating;
  quanto::matmul({x.data(), quanto::DType::float32, 1, kCols}, w, nullptr, y.data());
  for (std::int64_t n = 0; n < kRows; ++n) {
    float sum = 0;
    for (std::int64_t k = 0; k < kCols; ++k) sum += weight[static_cast<std::size_t>(n * kCols + k)];
    const float bound = kCols * scale[static_cast<std::size_t>(n)];
    if (!(std::fabs(y[static_cast<std::size_t>(n)] - sum) <= bound)) return 1;
  }
  std::puts("ok");
  return 0;
}
