#include "quanto/matmul.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "float_io.h"
#include "kernels/fetch-inl.h"
#include "kernels/registry.h"
#include "planes.h"
#include "quantized_rows.h"
#include "quanto/cores.h"
#include "quanto/isa.h"
#include "quanto/pack.h"
#include "quanto/parallel.h"
#include "quanto/qtype.h"

namespace quanto {
namespace {

using kernels::MatmulArgs;
using kernels::MatmulKernel;

// Up to how many bytes of codes, and multiply-adds, waking another thread costs more than it saves. With AVX-512, one
// of torch's threads takes 7.0 us for 576 x 192 int8 weights and four rows, two take 10.0; for 384 x 384 and one
// row 7.3 and 9.5. Codes that come from memory, 576 x 576 weights, within the operator: int4 8.5 and 11.2 for one
// row, 9.6 and 11.0 for two, 20.0 and 18.0 for eight; int8 11.3 and 10.7, 11.1 and 11.6, 18.3 and 16.6. Called from
// Python, four rows of int4 take 17.1 and 20.3.
// One core of Zen 4 takes longer. The operator called from Python: 576 x 576 int4 weights 19.2 us for one row and 29.5
// for four, where two take 18.4 and 21.5; 384 x 384 int8 weights and one row 16.7 and 15.3, int4 and two rows 13.8 and
// 12.6, eight 24.1 and 18.3; 576 x 192 int8 and eight rows 20.6 and 16.1.
constexpr std::int64_t serial_bytes(Cores cores) { return cores == Cores::zen4 ? 1 << 17 : 1 << 18; }
constexpr std::int64_t serial_operations(Isa isa, Cores cores) {
  if (isa == Isa::portable) return 1 << 17;
  if (isa == Isa::avx2 || cores == Cores::zen4) return 1 << 18;
  return isa == Isa::avx512 ? 1 << 19 : 3 << 19;
}

// Rows that are prepared at once where there are more: those of a panel's block of rows, or a multiple of them.
constexpr std::int64_t kBlockRows = 64;

/// The prepared activations of one call. Up to a few megabytes are kept from call to call: meeting all their pages anew
/// takes a third as long as 512 rows of a 1536 x 576 layer. More is freed with the call.
class Workspace {
 public:
  static constexpr std::size_t kKept = 4 << 20;

  /// `shared`: for more, where several calls follow each other, or null.
  explicit Workspace(std::size_t bytes, GrowingBuffer* shared) {
    thread_local GrowingBuffer kept;
    if (bytes > kKept && shared == nullptr) own_ = allocate(bytes);
    data_ = own_ != nullptr ? own_.get() : (bytes > kKept ? *shared : kept).at_least(bytes);
  }
  void* data() const { return data_; }

 private:
  Buffer own_;
  void* data_;
};

void check_weight(const WeightView& w) {
  check_shape("matmul", w.out_features, w.in_features);
  const bool affine = is_affine(w.qtype);
  if (w.group_size < 0 || (w.group_size > 0 && w.in_features % w.group_size != 0)) {
    fail("matmul", "group_size", std::to_string(w.group_size),
         "0 or a divisor of in_features = " + std::to_string(w.in_features));
  }
  if (!affine && w.group_size != 0) fail("matmul", "group_size", std::to_string(w.group_size), "0 for an 8-bit qtype");
  if (affine && w.per_tensor_scale) fail("matmul", "scale", "a single element", "one for each group");
  const bool has_shift = w.shift_kind != ShiftKind::none && w.shift != nullptr;
  if (affine && !has_shift && w.out_features > 0) fail("matmul", "shift", "none", "one for each group");
  if (!affine && w.shift_kind != ShiftKind::none) fail("matmul", "shift", "a shift", "none for an 8-bit qtype");
  if (w.scale == nullptr && w.out_features > 0) fail("matmul", "scale", "none", "one for each channel or group");
}

void check_rows(std::int64_t rows, std::int64_t row_stride, const WeightView& w) {
  check_shape("matmul", rows, std::max(w.in_features, row_stride));
  check_shape("matmul", rows, w.out_features);
  if (rows > 1 && row_stride < 0) fail("matmul", "row_stride", std::to_string(row_stride), "0 or more");
}

MatmulArgs weight_args(const WeightView& w) {
  MatmulArgs args{};
  args.qtype = w.qtype;
  args.w = static_cast<const std::uint8_t*>(w.data);
  args.scale = w.scale;
  args.shift = w.shift;
  args.scale_dtype = w.scale_dtype;
  args.shift_kind = w.shift_kind;
  args.N = w.out_features;
  args.K = w.in_features;
  args.group_size = w.group_size == 0 ? w.in_features : w.group_size;
  args.groups = args.group_size == 0 ? 0 : args.K / args.group_size;
  args.packed_rows = is_affine(w.qtype) ? packed_rows(args.N * args.groups, qtype_info(w.qtype).bits) : args.N;
  args.scale_step = w.per_tensor_scale ? 0 : 1;
  args.cores = active_cores();
  return args;
}

MatmulArgs complete(const ActivationView& x, const WeightView& w, const void* bias, void* y) {
  MatmulArgs args = weight_args(w);
  args.x = x.data;
  args.x_stride = x.row_stride;
  args.x_dtype = args.y_dtype = x.dtype;
  args.M = x.rows;
  args.bias = bias;
  args.y = y;
  return args;
}

/// Whether codes are multiplied as integers; else they are decoded first.
bool multiplies_integers(const CodesView& x, const MatmulArgs& args) {
  return x.qtype == QType::qint8 && !qtype_info(args.qtype).is_floating_point &&
         args.group_size <= kernels::kMaxInt8Group;
}

MatmulArgs complete(const CodesView& x, const WeightView& w) {
  MatmulArgs args = weight_args(w);
  args.M = x.rows;
  args.x = x.data;
  args.x_stride = x.row_stride;
  args.x_is_int8 = multiplies_integers(x, args);
  args.x_dtype = DType::bfloat16;
  return args;
}

/// No products to add: y is the bias, or zero.
void fill_with_bias(const MatmulArgs& args) {
  const auto row_bytes = static_cast<std::size_t>(args.N) * dtype_size(args.y_dtype);
  for (std::int64_t m = 0; m < args.M; ++m) {
    char* row = static_cast<char*>(args.y) + static_cast<std::size_t>(m) * row_bytes;
    args.bias != nullptr ? static_cast<void>(std::memcpy(row, args.bias, row_bytes))
                         : static_cast<void>(std::memset(row, 0, row_bytes));
  }
}

bool is_serial(const MatmulArgs& args, Isa isa) {
  const std::int64_t most_weights = serial_bytes(args.cores) * 8 / qtype_info(args.qtype).bits;
  return args.N <= most_weights / args.K && args.M * args.N <= serial_operations(isa, args.cores) / args.K;
}

/// The codes, scales and shifts that a thread reads first. Kernels fetch what follows the codes that they multiply, but
/// the first of a thread nobody has fetched: from memory, a sixteenth of 576 x 576 int4 weights takes 2 us, each
/// following one 0.4 us. Codes of 8 bits, more bytes for the same work, gain by it on Zen 4 alone, but not their
/// scales, which are read last.
class FirstCodes {
 public:
  FirstCodes(const MatmulArgs& args, std::int64_t units)
      : args_(args), units_(units), bits_(qtype_info(args.qtype).bits), wanted_(worthwhile(args)) {}

  /// Whether fetching them is worth it.
  static bool worthwhile(const MatmulArgs& args) {
    return (is_affine(args.qtype) || kernels::fetches_into_l2(args)) && args.M <= kMostRows &&
           args.K <= kLongestStripe && args.planes == nullptr;
  }

  /// Those of `unit`; nothing if the thread has just done the unit before it, or fetched them.
  void fetch_for(std::int64_t unit) const {
    if (!wanted_ || last_end == codes_of(unit)) return;
    last_end = codes_of(unit);
    const std::int64_t most = kernels::fetches_into_l2(args_) ? kFetchedIntoL2 : kFetched;
    kernels::fetch(args_, last_end, std::min<std::int64_t>(most, codes_of(units_) - last_end));
    if (!is_affine(args_.qtype)) return;
    const int fields = 8 / bits_;
    for (int field = 0; field < fields; ++field) fetch_scales(unit, field, fields);
  }
  /// To be told up to where the thread came.
  void done(std::int64_t end) const {
    if (wanted_) last_end = codes_of(end);
  }

 private:
  // About as far ahead as kernels fetch; on Zen 4 with short stripes, where one and two rows of 576 x 192 int4 weights
  // take 0.84 to 0.92 of the time with the L2 cache, of 576 x 576 0.9, of int8 weights 0.9 to 0.95.
  static constexpr std::int64_t kFetched = 10 << 10, kFetchedIntoL2 = 12 << 10;
  // Many rows have time to wait. In long stripes the codes that are multiplied at once lie further apart.
  static constexpr std::int64_t kMostRows = 8, kLongestStripe = 2048;

  void fetch_scales(std::int64_t unit, int field, int fields) const {
    const std::int64_t all = args_.N * args_.groups / fields;
    const std::int64_t first = field * all + all * unit / units_, count = all / units_;
    const auto size = static_cast<std::int64_t>(dtype_size(args_.scale_dtype));
    kernels::fetch(args_, static_cast<const std::uint8_t*>(args_.scale) + first * size, count * size);
    const std::int64_t shift_size = args_.shift_kind == ShiftKind::floating ? size : 1;
    kernels::fetch(args_, static_cast<const std::uint8_t*>(args_.shift) + first * shift_size, count * shift_size);
  }
  const std::uint8_t* codes_of(std::int64_t unit) const {
    return args_.w + args_.N * args_.K * bits_ / 8 * unit / units_;
  }

  static thread_local const std::uint8_t* last_end;
  const MatmulArgs& args_;
  std::int64_t units_;
  int bits_;
  bool wanted_;
};
thread_local const std::uint8_t* FirstCodes::last_end = nullptr;

/// x as if row 0 came first, where it begins with row `begin`: what kernels that read rows from there on are given.
const void* before_rows(const void* rows, std::int64_t begin, std::size_t row_bytes) {
  return reinterpret_cast<const void*>(reinterpret_cast<std::uintptr_t>(rows) -
                                       static_cast<std::uintptr_t>(begin) * row_bytes);
}

/// Lets the kernel prepare rows [begin, end) that are quantized just before, as many at a time as stay in the L1 or L2
/// cache until they are read.
void quantize_and_prepare(const MatmulKernel& kernel, const MatmulArgs& args, QuantizedRows& rows, std::int64_t begin,
                          std::int64_t end) {
  MatmulArgs some = args;
  some.x_stride = args.K;
  for (std::int64_t m = begin; m < end; m += kernels::kPreparedTogether) {
    const std::int64_t m_end = std::min(end, m + kernels::kPreparedTogether);
    void* made = thread_buffer(static_cast<std::size_t>(m_end - m) * rows.row_bytes());
    rows.make(m, m_end, made);
    some.x = before_rows(made, m, rows.row_bytes());
    kernel.prepare(some, m, m_end);
  }
}

/// The units of a call whose activations each thread prepares for itself. False, with nothing written, if the kernel
/// does not serve their values. What one thread writes before each call and another reads goes through the memory of
/// both: where they do not share a cache, a quarter of the time of eight rows of bfloat16 and 4096 x 4096 int4 weights.
bool run_with_own_rows(const MatmulKernel& kernel, const MatmulArgs& args, const FirstCodes& first,
                       std::int64_t units) {
  struct OwnRows {
    std::uint64_t call = 0;  // that they were prepared for
    bool served = false;
    GrowingBuffer memory;
  };
  static std::atomic<std::uint64_t> calls{0};
  const std::uint64_t call = calls.fetch_add(1, std::memory_order_relaxed) + 1;
  const std::size_t bytes = kernel.workspace_bytes(args), scratch = kernel.scratch_bytes(args);
  std::atomic<bool> served{true};
  parallel_for(units, 1, [&](std::int64_t begin, std::int64_t end) {
    thread_local OwnRows own;
    first.fetch_for(begin);
    MatmulArgs mine = args;
    mine.workspace = own.memory.at_least(bytes);
    if (own.call != call) {
      kernel.prepare(mine, 0, args.M);
      own.served = kernel.serves_values == nullptr || kernel.serves_values(mine);
      own.call = call;
    }
    if (!own.served) return served.store(false, std::memory_order_relaxed);
    kernel.run(mine, thread_buffer(scratch), begin, end);
    first.done(end);
  });
  return served.load(std::memory_order_relaxed);
}

/// `rows`: what x is made of, if it is not there yet. `shared`: memory of several calls for their workspaces, or null.
/// False, with nothing written, if x lies in planes and the kernel that serves its values does not take them.
bool run(const kernels::Choice& choice, MatmulArgs& args, QuantizedRows* rows, GrowingBuffer* shared = nullptr) {
  const MatmulKernel& kernel = *choice.kernel;
  if (args.planes != nullptr && !kernel.takes_planes) return false;
  Buffer made;
  if (rows != nullptr && (args.M <= kBlockRows || !kernel.prepares_blocks)) {
    made = rows->make_all();
    args.x = made.get();
    args.x_stride = args.K;
    rows = nullptr;
  }
  const bool serial = is_serial(args, choice.isa);
  args.threads = serial ? 1 : thread_count();
  const std::int64_t units = kernel.unit_count(args);
  const FirstCodes first(args, units);
  first.fetch_for(0);  // unless matmul_fetch did, while activations are prepared and other threads wake
  const auto run_what_serves = [&] {
    args.special_values = true;
    return run(kernels::choose_matmul(args), args, rows, shared);
  };
  const std::size_t workspace_bytes = kernel.workspace_bytes(args);
  const std::int64_t block = args.M > kBlockRows ? kBlockRows : 1, blocks = (args.M + block - 1) / block;
  const std::int64_t grain = std::max<std::int64_t>(1, (1 << 16) / args.K / block);
  if (!serial && rows == nullptr && shared == nullptr && blocks <= grain && workspace_bytes <= Workspace::kKept) {
    return run_with_own_rows(kernel, args, first, units) || run_what_serves();
  }
  const Workspace workspace(workspace_bytes, shared);
  args.workspace = workspace.data();
  parallel_for(blocks, serial ? blocks : grain, [&](std::int64_t begin, std::int64_t end) {
    const std::int64_t m = begin * block, m_end = std::min(args.M, end * block);
    if (rows != nullptr) return quantize_and_prepare(kernel, args, *rows, m, m_end);
    kernel.prepare(args, m, m_end);
  });
  if (kernel.serves_values != nullptr && !kernel.serves_values(args)) return run_what_serves();
  const std::size_t scratch = kernel.scratch_bytes(args);
  parallel_for(units, serial ? units : 1, [&](std::int64_t begin, std::int64_t end) {
    first.fetch_for(begin);
    kernel.run(args, thread_buffer(scratch), begin, end);
    first.done(end);
  });
  return true;
}

void run_chosen(MatmulArgs& args, QuantizedRows* rows = nullptr) {
  if (args.M == 0 || args.N == 0) return;
  if (args.K == 0) return fill_with_bias(args);
  run(kernels::choose_matmul(args), args, rows);
}

/// The scales of the rows as float32: one for each, or a single one.
std::vector<float> row_scales(const CodesView& x) {
  std::vector<float> scales(x.scale == nullptr ? 0 : x.per_row_scale ? static_cast<std::size_t>(x.rows) : 1);
  for (std::size_t m = 0; m < scales.size(); ++m) {
    scales[m] = load_float(x.scale, x.scale_dtype, static_cast<std::int64_t>(m));
  }
  return scales;
}

/// The values of the codes as bfloat16, M x K: dequantized with a scale of one.
Buffer decode_activations(const CodesView& x, std::int64_t K) {
  constexpr std::uint16_t kOne = 0x3f80;
  Buffer values = allocate(static_cast<std::size_t>(x.rows * K) * sizeof(std::uint16_t));
  kernels::QuantizeArgs row{};
  row.rows = 1;
  row.cols = K;
  row.dtype = DType::bfloat16;
  row.qtype = x.qtype;
  row.axis = Axis::tensor;
  row.scale = &kOne;
  const auto dequantize = kernels::quantize_kernels().dequantize_symmetric;
  parallel_for(x.rows, std::max<std::int64_t>(1, (1 << 15) / K), [&](std::int64_t begin, std::int64_t end) {
    kernels::QuantizeArgs r = row;
    for (std::int64_t m = begin; m < end; ++m) {
      r.codes_in = static_cast<const std::uint8_t*>(x.data) + m * x.row_stride;
      r.out = static_cast<std::uint16_t*>(values.get()) + m * K;
      dequantize(r, 0, 1);
    }
  });
  return values;
}

std::string kernel_name(MatmulArgs args, bool extreme_values) {
  kernels::Choice choice = kernels::choose_matmul(args);
  if (extreme_values && choice.kernel->serves_values != nullptr) {
    args.special_values = true;
    choice = kernels::choose_matmul(args);
  }
  std::string name(isa_name(choice.isa));
  name.append("/").append(qtype_info(args.qtype).name).append("/");
  name.append(args.x_is_int8 ? "int8" : dtype_name(args.x_dtype));
  return name.append("/").append(choice.kernel->name);
}

}  // namespace

void matmul(const ActivationView& x, const WeightView& w, const void* bias, void* y) {
  check_weight(w);
  check_rows(x.rows, x.row_stride, w);
  MatmulArgs args = complete(x, w, bias, y);
  run_chosen(args);
}

void matmul_fetch(const ActivationView& x, const WeightView& w) {
  check_weight(w);
  check_rows(x.rows, x.row_stride, w);
  MatmulArgs args = complete(x, w, nullptr, nullptr);
  if (args.M == 0 || args.N == 0 || args.K == 0 || !FirstCodes::worthwhile(args)) return;
  const kernels::Choice choice = kernels::choose_matmul(args);
  args.threads = is_serial(args, choice.isa) ? 1 : thread_count();
  FirstCodes(args, choice.kernel->unit_count(args)).fetch_for(0);
}

void matmul_codes(const CodesView& x, const WeightView& w, const void* bias, DType dtype, void* y) {
  check_symmetric("matmul", x.qtype);
  check_weight(w);
  check_rows(x.rows, x.row_stride, w);
  MatmulArgs args = complete(x, w);
  const std::vector<float> scales = row_scales(x);
  args.row_scale = x.scale == nullptr ? nullptr : scales.data();
  args.row_scale_step = x.per_row_scale ? 1 : 0;
  args.bias = bias;
  args.y = y;
  args.y_dtype = dtype;
  Buffer values;
  if (!args.x_is_int8 && args.K > 0) {
    values = decode_activations(x, args.K);
    args.x = values.get();
    args.x_stride = args.K;
  }
  run_chosen(args);
}

void matmul_quantizing(const QuantizingView& x, const WeightView& w, const void* bias, DType dtype, void* y) {
  check_symmetric("matmul", x.qtype);
  check_weight(w);
  check_rows(x.values.rows, x.values.row_stride, w);
  MatmulArgs args = complete(CodesView{nullptr, x.qtype, x.values.rows, 0}, w);
  QuantizedRows rows(x, args.K, !args.x_is_int8);
  args.row_scale = rows.scales();
  args.row_scale_step = rows.scale_step();
  args.bias = bias;
  args.y = y;
  args.y_dtype = dtype;
  run_chosen(args, &rows);
}

std::string matmul_kernel_name(const ActivationView& x, const WeightView& w, bool extreme_values) {
  return kernel_name(complete(x, w, nullptr, nullptr), extreme_values);
}

std::string matmul_codes_kernel_name(const CodesView& x, const WeightView& w) {
  return kernel_name(complete(x, w), false);
}

bool matmul_takes_planes(DType dtype, std::int64_t rows, const WeightView& w) {
  if (rows == 0 || w.out_features == 0 || w.in_features == 0) return false;
  return kernels::choose_matmul(complete({nullptr, dtype, rows, 0}, w, nullptr, nullptr)).kernel->takes_planes;
}

bool matmul_planes(const void* x, DType dtype, std::int64_t rows, const kernels::Planes& planes, const WeightView& w,
                   const void* bias, void* y, GrowingBuffer& workspace) {
  check_weight(w);
  check_rows(rows, 0, w);
  MatmulArgs args = complete({x, dtype, rows, 0}, w, bias, y);
  args.planes = &planes;
  return run(kernels::choose_matmul(args), args, nullptr, &workspace);
}

}  // namespace quanto
