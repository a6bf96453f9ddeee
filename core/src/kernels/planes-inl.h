// Activations and results that lie in planes (Planes in kernel_table.h): which lanes of a vector of rows are neighbours
// in memory, and how they get there. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

/// Where the rows [m, m + kLanes) of a matmul lie, those after the last one nowhere.
class LaneRuns {
 public:
  /// `offsets`: of the first element of each run of `run` rows. Runs that follow each other in memory are one.
  LaneRuns(const std::int64_t* offsets, std::int64_t run, std::int64_t m, std::int64_t M) {
    const int rows = static_cast<int>(smaller(kLanes, M - m));
    std::int64_t r = m / run, within = m - r * run;
    for (int lane = 0; lane < rows; ++r, within = 0) {
      const int count = static_cast<int>(smaller(run - within, rows - lane));
      const std::int64_t offset = offsets[r] + within - lane;
      if (count_ > 0 && offset == runs_[count_ - 1].offset) {
        runs_[count_ - 1].count += count;
      } else {
        runs_[count_++] = {offset, lane, count};
      }
      lane += count;
    }
    for (int i = 0; i < count_; ++i) masks_[i] = mask_of(runs_[i]);
  }

  /// body(load), where load(from) are the elements in the lanes, 16-bit ones in the lower half of a lane, zeros in
  /// lanes without a row. `from`: what the offsets count from; `readable_around` as in Planes. Most vectors lie in one
  /// run or in two, which are loaded without a loop.
  template <class T, class Body>
  QUANTO_INLINE void with_load([[maybe_unused]] bool readable_around, Body body) const {
    const std::int64_t first = runs_[0].offset;
    if (is_whole())
      return body([first](const T* from) __attribute__((always_inline)) { return widened(from + first); });
    const int more = count_ == 2 ? 1 : 0;
    const std::int64_t second = runs_[more].offset;
    const Mask mask = masks_[0], more_mask = masks_[more];
#if defined(__AVX512F__)
    if (count_ <= 2) {
      return body([=](const T* from) __attribute__((always_inline)) {
        return load_masked(from + second, more_mask, load_masked(from + first, mask, BitLanes{}));
      });
    }
    body([this](const T* from) {
      BitLanes all{};
      for (int i = 0; i < count_; ++i) all = load_masked(from + runs_[i].offset, masks_[i], all);
      return all;
    });
#else
    if (readable_around && count_ <= 2) {
      return body([=](const T* from) __attribute__((always_inline)) {
        return (widened(from + first) & mask) | (widened(from + second) & more_mask);
      });
    }
    body([this](const T* from) {
      T lanes[kLanes] = {};
      for (int i = 0; i < count_; ++i) {
        const int lane = runs_[i].lane;
        __builtin_memcpy(lanes + lane, from + runs_[i].offset + lane,
                         static_cast<std::size_t>(runs_[i].count) * sizeof(T));
      }
      return widened(lanes);
    });
#endif
  }

  /// Stores the values of the lanes, rounded as by store_floats.
  void store(void* base, DType dtype, std::int64_t first, FloatLanes values) const {
    if (is_whole()) return store_floats(base, dtype, first + runs_[0].offset, values, kLanes);
    for (int i = 0; i < count_; ++i) {
      const Run& r = runs_[i];
      for (int lane = r.lane; lane < r.lane + r.count; ++lane) {
        store_float(base, dtype, first + r.offset + lane, values[lane]);
      }
    }
  }

 private:
  /// Lanes [lane, lane + count); `offset` is where lane 0 would lie.
  struct Run {
    std::int64_t offset;
    int lane, count;
  };
#if defined(__AVX512F__)
  using Mask = __mmask16;
  static Mask mask_of(const Run& r) { return static_cast<Mask>(((1u << r.count) - 1) << r.lane); }
#else
  using Mask = BitLanes;
  static Mask mask_of(const Run& r) {
    const IntLanes lanes = lane_numbers();
    return (BitLanes)((lanes >= r.lane) & (lanes < r.lane + r.count));
  }
#endif

  bool is_whole() const { return count_ == 1 && runs_[0].count == kLanes; }
#if defined(__AVX512F__)
  static BitLanes load_masked(const float* at, Mask mask, BitLanes others) {
    return (BitLanes)_mm512_mask_loadu_epi32((__m512i)others, mask, at);
  }
  static BitLanes load_masked(const std::uint16_t* at, Mask mask, BitLanes others) {
    return others | (BitLanes)_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, at));
  }
#endif
  static BitLanes widened(const float* at) { return kernels::load<BitLanes>(at, kLanes); }
  static BitLanes widened(const std::uint16_t* at) { return widen(kernels::load<WordLanes>(at, kLanes)); }

  Run runs_[kLanes];
  Mask masks_[kLanes];
  int count_ = 0;
};

}  // namespace
}  // namespace quanto::kernels
