#include <cstdint>

namespace quanto::kernels {
namespace {

/// Vectors of four floats, which the compiler maps to what the target has.
struct Simd {
  using Narrow = Simd;
  typedef float V __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kRowVectors = 2;
  static constexpr int kTile = 6;
  static constexpr int kFewestPanelRows = 5;
  static V load(const float* at) {
    V v;
    __builtin_memcpy(&v, at, sizeof(v));
    return v;
  }
  static void store(float* at, V v) { __builtin_memcpy(at, &v, sizeof(v)); }
  static V broadcast(float v) { return V{v, v, v, v}; }
  static V multiply_add(V a, V b, V c) { return a * b + c; }
};

}  // namespace
}  // namespace quanto::kernels

#include "kernels/panel-inl.h"

extern "C" const quanto::kernels::KernelTable quanto_kernels_portable =
    quanto::kernels::generic_table(quanto::Isa::portable);
