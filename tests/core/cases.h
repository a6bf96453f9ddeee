// Random matmul cases: weights, scales and activations of any type, at any byte offset, up to the end of a page.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "float_io.h"
#include "quanto/float8.h"
#include "quanto/matmul.h"
#include "quanto/pack.h"
#include "quanto/qtype.h"

namespace quanto::testing {

/// Bytes that end exactly at a page that may not be touched: reading or writing past them is a fault. While an
/// AtPageStart lives they begin right after such a page instead. With a `gap` they end, or begin, that many bytes from
/// it, so that numbers of several bytes lie at addresses that are no multiples of their size.
class GuardedBytes {
 public:
  explicit GuardedBytes(std::size_t size, std::size_t gap = 0) : size_(size) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    mapped_ = (size + gap + page - 1) / page * page + 2 * page;
    base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) throw std::runtime_error("mmap failed");
    mprotect(base_, page, PROT_NONE);
    mprotect(static_cast<char*>(base_) + mapped_ - page, page, PROT_NONE);
    data_ = static_cast<std::uint8_t*>(base_) + (at_page_start_ ? page + gap : mapped_ - page - gap - size);
  }
  ~GuardedBytes() { munmap(base_, mapped_); }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;

  std::uint8_t* data() { return data_; }
  const std::uint8_t* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  friend class AtPageStart;
  inline static bool at_page_start_ = false;

  std::size_t size_, mapped_;
  void* base_;
  std::uint8_t* data_;
};

/// Has all GuardedBytes made during its lifetime begin after a guarded page.
class AtPageStart {
 public:
  explicit AtPageStart(bool at_start = true) { GuardedBytes::at_page_start_ = at_start; }
  ~AtPageStart() { GuardedBytes::at_page_start_ = false; }
  AtPageStart(const AtPageStart&) = delete;
  AtPageStart& operator=(const AtPageStart&) = delete;
};

struct CaseShape {
  QType qtype;
  DType x_dtype;
  DType scale_dtype;
  std::int64_t M, N, K;
  std::int64_t group_size = 0;
  ShiftKind shift_kind = ShiftKind::floating;  ///< of affine qtypes
  bool per_tensor_scale = false;
  bool with_bias = true;
  std::int64_t extra_stride = 0;  ///< elements between the rows of x
  std::size_t gap = 0;            ///< of all GuardedBytes
};

inline std::string describe(const CaseShape& s) {
  return std::string(qtype_info(s.qtype).name) + " x " + std::string(dtype_name(s.x_dtype)) + " scale " +
         std::string(dtype_name(s.scale_dtype)) + " M=" + std::to_string(s.M) + " N=" + std::to_string(s.N) +
         " K=" + std::to_string(s.K) + " g=" + std::to_string(s.group_size) +
         (s.shift_kind == ShiftKind::integer ? " integer shift" : "") + (s.per_tensor_scale ? " per-tensor" : "") +
         (s.with_bias ? " bias" : "") + " stride+" + std::to_string(s.extra_stride);
}

/// The buffers of one matmul, filled with random values.
class MatmulCase {
 public:
  explicit MatmulCase(const CaseShape& shape, unsigned seed = 1)
      : shape_(shape),
        generator_(seed),
        groups_(shape.group_size == 0 ? 1 : shape.K / shape.group_size),
        x_(bytes(shape.M == 0 ? 0 : (shape.M - 1) * (shape.K + shape.extra_stride) + shape.K, shape.x_dtype),
           shape.gap),
        w_(weight_bytes(), shape.gap),
        scale_(bytes(shape.per_tensor_scale ? 1 : shape.N * groups_, shape.scale_dtype), shape.gap),
        shift_(shape.shift_kind == ShiftKind::integer ? static_cast<std::size_t>(shape.N * groups_)
                                                      : bytes(shape.N * groups_, shape.scale_dtype),
               shape.gap),
        bias_(bytes(shape.N, shape.x_dtype), shape.gap),
        y_(bytes(shape.M * shape.N, shape.x_dtype), shape.gap) {
    fill();
  }

  ActivationView x() const { return {x_.data(), shape_.x_dtype, shape_.M, shape_.K + shape_.extra_stride}; }

  WeightView w() const {
    WeightView w{};
    w.qtype = shape_.qtype;
    w.data = w_.data();
    w.out_features = shape_.N;
    w.in_features = shape_.K;
    w.group_size = is_affine(shape_.qtype) ? shape_.group_size : 0;
    w.scale = scale_.data();
    w.scale_dtype = shape_.scale_dtype;
    w.per_tensor_scale = shape_.per_tensor_scale;
    w.shift = is_affine(shape_.qtype) ? shift_.data() : nullptr;
    w.shift_kind = is_affine(shape_.qtype) ? shape_.shift_kind : ShiftKind::none;
    return w;
  }

  const void* bias() const { return shape_.with_bias ? bias_.data() : nullptr; }
  void* y() { return y_.data(); }
  std::vector<std::uint8_t> result() const { return {y_.data(), y_.data() + y_.size()}; }
  std::uint8_t* x_data() { return x_.data(); }
  std::uint8_t* w_data() { return w_.data(); }
  std::uint8_t* scale_data() { return scale_.data(); }

  void run() {
    std::memset(y_.data(), 0xa5, y_.size());
    matmul(x(), w(), bias(), y());
  }

 private:
  static std::size_t bytes(std::int64_t elements, DType dtype) {
    return static_cast<std::size_t>(elements) * dtype_size(dtype);
  }

  std::size_t weight_bytes() const {
    const int bits = qtype_info(shape_.qtype).bits;
    const std::int64_t rows = shape_.N * groups_;
    const std::int64_t cols = shape_.K / groups_;
    return static_cast<std::size_t>((bits == 8 ? rows : packed_rows(rows, bits)) * cols);
  }

  void fill_floats(GuardedBytes& out, DType dtype, float low, float high) {
    std::uniform_real_distribution<float> uniform(low, high);
    const std::size_t count = out.size() / dtype_size(dtype);
    for (std::size_t i = 0; i < count; ++i) {
      store_float(out.data(), dtype, static_cast<std::int64_t>(i), uniform(generator_));
    }
  }

  void fill() {
    fill_floats(x_, shape_.x_dtype, -2.0f, 2.0f);
    for (std::size_t i = 0; i < w_.size(); ++i) {
      std::uint8_t code = static_cast<std::uint8_t>(generator_());
      while (qtype_info(shape_.qtype).is_floating_point && !std::isfinite(float8_decode(shape_.qtype, code))) ++code;
      w_.data()[i] = code;
    }
    fill_floats(scale_, shape_.scale_dtype, 0.001f, 0.02f);
    if (shape_.shift_kind == ShiftKind::integer) {
      for (std::size_t i = 0; i < shift_.size(); ++i) {
        shift_.data()[i] = static_cast<std::uint8_t>(generator_() % (1u << qtype_info(shape_.qtype).bits));
      }
    } else {
      fill_floats(shift_, shape_.scale_dtype, -0.1f, 0.1f);
    }
    fill_floats(bias_, shape_.x_dtype, -1.0f, 1.0f);
  }

  CaseShape shape_;
  std::mt19937 generator_;
  std::int64_t groups_;
  GuardedBytes x_, w_, scale_, shift_, bias_, y_;
};

/// A matmul of activations given as codes: the weight of a MatmulCase, whose x_dtype is that of y, with codes.
class CodesCase {
 public:
  CodesCase(QType x_qtype, const CaseShape& shape, bool per_row_scale, unsigned seed = 1)
      : shape_(shape),
        x_qtype_(x_qtype),
        per_row_scale_(per_row_scale),
        generator_(seed),
        weight_(shape, seed + 1),
        x_(shape.M == 0 ? 0 : static_cast<std::size_t>((shape.M - 1) * (shape.K + shape.extra_stride) + shape.K),
           shape.gap),
        scale_(static_cast<std::size_t>(per_row_scale ? shape.M : 1) * dtype_size(shape.scale_dtype), shape.gap) {
    for (std::size_t i = 0; i < x_.size(); ++i) x_.data()[i] = finite_code(x_qtype);
    // Codes of e5m2 reach 57344, whose products with each other float16 does not hold.
    const float unit = x_qtype == QType::qfloat8_e5m2 ? 0x1p-8f : 1.0f;
    std::uniform_real_distribution<float> uniform(0.01f * unit, 0.05f * unit);
    for (std::int64_t i = 0; i < (per_row_scale ? shape.M : 1); ++i) {
      store_float(scale_.data(), shape.scale_dtype, i, uniform(generator_));
    }
  }

  CodesView x() const {
    return {x_.data(),     x_qtype_,           shape_.M,      shape_.K + shape_.extra_stride,
            scale_.data(), shape_.scale_dtype, per_row_scale_};
  }
  WeightView w() const { return weight_.w(); }
  const void* bias() const { return weight_.bias(); }
  void* y() { return weight_.y(); }
  DType dtype() const { return shape_.x_dtype; }
  std::vector<std::uint8_t> result() const { return weight_.result(); }
  std::uint8_t* x_data() { return x_.data(); }
  std::uint8_t* x_scale_data() { return scale_.data(); }
  MatmulCase& weight() { return weight_; }

  void run() {
    std::memset(y(), 0xa5, result().size());
    matmul_codes(x(), w(), bias(), dtype(), y());
  }

 private:
  std::uint8_t finite_code(QType qtype) {
    for (;;) {
      // Every eighth code is the lowest one, which is where integer kernels overflow.
      const auto code = static_cast<std::uint8_t>(generator_() % 8 == 0 ? 0x80 : generator_());
      if (!qtype_info(qtype).is_floating_point || std::isfinite(float8_decode(qtype, code))) return code;
    }
  }

  CaseShape shape_;
  QType x_qtype_;
  bool per_row_scale_;
  std::mt19937 generator_;
  MatmulCase weight_;
  GuardedBytes x_, scale_;
};

}  // namespace quanto::testing
