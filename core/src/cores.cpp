#include "quanto/cores.h"

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "quanto/error.h"

namespace quanto {
namespace {

constexpr std::array<std::string_view, 2> kNames = {"general", "zen4"};

Cores cores_of_machine() {
#if defined(__x86_64__)
  constexpr unsigned kFamilyOfZen4 = 0x19;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  char vendor[12];
  if (__get_cpuid(0, &eax, &ebx, &ecx, &edx) == 0) return Cores::general;
  std::memcpy(vendor, &ebx, 4);
  std::memcpy(vendor + 4, &edx, 4);
  std::memcpy(vendor + 8, &ecx, 4);
  if (std::memcmp(vendor, "AuthenticAMD", sizeof(vendor)) != 0) return Cores::general;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0) return Cores::general;
  const unsigned family = (eax >> 8 & 0xf) + (eax >> 20 & 0xff);
  if (family == kFamilyOfZen4) return Cores::zen4;
#endif
  return Cores::general;
}

Cores cores_by_name(const char* function, std::string_view name) {
  std::string known;
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<Cores>(i);
    known += (known.empty() ? "" : ", ") + std::string(kNames[i]);
  }
  throw Error(std::string("[") + function + "] cores: got '" + std::string(name) + "', expected one of " + known);
}

Cores default_cores() {
  const char* wanted = std::getenv("QUANTO_CORES");
  return wanted != nullptr && *wanted != '\0' ? cores_by_name("QUANTO_CORES", wanted) : cores_of_machine();
}

constexpr int kNotForced = -1;
std::atomic<int> forced{kNotForced};

}  // namespace

Cores active_cores() {
  const int choice = forced.load(std::memory_order_relaxed);
  if (choice != kNotForced) return static_cast<Cores>(choice);
  static const Cores chosen = default_cores();  // an exception leaves it unset, and the next call tries again
  return chosen;
}

void force_cores(std::string_view name) {
  forced.store(name.empty() ? kNotForced : static_cast<int>(cores_by_name("force_cores", name)));
}

std::string_view cores_name(Cores cores) { return kNames[static_cast<std::size_t>(cores)]; }

}  // namespace quanto
