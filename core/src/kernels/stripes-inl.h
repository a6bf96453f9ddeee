// What all kernels that decode codes while they multiply have in common: stripes of codes, how many sums registers
// hold, and the fetch of scales. Internal linkage, no std.
#pragma once

#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/fetch-inl.h"
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
/// How many fields share the bytes that Dots takes one field of at a time.
template <class Dots>
constexpr int kFieldsInTurn = kIsOneField<Dots> ? 8 / bits_of(Dots::kQType) : 1;

/// The channels whose codes begin in one of the fields that OneField takes in turn. Grouped row r = n * groups + j has
/// its codes in field r / packed_rows of packed row r % packed_rows.
struct FieldChannels {
  std::int64_t first, last;
  std::int64_t whole;  ///< up to which one all codes are in this field: those of the last one may go on in the next
  std::int64_t lead;   ///< bytes before the codes of the first one: those of a channel that began in the field before

  FieldChannels(const MatmulArgs& a, std::int64_t field)
      : first(first_of(a, field)),
        last(first_of(a, field + 1)),
        whole(smaller(last, (field + 1) * a.packed_rows / a.groups)),
        lead((first * a.groups - field * a.packed_rows) * a.group_size) {}

 private:
  static std::int64_t first_of(const MatmulArgs& a, std::int64_t field) {
    return smaller(a.N, ceil_div(field * a.packed_rows, a.groups));
  }
};

/// Stripes that a unit takes, one after the other: `count` channels of each field that Dots decodes.
struct UnitStripes {
  std::int64_t first, count;
  std::int64_t whole;  ///< those that lie in memory; another one may straddle fields
  std::int64_t next;   ///< how many the next unit takes
  const std::uint8_t* codes;
  const std::uint8_t* later;  ///< codes of the next unit that are fetched meanwhile: of OneField the share of a field
  int field;                  ///< that the codes are in, of OneField
};

/// Calls visit(UnitStripes) for a unit of up to `each` stripes: once, or for each field that OneField takes in turn.
/// The codes of its channels in all fields are in the same bytes, or nearly: once the first field has been multiplied,
/// they are in a cache.
template <class Dots, class Visit>
inline void for_stripes_of_unit(const MatmulArgs& a, std::int64_t unit, std::int64_t each, Visit visit) {
  UnitStripes u{};
  if constexpr (!kIsOneField<Dots>) {
    u.first = unit * each;
    u.count = u.whole = smaller(each, stripe_count<Dots>(a) - u.first);
    u.next = smaller(each, stripe_count<Dots>(a) - u.first - each);
    u.codes = a.w + u.first * a.K;
    u.later = u.next > 0 ? u.codes + each * a.K : u.codes;
    visit(u);
  } else {
    for (u.field = 0; u.field < kFieldsInTurn<Dots>; ++u.field) {
      const FieldChannels channels(a, u.field);
      u.first = channels.first + unit * each;
      u.count = smaller(each, channels.last - u.first);
      if (u.count <= 0) continue;
      u.whole = smaller(u.count, channels.whole - u.first);
      u.next = smaller(each, channels.last - u.first - each);
      u.codes = a.w + channels.lead + unit * each * a.K;
      u.later = a.w + (u.next > 0 ? unit + 1 : unit) * each * a.K + u.field * each * a.K / kFieldsInTurn<Dots>;
      visit(u);
    }
  }
}

/// Stripes of all units together.
template <class Dots>
inline std::int64_t stripes_of_units(const MatmulArgs& a) {
  return kIsOneField<Dots> ? ceil_div(a.packed_rows, a.groups) : stripe_count<Dots>(a);
}

/// Copies the codes of channel n for k in [begin, end), wherever they are, to bytes that have them in `field`.
template <QType kQType>
inline void copy_straddling_channel(const MatmulArgs& a, std::int64_t n, int field, std::int64_t begin,
                                    std::int64_t end, std::uint8_t* out) {
  for (std::int64_t k = begin; k < end;) {
    const std::int64_t within = k % a.group_size, row = n * a.groups + k / a.group_size;
    const std::int64_t count = smaller(a.group_size - within, end - k);
    const std::uint8_t* bytes = a.w + row % a.packed_rows * a.group_size + within;
    const int shift = (static_cast<int>(row / a.packed_rows) - field) * bits_of(kQType);
    for (std::int64_t i = 0; i < count; ++i) *out++ = static_cast<std::uint8_t>(bytes[i] >> shift);
    k += count;
  }
}

/// How far ahead of their use, at least, packed codes go into the L2 cache: further than they are multiplied while
/// memory brings them, which takes 200 to 500 ns.
constexpr std::int64_t kFetchedAhead = std::int64_t{12} << 10;

/// Fetches the scales and shifts of the channels of a unit. They are read at once where the unit starts, or ends: from
/// memory that takes as long as the codes of a short channel.
template <class Dots>
inline void fetch_scales(const MatmulArgs& a, std::int64_t first, std::int64_t count) {
  if (count <= 0) return;
  const std::int64_t scale_bytes = a.scale_dtype == DType::float32 ? 4 : 2;
  if constexpr (!is_affine_qtype(Dots::kQType)) {
    if (a.scale_step != 0) fetch(a, static_cast<const char*>(a.scale) + first * scale_bytes, count * scale_bytes);
    return;
  }
  const std::int64_t shift_bytes = a.shift_kind == ShiftKind::floating ? scale_bytes : 1;
  for (int field = 0; field < Dots::kFields; ++field) {
    const std::int64_t row = (field * stripe_count<Dots>(a) + first) * a.groups;
    fetch(a, static_cast<const char*>(a.scale) + row * scale_bytes, count * a.groups * scale_bytes);
    fetch(a, static_cast<const char*>(a.shift) + row * shift_bytes, count * a.groups * shift_bytes);
  }
}

}  // namespace
}  // namespace quanto::kernels
