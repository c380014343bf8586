// Tile statistics (DESIGN section 3) by a team of thread blocks. Every block holds whole tiles.
#pragma once

#include "order_stats.cuh"
#include "tiles.cuh"

namespace noisetilt::cuda {

// A tile is constant if its energy is at most size (kConstantRatio mean)^2, or below kConstantEnergy.
template <class T>
constexpr T kConstantRatio = static_cast<T>(sizeof(T) == 4 ? 0x1p-18 : 0x1p-47);
template <class T>
constexpr T kConstantEnergy = static_cast<T>(sizeof(T) == 4 ? 0x1p-90 : 0x1p-900);

// A tile size and its tables: tables[2 k] of the means and tables[2 k + 1] of the energies, for chunk size k.
template <class T>
struct TileStatsProblem {
  TileGrid grid;
  T root;  // square root of the tile's size
  int32_t unit;
  int32_t first_tile;  // number of tiles of the sizes before
  int32_t num_tiles;
  int32_t num_chunk_sizes;
  const DeviceTable<T>* tables;
  const Buckets* buckets;  // of all tables
};

template <class T>
class TeamTileStats {
 public:
  // Storage of a team in global memory, see whitening_buffers.h. The statistics of tile t are at [0][t],
  // sqrt(K) mean, and at [1][t], energy.
  struct GlobalStorage {
    T* measured[2];   // of every tile size
    T* projected[2];  // of the tile size that is projected
    T* means;         // of every tile size
  };

  __device__ TeamTileStats(Team& team, TeamOrderStats<T>& order_stats, const GlobalStorage& storage)
      : team_(team), order_stats_(order_stats), storage_(storage) {}

  // Measures the tiles of x. Its values must be written before a __syncthreads.
  __device__ __noinline__ void measure(const Slice<T>& x, const TileStatsProblem<T>& problem,
                                       BlockRotation& rotation) {
    measured_ ^= 1u << problem.unit;
    const TileGrid grid = problem.grid;
    const int32_t P = problem.num_tiles, size = grid.size();
    const T count = static_cast<T>(size);
    T *means = storage_.means + problem.first_tile, *statistics = measured(problem);
    const WarpTileReduce reduce(size);
    const Slice<T> slice = x;
    reduce.for_each(x.begin / size, x.end / size, rotation, [=](int32_t tile, bool valid) {
      const T* values = &slice[grid.first_of(tile)];
      const T mean =
          reduce.template sum<T>(size, [=](int32_t i) { return values[grid.offset_of(i)]; }) / count;
      const T energy = reduce.template sum<T>(size, [=](int32_t i) {
        const T centred = values[grid.offset_of(i)] - mean;
        return centred * centred;
      });
      if (!valid || threadIdx.x % reduce.lanes != 0) return;
      means[tile] = mean;
      statistics[tile] = problem.root * mean;
      statistics[P + tile] = energy;
    });
  }

  // Counts the statistics, in a round of counting: if it settles the unit, the tiles stay as they are. A team
  // barrier must follow measure() first.
  __device__ void count(const Slice<T>& x, const TileStatsProblem<T>& problem, BlockRotation& rotation) {
    const Vectors<T> v = vectors(x, problem, measured(problem), nullptr);
    for (int32_t k = 0; k < problem.num_chunk_sizes; ++k)
      order_stats_.count(v, problem.tables + 2 * k, problem.buckets, rotation);
    for (int32_t tile = v.begin + static_cast<int32_t>(threadIdx.x); tile < v.end; tile += blockDim.x) {
      if (!is_finite(v.in(1)[tile])) order_stats_.declare_unsettled(problem.unit);
    }
  }

  // Projects the statistics and rescales the tiles. A team barrier must follow measure() first. The block's
  // threads may read x after a __syncthreads. `counted`: the verdict of a round that has just found these
  // statistics unsettled, or null.
  __device__ void project_tile_stats(const Slice<T>& x, const TileStatsProblem<T>& problem,
                                     const Verdict* counted) {
    T* statistics = measured(problem);
    for (int32_t k = 0; k < problem.num_chunk_sizes; ++k) {
      if (k > 0) team_.sync();
      projected_ ^= 1;
      T* projected = storage_.projected[projected_];
      const Vectors<T> v = vectors(x, problem, statistics, projected);
      const DeviceTable<T>* tables = problem.tables + 2 * k;
      if (tables[0].is_small())
        order_stats_.project_2os_small(v, tables);
      else if (k == 0 && counted != nullptr)
        order_stats_.project_2os_counted(v, tables, problem.buckets, *counted);
      else
        project_2os_in_round(v, tables, problem.buckets);
      statistics = projected;
    }
    __syncthreads();
    rescale(x, problem, statistics);
  }

 private:
  __device__ T* measured(const TileStatsProblem<T>& problem) const {
    return storage_.measured[(measured_ >> problem.unit) & 1] + 2 * problem.first_tile;
  }

  __device__ Vectors<T> vectors(const Slice<T>& x, const TileStatsProblem<T>& problem, const T* in,
                                T* out) const {
    const int32_t size = problem.grid.size();
    return {in, out, 2, problem.num_tiles, x.begin / size, x.end / size};
  }

  // Projects statistics that are not small: in a round of counting of their own, or by sorting.
  __device__ void project_2os_in_round(const Vectors<T>& v, const DeviceTable<T>* tables,
                                       const Buckets* buckets) {
    if (!tables[0].is_counted()) return order_stats_.project_2os_by_sorting(v, tables);
    BlockRotation rotation;
    order_stats_.count(v, tables, buckets, rotation);
    team_.sync();
    order_stats_.sum_up(tables, tables + 2, true);
    team_.sync();
    const Verdict verdict = order_stats_.verdict(tables[0].unit);
    order_stats_.end_round();
    if (verdict.unsettled) return order_stats_.project_2os_counted(v, tables, buckets, verdict);
    for (int32_t f = 0; f < v.count; ++f) {
      for (int32_t i = v.begin + threadIdx.x; i < v.end; i += blockDim.x) v.out(f)[i] = v.in(f)[i];
    }
  }

  __device__ __noinline__ void rescale(const Slice<T>& x, const TileStatsProblem<T>& problem,
                                       const T* projected) {
    const int32_t P = problem.num_tiles, size = problem.grid.size();
    const T *means = storage_.means + problem.first_tile, *statistics = measured(problem);
    const WarpTileReduce reduce(size);
    BlockRotation rotation;
    reduce.for_each(x.begin / size, x.end / size, rotation, [&](int32_t tile, bool valid) {
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
      for (int32_t i = static_cast<int32_t>(threadIdx.x) % reduce.lanes; i < size; i += reduce.lanes) {
        T& value = values[problem.grid.offset_of(i)];
        const T alternating = i == size - size % 2 ? T(0) : i % 2 ? T(-1) : T(1);
        value = new_mean + scale * (constant ? alternating : value - mean);
      }
    });
  }

  Team& team_;
  TeamOrderStats<T>& order_stats_;
  const GlobalStorage& storage_;
  uint32_t measured_ = 0;  // the copy of measured in use, a bit for each unit
  int32_t projected_ = 0;  // the copy of projected in use
};

}  // namespace noisetilt::cuda
