// Activations that a matmul quantizes itself: some rows at a time, in the form that its kernels take.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "kernels/quantize_table.h"
#include "quanto/matmul.h"
#include "quanto/quantize.h"

namespace quanto {

/// absmax_scale of one row and its codes; `scale` and `values` are of the same dtype.
void quantize_token(const kernels::QuantizeKernels& kernels, DType dtype, const void* values, std::int64_t cols,
                    QType qtype, void* scale, std::uint8_t* codes);

class QuantizedRows {
 public:
  /// `cols`: elements of a row. `decoded`: whether kernels take what the codes stand for, as bfloat16, not the codes.
  QuantizedRows(const QuantizingView& x, std::int64_t cols, bool decoded);

  std::size_t row_bytes() const { return static_cast<std::size_t>(cols_) * (decoded_ ? sizeof(std::uint16_t) : 1); }

  /// Writes rows [begin, end), row_bytes() each. Any thread may make any rows.
  void make(std::int64_t begin, std::int64_t end, void* out);

  /// All rows, in parallel.
  Buffer make_all();

  /// What the sums of a row are multiplied by, once it is made: one for each row, or a single one.
  const float* scales() const { return scales_.empty() ? &single_scale_ : scales_.data(); }
  std::int64_t scale_step() const { return scales_.empty() ? 0 : 1; }

 private:
  void quantize(std::int64_t begin, std::int64_t end, std::uint8_t* codes);
  void decode(const std::uint8_t* codes, std::int64_t rows, void* out) const;

  const kernels::QuantizeKernels& kernels_;
  ActivationView x_;
  QType qtype_;
  std::int64_t cols_;
  bool decoded_;
  float single_scale_ = 0.0f;
  std::uint32_t divisor_ = 0;  ///< the single scale in the dtype of x
  std::vector<float> scales_;
};

}  // namespace quanto
