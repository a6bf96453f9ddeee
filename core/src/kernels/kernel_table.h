// What an instruction set offers: one table of kernels, each a few plain function pointers.
//
// This header and everything it includes is compiled into the per-ISA units. It holds plain data only: no templates, no
// inline functions with external linkage, nothing of std, so that no code built with an ISA's flags can be shared with
// the rest of the program by the linker.
#pragma once

#include <cstddef>
#include <cstdint>

#include "quanto/types.h"

namespace quanto::kernels {

/// Activations that lie in planes, where those of one k and of consecutive rows of the matmul are neighbours: a
/// convolution's, whose rows are the output positions. Rows come in runs; x[run_offsets[r] + i + k_offsets[k]] is the
/// k-th activation of the i-th row of run r.
struct Planes {
  static constexpr std::int64_t kAround = 16;

  std::int64_t run;                 ///< rows in each run
  const std::int64_t* run_offsets;  ///< M / run elements
  const std::int64_t* k_offsets;    ///< K elements
  bool readable_around;             ///< kAround elements before and after each run may be read
  /// Where the results of each run lie, if y consists of planes too: y[run_outputs[r] + i + n * channel_stride]. Null:
  /// y is M x N as ever.
  const std::int64_t* run_outputs;
  std::int64_t channel_stride;
};

/// One matmul call, checked and completed. Shapes as in matmul.h; M, N, K > 0.
struct MatmulArgs {
  const void* x;          ///< M rows of K activations: floats, or int8 codes
  std::int64_t x_stride;  ///< elements between rows of x
  DType x_dtype;          ///< of x, if floats
  bool x_is_int8;
  const Planes* planes;  ///< how x lies if not in rows, else null; only for kernels that take planes
  QType qtype;
  const std::uint8_t* w;  ///< codes or packed codes
  const void* scale;
  const void* shift;  ///< null for 8-bit qtypes
  DType scale_dtype;  ///< of scale and of a floating shift
  ShiftKind shift_kind;
  const float* row_scale;       ///< what the sums of a row are multiplied by, or null
  std::int64_t row_scale_step;  ///< from one row's to the next: 1, or 0 for a single one
  const void* bias;             ///< N elements or null
  void* y;                      ///< contiguous M x N
  DType y_dtype;                ///< of bias and y
  std::int64_t M, N, K;
  std::int64_t group_size;   ///< codes that share a scale: K when there is one scale per channel
  std::int64_t groups;       ///< K / group_size
  std::int64_t packed_rows;  ///< rows of the packed matrix of group_size columns (affine), else N
  std::int64_t scale_step;   ///< scales from one (channel, group) to the next: 1, or 0 for a single scale
  std::int64_t threads;      ///< that share the units, for which kernels may cut them; results do not depend on it
  Cores cores;               ///< that kernels are chosen for, and whose way of reading memory they take
  bool special_values;       ///< x holds values that the kernel chosen first does not serve
  void* workspace;           ///< MatmulKernel::workspace_bytes, 64-byte aligned, shared by all threads
};

/// Codes that share a scale of which an int32 holds every sum of products: 2^17 times (-128)^2 is one too many.
constexpr std::int64_t kMaxInt8Group = (std::int64_t{1} << 17) - 1;

/// Rows that kernels which take some rows of x at a time prepare without the others: a multiple of their lanes.
constexpr std::int64_t kPreparedTogether = 16;

/// One way to multiply. `run` computes units [begin, end) of `unit_count`; units write disjoint parts of y, and the
/// bytes they write do not depend on the partition, so any thread may take any unit.
struct MatmulKernel {
  const char* name;                                   ///< the regime: "few_rows", "pair_lanes", "panel", "rows", ...
  bool (*supports)(const MatmulArgs&);                ///< whether it serves this shape; decides the seams in M
  std::size_t (*workspace_bytes)(const MatmulArgs&);  ///< for prepared activations
  void (*prepare)(const MatmulArgs&, std::int64_t m_begin, std::int64_t m_end);  ///< fills the workspace by rows of x
  /// Asked after prepare(): whether it serves the values of x; null for all. The one that is chosen with
  /// special_values set runs where not.
  bool (*serves_values)(const MatmulArgs&);
  std::size_t (*scratch_bytes)(const MatmulArgs&);  ///< per thread, 64-byte aligned
  std::int64_t (*unit_count)(const MatmulArgs&);
  void (*run)(const MatmulArgs&, void* scratch, std::int64_t begin, std::int64_t end);
  bool takes_planes = false;  ///< whether activations may lie in planes
  /// Whether only prepare() reads x, and of rows from a multiple of kPreparedTogether on no others.
  bool prepares_blocks = false;
};

/// Kernels of one (qtype, activation type), best first; `supports` of the first that says yes decides.
struct MatmulKernels {
  const MatmulKernel* list;
  int count;
};

/// One instruction set. Cells that it leaves empty, and shapes that its kernels do not support, are served by the next
/// less capable instruction set; the portable one serves everything.
struct KernelTable {
  Isa isa;
  MatmulKernels matmul[kQTypeCount][kDTypeCount];
  /// Those of int8 activations: integer weights only, of groups that int32 sums hold (kMaxInt8Group).
  MatmulKernels int8[kQTypeCount];
};

}  // namespace quanto::kernels

// Each unit exports its table under this name and nothing else.
extern "C" {
extern const quanto::kernels::KernelTable quanto_kernels_portable;
extern const quanto::kernels::KernelTable quanto_kernels_avx2;
extern const quanto::kernels::KernelTable quanto_kernels_avx512;
extern const quanto::kernels::KernelTable quanto_kernels_avx512_bf16;
extern const quanto::kernels::KernelTable quanto_kernels_avx512_amx;
}
