#include <cstdint>

namespace quanto::kernels {
namespace {

struct Simd {
  static constexpr int kRowVectors = 4;
  static constexpr int kTile = 6;  // 24 sums, 4 rows and a weight in 32 registers
  // From where a panel for 32 rows costs no more than few rows do.
  static constexpr std::int64_t kFewestPanelRows = 27;
  static constexpr std::int64_t kFewestInt8WeightPanelRows = kFewestPanelRows;
  static constexpr std::int64_t kFewestInt8PanelRows = 22;
  static constexpr std::int64_t kFewestPackedInt8PanelRows = 13;
};

}  // namespace
}  // namespace quanto::kernels

#include "kernels/generic_table-inl.h"

extern "C" const quanto::kernels::KernelTable quanto_kernels_avx512 =
    quanto::kernels::generic_table(quanto::Isa::avx512);
