// Int8 activations in AMX tiles. For units with AMX INT8. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/amx_tiles-inl.h"
#include "kernels/int8_steps-inl.h"

namespace quanto::kernels {
namespace {

/// The quads of Int8Quads, a tile of 16 steps at once: codes lie in tiles as they lie in memory, and activations, whose
/// rows are lanes, are the operand that wants four neighbours along K beside each other.
struct Int8Tiles : Int8Quads {
  using Scope = TileScope;
  static constexpr bool kTiles = true;
  static constexpr std::int64_t kStepsAtOnce = 16;

  /// A square of sums, `sums_apart` bytes from a channel to the next: set, or added to what is there.
  template <bool kAdd>
  static void multiply_square(const TileOperands& o, void* sums, std::int64_t sums_apart) {
    asm volatile("" ::: "memory");  // the intrinsics do not tell the compiler what they read
    char* out = static_cast<char*>(sums);
    char* lower = out + kTileRows * sums_apart;
    if constexpr (kAdd) {
      _tile_loadd(0, out, sums_apart);
      _tile_loadd(1, out + kTileRowBytes, sums_apart);
      _tile_loadd(2, lower, sums_apart);
      _tile_loadd(3, lower + kTileRowBytes, sums_apart);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    const char* codes = static_cast<const char*>(o.codes);
    const char* x = static_cast<const char*>(o.x);
    for (std::int64_t step = 0; step < o.steps; step += kStepsAtOnce) {
      _tile_loadd(4, codes, o.codes_apart);
      _tile_loadd(6, x, o.x_apart);
      _tile_dpbusd(0, 4, 6);
      _tile_loadd(7, x + kTileRowBytes, o.x_apart);
      _tile_dpbusd(1, 4, 7);
      _tile_loadd(5, codes + kTileRows * o.codes_apart, o.codes_apart);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
      codes += kTileRowBytes;
      x += kStepsAtOnce * o.x_apart;
    }
    _tile_stored(0, out, sums_apart);
    _tile_stored(1, out + kTileRowBytes, sums_apart);
    _tile_stored(2, lower, sums_apart);
    _tile_stored(3, lower + kTileRowBytes, sums_apart);
    asm volatile("" ::: "memory");
  }
};

}  // namespace
}  // namespace quanto::kernels
