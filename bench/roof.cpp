#include "roof.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <random>
#include <stdexcept>
#include <string_view>

#include "peaks.h"
#include "quanto/isa.h"
#include "quanto/parallel.h"

namespace quanto::bench {
namespace {

constexpr std::int64_t kMegabyte = 1 << 20;
constexpr double kPeakSeconds = 0.5e-3;

// Most capable first, as in the core's registry.
constexpr std::array kTables = {
#ifdef QUANTO_BENCH_AVX512_AMX
    &quanto_peaks_avx512_amx,
#endif
#ifdef QUANTO_BENCH_AVX512_BF16
    &quanto_peaks_avx512_bf16,
#endif
#ifdef QUANTO_BENCH_AVX512
    &quanto_peaks_avx512,
#endif
#ifdef QUANTO_BENCH_AVX2
    &quanto_peaks_avx2,
#endif
    &quanto_peaks_portable,
};

const Peak& entry(const Peaks& table, Arithmetic kind) {
  switch (kind) {
    case Arithmetic::fp32:
      return table.fp32;
    case Arithmetic::bf16:
      return table.bf16;
    case Arithmetic::int8:
      return table.int8;
    case Arithmetic::packed:
      return table.packed;
  }
  throw std::logic_error("no such kind of arithmetic");
}

bool is_active(const Peaks& table) {
  for (const IsaInfo& isa : isas()) {
    if (isa.name == table.isa) return isa.isa <= active_isa();
  }
  return false;
}

const Peak* find_peak(Arithmetic kind) {
  for (const Peaks* table : kTables) {
    if (is_active(*table) && entry(*table, kind).run != nullptr) return &entry(*table, kind);
  }
  return nullptr;
}

auto find_read() {
  for (const Peaks* table : kTables) {
    if (is_active(*table) && table->read != nullptr) return table->read;
  }
  return quanto_peaks_portable.read;
}

/// Seconds of `steps` steps on each thread, in slices that a thread which is held up leaves to the others.
double seconds_of(const Peak& peak, std::int64_t steps) {
  constexpr std::int64_t kSlices = 16;
  const auto start = std::chrono::steady_clock::now();
  parallel_for(kSlices * thread_count(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t slice = begin; slice < end; ++slice) peak.run(steps / kSlices);
  });
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::int64_t cache_bytes() {
  long largest = 0;
  for (const int level : {_SC_LEVEL2_CACHE_SIZE, _SC_LEVEL3_CACHE_SIZE, _SC_LEVEL4_CACHE_SIZE}) {
    largest = std::max(largest, sysconf(level));
  }
  return largest > 0 ? largest : 32 * kMegabyte;
}

std::int64_t available_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  for (std::int64_t kilobytes; file >> key;) {
    if (key == "MemAvailable:" && file >> kilobytes) return kilobytes * 1024;
  }
  return 4096 * kMegabyte;
}

/// NaN and infinity of every float8 format, and the NaN of e4m3fnuz, become finite codes.
std::uint8_t finite_code(std::uint8_t byte) {
  if ((byte & 0x7c) == 0x7c) byte ^= 0x40;
  return byte == 0x80 ? 0x01 : byte;
}

}  // namespace

const char* arithmetic_name(Arithmetic kind) {
  constexpr const char* kNames[] = {"fp32", "bf16", "int8", "packed"};
  return kNames[static_cast<int>(kind)];
}

bool has_peak(Arithmetic kind) { return find_peak(kind) != nullptr; }

double measure_peak(Arithmetic kind) {
  const Peak& peak = *find_peak(kind);
  std::int64_t steps = 1 << 10;
  double seconds = seconds_of(peak, steps);
  while (seconds < kPeakSeconds) {
    steps *= seconds < kPeakSeconds / 16 ? 16 : 2;
    seconds = seconds_of(peak, steps);
  }
  return static_cast<double>(steps * peak.macs * thread_count()) / seconds;
}

Pool::Pool(std::int64_t megabytes) : cache_(cache_bytes()), available_(available_bytes()), next_(0) {
  size_ = megabytes > 0 ? megabytes * kMegabyte : std::min(8 * cache_ + kMegabyte, available_ / 4);
  size_ = std::max<std::int64_t>(size_ / kMegabyte, 64) * kMegabyte;
  void* mapped =
      mmap(nullptr, static_cast<std::size_t>(size_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::runtime_error("cannot map " + std::to_string(size_ / kMegabyte) + " MB");
  data_ = static_cast<std::uint8_t*>(mapped);
#if defined(MADV_HUGEPAGE)
  madvise(mapped, static_cast<std::size_t>(size_), MADV_HUGEPAGE);  // as codes of 4 MB and more are in torch
#endif
  std::minstd_rand generator(1);
  constexpr std::int64_t kPattern = 61 * kMegabyte / 64;  // not a multiple of any weight's size
  for (std::int64_t i = 0; i < kPattern; ++i) data_[i] = finite_code(static_cast<std::uint8_t>(generator() >> 8));
  parallel_for(size_ / kMegabyte, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t at = std::max(kPattern, begin * kMegabyte); at < end * kMegabyte; ++at) {
      const std::int64_t length = std::min(kPattern - at % kPattern, end * kMegabyte - at);
      std::memcpy(data_ + at, data_ + at % kPattern, static_cast<std::size_t>(length));
      at += length - 1;
    }
  });
}

Pool::~Pool() { munmap(data_, static_cast<std::size_t>(size_)); }

std::string Pool::describe() const {
  char text[160];
  std::snprintf(text, sizeof(text), "%lld MB, %.1f times the last-level cache of %lld MB%s",
                static_cast<long long>(size_ / kMegabyte), static_cast<double>(size_) / static_cast<double>(cache_),
                static_cast<long long>(cache_ / kMegabyte), size_ > 8 * cache_ ? "" : " (limited by memory or --pool)");
  return text;
}

double Pool::measure_read(std::int64_t bytes) {
  constexpr std::int64_t kSlice = 64 * 1024;
  const std::int64_t threads = thread_count(), most = size_ / kSlice / threads;
  const std::int64_t part = std::clamp<std::int64_t>(bytes / kSlice / threads, 1, most);  // slices, of each thread
  const std::int64_t times = std::max<std::int64_t>(1, std::min(32 * kMegabyte, size_) / kSlice / (part * threads));
  const std::int64_t total = times * part * threads * kSlice;
  if (next_ + total > size_) next_ = 0;
  const auto read = find_read();
  const auto start = std::chrono::steady_clock::now();
  parallel_for(total / kSlice, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t thread = i / (times * part), mine = i % (times * part);
      const std::int64_t slice = (mine / part * threads + thread) * part + mine % part;
      read(data_ + next_ + slice * kSlice, kSlice);
    }
  });
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  next_ += total;
  return static_cast<double>(total) / elapsed.count();
}

Summary summarize(std::vector<double> values) {
  if (values.empty()) return {std::numeric_limits<double>::quiet_NaN(), 0};
  std::sort(values.begin(), values.end());
  const std::size_t n = values.size();
  return {(values[n / 2] + values[(n - 1) / 2]) / 2, values[3 * n / 4] - values[n / 4]};
}

}  // namespace quanto::bench
