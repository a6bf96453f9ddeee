#include "quanto/embedding.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "each_isa.h"
#include "matrix.h"
#include "quanto/error.h"
#include "quanto/quantize.h"

namespace quanto::testing {
namespace {

IndexView view(const std::vector<std::int64_t>& indices) {
  return {indices.data(), true, static_cast<std::int64_t>(indices.size())};
}

/// The whole table, dequantized.
Floats dequantized(const WeightView& w) {
  Floats out(w.scale_dtype, w.out_features * w.in_features);
  const std::int64_t cols = w.group_size == 0 ? w.in_features : w.group_size;
  const std::int64_t rows = w.out_features * (w.in_features / cols);
  if (is_affine(w.qtype)) {
    dequantize_affine_packed(static_cast<const std::uint8_t*>(w.data), w.qtype, rows, cols, Axis::first, w.scale,
                             {w.shift, w.shift_kind}, w.scale_dtype, out.data());
  } else {
    dequantize_symmetric(w.data, w.qtype, rows, cols, w.per_tensor_scale ? Axis::tensor : Axis::first, w.scale,
                         w.scale_dtype, out.data());
  }
  return out;
}

void expect_rows_of_the_table(const CaseShape& shape) {
  const MatmulCase c(shape);
  const WeightView table = c.w();
  const Floats whole = dequantized(table);
  const std::vector<std::int64_t> indices{shape.N - 1, 0, shape.N / 2, 0};
  Floats found(shape.scale_dtype, static_cast<std::int64_t>(indices.size()) * shape.K);
  embedding(table, view(indices), found.data());
  const std::size_t row_bytes = static_cast<std::size_t>(shape.K) * dtype_size(shape.scale_dtype);
  for (std::size_t i = 0; i < indices.size(); ++i) {
    const auto* expected = static_cast<const char*>(whole.data()) + static_cast<std::size_t>(indices[i]) * row_bytes;
    const auto* row = static_cast<const char*>(found.data()) + i * row_bytes;
    EXPECT_EQ(std::memcmp(row, expected, row_bytes), 0) << describe(shape) << " row " << indices[i];
  }
}

TEST(Embedding, GivesTheBitsOfTheDequantizedTable) {
  for_each_isa([] {
    for (const DType dtype : kDTypes) {
      for (const std::int64_t N : {1, 2, 7, 33}) {
        for (const QType qtype : kByteQTypes) {
          expect_rows_of_the_table({qtype, dtype, dtype, 1, N, 67});
          expect_rows_of_the_table({.qtype = qtype,
                                    .x_dtype = dtype,
                                    .scale_dtype = dtype,
                                    .M = 1,
                                    .N = N,
                                    .K = 32,
                                    .per_tensor_scale = true});
        }
        for (const QType qtype : kBitQTypes) {
          for (const ShiftKind kind : {ShiftKind::floating, ShiftKind::integer}) {
            expect_rows_of_the_table({qtype, dtype, dtype, 1, N, 96, 32, kind});
            expect_rows_of_the_table({qtype, dtype, dtype, 1, N, 19, 0, kind});
          }
        }
      }
    }
  });
}

TEST(Embedding, RefusesIndicesWithoutARow) {
  const MatmulCase c({QType::qint8, DType::float32, DType::float32, 1, 5, 8});
  Floats out(DType::float32, 16);
  for (const std::int64_t bad : {-1, 5}) {
    const std::vector<std::int64_t> indices{2, bad};
    EXPECT_EQ(find_invalid_index(view(indices), 5), 1);
    EXPECT_THROW(embedding(c.w(), view(indices), out.data()), Error);
  }
  const std::vector<std::int32_t> narrow{4, 0};
  EXPECT_EQ(find_invalid_index({narrow.data(), false, 2}, 5), 2);
}

}  // namespace
}  // namespace quanto::testing
