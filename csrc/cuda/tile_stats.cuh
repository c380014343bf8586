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

// A tile size and its tables, which alternate: of the means and of the energies, for each chunk size. In
// shared memory.
template <class T>
struct TileProblem {
  FastTileGrid grid;
  WarpTileReduce reduce;
  int32_t begin, end;  // tiles of the block
  FastDivisor by_own;  // by their number
  T root;              // square root of the tile's size
  int32_t first_tile;  // number of tiles of the sizes before
  int32_t num_tiles;
  int32_t first_table, num_chunk_sizes;
  int32_t first_step;  // see whitening_plan.h
  bool counted;        // no chunk is sorted
};

constexpr int32_t kNoRound = -1;

// Kept by a block in shared memory.
template <class T, bool kShared>
class TeamTileStats {
 public:
  // Storage of a team in global memory, see whitening_buffers.h. The statistics of tile t are at [0][t],
  // sqrt(K) mean, and at [1][t], energy.
  struct GlobalStorage {
    T* measured[2];   // of every tile size; used alternately
    T* projected[2];  // of the tile size that is projected
    T* means;         // of every tile size
  };
  using Part = Slice<T, kShared>;

  TeamOrderStats<T>* order_stats_;
  const TeamTable<T>* tables;
  const Buckets* buckets;
  GlobalStorage storage;

  // Measures the tiles of x into a copy of the statistics. Its values must be written before a __syncthreads.
  // `round`: that of counting in which they are measured, or kNoRound.
  __device__ __noinline__ BlockRotation measure(Part x, const TileProblem<T>* problem, int32_t copy,
                                                int32_t round, BlockRotation rotation) {
    in_shared(this);
    in_shared(problem);
    const int32_t share = problem->reduce.share;
    if (share == 1)
      measure_tiles<1>(x, *problem, copy, round, rotation);
    else if (share == 4)
      measure_tiles<4>(x, *problem, copy, round, rotation);
    else if (share == 16)
      measure_tiles<16>(x, *problem, copy, round, rotation);
    else
      measure_large_tiles(x, *problem, copy, round, rotation);
    rotation.advance((problem->end - problem->begin) * problem->reduce.lanes);
    return rotation;
  }

  // Counts the statistics, in a round of counting: if it settles all steps, the tiles stay as they are. A
  // team barrier must follow measure() first, unless chunks that are counted lie within blocks.
  __device__ BlockRotation count(const TileProblem<T>& problem, int32_t copy, BlockRotation rotation) {
    return order_stats()->count(statistics(problem, measured(problem, copy), nullptr), problem.by_own,
                                tables_of(problem, 0), 2 * problem.num_chunk_sizes, buckets, rotation);
  }

  // Projects the statistics and rescales the tiles. The block's threads may read x after a __syncthreads.
  // `first`: number of the first chunk size that may change a statistic, or the number of all if only tiles
  // that are not finite change. `counted`: the verdict on it, or zeros if it has not been counted; then a
  // team barrier must follow measure() first. `round`: number of the next round of counting. Returns that of
  // the round after the last one here.
  __device__ __noinline__ int32_t project_tile_stats(Part x, const TileProblem<T>* problem, int32_t copy,
                                                     int32_t first, Verdict counted, int32_t num_steps,
                                                     int32_t round) {
    in_shared(this);
    in_shared(problem);
    const T* in = measured(*problem, copy);
    for (int32_t k = first; k < problem->num_chunk_sizes; ++k) {
      if (k > first) order_stats()->team.sync();
      const Statistics<T> v = statistics(*problem, in, storage.projected[k % 2]);
      const TeamTable<T>* pair = tables_of(*problem, k);
      Verdict verdict = k == first ? counted : Verdict{};
      if (pair->is_counted() && !pair->is_small() && !verdict.unsettled) {
        order_stats()->count(v, problem->by_own, pair, 2, buckets, BlockRotation{});
        order_stats()->team.sync();
        order_stats()->sum_up(pair, pair + 2, true, in, num_steps, round);
        order_stats()->team.sync();
        verdict = order_stats()->verdict(problem->first_step + k, round++);
      }
      if (!pair->is_counted()) {
        order_stats()->project_2os_by_sorting(v, pair);
      } else if (pair->is_small() &&
                 (!verdict.unsettled || pair->size() <= Policy::OrderStats::kMaxUngathered)) {
        for (int32_t f = 0; f < 2; ++f)
          order_stats()->project_2os_small(in + f * v.size, v.out + f * v.size, pair[f], v.begin(), v.end());
      } else {
        order_stats()->project_2os_counted(v, pair, buckets, verdict);
      }
      in = v.out;
    }
    __syncthreads();
    rescale(x, *problem, copy, in);
    return round;
  }

 private:
  __device__ TeamOrderStats<T>* order_stats() const { return in_shared(order_stats_); }

  __device__ T* measured(const TileProblem<T>& problem, int32_t copy) const {
    return in_global(storage.measured[copy]) + 2 * problem.first_tile;
  }

  __device__ const TeamTable<T>* tables_of(const TileProblem<T>& problem, int32_t k) const {
    return in_shared(tables) + problem.first_table + 2 * k;
  }

  __device__ static Statistics<T> statistics(const TileProblem<T>& problem, const T* in, T* out) {
    return {in, out, problem.num_tiles, problem.begin, problem.end};
  }

  __device__ void write(const TileProblem<T>& problem, int32_t copy, int32_t round, int32_t tile, T mean,
                        T energy) const {
    T* statistics = measured(problem, copy);
    in_global(storage.means)[problem.first_tile + tile] = mean;
    statistics[tile] = problem.root * mean;
    statistics[problem.num_tiles + tile] = energy;
    if (!is_finite(energy) && round != kNoRound)
      order_stats()->declare_unsettled(problem.first_step + problem.num_chunk_sizes, round);
  }

  // Measures tiles of which a lane holds kShare values in registers.
  template <int32_t kShare>
  __device__ void measure_tiles(const Part& x, const TileProblem<T>& problem, int32_t copy, int32_t round,
                                BlockRotation rotation) const {
    const FastTileGrid& grid = problem.grid;
    const WarpTileReduce reduce = problem.reduce;
    const int32_t size = grid.size(), lane = reduce.lane();
    reduce.for_each(problem.begin, problem.end, rotation, [&](int32_t tile, bool valid) {
      const int32_t first = grid.first_of(tile);
      T v[kShare];
#pragma unroll
      for (int32_t k = 0; k < kShare; ++k) {
        const int32_t i = lane + k * reduce.lanes;
        v[k] = i < size ? x[first + grid.offset_of(i)] : T(0);
      }
      const T mean =
          reduce.sum(halving_sum<kShare, T>([&](int32_t k) { return v[k]; })) / static_cast<T>(size);
      const T energy = reduce.sum(halving_sum<kShare, T>([&](int32_t k) {
        const T centred = v[k] - mean;
        return lane + k * reduce.lanes < size ? centred * centred : T(0);
      }));
      if (valid && lane == 0) write(problem, copy, round, tile, mean, energy);
    });
  }

  __device__ void measure_large_tiles(const Part& x, const TileProblem<T>& problem, int32_t copy,
                                      int32_t round, BlockRotation rotation) const {
    const WarpTileReduce reduce = problem.reduce;
    const T size = static_cast<T>(problem.grid.size());
    reduce.for_each(problem.begin, problem.end, rotation, [&](int32_t tile, bool valid) {
      const SharedTile of_tile{x, &problem.grid, problem.grid.first_of(tile), reduce.lane(), reduce.lanes};
      const T mean = reduce.sum(sum_of_share(of_tile, reduce.share, T(0), false)) / size;
      const T energy = reduce.sum(sum_of_share(of_tile, reduce.share, mean, true));
      if (valid && reduce.lane() == 0) write(problem, copy, round, tile, mean, energy);
    });
  }

  // The values of a tile that a lane adds up.
  struct SharedTile {
    Part x;
    const FastTileGrid* grid;
    int32_t first, lane, lanes;
  };

  // Sum of the values of a lane, or of the squares of their distances from `mean`, in the halving order.
  __device__ __noinline__ static T sum_of_share(SharedTile tile, int32_t share, T mean, bool squares) {
    const FastTileGrid& grid = *in_shared(tile.grid);
    return halving_sum<T>(share, [&](int32_t k) {
      const int32_t i = tile.lane + k * tile.lanes;
      if (i >= grid.size()) return T(0);
      const T value = tile.x[tile.first + grid.offset_of(i)], centred = value - mean;
      return squares ? centred * centred : value;
    });
  }

  __device__ void rescale(const Part& x, const TileProblem<T>& problem, int32_t copy, const T* projected) {
    const int32_t P = problem.num_tiles, size = problem.grid.size();
    const T *means = in_global(storage.means) + problem.first_tile, *statistics = measured(problem, copy);
    const WarpTileReduce reduce = problem.reduce;
    projected = in_global(projected);
    reduce.for_each(problem.begin, problem.end, BlockRotation{}, [&](int32_t tile, bool valid) {
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
      const int32_t first = problem.grid.first_of(tile);
      for (int32_t i = reduce.lane(); i < size; i += reduce.lanes) {
        T& value = x[first + problem.grid.offset_of(i)];
        const T alternating = i == size - size % 2 ? T(0) : i % 2 ? T(-1) : T(1);
        value = new_mean + scale * (constant ? alternating : value - mean);
      }
    });
  }
};

}  // namespace noisetilt::cuda
