// The tensors that make up a quantized weight, as a view of the core.
#pragma once

#include <optional>

#include "quanto/matmul.h"
#include "tensors.h"

namespace quanto::torch_ext {

/// A view and the contiguous tensors that it points into.
struct WeightTensors {
  Tensor data, scale;
  std::optional<Tensor> shift;
  WeightView view;
};

/// Codes of an 8-bit qtype whose first dimension is the output channels. `scale`: one for each, or a single one.
WeightTensors qbytes_weight(const char* op, Tensor data, Tensor scale);

/// Packed codes of out_features x in_features weights. `group_size`: 0 for one scale per output channel.
WeightTensors qbits_weight(const char* op, Tensor data, Tensor scale, Tensor shift, std::int64_t bits,
                           std::int64_t group_size, std::int64_t out_features, std::int64_t in_features);

/// The same for a matrix whose groups and output channels follow from the shapes: `data` has a column for each weight
/// of a group, `scale` an element for each group.
WeightTensors qbits_matrix(const char* op, Tensor data, Tensor scale, Tensor shift, std::int64_t bits,
                           std::int64_t in_features);

/// A bias of `count` elements, contiguous and of that dtype.
std::optional<Tensor> bias_tensor(const char* op, const std::optional<Tensor>& bias, std::int64_t count,
                                  ScalarType dtype);

inline const void* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? t->const_data_ptr() : nullptr;
}

}  // namespace quanto::torch_ext
