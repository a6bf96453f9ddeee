// Extremes of rows and columns, on the bit patterns of the floats: patterns without their sign order like magnitudes,
// so that integer comparisons give the same result in any order of elements, NaN included.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/lanes-inl.h"
#include "kernels/quantize_table.h"

namespace quanto::kernels {
namespace {

/// A dtype as integers. `Int` is as wide as a float of it.
template <class Element>
struct Pattern {
  using Int = Element;
  static constexpr int kCount = kVectorBytes / static_cast<int>(sizeof(Int));
  static constexpr Int kMagnitude = static_cast<Int>(sizeof(Int) == 4 ? 0x7fffffff : 0x7fff);
  typedef Int Vector __attribute__((vector_size(kVectorBytes)));

  static Vector load(const void* from) {
    Vector value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
  }
  static Int load_one(const void* from) {
    Int value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
  }
};
using Pattern32 = Pattern<std::int32_t>;
using Pattern16 = Pattern<std::int16_t>;

/// |x|
template <class P, class T>
inline T magnitude(T pattern) {
  return static_cast<T>(pattern & P::kMagnitude);
}
/// Integers that order like the floats they stand for; its own inverse.
template <class P, class T>
inline T ordered(T pattern) {
  constexpr int kSign = 8 * static_cast<int>(sizeof(typename P::Int)) - 1;
  return static_cast<T>(pattern ^ (pattern >> kSign & P::kMagnitude));
}

template <class T>
inline T larger(T a, T b) {
  return a > b ? a : b;
}
template <class T>
inline T smaller_of(T a, T b) {
  return a < b ? a : b;
}

template <class P>
typename P::Int absmax_of_row(const char* row, std::int64_t cols) {
  using Int = typename P::Int;
  Int largest = 0;
  std::int64_t i = 0;
  if (cols >= P::kCount) {
    typename P::Vector running{};
    for (; i + P::kCount <= cols; i += P::kCount) {
      running = larger(running, magnitude<P>(P::load(row + i * sizeof(Int))));
    }
    for (int lane = 0; lane < P::kCount; ++lane) largest = larger(largest, static_cast<Int>(running[lane]));
  }
  for (; i < cols; ++i) largest = larger(largest, magnitude<P>(P::load_one(row + i * sizeof(Int))));
  return largest;
}

/// How far ahead of their use values are fetched, in bytes.
constexpr std::int64_t kFetchAhead = 2048;

template <class P>
void minmax_of_row(const char* row, std::int64_t cols, std::int32_t& lowest, std::int32_t& highest) {
  using Int = typename P::Int;
  Int low = P::kMagnitude, high = static_cast<Int>(~P::kMagnitude);
  std::int64_t i = 0;
  if (cols >= P::kCount) {
    typename P::Vector lows = ordered<P>(P::load(row)), highs = lows;
    for (i = P::kCount; i + P::kCount <= cols; i += P::kCount) {
      __builtin_prefetch(row + i * sizeof(Int) + kFetchAhead);
      const auto values = ordered<P>(P::load(row + i * sizeof(Int)));
      lows = smaller_of(lows, values);
      highs = larger(highs, values);
    }
    for (int lane = 0; lane < P::kCount; ++lane) {
      low = smaller_of(low, static_cast<Int>(lows[lane]));
      high = larger(high, static_cast<Int>(highs[lane]));
    }
  }
  for (; i < cols; ++i) {
    const Int value = ordered<P>(P::load_one(row + i * sizeof(Int)));
    low = smaller_of(low, value);
    high = larger(high, value);
  }
  lowest = low;
  highest = high;
}

template <class P>
void absmax_of_rows(const char* values, std::int64_t rows, std::int64_t cols, std::uint32_t* largest) {
  const std::int64_t stride = cols * static_cast<std::int64_t>(sizeof(typename P::Int));
  for (std::int64_t r = 0; r < rows; ++r) {
    largest[r] = static_cast<std::uint32_t>(absmax_of_row<P>(values + r * stride, cols));
  }
}

template <class P>
void minmax_of_rows(const char* values, std::int64_t rows, std::int64_t cols, std::int32_t* lowest,
                    std::int32_t* highest) {
  const std::int64_t stride = cols * static_cast<std::int64_t>(sizeof(typename P::Int));
  for (std::int64_t r = 0; r < rows; ++r) minmax_of_row<P>(values + r * stride, cols, lowest[r], highest[r]);
}

template <class P>
void absmax_of_columns(const char* row, std::int64_t cols, std::uint32_t* largest) {
  for (std::int64_t c = 0; c < cols; ++c) {
    const auto value = static_cast<std::uint32_t>(magnitude<P>(P::load_one(row + c * sizeof(typename P::Int))));
    largest[c] = larger(largest[c], value);
  }
}

template <class P>
void minmax_of_columns(const char* row, std::int64_t cols, std::int32_t* lowest, std::int32_t* highest) {
  for (std::int64_t c = 0; c < cols; ++c) {
    const std::int32_t value = ordered<P>(P::load_one(row + c * sizeof(typename P::Int)));
    lowest[c] = smaller_of(lowest[c], value);
    highest[c] = larger(highest[c], value);
  }
}

void absmax(DType dtype, const void* values, std::int64_t rows, std::int64_t cols, std::uint32_t* largest) {
  const auto run = dtype == DType::float32 ? absmax_of_rows<Pattern32> : absmax_of_rows<Pattern16>;
  run(static_cast<const char*>(values), rows, cols, largest);
}
void minmax(DType dtype, const void* values, std::int64_t rows, std::int64_t cols, std::int32_t* lowest,
            std::int32_t* highest) {
  const auto run = dtype == DType::float32 ? minmax_of_rows<Pattern32> : minmax_of_rows<Pattern16>;
  run(static_cast<const char*>(values), rows, cols, lowest, highest);
}
void column_absmax(DType dtype, const void* values, std::int64_t cols, std::uint32_t* largest) {
  const auto run = dtype == DType::float32 ? absmax_of_columns<Pattern32> : absmax_of_columns<Pattern16>;
  run(static_cast<const char*>(values), cols, largest);
}
void column_minmax(DType dtype, const void* values, std::int64_t cols, std::int32_t* lowest, std::int32_t* highest) {
  const auto run = dtype == DType::float32 ? minmax_of_columns<Pattern32> : minmax_of_columns<Pattern16>;
  run(static_cast<const char*>(values), cols, lowest, highest);
}

}  // namespace
}  // namespace quanto::kernels
