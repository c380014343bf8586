// Places of the values of a tile in a sample [channels][height][width]. Plain C++.
#pragma once

#include <cstdint>

#include "../problem.h"
#include "fast_divisor.h"
#include "host_device.h"

namespace noisetilt::cuda {

// Tiles of height x width are numbered row by row of the sample's planes, their values row by row of the
// tile. A tile whose rows follow each other in memory counts as one row, and as the only tile across the
// sample.
struct TileGrid {
  int32_t height, width;
  int32_t row_length;  // of the sample
  int32_t across;      // tiles side by side in a row of the sample
  // log2 of width, or -1 if width is no power of two. 31 for a tile of one row: every index is in row 0.
  int32_t shift;

  NOISETILT_HOST_DEVICE int32_t size() const { return height * width; }
  // Slices of a multiple of this many values divide no tile.
  NOISETILT_HOST_DEVICE int32_t band() const { return height * row_length; }
  NOISETILT_HOST_DEVICE bool contiguous() const { return height == 1 && across == 1; }
  // Place of the tile's first value in the sample.
  NOISETILT_HOST_DEVICE int32_t first_of(int32_t tile) const {
    const int32_t band = tile / across;
    return band * height * row_length + (tile - band * across) * width;
  }
  // Place of value i of a tile relative to its first.
  NOISETILT_HOST_DEVICE int32_t offset_of(int32_t i) const {
    const int32_t row = shift >= 0 ? i >> shift : i / width;
    return row * row_length + i - row * width;
  }
};

inline TileGrid grid_of(Tile tile, Shape shape) {
  if (tile.height == 1 || tile.width == shape.width) {
    const auto size = static_cast<int32_t>(tile.size());
    return {1, size, size, 1, 31};
  }
  int32_t shift = 0;
  while ((int64_t(1) << shift) < tile.width) ++shift;
  if ((int64_t(1) << shift) != tile.width) shift = -1;
  return {static_cast<int32_t>(tile.height), static_cast<int32_t>(tile.width),
          static_cast<int32_t>(shape.width), static_cast<int32_t>(shape.width / tile.width), shift};
}

// A grid with quick divisions.
struct FastTileGrid {
  TileGrid grid;
  FastDivisor by_size, by_width, by_across, by_height, by_row_length;

  NOISETILT_HOST_DEVICE static FastTileGrid of(const TileGrid& grid) {
    return {grid,
            FastDivisor::of(grid.size()),
            FastDivisor::of(grid.width),
            FastDivisor::of(grid.across),
            FastDivisor::of(grid.height),
            FastDivisor::of(grid.row_length)};
  }
  NOISETILT_HOST_DEVICE int32_t size() const { return grid.size(); }
  // Number of tiles in so many values.
  NOISETILT_HOST_DEVICE int32_t tiles_in(int32_t values) const { return by_size.quotient(values); }
  // The same as for TileGrid.
  NOISETILT_HOST_DEVICE int32_t first_of(int32_t tile) const {
    const int32_t band = by_across.quotient(tile);
    return band * grid.height * grid.row_length + (tile - band * grid.across) * grid.width;
  }
  NOISETILT_HOST_DEVICE int32_t offset_of(int32_t i) const {
    return i + by_width.quotient(i) * (grid.row_length - grid.width);
  }
  struct Position {
    int32_t tile, i;
  };
  // Tile of a place in the sample, and index of its value in the tile.
  NOISETILT_HOST_DEVICE Position position_of(int32_t place) const {
    const int32_t row = by_row_length.quotient(place), column = place - row * grid.row_length;
    const int32_t band = by_height.quotient(row), tile_column = by_width.quotient(column);
    return {band * grid.across + tile_column,
            (row - band * grid.height) * grid.width + column - tile_column * grid.width};
  }
};

}  // namespace noisetilt::cuda
