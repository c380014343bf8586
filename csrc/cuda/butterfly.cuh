// Butterfly steps (DESIGN section 4) and steps of the Walsh-Hadamard transform, several at a time in
// registers.
//
// One step on K values writes the sum of values 2i and 2i + 1 to place i and their difference to place
// K/2 + i. Therefore s steps combine groups of 2^s values: group g begins at value 2^s g, step t combines
// values of the group whose indices differ in bit t, and result i goes to place g + i K/2^s. This holds for
// every K that 2^s divides.
#pragma once

#include "policy.h"
#include "tiles.cuh"

namespace noisetilt::cuda {

constexpr int32_t kMaxStepsAtOnce = Policy::Butterfly::kMaxStepsAtOnce;
static_assert(kMaxStepsAtOnce == 4, "the kernels have a case for each number of steps from 1 to 4");

template <class T, bool kOrthonormal>
__device__ inline T step_scaled(T v) {
  return kOrthonormal ? v * static_cast<T>(0.70710678118654752440) : v;
}

// Number of steps to take at once if `steps` remain, on vectors of `size` values.
__host__ __device__ inline int32_t steps_at_once(int32_t steps, int32_t size) {
  int32_t s = 1;
  while (s < kMaxStepsAtOnce && s < steps && size % (2 << s) == 0) ++s;
  return s;
}

// S steps on the 2^S values of a group.
template <int32_t S, bool kOrthonormal, bool kInverse, class T>
__device__ inline void butterfly(T* v) {
#pragma unroll
  for (int32_t step = 0; step < S; ++step) {
    const int32_t bit = 1 << (kInverse ? S - 1 - step : step);
#pragma unroll
    for (int32_t i = 0; i < (1 << S); ++i) {
      if (i & bit) continue;
      const T a = v[i], b = v[i | bit];
      v[i] = step_scaled<T, kOrthonormal>(a + b);
      v[i | bit] = step_scaled<T, kOrthonormal>(a - b);
    }
  }
}

// S steps on group `group` of a vector of `size` values. load(place) returns a value, store(place, value)
// writes one.
template <int32_t S, bool kOrthonormal, bool kInverse, class T, class Load, class Store>
__device__ inline void butterfly_group(int32_t group, int32_t size, const Load& load, const Store& store) {
  constexpr int32_t n = 1 << S;
  const auto place_of = [&](int32_t i, bool consecutive) {
    return consecutive ? group * n + i : group + i * (size >> S);
  };
  T v[n];
#pragma unroll
  for (int32_t i = 0; i < n; ++i) v[i] = load(place_of(i, !kInverse));
  butterfly<S, kOrthonormal, kInverse>(v);
#pragma unroll
  for (int32_t i = 0; i < n; ++i) store(place_of(i, kInverse), v[i]);
}

// The same for a number of steps known at run time, from 1 to kMaxStepsAtOnce.
template <bool kOrthonormal, bool kInverse, class T, class Load, class Store>
__device__ inline void butterfly_group(int32_t steps, int32_t group, int32_t size, const Load& load,
                                       const Store& store) {
  switch (steps) {
    case 1:
      return butterfly_group<1, kOrthonormal, kInverse, T>(group, size, load, store);
    case 2:
      return butterfly_group<2, kOrthonormal, kInverse, T>(group, size, load, store);
    case 3:
      return butterfly_group<3, kOrthonormal, kInverse, T>(group, size, load, store);
    default:
      return butterfly_group<4, kOrthonormal, kInverse, T>(group, size, load, store);
  }
}

// `steps` steps on the tiles begin .. end - 1, by `num_threads` threads; `thread` is the number of this one.
// Forwards, only one step at a time.
template <bool kInverse, class In, class Out>
__device__ __noinline__ void butterfly_tiles(In in, Out out, const FastTileGrid* grid_, int32_t begin,
                                             int32_t end, int32_t steps, int32_t thread,
                                             int32_t num_threads) {
  using T = typename In::Value;
  const FastTileGrid& grid = *in_shared(grid_);
  const int32_t size = grid.size(), groups = size >> steps;
  for (int32_t k = thread; k < (end - begin) * groups; k += num_threads) {
    const int32_t tile = begin + grid.tiles_in(k << steps), group = k - (tile - begin) * groups;
    const int32_t first = grid.first_of(tile);
    const auto load = [&](int32_t place) { return in[first + grid.offset_of(place)]; };
    const auto store = [&](int32_t place, T value) { out[first + grid.offset_of(place)] = value; };
    if constexpr (kInverse)
      butterfly_group<true, true, T>(steps, group, size, load, store);
    else
      butterfly_group<1, true, false, T>(group, size, load, store);
  }
}

// One step by the threads of the block. Computes the results that lie in `out`; `in` must hold all tiles that
// overlap `out`.
template <class In, class Out>
__device__ __noinline__ void butterfly_step(In in, Out out, const FastTileGrid* grid_) {
  using T = typename In::Value;
  const FastTileGrid& grid = *in_shared(grid_);
  const int32_t half = grid.size() / 2;
  for (int32_t place = out.begin + static_cast<int32_t>(threadIdx.x); place < out.end; place += blockDim.x) {
    const auto [tile, i] = grid.position_of(place);
    const int32_t first = grid.first_of(tile), pair = 2 * (i < half ? i : i - half);
    const T a = in[first + grid.offset_of(pair)], b = in[first + grid.offset_of(pair + 1)];
    out[place] = step_scaled<T, true>(i < half ? a + b : a - b);
  }
}

}  // namespace noisetilt::cuda
