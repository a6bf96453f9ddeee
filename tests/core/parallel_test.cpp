#include "quanto/parallel.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace quanto {
namespace {

/// How often each item of [0, size) was visited.
std::vector<int> visits(std::int64_t size, std::int64_t grain) {
  std::vector<std::atomic<int>> counts(static_cast<std::size_t>(size));
  parallel_for(size, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) counts[static_cast<std::size_t>(i)]++;
  });
  return {counts.begin(), counts.end()};
}

TEST(Parallel, VisitsEveryItemOnce) {
  for (const int threads : {1, 2, 3, 8}) {
    set_thread_count(threads);
    for (const std::int64_t size : {1, 2, 63, 64, 1000}) {
      for (const std::int64_t grain : {1, 7, 2000})
        EXPECT_EQ(visits(size, grain), std::vector<int>(static_cast<std::size_t>(size), 1));
    }
  }
}

/// The pieces that a thread of `threads` takes which works alone.
std::vector<std::pair<std::int64_t, std::int64_t>> pieces_of(std::int64_t thread, std::int64_t threads,
                                                             std::int64_t size) {
  std::vector<std::pair<std::int64_t, std::int64_t>> pieces;
  SharedWork work(
      size, 1, threads,
      [](void* all, std::int64_t begin, std::int64_t end) {
        static_cast<decltype(pieces)*>(all)->emplace_back(begin, end);
      },
      &pieces);
  work.work(thread);
  return pieces;
}

TEST(SharedWork, GivesAThreadItsOwnPartInOrderAndThenWhatOthersLeft) {
  for (const std::int64_t threads : {1, 2, 5, 40}) {  // 40: more than are kept in place
    for (const std::int64_t size : {1, 3, 64, 1000}) {
      for (std::int64_t thread = 0; thread < threads; ++thread) {
        const auto pieces = pieces_of(thread, threads, size);
        std::vector<int> counts(static_cast<std::size_t>(size));
        int jumps = 0;
        for (std::size_t i = 0; i < pieces.size(); ++i) {
          for (auto k = pieces[i].first; k < pieces[i].second; ++k) counts[static_cast<std::size_t>(k)]++;
          jumps += i > 0 && pieces[i].first != pieces[i - 1].second;
        }
        EXPECT_EQ(counts, std::vector<int>(static_cast<std::size_t>(size), 1));
        EXPECT_LE(jumps, 1) << "from the last part to the first";
        EXPECT_NEAR(static_cast<double>(pieces.front().first), static_cast<double>(size * thread / threads),
                    static_cast<double>(size) / 8);
      }
    }
  }
}

TEST(SharedWork, CutsEqualPartsIntoPiecesThatShrink) {
  for (const std::int64_t size : {86, 344, 1000}) {
    const auto pieces = pieces_of(0, 2, size);
    std::int64_t longest = size;
    for (const auto& [begin, end] : pieces) {
      if (begin == size / 2) longest = size;  // the other thread's part
      EXPECT_LE(end - begin, longest);
      EXPECT_TRUE(end <= size / 2 || begin >= size / 2);
      longest = end - begin;
      if (end == size / 2 || end == size) {
        EXPECT_EQ(longest, 1);
      }
    }
  }
}

TEST(Parallel, DoesNothingForAnEmptyRange) {
  parallel_for(0, 1, [](std::int64_t, std::int64_t) { FAIL(); });
}

TEST(Parallel, RunsNestedCallsOnTheCallingThread) {
  set_thread_count(3);
  std::atomic<int> total{0};
  parallel_for(8, 1, [&](std::int64_t begin, std::int64_t end) {
    const auto outer = std::this_thread::get_id();
    for (std::int64_t i = begin; i < end; ++i) {
      parallel_for(100, 1, [&](std::int64_t b, std::int64_t e) {
        EXPECT_EQ(std::this_thread::get_id(), outer);
        total += static_cast<int>(e - b);
      });
    }
  });
  EXPECT_EQ(total.load(), 800);
}

TEST(Parallel, ServesSeveralCallersAtOnce) {
  set_thread_count(2);
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) callers.emplace_back([] { EXPECT_EQ(visits(500, 1), std::vector<int>(500, 1)); });
  for (auto& caller : callers) caller.join();
}

TEST(Parallel, StartsItsThreadsOnce) {
  set_thread_count(3);
  static std::atomic<int> met{0};
  for (int call = 0; call < 50; ++call) {
    parallel_for(64, 1, [](std::int64_t, std::int64_t) {
      thread_local const int number = ++met;  // once in the life of a thread
      EXPECT_GT(number, 0);
    });
  }
  EXPECT_LE(met.load(), 3);
  set_thread_count(2);
}

/// No more threads take part in jobs than the width says, which the next test reads.
TEST(ParallelEnvironment, Width) {
  std::mutex mutex;
  std::set<std::thread::id> met;
  for (int call = 0; call < 50; ++call) {
    parallel_for(64, 1, [&](std::int64_t, std::int64_t) {
      std::lock_guard lock(mutex);
      met.insert(std::this_thread::get_id());
    });
  }
  EXPECT_LE(met.size(), static_cast<std::size_t>(thread_count()));
  std::printf("width %d\n", thread_count());
}

/// The width of a process that starts with this value of OMP_NUM_THREADS.
int width_with(const std::string& threads) {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe");
  const std::string command =
      "OMP_NUM_THREADS='" + threads + "' '" + self + "' --gtest_filter=ParallelEnvironment.Width";
  FILE* output = popen(command.c_str(), "r");
  if (output == nullptr) return -1;
  int width = -1;
  for (char line[256]; std::fgets(line, sizeof(line), output) != nullptr;) std::sscanf(line, "width %d", &width);
  return pclose(output) == 0 ? width : -1;
}

TEST(ParallelEnvironment, OmpNumThreadsIsObeyed) {
  for (const int threads : {1, 2, 3, 7}) EXPECT_EQ(width_with(std::to_string(threads)), threads);
  EXPECT_EQ(width_with("3,2"), 3);  // of nested regions, as OpenMP reads it
  const int all = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  for (const char* without_meaning : {"", "0", "-2", "many"}) EXPECT_EQ(width_with(without_meaning), all);
}

TEST(Parallel, WaitsForJobsAwakeAndAsleep) {
  for (const int threads : {2, 4}) {
    set_thread_count(threads);
    for (const int idle_us : {0, 20, 45, 50, 55, 500}) {  // threads fall asleep after 50
      for (int call = 0; call < 50; ++call) {
        std::this_thread::sleep_for(std::chrono::microseconds(idle_us));
        ASSERT_EQ(visits(threads, 1), std::vector<int>(static_cast<std::size_t>(threads), 1));
      }
    }
  }
  set_thread_count(2);
}

TEST(Parallel, WaitsForAThreadThatTakesLong) {
  set_thread_count(2);
  for (int call = 0; call < 20; ++call) {
    const auto caller = std::this_thread::get_id();
    std::atomic<int> finished{0};
    parallel_for(2, 1, [&](std::int64_t begin, std::int64_t end) {
      if (std::this_thread::get_id() != caller) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      finished += static_cast<int>(end - begin);
    });
    EXPECT_EQ(finished.load(), 2);
  }
}

TEST(Parallel, ServesCallersWhileItsWidthChanges) {
  std::atomic<bool> done{false};
  std::thread resizer([&] {
    for (int i = 0; !done; ++i) {
      set_thread_count(2 + i % 3);
      visits(10, 1);
    }
  });
  for (int i = 0; i < 300; ++i) EXPECT_EQ(visits(64, 1), std::vector<int>(64, 1));
  done = true;
  resizer.join();
  set_thread_count(2);
}

#if !defined(__SANITIZE_THREAD__)  // ThreadSanitizer does not support threads started after a fork
TEST(Parallel, WorksInAForkedChild) {
  set_thread_count(2);
  ASSERT_EQ(visits(100, 1), std::vector<int>(100, 1));
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);  // a hang ends as a failure
    _exit(visits(100, 1) == std::vector<int>(100, 1) ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}
#endif

}  // namespace
}  // namespace quanto
