#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

struct Simd {
  using Narrow = Simd;
  using V = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kRowVectors = 2;
  static constexpr int kTile = 6;              // 12 sums, 2 rows and a weight in 16 registers
  static constexpr int kFewestPanelRows = 37;  // where a panel for 48 rows costs what few rows do: at 35 to 38 rows
  static V load(const float* at) { return _mm256_loadu_ps(at); }
  static void store(float* at, V v) { _mm256_storeu_ps(at, v); }
  static V broadcast(float v) { return _mm256_set1_ps(v); }
  static V multiply_add(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
};

}  // namespace
}  // namespace quanto::kernels

#include "kernels/panel-inl.h"

extern "C" const quanto::kernels::KernelTable quanto_kernels_avx2 = quanto::kernels::generic_table(quanto::Isa::avx2);
