// The matmul of this build as a shared library, for `matmul_bench --against` of another one. Views are passed as they
// are: both builds have to agree on them.
#include "quanto/isa.h"
#include "quanto/matmul.h"
#include "quanto/parallel.h"

extern "C" __attribute__((visibility("default"))) void quanto_bench_matmul(const quanto::ActivationView* x,
                                                                           const quanto::WeightView* w, void* y) {
  quanto::matmul(*x, *w, nullptr, y);
}

extern "C" __attribute__((visibility("default"))) void quanto_bench_matmul_codes(const quanto::CodesView* x,
                                                                                 const quanto::WeightView* w,
                                                                                 quanto::DType y_dtype, void* y) {
  quanto::matmul_codes(*x, *w, nullptr, y_dtype, y);
}

extern "C" __attribute__((visibility("default"))) void quanto_bench_force_isa(const char* name) {
  quanto::force_isa(name);
}

extern "C" __attribute__((visibility("default"))) void quanto_bench_set_thread_count(int count) {
  quanto::set_thread_count(count);
}
