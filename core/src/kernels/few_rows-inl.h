// The kernel for few rows, where the time goes into reading the weights: decode them in registers, a chunk at a time,
// and multiply them at once with up to kRowsAtOnce rows of activations. Each byte of weights comes from memory once;
// more rows find it in the cache again.
//
// Codes are multiplied as they are. A channel's 8-bit codes have one scale, which its sum is multiplied with; the
// packed qtypes have one for each group, whose products are summed on their own and then scaled. Their shifts meet the
// sums of the activations of a group, which are taken once per call:
//   sum over k of (scale * code - shift) * x  =  scale * sum of code * x  -  shift * sum of x.
// No term is larger than |scale * code * x| or |shift * x|, and a group of zeros gives zero.
//
// Channels that share bytes lie side by side only if N is a multiple of their number. Where it is not, each channel is
// taken on its own (OneField): its codes are moved to the lowest field, and bytes are read once for every field.
//
// The order of the additions is the same for every row, whatever the other rows are, so a row has the same bytes in
// every batch: products of a chunk go to the lanes of a vector, chunk after chunk.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/args-inl.h"
#include "kernels/decode-inl.h"
#include "kernels/dots-inl.h"
#include "kernels/int8_steps-inl.h"
#include "kernels/kernel_table.h"
#include "kernels/lanes-inl.h"
#include "kernels/product_sums-inl.h"

namespace quanto::kernels {
namespace {

// Sums in registers, beside a decoded vector for each stripe or an activation for each row. A multiply-add every cycle
// wants more sums than its latency suggests: with 8 the pipes of Zen 4 are at 75 %, with 16 at 93 %.
constexpr int kSums = kVectorBytes == 64 ? 24 : 12;
// Where registers are few, more rows than 6 leave a vector of activations no more than one decoded vector to meet.
constexpr std::int64_t kRowsAtOnce = kVectorBytes == 64 ? 12 : 6;
/// A multiple of what is multiplied at once, whatever the number of rows.
template <class Dots>
constexpr std::int64_t kStripesPerUnit = kVectorBytes == 64 || is_affine_qtype(Dots::kQType) ? 8 : 24;
/// Of a single row with short stripes, where what each unit costs by itself counts more than that no codes are fetched
/// in the meantime: 0.86 to 0.96 of the time for packed codes of 576 columns, but up to 1.08 of it for 1536 columns or
/// codes of 8 bits.
template <class Dots>
constexpr std::int64_t kMostStripesPerUnit = kVectorBytes == 64 && is_affine_qtype(Dots::kQType)
                                                 ? 16
                                                 : kStripesPerUnit<Dots>;
template <class Dots>
constexpr std::int64_t stripes_per_unit(const MatmulArgs& a) {
  return a.M == 1 && a.K <= 768 ? kMostStripesPerUnit<Dots> : kStripesPerUnit<Dots>;
}
/// How far ahead of their use codes are fetched: in bytes of each stripe, and for a single row of all stripes together.
constexpr std::int64_t kFetchAhead = 2048;
template <class Dots>
constexpr std::int64_t kRowFetchAhead = kVectorBytes == 64 && is_affine_qtype(Dots::kQType) ? 10240 : 8192;
/// Whether codes of the next unit are fetched in the order of memory, as many as are multiplied, where rows are
/// several. They gain by it; but not where vectors are so wide and codes so large that few rows take no longer than
/// memory does.
template <class Dots, int kRows>
constexpr bool kFetchesInOrder = kRows > 1 && (kVectorBytes < 64 || is_affine_qtype(Dots::kQType));

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

/// The same for a single field of packed codes, which is chosen when they are loaded. A stripe is a channel.
template <class Dots>
struct OneField : Dots {
  static constexpr int kFields = 1;
};
template <class Dots>
constexpr bool kIsOneField = false;
template <class Dots>
constexpr bool kIsOneField<OneField<Dots>> = true;

/// Stripe i, the K bytes from i * K on, holds the codes of the channels i, i + N / fields, ...
template <class Dots>
QUANTO_INLINE std::int64_t stripe_count(const MatmulArgs& a) {
  return a.N / Dots::kFields;
}

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

/// A thread's memory: the sums of a unit, a vector for each (stripe, field, row), and its scales.
template <class Dots>
struct UnitScratch {
  FloatLanes* totals;
  float* scales;    ///< of (field, stripe, group), with the field's factor
  float* offsets;   ///< of (stripe, group) of one field, negated
  bool* maybe_nan;  ///< of each stripe, where codes are decoded without their NaN: whether to look for it
  std::int64_t rows, groups, stripes;

  UnitScratch(const MatmulArgs& a, void* memory)
      : totals(static_cast<FloatLanes*>(memory)),
        rows(padded_rows(a.M)),
        groups(PreparedRows<Dots>::kAffine ? a.groups : 0),
        stripes(stripes_per_unit<Dots>(a)) {
    scales = reinterpret_cast<float*>(totals + stripes * Dots::kFields * rows);
    offsets = scales + Dots::kFields * stripes * groups + kLanes;  // vectors end behind the last of either
    maybe_nan = reinterpret_cast<bool*>(offsets + stripes * groups + kLanes);
  }

  std::size_t bytes() const {
    const auto channels = static_cast<std::size_t>(stripes * Dots::kFields);
    const std::int64_t floats = stripes * (Dots::kFields + 1) * groups + 2 * kLanes;
    return channels * static_cast<std::size_t>(rows) * sizeof(FloatLanes) +
           static_cast<std::size_t>(floats) * sizeof(float) + static_cast<std::size_t>(stripes) * sizeof(bool);
  }
  FloatLanes* totals_of(std::int64_t stripe, int field) const {
    return totals + (stripe * Dots::kFields + field) * rows;
  }
  float* scales_of(std::int64_t stripe, int field) const { return scales + (field * stripes + stripe) * groups; }
};

template <class Dots>
std::size_t few_rows_scratch_bytes(const MatmulArgs& a) {
  return UnitScratch<Dots>(a, nullptr).bytes();
}

/// What is multiplied at once: codes of some stripes with some rows, from k on.
struct FewRowsBlock {
  const std::uint8_t* codes;  ///< of the first stripe
  std::int64_t apart;         ///< bytes from a stripe to the next
  const std::uint8_t* next;   ///< the codes that are needed after these
  const std::uint8_t* later;  ///< what is fetched meanwhile: as many bytes as these codes, in the order of memory
  std::int64_t stripe;        ///< the first one, counted within the unit
  std::int64_t m;
  std::int64_t k, depth;  ///< whole chunks, at most segment_depth()
  int field;              ///< that the codes are in, of OneField

  void skip(std::int64_t stripes) {
    codes += stripes * apart;
    later += stripes * depth;
    stripe += stripes;
  }
};

/// Where codes are fetched from while others are multiplied: some way ahead in the stripe or in the stripes after it.
/// A single row's stripes are read straight through, whatever their length.
template <class Dots, int kStripes, int kRows>
struct FewRowsFetch {
  std::int64_t near, far;  ///< from the codes that are multiplied
  std::int64_t turn;       ///< from where on in a stripe it is `far`

  explicit FewRowsFetch(const FewRowsBlock& block) : near(0), far(0) {
    std::int64_t ahead = kRows == 1 ? kRowFetchAhead<Dots> / kStripes : smaller(kFetchAhead, block.depth);
    if constexpr (kRows == 1) {
      for (; ahead >= block.depth; ahead -= block.depth) near += kStripes * block.apart;
    }
    turn = block.depth - ahead;
    far = near + kStripes * block.apart - turn;
    near += ahead;
  }
  QUANTO_INLINE const std::uint8_t* of(const FewRowsBlock& block, std::int64_t offset) const {
    if (offset < turn) return block.codes + near + offset;
    return (kRows == 1 ? block.codes + far : block.next - turn) + offset;
  }
};

/// Where the scales of some stripes are, in the scratch memory of a unit. Addresses are made as they are needed: all of
/// them would fill the registers and then the stack.
template <class Dots, int kStripes>
struct UnitScales {
  const float* of_stripe[kStripes];
  std::int64_t field_step;

  UnitScales(const UnitScratch<Dots>& scratch, const float* first) : field_step(scratch.stripes * scratch.groups) {
    for (int s = 0; s < kStripes; ++s) of_stripe[s] = first + s * scratch.groups;
  }
  QUANTO_INLINE const float* of(int s, int f, std::int64_t j) const {
    std::int64_t step = field_step;
    asm("" : "+r"(step));
    return of_stripe[s] + j + f * step;
  }
};

/// Whether registers hold the totals of groups beside so many sums.
template <int kCount>
constexpr bool kHoldsTotals = 3 * kCount <= kSums;

/// Whether codes are decoded from where they have been prepared in memory.
template <class Dots>
constexpr bool kThroughMemory = requires(typename Dots::Codes& codes) {
  Dots::put_into_memory(codes);
};

/// Sums of products in registers.
template <class Dots, int kStripes, int kFirst, int kFields, int kRows>
struct BlockSums : ProductSums<Dots, typename SumsOf<Dots>::Sum, kStripes, kFirst, kFields, kRows> {
  /// totals += sums * scale(stripe, field)
  template <class Scale, class Totals>
  QUANTO_INLINE void add_scaled(Scale scale, Totals& totals) {
    QUANTO_UNROLL for (int s = 0; s < kStripes; ++s) {
      QUANTO_UNROLL for (int f = 0; f < kFields; ++f) {
        FloatLanes factor = scale(s, f);
        QUANTO_IN_REGISTER(factor);
        QUANTO_UNROLL for (int m = 0; m < kRows; ++m) {
          totals[s][f][m] = multiply_add(as_floats(this->of[s][f][m]), factor, totals[s][f][m]);
        }
      }
    }
  }

  /// Looks for NaN codes that are decoded to numbers, in all stripes together.
  static QUANTO_INLINE void mark_nan(const FewRowsBlock& block, std::int64_t offset, WholeBytes& marks) {
    constexpr bool kRegisterIsFree = kVectorBytes == 64 || kStripes * kRows < kSums;
    WholeBytes new_marks = kRegisterIsFree ? marks : WholeBytes{};
    QUANTO_UNROLL for (int s = 0; s < kStripes; ++s) {
      new_marks = Dots::mark_nan(block.codes + s * block.apart + offset, new_marks);
      QUANTO_IN_REGISTER(new_marks);
    }
    if constexpr (kRegisterIsFree) {
      marks = new_marks;
    } else {
      marks = larger_bytes(marks, new_marks);
      asm("" : "+m"(marks));
    }
  }

  QUANTO_INLINE void add_chunk(const FewRowsBlock& block, std::int64_t offset, const typename Dots::X* x,
                               WholeBytes& nan_marks) {
    typename Dots::Codes codes_of_stripes[kStripes];
    typename Dots::Codes* loaded = codes_of_stripes;
    // Zen 5 is slow to load from the stack half of what was stored there; it knows the stack by the address register.
    if constexpr (kThroughMemory<Dots>) asm("" : "+r"(loaded));
    QUANTO_UNROLL for (int s = 0; s < kStripes; ++s) {
      loaded[s] = Dots::load_codes(block.codes + s * block.apart + offset);
      if constexpr (kThroughMemory<Dots>) Dots::put_into_memory(loaded[s]);
      if constexpr (kIsOneField<Dots>) loaded[s] = Dots::shifted(loaded[s], bits_of(Dots::kQType) * block.field);
    }
    if constexpr (!Dots::kDecodesNan) mark_nan(block, offset, nan_marks);
    QUANTO_UNROLL for (int v = 0; v < Dots::kVectors; ++v) {
      this->add_products(
          loaded, v, [&](int m) __attribute__((always_inline)) { return x[m * Dots::kVectors + v]; });
    }
  }

  /// The chunks of [begin, end), counted from the block's first code on; `x` is that of `begin`.
  QUANTO_INLINE void add_chunks(const FewRowsBlock& block, const FewRowsFetch<Dots, kStripes, kRows>& fetch,
                                std::int64_t begin, std::int64_t end, const typename Dots::X* x,
                                WholeBytes& nan_marks) {
    // A single row reads codes once: kept out of the outer caches, they leave there what the rest of a model works
    // with. Decoding a small language model takes a fifth less time so.
    constexpr int kLocality = kRows == 1 ? 0 : 3;
    for (std::int64_t i = begin; i < end; i += Dots::kChunk, x += kRows * Dots::kVectors) {
      if constexpr (kFirst == 0 && kFetchesInOrder<Dots, kRows>) {
        const std::uint8_t* fetched = block.later + i * kStripes;
        QUANTO_UNROLL for (int s = 0; s < kStripes; ++s) __builtin_prefetch(fetched + s * Dots::kChunk, 0, 3);
      } else if constexpr (kFirst == 0) {
        const std::uint8_t* fetched = fetch.of(block, i);
        QUANTO_UNROLL for (int s = 0; s < kStripes; ++s) __builtin_prefetch(fetched + s * block.apart, 0, kLocality);
      }
      add_chunk(block, i, x, nan_marks);
    }
  }
};

template <class Dots, int kStripes, int kFirst, int kFields, int kRows>
QUANTO_INLINE void multiply_block(const MatmulArgs& a, const FewRowsBlock& block,
                                  const FewRowsFetch<Dots, kStripes, kRows>& fetch, const typename Dots::X* x,
                                  const UnitScratch<Dots>& scratch) {
  using Sums = BlockSums<Dots, kStripes, kFirst, kFields, kRows>;
  FloatLanes* totals[kStripes][kFields];
  std::int64_t apart = scratch.rows;
  asm("" : "+r"(apart));  // or the compiler makes vectors of addresses
  for (int s = 0; s < kStripes; ++s) {
    for (int f = 0; f < kFields; ++f) {
      totals[s][f] = scratch.totals_of(block.stripe, kFirst) + block.m + (s * Dots::kFields + f) * apart;
    }
  }
  Sums sums;
  if constexpr (!is_affine_qtype(Dots::kQType)) {
    using Sum = typename Sums::Sum;  // totals of integers are their bits
    sums.for_each([&](int s, int f, int m, Sum& sum) { sum = (Sum)totals[s][f][m]; });
    WholeBytes nan_marks{};
    sums.add_chunks(block, fetch, 0, block.depth, x, nan_marks);
    sums.for_each([&](int s, int f, int m, Sum& sum) { totals[s][f][m] = (FloatLanes)sum; });
    if constexpr (!Dots::kDecodesNan) {
      const bool found = any((IntLanes)(nan_marks == 0xff) != 0);
      for (int s = 0; s < kStripes; ++s) scratch.maybe_nan[block.stripe + s] |= found;
    }
    return;
  }
  const std::int64_t group_size = a.groups == 1 ? round_up(a.K, Dots::kChunk) : a.group_size;
  const std::int64_t first_group = block.k / group_size;
  const UnitScales<Dots, kStripes> scales(scratch, scratch.scales_of(block.stripe, kFirst) + first_group);
  const auto multiply_groups = [&](auto& sums_of_groups) __attribute__((always_inline)) {
    const auto multiply_run = [&](std::int64_t k, std::int64_t run) __attribute__((always_inline)) {
      sums = Sums{};
      WholeBytes nan_marks{};
      sums.add_chunks(block, fetch, k, k + run, x + k / Dots::kChunk * (kRows * Dots::kVectors), nan_marks);
    };
    const auto scale_by = [&](std::int64_t j) __attribute__((always_inline)) {
      sums.add_scaled([&](int s, int f) { return broadcast(*scales.of(s, f, j)); }, sums_of_groups);
    };
    // Lanes hold neighbouring codes, so the next group has the upper half of each vector; after the last one they hold
    // zeros, and what follows its scale is that of another channel.
    const auto scale_halves_by = [&](std::int64_t j) __attribute__((always_inline)) {
      const bool last = first_group + j + 1 == a.groups;
      sums.add_scaled(
          [&](int s, int f) {
            const float* scale = scales.of(s, f, j);
            return broadcast_halves(scale[0], last ? 0.0f : scale[1]);
          },
          sums_of_groups);
    };
    std::int64_t k = 0, j = 0;
    // Groups of two chunks, and of one and a half, have no need to look for their ends.
    if (2 * group_size == 3 * Dots::kChunk && block.k % (2 * group_size) == 0) {
      for (; k + 2 * group_size <= block.depth; k += 2 * group_size, j += 2) {
        multiply_run(k, Dots::kChunk);
        scale_by(j);
        multiply_run(k + Dots::kChunk, Dots::kChunk);
        scale_halves_by(j);
        multiply_run(k + 2 * Dots::kChunk, Dots::kChunk);
        scale_by(j + 1);
      }
    }
    if (group_size == 2 * Dots::kChunk && block.k % group_size == 0) {
      for (; k + 2 * Dots::kChunk <= block.depth; k += 2 * Dots::kChunk, ++j) {
        multiply_run(k, 2 * Dots::kChunk);
        scale_by(j);
      }
    }
    std::int64_t left = (first_group + j + 1) * group_size - block.k - k;  // codes of the group that are still to come
    while (k < block.depth) {
      const bool straddles = left < Dots::kChunk;
      const std::int64_t run = straddles ? Dots::kChunk : smaller(left / Dots::kChunk * Dots::kChunk, block.depth - k);
      multiply_run(k, run);
      if (!straddles) {
        scale_by(j);
      } else {
        scale_halves_by(j);
        ++j;
        left += group_size;
      }
      left -= run;
      if (left == 0) {
        ++j;
        left = group_size;
      }
      k += run;
    }
  };
  if constexpr (kHoldsTotals<kStripes * kFields * kRows>) {
    FloatLanes kept[kStripes][kFields][kRows];
    sums.for_each([&](int s, int f, int m, auto&) { kept[s][f][m] = totals[s][f][m]; });
    multiply_groups(kept);
    sums.for_each([&](int s, int f, int m, auto&) { totals[s][f][m] = kept[s][f][m]; });
  } else {
    multiply_groups(totals);
  }
}

template <class Dots, int kStripes, int kFirst, int kFields, int kRows>
__attribute__((noinline)) void multiply_block_apart(const MatmulArgs& a, const FewRowsBlock& block,
                                                    const FewRowsFetch<Dots, kStripes, kRows>& fetch,
                                                    const typename Dots::X* x, const UnitScratch<Dots>& scratch) {
  multiply_block<Dots, kStripes, kFirst, kFields, kRows>(a, block, fetch, x, scratch);
}

/// `count` times kStripes stripes, one after the other.
template <class Dots, int kStripes, int kFirst, int kFields, int kRows>
__attribute__((noinline)) void multiply_blocks(const MatmulArgs& a, FewRowsBlock block, std::int64_t count,
                                               const UnitScratch<Dots>& scratch) {
  const typename Dots::X* x = PreparedRows<Dots>(a).x(block.m, block.k / Dots::kChunk);
  const FewRowsFetch<Dots, kStripes, kRows> fetch(block);
  const std::uint8_t* after = block.next;
  for (; count > 0; --count, block.skip(kStripes)) {
    block.next = count > 1 ? block.codes + kStripes * block.apart : after;
    // Where sums fill the registers, constants that would be kept from one block to the next push them out.
    if constexpr (is_affine_qtype(Dots::kQType) || kRows <= (Dots::kQType == QType::qint8 ? 3 : 2)) {
      multiply_block<Dots, kStripes, kFirst, kFields, kRows>(a, block, fetch, x, scratch);
    } else {
      multiply_block_apart<Dots, kStripes, kFirst, kFields, kRows>(a, block, fetch, x, scratch);
    }
  }
}

/// How the sums in registers are shared out: the fields of a byte first, then stripes. Where there are 32, one row of
/// packed codes takes fewer stripes, so that the totals of groups find room beside them: 0.8 of the time where weights
/// are in a cache already. 8-bit codes are read up to 10 % faster from four places than from eight. Where there are 16,
/// those of 8-bit codes need not be powers of two: four rows of three stripes have twelve sums, which leave registers
/// for three decoded vectors and one of activations, but none for what preparing codes in memory takes.
constexpr int power_of_two_up_to(int most) { return most >= 8 ? 8 : most >= 4 ? 4 : most >= 2 ? 2 : 1; }
template <class Dots, int kRows>
constexpr int kFieldsAtOnce = smaller(Dots::kFields, power_of_two_up_to(kSums / kRows));
template <class Dots, int kRows>
constexpr int kMostFields =  // of all stripes together
    kVectorBytes < 64                ? 8
    : !is_affine_qtype(Dots::kQType) ? 4
    : kRows == 1                     ? kSums / 3
                                     : kSums;
template <class Dots, int kRows>
constexpr int kStripesAtOnce =
    kVectorBytes<64 && kRows> 1 && !is_affine_qtype(Dots::kQType) && !(kThroughMemory<Dots> && kRows == 4)
        ? kSums / kRows
        : power_of_two_up_to(smaller(kMostFields<Dots, kRows>, kSums / kRows) / kFieldsAtOnce<Dots, kRows>);

/// All fields of `count` times kStripes stripes: of each in turn.
template <class Dots, int kStripes, int kRows, int kFirst = 0>
inline void multiply_fields(const MatmulArgs& a, FewRowsBlock block, std::int64_t count,
                            const UnitScratch<Dots>& scratch) {
  constexpr int kFields = kFieldsAtOnce<Dots, kRows>;
  multiply_blocks<Dots, kStripes, kFirst, kFields, kRows>(a, block, count, scratch);
  if constexpr (kFirst + kFields < Dots::kFields) {
    multiply_fields<Dots, kStripes, kRows, kFirst + kFields>(a, block, count, scratch);
  }
}

/// kRows rows with all stripes up to `last`.
template <class Dots, int kRows>
inline void multiply_stripes(const MatmulArgs& a, FewRowsBlock block, std::int64_t last,
                             const UnitScratch<Dots>& scratch) {
  constexpr int kStripes = kStripesAtOnce<Dots, kRows>;
  // Where registers hold the sums of some fields only, the codes of all of them are still at hand for the others.
  const std::int64_t most = kFieldsAtOnce<Dots, kRows> == Dots::kFields ? kMostStripesPerUnit<Dots> : 1;
  const std::uint8_t* after = block.next;
  while (block.stripe < last) {
    const std::int64_t left = last - block.stripe;
    const std::int64_t count = smaller(most, left >= kStripes ? left / kStripes : left);
    const std::int64_t stripes = left >= kStripes ? count * kStripes : count;
    block.next = stripes < left ? block.codes + stripes * block.apart : after;
    left >= kStripes ? multiply_fields<Dots, kStripes, kRows>(a, block, count, scratch)
                     : multiply_fields<Dots, 1, kRows>(a, block, count, scratch);
    block.skip(stripes);
  }
}

/// `count` <= kRows rows, a number that padded_block() gives.
template <class Dots, int kRows = kRowsAtOnce>
inline void multiply_rows(const MatmulArgs& a, const FewRowsBlock& block, std::int64_t last, std::int64_t count,
                          const UnitScratch<Dots>& scratch) {
  if constexpr (kRows > 0) {
    if constexpr (padded_block(kRows) == kRows) {
      if (count == kRows) return multiply_stripes<Dots, kRows>(a, block, last, scratch);
    }
    multiply_rows<Dots, kRows - 1>(a, block, last, count, scratch);
  }
}

template <class Dots>
inline void multiply_all_rows(const MatmulArgs& a, FewRowsBlock block, std::int64_t last,
                              const UnitScratch<Dots>& scratch) {
  const std::int64_t rows = padded_rows(a.M), each = block_rows(a.M);
  for (; block.m < rows; block.m += each) {
    multiply_rows<Dots>(a, block, last, smaller(each, rows - block.m), scratch);
  }
}

/// Codes that are multiplied before the next stripes are: whole chunks and whole groups, so that a row's sums do not
/// depend on the number of rows. A single row is read straight through. The activations of several are read again for
/// each set of stripes: of up to four rows from the L2 cache, since each vector of theirs meets codes of several
/// stripes or fields; of more from the L1 cache, of which a part is left to the codes. AMD's cores read no more than 32
/// bytes a cycle from L2, where eight rows took up to 1.7 times as long.
template <class Dots>
QUANTO_INLINE std::int64_t segment_depth(const MatmulArgs& a) {
  const std::int64_t rows = block_rows(a.M);
  if (rows == 1) return a.K;
  const std::int64_t bytes = (rows <= 4 ? 128 : 24) << 10;
  const std::int64_t most = bytes / (rows * Dots::kVectors * static_cast<std::int64_t>(sizeof(typename Dots::X)));
  const std::int64_t chunks = ceil_div(a.K, Dots::kChunk), segments = ceil_div(chunks, most);
  if (!is_affine_qtype(Dots::kQType)) return Dots::kChunk * ceil_div(chunks, segments);
  if (a.groups == 1) return Dots::kChunk * chunks;
  const std::int64_t whole = a.group_size % Dots::kChunk == 0 ? a.group_size : 2 * a.group_size;
  return round_up(Dots::kChunk * ceil_div(chunks, segments), whole);
}

/// Codes of some stripes, one after the other: those of k in [begin, end), where begin is the first of a chunk.
struct StripeCodes {
  const std::uint8_t* first;  ///< where the code of k = 0 would be
  std::int64_t begin, end;
  int field = 0;
};

/// The stripes [begin, end) of a unit. What is left after whole chunks is copied to where zeros follow it.
template <class Dots>
inline void multiply_stripe_range(const MatmulArgs& a, const StripeCodes& codes, std::int64_t begin, std::int64_t end,
                                  const UnitScratch<Dots>& scratch) {
  const std::int64_t whole = codes.begin + (codes.end - codes.begin) / Dots::kChunk * Dots::kChunk;
  const std::int64_t segment = segment_depth<Dots>(a);
  for (std::int64_t k = codes.begin; k < whole; k += segment) {
    const std::int64_t depth = smaller(segment, whole - k);
    const std::uint8_t* next = codes.first + (k + depth < whole ? k + depth : (end - begin) * a.K);
    const std::uint8_t* later = codes.first + (end - begin) * (a.K + k - codes.begin);
    multiply_all_rows<Dots>(a, {codes.first + k, a.K, next, later, begin, 0, k, depth, codes.field}, end, scratch);
  }
  if (whole == codes.end) return;
  std::uint8_t rest[kMostStripesPerUnit<Dots> * Dots::kChunk] = {};
  for (std::int64_t s = begin; s < end; ++s) {
    __builtin_memcpy(rest + (s - begin) * Dots::kChunk, codes.first + (s - begin) * a.K + whole,
                     static_cast<std::size_t>(codes.end - whole));
  }
  multiply_all_rows<Dots>(a, {rest, Dots::kChunk, rest, rest, begin, 0, whole, Dots::kChunk, codes.field}, end,
                          scratch);
}

/// `count` channels from n on, whatever fields their codes are in. Grouped row r = n * groups + j has its codes in
/// field r / packed_rows of packed row r % packed_rows.
template <class Dots>
inline void multiply_channels(const MatmulArgs& a, std::int64_t n, std::int64_t count,
                              const UnitScratch<Dots>& scratch) {
  for (std::int64_t i = 0; i < count;) {
    const std::int64_t row = (n + i) * a.groups, field = row / a.packed_rows;
    const std::int64_t rows_left = (field + 1) * a.packed_rows - row;
    if (rows_left >= a.groups) {  // some channels, all of whose codes are in one field
      const std::int64_t last = smaller(i + rows_left / a.groups, count);
      const std::uint8_t* first = a.w + (row - field * a.packed_rows) * a.group_size;
      multiply_stripe_range<Dots>(a, {first, 0, a.K, static_cast<int>(field)}, i, last, scratch);
      i = last;
      continue;
    }
    for (std::int64_t j = 0; j < a.groups;) {
      const std::int64_t f = (row + j) / a.packed_rows;
      const std::int64_t last = smaller((f + 1) * a.packed_rows - row, a.groups);
      const std::uint8_t* first = a.w + (row - f * a.packed_rows) * a.group_size;
      multiply_stripe_range<Dots>(a, {first, j * a.group_size, last * a.group_size, static_cast<int>(f)}, i, i + 1,
                                  scratch);
      j = last;
    }
    ++i;
  }
}

// Units.

/// Zero, or what takes the centre of the codes out of a channel's sums again.
template <class Dots>
inline FloatLanes start_of_sums(const float* x_sums) {
  IntLanes start{};
  if constexpr (SumsOf<Dots>::kIntegers && !is_affine_qtype(Dots::kQType)) {
    start[0] = static_cast<std::int32_t>(static_cast<std::uint32_t>(-Dots::kCentre) *
                                         static_cast<std::uint32_t>(static_cast<std::int32_t>(x_sums[0])));
  }
  return (FloatLanes)start;
}

#if defined(__AVX512F__)
template <int kLow, int kHigh, class Add>
inline FloatLanes add_quarters(FloatLanes x, FloatLanes y, Add add) {
  return add((FloatLanes)_mm512_shuffle_f32x4((__m512)x, (__m512)y, kLow),
             (FloatLanes)_mm512_shuffle_f32x4((__m512)x, (__m512)y, kHigh));
}
/// The sums of eight vectors that lie `apart`, each twice: those of the first four in the lanes 0, 4, 8 and 12.
template <class Add>
inline FloatLanes sums_of_eight(const FloatLanes* v, std::int64_t apart, Add add) {
  FloatLanes fours[2];  // four lanes of each of four vectors
  for (int i = 0; i < 2; ++i) {
    const FloatLanes* at = v + 4 * i * apart;
    const FloatLanes a = add_quarters<0x44, 0xee>(at[0], at[apart], add);
    const FloatLanes b = add_quarters<0x44, 0xee>(at[2 * apart], at[3 * apart], add);
    fours[i] = add_quarters<0x88, 0xdd>(a, b, add);
  }
  const __m512 p = (__m512)fours[0], q = (__m512)fours[1];
  const FloatLanes twos = add((FloatLanes)_mm512_shuffle_ps(p, q, 0x44), (FloatLanes)_mm512_shuffle_ps(p, q, 0xee));
  return add(twos, (FloatLanes)_mm512_permute_ps((__m512)twos, 0xb1));
}
#endif

/// The sum of the lanes of each of `count` vectors that lie `apart`, in the lanes of one. Each is summed in halves, as
/// sum_lanes() does, but all at once: a quarter of the instructions. Whole eights of vectors are read.
template <class Add>
inline FloatLanes sums_of_lanes(const FloatLanes* v, std::int64_t apart, [[maybe_unused]] int count, Add add) {
#if defined(__AVX512F__)
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 16, 20, 24, 28, 18, 22, 26, 30);
  const FloatLanes first = sums_of_eight(v, apart, add);
  const FloatLanes second = count > 8 ? sums_of_eight(v + 8 * apart, apart, add) : first;
  return (FloatLanes)_mm512_permutex2var_ps((__m512)first, order, (__m512)second);
#elif defined(__AVX2__)
  FloatLanes twos[2];  // two lanes of each of four vectors
  for (int i = 0; i < 2; ++i) {
    const FloatLanes* at = v + 4 * i * apart;
    const auto halves = [&](FloatLanes x, FloatLanes y) {
      return (__m256)add((FloatLanes)_mm256_permute2f128_ps((__m256)x, (__m256)y, 0x20),
                         (FloatLanes)_mm256_permute2f128_ps((__m256)x, (__m256)y, 0x31));
    };
    const __m256 p = halves(at[0], at[apart]), q = halves(at[2 * apart], at[3 * apart]);
    twos[i] = add((FloatLanes)_mm256_shuffle_ps(p, q, 0x44), (FloatLanes)_mm256_shuffle_ps(p, q, 0xee));
  }
  const __m256 p = (__m256)twos[0], q = (__m256)twos[1];
  const FloatLanes sums = add((FloatLanes)_mm256_shuffle_ps(p, q, 0x88), (FloatLanes)_mm256_shuffle_ps(p, q, 0xdd));
  return (FloatLanes)_mm256_permutevar8x32_ps((__m256)sums, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#else
  FloatLanes sums{};
  for (int i = 0; i < count; ++i) {
    const FloatLanes x = v[i * apart];
    const FloatLanes halves = add(x, FloatLanes{x[2], x[3], 0, 0});
    sums[i] = add(halves, FloatLanes{halves[1], 0, 0, 0})[0];
  }
  return sums;
#endif
}

/// Of n elements; `b` is filled up to whole vectors.
inline FloatLanes sum_of_products(const float* a, const float* b, std::int64_t n) {
  FloatLanes sum{};
  for_chunks(n, [&](std::int64_t i, auto chunk) {
    sum = multiply_add(load<FloatLanes>(a + i, chunk.count), load<FloatLanes>(b + i, kLanes), sum);
  });
  return sum;
}

/// Reads the scales of `count` groups, and returns what the sums of their activations are multiplied with.
template <class Dots>
QUANTO_INLINE FloatLanes read_scales(const MatmulArgs& a, std::int64_t row, int field, float* scales, int count) {
  const ScaleOffsets so = scale_offsets(a, row, count);
  store(scales, so.scale * Dots::field_factor(field), kLanes);
  return -so.offset;
}

/// The same for the channels of a unit whose codes are in one field, and starts their sums with what their shifts
/// contribute. The channels are neighbours, so that what belongs to them is read through at once, however few groups
/// each has.
template <class Dots>
inline void start_packed_channels(const MatmulArgs& a, std::int64_t first, std::int64_t count, int field,
                                  const PreparedRows<Dots>& rows, const UnitScratch<Dots>& scratch) {
  float* scales = scratch.scales_of(0, field);
  const std::int64_t row = (field * stripe_count<Dots>(a) + first) * a.groups;
  if (rows.rows == 1 && a.groups % kLanes == 0) {  // no vector has groups of two channels: offsets stay in registers
    for (std::int64_t stripe = 0, i = 0; stripe < count; ++stripe) {
      FloatLanes sum{};
      for (std::int64_t j = 0; j < a.groups; j += kLanes, i += kLanes) {
        const FloatLanes offsets = read_scales<Dots>(a, row + i, field, scales + i, kLanes);
        sum = multiply_add(offsets, load<FloatLanes>(rows.group_sums(0) + j, kLanes), sum);
      }
      scratch.totals_of(stripe, field)[0] = sum;
    }
    return;
  }
  for_chunks(count * a.groups, [&](std::int64_t i, auto chunk) {
    store(scratch.offsets + i, read_scales<Dots>(a, row + i, field, scales + i, chunk.count), kLanes);
  });
  for (std::int64_t stripe = 0; stripe < count; ++stripe) {
    for (std::int64_t m = 0; m < rows.rows; ++m) {
      scratch.totals_of(stripe, field)[m] =
          sum_of_products(scratch.offsets + stripe * a.groups, rows.group_sums(m), a.groups);
    }
  }
}

/// Starts the sums of the channels of a unit.
template <class Dots>
inline void start_channels(const MatmulArgs& a, std::int64_t first, std::int64_t count, const PreparedRows<Dots>& rows,
                           const UnitScratch<Dots>& scratch) {
  for (int field = 0; field < Dots::kFields; ++field) {
    if constexpr (is_affine_qtype(Dots::kQType)) {
      start_packed_channels<Dots>(a, first, count, field, rows, scratch);
    } else {
      for (std::int64_t stripe = 0; stripe < count; ++stripe) {
        for (std::int64_t m = 0; m < rows.rows; ++m) {
          scratch.totals_of(stripe, field)[m] = start_of_sums<Dots>(rows.group_sums(m));
        }
      }
    }
  }
  if constexpr (!is_affine_qtype(Dots::kQType)) {
    for (std::int64_t stripe = 0; stripe < count; ++stripe) scratch.maybe_nan[stripe] = false;
  }
}

/// The sums of channels in the stripes from `stripe` on, for row m. What lies beyond `count` is not for use.
template <class Dots>
inline FloatLanes sums_of_channels(const UnitScratch<Dots>& scratch, std::int64_t m, std::int64_t stripe, int field,
                                   int count) {
  const FloatLanes* first = scratch.totals_of(stripe, field) + m;
  const std::int64_t apart = Dots::kFields * scratch.rows;
  if constexpr (SumsOf<Dots>::kIntegers && !is_affine_qtype(Dots::kQType)) {
    const auto add = [](FloatLanes x, FloatLanes y) { return (FloatLanes)((BitLanes)x + (BitLanes)y); };
    return to_float((IntLanes)sums_of_lanes(first, apart, count, add));
  }
  return sums_of_lanes(first, apart, count, [](FloatLanes x, FloatLanes y) { return x + y; });
}

/// What the sums of `count` channels from n on are multiplied with. `maybe_nan` is set only where NaN codes have to be
/// looked for.
template <class Dots>
inline FloatLanes scales_of_channels(const MatmulArgs& a, std::int64_t n, int count, const bool* maybe_nan) {
  FloatLanes scales =
      a.scale_step == 0 ? broadcast(channel_scale(a, 0)) : load_floats(a.scale, a.scale_dtype, n, count);
  if constexpr (!Dots::kDecodesNan) {
    for (int i = 0; i < count; ++i) {
      if (maybe_nan[i] && has_nan_code<Dots::kQType>(a.w + (n + i) * a.K, a.K)) scales[i] = __builtin_nanf("");
    }
  }
  return scales;
}

/// The outputs of `count` channels from n on, the sums of which lie in the stripes of one field.
template <class Dots>
inline void store_channels(const MatmulArgs& a, std::int64_t n, std::int64_t count, int field,
                           const UnitScratch<Dots>& scratch) {
  for_chunks(count, [&](std::int64_t i, auto chunk) {
    FloatLanes scales{};
    if constexpr (!is_affine_qtype(Dots::kQType)) {
      scales = scales_of_channels<Dots>(a, n + i, chunk.count, scratch.maybe_nan + i);
    }
    for (std::int64_t m = 0; m < a.M; ++m) {
      FloatLanes y = sums_of_channels<Dots>(scratch, m, i, field, chunk.count);
      if constexpr (!is_affine_qtype(Dots::kQType)) y = y * Dots::field_factor(0) * scales;
      if (a.row_scale != nullptr) y *= broadcast(row_scale(a, m));
      if (a.bias != nullptr) y += load_floats(a.bias, a.y_dtype, n + i, chunk.count);
      store_floats(a.y, a.y_dtype, m * a.N + n + i, y, chunk.count);
    }
  });
}

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

template <class Dots>
void few_rows_run(const MatmulArgs& a, void* memory, std::int64_t begin, std::int64_t end) {
  const PreparedRows<Dots> rows(a);
  const UnitScratch<Dots> scratch(a, memory);
  const std::int64_t each = stripes_per_unit<Dots>(a);
  for (std::int64_t unit = begin; unit < end; ++unit) {
    const std::int64_t first = unit * each;
    const std::int64_t count = smaller(each, stripe_count<Dots>(a) - first);
    start_channels<Dots>(a, first, count, rows, scratch);
    const std::int64_t next = first + each;
    fetch_scales<Dots>(a, next, smaller(each, stripe_count<Dots>(a) - next));
    if constexpr (kIsOneField<Dots>) {
      multiply_channels<Dots>(a, first, count, scratch);
    } else {
      multiply_stripe_range<Dots>(a, {a.w + first * a.K, 0, a.K}, 0, count, scratch);
    }
    for (int f = 0; f < Dots::kFields; ++f) {
      store_channels<Dots>(a, f * stripe_count<Dots>(a) + first, count, f, scratch);
    }
  }
}

/// Groups have to end where chunks or their halves do; where channels straddle fields, where chunks do.
template <class Dots, std::int64_t kMostRows>
bool few_rows_supports(const MatmulArgs& a) {
  if constexpr (SumsOf<Dots>::kIntegers) {
    if (a.group_size > Dots::kMostTogether) return false;
  }
  constexpr std::int64_t kGroupStep = kIsOneField<Dots> ? Dots::kChunk : Dots::kChunk / 2;
  return a.M <= kMostRows && a.N % Dots::kFields == 0 && (Dots::kTakesAllValues || !a.special_values) &&
         (a.groups == 1 || a.group_size % kGroupStep == 0);
}

template <class Dots>
std::int64_t few_rows_unit_count(const MatmulArgs& a) {
  return ceil_div(stripe_count<Dots>(a), stripes_per_unit<Dots>(a));
}

template <class Dots, DType kDType, std::int64_t kMostRows>
constexpr MatmulKernel kFewRowsKernel = {
    kIsOneField<Dots> ? "few_rows_by_field" : "few_rows",
    few_rows_supports<Dots, kMostRows>,
    few_rows_workspace_bytes<Dots>,
    few_rows_prepare<Dots, kDType>,
    few_rows_serves_values<Dots>,
    few_rows_scratch_bytes<Dots>,
    few_rows_unit_count<Dots>,
    few_rows_run<Dots>,
};

}  // namespace
}  // namespace quanto::kernels
