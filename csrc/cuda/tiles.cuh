// Where the values of a tile lie in a sample [channels][height][width], and sums over them.
#pragma once

#include "../problem.h"
#include "team.cuh"

namespace noisetilt::cuda {

// Tiles of height x width are numbered row by row of the sample's planes, their values row by row of the
// tile. A tile whose rows follow each other counts as one row, and as all there is across the sample.
struct TileGrid {
  int32_t height, width;
  int32_t row_length;  // of the sample
  int32_t across;      // tiles in a row of them
  int32_t shift;  // log2 of width, -1 if it is no power of two; for a tile of one row anything from there up

  __host__ __device__ int32_t size() const { return height * width; }
  // Slices of a sample that are multiples of this divide no tile.
  __host__ __device__ int32_t band() const { return height * row_length; }
  __host__ __device__ bool contiguous() const { return height == 1 && across == 1; }
  // Place in the sample of the tile's first value.
  __device__ int32_t first_of(int32_t tile) const {
    const int32_t band = tile / across;
    return band * height * row_length + (tile - band * across) * width;
  }
  // Place of value i of a tile relative to its first.
  __device__ int32_t offset_of(int32_t i) const {
    const int32_t row = shift >= 0 ? i >> shift : i / width;
    return row * row_length + i - row * width;
  }
  struct Position {
    int32_t tile, i;
  };
  __device__ Position position_of(int32_t place) const {
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

// A block's part of a sample: the values begin to end, values[0] being the first of them.
template <class T>
struct Slice {
  T* values;
  int32_t begin, end;
  __device__ T& operator[](int32_t place) const { return values[place - begin]; }
};

// Sum of leaf(0) .. leaf(count - 1), count a power of two, by halving: leaf(i) + leaf(i + count/2) first.
template <int32_t kCount, class T, class Leaf>
__device__ inline T halving_sum(const Leaf& leaf, int32_t offset = 0, int32_t step = 1) {
  if constexpr (kCount == 1) {
    return leaf(offset);
  } else {
    const T even = halving_sum<kCount / 2, T>(leaf, offset, 2 * step);
    return even + halving_sum<kCount / 2, T>(leaf, offset + step, 2 * step);
  }
}

template <class T, class Leaf>
__device__ __noinline__ T halving_sum(int32_t count, const Leaf& leaf) {
  // Depth first, so leaves come in the order of their reversed bits; sums[k] is a finished left half of 2^k
  // leaves.
  constexpr int32_t kDeepest = 31;
  T sums[kDeepest];
  const int32_t bits = 31 - __clz(count);
  T sum = 0;
  for (int32_t k = 0; k < count; ++k) {
    sum = leaf(bits == 0 ? 0 : static_cast<int32_t>(__brev(static_cast<uint32_t>(k)) >> (32 - bits)));
    int32_t level = 0;
    for (; (k >> level) & 1; ++level) sum = sums[level] + sum;
    if (level < kDeepest) sums[level] = sum;
  }
  return sum;
}

// The lanes that work on a tile together, and their share.
struct TileLanes {
  int32_t lanes;   // a power of two up to a warp
  int32_t padded;  // size of a tile, rounded up to a power of two

  __device__ explicit TileLanes(int32_t size) : lanes(1), padded(1) {
    while (padded < size) padded *= 2;
    lanes = min(padded, static_cast<int32_t>(kWarp));
  }

  // Sum of term(i) over i < size, zero-padded, in the defined halving order; the same for all lanes of the
  // tile. Every lane of the warp must take part.
  template <class T, class Term>
  __device__ T sum(int32_t size, const Term& term) const {
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % lanes, share = padded / lanes;
    const auto leaf = [=](int32_t k) {
      const int32_t i = lane + k * lanes;
      return i < size ? term(i) : T(0);
    };
    T v = share == 1   ? halving_sum<1, T>(leaf)
          : share == 2 ? halving_sum<2, T>(leaf)
          : share == 4 ? halving_sum<4, T>(leaf)
          : share == 8 ? halving_sum<8, T>(leaf)
                       : halving_sum<T>(share, leaf);
    for (int32_t d = lanes / 2; d > 0; d /= 2) v += __shfl_xor_sync(kAllLanes, v, d);
    return v;
  }

  // Calls body(tile, valid) for the tiles begin .. end - 1, spread over the block, with all lanes of a warp
  // at once.
  template <class Body>
  __device__ void for_each(int32_t begin, int32_t end, Rotation& rotation, const Body& body) const {
    const int32_t thread = rotation.thread(), per_round = static_cast<int32_t>(blockDim.x) / lanes;
    const int32_t in_warp = static_cast<int32_t>(threadIdx.x % kWarp) / lanes;  // tiles before this one
    for (int32_t tile = begin + thread / lanes; tile - in_warp < end; tile += per_round)
      body(min(tile, end - 1), tile < end);
    rotation.advance((end - begin) * lanes);
  }
};

}  // namespace noisetilt::cuda
