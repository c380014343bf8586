// Tile statistics, DESIGN section 3: reduction, 2OS of the means and energies, rescaling.
//
// A band is one row of tiles in a region of a plane; threads share the bands. Sums are formed in the halving
// order that DESIGN defines. If the width of a tile is a power of two, the first halvings add whole rows of
// the band, a vector of columns at a time; only the last log2(width) halvings work inside a tile.

#include "tile_stats.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "order_stats.h"
#include "parallel.h"
#include "scratch.h"
#include "simd.h"

namespace noisetilt::NOISETILT_VARIANT {
namespace {

constexpr int64_t kGrain = 8192;  // fewest values per thread
// Largest tile height, rounded up to a power of two, for which rows are added as a whole.
constexpr int64_t kMostRows = 32;

template <class T>
constexpr T kConstantRatio = static_cast<T>(sizeof(T) == 4 ? 0x1p-18 : 0x1p-47);
template <class T>
constexpr T kConstantEnergy = static_cast<T>(sizeof(T) == 4 ? 0x1p-90 : 0x1p-900);

int64_t power_of_two_from(int64_t n) {
  int64_t p = 1;
  while (p < n) p *= 2;
  return p;
}

// Sum of v[0..count) in halving order. count is a power of two. Overwrites v.
template <class T>
inline T halve(T* v, int64_t count) {
  for (int64_t h = count / 2; h >= 1; h /= 2) {
    for (int64_t i = 0; i < h; ++i) v[i] += v[i + h];
  }
  return v[0];
}

struct Identity {
  template <class V>
  V operator()(V x, V) const {
    return x;
  }
};
struct CentredSquare {
  template <class V>
  V operator()(V x, V mean) const {
    const V c = x - mean;
    return c * c;
  }
};

// The tiles of one band: rows of `width` values, `stride` apart.
template <class T>
struct Band {
  T* x;
  Tile tile;
  int64_t width, stride;
  int64_t num_tiles() const { return width / tile.width; }
};

// Sets sums[column + i], for every lane i of V, to the sum of term(x, mean) over the rows of that column.
// `padded` is the height rounded up to a power of two.
template <class V, class T, class Term>
inline void add_rows(const Band<T>& band, const T* means, T* sums, int64_t column, int64_t padded,
                     const Term& term) {
  V v[kMostRows];
  V mean;
  std::memcpy(&mean, means + column, sizeof mean);
  for (int64_t row = 0; row < band.tile.height; ++row) {
    V x;
    std::memcpy(&x, band.x + row * band.stride + column, sizeof x);
    v[row] = term(x, mean);
  }
  for (int64_t row = band.tile.height; row < padded; ++row) v[row] = V{};
  for (int64_t h = padded / 2; h >= 1; h /= 2) {
    for (int64_t i = 0; i < h; ++i) v[i] += v[i + h];
  }
  std::memcpy(sums + column, &v[0], sizeof(V));
}

// Sets result[i] to the sum of term(x, mean) over tile i. `means` holds a mean for every column. `sums` (one
// row) and `padding` (one tile, its size rounded up to a power of two) are working memory.
template <class T, class Term>
void sum_tiles(const Band<T>& band, const T* means, T* sums, T* padding, T* result, const Term& term) {
  const Tile tile = band.tile;
  const int64_t rows = power_of_two_from(tile.height);
  if (tile.width == power_of_two_from(tile.width) && rows <= kMostRows) {
    int64_t column = 0;
    for (; column + kLanes<T> <= band.width; column += kLanes<T>)
      add_rows<Vector<T>>(band, means, sums, column, rows, term);
    for (; column < band.width; ++column) add_rows<T>(band, means, sums, column, rows, term);
    for (int64_t i = 0; i < band.num_tiles(); ++i) result[i] = halve(sums + i * tile.width, tile.width);
    return;
  }
  const int64_t padded = power_of_two_from(tile.size());
  for (int64_t i = 0; i < band.num_tiles(); ++i) {
    T* v = padding;
    for (int64_t row = 0; row < tile.height; ++row) {
      for (int64_t k = i * tile.width; k < (i + 1) * tile.width; ++k)
        *v++ = term(band.x[row * band.stride + k], means[k]);
    }
    std::fill(v, padding + padded, T(0));
    result[i] = halve(padding, padded);
  }
}

// Copies the value of each tile to all of its columns.
template <class T>
inline void spread(const T* per_tile, T* per_column, int64_t num_tiles, int64_t tile_width) {
  for (int64_t i = 0; i < num_tiles; ++i) {
    for (int64_t k = 0; k < tile_width; ++k) per_column[i * tile_width + k] = per_tile[i];
  }
}

// New values of a tile: new_mean + scale * direction. The direction is x - mean, or alternating signs if the
// tile is constant.
template <class T>
struct Rescaling {
  T mean, new_mean, scale;
  bool unchanged, constant;
};

template <class T>
Rescaling<T> rescaling(T mean, T energy, T m, T new_m, T new_e, T root, int64_t size) {
  const T count = static_cast<T>(size), offset = kConstantRatio<T> * mean;
  const bool constant = energy <= count * (offset * offset) || energy < kConstantEnergy<T>;
  const T direction_energy = constant ? static_cast<T>(size - size % 2) : energy;
  const bool finite = std::abs(energy) <= std::numeric_limits<T>::max();
  const T scale = finite ? std::sqrt(new_e / direction_energy) : std::numeric_limits<T>::quiet_NaN();
  return {mean, new_m / root, scale, finite && new_m == m && new_e == energy, finite && constant};
}

template <class T>
void rescale_constant_tile(const Band<T>& band, int64_t i, const Rescaling<T>& r) {
  const int64_t size = band.tile.size();
  for (int64_t k = 0; k < size; ++k) {
    const T direction = k == size - size % 2 ? T(0) : k % 2 ? T(-1) : T(1);
    band.x[k / band.tile.width * band.stride + i * band.tile.width + k % band.tile.width] =
        r.new_mean + r.scale * direction;
  }
}

template <class T>
void rescale_tile(const Band<T>& band, int64_t i, const Rescaling<T>& r) {
  for (int64_t row = 0; row < band.tile.height; ++row) {
    T* x = band.x + row * band.stride + i * band.tile.width;
    for (int64_t k = 0; k < band.tile.width; ++k) x[k] = r.new_mean + r.scale * (x[k] - r.mean);
  }
}

}  // namespace

template <class T>
void project_tile_stats(T* x, const Shape& shape, const TileProjection<T>& projection) {
  const Region region = projection.region;
  const Tile tile = region.tile;
  const int64_t down = region.height / tile.height, in_band = region.width / tile.width;
  const int64_t num_bands = shape.channels * down, num_tiles = num_bands * in_band;
  const int64_t band_size = tile.height * region.width;
  const int64_t grain = std::max<int64_t>(1, kGrain / band_size);
  const T count = static_cast<T>(tile.size());
  const T root = static_cast<T>(std::sqrt(static_cast<double>(tile.size())));
  auto band_at = [&](int64_t i) {
    const int64_t row = i / down * shape.height + region.top + i % down * tile.height;
    return Band<T>{x + row * shape.width + region.left, tile, region.width, shape.width};
  };

  // `stats` and `projected` hold the scaled means of all tiles, then their energies.
  Scratch<T> means(num_tiles), stats(2 * num_tiles), projected(2 * num_tiles);
  parallel_for(num_bands, grain, [&](int64_t begin, int64_t end) {
    Scratch<T> column_means(region.width), sums(region.width), padding(power_of_two_from(tile.size()));
    for (int64_t b = begin; b < end; ++b) {
      const Band<T> band = band_at(b);
      T* mean = &means[b * in_band];
      std::fill(column_means.data(), column_means.data() + region.width, T(0));
      sum_tiles(band, column_means.data(), sums.data(), padding.data(), mean, Identity{});
      for (int64_t i = 0; i < in_band; ++i) {
        mean[i] /= count;
        stats[b * in_band + i] = root * mean[i];
      }
      spread(mean, column_means.data(), in_band, tile.width);
      sum_tiles(band, column_means.data(), sums.data(), padding.data(), &stats[num_tiles + b * in_band],
                CentredSquare{});
    }
  });

  parallel_for(2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t which = begin; which < end; ++which) {
      T* statistic = &projected[which * num_tiles];
      std::memcpy(statistic, &stats[which * num_tiles], static_cast<size_t>(num_tiles) * sizeof(T));
      for (int64_t k = 0; k < projection.num_tables; ++k)
        project_2os<T>(statistic, 1, projection.tables[k][which]);
    }
  });

  parallel_for(num_bands, grain, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const Band<T> band = band_at(b);
      for (int64_t i = 0; i < in_band; ++i) {
        const int64_t t = b * in_band + i;
        const Rescaling<T> r = rescaling(means[t], stats[num_tiles + t], stats[t], projected[t],
                                         projected[num_tiles + t], root, tile.size());
        if (r.unchanged) continue;
        r.constant ? rescale_constant_tile(band, i, r) : rescale_tile(band, i, r);
      }
    }
  });
}

template void project_tile_stats<float>(float*, const Shape&, const TileProjection<float>&);
template void project_tile_stats<double>(double*, const Shape&, const TileProjection<double>&);

}  // namespace noisetilt::NOISETILT_VARIANT
