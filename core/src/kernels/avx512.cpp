#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

struct HalfSimd {
  using V = __m256;
  static constexpr int kLanes = 8;
  static V load(const float* at) { return _mm256_loadu_ps(at); }
  static void store(float* at, V v) { _mm256_storeu_ps(at, v); }
  static V broadcast(float v) { return _mm256_set1_ps(v); }
  static V multiply_add(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
};

struct Simd {
  using Narrow = HalfSimd;
  using V = __m512;
  static constexpr int kLanes = 16;
  static constexpr int kRowVectors = 4;
  static constexpr int kTile = 6;              // 24 sums, 4 rows and a weight in 32 registers
  static constexpr int kFewestPanelRows = 41;  // where a panel for 48 rows costs what few rows do: at 37 to 44 rows
  static V load(const float* at) { return _mm512_loadu_ps(at); }
  static void store(float* at, V v) { _mm512_storeu_ps(at, v); }
  static V broadcast(float v) { return _mm512_set1_ps(v); }
  static V multiply_add(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
};

}  // namespace
}  // namespace quanto::kernels

#include "kernels/panel-inl.h"

extern "C" const quanto::kernels::KernelTable quanto_kernels_avx512 =
    quanto::kernels::generic_table(quanto::Isa::avx512);
