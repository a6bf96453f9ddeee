#include "quanto/matmul.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "check.h"
#include "float_io.h"
#include "kernels/registry.h"
#include "quanto/isa.h"
#include "quanto/pack.h"
#include "quanto/parallel.h"
#include "quanto/qtype.h"

namespace quanto {
namespace {

using kernels::MatmulArgs;
using kernels::MatmulKernel;

// Multiply-adds below which waking another thread costs more than it saves.
constexpr std::int64_t kSerialOperations = 1 << 17;

struct AlignedDelete {
  void operator()(void* p) const { ::operator delete (p, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<void, AlignedDelete>;

Buffer allocate(std::size_t bytes) {
  return Buffer(bytes == 0 ? nullptr : ::operator new (bytes, std::align_val_t{64}));
}

/// Per-thread memory that grows to the largest request: a decode step calls hundreds of times a second.
void* thread_buffer(std::size_t bytes) {
  thread_local Buffer buffer;
  thread_local std::size_t capacity = 0;
  if (bytes > capacity) {
    buffer.reset();
    buffer = allocate(bytes);
    capacity = bytes;
  }
  return bytes == 0 ? nullptr : buffer.get();
}

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

void check_activations(const ActivationView& x, const WeightView& w) {
  check_shape("matmul", x.rows, std::max(w.in_features, x.row_stride));
  check_shape("matmul", x.rows, w.out_features);
  if (x.rows > 1 && x.row_stride < 0) fail("matmul", "row_stride", std::to_string(x.row_stride), "0 or more");
}

MatmulArgs complete(const ActivationView& x, const WeightView& w, const void* bias, void* y) {
  MatmulArgs args{};
  args.x = x.data;
  args.x_stride = x.row_stride;
  args.x_dtype = x.dtype;
  args.qtype = w.qtype;
  args.w = static_cast<const std::uint8_t*>(w.data);
  args.scale = w.scale;
  args.shift = w.shift;
  args.scale_dtype = w.scale_dtype;
  args.shift_kind = w.shift_kind;
  args.bias = bias;
  args.y = y;
  args.M = x.rows;
  args.N = w.out_features;
  args.K = w.in_features;
  args.group_size = w.group_size == 0 ? w.in_features : w.group_size;
  args.groups = args.group_size == 0 ? 0 : args.K / args.group_size;
  args.packed_rows = is_affine(w.qtype) ? packed_rows(args.N * args.groups, qtype_info(w.qtype).bits) : args.N;
  args.scale_step = w.per_tensor_scale ? 0 : 1;
  return args;
}

/// No products to add: y is the bias, or zero.
void fill_with_bias(const MatmulArgs& args) {
  const auto row_bytes = static_cast<std::size_t>(args.N) * dtype_size(args.x_dtype);
  for (std::int64_t m = 0; m < args.M; ++m) {
    char* row = static_cast<char*>(args.y) + static_cast<std::size_t>(m) * row_bytes;
    args.bias != nullptr ? static_cast<void>(std::memcpy(row, args.bias, row_bytes))
                         : static_cast<void>(std::memset(row, 0, row_bytes));
  }
}

void run(const MatmulKernel& kernel, MatmulArgs& args) {
  const Buffer workspace = allocate(kernel.workspace_bytes(args));
  args.workspace = workspace.get();
  const bool serial = args.M * args.N <= kSerialOperations / args.K;
  parallel_for(args.M, serial ? args.M : std::max<std::int64_t>(1, (1 << 16) / args.K),
               [&](std::int64_t begin, std::int64_t end) { kernel.prepare(args, begin, end); });
  if (kernel.serves_values != nullptr && !kernel.serves_values(args)) {
    args.special_values = true;
    return run(*kernels::choose_matmul(args).kernel, args);
  }
  const std::int64_t units = kernel.unit_count(args);
  const std::size_t scratch = kernel.scratch_bytes(args);
  parallel_for(units, serial ? units : 1,
               [&](std::int64_t begin, std::int64_t end) { kernel.run(args, thread_buffer(scratch), begin, end); });
}

}  // namespace

void matmul(const ActivationView& x, const WeightView& w, const void* bias, void* y) {
  check_weight(w);
  check_activations(x, w);
  MatmulArgs args = complete(x, w, bias, y);
  if (args.M == 0 || args.N == 0) return;
  if (args.K == 0) return fill_with_bias(args);
  run(*kernels::choose_matmul(args).kernel, args);
}

void matmul_int8(const Int8Activations& x, const Int8Weight& w, const OutputScale& scale, void* y) {
  constexpr std::int64_t kMaxK = std::int64_t{1} << 17;  // 2^17 products of (-128)^2 are the most an int32 holds
  constexpr std::int64_t kBlock = 32;
  check_shape("matmul_int8", w.out_features, w.in_features);
  check_shape("matmul_int8", x.rows, std::max(w.in_features, w.out_features));
  const std::int64_t K = w.in_features, N = w.out_features;
  if (K >= kMaxK) fail("matmul_int8", "in_features", std::to_string(K), "less than " + std::to_string(kMaxK));
  const auto dots = kernels::matmul_table().int8_dots;
  const std::int64_t blocks = (N + kBlock - 1) / kBlock;
  const std::int64_t grain = std::max<std::int64_t>(1, kSerialOperations / std::max<std::int64_t>(1, K * kBlock));
  parallel_for(x.rows * blocks, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t unit = begin; unit < end; ++unit) {
      const std::int64_t m = unit % x.rows, n = unit / x.rows * kBlock;
      const std::int64_t rows = std::min(kBlock, N - n);
      std::array<std::int32_t, kBlock> sums;
      dots(x.data + m * K, w.data + n * K, K, rows, sums.data());
      for (std::int64_t r = 0; r < rows; ++r) {
        const float s = load_float(scale.data, scale.dtype, scale.per_tensor ? 0 : n + r);
        store_float(y, scale.dtype, m * N + n + r, static_cast<float>(sums[static_cast<std::size_t>(r)]) * s);
      }
    }
  });
}

std::string matmul_kernel_name(const ActivationView& x, const WeightView& w) {
  const MatmulArgs args = complete(x, w, nullptr, nullptr);
  const kernels::Choice choice = kernels::choose_matmul(args);
  std::string name(isa_name(choice.isa));
  name.append("/").append(qtype_info(w.qtype).name).append("/").append(dtype_name(x.dtype));
  return name.append("/").append(choice.kernel->name);
}

}  // namespace quanto
