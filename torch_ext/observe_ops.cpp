// Observers of activations: histograms of magnitudes and the scales read from them. See quanto/observe.h.
#include "quanto/observe.h"
#include "quanto/qtype.h"
#include "tensors.h"

namespace quanto::torch_ext {
namespace {

void check_integers(const char* op, const char* what, const Tensor& t) {
  if (dtype_of(t) != ScalarType::Long) fail(op, what, dtype_text(dtype_of(t)), "int64");
}

/// A copy of a histogram, contiguous.
struct Histogram {
  Tensor counts, exponent;

  MagnitudeHistogram view() const {
    auto* data = static_cast<std::int64_t*>(counts.mutable_data_ptr());
    return {data, counts.numel(), *static_cast<const std::int64_t*>(exponent.const_data_ptr())};
  }
};

Histogram copy_of(const char* op, const Tensor& counts, const Tensor& exponent) {
  check_integers(op, "counts", counts);
  check_integers(op, "exponent", exponent);
  check_count(op, "exponent", exponent, 1);
  return {torch::stable::clone(as_contiguous(counts)), torch::stable::clone(as_contiguous(exponent))};
}

std::tuple<Tensor, Tensor> observe_magnitudes_op(Tensor base, Tensor counts, Tensor exponent) {
  constexpr const char* kOp = "observe_magnitudes";
  const Histogram found = copy_of(kOp, counts, exponent);
  const Tensor dense = as_contiguous(base);
  MagnitudeHistogram view = found.view();
  observe_magnitudes({dense.const_data_ptr(), float_dtype(kOp, "base", base), 1, base.numel()}, view);
  *static_cast<std::int64_t*>(found.exponent.mutable_data_ptr()) = view.exponent;
  return {found.counts, found.exponent};
}

Tensor scalar(float value) {
  Tensor out = empty({}, ScalarType::Float);
  *static_cast<float*>(out.mutable_data_ptr()) = value;
  return out;
}

Tensor percentile_scale_op(Tensor counts, Tensor exponent, std::string qtype, double percentile) {
  const Histogram histogram = copy_of("percentile_scale", counts, exponent);
  return scalar(percentile_scale(histogram.view(), qtype_from_name(qtype), percentile));
}

Tensor mse_scale_op(Tensor counts, Tensor exponent, std::string qtype) {
  const Histogram histogram = copy_of("mse_scale", counts, exponent);
  return scalar(mse_scale(histogram.view(), qtype_from_name(qtype)));
}

}  // namespace
}  // namespace quanto::torch_ext

STABLE_TORCH_LIBRARY_IMPL(quanto, CPU, m) {
  using namespace quanto::torch_ext;
  m.impl("observe_magnitudes", TORCH_BOX(&observe_magnitudes_op));
  m.impl("percentile_scale", TORCH_BOX(&percentile_scale_op));
  m.impl("mse_scale", TORCH_BOX(&mse_scale_op));
}
