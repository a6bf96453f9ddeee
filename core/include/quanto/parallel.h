// The one hook through which all parallel work goes: the host framework's pool inside it, ours elsewhere.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
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

/// Runs a job on the built-in pool: for a backend whose threads did not survive a fork.
void run_on_built_in_threads(std::int64_t size, std::int64_t grain, ParallelBody body, void* context);

/// How a backend hands out [0, size): each thread takes small pieces of a part of its own, one after the other, so that
/// what it reads lies side by side in memory and can be fetched ahead; then it takes what is left of the others' parts,
/// so that a slow thread holds up nobody. Parts are equal, and pieces shrink towards the end of a part: all threads
/// wait for the last one.
class SharedWork {
 public:
  /// `threads`: at least 1; pieces have at least `grain` items, but for the last one.
  SharedWork(std::int64_t size, std::int64_t grain, std::int64_t threads, ParallelBody body, void* context)
      : threads_(threads), grain_(grain), body_(body), context_(context) {
    constexpr std::int64_t kPiecesPerThread = 8;  // small enough to absorb a slow core, large enough for the counter
    piece_ = std::max(grain, size / (threads * kPiecesPerThread));
    if (threads > kInPlace) many_ = std::make_unique<Part[]>(static_cast<std::size_t>(threads));
    parts_ = many_ == nullptr ? few_ : many_.get();
    const std::int64_t grains = (size + grain - 1) / grain;
    for (std::int64_t t = 0; t < threads; ++t) {
      parts_[t].next.store(grains * t / threads * grain, std::memory_order_relaxed);
      parts_[t].end = std::min(size, grains * (t + 1) / threads * grain);
    }
  }

  /// What thread `thread` of [0, threads) does; all of it is done once every thread has returned, and if some of them
  /// never come, once one has.
  void work(std::int64_t thread) {
    for (std::int64_t i = 0; i < threads_; ++i) {
      Part& part = parts_[(thread + i) % threads_];
      std::int64_t begin = part.next.load(std::memory_order_relaxed);
      while (begin < part.end) {
        const std::int64_t left = part.end - begin, half = (left + 1) / 2;
        const std::int64_t end = begin + std::min(left, std::max(grain_, std::min(piece_, half)));
        if (!part.next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
        body_(context_, begin, end);
        begin = part.next.load(std::memory_order_relaxed);
      }
    }
  }

 private:
  static constexpr std::int64_t kInPlace = 16;
  struct alignas(64) Part {  // a cache line of its own
    std::atomic<std::int64_t> next{0};
    std::int64_t end = 0;
  };

  std::int64_t threads_, grain_, piece_ = 1;
  ParallelBody body_;
  void* context_;
  Part few_[kInPlace];
  std::unique_ptr<Part[]> many_;
  Part* parts_ = nullptr;
};

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
