// AMX tiles: one shape for all of them, and their lifetime. For units with AMX. Internal linkage, no std.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/lanes-inl.h"

namespace quanto::kernels {
namespace {

/// All eight tiles are as large as tiles are: 16 rows of 64 bytes, so 16 x 16 sums, or 16 rows of 32 bfloat16 or 64
/// int8 numbers.
constexpr std::int64_t kTileRows = 16;
constexpr std::int64_t kTileRowBytes = 64;
constexpr std::int64_t kTileBytes = kTileRows * kTileRowBytes;

/// The operand of the instruction that configures tiles (Intel SDM, "LDTILECFG").
struct alignas(64) TilePalette {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};

  constexpr TilePalette() {
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = kTileRowBytes;
      rows[tile] = kTileRows;
    }
  }
};
static_assert(sizeof(TilePalette) == 64);
constexpr TilePalette kTilePalette{};

/// Configures the tiles of this thread for as long as it lives. Nothing else may use tiles on the thread meanwhile, and
/// nothing is left configured: other libraries set up their own, and a thread without tiles in use switches faster.
class TileScope {
 public:
  explicit TileScope(const TilePalette& palette = kTilePalette) { _tile_loadconfig(&palette); }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

}  // namespace
}  // namespace quanto::kernels
