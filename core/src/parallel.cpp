#include "quanto/parallel.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace quanto {
namespace {

thread_local bool inside_job = false;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

/// Waits, awake, for what another thread is about to do: true if it was done in time. On a virtual machine it takes 20
/// to 30 us to wake a thread, as long as a small layer takes: 576 x 1536 int8 weights and one row, 47 us with sleeping
/// threads, 26 us without. Who has waited for as long as that leaves the core to others.
template <class Done>
bool spin_until(Done done) {
  constexpr int kPausesPerLook = 16;
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (done()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

/// Threads that wait for jobs. One job at a time; a job started inside another runs on its own thread alone.
class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { loop(i); });
  }

  ~Pool() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  void run(SharedWork& job) {
    std::lock_guard one_job(run_mutex_);
    {
      std::lock_guard lock(mutex_);
      job_ = &job;
      busy_ = static_cast<int>(workers_.size());
      ++generation_;
    }
    wake_.notify_all();
    inside_job = true;
    job.work(0);
    inside_job = false;
    const auto done = [this] { return busy_ == 0; };
    if (spin_until(done)) return;
    std::unique_lock lock(mutex_);
    done_.wait(lock, done);
  }

 private:
  void loop(int thread) {
    inside_job = true;
    std::uint64_t seen = 0;
    const auto called = [&] { return stopping_ || generation_ != seen; };
    for (;;) {
      spin_until(called);
      std::unique_lock lock(mutex_);
      wake_.wait(lock, called);
      if (stopping_) return;
      seen = generation_;
      SharedWork* job = job_;
      lock.unlock();
      job->work(thread);
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::vector<std::thread> workers_;
  std::mutex run_mutex_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  SharedWork* job_ = nullptr;
  // Written with the mutex held, read without it by who spins.
  std::atomic<int> busy_{0};
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<bool> stopping_{false};
};

int default_thread_count() {
  if (const char* wanted = std::getenv("OMP_NUM_THREADS")) {
    const int threads = std::atoi(wanted);
    if (threads > 0) return threads;
  }
  return std::max(1u, std::thread::hardware_concurrency());
}

using SharedPool = std::shared_ptr<Pool>;

std::mutex pool_mutex;
SharedPool& pool = *new SharedPool;  // never destroyed: at exit a forked child would wait for its parent's threads
pid_t pool_owner = 0;
std::atomic<int> pool_width{0};

int built_in_thread_count() {
  int width = pool_width.load();
  if (width == 0) pool_width.compare_exchange_strong(width, default_thread_count());
  return pool_width.load();
}

/// The pool, started at first use and again when its width changes; whoever is still running a job keeps the old one
/// until it is done. After a fork the parent's threads are gone: the child leaks that pool, whose mutexes may be held
/// for ever, and starts its own.
SharedPool current_pool() {
  std::lock_guard lock(pool_mutex);
  if (pool != nullptr && pool_owner != getpid()) new SharedPool(std::move(pool));
  if (pool == nullptr || pool->threads() != built_in_thread_count()) {
    pool = std::make_shared<Pool>(built_in_thread_count());
    pool_owner = getpid();
  }
  return pool;
}

std::atomic<const ParallelBackend*> backend{nullptr};

}  // namespace

void run_on_built_in_threads(std::int64_t size, std::int64_t grain, ParallelBody body, void* context) {
  const std::int64_t threads = std::min<std::int64_t>(built_in_thread_count(), (size + grain - 1) / grain);
  if (threads <= 1 || inside_job) return body(context, 0, size);
  const SharedPool shared = current_pool();
  SharedWork job(size, grain, shared->threads(), body, context);
  shared->run(job);
}

void set_parallel_backend(const ParallelBackend& replacement) {
  backend.store(new ParallelBackend(replacement));  // kept for ever: another thread may be using the previous one
}

void set_thread_count(int threads) { pool_width.store(std::max(1, threads)); }

int thread_count() {
  const ParallelBackend* current = backend.load();
  return current != nullptr ? current->thread_count() : built_in_thread_count();
}

void parallel_run(std::int64_t size, std::int64_t grain, ParallelBody body, void* context) {
  if (size <= 0) return;
  grain = std::max<std::int64_t>(1, grain);
  if (size <= grain) return body(context, 0, size);
  const ParallelBackend* current = backend.load();
  const auto run = current != nullptr ? current->run : run_on_built_in_threads;
  return run(size, grain, body, context);
}

}  // namespace quanto
