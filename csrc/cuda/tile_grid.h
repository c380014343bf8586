// Places of the values of a tile in a sample [channels][height][width]. Plain C++.
#pragma once

#include <cstdint>

#include "../problem.h"
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
  struct Position {
    int32_t tile, i;
  };
  // Tile of a place in the sample, and index of its value in the tile.
  NOISETILT_HOST_DEVICE Position position_of(int32_t place) const {
    const int32_t row = place / row_length, column = place - row * row_length;
    const int32_t band = row / height, tile_column = shift >= 0 ? column >> shift : column / width;
    return {band * across + tile_column, (row - band * height) * width + column - tile_column * width};
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

}  // namespace noisetilt::cuda
