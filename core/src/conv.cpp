#include "quanto/conv.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "buffer.h"
#include "check.h"
#include "planes.h"
#include "quanto/parallel.h"

namespace quanto {
namespace {

using Index = std::int64_t;

// A block has rows for about this many bytes of patches, and at least as many as share the decoding of a panel.
constexpr Index kPatchBytes = Index{4} << 20;
constexpr Index kFewestPositions = 512;
constexpr Index kTile = 32;           // positions copied together, so that the rows they share stay in the L1 cache
constexpr Index kRunsTogether = 192;  // runs of neighbouring elements that a tile copies before it moves on
constexpr Index kGrain = 1 << 14;     // elements that are worth a thread

template <class T>
void copy_elements(const T* from, Index count, T* to) {
  std::memcpy(to, from, static_cast<std::size_t>(count) * sizeof(T));
}

void check_padding(const ConvAxis& axis, PaddingMode mode, const char* what) {
  const Index largest = std::max(axis.pad_before, axis.pad_after);
  const Index allowed = mode == PaddingMode::reflect ? axis.size - 1 : axis.size;
  if (axis.pad_before < 0 || axis.pad_after < 0) {
    fail("conv", "padding", std::to_string(std::min(axis.pad_before, axis.pad_after)), "0 or more");
  }
  if ((mode == PaddingMode::reflect || mode == PaddingMode::circular) && largest > allowed) {
    fail("conv", "padding", std::to_string(largest),
         "at most " + std::to_string(allowed) + " for this mode and the input's " + what);
  }
}

void check_axis(const ConvAxis& axis, PaddingMode mode, const char* what) {
  const auto check = [&](const char* name, Index value, Index least) {
    if (value < least) fail("conv", name, std::to_string(value), std::to_string(least) + " or more");
  };
  check(what, axis.size, 0);
  check("kernel_size", axis.kernel, 1);
  check("stride", axis.stride, 1);
  check("dilation", axis.dilation, 1);
  check_padding(axis, mode, what);
  if (axis.size == 0 || axis.padded() < axis.extent()) {
    fail("conv", what, std::to_string(axis.padded()) + " with its padding",
         "at least the " + std::to_string(axis.extent()) + " that the kernel spans");
  }
}

/// For each coordinate of the padded dimension the one of the input, or -1 for a zero.
std::vector<Index> source_coordinates(const ConvAxis& axis, PaddingMode mode) {
  std::vector<Index> source(static_cast<std::size_t>(axis.padded()));
  const Index last = axis.size - 1;
  for (Index j = 0; j < axis.padded(); ++j) {
    Index i = j - axis.pad_before;
    if (i < 0 || i > last) {
      switch (mode) {
        case PaddingMode::zeros:
          i = -1;
          break;
        case PaddingMode::reflect:
          i = i < 0 ? -i : 2 * last - i;
          break;
        case PaddingMode::replicate:
          i = i < 0 ? 0 : last;
          break;
        case PaddingMode::circular:
          i = i < 0 ? i + axis.size : i - axis.size;
          break;
      }
    }
    source[static_cast<std::size_t>(j)] = i;
  }
  return source;
}

/// Elements between neighbours of an image tensor.
struct ImageStrides {
  Index image, channel, row, col;

  ImageStrides(ImageLayout layout, Index channels, Index height, Index width) : image(channels * height * width) {
    const bool planar = layout == ImageLayout::planar;
    channel = planar ? height * width : 1;
    row = planar ? width : width * channels;
    col = planar ? 1 : channels;
  }
};

/// Copies padded rows of images into planes, channel by channel. Columns may be sorted by phases: first all multiples
/// of `phases`, then those that are one more, and so on, so that what outputs of a strided convolution see are
/// neighbours.
template <class T>
class PlaneFiller {
 public:
  PlaneFiller(const ConvShape& shape, const ImageView& x, Index phases)
      : shape_(shape),
        phases_(phases),
        phase_width_((shape.width.padded() + phases - 1) / phases),
        x_(static_cast<const T*>(x.data)),
        strides_(x.layout, shape.channels, shape.height.size, shape.width.size),
        rows_(source_coordinates(shape.height, shape.padding_mode)),
        cols_(source_coordinates(shape.width, shape.padding_mode)) {}

  Index row_width() const { return phases_ * phase_width_; }
  /// Where column `col` of the padded image lies in a row.
  Index column(Index col) const { return col % phases_ * phase_width_ + col / phases_; }

  /// Rows [begin, end) of the padded image for `channels` channels from `channel` on, planes `plane` elements apart.
  void fill(Index image, Index channel, Index channels, Index begin, Index end, Index plane, T* planes) const {
    const Index width = row_width();
    std::vector<T> in_order(static_cast<std::size_t>(phases_ == 1 ? 0 : width));
    // A row at a time of all of them: channels that are last lie in one cache line.
    for (Index j = begin; j < end; ++j) {
      const Index source = rows_[static_cast<std::size_t>(j)];
      for (Index c = 0; c < channels; ++c) {
        T* row = planes + c * plane + (j - begin) * width;
        if (source < 0) {
          std::fill(row, row + width, T{});
        } else {
          const T* from = x_ + image * strides_.image + (channel + c) * strides_.channel + source * strides_.row;
          fill_row(from, phases_ == 1 ? row : in_order.data());
          if (phases_ > 1) sort_by_phases(in_order.data(), row);
        }
      }
    }
  }

 private:
  void fill_row(const T* from, T* row) const {
    const Index before = shape_.width.pad_before, size = shape_.width.size;
    fill_border(from, 0, before, row);
    if (strides_.col == 1) {
      copy_elements(from, size, row + before);
    } else {
      for (Index i = 0; i < size; ++i) copy_elements(from + i * strides_.col, 1, row + before + i);
    }
    fill_border(from, before + size, shape_.width.padded(), row);
  }

  void sort_by_phases(const T* in, T* row) const {
    for (Index phase = 0; phase < phases_; ++phase, row += phase_width_) {
      for (Index i = 0; i < phase_width_; ++i) row[i] = in[i * phases_ + phase];
    }
  }

  void fill_border(const T* from, Index begin, Index end, T* row) const {
    for (Index i = begin; i < end; ++i) {
      const Index source = cols_[static_cast<std::size_t>(i)];
      source < 0 ? static_cast<void>(row[i] = T{}) : copy_elements(from + source * strides_.col, 1, row + i);
    }
  }

  const ConvShape& shape_;
  Index phases_, phase_width_;
  const T* x_;
  ImageStrides strides_;
  std::vector<Index> rows_, cols_;
};

/// Runs of kLength elements, the first at from + offsets[0], ... one behind the other.
template <class T, int kLength>
void copy_runs(const T* from, const Index* offsets, Index runs, T* to) {
  // Three elements are moved as four, the last of which the next run replaces.
  constexpr int kMoved = kLength + (kLength == 3 ? 1 : 0);
  for (Index r = 0; r + 1 < runs; ++r) copy_elements<T>(from + offsets[r], kMoved, to + r * kLength);
  copy_elements<T>(from + offsets[runs - 1], kLength, to + (runs - 1) * kLength);
}

template <class T>
void copy_runs(Index length, const T* from, const Index* offsets, Index runs, T* to) {
  switch (length) {
    case 1:
      return copy_runs<T, 1>(from, offsets, runs, to);
    case 2:
      return copy_runs<T, 2>(from, offsets, runs, to);
    case 3:
      return copy_runs<T, 3>(from, offsets, runs, to);
    case 4:
      return copy_runs<T, 4>(from, offsets, runs, to);
    case 5:
      return copy_runs<T, 5>(from, offsets, runs, to);
    case 7:
      return copy_runs<T, 7>(from, offsets, runs, to);
    default:
      for (Index r = 0; r < runs; ++r) copy_elements<T>(from + offsets[r], length, to + r * length);
  }
}

/// Consecutive rows of outputs, counted through all images.
struct Block {
  Index begin, end;
};

/// The part of a block that lies in one image: output rows [row, row + rows).
struct Segment {
  Index image, row, rows;
};

/// The planes that patches are read from: those of the input as it is, or padded copies of the rows that a block needs.
template <class T>
class InputPlanes {
 public:
  /// `phases`: of the columns of copies (PlaneFiller); `as_it_is`: the input has no padding, and its channels are
  /// first.
  InputPlanes(const ConvShape& shape, const ImageView& x, Index phases, bool as_it_is)
      : shape_(shape),
        filler_(shape, x, phases),
        x_(static_cast<const T*>(x.data)),
        copied_(!as_it_is),
        out_height_(shape.height.outputs()),
        row_stride_(as_it_is ? shape.width.size : filler_.row_width()) {}

  /// Fills the rows that the block needs.
  void prepare(const Block& block) {
    block_ = block;
    const Index segments = (block.end - 1) / out_height_ - block.begin / out_height_ + 1;
    const Index rows = copied_ ? input_rows(std::min(block.end - block.begin, out_height_)) : shape_.height.size;
    plane_ = rows * row_stride_;
    image_stride_ = shape_.channels * plane_;
    if (!copied_) return;
    const Index elements = segments * image_stride_ + 2 * kAround;
    if (elements > capacity_) {
      planes_ = allocate(static_cast<std::size_t>(elements) * sizeof(T));
      capacity_ = elements;
    }
    constexpr Index kTogether = 64 / sizeof(T);  // channels of a cache line
    const Index parts = (shape_.channels + kTogether - 1) / kTogether;
    const Index grain = std::max<Index>(1, kGrain / (plane_ * std::min(kTogether, shape_.channels)));
    parallel_for(segments * parts, grain, [&](Index begin, Index end) {
      for (Index unit = begin; unit < end; ++unit) {
        const Segment s = segment(unit / parts);
        const Index channel = unit % parts * kTogether, first = s.row * shape_.height.stride;
        filler_.fill(s.image, channel, std::min(kTogether, shape_.channels - channel), first,
                     first + input_rows(s.rows), plane_, copies() + unit / parts * image_stride_ + channel * plane_);
      }
    });
  }

  bool copied() const { return copied_; }
  const T* data() const { return copied_ ? copies() : x_; }

  /// From data() to the top left element of what the first output of row `row` sees, counted through all images.
  Index row_offset(Index row) const {
    const Index image = row / out_height_, first = block_.begin / out_height_;
    if (!copied_) return image * image_stride_ + row % out_height_ * shape_.height.stride * row_stride_;
    const Index local = row % out_height_ - (image == first ? block_.begin % out_height_ : 0);
    return (image - first) * image_stride_ + local * shape_.height.stride * row_stride_;
  }

  /// From there to the element of a channel that a tap sees.
  Index tap_offset(Index channel, Index i, Index j) const {
    return channel * plane_ + i * shape_.height.dilation * row_stride_ + filler_.column(j * shape_.width.dilation);
  }

 private:
  static constexpr Index kAround = kernels::Planes::kAround;

  Segment segment(Index number) const {
    const Index image = block_.begin / out_height_ + number;
    const Index row = number == 0 ? block_.begin % out_height_ : 0;
    return {image, row, std::min(out_height_, block_.end - image * out_height_) - row};
  }
  Index input_rows(Index rows) const { return (rows - 1) * shape_.height.stride + shape_.height.extent(); }
  T* copies() const { return static_cast<T*>(planes_.get()) + kAround; }

  const ConvShape& shape_;
  PlaneFiller<T> filler_;
  const T* x_;
  bool copied_;
  Index out_height_, row_stride_;
  Index plane_ = 0, image_stride_ = 0;
  Block block_{};
  Buffer planes_;
  Index capacity_ = 0;
};

/// Whether the input is what taps see: planes without padding.
bool has_planes(const ConvShape& s, const ImageView& x) {
  return x.layout == ImageLayout::planar && s.height.padded() == s.height.size && s.width.padded() == s.width.size;
}

Index depth_of(const ConvShape& s) { return s.channels * s.height.kernel * s.width.kernel; }

/// Patches as a matrix, for kernels that do not take planes.
template <class T>
class Patches {
 public:
  Patches(const ConvShape& shape, const ImageView& x)
      : shape_(shape),
        planes_(shape, x, 1, has_planes(shape, x)),
        out_width_(shape.width.outputs()),
        length_(shape.width.dilation == 1 ? shape.width.kernel : 1) {}

  /// Copies the patches of a block of output rows into `out`, row-major positions x depth.
  void gather(const Block& block, T* out) {
    planes_.prepare(block);
    set_offsets();
    const Index depth = depth_of(shape_), positions = (block.end - block.begin) * out_width_;
    parallel_for((positions + kTile - 1) / kTile, std::max<Index>(1, kGrain / (kTile * depth)),
                 [&](Index begin, Index end) {
                   for (Index tile = begin; tile < end; ++tile) {
                     gather_tile(block, tile * kTile, std::min((tile + 1) * kTile, positions), out);
                   }
                 });
  }

 private:
  /// Of the runs of a patch.
  void set_offsets() {
    offsets_.clear();
    for (Index c = 0; c < shape_.channels; ++c) {
      for (Index i = 0; i < shape_.height.kernel; ++i) {
        for (Index j = 0; j < shape_.width.kernel; j += length_) offsets_.push_back(planes_.tap_offset(c, i, j));
      }
    }
  }

  void gather_tile(const Block& block, Index begin, Index end, T* out) const {
    const auto all = static_cast<Index>(offsets_.size());
    const Index depth = all * length_;
    for (Index run = 0; run < all; run += kRunsTogether) {
      const Index runs = std::min(kRunsTogether, all - run);
      for (Index p = begin; p < end; ++p) {
        const T* from =
            planes_.data() + planes_.row_offset(block.begin + p / out_width_) + p % out_width_ * shape_.width.stride;
        copy_runs<T>(length_, from, offsets_.data() + run, runs, out + p * depth + run * length_);
      }
    }
  }

  const ConvShape& shape_;
  InputPlanes<T> planes_;
  Index out_width_;
  Index length_;  ///< of a run of neighbouring elements in a patch
  std::vector<Index> offsets_;
};

/// Rows of `channels` elements, of consecutive positions, to planes that are `positions` elements apart.
template <class T>
void transpose(const T* in, Index rows, Index channels, Index positions, T* out) {
  constexpr Index kSide = 32;
  parallel_for((channels + kSide - 1) / kSide, std::max<Index>(1, kGrain / (kSide * rows)),
               [&](Index begin, Index end) {
                 for (Index p0 = 0; p0 < rows; p0 += kSide) {
                   for (Index c = begin * kSide; c < std::min(end * kSide, channels); ++c) {
                     for (Index p = p0; p < std::min(p0 + kSide, rows); ++p)
                       out[c * positions + p] = in[p * channels + c];
                   }
                 }
               });
}

/// A block's results, rows of channels, to planar images.
template <class T>
void store_planar(const ConvShape& shape, const Block& block, Index channels, const T* in, T* y) {
  const Index height = shape.height.outputs(), width = shape.width.outputs(), positions = height * width;
  for (Index row = block.begin; row < block.end;) {
    const Index image = row / height, rows = std::min(block.end, (image + 1) * height) - row;
    transpose(in + (row - block.begin) * width * channels, rows * width, channels, positions,
              y + image * channels * positions + row % height * width);
    row += rows;
  }
}

/// Whether the input, channels last, is the matrix of patches already.
bool is_matrix(const ConvShape& s, ImageLayout layout) {
  const auto plain = [](const ConvAxis& a) { return a.kernel == 1 && a.stride == 1 && a.padded() == a.size; };
  return layout == ImageLayout::channels_last && plain(s.height) && plain(s.width);
}

/// One convolution, block by block.
template <class T>
class Convolution {
 public:
  Convolution(const ConvShape& shape, const ImageView& x, const WeightView& w, const void* bias, T* y)
      : shape_(shape),
        x_(x),
        w_(w),
        bias_(bias),
        y_(y),
        planar_(x.layout == ImageLayout::planar),
        width_(shape.width.outputs()),
        planes_(shape, x, shape.width.stride, has_planes(shape, x) && shape.width.stride == 1 && is_single_tap()) {}

  void run() {
    const Index rows = shape_.batch * shape_.height.outputs();
    const Index depth = depth_of(shape_);
    const Index wanted = std::max(kFewestPositions, kPatchBytes / (depth * static_cast<Index>(sizeof(T))));
    const Index most = std::max<Index>(1, wanted / width_), blocks = (rows + most - 1) / most;
    step_ = (rows + blocks - 1) / blocks;
    for (Index row = 0; row < rows; row += step_) {
      const Block block{row, std::min(row + step_, rows)};
      if (!multiply_planes(block)) multiply_patches(block);
    }
  }

 private:
  bool is_single_tap() const { return shape_.height.kernel == 1 && shape_.width.kernel == 1; }
  Index positions(const Block& block) const { return (block.end - block.begin) * width_; }

  /// By a kernel that takes planes. False if there is none for this block.
  bool multiply_planes(const Block& block) {
    if (!matmul_takes_planes(x_.dtype, positions(block), w_)) return false;
    planes_.prepare(block);
    set_offsets(block);
    const Index outputs = shape_.outputs();
    const kernels::Planes planes{
        width_, run_offsets_.data(), tap_offsets_.data(), planes_.copied(), planar_ ? run_outputs_.data() : nullptr,
        outputs};
    T* y = planar_ ? y_ : y_ + block.begin * width_ * w_.out_features;
    return matmul_planes(planes_.data(), x_.dtype, positions(block), planes, w_, bias_, y, workspace_);
  }

  void set_offsets(const Block& block) {
    run_offsets_.clear();
    run_outputs_.clear();
    tap_offsets_.clear();
    const Index height = shape_.height.outputs(), outputs = shape_.outputs();
    for (Index row = block.begin; row < block.end; ++row) {
      run_offsets_.push_back(planes_.row_offset(row));
      run_outputs_.push_back(row / height * w_.out_features * outputs + row % height * width_);
    }
    for (Index c = 0; c < shape_.channels; ++c) {
      for (Index i = 0; i < shape_.height.kernel; ++i) {
        for (Index j = 0; j < shape_.width.kernel; ++j) tap_offsets_.push_back(planes_.tap_offset(c, i, j));
      }
    }
  }

  void multiply_patches(const Block& block) {
    const Index K = depth_of(shape_), N = w_.out_features;
    if (!patches_.has_value()) {
      patches_.emplace(shape_, x_);
      gathered_ = allocate(static_cast<std::size_t>(step_ * width_ * K) * sizeof(T));
      products_ = allocate(planar_ ? static_cast<std::size_t>(step_ * width_ * N) * sizeof(T) : 0);
    }
    auto* matrix = static_cast<T*>(gathered_.get());
    patches_->gather(block, matrix);
    T* out = planar_ ? static_cast<T*>(products_.get()) : y_ + block.begin * width_ * N;
    matmul({matrix, x_.dtype, positions(block), K}, w_, bias_, out);
    if (planar_) store_planar(shape_, block, N, out, y_);
  }

  const ConvShape& shape_;
  const ImageView& x_;
  const WeightView& w_;
  const void* bias_;
  T* y_;
  bool planar_;
  Index width_, step_ = 0;
  InputPlanes<T> planes_;
  std::vector<Index> run_offsets_, run_outputs_, tap_offsets_;
  GrowingBuffer workspace_;            ///< of multiply_planes
  std::optional<Patches<T>> patches_;  ///< of multiply_patches, as the next
  Buffer gathered_, products_;
};

}  // namespace

void check_conv(const ConvShape& s, const WeightView& w) {
  check_axis(s.height, s.padding_mode, "height");
  check_axis(s.width, s.padding_mode, "width");
  check_shape("conv", s.batch, s.channels);
  if (s.channels == 0) fail("conv", "channels", "0", "1 or more");
  const Index K = s.channels * s.height.kernel * s.width.kernel;
  if (w.in_features != K) {
    fail("conv", "weight", std::to_string(w.in_features) + " elements per filter",
         std::to_string(K) + " for an input of " + std::to_string(s.channels) + " channels");
  }
  check_shape("conv", s.channels, s.height.padded() * s.width.padded());
  check_shape("conv", s.batch * s.channels, s.height.size * s.width.size);
  check_shape("conv", s.batch * w.out_features, s.outputs());
}

void conv(const ConvShape& shape, const ImageView& x, const WeightView& w, const void* bias, void* y) {
  check_conv(shape, w);
  if (shape.batch == 0 || w.out_features == 0) return;
  if (is_matrix(shape, x.layout)) {
    return matmul({x.data, x.dtype, shape.batch * shape.outputs(), shape.channels}, w, bias, y);
  }
  if (x.dtype == DType::float32) return Convolution(shape, x, w, bias, static_cast<float*>(y)).run();
  Convolution(shape, x, w, bias, static_cast<std::uint16_t*>(y)).run();
}

}  // namespace quanto
