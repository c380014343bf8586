// Work of one block in the projection kernel: project(x) of the whitening operator (DESIGN section 5), alone
// or after every butterfly step of the mixing domains.
#pragma once

#include "butterfly.cuh"
#include "whitening_storage.cuh"

namespace noisetilt::cuda {

template <class T>
class AgentProject {
 public:
  // The storage is complete after the __syncthreads at the start of run().
  __device__ explicit AgentProject(const ProjectParams<T>& params)
      : team_index_(blockIdx.x / params.blocks_per_team),
        team_{BufferPointers<T>{params, team_index_}.template get<uint32_t, Buffer::arrivals>(),
              static_cast<uint32_t>(params.blocks_per_team), blockIdx.x % params.blocks_per_team, 0},
        shared_(*reinterpret_cast<SharedStorage<T>*>(dynamic_shared_memory())),
        params_(shared_.params),
        order_stats_(team_, shared_.order_stats,
                     *reinterpret_cast<typename TeamOrderStats<T>::TempStorage*>(dynamic_shared_memory() +
                                                                                 kOrderStatsOffset<T>)),
        tile_stats_(team_, order_stats_, shared_.tile_stats) {
    const BufferPointers<T> buffers{params, team_index_};
    const int32_t begin = min(params.size, static_cast<int32_t>(team_.rank) * params.slice_size);
    const int32_t end = min(params.size, begin + params.slice_size);
    T* in_shared_memory = reinterpret_cast<T*>(dynamic_shared_memory() + kSlicesOffset<T>);
    slice_ = {params.slices_shared ? in_shared_memory : buffers.template get<T, Buffer::slice>() + begin,
              begin, end};
    spare_ = {params.slices_shared ? in_shared_memory + params.slice_size
                                   : buffers.template get<T, Buffer::spare_slice>() + begin,
              begin, end};
    static_assert(sizeof(ProjectParams<T>) % sizeof(uint32_t) == 0, "copied by words");
    for (int32_t k = threadIdx.x; k < static_cast<int32_t>(sizeof(ProjectParams<T>) / sizeof(uint32_t));
         k += blockDim.x)
      reinterpret_cast<uint32_t*>(&shared_.params)[k] = reinterpret_cast<const uint32_t*>(&params)[k];
    if (threadIdx.x == 0) find_buffers(params);
    constexpr int32_t D = Policy::OrderStats::kMaxCountedChunk;
    for (int32_t k = threadIdx.x; k < params.num_tables * D; k += blockDim.x) {
      const DeviceTable<T>& table = params.tables[k / D];
      if (table.is_counted() && k % D < table.chunk_size)
        shared_.buckets[table.first_column + k % D] = buckets_of(table, k % D);
    }
    for (int32_t k = threadIdx.x; k < kMaxUnits; k += blockDim.x) shared_.tests[k] = {0, 0};
  }

  __device__ void run() {
    __syncthreads();
    const int32_t num_teams = gridDim.x / params_.blocks_per_team;
    for (int64_t sample = team_index_; sample < params_.batch; sample += num_teams) {
      T* x = params_.x + sample * params_.size;
      for (int32_t i = slice_.begin + threadIdx.x; i < slice_.end; i += blockDim.x) slice_[i] = x[i];
      if (params_.num_mixing == 0) {
        project(params_.num_values > 0 ? scale_of(x) : 0);
      } else {
        for (int32_t k = 0; k < params_.num_mixing; ++k) project_mixing_domain(params_.mixing[k]);
      }
      __syncthreads();
      for (int32_t i = slice_.begin + threadIdx.x; i < slice_.end; i += blockDim.x) x[i] = slice_[i];
    }
  }

 private:
  // Power of two by which the values are larger than typical ones, estimated from one value a thread. x does
  // not change before the first team barrier.
  __device__ int32_t scale_of(const T* x) {
    if (threadIdx.x == 0) shared_.scale = 0;
    __syncthreads();
    const int32_t step = max(params_.size / static_cast<int32_t>(blockDim.x), 1);
    const int64_t place = static_cast<int64_t>(threadIdx.x) * step;
    int32_t exponent = 0;
    if (place < params_.size) {
      const uint32_t bits = __float_as_uint(fabsf(static_cast<float>(x[place]))) >> 23;
      exponent = static_cast<int32_t>(min(max(bits, 1u), 254u)) - 127;
    }
    exponent = __reduce_add_sync(kAllLanes, exponent);
    if (threadIdx.x % kWarpThreads == 0) atomicAdd(&shared_.scale, exponent);
    __syncthreads();
    const int32_t seen = min(params_.size, static_cast<int32_t>(blockDim.x));
    return shared_.scale / seen + 1;  // standard normal values have the mean exponent -1.4
  }

  // Projects the slice. `scale`: result of scale_of for its values.
  __device__ void project(int32_t scale = 0) {
    const int32_t num_units = params_.num_values + params_.num_tiles;
    __syncthreads();
    if (threadIdx.x < kMaxUnits && shared_.tests[threadIdx.x].rest > 0) --shared_.tests[threadIdx.x].rest;
    // The first projection gives the values their typical size.
    bool typical = abs(scale) <= 1;
    for (int32_t unit = 0; unit < num_units; typical = true) {
      __syncthreads();
      const int32_t end = typical ? end_of_round(unit) : min(end_of_round(unit), unit + 1);
      unit = end > unit ? project_round(unit, end, typical ? 0 : scale) : project_untested(unit);
    }
  }

  // End of the units, from `begin` on, that a round of counting tests: those that it will probably settle,
  // and, if the next one is of values, also that one, because counting is the first step of its projection.
  __device__ int32_t end_of_round(int32_t begin) const {
    const int32_t num_units = params_.num_values + params_.num_tiles;
    for (int32_t unit = begin; unit < num_units; ++unit) {
      const bool of_values = unit < params_.num_values;
      if (!(of_values ? params_.tables[unit].is_counted() : params_.tiles[unit - params_.num_values].counted))
        return unit;
      if (shared_.tests[unit].rest > 0) return of_values ? unit + 1 : unit;
    }
    return num_units;
  }

  // Tests units, and projects the first unsettled one. Returns the unit after it, or `end`.
  __device__ int32_t project_round(int32_t begin, int32_t end, int32_t scale) {
    const int32_t num_values = params_.num_values;
    const Buckets* buckets = scale == 0 ? shared_.buckets : scaled_buckets(scale);
    BlockRotation rotation;
    for (int32_t unit = max(begin, num_values); unit < end; ++unit)
      tile_stats_.measure(slice_, tile_problem(unit), rotation);
    if (end > num_values) {
      if (params_.chunks_inside_blocks)
        __syncthreads();
      else
        team_.sync();
    }
    for (int32_t unit = begin; unit < end; ++unit) {
      if (unit < num_values)
        order_stats_.count(values(), params_.tables + unit, buckets, rotation);
      else
        tile_stats_.count(slice_, tile_problem(unit), rotation);
    }
    team_.sync();
    order_stats_.sum_up(params_.tables + first_table(begin), params_.tables + first_table(end), scale == 0);
    team_.sync();
    int32_t unit = begin;
    Verdict verdict{};
    for (; unit < end; ++unit) {
      verdict = order_stats_.verdict(unit);
      if (verdict.unsettled) break;
    }
    order_stats_.end_round();
    if (threadIdx.x == 0) {
      for (int32_t k = begin; k < unit; ++k) shared_.tests[k] = {0, 0};
      if (unit < end && scale == 0) {
        const int32_t patience = min(2 * shared_.tests[unit].patience + 1, Policy::Project::kMaxPatience);
        shared_.tests[unit] = {patience, patience};
      }
    }
    if (unit == end) return end;
    if (unit < num_values)
      order_stats_.project_2os_counted(values(), params_.tables + unit, buckets, verdict);
    else
      tile_stats_.project_tile_stats(slice_, tile_problem(unit), &verdict);
    return unit + 1;
  }

  // Buckets of the first table for values that are 2^scale times larger.
  __device__ const Buckets* scaled_buckets(int32_t scale) {
    const auto power = [](int32_t exponent) {
      return __uint_as_float(static_cast<uint32_t>(min(max(127 + exponent, 1), 254)) << 23);
    };
    const int32_t column = static_cast<int32_t>(threadIdx.x);
    if (column < Policy::OrderStats::kMaxCountedChunk && column < params_.tables[0].chunk_size) {
      const Buckets typical = shared_.buckets[column];
      shared_.scaled[column] = {typical.centre * power(scale), typical.deviations * power(-scale)};
    }
    __syncthreads();
    return shared_.scaled;
  }

  __device__ int32_t project_untested(int32_t unit) {
    if (unit < params_.num_values) {
      order_stats_.project_2os_by_sorting(values(), params_.tables + unit);
    } else {
      const TileStatsProblem<T> problem = tile_problem(unit);
      BlockRotation rotation;
      tile_stats_.measure(slice_, problem, rotation);
      team_.sync();
      tile_stats_.project_tile_stats(slice_, problem, nullptr);
    }
    return unit + 1;
  }

  __device__ Vectors<T> values() const {
    T* values = slice_.values - slice_.begin;
    return {values, values, 1, params_.size, slice_.begin, slice_.end};
  }

  __device__ int32_t first_table(int32_t unit) const {
    const int32_t tile = unit - params_.num_values;
    return tile < 0 ? unit : tile == params_.num_tiles ? params_.num_tables : params_.tiles[tile].first_table;
  }

  __device__ TileStatsProblem<T> tile_problem(int32_t unit) const {
    const TileParams<T>& tile = params_.tiles[unit - params_.num_values];
    return {tile.grid,
            tile.root,
            unit,
            tile.first_tile,
            params_.size / tile.grid.size(),
            tile.num_chunk_sizes,
            params_.tables + tile.first_table,
            shared_.buckets};
  }

  // Takes every butterfly step of a mixing domain, projects after each, and undoes the steps.
  __device__ void project_mixing_domain(const MixingPlan& domain) {
    for (int32_t k = 0; k < domain.repeats; ++k) {
      if (domain.inside_blocks) {
        __syncthreads();
        const int32_t size = domain.grid.size();
        butterfly_tiles(slice_, spare_, domain.grid, slice_.begin / size, slice_.end / size, 1, false,
                        threadIdx.x, blockDim.x);
        swap_slices();
      } else {
        butterfly_step(publish(), slice_, domain.grid);
      }
      project();
    }
    butterfly_inverse(domain);
  }

  __device__ void butterfly_inverse(const MixingPlan& domain) {
    const int32_t size = domain.grid.size();
    Slice<T> sample{};
    if (!domain.inside_blocks) sample = publish();
    int32_t at_once;
    for (int32_t left = domain.repeats; left > 0; left -= at_once) {
      at_once = steps_at_once(left, size);
      if (domain.inside_blocks) {
        __syncthreads();
        butterfly_tiles(slice_, spare_, domain.grid, slice_.begin / size, slice_.end / size, at_once, true,
                        threadIdx.x, blockDim.x);
        swap_slices();
      } else {
        const Slice<T> next = next_sample();
        butterfly_tiles(sample, next, domain.grid, 0, params_.size / size, at_once, true, team_.thread(),
                        team_.num_threads());
        team_.sync();
        sample = next;
      }
    }
    if (domain.inside_blocks) return;
    for (int32_t i = slice_.begin + threadIdx.x; i < slice_.end; i += blockDim.x) slice_[i] = sample[i];
  }

  // Copies the slices of all blocks to global memory and returns the whole sample. It stays valid until the
  // call after the next one, which writes the same copy again; a team barrier lies between.
  __device__ Slice<T> publish() {
    __syncthreads();
    const Slice<T> sample = next_sample();
    for (int32_t i = slice_.begin + threadIdx.x; i < slice_.end; i += blockDim.x) sample[i] = slice_[i];
    team_.sync();
    return sample;
  }

  // The other copy of the sample in global memory than the last one used.
  __device__ Slice<T> next_sample() {
    sample_copy_ ^= 1;
    return {BufferPointers<T>{params_, team_index_}.template get<T, Buffer::sample>(sample_copy_), 0,
            params_.size};
  }

  __device__ void swap_slices() {
    const Slice<T> slice = slice_;
    slice_ = spare_;
    spare_ = slice;
  }

  __device__ void find_buffers(const ProjectParams<T>& params) {
    const BufferPointers<T> buffers{params, team_index_};
    auto& order_stats = shared_.order_stats;
    auto& tile_stats = shared_.tile_stats;
    for (int k = 0; k < 2; ++k) {
      order_stats.verdicts[k] = buffers.template get<Verdict, Buffer::verdicts>(k);
      tile_stats.measured[k] = buffers.template get<T, Buffer::measured>(k);
      tile_stats.projected[k] = buffers.template get<T, Buffer::projected>(k);
      order_stats.sort.entries[k] = buffers.template get<Entry<T>, Buffer::entries>(k);
    }
    order_stats.counters = buffers.template get<uint32_t, Buffer::counters>();
    order_stats.num_units = params.num_values + params.num_tiles;
    order_stats.ranks = buffers.template get<uint32_t, Buffer::ranks>();
    order_stats.clipped = buffers.template get<T, Buffer::clipped>();
    order_stats.columns = buffers.template get<uint32_t, Buffer::columns>();
    order_stats.sort.entries[2] = buffers.template get<Entry<T>, Buffer::kept_entries>();
    order_stats.sort.digit_counts = buffers.template get<uint32_t, Buffer::digit_counts>();
    tile_stats.means = buffers.template get<T, Buffer::means>();
  }

  uint32_t team_index_;
  Team team_;
  SharedStorage<T>& shared_;
  const ProjectParams<T>& params_;
  TeamOrderStats<T> order_stats_;
  TeamTileStats<T> tile_stats_;
  Slice<T> slice_, spare_;
  int32_t sample_copy_ = 0;
};

}  // namespace noisetilt::cuda
