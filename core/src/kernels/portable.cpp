#include <cstdint>

namespace quanto::kernels {
namespace {

/// Vectors of four floats, which the compiler maps to what the target has.
struct Simd {
  static constexpr int kRowVectors = 2;
  static constexpr int kTile = 6;
  static constexpr std::int64_t kFewestPanelRows = 5;
  static constexpr std::int64_t kFewestInt8WeightPanelRows = kFewestPanelRows;
  static constexpr std::int64_t kFewestInt8PanelRows = 5;
  static constexpr std::int64_t kFewestPackedInt8PanelRows = 5;
};

}  // namespace
}  // namespace quanto::kernels

#include "kernels/generic_table-inl.h"

extern "C" const quanto::kernels::KernelTable quanto_kernels_portable =
    quanto::kernels::generic_table(quanto::Isa::portable);
