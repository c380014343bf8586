// Orthogonal transforms, DESIGN section 4: butterfly and Walsh-Hadamard.

#include "transforms.h"

#include <algorithm>

#include "../tiling.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"
#include "simd.h"
#include "walsh_hadamard.h"

namespace noisetilt::NOISETILT_VARIANT {
namespace {

constexpr int64_t kGrain = 8192;  // fewest values per thread

template <class T>
constexpr T kSqrtHalf = static_cast<T>(0.70710678118654752440);

// Copies `count` values; `from` and `to` may be the same.
template <class T>
void copy(const T* from, T* to, int64_t count) {
  if (from != to) std::memcpy(to, from, static_cast<size_t>(count) * sizeof(T));
}

// One butterfly step of a vector of even length. `in` and `out` must not overlap.
template <class T>
void butterfly_step(const T* in, T* out, int64_t size) {
  constexpr int W = kLanes<T>;
  const int64_t half = size / 2;
  int64_t i = 0;
  for (; i + W <= half; i += W) {
    auto [even, odd] = unzip<T>(load<T>(in + 2 * i), load<T>(in + 2 * i + W));
    store<T>(out + i, (even + odd) * kSqrtHalf<T>);
    store<T>(out + half + i, (even - odd) * kSqrtHalf<T>);
  }
  for (; i < half; ++i) {
    out[i] = (in[2 * i] + in[2 * i + 1]) * kSqrtHalf<T>;
    out[half + i] = (in[2 * i] - in[2 * i + 1]) * kSqrtHalf<T>;
  }
}

template <class T>
void butterfly_step_inverse(const T* in, T* out, int64_t size) {
  constexpr int W = kLanes<T>;
  const int64_t half = size / 2;
  int64_t i = 0;
  for (; i + W <= half; i += W) {
    const Vector<T> total = load<T>(in + i), difference = load<T>(in + half + i);
    auto [first, second] = zip<T>((total + difference) * kSqrtHalf<T>, (total - difference) * kSqrtHalf<T>);
    store<T>(out + 2 * i, first);
    store<T>(out + 2 * i + W, second);
  }
  for (; i < half; ++i) {
    out[2 * i] = (in[i] + in[half + i]) * kSqrtHalf<T>;
    out[2 * i + 1] = (in[i] - in[half + i]) * kSqrtHalf<T>;
  }
}

// `steps` steps from `in` to `out`. `spare` is working memory of the same size. The three must not overlap.
template <class T>
void butterfly_steps(const T* in, T* out, T* spare, int64_t size, int64_t steps, bool inverse) {
  if (steps == 0) std::memcpy(out, in, static_cast<size_t>(size) * sizeof(T));
  for (int64_t left = steps; left > 0; --left) {
    T* to = left % 2 ? out : spare;  // the last step ends in `out`
    (inverse ? butterfly_step_inverse<T> : butterfly_step<T>)(in, to, size);
    in = to;
  }
}

// Copies a tile to the vector v, or back. The rows of the tile lie `stride` apart in `plane`.
template <class T>
void gather_tile(const T* plane, int64_t stride, Tile tile, T* v) {
  for (int64_t row = 0; row < tile.height; ++row)
    for (int64_t k = 0; k < tile.width; ++k) v[row * tile.width + k] = plane[row * stride + k];
}
template <class T>
void scatter_tile(const T* v, int64_t stride, Tile tile, T* plane) {
  for (int64_t row = 0; row < tile.height; ++row)
    for (int64_t k = 0; k < tile.width; ++k) plane[row * stride + k] = v[row * tile.width + k];
}

// The tiles of a region, from x to out, which may be the same.
template <class T>
void butterfly_region(const T* x, T* out, int64_t batch, const Shape& shape, const Region& region,
                      int64_t steps, bool inverse) {
  const Tile tile = region.tile;
  const int64_t size = tile.size(), across = region.width / tile.width, down = region.height / tile.height;
  const int64_t num_tiles = batch * region.tiles_in(shape);
  const bool complete = steps < 63 && size == int64_t(1) << steps;
  const bool contiguous = tile.width == shape.width;  // the tile has no gaps between its rows
  parallel_for(num_tiles, std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
    Scratch<T> buffers(3 * size);
    T *gathered = buffers.data(), *result = gathered + size, *spare = result + size;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t band = t / across;
      const int64_t row = band / down * shape.height + region.top + band % down * tile.height;
      const int64_t place = row * shape.width + region.left + t % across * tile.width;
      const T* plane = x + place;
      if (complete && contiguous) {
        copy(plane, out + place, size);
        (inverse ? walsh_hadamard<T, true, true> : walsh_hadamard<T, true, false>)(out + place, size);
        continue;
      }
      const T* from = plane;
      if (!contiguous) {
        gather_tile(plane, shape.width, tile, gathered);
        from = gathered;
      }
      butterfly_steps(from, result, spare, size, steps, inverse);
      scatter_tile(result, shape.width, tile, out + place);
    }
  });
}

}  // namespace

template <class T>
void butterfly(const T* x, T* out, int64_t batch, Shape shape, Tile tile, int64_t steps, bool inverse) {
  const Regions regions = mixing_regions(shape, tile);
  if (size_of(regions) < shape.height * shape.width) copy(x, out, batch * shape.size());
  for (const Region& region : regions) butterfly_region(x, out, batch, shape, region, steps, inverse);
}

template void butterfly<float>(const float*, float*, int64_t, Shape, Tile, int64_t, bool);
template void butterfly<double>(const double*, double*, int64_t, Shape, Tile, int64_t, bool);

namespace {

template <class T>
void hadamard_transform(const T* x, T* out, int64_t batch, int64_t size, T scale) {
  parallel_for(batch, std::max<int64_t>(1, kGrain / size), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      T* v = out + b * size;
      copy(x + b * size, v, size);
      walsh_hadamard<T, false, false>(v, size);
      for (int64_t i = 0; i < size; ++i) v[i] *= scale;
    }
  });
}

}  // namespace

template <class T>
void add_transforms_kernels(Kernels<T>& kernels) {
  kernels.butterfly = butterfly<T>;
  kernels.hadamard_transform = hadamard_transform<T>;
}
template void add_transforms_kernels<float>(Kernels<float>&);
template void add_transforms_kernels<double>(Kernels<double>&);

}  // namespace noisetilt::NOISETILT_VARIANT
