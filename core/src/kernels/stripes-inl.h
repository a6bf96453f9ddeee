// What all kernels that decode codes while they multiply have in common: stripes of codes, how many sums registers
// hold, and the fetch of scales. Internal linkage, no std.
#pragma once

#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

// Sums in registers, beside a decoded vector for each stripe or an activation for each row. A multiply-add every cycle
// wants more sums than its latency suggests: with 8 the pipes of Zen 4 are at 75 %, with 16 at 93 %.
constexpr int kSums = kVectorBytes == 64 ? 24 : 12;
// Where registers are few, more rows than 6 leave a vector of activations no more than one decoded vector to meet.
constexpr std::int64_t kRowsAtOnce = kVectorBytes == 64 ? 12 : 6;

/// Of numbers up to 15.
constexpr int power_of_two_up_to(int most) { return most >= 8 ? 8 : most >= 4 ? 4 : most >= 2 ? 2 : 1; }

/// Stripe i, the K bytes from i * K on, holds the codes of the channels i, i + N / fields, ...
template <class Dots>
QUANTO_INLINE std::int64_t stripe_count(const MatmulArgs& a) {
  return a.N / Dots::kFields;
}

/// Dots of a single field of packed codes, which is chosen when they are loaded. A stripe is a channel.
template <class Dots>
struct OneField : Dots {
  static constexpr int kFields = 1;
};
template <class Dots>
constexpr bool kIsOneField = false;
template <class Dots>
constexpr bool kIsOneField<OneField<Dots>> = true;

/// Fetches `bytes` bytes that are about to be read once.
QUANTO_INLINE void fetch(const void* from, std::int64_t bytes) {
  const auto* at = static_cast<const char*>(from);
  for (std::int64_t i = 0; i < bytes + 63; i += 64) __builtin_prefetch(at + smaller(i, bytes - 1), 0, 0);
  asm volatile("");  // GCC takes a function of prefetches alone for one without effects and drops the calls of it
}

/// Fetches the scales and shifts of the channels of a unit. They are read at once where the unit starts, or ends: from
/// memory that takes as long as the codes of a short channel.
template <class Dots>
inline void fetch_scales(const MatmulArgs& a, std::int64_t first, std::int64_t count) {
  if (count <= 0) return;
  const std::int64_t scale_bytes = a.scale_dtype == DType::float32 ? 4 : 2;
  if constexpr (!is_affine_qtype(Dots::kQType)) {
    if (a.scale_step != 0) fetch(static_cast<const char*>(a.scale) + first * scale_bytes, count * scale_bytes);
    return;
  }
  const std::int64_t shift_bytes = a.shift_kind == ShiftKind::floating ? scale_bytes : 1;
  for (int field = 0; field < Dots::kFields; ++field) {
    const std::int64_t row = (field * stripe_count<Dots>(a) + first) * a.groups;
    fetch(static_cast<const char*>(a.scale) + row * scale_bytes, count * a.groups * scale_bytes);
    fetch(static_cast<const char*>(a.shift) + row * shift_bytes, count * a.groups * shift_bytes);
  }
}

}  // namespace
}  // namespace quanto::kernels
