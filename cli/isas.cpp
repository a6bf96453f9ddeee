#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "commands.h"
#include "quanto/cores.h"
#include "quanto/isa.h"
#include "quanto/matmul.h"
#include "quanto/qtype.h"
#include "quanto/quantize.h"

namespace quanto::cli {
namespace {

const char* yes_no(bool value) { return value ? "yes" : "no"; }

void print_isas() {
  const Isa active = active_isa();
  std::printf("%-12s %-8s %-9s %-6s %s\n", "isa", "compiled", "supported", "active", "needs");
  for (const IsaInfo& isa : isas()) {
    std::printf("%-12s %-8s %-9s %-6s %s\n", isa.name.data(), yes_no(isa.compiled), yes_no(isa.supported),
                yes_no(isa.isa == active), isa.requires_.data());
  }
}

/// What activations come as: floats, or codes, all formats of float8 being the same to kernels.
struct Activations {
  const char* name;
  DType dtype;
  bool codes = false;
  QType qtype = QType::qint8;
};
constexpr Activations kActivations[] = {
    {"float32", DType::float32},
    {"bfloat16", DType::bfloat16},
    {"float16", DType::float16},
    {"int8", DType::bfloat16, true, QType::qint8},
    {"float8", DType::bfloat16, true, QType::qfloat8_e4m3fn},
};

/// What the choice of a kernel depends on besides the types, the group size and the number of rows.
struct Case {
  const char* name;
  bool odd;      ///< numbers of channels that are no multiple of the codes in a byte
  bool extreme;  ///< activations that some kernels decline
};
constexpr Case kUsual = {"usual", false, false};
constexpr Case kCases[] = {kUsual, {"odd", true, false}, {"extreme", false, true}, {"odd+extreme", true, true}};

// A layer whose depth every group size divides.
constexpr std::int64_t kOutFeatures = 4096, kInFeatures = 3072;
constexpr std::int64_t kGroupSizes[] = {0, 32, 64, 96, 128, 256};
// More rows than any seam between kernels has.
constexpr std::int64_t kMostRows = 640;

/// "<isa>/<qtype>/<activations>/<regime>"
std::string kernel_of(const QTypeInfo& q, const Activations& activations, const Case& c, std::int64_t group_size,
                      std::int64_t rows) {
  WeightView w{};
  w.qtype = q.qtype;
  w.out_features = c.odd ? kOutFeatures - 1 : kOutFeatures;
  w.in_features = kInFeatures;
  w.group_size = group_size;
  w.scale_dtype = activations.dtype;
  if (activations.codes) return matmul_codes_kernel_name({nullptr, activations.qtype, rows, kInFeatures}, w);
  return matmul_kernel_name({nullptr, activations.dtype, rows, kInFeatures}, w, c.extreme);
}

std::string isa_of(const std::string& kernel) { return kernel.substr(0, kernel.find('/')); }
std::string regime_of(const std::string& kernel) { return kernel.substr(kernel.rfind('/') + 1); }

/// "float8 as bfloat16" where codes are decoded first.
std::string activations_of(const Activations& activations, const std::string& kernel) {
  const std::size_t end = kernel.rfind('/'), begin = kernel.rfind('/', end - 1) + 1;
  const std::string multiplied = kernel.substr(begin, end - begin), given = activations.name;
  return multiplied == given ? given : given + " as " + multiplied;
}

/// "1-2 few_rows, 3-8 pair_lanes, 9- panel", with the name of its instruction set if it is not the active one.
std::string kernels_by_rows(const QTypeInfo& q, const Activations& activations, const Case& c,
                            std::int64_t group_size) {
  const std::string active(isa_name(active_isa()));
  const auto name = [&](std::int64_t rows) {
    const std::string kernel = kernel_of(q, activations, c, group_size, rows);
    return isa_of(kernel) == active ? regime_of(kernel) : isa_of(kernel) + "/" + regime_of(kernel);
  };
  std::string line;
  for (std::int64_t first = 1, last; first <= kMostRows; first = last + 1) {
    const std::string kernel = name(first);
    for (last = first; last < kMostRows && name(last + 1) == kernel;) ++last;
    line += (line.empty() ? "" : ", ") + std::to_string(first);
    if (last == kMostRows) {
      line += "-";
    } else if (last > first) {
      line += "-" + std::to_string(last);
    }
    line += " " + kernel;
  }
  return line;
}

/// Names that have the same text in common.
struct Entry {
  std::string names, text;
};

void add_entry(std::vector<Entry>& entries, const std::string& name, const std::string& text) {
  for (Entry& entry : entries) {
    if (entry.text == text) {
      entry.names += "," + name;
      return;
    }
  }
  entries.push_back({name, text});
}

/// A line for the group sizes that have the same kernels.
std::string lines_of(const QTypeInfo& q, const Activations& activations, const Case& c) {
  std::vector<Entry> entries;
  for (const std::int64_t group_size : kGroupSizes) {
    if (group_size != 0 && !is_affine(q.qtype)) continue;
    const std::string name = group_size == 0 ? "row" : std::to_string(group_size);
    add_entry(entries, name, kernels_by_rows(q, activations, c, group_size));
  }
  std::string lines;
  for (const Entry& entry : entries) {
    char head[64];
    std::snprintf(head, sizeof(head), "%-22s ", entry.names.c_str());
    lines += head + entry.text + "\n";
  }
  return lines;
}

void print_cell(const QTypeInfo& q, const Activations& activations) {
  std::vector<Entry> entries;
  for (const Case& c : kCases) {
    if ((c.odd && !is_affine(q.qtype)) || (c.extreme && activations.codes)) continue;
    add_entry(entries, c.name, lines_of(q, activations, c));
  }
  const std::string label = activations_of(activations, kernel_of(q, activations, kUsual, 0, 1));
  for (const Entry& entry : entries) {
    for (std::size_t begin = 0, end; begin < entry.text.size(); begin = end + 1) {
      end = entry.text.find('\n', begin);
      std::printf("%-18s %-18s %-20s %s\n", q.name.data(), label.c_str(), entry.names.c_str(),
                  entry.text.substr(begin, end - begin).c_str());
    }
  }
}

void print_kernels() {
  std::printf("kernels that run with %s on cores called %s, by the number of rows of activations\n",
              isa_name(active_isa()).data(), cores_name(active_cores()).data());
  std::printf("quantizers: %s\n", isa_name(quantizer_isa()).data());
  std::printf("odd: channels that are no multiple of the codes in a byte\n");
  std::printf("extreme: activations below 2^-80 or from 2^100 on, infinite or NaN\n\n");
  std::printf("%-18s %-18s %-20s %-22s %s\n", "weights", "activations", "case", "group sizes", "kernels");
  for (const QTypeInfo& q : qtypes()) {
    for (const Activations& activations : kActivations) print_cell(q, activations);
  }
}

/// Which instruction sets serve each pair of types: the active one, or less capable ones where it has no kernels.
void print_origins() {
  std::printf("\nkernels come from\n%-18s", "weights");
  for (const Activations& activations : kActivations) std::printf(" %-24s", activations.name);
  for (const QTypeInfo& q : qtypes()) {
    std::printf("\n%-18s", q.name.data());
    for (const Activations& activations : kActivations) {
      std::vector<Entry> origins;
      for (std::int64_t rows = 1; rows <= kMostRows; ++rows) {
        const std::int64_t group_size = is_affine(q.qtype) ? 128 : 0;
        add_entry(origins, "", isa_of(kernel_of(q, activations, kUsual, group_size, rows)));
      }
      std::string names;
      for (const Entry& origin : origins) names += (names.empty() ? "" : ",") + origin.text;
      std::printf(" %-24s", names.c_str());
    }
  }
  std::printf("\n%-18s %s\n", "quantizers", isa_name(quantizer_isa()).data());
}

}  // namespace

void add_isas(CLI::App& app) {
  auto* command = app.add_subcommand("isas", "List the instruction sets that kernels exist for");
  auto kernels = std::make_shared<bool>(false);
  command->add_flag("--kernels", *kernels, "List the kernel of each weight and activation type and number of rows");
  command->callback([kernels] {
    if (*kernels) return print_kernels();
    const std::string_view cores = cores_name(active_cores());  // throws, if at all, before anything is printed
    print_isas();
    std::printf("\nkernels are chosen for cores called %s\n", cores.data());
    print_origins();
  });
}

}  // namespace quanto::cli
