// Tile statistics, DESIGN section 3, by a team of thread blocks, each of which holds whole tiles.
#pragma once

#include "order_stats.cuh"
#include "tiles.cuh"

namespace noisetilt::cuda {

template <class T>
constexpr T kConstantRatio = static_cast<T>(sizeof(T) == 4 ? 0x1p-18 : 0x1p-47);
template <class T>
constexpr T kConstantEnergy = static_cast<T>(sizeof(T) == 4 ? 0x1p-90 : 0x1p-900);

// What the blocks of a team share, in global memory.
template <class T>
struct TileStatsMemory {
  // Statistics of tile t at [which][t]: sqrt(K) mean, energy. There is one array for each stage of projection, in
  // rotation: it is written again three stages later, and of any three stages one ends with a team barrier, so by
  // then nobody reads it.
  T* stages[3];
  // What a block keeps of its own tiles until they are rescaled, as many values as there are in a sample. A block
  // keeps to its slice's places here, since tiles of another size are numbered differently.
  T *means, *measured;
};

// A tile size and its tables: fields[2 k] of the means, fields[2 k + 1] of the energies, for chunk size k.
template <class T>
struct TileStatsProblem {
  TileGrid grid;
  T root;  // of the tile's size
  int32_t num_tiles;
  int32_t num_chunk_sizes;
  const Field<T>* fields;
  const Buckets* buckets;
};

template <class T>
class TileStats {
 public:
  __device__ TileStats(Team& team, OrderStats<T>& order_stats, const TileStatsMemory<T>& memory)
      : team_(team), order_stats_(order_stats), memory_(memory) {}

  // Slice and result are for the block's threads after a __syncthreads.
  __device__ void project(const Slice<T>& x, const TileStatsProblem<T>& problem) {
    const int32_t P = problem.num_tiles, size = problem.grid.size();
    const int32_t begin = x.begin / size, end = x.end / size;
    const TileLanes lanes(size);
    T* statistics = next_stage();
    measure(x, problem, lanes, begin, end, statistics);
    for (int32_t k = 0; k < problem.num_chunk_sizes; ++k) {
      const Field<T>* fields = problem.fields + 2 * k;
      team_.sync();
      T* projected = next_stage();
      const Vectors<T> vectors{statistics, projected, 2, P, begin, end};
      if (fields[0].is_small())
        order_stats_.project_small(vectors, fields);
      else
        order_stats_.project(vectors, fields, problem.buckets + 2 * k, true);
      statistics = projected;
    }
    __syncthreads();
    rescale(x, problem, lanes, begin, end, statistics);
  }

 private:
  __device__ T* next_stage() {
    T* stage = memory_.stages[stage_];
    stage_ = stage_ == 2 ? 0 : stage_ + 1;
    return stage;
  }

  __device__ void measure(const Slice<T>& x, const TileStatsProblem<T>& problem, const TileLanes& lanes, int32_t begin,
                          int32_t end, T* statistics) {
    const int32_t P = problem.num_tiles, size = problem.grid.size();
    const T count = static_cast<T>(size);
    lanes.for_each(begin, end, [&](int32_t tile, bool valid) {
      const T* values = &x[problem.grid.first_of(tile)];
      const T mean = lanes.sum<T>(size, [&](int32_t i) { return values[problem.grid.offset_of(i)]; }) / count;
      const T energy = lanes.sum<T>(size, [&](int32_t i) {
        const T centred = values[problem.grid.offset_of(i)] - mean;
        return centred * centred;
      });
      if (!valid || threadIdx.x % lanes.lanes != 0) return;
      const int32_t kept = x.begin + tile - begin;
      memory_.means[kept] = mean;
      memory_.measured[kept] = statistics[tile] = problem.root * mean;
      memory_.measured[kept + end - begin] = statistics[P + tile] = energy;
    });
  }

  __device__ void rescale(const Slice<T>& x, const TileStatsProblem<T>& problem, const TileLanes& lanes, int32_t begin,
                          int32_t end, const T* projected) {
    const int32_t P = problem.num_tiles, size = problem.grid.size();
    lanes.for_each(begin, end, [&](int32_t tile, bool valid) {
      if (!valid) return;
      const int32_t kept = x.begin + tile - begin;
      const T mean = memory_.means[kept], m = memory_.measured[kept], energy = memory_.measured[kept + end - begin];
      const T new_m = projected[tile], new_e = projected[P + tile];
      const bool finite = is_finite(energy);
      if (finite && new_m == m && new_e == energy) return;

      const T offset = kConstantRatio<T> * mean;
      const bool constant =
          finite && (energy <= static_cast<T>(size) * (offset * offset) || energy < kConstantEnergy<T>);
      const T direction_energy = constant ? static_cast<T>(size - size % 2) : energy;
      const T scale = finite ? sqrt(new_e / direction_energy) : quiet_nan<T>();
      const T new_mean = new_m / problem.root;
      T* values = &x[problem.grid.first_of(tile)];
      for (int32_t i = static_cast<int32_t>(threadIdx.x) % lanes.lanes; i < size; i += lanes.lanes) {
        T& value = values[problem.grid.offset_of(i)];
        const T alternating = i == size - size % 2 ? T(0) : i % 2 ? T(-1) : T(1);
        value = new_mean + scale * (constant ? alternating : value - mean);
      }
    });
  }

  Team& team_;
  OrderStats<T>& order_stats_;
  const TileStatsMemory<T>& memory_;
  int32_t stage_ = 0;
};

}  // namespace noisetilt::cuda
