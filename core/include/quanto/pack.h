// 2- and 4-bit codes in bytes, and the grouping of a matrix into rows that share a scale.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quanto {

/// Rows of the packed matrix: ceil(rows / (8 / bits)).
std::int64_t packed_rows(std::int64_t rows, int bits);

/// Packs codes along the first dimension: with P = packed_rows(rows), byte (r, c) holds the codes (r + i * P, c),
/// i = 0 .. 8/bits - 1, from its low bits to its high bits. Fields past the last row are zero.
/// `codes`: rows x cols bytes in 0 .. 2^bits - 1. `packed`: P x cols bytes. `bits`: 2 or 4.
void pack(const std::uint8_t* codes, std::int64_t rows, std::int64_t cols, int bits, std::uint8_t* packed);

/// The inverse of pack, padding rows included. `packed`: packed_rows x cols bytes.
/// `codes`: (8/bits * packed_rows) x cols bytes.
void unpack(const std::uint8_t* packed, std::int64_t packed_rows, std::int64_t cols, int bits, std::uint8_t* codes);

/// Groups a matrix quantized along its last axis: (groups * group_size) x cols becomes group_size x (cols * groups),
/// where out(j, d * groups + i) = in(i * group_size + j, d). Along the first axis grouping is a mere reshape.
void group_last(const void* in, std::size_t element_size, std::int64_t groups, std::int64_t group_size,
                std::int64_t cols, void* out);

/// The inverse of group_last.
void ungroup_last(const void* in, std::size_t element_size, std::int64_t groups, std::int64_t group_size,
                  std::int64_t cols, void* out);

}  // namespace quanto
