#include <algorithm>

#include "check.h"
#include "kernels/registry.h"
#include "quantized_rows.h"
#include "quanto/parallel.h"
#include "quanto/qtype.h"
#include "quanto/quantize.h"

namespace quanto {
namespace {

constexpr std::int64_t kGrain = 1 << 14;  // elements that are worth a thread: some 5 us

}  // namespace

void quantize_per_token(const RowsView& base, QType qtype, void* scale, void* codes) {
  check_symmetric("quantize_per_token", qtype);
  check_shape("quantize_per_token", base.rows, std::max(base.cols, base.row_stride));
  const kernels::QuantizeKernels& kernels = kernels::quantize_kernels();
  const auto size = static_cast<std::int64_t>(dtype_size(base.dtype));
  // A row is scanned and quantized while it is in the cache.
  parallel_for(base.rows, std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, base.cols)),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t r = begin; r < end; ++r) {
                   quantize_token(kernels, base.dtype, static_cast<const char*>(base.data) + r * base.row_stride * size,
                                  base.cols, qtype, static_cast<char*>(scale) + r * size,
                                  static_cast<std::uint8_t*>(codes) + r * base.cols);
                 }
               });
}

}  // namespace quanto
