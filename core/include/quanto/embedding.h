// Rows of a quantized table, decoded by index.
#pragma once

#include <cstdint>

#include "quanto/matmul.h"
#include "quanto/types.h"

namespace quanto {

/// Integers that name rows of a table.
struct IndexView {
  const void* data;
  bool is_int64;  ///< else int32
  std::int64_t count;

  std::int64_t operator[](std::int64_t i) const;
};

/// The first index that names no row of a table of `rows`, or `indices.count` if there is none.
std::int64_t find_invalid_index(const IndexView& indices, std::int64_t rows);

/// y(i, :) = row indices[i] of the table, as the functions of quantize.h dequantize it: the same bits. `table`: a
/// weight of out_features rows. `y`: indices.count x in_features elements of table.scale_dtype. Throws Error for an
/// index that names no row.
void embedding(const WeightView& table, const IndexView& indices, void* y);

}  // namespace quanto
