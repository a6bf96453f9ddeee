// What the kernel for few rows (few_rows-inl.h) makes of the activations before it multiplies: blocks of rows, in the
// order of the chunks of codes, and the sums of their groups. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/int8_steps-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"
#include "kernels/stripes-inl.h"

namespace quanto::kernels {
namespace {

/// Sums of products are floats, or integers where Dots::kIntegers says so.
template <class Dots>
struct SumsOf {
  static constexpr bool kIntegers = false;
  using Sum = FloatLanes;
};
template <class Dots>
requires Dots::kIntegers struct SumsOf<Dots> {
  static constexpr bool kIntegers = true;
  using Sum = typename Dots::Sum;
};
#if defined(__AVX2__)
QUANTO_INLINE FloatLanes as_floats(SignedWords sums) { return to_float(sums_of_pairs(sums)); }
#endif

/// The sizes of blocks of rows that code is generated for: what a number of rows up to kRowsAtOnce is padded to.
constexpr std::int64_t padded_block(std::int64_t rows) {
  return rows <= 4 || kVectorBytes < 64 ? rows : round_up(rows, 2);
}
/// Rows that are multiplied at once: as equal parts of them as blocks allow.
constexpr std::int64_t block_rows(std::int64_t rows) {
  return padded_block(ceil_div(rows, ceil_div(rows, kRowsAtOnce)));
}
constexpr std::int64_t padded_rows(std::int64_t rows) {
  const std::int64_t block = block_rows(rows);
  return rows / block * block + padded_block(rows % block);
}

/// What prepare() leaves for run(): the activations in the order of the chunks, the sums of their groups, and whether
/// every one is of a magnitude that this kernel serves. Rows that are multiplied at once lie beside each other, chunk
/// by chunk, so that one pointer reaches them all.
template <class Dots>
struct PreparedRows {
  static constexpr bool kAffine = is_affine_qtype(Dots::kQType);
  static constexpr bool kHasSums = kAffine || SumsOf<Dots>::kIntegers;
  typename Dots::X* activations;
  float* sums;
  bool* plain;
  std::int64_t rows;  ///< a.M, filled up with zeros
  std::int64_t block_rows, chunks, sums_each;

  explicit PreparedRows(const MatmulArgs& a)
      : activations(static_cast<typename Dots::X*>(a.workspace)),
        rows(padded_rows(a.M)),
        block_rows(kernels::block_rows(a.M)),
        chunks(ceil_div(a.K, Dots::kChunk)),
        sums_each(kHasSums ? round_up(a.groups, kLanes) : 0) {
    sums = reinterpret_cast<float*>(activations + rows * chunks * Dots::kVectors);
    plain = reinterpret_cast<bool*>(sums + rows * sums_each);
  }

  std::size_t bytes() const {
    return static_cast<std::size_t>(rows) *
           (static_cast<std::size_t>(chunks * Dots::kVectors) * sizeof(typename Dots::X) +
            static_cast<std::size_t>(sums_each) * sizeof(float) + sizeof(bool));
  }
  /// Chunk c of row m; the following rows of its block are kVectors further each.
  typename Dots::X* x(std::int64_t m, std::int64_t c) const {
    const std::int64_t block = m / block_rows * block_rows;
    const std::int64_t together = smaller(block_rows, rows - block);
    return activations + (block * chunks + c * together + (m - block)) * Dots::kVectors;
  }
  float* group_sums(std::int64_t m) const { return sums + m * sums_each; }
};

template <class Dots>
std::size_t few_rows_workspace_bytes(const MatmulArgs& a) {
  return PreparedRows<Dots>(a).bytes();
}

/// The sum of the activations [begin, end) of a row.
template <class Dots, DType kDType>
inline float sum_of(const MatmulArgs& a, std::int64_t m, std::int64_t begin, std::int64_t end) {
  if constexpr (SumsOf<Dots>::kIntegers) {
    return static_cast<float>(sum_of_codes(int8_row(a, m) + begin, end - begin));
  }
  FloatLanes sum{};
  for_chunks(end - begin, [&](std::int64_t i, auto chunk) {
    sum += load_floats(a.x, kDType, m * a.x_stride + begin + i, chunk.count);
  });
  return sum_lanes(sum);
}

template <class Dots, DType kDType>
void few_rows_prepare(const MatmulArgs& a, std::int64_t begin, std::int64_t end) {
  const PreparedRows<Dots> rows(a);
  if (end == a.M) end = rows.rows;
  for (std::int64_t m = begin; m < end; ++m) {
    const std::int64_t K = m < a.M ? a.K : 0;
    bool plain = true;
    for (std::int64_t c = 0; c < rows.chunks; ++c) {
      const std::int64_t k = c * Dots::kChunk;
      plain &= Dots::template prepare<kDType>(a.x, m * a.x_stride + k, K < k ? 0 : smaller(Dots::kChunk, K - k),
                                              rows.x(m, c));
    }
    rows.plain[m] = plain;
    float* sums = rows.group_sums(m);
    for (std::int64_t j = 0; j < rows.sums_each; ++j) {
      const bool exists = m < a.M && j < a.groups;
      sums[j] = exists ? sum_of<Dots, kDType>(a, m, j * a.group_size, (j + 1) * a.group_size) : 0.0f;
    }
  }
}

template <class Dots>
bool few_rows_serves_values(const MatmulArgs& a) {
  if constexpr (Dots::kTakesAllValues) return true;
  return all_set(PreparedRows<Dots>(a).plain, a.M);
}

}  // namespace
}  // namespace quanto::kernels
