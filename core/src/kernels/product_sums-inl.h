// Sums of products in registers, for the kernels that decode codes while they multiply: of some parts of the weights,
// each a vector of codes, of some fields of those codes, and of some rows. Internal linkage, no std.
//
// Dots, or Columns (dots-inl.h, bf16_codes-inl.h, float_columns-inl.h, bf16_columns-inl.h), says what codes decode to
// and what that is multiplied with.
#pragma once

#include "kernels/dots-inl.h"
#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

/// Whether products are added in the order of the source, vectors decoded before any of them is multiplied. Two stripes
/// of two rows of float32 and int4, which Zen 4 takes at once, need 0.97 of the time that the compiler's order does.
template <class Dots, int kParts, int kFields, int kRows>
constexpr bool kKeepsOrder = kParts == 2 && kFields == 2 && kRows == 2 &&
                             requires(typename Dots::X x, FloatLanes& sum) {
  Dots::add_products_in_order(x, x, sum);
};

/// The fields [kFirst, kFirst + kFields) of a byte.
template <class Dots, class SumLanes, int kParts, int kFirst, int kFields, int kRows>
struct ProductSums {
  using Sum = SumLanes;
  static constexpr int kRowCount = kRows;
  Sum of[kParts][kFields][kRows];

  template <class Visit>
  QUANTO_INLINE void for_each(Visit visit) {
    QUANTO_UNROLL for (int p = 0; p < kParts; ++p) {
      QUANTO_UNROLL for (int f = 0; f < kFields; ++f) {
        QUANTO_UNROLL for (int m = 0; m < kRows; ++m) visit(p, f, m, of[p][f][m]);
      }
    }
  }

  /// Adds the products of the v-th vector that each of kParts `codes` decodes to with `row_of(m)`, a vector of
  /// activations. What there is less of, those or decoded codes, waits in registers for the other; but for kKeepsOrder.
  template <class RowOf>
  QUANTO_INLINE void add_products(const typename Dots::Codes* codes, int v, RowOf row_of) {
    const auto row = [&](int m) __attribute__((always_inline)) {
      typename Dots::X x = row_of(m);
      // Without this the compiler makes it again for every part and field.
      if constexpr (kParts * kFields > 1) QUANTO_IN_REGISTER(x);
      return x;
    };
    if constexpr (kRows <= kParts * kFields && !kKeepsOrder<Dots, kParts, kFields, kRows>) {
      typename Dots::X rows[kRows];
      QUANTO_UNROLL for (int m = 0; m < kRows; ++m) rows[m] = row(m);
      QUANTO_UNROLL for (int p = 0; p < kParts; ++p) {
        QUANTO_UNROLL for (int f = 0; f < kFields; ++f) {
          const typename Dots::X w = Dots::decode(codes[p], kFirst + f, v);
          QUANTO_UNROLL for (int m = 0; m < kRows; ++m) add(p, f, m, w, rows[m]);
        }
      }
    } else {
      typename Dots::X w[kParts][kFields];
      QUANTO_UNROLL for (int p = 0; p < kParts; ++p) {
        QUANTO_UNROLL for (int f = 0; f < kFields; ++f) w[p][f] = Dots::decode(codes[p], kFirst + f, v);
      }
      QUANTO_UNROLL for (int m = 0; m < kRows; ++m) {
        const typename Dots::X x = row(m);
        QUANTO_UNROLL for (int p = 0; p < kParts; ++p) {
          QUANTO_UNROLL for (int f = 0; f < kFields; ++f) add(p, f, m, w[p][f], x);
        }
      }
    }
  }

 private:
  QUANTO_INLINE void add(int p, int f, int m, typename Dots::X w, typename Dots::X x) {
    if constexpr (kKeepsOrder<Dots, kParts, kFields, kRows>) {
      Dots::add_products_in_order(w, x, of[p][f][m]);
    } else {
      of[p][f][m] = Dots::add_products(w, x, of[p][f][m]);
      QUANTO_IN_REGISTER(of[p][f][m]);
    }
  }
};

}  // namespace
}  // namespace quanto::kernels
