#include <algorithm>

#include "check.h"
#include "float_io.h"
#include "kernels/registry.h"
#include "quanto/parallel.h"
#include "quanto/qtype.h"
#include "quanto/quantize.h"
#include "symmetric_scale.h"

namespace quanto {
namespace {

using kernels::QuantizeArgs;
using kernels::QuantizeKernels;

constexpr std::int64_t kGrain = 1 << 14;  // elements that are worth a thread: some 5 us

/// A row is scanned and quantized while it is in the cache.
struct PerToken {
  const QuantizeKernels& kernels;
  RowsView base;
  QType qtype;
  float qmax;
  void* scale;
  std::uint8_t* codes;

  void quantize_row(std::int64_t r) const {
    const auto size = static_cast<std::int64_t>(dtype_size(base.dtype));
    const char* values = static_cast<const char*>(base.data) + r * base.row_stride * size;
    std::uint32_t largest = 0;
    kernels.absmax(base.dtype, values, 1, base.cols, &largest);
    store_float(scale, base.dtype, r, symmetric_scale(base.dtype, qmax, largest));
    QuantizeArgs a{};
    a.values = values;
    a.codes_out = codes + r * base.cols;
    a.rows = 1;
    a.cols = base.cols;
    a.dtype = base.dtype;
    a.qtype = qtype;
    a.axis = Axis::tensor;
    a.scale = static_cast<const char*>(scale) + r * size;
    kernels.quantize_symmetric(a, 0, 1);
  }
};

}  // namespace

void quantize_per_token(const RowsView& base, QType qtype, void* scale, void* codes) {
  check_symmetric("quantize_per_token", qtype);
  check_shape("quantize_per_token", base.rows, std::max(base.cols, base.row_stride));
  const PerToken token{kernels::quantize_kernels(),      base, qtype, static_cast<float>(qtype_info(qtype).qmax), scale,
                       static_cast<std::uint8_t*>(codes)};
  parallel_for(base.rows, std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, base.cols)),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t r = begin; r < end; ++r) token.quantize_row(r);
               });
}

}  // namespace quanto
