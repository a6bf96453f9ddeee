// The roof of a matmul on this machine at this moment: the peaks of the active instruction set, with the threads of the
// core's pool, and memory that is larger than the caches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace quanto::bench {

/// Kinds of multiply-adds that have a peak of their own.
enum class Arithmetic : std::uint8_t { fp32, bf16, int8, packed };

const char* arithmetic_name(Arithmetic kind);

/// Whether the active instruction set has instructions of `kind`.
bool has_peak(Arithmetic kind);

/// Multiply-adds of `kind` per second of the active instruction set, all threads together. Takes about a millisecond.
double measure_peak(Arithmetic kind);

/// Random bytes that are finite codes of every qtype, many times the size of the last-level cache, read round and round
/// so that nothing stays in a cache.
class Pool {
 public:
  /// `megabytes`: the size, or 0 for 8 times the last-level cache, at most a quarter of the available memory.
  explicit Pool(std::int64_t megabytes);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  const std::uint8_t* data() const { return data_; }
  std::int64_t size() const { return size_; }

  /// "3840 MB, 8.0 times the last-level cache of 480 MB", and why not more.
  std::string describe() const;

  /// Bytes per second of reading the next stretches of `bytes`, together at least 32 MB, with all threads, each its own
  /// part of every stretch: as far apart as in a weight of that size, since threads that read neighbouring places may
  /// share one memory channel.
  double measure_read(std::int64_t bytes);

 private:
  std::uint8_t* data_;
  std::int64_t size_, cache_, available_;
  std::int64_t next_;  ///< where measure_read() goes on
};

/// Median and interquartile range of what was measured.
struct Summary {
  double median, spread;
};
Summary summarize(std::vector<double> values);

}  // namespace quanto::bench
