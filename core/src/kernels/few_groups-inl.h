// Constants of four channels that have few groups each, which lie one after the other in few vectors: rearranged so
// that a vector has four groups, and each of its quarters a group of all four channels. For units with AVX-512.
// Internal linkage, no std.
#pragma once

#include <cstdint>

#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

/// With more groups a vector of each channel is mostly full, and transposing four of them takes no more shuffles.
struct FewGroups {
  static constexpr std::int64_t kChannels = 4, kMost = 12;
  static constexpr int kVectors = kChannels * kMost / kLanes;

  std::int64_t groups;
  int vectors;                  ///< that all groups of the channels fill, at most kVectors
  __m512i places[kVectors];     ///< of what each lane holds, among the constants of the channels
  __mmask16 filled[kVectors];   ///< lanes that have a group
  __mmask16 in_last[kVectors];  ///< lanes whose place is in the last of kVectors vectors
  std::uint64_t last_groups;    ///< in the order of memory, those that no other group of their channel follows

  static bool serves(std::int64_t groups) { return groups <= kMost; }

  /// May be made, though not used, where there are more groups than kMost.
  explicit FewGroups(std::int64_t count)
      : groups(smaller(count, kMost)), vectors(static_cast<int>(ceil_div(groups, kLanes / kChannels))) {
    const auto all = [](std::int64_t n) { return _mm512_set1_epi32(static_cast<int>(n)); };
    const auto lane = (__m512i)lane_numbers();
    const __m512i channel = _mm512_and_epi32(lane, all(kChannels - 1)), first = _mm512_srli_epi32(lane, 2);
    const __m512i of_channel = _mm512_mullo_epi32(channel, all(groups));
    QUANTO_UNROLL for (int v = 0; v < kVectors; ++v) {
      const __m512i group = _mm512_add_epi32(first, all(v * (kLanes / kChannels)));
      places[v] = _mm512_add_epi32(of_channel, group);
      filled[v] = _mm512_cmplt_epi32_mask(group, all(groups));
      in_last[v] = filled[v] & _mm512_cmpge_epi32_mask(places[v], all(2 * kLanes));
    }
    last_groups = 0;
    for (std::int64_t i = 1; i <= kChannels; ++i) last_groups |= std::uint64_t{1} << (i * groups - 1);
  }

  /// Vector v of the constants that lie in `all` vectors, or in the first two of them; zeros where there is no group.
  template <bool kInAll>
  QUANTO_INLINE FloatLanes groups_of(int v, const FloatLanes (&all)[kVectors]) const {
    __m512 found = _mm512_maskz_permutex2var_ps(filled[v], (__m512)all[0], places[v], (__m512)all[1]);
    if constexpr (kInAll) found = _mm512_mask_permutexvar_ps(found, in_last[v], places[v], (__m512)all[2]);
    return (FloatLanes)found;
  }

  /// Vector v of constants that all channels share, of which `all` has those of group i in lane i.
  static QUANTO_INLINE FloatLanes repeated(int v, FloatLanes all) {
    const __m512i group = _mm512_add_epi32(_mm512_srli_epi32((__m512i)lane_numbers(), 2), _mm512_set1_epi32(4 * v));
    return (FloatLanes)_mm512_permutexvar_ps(group, (__m512)all);
  }
};

}  // namespace
}  // namespace quanto::kernels
