// How bytes that are about to be read once are fetched: by kernels, and by the matmul before it calls them. Internal
// linkage, no std.
#pragma once

#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/kernel_table.h"

namespace quanto::kernels {
namespace {

/// Whether codes are fetched into the L2 cache, in the order of memory. The L1 cache of Zen 4 has places for 24 lines
/// on their way, half of what memory takes, its L2 cache has enough: one row of 4096 x 4096 int8 weights reads 31 to 36
/// GB/s so, in place of 25. It costs other data their place there, but a small language model decodes 1.12 to 1.19
/// times as fast.
inline bool fetches_into_l2(const MatmulArgs& a) { return a.cores == Cores::zen4; }

/// Fetches all lines of `bytes` bytes.
template <int kLocality>
inline void fetch_lines(const void* from, std::int64_t bytes) {
  const auto* at = static_cast<const char*>(from);
  for (std::int64_t i = 0; i < bytes + 63; i += 64) __builtin_prefetch(at + smaller(i, bytes - 1), 0, kLocality);
  asm volatile("");  // GCC takes a function of prefetches alone for one without effects and drops the calls of it
}

/// Fetches `bytes` bytes, past the outer caches where they do not go into the L2 cache.
inline void fetch(const MatmulArgs& a, const void* from, std::int64_t bytes) {
  if (bytes <= 0) return;
  fetches_into_l2(a) ? fetch_lines<2>(from, bytes) : fetch_lines<0>(from, bytes);
}

}  // namespace
}  // namespace quanto::kernels
