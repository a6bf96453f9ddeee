// The schemas of torch.ops.quanto, and the helpers that the operators share.
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <stdexcept>
#include <utility>

#include "quanto/pack.h"
#include "quanto/qtype.h"
#include "tensors.h"

STABLE_TORCH_LIBRARY(quanto, m) {
  // Names, schemas and results of the first four are those of optimum-quanto 0.2.7.
  m.def("quantize_symmetric(Tensor base, ScalarType dtype, int? axis, Tensor scale) -> Tensor");
  m.def("quantize_affine(Tensor base, int bits, int axis, int? group_size, Tensor scale, Tensor shift) -> Tensor");
  m.def("unpack(Tensor self, int bits) -> Tensor");
  m.def("qbytes_mm(Tensor A, Tensor B, Tensor scales) -> Tensor");

  m.def(
      "quantize_affine_packed(Tensor base, int bits, int axis, int? group_size, Tensor scale, Tensor shift) -> Tensor");
  m.def("absmax_scale(Tensor base, str qtype, int? axis) -> Tensor");
  m.def("quantize_per_token(Tensor input, ScalarType dtype) -> (Tensor, Tensor)");
  m.def("minmax_scale(Tensor base, str qtype, int axis, int? group_size) -> (Tensor, Tensor)");
  m.def(
      "hqq_scale(Tensor base, str qtype, int axis, float lp_norm, float beta, float kappa, int iters) -> (Tensor, "
      "Tensor, Tensor)");
  m.def("dequantize_symmetric(Tensor data, Tensor scale) -> Tensor");
  m.def(
      "dequantize_affine(Tensor data, Tensor scale, Tensor shift, int bits, int axis, int? group_size, int[] size, "
      "bool packed) -> Tensor");
  m.def("fake_quantize_symmetric(Tensor base, str qtype, int? axis, Tensor? scale) -> Tensor");
  m.def(
      "fake_quantize_affine(Tensor base, str qtype, int axis, int? group_size, Tensor? scale, Tensor? shift) -> "
      "Tensor");
  m.def("observe_magnitudes(Tensor base, Tensor counts, Tensor exponent) -> (Tensor, Tensor)");
  m.def("percentile_scale(Tensor counts, Tensor exponent, str qtype, float percentile) -> Tensor");
  m.def("mse_scale(Tensor counts, Tensor exponent, str qtype) -> Tensor");
  m.def("pack(Tensor self, int bits) -> Tensor");
  m.def("all_finite(Tensor base) -> Tensor");
  // `weight` may be a quantized one, which calls one of the operators below: what a traced module calls, so that the
  // guards of compiled code ask a weight for its parts and nothing else. Its implementation is in Python.
  m.def("linear(Tensor input, Tensor weight, Tensor? bias) -> Tensor");
  m.def("linear_qbytes(Tensor input, Tensor data, Tensor scale, Tensor? bias) -> Tensor");
  // Groups and output channels of packed codes follow from the shapes, and 4 bits go without saying: from Python every
  // argument costs a tenth of a microsecond, an integer more than a tensor.
  m.def("linear_qbits(Tensor input, Tensor data, Tensor scale, Tensor shift, Tensor? bias=None, int bits=4) -> Tensor");
  // Activations given as codes, with one scale or one for each row.
  m.def(
      "linear_codes_qbytes(Tensor input, Tensor input_scale, Tensor data, Tensor scale, Tensor? bias, "
      "ScalarType dtype) -> Tensor");
  m.def(
      "linear_codes_qbits(Tensor input, Tensor input_scale, Tensor data, Tensor scale, Tensor shift, Tensor? bias, "
      "ScalarType dtype, int bits=4) -> Tensor");
  // Activations that are quantized to `dtype` on the way, with that scale or one for each row; results have the dtype
  // of the weight's scales.
  m.def(
      "linear_quantizing_qbytes(Tensor input, ScalarType dtype, Tensor? input_scale, Tensor data, Tensor scale, "
      "Tensor? bias) -> Tensor");
  m.def(
      "linear_quantizing_qbits(Tensor input, ScalarType dtype, Tensor? input_scale, Tensor data, Tensor scale, "
      "Tensor shift, Tensor? bias=None, int bits=4) -> Tensor");
  // padding: before and after each spatial dimension in turn.
  m.def(
      "conv_qbytes(Tensor input, Tensor data, Tensor scale, Tensor? bias, int[] stride, int[] padding, int[] dilation, "
      "str padding_mode) -> Tensor");
  m.def(
      "conv_qbits(Tensor input, Tensor data, Tensor scale, Tensor shift, int bits, int group_size, int[] size, "
      "Tensor? bias, int[] stride, int[] padding, int[] dilation, str padding_mode) -> Tensor");
  m.def("embedding_qbytes(Tensor indices, Tensor data, Tensor scale) -> Tensor");
  m.def(
      "embedding_qbits(Tensor indices, Tensor data, Tensor scale, Tensor shift, int bits, int group_size, "
      "int[] size) -> Tensor");
}

namespace quanto::torch_ext {

namespace {

std::string message(const char* op, const std::string& what, const std::string& got, const std::string& expected) {
  return "[" + std::string(op) + "] " + what + ": got " + got + ", expected " + expected;
}

}  // namespace

void fail(const char* op, const std::string& what, const std::string& got, const std::string& expected) {
  throw std::runtime_error(message(op, what, got, expected));
}

void fail_value(const char* op, const std::string& what, const std::string& got, const std::string& expected) {
  throw std::invalid_argument(message(op, what, got, expected));
}

std::vector<std::int64_t> sizes_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return {sizes.begin(), sizes.end()};
}

namespace {

std::string sizes_text(const std::vector<std::int64_t>& sizes) {
  std::string text = "shape (";
  for (std::size_t i = 0; i < sizes.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  return text + ")";
}

}  // namespace

std::string shape_text(const Tensor& t) { return sizes_text(sizes_of(t)); }

std::string dtype_text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Float8_e4m3fn:
      return "float8_e4m3fn";
    case ScalarType::Float8_e4m3fnuz:
      return "float8_e4m3fnuz";
    case ScalarType::Float8_e5m2:
      return "float8_e5m2";
    default:
      return torch::headeronly::toString(dtype);
  }
}

ScalarType dtype_of(const Tensor& t) {
  struct Known {
    std::int32_t code;
    ScalarType dtype;
  };
  static const Known kKnown[] = {{aoti_torch_dtype_bfloat16(), ScalarType::BFloat16},
                                 {aoti_torch_dtype_uint8(), ScalarType::Byte},
                                 {aoti_torch_dtype_int8(), ScalarType::Char},
                                 {aoti_torch_dtype_float32(), ScalarType::Float},
                                 {aoti_torch_dtype_float16(), ScalarType::Half},
                                 {aoti_torch_dtype_float8_e4m3fn(), ScalarType::Float8_e4m3fn}};
  std::int32_t code = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &code));
  for (const Known& known : kKnown) {
    if (known.code == code) return known.dtype;
  }
  return t.scalar_type();
}

DType float_dtype(const char* op, const char* what, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    case ScalarType::Half:
      return DType::float16;
    default:
      fail(op, what, dtype_text(dtype), "float32, bfloat16 or float16");
  }
}

DType float_dtype(const char* op, const char* what, const Tensor& t) { return float_dtype(op, what, dtype_of(t)); }

QType code_qtype(const char* op, const char* what, ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Char:
      return QType::qint8;
    case ScalarType::Float8_e4m3fn:
      return QType::qfloat8_e4m3fn;
    case ScalarType::Float8_e4m3fnuz:
      return QType::qfloat8_e4m3fnuz;
    case ScalarType::Float8_e5m2:
      return QType::qfloat8_e5m2;
    default:
      fail(op, what, dtype_text(dtype), "int8, float8_e4m3fn, float8_e4m3fnuz or float8_e5m2");
  }
}

ScalarType scalar_type(DType dtype) {
  return dtype == DType::float32    ? ScalarType::Float
         : dtype == DType::bfloat16 ? ScalarType::BFloat16
                                    : ScalarType::Half;
}

namespace {

/// Blocks from this size on glibc always maps anew: all their pages are met for the first time by who writes them.
constexpr std::size_t kMappedAnew = std::size_t{32} << 20;

/// Of codes from this size on at least half lies on whole huge pages, wherever they begin. From memory, 4096 x 4096
/// int8 weights and one row take 264 us there and 290 us on small ones, int4 weights and four rows 216 and 230.
constexpr std::size_t kHugeCodes = std::size_t{4} << 20;

/// Asks for huge pages below a large block that is about to be written. Rounding a 4096 x 4096 float32 weight for
/// training takes 9 ms on huge pages and 20 ms on small ones.
void prefer_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(data) + page - 1) / page * page;
  const auto end = (reinterpret_cast<std::uintptr_t>(data) + bytes) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // only advice: failing changes nothing
#endif
}

}  // namespace

Tensor empty(const std::vector<std::int64_t>& sizes, ScalarType dtype) {
  std::vector<std::int64_t> strides(sizes.size());
  std::int64_t stride = 1;
  for (std::size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i] > 0 ? sizes[i] : 1;
  }
  Tensor t = empty_strided(sizes, strides, dtype);
  // Only what may be large is asked for its size: each question is a call.
  constexpr std::size_t kLargestElement = 8;
  if (static_cast<std::size_t>(stride) >= kMappedAnew / kLargestElement) {
    const std::size_t bytes = static_cast<std::size_t>(t.numel()) * t.element_size();
    if (bytes >= kMappedAnew) prefer_huge_pages(t.data_ptr(), bytes);
  }
  return t;
}

Tensor empty_codes(const std::vector<std::int64_t>& sizes, ScalarType dtype) {
  Tensor t = empty(sizes, dtype);
  const auto bytes = static_cast<std::size_t>(t.numel());
  if (bytes >= kHugeCodes && bytes < kMappedAnew) prefer_huge_pages(t.data_ptr(), bytes);
  return t;
}

Tensor empty_strided(const std::vector<std::int64_t>& sizes, const std::vector<std::int64_t>& strides,
                     ScalarType dtype) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(static_cast<std::int64_t>(sizes.size()), sizes.data(), strides.data(),
                               torch::stable::detail::to<std::int32_t>(torch::stable::detail::from(dtype)),
                               aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Tensor as_contiguous(Tensor t) { return t.is_contiguous() ? std::move(t) : torch::stable::contiguous(t); }

namespace {

/// The stride between rows if all leading dimensions can be walked with a single one; 0 where they are one row.
std::optional<std::int64_t> row_stride(const Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  const std::size_t last = sizes.size() - 1;
  if (sizes[last] > 1 && strides[last] != 1) return std::nullopt;
  std::optional<std::int64_t> stride;
  std::int64_t expected = 0;
  for (std::size_t d = last; d-- > 0;) {
    if (sizes[d] == 1) continue;
    if (!stride.has_value()) {
      stride = strides[d];
    } else if (strides[d] != expected) {
      return std::nullopt;
    }
    expected = strides[d] * sizes[d];
  }
  return stride.value_or(sizes[last]);
}

}  // namespace

Rows rows_of(Tensor t) {
  const auto stride = row_stride(t);
  if (stride.has_value()) return {std::move(t), *stride};
  return {torch::stable::contiguous(t), t.size(t.dim() - 1)};
}

Tensor with_dtype(Tensor t, ScalarType dtype) {
  return dtype_of(t) == dtype ? std::move(t) : torch::stable::to(t, dtype);
}

MatrixShape matrix_shape(const char* op, const std::vector<std::int64_t>& sizes, std::optional<std::int64_t> axis) {
  const auto dims = static_cast<std::int64_t>(sizes.size());
  std::int64_t numel = 1;
  for (const std::int64_t size : sizes) numel *= size;
  if (!axis.has_value()) return {1, numel, Axis::tensor};
  if (*axis != 0 && *axis != -1 && *axis != dims - 1) {
    fail_value(op, "axis", std::to_string(*axis), "0 (the first dimension), -1 (the last one) or None");
  }
  if (dims == 0) fail_value(op, "base", sizes_text(sizes), "at least 1 dimension to quantize along one of them");
  if (dims == 1) return {1, numel, Axis::first};
  if (*axis == 0) return {sizes[0], sizes[0] == 0 ? 0 : numel / sizes[0], Axis::first};
  const std::int64_t last = sizes.back();
  return {last == 0 ? 0 : numel / last, last, Axis::last};
}

Grouping grouping(const char* op, const std::vector<std::int64_t>& sizes, std::int64_t axis,
                  std::optional<std::int64_t> group_size) {
  if (axis != 0 && axis != -1) {
    fail_value(op, "axis", std::to_string(axis), "0 (the first dimension) or -1 (the last one)");
  }
  Grouping g{matrix_shape(op, sizes, axis)};
  if (!group_size.has_value()) return g;
  const bool first = g.matrix.axis == Axis::first;
  const std::int64_t along = sizes.size() == 1 ? 1 : first ? g.matrix.cols : g.matrix.rows;
  if (*group_size <= 0 || along % *group_size != 0) {
    fail_value(op, "group_size", std::to_string(*group_size), "a divisor of " + std::to_string(along));
  }
  g.group_size = *group_size;
  g.groups = along / *group_size;
  g.matrix = first ? MatrixShape{g.matrix.rows * g.groups, *group_size, Axis::first}
                   : MatrixShape{*group_size, g.matrix.cols * g.groups, Axis::last};
  return g;
}

std::vector<std::int64_t> grouped_sizes(const Grouping& g, const std::vector<std::int64_t>& sizes) {
  return g.group_size == 0 ? sizes : std::vector<std::int64_t>{g.matrix.rows, g.matrix.cols};
}

Tensor grouped_base(const Tensor& base, const Grouping& g) {
  Tensor dense = as_contiguous(base);
  if (g.group_size == 0 || g.matrix.axis == Axis::first) return dense;
  Tensor out = empty({g.matrix.rows, g.matrix.cols}, dtype_of(base));
  const std::int64_t cols = g.groups == 0 ? 0 : g.matrix.cols / g.groups;
  group_last(dense.const_data_ptr(), dense.element_size(), g.groups, g.group_size, cols, out.mutable_data_ptr());
  return out;
}

ShiftTensor shift_tensor(const char* op, Tensor shift, ScalarType scale_dtype, std::int64_t count) {
  check_count(op, "shift", shift, count);
  const ScalarType dtype = dtype_of(shift);
  if (dtype == ScalarType::Byte || dtype == ScalarType::Char) {
    Tensor dense = as_contiguous(std::move(shift));
    const void* data = dense.const_data_ptr();
    return {std::move(dense), {data, ShiftKind::integer}};
  }
  float_dtype(op, "shift", shift);
  Tensor dense = as_contiguous(with_dtype(std::move(shift), scale_dtype));
  const void* data = dense.const_data_ptr();
  return {std::move(dense), {data, ShiftKind::floating}};
}

void check_count(const char* op, const char* what, const Tensor& t, std::int64_t count) {
  if (t.numel() != count) fail(op, what, shape_text(t), std::to_string(count) + " elements");
}

QType affine_qtype(const char* op, std::int64_t bits) {
  if (bits != 2 && bits != 4) fail(op, "bits", std::to_string(bits), "2 or 4");
  return bits == 4 ? QType::qint4 : QType::qint2;
}

}  // namespace quanto::torch_ext
