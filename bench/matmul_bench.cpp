// Every matmul against the roof of the machine: weights x activations x layer shapes x rows x instruction sets.
//
//   matmul_bench --qtype=qint4 --dtype=bfloat16 --shape=4096x14336 --m='1|8' --isa=avx512_bf16 --json=cell.json
//
// The filters are regular expressions that match the whole of a name (shapes are K x N). Weights come from memory: each
// call takes the next of a pool larger than the caches. Rounds of the matmul, of reading memory and of the peak of its
// arithmetic take turns; a row shows medians. `roof%` compares with max(bytes / read speed, multiply-adds / peak),
// where bytes are those of codes, scales and shifts; `error` is the largest of a sample of elements, as a part of the
// bound that the tests allow: more than 1 is wrong.
//
//   matmul_bench --qtype=qint4 --shape=4096x4096 --m=1 --against=/tmp/before/libquanto_bench.so
//
// With another build's library, it and the one beside this program take turns, and `ratio` is the time of this build
// over that of the other.
#include <benchmark/benchmark.h>
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <regex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "buffer.h"
#include "float_io.h"
#include "oracle.h"
#include "quanto/isa.h"
#include "quanto/matmul.h"
#include "quanto/pack.h"
#include "quanto/parallel.h"
#include "quanto/qtype.h"
#include "roof.h"

namespace quanto::bench {
namespace {

struct Shape {
  std::int64_t K, N;
};

// Llama-3.1-8B, then SmolLM2-135M: MLP up and down, attention, keys and values, the head.
constexpr Shape kShapes[] = {{4096, 14336}, {14336, 4096}, {4096, 4096}, {4096, 1024}, {4096, 128256},
                             {576, 1536},   {1536, 576},   {576, 576},   {576, 192},   {576, 49152}};
constexpr std::int64_t kRows[] = {1, 2, 4, 8, 16, 32, 64, 128, 512, 2048};

/// Floats of a dtype, or codes with a scale for each row whose results are of that dtype.
struct Activations {
  std::string_view name;
  DType dtype;
  std::optional<QType> codes = std::nullopt;
};
constexpr Activations kActivations[] = {{"float32", DType::float32},
                                        {"bfloat16", DType::bfloat16},
                                        {"float16", DType::float16},
                                        {"qint8", DType::bfloat16, QType::qint8},
                                        {"qfloat8_e4m3fn", DType::bfloat16, QType::qfloat8_e4m3fn},
                                        {"qfloat8_e5m2", DType::bfloat16, QType::qfloat8_e5m2}};

struct Options {
  std::string qtype = ".*", dtype = ".*", shape = ".*", m = ".*", isa = ".*";
  std::string json;
  std::string against;          ///< path of another build's library
  double seconds = 1;           ///< to spend on a cell
  double limit = 10;            ///< a cell whose call would take more seconds is skipped
  std::int64_t pool = 0;        ///< megabytes of weights, 0: 8 times the last-level cache
  std::int64_t group_size = 0;  ///< 0: the largest multiple of 32 up to 128 that divides K
};
Options options;

struct Cell {
  QType qtype;
  Activations activations;
  Shape shape;
  std::int64_t M;
  std::string isa;
};

std::string shape_name(Shape s) { return std::to_string(s.K) + "x" + std::to_string(s.N); }

std::string series_name(const Cell& c) {
  return std::string(qtype_info(c.qtype).name) + "/" + std::string(c.activations.name) + "/" + shape_name(c.shape) +
         "/" + c.isa;
}

std::string cell_name(const Cell& c) { return series_name(c) + "/M:" + std::to_string(c.M); }

std::int64_t group_size_of(const Cell& c) {
  if (!is_affine(c.qtype)) return 0;
  if (options.group_size > 0) return options.group_size;
  for (std::int64_t size = 128; size > 0; size -= 32) {
    if (c.shape.K % size == 0) return size;
  }
  return 0;
}

/// The instructions whose products are exact in a cell: the fastest of them is the roof.
std::vector<Arithmetic> arithmetic_of(const Cell& c) {
  std::vector<Arithmetic> kinds = {Arithmetic::fp32};
  const auto add = [&](Arithmetic kind) {
    if (has_peak(kind)) kinds.push_back(kind);
  };
  if (c.activations.dtype == DType::bfloat16) add(Arithmetic::bf16);
  if (c.activations.codes == QType::qint8 && !qtype_info(c.qtype).is_floating_point) add(Arithmetic::int8);
  if (c.activations.codes == QType::qint8 && is_affine(c.qtype)) add(Arithmetic::packed);
  return kinds;
}

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

Pool& pool() {
  static Pool shared(options.pool);
  return shared;
}

/// Random numbers of a dtype, uniform in [low, high), repeated to fill `count` elements. They begin with a cache line,
/// as tensors do.
Buffer random_floats(DType dtype, std::int64_t count, float low, float high) {
  constexpr std::int64_t kPeriod = 4099;
  const std::size_t size = dtype_size(dtype), bytes = static_cast<std::size_t>(count) * size;
  Buffer numbers = allocate(bytes);
  auto* first = static_cast<char*>(numbers.get());
  std::minstd_rand generator(7);
  std::uniform_real_distribution<float> uniform(low, high);
  for (std::int64_t i = 0; i < std::min(count, kPeriod); ++i) store_float(first, dtype, i, uniform(generator));
  const std::size_t period = static_cast<std::size_t>(kPeriod) * size;
  for (std::size_t at = period; at < bytes; at += period) {
    std::memcpy(first + at, first, std::min(period, bytes - at));
  }
  return numbers;
}

/// The weights of a series of cells, as many as the pool holds: numbers within +-0.05, as a trained layer has them.
class Weights {
 public:
  explicit Weights(const Cell& c) : cell_(c), dtype_(c.activations.dtype), group_size_(group_size_of(c)) {
    const QTypeInfo& info = qtype_info(c.qtype);
    scales_ = c.shape.N * (group_size_ == 0 ? 1 : c.shape.K / group_size_);
    const std::int64_t width = group_size_ == 0 ? c.shape.K : group_size_;
    code_bytes_ = (info.bits == 8 ? scales_ : packed_rows(scales_, info.bits)) * width;
    count_ = std::max<std::int64_t>(1, pool().size() / stride());
    const float step = 0.05f / static_cast<float>(is_affine(c.qtype) ? 1 << (info.bits - 1) : info.qmax);
    scale_ = random_floats(dtype_, scales_ * count_, step / 2, step);
    if (is_affine(c.qtype)) shift_ = random_floats(dtype_, scales_ * count_, 0.025f, 0.05f);
  }

  bool serves(const Cell& c) const {
    return c.qtype == cell_.qtype && c.activations.dtype == dtype_ && c.shape.K == cell_.shape.K &&
           c.shape.N == cell_.shape.N;
  }

  /// Codes, scales and shifts of one weight.
  std::int64_t bytes() const {
    const auto scale_bytes = scales_ * static_cast<std::int64_t>(dtype_size(dtype_));
    return code_bytes_ + scale_bytes * (is_affine(cell_.qtype) ? 2 : 1);
  }

  WeightView next() {
    at_ = (at_ + 1) % count_;
    const std::size_t scale_at = static_cast<std::size_t>(at_ * scales_) * dtype_size(dtype_);
    WeightView w{};
    w.qtype = cell_.qtype;
    w.data = pool().data() + at_ * stride();
    w.out_features = cell_.shape.N;
    w.in_features = cell_.shape.K;
    w.group_size = group_size_;
    w.scale = static_cast<const char*>(scale_.get()) + scale_at;
    w.scale_dtype = dtype_;
    if (is_affine(cell_.qtype)) {
      w.shift = static_cast<const char*>(shift_.get()) + scale_at;
      w.shift_kind = ShiftKind::floating;
    }
    return w;
  }

 private:
  std::int64_t stride() const { return (code_bytes_ + 63) / 64 * 64; }

  Cell cell_;
  DType dtype_;
  std::int64_t group_size_, scales_, code_bytes_, count_, at_ = -1;
  Buffer scale_, shift_;
};

Weights& weights_of(const Cell& c) {
  static std::unique_ptr<Weights> current;
  if (current == nullptr || !current->serves(c)) {
    current.reset();
    current = std::make_unique<Weights>(c);
  }
  return *current;
}

/// The matmul of a build, loaded with its core.
class Build {
 public:
  explicit Build(const std::filesystem::path& file) {
    const std::string path = std::filesystem::absolute(file).string();  // a bare name would be looked up elsewhere
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) throw std::runtime_error(std::string("--against: ") + dlerror());
    const auto find = [&](const char* name) {
      void* function = dlsym(library, name);
      if (function == nullptr) {
        throw std::runtime_error("--against: " + path + " is not the libquanto_bench.so of a build");
      }
      return function;
    };
    matmul_ = reinterpret_cast<Matmul>(find("quanto_bench_matmul"));
    matmul_codes_ = reinterpret_cast<MatmulCodes>(find("quanto_bench_matmul_codes"));
    force_isa_ = reinterpret_cast<ForceIsa>(find("quanto_bench_force_isa"));
    reinterpret_cast<void (*)(int)>(find("quanto_bench_set_thread_count"))(thread_count());
  }

  void multiply(const ActivationView& x, const WeightView& w, void* y) const { matmul_(&x, &w, y); }
  void multiply(const CodesView& x, const WeightView& w, DType dtype, void* y) const {
    matmul_codes_(&x, &w, dtype, y);
  }
  void force_isa(const std::string& name) const { force_isa_(name.c_str()); }

 private:
  using ForceIsa = void (*)(const char*);
  using Matmul = void (*)(const ActivationView*, const WeightView*, void*);
  using MatmulCodes = void (*)(const CodesView*, const WeightView*, DType, void*);
  Matmul matmul_;
  MatmulCodes matmul_codes_;
  ForceIsa force_isa_;
};
/// This build and the other one, both as libraries: one that is linked differs from itself by 1 or 2 percent.
struct Builds {
  Build own, other;
};
std::unique_ptr<const Builds> builds;

/// The activations of a cell, and what is done with them.
class Input {
 public:
  explicit Input(const Cell& c)
      : cell_(c),
        floats_(c.activations.codes ? random_floats(c.activations.dtype, c.M, 0.001f, 0.02f)
                                    : random_floats(c.activations.dtype, c.M * c.shape.K, -2, 2)) {}

  void multiply(const WeightView& w, void* y) const {
    cell_.activations.codes ? matmul_codes(codes(), w, nullptr, cell_.activations.dtype, y)
                            : matmul(floats(), w, nullptr, y);
  }
  void multiply_in(const Build& build, const WeightView& w, void* y) const {
    cell_.activations.codes ? build.multiply(codes(), w, cell_.activations.dtype, y) : build.multiply(floats(), w, y);
  }

  std::string kernel_name(const WeightView& w) const {
    return cell_.activations.codes ? matmul_codes_kernel_name(codes(), w) : matmul_kernel_name(floats(), w);
  }

  double value(std::int64_t m, std::int64_t k) const {
    if (cell_.activations.codes) return testing::activation_at(codes(), m, k);
    return static_cast<double>(load_float(floats_.get(), cell_.activations.dtype, m * cell_.shape.K + k));
  }

 private:
  ActivationView floats() const { return {floats_.get(), cell_.activations.dtype, cell_.M, cell_.shape.K}; }

  CodesView codes() const {
    return {pool().data(), *cell_.activations.codes, cell_.M, cell_.shape.K,
            floats_.get(), cell_.activations.dtype,  true};
  }

  Cell cell_;
  Buffer floats_;  ///< the activations, or the scales of their rows
};

/// The largest error of up to 16 columns and 8 rows of y, relative to its bound.
double sampled_error(const Cell& c, const Input& x, const WeightView& w, const void* y) {
  const auto [K, N] = c.shape;
  const DType dtype = c.activations.dtype;
  std::vector<double> values(static_cast<std::size_t>(K));
  double worst = 0;
  for (std::int64_t n = 0; n < N; n += std::max<std::int64_t>(1, (N - 1) / 15)) {
    const auto row = testing::weight_row(w, n);
    for (std::int64_t m = 0; m < c.M; m += std::max<std::int64_t>(1, (c.M - 1) / 7)) {
      for (std::int64_t k = 0; k < K; ++k) values[static_cast<std::size_t>(k)] = x.value(m, k);
      const auto expected = testing::expected_of(values.data(), row, 0, dtype, static_cast<double>(K) + 3);
      const double got = static_cast<double>(load_float(y, dtype, m * N + n));
      const double error = std::fabs(got - expected.value) / expected.bound;
      if (!(error <= worst)) worst = error;
    }
  }
  return worst;
}

struct Measured {
  Summary seconds, read;
  double peak;  ///< multiply-adds per second
  Arithmetic fastest;
  double error;
  std::string kernel;
  double ratio;  ///< of this build's time to the other one's, if there is one
};

/// Seconds that a row takes in the last cell of each series: what the next one will take.
std::map<std::string, double> seconds_per_row;

std::pair<Arithmetic, double> fastest_of(const std::map<Arithmetic, std::vector<double>>& peaks) {
  std::pair<Arithmetic, double> best{Arithmetic::fp32, 0};
  for (const auto& [kind, values] : peaks) {
    const double median = summarize(values).median;
    if (median > best.second) best = {kind, median};
  }
  return best;
}

/// The median ratio of this build's time to the other's. Turns are short and neighbours are compared, since what else
/// happens on a machine changes within milliseconds; the first calls of a turn meet caches of the other build.
double measure_ratio(const Cell& c, const Input& x, void* y) {
  constexpr double kTurnSeconds = 1e-3;
  constexpr int kFirst = 2;
  Weights& weights = weights_of(c);
  const auto median_call = [&](bool other, int calls) {
    std::vector<double> seconds;
    for (int i = 0; i < kFirst + calls; ++i) {
      const WeightView w = weights.next();
      const auto start = std::chrono::steady_clock::now();
      x.multiply_in(other ? builds->other : builds->own, w, y);
      if (i >= kFirst) seconds.push_back(seconds_since(start));
    }
    return summarize(seconds).median;
  };
  const int calls = static_cast<int>(std::clamp(kTurnSeconds / median_call(false, 3), 1.0, 1000.0));
  std::vector<double> ratios;
  std::minstd_rand generator(7);
  const auto start = std::chrono::steady_clock::now();
  while (ratios.size() < 3 || seconds_since(start) < options.seconds) {
    const bool other_first = generator() % 2 == 0;
    const double first = median_call(other_first, calls), second = median_call(!other_first, calls);
    ratios.push_back(other_first ? second / first : first / second);
  }
  return summarize(ratios).median;
}

Measured measure(const Cell& c) {
  // Matmuls that are shorter follow each other, as in a model. After memory has been read at full speed a single one
  // takes up to a tenth longer on a virtual machine, probably since the host's page tables have left the caches by
  // then.
  constexpr double kRoundSeconds = 5e-3;
  constexpr std::size_t kFewestRounds = 3, kMostRounds = 200;
  Weights& weights = weights_of(c);
  const Input x(c);
  const Buffer y = allocate(static_cast<std::size_t>(c.M * c.shape.N) * dtype_size(c.activations.dtype));
  const std::vector<Arithmetic> kinds = arithmetic_of(c);
  WeightView w{};
  const auto seconds_of = [&](int calls) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) x.multiply(w = weights.next(), y.get());
    return seconds_since(start) / calls;
  };
  const auto start = std::chrono::steady_clock::now();
  const double first = seconds_of(1);
  const int calls = static_cast<int>(std::clamp(kRoundSeconds / std::min(first, seconds_of(1)), 1.0, 1000.0));
  std::vector<double> seconds, reads;
  std::map<Arithmetic, std::vector<double>> peaks;
  while (seconds.size() < kFewestRounds || (seconds_since(start) < options.seconds && seconds.size() < kMostRounds)) {
    reads.push_back(pool().measure_read(weights.bytes()));
    seconds.push_back(seconds_of(calls));
    for (const Arithmetic kind : kinds) peaks[kind].push_back(measure_peak(kind));
  }
  seconds_per_row[series_name(c)] = summarize(seconds).median / static_cast<double>(c.M);
  const auto [fastest, peak] = fastest_of(peaks);
  const double error = sampled_error(c, x, w, y.get());  // of the last call: others follow
  const double ratio = builds == nullptr ? 0 : measure_ratio(c, x, y.get());
  return {summarize(seconds), summarize(reads), peak, fastest, error, x.kernel_name(w), ratio};
}

void run(benchmark::State& state, const Cell& c) {
  force_isa(c.isa);
  if (builds != nullptr) {
    builds->own.force_isa(c.isa);
    builds->other.force_isa(c.isa);
  }
  const auto known = seconds_per_row.find(series_name(c));
  if (known != seconds_per_row.end() && known->second * static_cast<double>(c.M) > options.limit) {
    state.SkipWithError("a call would take longer than --limit");
    return;
  }
  Measured m{};
  for (auto _ : state) {
    m = measure(c);
    state.SetIterationTime(m.seconds.median);
  }
  const auto bytes = static_cast<double>(weights_of(c).bytes());
  const auto macs = static_cast<double>(c.M * c.shape.N * c.shape.K);
  const double memory_roof = bytes / m.read.median, compute_roof = macs / m.peak;
  state.counters["spread%"] = 100 * m.seconds.spread / m.seconds.median;
  state.counters["GB/s"] = bytes / m.seconds.median / 1e9;
  state.counters["GMAC/s"] = macs / m.seconds.median / 1e9;
  state.counters["roof%"] = 100 * std::max(memory_roof, compute_roof) / m.seconds.median;
  state.counters["error"] = m.error;
  if (builds != nullptr) state.counters["ratio"] = m.ratio;
  state.counters["read GB/s"] = m.read.median / 1e9;
  state.counters["peak GMAC/s"] = m.peak / 1e9;
  const std::string bound = memory_roof > compute_roof ? "memory" : arithmetic_name(m.fastest);
  state.SetLabel(bound + " " + m.kernel);
  force_isa("");
}

/// A line per cell.
class Table : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context& context) override {
    PrintBasicContext(&GetErrorStream(), context);
    std::printf("%-58s %10s %8s %8s %8s %7s %7s  %8s %8s%s  %s\n", "weights/activations/KxN/isa/rows", "ms", "spread%",
                "GB/s", "GMAC/s", "roof%", "error", "read", "peak", builds == nullptr ? "" : "   ratio",
                "bound, kernel");
    return true;
  }

  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      std::string name = run.run_name.function_name;
      if (run.error_occurred) {
        std::printf("%-58s skipped: %s\n", name.c_str(), run.error_message.c_str());
        continue;
      }
      const auto value = [&](const char* key) { return run.counters.at(key).value; };
      std::printf("%-58s %10.4f %8.1f %8.1f %8.1f %7.1f %7.1g  %8.1f %8.0f", name.c_str(), run.GetAdjustedRealTime(),
                  value("spread%"), value("GB/s"), value("GMAC/s"), value("roof%"), value("error"), value("read GB/s"),
                  value("peak GMAC/s"));
      if (builds != nullptr) std::printf(" %7.3f", value("ratio"));
      std::printf("  %s\n", run.report_label.c_str());
    }
    std::fflush(stdout);
  }
};

bool wanted(const Cell& c) {
  const auto matches = [](std::string_view text, const std::string& pattern) {
    return std::regex_match(std::string(text), std::regex(pattern));
  };
  return matches(qtype_info(c.qtype).name, options.qtype) && matches(c.activations.name, options.dtype) &&
         matches(shape_name(c.shape), options.shape) && matches(std::to_string(c.M), options.m) &&
         matches(c.isa, options.isa);
}

void add(const Cell& c) {
  if (!wanted(c)) return;
  benchmark::RegisterBenchmark(cell_name(c).c_str(), [c](benchmark::State& state) { run(state, c); })
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMillisecond);
}

void add_cells() {
  for (const QTypeInfo& qtype : qtypes()) {
    for (const Activations& activations : kActivations) {
      const bool pairs = !activations.codes || !qtype_info(*activations.codes).is_floating_point || qtype.bits == 8;
      if (!pairs) continue;  // float8 activations meet 8-bit weights
      for (const Shape shape : kShapes) {
        for (const IsaInfo& isa : isas()) {
          if (!isa.supported) continue;
          for (const std::int64_t M : kRows) add({qtype.qtype, activations, shape, M, std::string(isa.name)});
        }
      }
    }
  }
}

/// Takes our own `--name=value` out of the arguments.
void read_options(std::vector<std::string>& arguments) {
  const std::map<std::string, std::string*> texts = {
      {"--qtype=", &options.qtype}, {"--dtype=", &options.dtype}, {"--shape=", &options.shape},    {"--m=", &options.m},
      {"--isa=", &options.isa},     {"--json=", &options.json},   {"--against=", &options.against}};
  std::vector<std::string> others;
  for (const std::string& argument : arguments) {
    const std::string name = argument.substr(0, argument.find('=') + 1);
    const std::string value = argument.substr(name.size());
    if (texts.count(name) > 0) {
      *texts.at(name) = value;
    } else if (name == "--seconds=") {
      options.seconds = std::atof(value.c_str());
    } else if (name == "--limit=") {
      options.limit = std::atof(value.c_str());
    } else if (name == "--pool=") {
      options.pool = std::atoll(value.c_str());
    } else if (name == "--group-size=") {
      options.group_size = std::atoll(value.c_str());
    } else if (name == "--threads=") {
      set_thread_count(std::atoi(value.c_str()));
    } else {
      others.push_back(argument);
    }
  }
  if (!options.json.empty()) {
    others.push_back("--benchmark_out=" + options.json);
    others.push_back("--benchmark_out_format=json");
  }
  arguments = others;
}

int main_with(std::vector<std::string> arguments) {
  read_options(arguments);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  int argc = static_cast<int>(argv.size());
  benchmark::Initialize(&argc, argv.data());
  if (benchmark::ReportUnrecognizedArguments(argc, argv.data())) return 1;
  if (!options.against.empty()) {
    const auto own = std::filesystem::read_symlink("/proc/self/exe").replace_filename("libquanto_bench.so");
    builds = std::make_unique<const Builds>(Builds{Build(own), Build(options.against)});
  }
  add_cells();
  benchmark::AddCustomContext("weights rotate through", pool().describe());
  benchmark::AddCustomContext("threads", std::to_string(thread_count()));
  Table table;
  return benchmark::RunSpecifiedBenchmarks(&table) == 0 ? 1 : 0;
}

}  // namespace
}  // namespace quanto::bench

int main(int argc, char** argv) {
  try {
    return quanto::bench::main_with({argv, argv + argc});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "matmul_bench: %s\n", error.what());
    return 1;
  }
}
