// Arguments of the kernels, the same for every device. T is float or double.
#pragma once

#include <cstdint>

namespace noisetilt {

// Lower and upper bounds of one 2OS projection. Entry [r, j] is at r * row_stride + j * column_stride.
template <class T>
struct Table {
  const T* lower;
  const T* upper;
  int64_t num_chunks;  // M
  int64_t chunk_size;  // D
  int64_t row_stride;
  int64_t column_stride;
  bool monotone;  // neither lower nor upper decreases in r
};

struct Shape {
  int64_t channels, height, width;
  int64_t size() const { return channels * height * width; }
};

struct Tile {
  int64_t height, width;
  int64_t size() const { return height * width; }
};

// Rectangle of the planes of a sample that tiles of one size fill.
struct Region {
  int64_t top, left, height, width;
  Tile tile;
  int64_t tiles_in(const Shape& shape) const { return shape.channels * height * width / tile.size(); }
  bool fills(const Shape& shape) const { return height == shape.height && width == shape.width; }
  // The region as a whole plane, and the shape of samples that consist of it.
  Shape own_shape(const Shape& shape) const { return {shape.channels, height, width}; }
  Region own() const { return {0, 0, height, width, tile}; }
};

// Tiles of one size of a projection, and their tables: tables[chunk size][0: mean, 1: energy].
template <class T>
struct TileProjection {
  Region region;
  const Table<T> (*tables)[2];
  int64_t num_tables;
};

// Statistics that `project` brings within their tables: values, then means and energies of tiles.
template <class T>
struct Projection {
  Shape shape;
  const Table<T>* values;
  int64_t num_values;
  const TileProjection<T>* tiles;
  int64_t num_tiles;
};

// One mixing domain: `repeats` butterfly steps on tiles near `tile` (tiling.h), with a projection after each.
struct Mixing {
  Tile tile;
  int64_t repeats;
};

// Factors of the FFT of N real values, as `twiddle_factors` in python_ref/fourier.py makes them: cosines and
// sines. Only N = 2^k has factors of its complex FFT. The last N/4 + 1 factors are those of every even N.
template <class T>
struct Twiddles {
  const T *re, *im;
};

// True if the package defines the rounding of the FFT of N = `size` values.
inline bool has_defined_fft(int64_t size) { return size >= 2 && (size & (size - 1)) == 0; }

// Values are divided by this between a complex FFT and the spectrum, before they are added. The sums of up to
// four finite values are then finite.
constexpr int kGuard = 4;

// Number of factors of the stages of a complex FFT of length h.
inline int64_t num_stage_twiddles(int64_t h) {
  int64_t count = 0;
  for (int64_t left = h; left > 4; left /= 4) count += left / 4 * 3;
  return count;
}

// Number of factors of the FFT of N = `size` real values.
inline int64_t num_twiddles(int64_t size) {
  return (has_defined_fft(size) ? num_stage_twiddles(size / 2) : 0) + size / 4 + 1;
}

enum class TableFault { none, nan, crossed };

}  // namespace noisetilt
