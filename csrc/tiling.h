// Tilings: a plane cut into tiles, which need not divide it. The same as python_ref/tiling.py. Plain C++.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "problem.h"

namespace noisetilt {

// Regions of a plane, row by row.
struct Regions {
  int64_t count = 0;
  std::array<Region, 4> regions{};
  const Region* begin() const { return regions.data(); }
  const Region* end() const { return regions.data() + count; }
};

// A side of a plane cut into pieces: `longer` ones of `length` + 1, then `others` of `length`.
struct Cut {
  int64_t length, longer, others;

  // Pieces near `piece`.
  static Cut of(int64_t side, int64_t piece) {
    if (side % piece == 0) return {piece, 0, side / piece};
    // side / piece, rounded half down
    const int64_t count = std::max<int64_t>(1, (2 * side + piece - 1) / (2 * piece));
    return {side / count, side % count, count - side % count};
  }
};

// Pieces of one length, and where they begin.
struct Run {
  int64_t begin, length, count;
};

inline std::array<Run, 2> runs_of(const Cut& cut, int64_t unit = 1) {
  const int64_t longer = (cut.length + 1) * unit;
  return {{{0, longer, cut.longer}, {cut.longer * longer, cut.length * unit, cut.others}}};
}

// Pieces of even lengths near `piece`. The last value of an odd side is in none.
inline std::array<Run, 2> even_runs(int64_t side, int64_t piece) {
  return runs_of(Cut::of(side / 2, std::max<int64_t>(1, std::min(piece, side) / 2)), 2);
}

inline Regions regions_of(const std::array<Run, 2>& rows, const std::array<Run, 2>& columns) {
  Regions result;
  for (const Run& row : rows) {
    for (const Run& column : columns) {
      if (row.count > 0 && column.count > 0)
        result.regions[static_cast<size_t>(result.count++)] = {row.begin,
                                                               column.begin,
                                                               row.length * row.count,
                                                               column.length * column.count,
                                                               {row.length, column.length}};
    }
  }
  return result;
}

// Regions of the tiles nearest to `tile`.
inline Regions tile_regions(const Shape& shape, Tile tile) {
  return regions_of(runs_of(Cut::of(shape.height, tile.height)), runs_of(Cut::of(shape.width, tile.width)));
}

// Regions of the tiles of a mixing domain: tiles of an even number of values.
inline Regions mixing_regions(const Shape& shape, Tile tile) {
  const int64_t height = shape.height, width = shape.width;
  if (height % tile.height == 0 && width % tile.width == 0) return tile_regions(shape, tile);
  if (width % 2 == 0 || (height % 2 != 0 && width > 1))
    return regions_of(runs_of(Cut::of(height, tile.height)), even_runs(width, tile.width));
  return regions_of(even_runs(height, tile.height), runs_of(Cut::of(width, tile.width)));
}

// Number of values of a plane that are in the regions.
inline int64_t size_of(const Regions& regions) {
  int64_t size = 0;
  for (const Region& region : regions) size += region.height * region.width;
  return size;
}

}  // namespace noisetilt
