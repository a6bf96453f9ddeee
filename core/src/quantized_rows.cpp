#include "quantized_rows.h"

#include <algorithm>

#include "float_io.h"
#include "kernels/registry.h"
#include "quanto/parallel.h"
#include "quanto/qtype.h"
#include "symmetric_scale.h"

namespace quanto {
namespace {

using kernels::QuantizeArgs;

constexpr std::int64_t kGrain = 1 << 15;  // elements that are worth a thread, as in quantize.cpp

/// Elements that share one scale, as a single row.
QuantizeArgs elements(DType dtype, QType qtype, std::int64_t count, const void* scale) {
  QuantizeArgs a{};
  a.rows = 1;
  a.cols = count;
  a.dtype = dtype;
  a.qtype = qtype;
  a.axis = Axis::tensor;
  a.scale = scale;
  return a;
}

}  // namespace

void quantize_token(const kernels::QuantizeKernels& kernels, DType dtype, const void* values, std::int64_t cols,
                    QType qtype, void* scale, std::uint8_t* codes) {
  std::uint32_t largest = 0;
  kernels.absmax(dtype, values, 1, cols, &largest);
  store_float(scale, dtype, 0, symmetric_scale(dtype, static_cast<float>(qtype_info(qtype).qmax), largest));
  QuantizeArgs a = elements(dtype, qtype, cols, scale);
  a.values = values;
  a.codes_out = codes;
  kernels.quantize_symmetric(a, 0, 1);
}

QuantizedRows::QuantizedRows(const QuantizingView& x, std::int64_t cols, bool decoded)
    : kernels_(kernels::quantize_kernels()), x_(x.values), qtype_(x.qtype), cols_(cols), decoded_(decoded) {
  if (x.scale == nullptr) {
    scales_.resize(static_cast<std::size_t>(std::max<std::int64_t>(1, x_.rows)));
  } else {
    single_scale_ = load_float(x.scale, x.scale_dtype, 0);
    store_float(&divisor_, x_.dtype, 0, single_scale_);
  }
}

void QuantizedRows::make(std::int64_t begin, std::int64_t end, void* out) {
  if (!decoded_) return quantize(begin, end, static_cast<std::uint8_t*>(out));
  thread_local GrowingBuffer codes;
  auto* bytes = static_cast<std::uint8_t*>(codes.at_least(static_cast<std::size_t>((end - begin) * cols_)));
  quantize(begin, end, bytes);
  decode(bytes, end - begin, out);
}

Buffer QuantizedRows::make_all() {
  Buffer all = allocate(static_cast<std::size_t>(x_.rows) * row_bytes());
  parallel_for(x_.rows, std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, cols_)),
               [&](std::int64_t begin, std::int64_t end) {
                 make(begin, end, static_cast<char*>(all.get()) + static_cast<std::size_t>(begin) * row_bytes());
               });
  return all;
}

void QuantizedRows::quantize(std::int64_t begin, std::int64_t end, std::uint8_t* codes) {
  const auto size = static_cast<std::int64_t>(dtype_size(x_.dtype));
  const char* values = static_cast<const char*>(x_.data) + begin * x_.row_stride * size;
  if (scale_step() == 0 && x_.row_stride == cols_) {
    QuantizeArgs a = elements(x_.dtype, qtype_, (end - begin) * cols_, &divisor_);
    a.values = values;
    a.codes_out = codes;
    return kernels_.quantize_symmetric(a, 0, 1);
  }
  for (std::int64_t r = begin; r < end; ++r, values += x_.row_stride * size, codes += cols_) {
    if (scale_step() == 0) {
      QuantizeArgs a = elements(x_.dtype, qtype_, cols_, &divisor_);
      a.values = values;
      a.codes_out = codes;
      kernels_.quantize_symmetric(a, 0, 1);
    } else {
      std::uint32_t scale = 0;
      quantize_token(kernels_, x_.dtype, values, cols_, qtype_, &scale, codes);
      scales_[static_cast<std::size_t>(r)] = load_float(&scale, x_.dtype, 0);
    }
  }
}

/// What the codes stand for: dequantized with a scale of one.
void QuantizedRows::decode(const std::uint8_t* codes, std::int64_t rows, void* out) const {
  constexpr std::uint16_t kOne = 0x3f80;
  QuantizeArgs a = elements(DType::bfloat16, qtype_, rows * cols_, &kOne);
  a.codes_in = codes;
  a.out = out;
  kernels_.dequantize_symmetric(a, 0, 1);
}

}  // namespace quanto
