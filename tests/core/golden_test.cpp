// Scales, shifts, codes and dequantized values, bit for bit those of optimum-quanto 0.2.7. tests/golden/make_golden.py
// wrote the files and describes their format.
#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "each_isa.h"
#include "quanto/pack.h"
#include "quanto/qtype.h"
#include "quanto/quantize.h"
#include "quanto/scale.h"

namespace quanto {
namespace {

using Bytes = std::vector<char>;

struct Record {
  QType qtype{};
  DType dtype{};
  Axis axis{};
  std::int64_t group_size = 0, rows = 0, cols = 0;
  ShiftKind shift_kind = ShiftKind::none;
  std::string header;
  Bytes base, scale, shift, codes, dequantized;

  int bits() const { return qtype_info(qtype).bits; }
  std::int64_t groups() const {  // of each row (first) or column (last)
    return group_size == 0 ? 1 : (axis == Axis::first ? cols : rows) / group_size;
  }
  std::int64_t grouped_rows() const {
    if (group_size == 0) return rows;
    return axis == Axis::first ? rows * groups() : group_size;
  }
  std::int64_t grouped_cols() const { return rows * cols / grouped_rows(); }
  std::int64_t scales() const { return scale_count(axis, grouped_rows(), grouped_cols()); }
  bool regroups() const { return group_size != 0 && axis == Axis::last; }
  std::size_t shift_size() const { return shift_kind == ShiftKind::integer ? 1 : dtype_size(dtype); }
};

template <class T>
T named(const std::string& name, std::initializer_list<std::pair<const char*, T>> known) {
  for (const auto& [text, value] : known) {
    if (name == text) return value;
  }
  throw std::runtime_error("unknown name in a golden file: " + name);
}

Record parse_header(const std::string& line) {
  Record r;
  std::string qtype, dtype, axis, shift;
  std::istringstream in(line);
  in >> qtype >> dtype >> axis >> r.group_size >> shift >> r.rows >> r.cols;
  if (!in) throw std::runtime_error("malformed header in a golden file: " + line);
  r.header = line;
  r.qtype = qtype_from_name(qtype);
  r.dtype =
      named<DType>(dtype, {{"float32", DType::float32}, {"bfloat16", DType::bfloat16}, {"float16", DType::float16}});
  r.axis = named<Axis>(axis, {{"tensor", Axis::tensor}, {"first", Axis::first}, {"last", Axis::last}});
  r.shift_kind = named<ShiftKind>(
      shift, {{"none", ShiftKind::none}, {"floating", ShiftKind::floating}, {"integer", ShiftKind::integer}});
  return r;
}

Bytes read_bytes(std::istream& in, std::int64_t elements, std::size_t size) {
  Bytes bytes(static_cast<std::size_t>(elements) * size);
  if (!in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) {
    throw std::runtime_error("a golden file ends early");
  }
  return bytes;
}

std::vector<Record> read_records(const std::string& name) {
  std::ifstream in(std::string(QUANTO_GOLDEN_DIR) + "/" + name, std::ios::binary);
  if (!in) throw std::runtime_error("no golden file " + name);
  std::vector<Record> records;
  for (std::string line; std::getline(in, line);) {
    Record r = parse_header(line);
    const std::size_t size = dtype_size(r.dtype);
    r.base = read_bytes(in, r.rows * r.cols, size);
    r.scale = read_bytes(in, r.scales(), size);
    if (r.shift_kind != ShiftKind::none) r.shift = read_bytes(in, r.scales(), r.shift_size());
    const std::int64_t code_rows = r.bits() == 8 ? r.rows : packed_rows(r.grouped_rows(), r.bits());
    r.codes = read_bytes(in, code_rows * r.grouped_cols(), 1);
    r.dequantized = read_bytes(in, r.rows * r.cols, size);
    records.push_back(std::move(r));
  }
  return records;
}

void check_symmetric_record(const Record& r) {
  const ConstMatrix base{r.base.data(), r.dtype, r.rows, r.cols};
  Bytes scale(r.scale.size()), codes(r.codes.size()), values(r.base.size());
  absmax_scale(base, r.qtype, r.axis, scale.data());
  EXPECT_EQ(scale, r.scale);
  quantize_symmetric(base, r.qtype, r.axis, r.scale.data(), codes.data());
  EXPECT_EQ(codes, r.codes);
  dequantize_symmetric(r.codes.data(), r.qtype, r.rows, r.cols, r.axis, r.scale.data(), r.dtype, values.data());
  EXPECT_EQ(values, r.dequantized);
}

Bytes grouped(const Record& r) {
  if (!r.regroups()) return r.base;
  Bytes out(r.base.size());
  group_last(r.base.data(), dtype_size(r.dtype), r.groups(), r.group_size, r.cols, out.data());
  return out;
}

Bytes ungrouped(const Record& r, const Bytes& values) {
  if (!r.regroups()) return values;
  Bytes out(values.size());
  ungroup_last(values.data(), dtype_size(r.dtype), r.groups(), r.group_size, r.cols, out.data());
  return out;
}

/// The shift of the search, as the record stores it.
Bytes stored_shift(const Record& r, const Bytes& floating) {
  if (r.shift_kind == ShiftKind::floating) return floating;
  // The zero point is the code of zero: quantizing 0 with the float shift rounds it the same way.
  Bytes zero(floating.size(), 0), out(static_cast<std::size_t>(r.scales()));
  const ConstMatrix zeros{zero.data(), r.dtype, r.scales(), 1};
  quantize_affine(zeros, r.qtype, Axis::first, r.scale.data(), {floating.data(), ShiftKind::floating},
                  reinterpret_cast<std::uint8_t*>(out.data()));
  return out;
}

void check_affine_record(const Record& r) {
  const Bytes values = grouped(r);
  const ConstMatrix base{values.data(), r.dtype, r.grouped_rows(), r.grouped_cols()};
  Bytes scale(r.scale.size()), shift(r.scale.size());
  minmax_scale(base, r.qtype, r.axis, scale.data(), shift.data());
  EXPECT_EQ(scale, r.scale);
  EXPECT_EQ(stored_shift(r, shift), r.shift);

  const ConstShift golden_shift{r.shift.data(), r.shift_kind};
  std::vector<std::uint8_t> codes(values.size() / dtype_size(r.dtype));
  Bytes packed(r.codes.size()), again(r.codes.size());
  quantize_affine(base, r.qtype, r.axis, r.scale.data(), golden_shift, codes.data());
  pack(codes.data(), base.rows, base.cols, r.bits(), reinterpret_cast<std::uint8_t*>(packed.data()));
  EXPECT_EQ(packed, r.codes);
  quantize_affine_packed(base, r.qtype, r.axis, r.scale.data(), golden_shift,
                         reinterpret_cast<std::uint8_t*>(again.data()));
  EXPECT_EQ(again, r.codes);

  Bytes out(values.size());
  dequantize_affine(codes.data(), r.qtype, base.rows, base.cols, r.axis, r.scale.data(), golden_shift, r.dtype,
                    out.data());
  EXPECT_EQ(ungrouped(r, out), r.dequantized);
  dequantize_affine_packed(reinterpret_cast<const std::uint8_t*>(r.codes.data()), r.qtype, base.rows, base.cols, r.axis,
                           r.scale.data(), golden_shift, r.dtype, out.data());
  EXPECT_EQ(ungrouped(r, out), r.dequantized);
}

class Golden : public ::testing::TestWithParam<const char*> {};

TEST_P(Golden, EveryIsaReproducesTheRecords) {
  const std::vector<Record> records = read_records(std::string(GetParam()) + ".golden");
  ASSERT_EQ(records.size(), 36u);
  testing::for_each_isa([&] {
    for (const Record& r : records) {
      SCOPED_TRACE(r.header);
      r.bits() == 8 ? check_symmetric_record(r) : check_affine_record(r);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(DTypes, Golden, ::testing::Values("float32", "bfloat16", "float16"),
                         [](const auto& param) { return std::string(param.param); });

}  // namespace
}  // namespace quanto
