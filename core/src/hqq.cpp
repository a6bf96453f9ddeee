#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "check.h"
#include "float_io.h"
#include "kernels/registry.h"
#include "quanto/parallel.h"
#include "quanto/qtype.h"
#include "quanto/scale.h"

namespace quanto {
namespace {

constexpr std::int64_t kGrain = 1 << 13;  // elements that are worth a thread

using Bytes = std::vector<std::uint8_t>;

void check_parameters(const HqqParameters& p) {
  constexpr const char* kFunction = "hqq_scale";
  const auto refuse = [](const char* what, double got, const char* expected) {
    fail(kFunction, what, std::to_string(got), expected);
  };
  if (!(p.lp_norm > 0.0 && p.lp_norm <= 1.0)) refuse("lp_norm", p.lp_norm, "a number above 0, at most 1");
  if (!(p.beta > 0.0 && std::isfinite(p.beta))) refuse("beta", p.beta, "a positive number");
  if (!(p.kappa > 0.0 && std::isfinite(p.kappa))) refuse("kappa", p.kappa, "a positive number");
  if (p.iters < 0) fail(kFunction, "iters", std::to_string(p.iters), "zero or more steps");
}

template <class Element>
void transpose(const ConstMatrix& m, void* out) {
  const auto* from = static_cast<const char*>(m.data);
  auto* to = static_cast<char*>(out);
  parallel_for(m.cols, std::max<std::int64_t>(1, kGrain / m.rows), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t c = begin; c < end; ++c) {
      for (std::int64_t r = 0; r < m.rows; ++r) {
        constexpr auto kSize = static_cast<std::int64_t>(sizeof(Element));
        std::copy_n(from + (r * m.cols + c) * kSize, kSize, to + (c * m.rows + r) * kSize);
      }
    }
  });
}

/// The matrix with one row for each scale. `memory` holds it where it is not the given one.
ConstMatrix rows_of_scales(const ConstMatrix& m, Axis axis, Bytes& memory) {
  if (axis == Axis::first) return m;
  if (axis == Axis::tensor) return {m.data, m.dtype, 1, m.rows * m.cols};
  memory.resize(static_cast<std::size_t>(m.rows * m.cols) * dtype_size(m.dtype));
  dtype_size(m.dtype) == 4 ? transpose<std::uint32_t>(m, memory.data()) : transpose<std::uint16_t>(m, memory.data());
  return {memory.data(), m.dtype, m.cols, m.rows};
}

float rounded_to(DType dtype, float value) {
  float stored = 0;
  store_float(&stored, dtype, 0, value);
  return load_float(&stored, dtype, 0);
}

float mean_of(const std::vector<float>& sums, DType dtype, std::int64_t count) {
  double sum = 0;
  for (const float part : sums) sum += static_cast<double>(part);
  return rounded_to(dtype, static_cast<float>(sum / static_cast<double>(count)));
}

/// The steps on one matrix.
class Search {
 public:
  Search(const ConstMatrix& m, QType qtype, const void* scale, float exponent)
      : errors_(static_cast<std::size_t>(m.rows)) {
    args_.matrix = {.values = m.data,
                    .out = nullptr,
                    .codes_in = nullptr,
                    .codes_out = nullptr,
                    .rows = m.rows,
                    .cols = m.cols,
                    .dtype = m.dtype,
                    .qtype = qtype,
                    .axis = Axis::first,
                    .scale = scale,
                    .shift = nullptr,
                    .shift_kind = ShiftKind::floating,
                    .packed_rows = 0};
    args_.exponent = exponent;
    args_.errors = errors_.data();
  }

  /// The mean absolute error of these shifts. `next`: the shifts that follow them.
  float step(const Bytes& shift, double beta, Bytes& next) {
    args_.matrix.shift = shift.data();
    args_.inverse_beta = static_cast<float>(1.0 / beta);
    args_.shift_out = next.data();
    const kernels::QuantizeArgs& m = args_.matrix;
    parallel_for(m.rows, std::max<std::int64_t>(1, kGrain / m.cols), [&](std::int64_t begin, std::int64_t end) {
      kernels::quantize_kernels().hqq_step(args_, begin, end);
    });
    return mean_of(errors_, m.dtype, m.rows * m.cols);
  }

 private:
  kernels::HqqArgs args_{};
  std::vector<float> errors_;
};

}  // namespace

void hqq_scale(const ConstMatrix& base, QType qtype, Axis axis, const HqqParameters& parameters, void* scale,
               void* shift, float* errors) {
  check_parameters(parameters);
  minmax_scale(base, qtype, axis, scale, shift);
  std::fill_n(errors, parameters.iters + 1, -1.0f);
  if (base.rows * base.cols == 0) return;

  Bytes memory;
  // torch rounds an exponent to the dtype too.
  const float exponent = rounded_to(base.dtype, static_cast<float>(parameters.lp_norm - 1.0));
  Search search(rows_of_scales(base, axis, memory), qtype, scale, exponent);
  auto* const best = static_cast<std::uint8_t*>(shift);
  const auto size = static_cast<std::size_t>(scale_count(axis, base.rows, base.cols)) * dtype_size(base.dtype);
  Bytes now(best, best + size), next(size);
  double beta = parameters.beta;
  errors[0] = search.step(now, beta, next);
  for (int i = 1; i <= parameters.iters; ++i, beta *= parameters.kappa) {
    now.swap(next);
    errors[i] = search.step(now, beta * parameters.kappa, next);
    if (!(errors[i] < errors[i - 1])) return;
    std::copy(now.begin(), now.end(), best);
  }
}

}  // namespace quanto
