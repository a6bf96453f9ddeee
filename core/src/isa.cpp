#include "quanto/isa.h"

#include <array>
#include <atomic>
#include <cstdlib>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels/registry.h"
#include "quanto/error.h"

namespace quanto {
namespace {

#if defined(__x86_64__)
// clang 14 does not know "f16c" as a feature of __builtin_cpu_supports.
bool cpu_has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool cpu_has_amx() {
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kBf16) != 0 && (edx & kTile) != 0 &&
         (edx & kInt8) != 0;
}

/// The tiles are 8 KiB of state that a process has to ask Linux for: it, its threads and its children may use them from
/// then on. The kernel refuses where it does not know them itself.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// __builtin_cpu_supports also asks whether the operating system saves the registers.
bool cpu_has(Isa isa) {
  __builtin_cpu_init();
  switch (isa) {
    case Isa::portable:
      return true;
    case Isa::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
             cpu_has_f16c();
    case Isa::avx512:
      return cpu_has(Isa::avx2) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Isa::avx512_bf16:
      return cpu_has(Isa::avx512) && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16") &&
             __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2");
    case Isa::avx512_amx:
      return cpu_has(Isa::avx512_bf16) && cpu_has_amx() && may_use_tiles();
  }
  return false;
}
#else
bool cpu_has(Isa isa) { return isa == Isa::portable; }
#endif

IsaInfo describe(Isa isa, std::string_view name, std::string_view needs) {
  const bool compiled = kernels::is_compiled(isa);
  return {isa, name, needs, compiled, compiled && cpu_has(isa)};
}

const std::array<IsaInfo, kIsaCount>& table() {
  static const std::array<IsaInfo, kIsaCount> isas = {
      describe(Isa::portable, "portable", "any CPU"),
      describe(Isa::avx2, "avx2", "AVX2, FMA, F16C, BMI2"),
      describe(Isa::avx512, "avx512", "AVX-512 F, BW, VL, DQ"),
      describe(Isa::avx512_bf16, "avx512_bf16", "AVX-512 F, BW, VL, DQ, VNNI, BF16, VBMI, VBMI2"),
      describe(Isa::avx512_amx, "avx512_amx", "avx512_bf16 and AMX TILE, BF16, INT8"),
  };
  return isas;
}

Isa most_capable() {
  Isa best = Isa::portable;
  for (const IsaInfo& info : table()) {
    if (info.supported) best = info.isa;
  }
  return best;
}

Isa supported_by_name(const char* function, std::string_view name) {
  std::string known;
  for (const IsaInfo& info : table()) {
    if (info.supported && info.name == name) return info.isa;
    if (info.supported) known += (known.empty() ? "" : ", ") + std::string(info.name);
  }
  throw Error(std::string("[") + function + "] isa: got '" + std::string(name) +
              "', expected one that this build and this CPU support: " + known);
}

Isa default_isa() {
  const char* wanted = std::getenv("QUANTO_ISA");
  return wanted != nullptr && *wanted != '\0' ? supported_by_name("QUANTO_ISA", wanted) : most_capable();
}

constexpr int kNotForced = -1;
std::atomic<int> forced{kNotForced};

}  // namespace

std::span<const IsaInfo> isas() { return table(); }

Isa active_isa() {
  const int choice = forced.load(std::memory_order_relaxed);
  if (choice != kNotForced) return static_cast<Isa>(choice);
  static const Isa chosen = default_isa();  // an exception leaves it unset, and the next call tries again
  return chosen;
}

void force_isa(std::string_view name) {
  forced.store(name.empty() ? kNotForced : static_cast<int>(supported_by_name("force_isa", name)));
}

std::string_view isa_name(Isa isa) { return table()[static_cast<std::size_t>(isa)].name; }

}  // namespace quanto
