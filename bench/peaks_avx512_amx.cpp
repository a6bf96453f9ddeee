#include <immintrin.h>

#include "peaks.h"

namespace quanto::bench {
namespace {

constexpr int kTiles = 8;
constexpr int kRows = 16;  // of 64 bytes: all of a tile
constexpr int kSums = 4;   // tiles 0 to 3; 4 and 5 are multiplied by 6 and 7

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

void configure() {
  TileConfig config;
  for (int tile = 0; tile < kTiles; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = kRows;
  }
  asm volatile("" : : "r"(&config) : "memory");  // GCC believes that the next line reads 8 bytes only
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
}

void bf16(std::int64_t steps) {
  configure();
  for (std::int64_t s = 0; s < steps; ++s) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}

void int8(std::int64_t steps) {
  configure();
  for (std::int64_t s = 0; s < steps; ++s) {
    _tile_dpbssd(0, 4, 6);
    _tile_dpbssd(1, 4, 7);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_release();
}

}  // namespace
}  // namespace quanto::bench

extern "C" const quanto::bench::Peaks quanto_peaks_avx512_amx = {
    "avx512_amx",
    {},
    {quanto::bench::kSums * 16 * 16 * 32, quanto::bench::bf16},
    {quanto::bench::kSums * 16 * 16 * 64, quanto::bench::int8},
    nullptr};
