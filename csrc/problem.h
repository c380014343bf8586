// What the kernels are asked to do, in the terms that every device shares. T is float or double.
#pragma once

#include <cstdint>

namespace noisetilt {

// Bounds of one 2OS projection: L[r, j] = lower[r * row_stride + j * column_stride].
template <class T>
struct Table {
  const T* lower;
  const T* upper;
  int64_t num_chunks;  // M
  int64_t chunk_size;  // D
  int64_t row_stride;
  int64_t column_stride;
  bool monotone;  // neither table decreases in r
};

struct Shape {
  int64_t channels, height, width;
  int64_t size() const { return channels * height * width; }
};

struct Tile {
  int64_t height, width;
  int64_t size() const { return height * width; }
};

// One tile size of the projection, and its tables: [chunk size][mean, energy].
template <class T>
struct TileProjection {
  Tile tile;
  const Table<T> (*tables)[2];
  int64_t num_tables;
};

// What project(x) of the whitening operator projects onto.
template <class T>
struct Projection {
  Shape shape;
  const Table<T>* values;
  int64_t num_values;
  const TileProjection<T>* tiles;
  int64_t num_tiles;
};

struct Mixing {
  Tile tile;
  int64_t repeats;
};

enum class TableFault { none, nan, crossed };

}  // namespace noisetilt
