// The loops that the units of peaks.h are made of. Internal linkage: they are compiled with each unit's flags.
#pragma once

#include "peaks.h"

namespace quanto::bench {
namespace {

#if defined(__x86_64__)
#define QUANTO_IN_REGISTER(v) asm volatile("" : "+v"(v))
#else
#define QUANTO_IN_REGISTER(v) asm volatile("" : "+w"(v))
#endif

/// kChains sums that depend on themselves alone: enough of them hide the latency of `step`. Every loop over them is
/// unrolled, or the compiler keeps them in memory.
template <int kChains, class V, class Step>
inline void run_chains(std::int64_t steps, V start, Step step) {
  V sums[kChains];
#pragma GCC unroll 32
  for (V& sum : sums) {
    sum = start;
    QUANTO_IN_REGISTER(sum);  // equal sums would be computed once
  }
  for (std::int64_t s = 0; s < steps; ++s) {
#pragma GCC unroll 32
    for (V& sum : sums) sum = step(sum);
  }
#pragma GCC unroll 32
  for (V& sum : sums) QUANTO_IN_REGISTER(sum);
}

/// Reads whole blocks of 8 vectors, and asks for the lines of 1 KiB ahead, as the kernels do.
template <class V>
inline void read_vectors(const void* from, std::int64_t bytes) {
  constexpr int kVectors = 8;
  constexpr std::int64_t kBlock = kVectors * static_cast<std::int64_t>(sizeof(V));
  const char* at = static_cast<const char*>(from);
  V sums[kVectors] = {};
  for (std::int64_t done = 0; done + kBlock <= bytes; done += kBlock) {
    for (std::int64_t line = 0; line < kBlock; line += 64) __builtin_prefetch(at + done + line + 1024);
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      V v;
      __builtin_memcpy(&v, at + done + i * static_cast<std::int64_t>(sizeof(V)), sizeof(V));
      sums[i] |= v;
    }
  }
  for (V& sum : sums) QUANTO_IN_REGISTER(sum);
}

}  // namespace
}  // namespace quanto::bench
