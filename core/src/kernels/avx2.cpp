#include <cstdint>

namespace quanto::kernels {
namespace {

struct Simd {
  static constexpr int kRowVectors = 2;
  static constexpr int kTile = 6;  // 12 sums, 2 rows and a weight in 16 registers
  // From where a panel costs no more than few rows do, but for 17 and 18 rows.
  static constexpr std::int64_t kFewestPanelRows = 13;
  static constexpr std::int64_t kFewestInt8PanelRows = 13;
  static constexpr std::int64_t kFewestPackedInt8PanelRows = 37;
};

}  // namespace
}  // namespace quanto::kernels

#include "kernels/generic_table-inl.h"

extern "C" const quanto::kernels::KernelTable quanto_kernels_avx2 = quanto::kernels::generic_table(quanto::Isa::avx2);
