// Bytes of float source (scale search, quantization) or float result (dequantization) per second, on a matrix far
// larger than any cache, for every instruction set of the machine. `--threads=N` is the width of the pool.
#include <benchmark/benchmark.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "quanto/isa.h"
#include "quanto/pack.h"
#include "quanto/parallel.h"
#include "quanto/qtype.h"
#include "quanto/quantize.h"
#include "quanto/scale.h"

namespace quanto {
namespace {

constexpr std::int64_t kRows = 8192;
constexpr std::int64_t kCols = 9216;  // 302 MB of float32
constexpr std::int64_t kGroup = 128;

// Finite values of every dtype are made from the same random bits: a sign, a few exponents, any mantissa.
std::uint32_t random_value(DType dtype, std::uint32_t bits) {
  if (dtype == DType::float32) return (bits & 0x80ffffffu) | 0x3c000000u;
  return dtype == DType::bfloat16 ? (bits & 0x80ffu) | 0x3c00u : (bits & 0x87ffu) | 0x2800u;
}

template <class Word>
void fill(DType dtype, std::vector<char>& bytes) {
  std::minstd_rand generator(1);
  for (std::size_t at = 0; at < bytes.size(); at += sizeof(Word)) {
    const auto word = static_cast<Word>(random_value(dtype, static_cast<std::uint32_t>(generator() * 2654435761u)));
    std::memcpy(bytes.data() + at, &word, sizeof(Word));
  }
}

/// One matrix of weights with everything that the functions write, allocated once for all benchmarks of a dtype.
struct Buffers {
  explicit Buffers(DType type) : dtype(type), values(static_cast<std::size_t>(kRows * kCols) * dtype_size(type)) {
    dtype == DType::float32 ? fill<std::uint32_t>(dtype, values) : fill<std::uint16_t>(dtype, values);
    codes.resize(static_cast<std::size_t>(kRows * kCols));
    scale.resize(static_cast<std::size_t>(kRows * kCols / kGroup) * dtype_size(dtype));
    shift.resize(scale.size());
  }

  ConstMatrix channels() const { return {values.data(), dtype, kRows, kCols}; }
  ConstMatrix groups() const { return {values.data(), dtype, kRows * kCols / kGroup, kGroup}; }
  ConstShift shifts() const { return {shift.data(), ShiftKind::floating}; }

  DType dtype;
  std::vector<char> values, scale, shift;
  std::vector<std::uint8_t> codes;
};

Buffers& buffers(DType dtype) {
  static Buffers current(dtype);
  if (current.dtype != dtype) current = Buffers(dtype);
  return current;
}

using Body = void (*)(Buffers&, QType);

void absmax(Buffers& b, QType qtype) { absmax_scale(b.channels(), qtype, Axis::first, b.scale.data()); }
void minmax(Buffers& b, QType qtype) { minmax_scale(b.groups(), qtype, Axis::first, b.scale.data(), b.shift.data()); }
void quantize_bytes(Buffers& b, QType qtype) {
  quantize_symmetric(b.channels(), qtype, Axis::first, b.scale.data(), b.codes.data());
}
void dequantize_bytes(Buffers& b, QType qtype) {
  dequantize_symmetric(b.codes.data(), qtype, kRows, kCols, Axis::first, b.scale.data(), b.dtype, b.values.data());
}
void quantize_packed(Buffers& b, QType qtype) {
  quantize_affine_packed(b.groups(), qtype, Axis::first, b.scale.data(), b.shifts(), b.codes.data());
}
void dequantize_packed(Buffers& b, QType qtype) {
  const ConstMatrix m = b.groups();
  dequantize_affine_packed(b.codes.data(), qtype, m.rows, m.cols, Axis::first, b.scale.data(), b.shifts(), b.dtype,
                           b.values.data());
}

void finite(Buffers& b, QType) { benchmark::DoNotOptimize(all_finite(b.channels())); }

struct Case {
  const char* name;
  Body prepare;  ///< fills the scales, and the codes that are read
  Body body;
  std::vector<QType> qtypes;
};

const std::vector<QType> kBytes = {QType::qint8, QType::qfloat8_e4m3fn, QType::qfloat8_e4m3fnuz, QType::qfloat8_e5m2};
const std::vector<QType> kBits = {QType::qint4, QType::qint2};

const std::vector<Case>& cases() {
  static const auto nothing = [](Buffers&, QType) {};
  static const auto coded_bytes = [](Buffers& b, QType q) { absmax(b, q), quantize_bytes(b, q); };
  static const auto coded_bits = [](Buffers& b, QType q) { minmax(b, q), quantize_packed(b, q); };
  static const std::vector<Case> all = {
      {"all_finite", nothing, finite, {QType::qint8}},
      {"absmax_scale", nothing, absmax, {QType::qint8}},
      {"minmax_scale", nothing, minmax, {QType::qint4}},
      {"quantize_symmetric", absmax, quantize_bytes, kBytes},
      {"dequantize_symmetric", coded_bytes, dequantize_bytes, kBytes},
      {"quantize_affine_packed", minmax, quantize_packed, kBits},
      {"dequantize_affine_packed", coded_bits, dequantize_packed, kBits},
  };
  return all;
}

void run(benchmark::State& state, const Case& c, QType qtype, DType dtype, std::string isa) {
  force_isa(isa);
  Buffers& b = buffers(dtype);
  c.prepare(b, qtype);
  for (auto _ : state) {
    c.body(b, qtype);
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations()) * static_cast<std::int64_t>(b.values.size()));
  force_isa("");
}

void add_benchmarks() {
  for (const DType dtype : {DType::float32, DType::bfloat16, DType::float16}) {
    for (const IsaInfo& isa : isas()) {
      if (!isa.supported) continue;
      for (const Case& c : cases()) {
        for (const QType qtype : c.qtypes) {
          const std::string name = std::string(c.name) + "/" + std::string(qtype_info(qtype).name) + "/" +
                                   std::string(dtype_name(dtype)) + "/" + std::string(isa.name);
          benchmark::RegisterBenchmark(name.c_str(), run, c, qtype, dtype, std::string(isa.name))
              ->UseRealTime()
              ->Unit(benchmark::kMillisecond);
        }
      }
    }
  }
}

/// Takes `--threads=N` out of the arguments.
void read_threads(int& argc, char** argv) {
  constexpr const char kFlag[] = "--threads=";
  int kept = 1;
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], kFlag, sizeof(kFlag) - 1) == 0) {
      set_thread_count(std::atoi(argv[i] + sizeof(kFlag) - 1));
    } else {
      argv[kept++] = argv[i];
    }
  }
  argc = kept;
}

}  // namespace
}  // namespace quanto

int main(int argc, char** argv) {
  quanto::read_threads(argc, argv);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  quanto::add_benchmarks();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
