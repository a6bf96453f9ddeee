#include "quanto/pack.h"

#include <algorithm>

#include "check.h"
#include "quanto/parallel.h"

namespace quanto {
namespace {

constexpr std::int64_t kGrainBytes = 1 << 16;

void check_bits(const char* function, int bits) {
  if (bits != 2 && bits != 4) fail(function, "bits", std::to_string(bits), "2 or 4");
}

std::int64_t grain_rows(std::int64_t row_bytes) {
  return std::max<std::int64_t>(1, kGrainBytes / std::max<std::int64_t>(1, row_bytes));
}

// Both directions of grouping are a transposition of the last two dimensions of (groups, group_size, cols) seen from
// one side or the other: out[(j * cols + d) * groups + i] <-> in[(i * group_size + j) * cols + d].
template <class T>
void regroup(const void* in_data, std::int64_t groups, std::int64_t group_size, std::int64_t cols, bool inverse,
             void* out_data) {
  const T* in = static_cast<const T*>(in_data);
  T* out = static_cast<T*>(out_data);
  parallel_for(group_size, grain_rows(cols * groups * static_cast<std::int64_t>(sizeof(T))),
               [=](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t j = begin; j < end; ++j) {
                   for (std::int64_t i = 0; i < groups; ++i) {
                     const std::int64_t flat = (i * group_size + j) * cols;
                     const std::int64_t grouped = j * cols * groups + i;
                     if (inverse) {
                       for (std::int64_t d = 0; d < cols; ++d) out[flat + d] = in[grouped + d * groups];
                     } else {
                       for (std::int64_t d = 0; d < cols; ++d) out[grouped + d * groups] = in[flat + d];
                     }
                   }
                 }
               });
}

void regroup_bytes(const char* function, const void* in, std::size_t element_size, std::int64_t groups,
                   std::int64_t group_size, std::int64_t cols, bool inverse, void* out) {
  check_shape(function, groups, group_size);
  check_shape(function, groups * group_size, cols);
  switch (element_size) {
    case 1:
      return regroup<std::uint8_t>(in, groups, group_size, cols, inverse, out);
    case 2:
      return regroup<std::uint16_t>(in, groups, group_size, cols, inverse, out);
    case 4:
      return regroup<std::uint32_t>(in, groups, group_size, cols, inverse, out);
    default:
      fail(function, "element_size", std::to_string(element_size), "1, 2 or 4 bytes");
  }
}

}  // namespace

std::int64_t packed_rows(std::int64_t rows, int bits) {
  check_bits("packed_rows", bits);
  check_shape("packed_rows", rows, 1);
  const std::int64_t per_byte = 8 / bits;
  return rows / per_byte + (rows % per_byte != 0);
}

void pack(const std::uint8_t* codes, std::int64_t rows, std::int64_t cols, int bits, std::uint8_t* packed) {
  check_bits("pack", bits);
  check_shape("pack", rows, cols);
  const std::int64_t step = packed_rows(rows, bits);
  const std::uint8_t mask = static_cast<std::uint8_t>((1 << bits) - 1);
  parallel_for(step, grain_rows(cols), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      std::uint8_t* out = packed + r * cols;
      std::fill_n(out, cols, std::uint8_t{0});
      for (int field = 0; field < 8 / bits && r + field * step < rows; ++field) {
        const std::uint8_t* in = codes + (r + field * step) * cols;
        for (std::int64_t c = 0; c < cols; ++c) out[c] |= static_cast<std::uint8_t>((in[c] & mask) << (field * bits));
      }
    }
  });
}

void unpack(const std::uint8_t* packed, std::int64_t packed_row_count, std::int64_t cols, int bits,
            std::uint8_t* codes) {
  check_bits("unpack", bits);
  check_shape("unpack", packed_row_count, cols);
  const std::uint8_t mask = static_cast<std::uint8_t>((1 << bits) - 1);
  parallel_for(packed_row_count, grain_rows(cols), [=](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      const std::uint8_t* in = packed + r * cols;
      for (int field = 0; field < 8 / bits; ++field) {
        std::uint8_t* out = codes + (r + field * packed_row_count) * cols;
        for (std::int64_t c = 0; c < cols; ++c) out[c] = static_cast<std::uint8_t>(in[c] >> (field * bits)) & mask;
      }
    }
  });
}

void group_last(const void* in, std::size_t element_size, std::int64_t groups, std::int64_t group_size,
                std::int64_t cols, void* out) {
  regroup_bytes("group_last", in, element_size, groups, group_size, cols, false, out);
}

void ungroup_last(const void* in, std::size_t element_size, std::int64_t groups, std::int64_t group_size,
                  std::int64_t cols, void* out) {
  regroup_bytes("ungroup_last", in, element_size, groups, group_size, cols, true, out);
}

}  // namespace quanto
