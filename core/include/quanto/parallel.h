// The one hook through which all parallel work goes: the host framework's pool inside it, ours elsewhere.
#pragma once

#include <cstdint>
#include <type_traits>

namespace quanto {

/// Runs body(context, begin, end) over a partition of [0, size) and returns when all of it is done.
using ParallelBody = void (*)(void* context, std::int64_t begin, std::int64_t end);

struct ParallelBackend {
  /// Splits [0, size) into ranges of at least `grain` items. Bodies do not throw.
  void (*run)(std::int64_t size, std::int64_t grain, ParallelBody body, void* context);
  /// Threads that run() may use, including the caller.
  int (*thread_count)();
};

/// Replaces the backend for the whole process. Without a call, a pool of std::threads is started at first use, as wide
/// as set_thread_count() or the environment variable OMP_NUM_THREADS or the machine says.
void set_parallel_backend(const ParallelBackend& backend);

/// Width of the built-in pool, the caller included; at least 1. No effect on another backend.
void set_thread_count(int threads);

/// Threads of the current backend.
int thread_count();

void parallel_run(std::int64_t size, std::int64_t grain, ParallelBody body, void* context);

/// parallel_run for a callable `body(begin, end)`.
template <class Body>
void parallel_for(std::int64_t size, std::int64_t grain, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  parallel_run(
      size, grain,
      [](void* context, std::int64_t begin, std::int64_t end) { (*static_cast<Plain*>(context))(begin, end); },
      const_cast<std::remove_const_t<Plain>*>(&body));
}

}  // namespace quanto
