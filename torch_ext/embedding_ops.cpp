// Rows of quantized tables.
#include <stdexcept>

#include "quanto/embedding.h"
#include "tensors.h"
#include "weights.h"

namespace quanto::torch_ext {
namespace {

Tensor look_up(const char* op, const Tensor& indices, const WeightView& table, ScalarType dtype) {
  const ScalarType kind = dtype_of(indices);
  if (kind != ScalarType::Int && kind != ScalarType::Long) fail(op, "indices", dtype_text(kind), "int32 or int64");
  const Tensor dense = as_contiguous(indices);
  const IndexView view{dense.const_data_ptr(), kind == ScalarType::Long, indices.numel()};
  const std::int64_t invalid = find_invalid_index(view, table.out_features);
  if (invalid < view.count) {
    throw std::out_of_range("[" + std::string(op) + "] index: got " + std::to_string(view[invalid]) +
                            ", expected 0 to " + std::to_string(table.out_features - 1));
  }
  auto sizes = sizes_of(indices);
  sizes.push_back(table.in_features);
  Tensor out = empty(sizes, dtype);
  embedding(table, view, out.mutable_data_ptr());
  return out;
}

Tensor embedding_qbytes_op(Tensor indices, Tensor data, Tensor scale) {
  constexpr const char* kOp = "embedding_qbytes";
  if (data.dim() != 2) fail(kOp, "data", shape_text(data), "2 dimensions");
  return look_up(kOp, indices, qbytes_weight(kOp, data, scale).view, dtype_of(scale));
}

Tensor embedding_qbits_op(Tensor indices, Tensor data, Tensor scale, Tensor shift, std::int64_t bits,
                          std::int64_t group_size, std::vector<std::int64_t> size) {
  constexpr const char* kOp = "embedding_qbits";
  if (size.size() != 2) fail(kOp, "size", std::to_string(size.size()) + " dimensions", "2");
  const WeightTensors table = qbits_weight(kOp, data, scale, shift, bits, group_size, size[0], size[1]);
  return look_up(kOp, indices, table.view, dtype_of(scale));
}

}  // namespace
}  // namespace quanto::torch_ext

STABLE_TORCH_LIBRARY_IMPL(quanto, CPU, m) {
  using namespace quanto::torch_ext;
  m.impl("embedding_qbytes", TORCH_BOX(&embedding_qbytes_op));
  m.impl("embedding_qbits", TORCH_BOX(&embedding_qbits_op));
}
