// What Python asks of the core without tensors, as plain C functions for ctypes, and torch's threads for the core.
#include <pthread.h>
#include <torch/csrc/stable/ops.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>

#include "quanto/error.h"
#include "quanto/isa.h"
#include "quanto/matmul.h"
#include "quanto/parallel.h"
#include "quanto/qtype.h"
#include "recurring.h"

namespace {

int torch_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

// A child process has none of the threads of torch's pool, for which GNU's OpenMP would wait for ever.
std::atomic<bool> in_forked_child{false};

/// torch cuts a range into one part for each thread, whatever a slow core makes of it; here its threads help each
/// other.
void run_on_torch_threads(std::int64_t size, std::int64_t grain, quanto::ParallelBody body, void* context) {
  const std::int64_t threads = std::min<std::int64_t>(torch_threads(), (size + grain - 1) / grain);
  if (threads <= 1) return body(context, 0, size);
  if (in_forked_child.load(std::memory_order_relaxed)) {
    quanto::set_thread_count(torch_threads());
    return quanto::run_on_built_in_threads(size, grain, body, context);
  }
  quanto::SharedWork work(size, grain, threads, body, context);
  torch::stable::parallel_for(0, threads, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t thread = begin; thread < end; ++thread) work.work(thread);
  });
}

const bool registered = [] {
  quanto::set_parallel_backend({run_on_torch_threads, torch_threads});
  pthread_atfork(nullptr, nullptr, [] { in_forked_child.store(true, std::memory_order_relaxed); });
  return true;
}();

thread_local std::string last_error;

std::string quoted(std::string_view text) { return "\"" + std::string(text) + "\""; }
std::optional<quanto::DType> float_dtype_called(std::string_view name) {
  for (const quanto::DType dtype : {quanto::DType::float32, quanto::DType::bfloat16, quanto::DType::float16}) {
    if (quanto::dtype_name(dtype) == name) return dtype;
  }
  return std::nullopt;
}

const char* truth(bool value) { return value ? "true" : "false"; }

}  // namespace

#define QUANTO_EXPORT extern "C" __attribute__((visibility("default")))

/// The message of the last function of this file that failed on this thread.
QUANTO_EXPORT const char* quanto_last_error() { return last_error.c_str(); }

/// The table of qtypes, as a JSON array.
QUANTO_EXPORT const char* quanto_qtypes_json() {
  static const std::string json = [] {
    std::string out;
    for (const quanto::QTypeInfo& q : quanto::qtypes()) {
      out += std::string(out.empty() ? "[" : ", ") + "{\"name\": " + quoted(q.name) +
             ", \"bits\": " + std::to_string(q.bits) + ", \"is_floating_point\": " + truth(q.is_floating_point) +
             ", \"storage\": " + quoted(q.storage) + ", \"qmin\": " + std::to_string(q.qmin) +
             ", \"qmax\": " + std::to_string(q.qmax) + "}";
    }
    return out + "]";
  }();
  return json.c_str();
}

/// The instruction sets, as a JSON array.
QUANTO_EXPORT const char* quanto_isas_json() {
  static const std::string json = [] {
    std::string out;
    for (const quanto::IsaInfo& i : quanto::isas()) {
      out += std::string(out.empty() ? "[" : ", ") + "{\"name\": " + quoted(i.name) +
             ", \"requires\": " + quoted(i.requires_) + ", \"compiled\": " + truth(i.compiled) +
             ", \"supported\": " + truth(i.supported) + "}";
    }
    return out + "]";
  }();
  return json.c_str();
}

/// The name of the active instruction set, or null with a message in quanto_last_error.
QUANTO_EXPORT const char* quanto_active_isa() {
  try {
    return quanto::isa_name(quanto::active_isa()).data();
  } catch (const quanto::Error& error) {
    last_error = error.what();
    return nullptr;
  }
}

/// 0, or -1 with a message in quanto_last_error.
QUANTO_EXPORT int quanto_force_isa(const char* name) {
  try {
    quanto::force_isa(name);
    return 0;
  } catch (const quanto::Error& error) {
    last_error = error.what();
    return -1;
  }
}

/// The kernel that a linear layer runs: "<isa>/<qtype>/<dtype>/<regime>", or null with a message in quanto_last_error.
/// `activations`: a float dtype, or the qtype of activations given as codes. The string is valid until the next call on
/// this thread.
QUANTO_EXPORT const char* quanto_kernel_name(const char* qtype, const char* activations, std::int64_t M, std::int64_t N,
                                             std::int64_t K, std::int64_t group_size) {
  thread_local std::string name;
  try {
    quanto::WeightView w{};
    w.qtype = quanto::qtype_from_name(qtype);
    w.out_features = N;
    w.in_features = K;
    w.group_size = group_size;
    const auto dtype = float_dtype_called(activations);
    name = dtype.has_value()
               ? quanto::matmul_kernel_name({nullptr, *dtype, M, K}, w)
               : quanto::matmul_codes_kernel_name({nullptr, quanto::qtype_from_name(activations), M, K}, w);
    return name.c_str();
  } catch (const quanto::Error& error) {
    last_error = error.what();
    return nullptr;
  }
}

/// Gives the memory that was kept for the next training step back to the operating system.
QUANTO_EXPORT void quanto_release_recurring_memory() { quanto::torch_ext::release_recurring_memory(); }

/// Gives memory that was freed, but that the allocator keeps, back to the operating system, where it can be asked to.
QUANTO_EXPORT void quanto_release_freed_memory() {
  quanto::torch_ext::release_recurring_memory();
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}
