// Slices of a sample, and sums over the values of a tile.
#pragma once

#include "team.cuh"
#include "tile_grid.h"

namespace noisetilt::cuda {

// A block's part of a sample: values begin .. end - 1, of which values[0] is the first. kShared: in shared
// memory.
template <class T, bool kShared>
struct Slice {
  using Value = T;
  T* values;
  int32_t begin, end;
  __device__ T& operator[](int32_t place) const {
    return (kShared ? in_shared(values) : in_global(values))[place - begin];
  }
};

// Sum of leaf(0) .. leaf(count - 1) by halving, leaf(i) + leaf(i + count/2) first; count is a power of two.
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
__device__ inline T halving_sum(int32_t count, const Leaf& leaf) {
  // Depth first: leaves come in the order of their reversed bits, and sums[k] is a finished left half of 2^k
  // leaves.
  constexpr int32_t kMaxDepth = 31;
  T sums[kMaxDepth];
  const int32_t bits = 31 - __clz(count);
  T sum = 0;
  for (int32_t k = 0; k < count; ++k) {
    sum = leaf(bits == 0 ? 0 : static_cast<int32_t>(__brev(static_cast<uint32_t>(k)) >> (32 - bits)));
    int32_t level = 0;
    for (; (k >> level) & 1; ++level) sum = sums[level] + sum;
    if (level < kMaxDepth) sums[level] = sum;
  }
  return sum;
}

// Reduction of tiles by groups of lanes of a warp, one group for each tile.
struct WarpTileReduce {
  int32_t lanes;  // of a group: a power of two up to a warp
  int32_t share;  // values of a lane: a power of two. Beyond the size of the tile, they are zero.

  // Few lanes: values that a lane adds up alone need no shuffle.
  __device__ explicit WarpTileReduce(int32_t size) : lanes(1), share(1) {
    int32_t padded = 1;
    while (padded < size) padded *= 2;
    share = padded >= 64 ? 16 : padded >= 4 ? 4 : 1;
    lanes = min(padded / share, static_cast<int32_t>(kWarpThreads));
    share = padded / lanes;
  }

  __device__ int32_t lane() const { return static_cast<int32_t>(threadIdx.x) & (lanes - 1); }

  // Sum over the group of what its lanes have added up, in the halving order that DESIGN defines: lane l has
  // the values l, l + lanes, l + 2 lanes ... of the tile. All lanes get it. Every lane of the warp must take
  // part.
  template <class T>
  __device__ T sum(T v) const {
    for (int32_t d = lanes / 2; d > 0; d /= 2) v += __shfl_xor_sync(kAllLanes, v, d);
    return v;
  }

  // Calls body(tile, valid) for the tiles begin .. end - 1, spread over the block. All lanes of a warp call
  // it together; those without a tile call it with `valid` false.
  template <class Body>
  __device__ void for_each(int32_t begin, int32_t end, BlockRotation rotation, const Body& body) const {
    const int32_t shift = 31 - __clz(lanes), per_round = static_cast<int32_t>(blockDim.x) >> shift;
    const int32_t in_warp =
        static_cast<int32_t>(threadIdx.x % kWarpThreads) >> shift;  // groups before this one
    for (int32_t tile = begin + (rotation.thread() >> shift); tile - in_warp < end; tile += per_round)
      body(min(tile, end - 1), tile < end);
  }
};

}  // namespace noisetilt::cuda
