// Tile statistics, DESIGN section 3, by a team of thread blocks, each of which holds whole tiles.
#pragma once

#include "order_stats.cuh"
#include "tiles.cuh"

namespace noisetilt::cuda {

template <class T>
constexpr T kConstantRatio = static_cast<T>(sizeof(T) == 4 ? 0x1p-18 : 0x1p-47);
template <class T>
constexpr T kConstantEnergy = static_cast<T>(sizeof(T) == 4 ? 0x1p-90 : 0x1p-900);

// What the blocks of a team share, in global memory. Statistics of tile t are at [which][t]: sqrt(K) mean,
// energy. Each array has a twin to write next: nobody reads it any more, since a team barrier lies between
// writing and reading.
template <class T>
struct TileStatsMemory {
  T* measured[2];   // of every tile size
  T* projected[2];  // of the one in work
  T* means;         // of every tile size
};

// A tile size and its tables: fields[2 k] of the means, fields[2 k + 1] of the energies, for chunk size k.
template <class T>
struct TileStatsProblem {
  TileGrid grid;
  T root;  // of the tile's size
  int32_t unit;
  int32_t first_tile;  // in memory: the number of tiles of the sizes before
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

  // Measures the tiles of x, which is there after a __syncthreads.
  __device__ __noinline__ void measure(const Slice<T>& x, const TileStatsProblem<T>& problem,
                                       Rotation& rotation) {
    measured_ ^= 1u << problem.unit;
    const TileGrid grid = problem.grid;
    const int32_t P = problem.num_tiles, size = grid.size();
    const T count = static_cast<T>(size);
    T *means = memory_.means + problem.first_tile, *statistics = measured(problem);
    const TileLanes lanes(size);
    const Slice<T> slice = x;
    lanes.for_each(x.begin / size, x.end / size, rotation, [=](int32_t tile, bool valid) {
      const T* values = &slice[grid.first_of(tile)];
      const T mean =
          lanes.template sum<T>(size, [=](int32_t i) { return values[grid.offset_of(i)]; }) / count;
      const T energy = lanes.template sum<T>(size, [=](int32_t i) {
        const T centred = values[grid.offset_of(i)] - mean;
        return centred * centred;
      });
      if (!valid || threadIdx.x % lanes.lanes != 0) return;
      means[tile] = mean;
      statistics[tile] = problem.root * mean;
      statistics[P + tile] = energy;
    });
  }

  // For a round of counting, a team barrier after measure(): settled, the tiles stay as they are.
  __device__ void count(const Slice<T>& x, const TileStatsProblem<T>& problem, Rotation& rotation) {
    const Vectors<T> v = vectors(x, problem, measured(problem), nullptr);
    for (int32_t k = 0; k < problem.num_chunk_sizes; ++k)
      order_stats_.count(v, problem.fields + 2 * k, problem.buckets + 2 * k, rotation);
    for (int32_t tile = v.begin + static_cast<int32_t>(threadIdx.x); tile < v.end; tile += blockDim.x) {
      if (!is_finite(v.in(1)[tile])) order_stats_.declare_unsettled(problem.unit);
    }
  }

  // A team barrier after measure(): projects the statistics and rescales the tiles. x is for the block's
  // threads after a __syncthreads. `counted`: the verdict, if a round has just found these statistics
  // unsettled; or null.
  __device__ void project(const Slice<T>& x, const TileStatsProblem<T>& problem, const Verdict* counted) {
    T* statistics = measured(problem);
    for (int32_t k = 0; k < problem.num_chunk_sizes; ++k) {
      if (k > 0) team_.sync();
      projected_ ^= 1;
      T* projected = memory_.projected[projected_];
      const Vectors<T> v = vectors(x, problem, statistics, projected);
      const Field<T>* fields = problem.fields + 2 * k;
      if (fields[0].is_small())
        order_stats_.project_small(v, fields);
      else if (k == 0 && counted != nullptr)
        order_stats_.project_counted(v, fields, problem.buckets, *counted);
      else
        project_long(v, fields, problem.buckets + 2 * k);
      statistics = projected;
    }
    __syncthreads();
    rescale(x, problem, statistics);
  }

 private:
  __device__ T* measured(const TileStatsProblem<T>& problem) const {
    return memory_.measured[(measured_ >> problem.unit) & 1] + 2 * problem.first_tile;
  }

  __device__ Vectors<T> vectors(const Slice<T>& x, const TileStatsProblem<T>& problem, const T* in,
                                T* out) const {
    const int32_t size = problem.grid.size();
    return {in, out, 2, problem.num_tiles, x.begin / size, x.end / size};
  }

  __device__ void project_long(const Vectors<T>& v, const Field<T>* fields, const Buckets* buckets) {
    if (!fields[0].is_counted()) return order_stats_.project_by_sorting(v, fields);
    Rotation rotation;
    order_stats_.count(v, fields, buckets, rotation);
    team_.sync();
    order_stats_.sum_up(fields, fields + 2, true);
    team_.sync();
    const Verdict verdict = order_stats_.verdict(fields[0].unit);
    order_stats_.end_round();
    if (verdict.unsettled) return order_stats_.project_counted(v, fields, buckets, verdict);
    for (int32_t f = 0; f < v.count; ++f) {
      for (int32_t i = v.begin + threadIdx.x; i < v.end; i += blockDim.x) v.out(f)[i] = v.in(f)[i];
    }
  }

  __device__ __noinline__ void rescale(const Slice<T>& x, const TileStatsProblem<T>& problem,
                                       const T* projected) {
    const int32_t P = problem.num_tiles, size = problem.grid.size();
    const T *means = memory_.means + problem.first_tile, *statistics = measured(problem);
    const TileLanes lanes(size);
    Rotation rotation;
    lanes.for_each(x.begin / size, x.end / size, rotation, [&](int32_t tile, bool valid) {
      if (!valid) return;
      const T mean = means[tile], m = statistics[tile], energy = statistics[P + tile];
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
  uint32_t measured_ = 0;  // which of the twins, a bit for each unit
  int32_t projected_ = 0;
};

}  // namespace noisetilt::cuda
