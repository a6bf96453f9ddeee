#include "peaks-inl.h"

namespace quanto::bench {
namespace {

// Vectors of 128 bits are what every 64-bit CPU that we compile for has.
using Floats = float __attribute__((vector_size(16)));
using Words = std::int64_t __attribute__((vector_size(16)));

constexpr int kChains = 12;

void fp32(std::int64_t steps) {
  run_chains<kChains>(steps, Floats{1, 1, 1, 1}, [](Floats sum) { return sum * 0.5f + 0.5f; });
}

}  // namespace
}  // namespace quanto::bench

extern "C" const quanto::bench::Peaks quanto_peaks_portable = {"portable",
                                                               {4 * quanto::bench::kChains, quanto::bench::fp32},
                                                               {},
                                                               {},
                                                               quanto::bench::read_vectors<quanto::bench::Words>};
