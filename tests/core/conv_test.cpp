#include "quanto/conv.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "each_isa.h"
#include "matrix.h"
#include "oracle.h"
#include "planes.h"
#include "quanto/error.h"
#include "quanto/isa.h"
#include "quanto/parallel.h"

namespace quanto::testing {
namespace {

/// The coordinate that padded coordinate i stands for, or -1 for a zero, one step at a time.
std::int64_t source(std::int64_t i, std::int64_t size, PaddingMode mode) {
  if (i >= 0 && i < size) return i;
  switch (mode) {
    case PaddingMode::reflect:
      return i < 0 ? -i : size - 2 - (i - size);
    case PaddingMode::replicate:
      return i < 0 ? 0 : size - 1;
    case PaddingMode::circular:
      return (i + size) % size;
    default:
      return -1;
  }
}

struct ConvCase {
  ConvShape shape;
  std::int64_t filters;
  std::string name;

  std::int64_t depth() const { return shape.channels * shape.height.kernel * shape.width.kernel; }
};

std::vector<ConvCase> cases() {
  const auto zeros = PaddingMode::zeros;
  return {
      {{2, 3, {5, 3, 1, 1, 1, 1}, {7, 3, 1, 1, 1, 1}, zeros}, 5, "3x3"},
      {{1, 4, {9, 2, 2, 3, 0, 1}, {8, 3, 3, 1, 2, 0}, zeros}, 3, "strides and dilations"},
      {{3, 32, {4, 1}, {5, 1}, zeros}, 9, "1x1"},
      {{1, 2, {6, 3, 1, 1, 2, 2}, {6, 5, 1, 1, 3, 1}, PaddingMode::reflect}, 4, "reflect"},
      {{1, 2, {3, 3, 1, 1, 4, 2}, {4, 2, 1, 1, 3, 3}, PaddingMode::replicate}, 4, "replicate"},
      {{1, 2, {3, 3, 1, 1, 3, 2}, {4, 3, 1, 1, 4, 0}, PaddingMode::circular}, 4, "circular"},
      {{40, 8, {5, 3, 1, 1, 1, 1}, {7, 3, 1, 1, 1, 1}, zeros}, 3, "many images in a block"},
      {{2, 33, {37, 3, 1, 1, 1, 1}, {41, 3, 1, 1, 1, 1}, zeros}, 2, "many blocks in an image"},
      {{2, 6, {1, 1}, {19, 7, 2, 2, 6, 6}, zeros}, 5, "one dimension"},
  };
}

/// As many positions as kernels want that read activations from planes, in runs of all lengths beside those of vectors.
std::vector<ConvCase> cases_of_many_positions() {
  const auto zeros = PaddingMode::zeros;
  return {
      {{1, 5, {14, 3, 1, 1, 1, 1}, {14, 3, 1, 1, 1, 1}, zeros}, 50, "runs of 14"},
      {{2, 3, {9, 3, 1, 1, 1, 1}, {33, 3, 1, 1, 1, 1}, zeros}, 13, "runs of 33"},
      {{70, 7, {3, 3}, {3, 3}, zeros}, 7, "runs of 1"},
      {{5, 32, {5, 3, 1, 1, 1, 1}, {5, 3, 1, 1, 1, 1}, zeros}, 6, "runs of 5 in groups"},
      {{3, 3, {31, 7, 2, 1, 3, 3}, {29, 7, 2, 1, 3, 3}, zeros}, 16, "stride 2"},
      {{2, 2, {20, 4, 1, 3, 2, 0}, {40, 5, 3, 2, 4, 1}, zeros}, 8, "stride 3, dilation 2"},
      {{2, 4, {12, 3, 2, 1, 1, 2}, {12, 2, 1, 4, 3, 1}, PaddingMode::reflect}, 9, "reflect"},
      {{2, 4, {12, 3, 1, 1, 2, 2}, {13, 3, 2, 1, 1, 1}, PaddingMode::replicate}, 9, "replicate"},
      {{2, 4, {12, 3, 1, 1, 2, 2}, {13, 3, 2, 1, 1, 1}, PaddingMode::circular}, 9, "circular"},
      {{3, 5, {1, 1}, {101, 3, 2, 1, 1, 1}, zeros}, 10, "one dimension"},
      {{2, 16, {8, 1}, {16, 1}, zeros}, 20, "1x1"},
      {{1, 16, {16, 1, 2}, {8, 1}, zeros}, 20, "1x1, every other row"},
      {{2, 16, {8, 1}, {16, 1, 2}, zeros}, 20, "1x1, every other column"},
      {{1, 64, {37, 3, 1, 1, 1, 1}, {41, 3, 1, 1, 1, 1}, zeros}, 100, "several blocks"},
  };
}

/// The patches that the outputs see, gathered element by element.
Floats patches(const ConvCase& c, const Floats& x, ImageLayout layout) {
  const ConvShape& s = c.shape;
  Floats rows(x.dtype(), s.batch * s.outputs() * c.depth());
  std::int64_t at = 0;
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t p = 0; p < s.outputs(); ++p) {
      const std::int64_t oh = p / s.width.outputs(), ow = p % s.width.outputs();
      for (std::int64_t k = 0; k < c.depth(); ++k) {
        const std::int64_t kw = k % s.width.kernel, kh = k / s.width.kernel % s.height.kernel;
        const std::int64_t channel = k / (s.width.kernel * s.height.kernel);
        const auto in = [&](const ConvAxis& a, std::int64_t o, std::int64_t tap) {
          return source(o * a.stride + tap * a.dilation - a.pad_before, a.size, s.padding_mode);
        };
        const std::int64_t h = in(s.height, oh, kh), w = in(s.width, ow, kw);
        const std::int64_t planar = ((b * s.channels + channel) * s.height.size + h) * s.width.size + w;
        const std::int64_t last = ((b * s.height.size + h) * s.width.size + w) * s.channels + channel;
        rows.set(at++, h < 0 || w < 0 ? 0.0f : x.at(layout == ImageLayout::planar ? planar : last));
      }
    }
  }
  return rows;
}

MatmulCase weight_of(const ConvCase& c, QType qtype, DType dtype) {
  const bool grouped = c.depth() % 32 == 0 && is_affine(qtype);
  return MatmulCase({qtype, dtype, dtype, 1, c.filters, c.depth(), grouped ? 32 : 0});
}

Floats input_of(const ConvCase& c, DType dtype, std::size_t gap = 0) {
  const ConvShape& s = c.shape;
  Floats x(dtype, s.batch * s.channels * s.height.size * s.width.size, gap);
  fill_normal(x, {s.batch, x.count() / s.batch});
  return x;
}

void expect_matches_oracle(const ConvCase& c, QType qtype, const Floats& x, ImageLayout layout) {
  const ConvShape& s = c.shape;
  const DType dtype = x.dtype();
  const MatmulCase weight = weight_of(c, qtype, dtype);
  const std::int64_t positions = s.outputs(), rows = s.batch * positions;
  Floats y(dtype, rows * c.filters), by_row(dtype, rows * c.filters);
  conv(s, {x.data(), dtype, layout}, weight.w(), weight.bias(), y.data());
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t n = 0; n < c.filters; ++n) {
      const std::int64_t planar = (r / positions * c.filters + n) * positions + r % positions;
      by_row.set(r * c.filters + n, y.at(layout == ImageLayout::planar ? planar : r * c.filters + n));
    }
  }
  const Floats matrix = patches(c, x, layout);
  EXPECT_EQ(check_matmul({matrix.data(), dtype, rows, c.depth()}, weight.w(), weight.bias(), by_row.data()), "")
      << c.name << " " << qtype_info(qtype).name << " " << dtype_name(dtype);
}

TEST(Conv, MatchesTheOracle) {
  for_each_isa([] {
    for (const ConvCase& c : cases()) {
      for (const DType dtype : kDTypes) {
        for (const ImageLayout layout : {ImageLayout::planar, ImageLayout::channels_last}) {
          expect_matches_oracle(c, QType::qint8, input_of(c, dtype), layout);
          expect_matches_oracle(c, QType::qint4, input_of(c, dtype), layout);
        }
      }
    }
    for (const QType qtype : {QType::qint2, QType::qfloat8_e4m3fn, QType::qfloat8_e4m3fnuz, QType::qfloat8_e5m2}) {
      const ConvCase c = cases()[0];
      expect_matches_oracle(c, qtype, input_of(c, DType::bfloat16), ImageLayout::planar);
    }
  });
}

TEST(Conv, MatchesTheOracleForManyPositions) {
  for_each_isa([] {
    for (const ConvCase& c : cases_of_many_positions()) {
      for (const DType dtype : kDTypes) {
        for (const ImageLayout layout : {ImageLayout::planar, ImageLayout::channels_last}) {
          for (const QType qtype : {QType::qint8, QType::qint4}) {
            // Inputs that begin and end at guarded pages, and some that lie anywhere.
            expect_matches_oracle(c, qtype, input_of(c, dtype, layout == ImageLayout::planar ? 0 : 1), layout);
          }
        }
      }
    }
    for (const QType qtype : {QType::qint2, QType::qfloat8_e4m3fn, QType::qfloat8_e4m3fnuz, QType::qfloat8_e5m2}) {
      const ConvCase c = cases_of_many_positions()[0];
      for (const DType dtype : kDTypes) expect_matches_oracle(c, qtype, input_of(c, dtype, 1), ImageLayout::planar);
    }
  });
}

TEST(Conv, ReadsActivationsOfManyPositionsFromPlanes) {
  for_each_isa([] {
    for (const ConvCase& c : cases_of_many_positions()) {
      for (const DType dtype : kDTypes) {
        const MatmulCase weight = weight_of(c, QType::qint8, dtype);
        // AMX has panels of its own, of patches.
        EXPECT_EQ(matmul_takes_planes(dtype, c.shape.batch * c.shape.outputs(), weight.w()),
                  active_isa() != Isa::avx512_amx)
            << c.name << " " << dtype_name(dtype);
      }
    }
  });
}

TEST(Conv, ServesAllMagnitudes) {
  for_each_isa([] {
    const ConvCase many = cases_of_many_positions()[0];
    const ConvCase few{{1, 5, {5, 1}, {5, 1}, PaddingMode::zeros}, 50, "25 positions"};  // decline one after the other
    for (const ConvCase& c : {many, few}) {
      for (const float value : {0x1p-90f, 0x1p101f}) {
        Floats x = input_of(c, DType::bfloat16);
        x.set(x.count() - 1, value);
        expect_matches_oracle(c, QType::qint8, x, ImageLayout::planar);
        expect_matches_oracle(c, QType::qint4, x, ImageLayout::planar);
      }
    }
  });
}

TEST(Conv, DoesNotDependOnThreads) {
  for_each_isa([] {
    for (const ConvCase& c : cases_of_many_positions()) {
      for (const DType dtype : kDTypes) {
        const MatmulCase weight = weight_of(c, QType::qint4, dtype);
        const Floats x = input_of(c, dtype);
        const auto results = [&](int threads) {
          set_thread_count(threads);
          Floats y(dtype, c.shape.batch * c.shape.outputs() * c.filters);
          conv(c.shape, {x.data(), dtype, ImageLayout::planar}, weight.w(), weight.bias(), y.data());
          return y.bytes();
        };
        const std::vector<std::uint8_t> expected = results(1);
        for (const int threads : {2, 5}) EXPECT_EQ(results(threads), expected) << c.name << " " << dtype_name(dtype);
        set_thread_count(2);
      }
    }
  });
}

TEST(Conv, RefusesShapesThatDoNotFit) {
  const auto message = [](const ConvShape& shape, std::int64_t depth) {
    const MatmulCase weight({QType::qint8, DType::float32, DType::float32, 1, 2, depth});
    try {
      check_conv(shape, weight.w());
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_EQ(message({1, 3, {5, 3}, {5, 3}}, 27), "");
  EXPECT_EQ(message({1, 3, {5, 3}, {5, 3}}, 26),
            "[conv] weight: got 26 elements per filter, expected 27 for an input of 3 channels");
  EXPECT_EQ(message({1, 3, {5, 3}, {1, 3}}, 27),
            "[conv] width: got 1 with its padding, expected at least the 3 that the kernel spans");
  EXPECT_EQ(message({1, 3, {5, 3, 0}, {5, 3}}, 27), "[conv] stride: got 0, expected 1 or more");
  EXPECT_EQ(message({1, 3, {5, 3, 1, 1, 5, 0}, {5, 3}, PaddingMode::reflect}, 27),
            "[conv] padding: got 5, expected at most 4 for this mode and the input's height");
  EXPECT_EQ(message({1, 3, {5, 3, 1, 1, 0, -1}, {5, 3}}, 27), "[conv] padding: got -1, expected 0 or more");
}

}  // namespace
}  // namespace quanto::testing
