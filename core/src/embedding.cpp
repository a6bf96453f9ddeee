#include "quanto/embedding.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "buffer.h"
#include "check.h"
#include "kernels/registry.h"
#include "quanto/pack.h"
#include "quanto/parallel.h"

namespace quanto {
namespace {

using kernels::QuantizeArgs;
using Index = std::int64_t;

constexpr Index kGrain = 1 << 15;  // elements that are worth a thread

const char* at(const void* data, Index element, std::size_t size) {
  return static_cast<const char*>(data) + element * static_cast<Index>(size);
}

/// The codes of row n, one per byte. Grouped row r = n * groups + j has its codes in the field r / P of packed row
/// r % P, with P packed rows.
void unpack_row(const WeightView& table, Index n, Index groups, Index cols, std::uint8_t* codes) {
  const int bits = qtype_info(table.qtype).bits;
  const Index packed = packed_rows(table.out_features * groups, bits);
  const auto mask = static_cast<std::uint8_t>((1 << bits) - 1);
  for (Index j = 0; j < groups; ++j) {
    const Index r = n * groups + j;
    const auto* bytes = static_cast<const std::uint8_t*>(table.data) + r % packed * cols;
    const int offset = static_cast<int>(r / packed) * bits;
    for (Index k = 0; k < cols; ++k) {
      codes[j * cols + k] = static_cast<std::uint8_t>(bytes[k] >> offset) & mask;
    }
  }
}

/// The arguments of a quantizer kernel that dequantizes row n to `out`: `groups` rows of `cols` codes.
QuantizeArgs row_args(const WeightView& table, Index n, Index groups, Index cols, std::uint8_t* codes, void* out) {
  QuantizeArgs a{};
  a.rows = groups;
  a.cols = cols;
  a.dtype = table.scale_dtype;
  a.qtype = table.qtype;
  a.axis = Axis::first;
  a.scale = at(table.scale, table.per_tensor_scale ? 0 : n * groups, dtype_size(table.scale_dtype));
  a.out = out;
  if (!is_affine(table.qtype)) {
    a.codes_in = static_cast<const std::uint8_t*>(table.data) + n * table.in_features;
    return a;
  }
  unpack_row(table, n, groups, cols, codes);
  a.codes_in = codes;
  a.shift_kind = table.shift_kind;
  a.shift = at(table.shift, n * groups,
               table.shift_kind == ShiftKind::integer ? sizeof(std::uint8_t) : dtype_size(table.scale_dtype));
  return a;
}

}  // namespace

std::int64_t IndexView::operator[](std::int64_t i) const {
  if (!is_int64) {
    std::int32_t value;
    std::memcpy(&value, static_cast<const char*>(data) + i * 4, sizeof(value));
    return value;
  }
  std::int64_t value;
  std::memcpy(&value, static_cast<const char*>(data) + i * 8, sizeof(value));
  return value;
}

std::int64_t find_invalid_index(const IndexView& indices, std::int64_t rows) {
  for (Index i = 0; i < indices.count; ++i) {
    if (indices[i] < 0 || indices[i] >= rows) return i;
  }
  return indices.count;
}

void embedding(const WeightView& table, const IndexView& indices, void* y) {
  check_shape("embedding", table.out_features, table.in_features);
  check_shape("embedding", indices.count, table.in_features);
  const Index invalid = find_invalid_index(indices, table.out_features);
  if (invalid < indices.count) {
    fail("embedding", "index", std::to_string(indices[invalid]), "0 to " + std::to_string(table.out_features - 1));
  }
  const Index K = table.in_features, cols = table.group_size == 0 ? K : table.group_size;
  if (cols <= 0) return;
  const auto kernel = is_affine(table.qtype) ? kernels::quantize_kernels().dequantize_affine
                                             : kernels::quantize_kernels().dequantize_symmetric;
  const Index row_bytes = K * static_cast<Index>(dtype_size(table.scale_dtype));
  parallel_for(indices.count, std::max<Index>(1, kGrain / K), [&](Index begin, Index end) {
    auto* codes = static_cast<std::uint8_t*>(thread_buffer(is_affine(table.qtype) ? static_cast<std::size_t>(K) : 0));
    for (Index i = begin; i < end; ++i) {
      void* out = static_cast<char*>(y) + i * row_bytes;
      kernel(row_args(table, indices[i], K / cols, cols, codes, out), 0, K / cols);
    }
  });
}

}  // namespace quanto
