#include <cstdint>

namespace quanto::kernels {
namespace {

struct Simd {
  static constexpr int kRowVectors = 2;
  static constexpr int kTile = 6;  // 12 sums, 2 rows and a weight in 16 registers
  // From where a panel, for whole multiples of 8 rows, costs about what few rows do. Those take codes of int8 to floats
  // in so few instructions that a panel gains next to nothing.
  static constexpr std::int64_t kFewestPanelRows = 26;
  static constexpr std::int64_t kFewestInt8WeightPanelRows = 60;
  static constexpr std::int64_t kFewestInt8PanelRows = 21;
  static constexpr std::int64_t kFewestPackedInt8PanelRows = 20;
};

}  // namespace
}  // namespace quanto::kernels

#include "kernels/generic_table-inl.h"

extern "C" const quanto::kernels::KernelTable quanto_kernels_avx2 = quanto::kernels::generic_table(quanto::Isa::avx2);
