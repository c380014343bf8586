// Work of one block in the projection kernel: project(x) of the whitening operator (DESIGN section 5), alone
// or after every butterfly step of the mixing domains.
#pragma once

#include "butterfly.cuh"
#include "whitening_storage.cuh"

namespace noisetilt::cuda {

// kShared: slices lie in shared memory.
template <class T, bool kShared>
class AgentProject {
 public:
  using Shared = SharedStorage<T, kShared>;
  using Part = Slice<T, kShared>;
  using Sample = Slice<T, false>;

  // The storage is complete after the __syncthreads at the start of run().
  __device__ explicit AgentProject(const ProjectParams<T>& params)
      : params_(params), team_index_(blockIdx.x / params.blocks_per_team) {
    const uint32_t rank = blockIdx.x - team_index_ * params.blocks_per_team;
    const int32_t begin = min(params.size, static_cast<int32_t>(rank) * params.slice_size);
    const int32_t end = min(params.size, begin + params.slice_size);
    if constexpr (kShared) {
      T* slices = reinterpret_cast<T*>(dynamic_shared_memory() + kSlicesOffset<T>);
      slice_ = {slices, begin, end};
      spare_ = {slices + params.slice_size, begin, end};
    } else {
      slice_ = {buffer<T, Buffer::slice>() + begin, begin, end};
      spare_ = {buffer<T, Buffer::spare_slice>() + begin, begin, end};
    }
    if (threadIdx.x == 0) find_buffers(rank);
    make_tables();
    uncounted_ = uncounted_units();
  }

  __device__ void run() {
    __syncthreads();
    const int32_t num_teams = gridDim.x / params_.blocks_per_team;
    const bool mixes = params_.num_mixing > 0;
    for (int64_t sample = team_index_; sample < params_.batch; sample += num_teams) {
      T* x = params_.x + sample * params_.size;
      for (int32_t i = slice_.begin + threadIdx.x; i < slice_.end; i += blockDim.x) slice_[i] = x[i];
      const int32_t scale = !mixes && params_.num_values > 0 ? scale_of(x) : 0;
      for (int32_t k = 0; k < (mixes ? params_.num_mixing : 1); ++k) {
        const MixingDomain& domain = shared().mixing[k];
        for (int32_t step = 0; step < (mixes ? domain.repeats : 1); ++step) {
          if (mixes) butterfly_forward(domain);
          project(scale);
        }
        if (mixes) butterfly_inverse(domain);
      }
      __syncthreads();
      for (int32_t i = slice_.begin + threadIdx.x; i < slice_.end; i += blockDim.x) x[i] = slice_[i];
    }
  }

 private:
  __device__ static Shared& shared() { return *reinterpret_cast<Shared*>(dynamic_shared_memory()); }
  __device__ static Team& team() { return shared().order_stats.team; }

  // Address of a buffer of the team.
  template <class U, Buffer kBuffer>
  __device__ U* buffer(int32_t copy = 0) const {
    constexpr auto contents = static_cast<int>(kBuffers[static_cast<int>(kBuffer)].contents);
    return reinterpret_cast<U*>(params_.memory[contents] + team_index_ * params_.layout.bytes[contents] +
                                params_.layout.offsets[kFirstCopy<kBuffer> + copy]);
  }

  // Power of two by which the values are larger than typical ones, estimated from one value a thread. x does
  // not change before the first team barrier.
  __device__ int32_t scale_of(const T* x) {
    if (threadIdx.x == 0) shared().scale = 0;
    __syncthreads();
    const int32_t step = max(params_.size / static_cast<int32_t>(blockDim.x), 1);
    const int64_t place = static_cast<int64_t>(threadIdx.x) * step;
    int32_t exponent = 0;
    if (place < params_.size) {
      const uint32_t bits = __float_as_uint(fabsf(static_cast<float>(x[place]))) >> 23;
      exponent = static_cast<int32_t>(min(max(bits, 1u), 254u)) - 127;
    }
    exponent = __reduce_add_sync(kAllLanes, exponent);
    if (threadIdx.x % kWarpThreads == 0) atomicAdd(&shared().scale, exponent);
    __syncthreads();
    const int32_t seen = min(params_.size, static_cast<int32_t>(blockDim.x));
    return shared().scale / seen + 1;  // standard normal values have the mean exponent -1.4
  }

  // Projects the slice. `scale`: result of scale_of for its values.
  __device__ void project(int32_t scale) {
    const int32_t num_units = params_.num_values + params_.num_tiles;
    // The first projection gives the values their typical size.
    bool typical = abs(scale) <= 1;
    for (int32_t unit = 0; unit < num_units; typical = true) {
      __syncthreads();
      const int32_t end = min(typical ? num_units : 1, unit + lowest_bit(uncounted_ >> unit));
      unit = end > unit ? project_round(unit, end, typical ? 0 : scale) : project_uncounted(unit);
      copy_ ^= 1;
    }
  }

  // Bits of the units that are not counted, and one behind the last unit.
  __device__ uint32_t uncounted_units() const {
    uint32_t uncounted = 1u << (params_.num_values + params_.num_tiles);
    for (int32_t k = 0; k < params_.num_values; ++k)
      uncounted |= (params_.tables[k].is_counted() ? 0u : 1u) << k;
    for (int32_t k = 0; k < params_.num_tiles; ++k)
      uncounted |= (params_.tiles[k].counted ? 0u : 1u) << (params_.num_values + k);
    return uncounted;
  }

  // Tests units, and projects the first unsettled one. Returns the unit after it, or `end`.
  __device__ int32_t project_round(int32_t begin, int32_t end, int32_t scale) {
    auto& order_stats = shared().order_stats;
    auto& tile_stats = shared().tile_stats;
    const int32_t num_values = params_.num_values;
    const Buckets* buckets = scale == 0 ? shared().buckets : scaled_buckets(scale);
    BlockRotation rotation;
    for (int32_t unit = max(begin, num_values); unit < end; ++unit)
      rotation = tile_stats.measure(slice_, &tile_problem(unit), copy_, round_, rotation);
    if (end > num_values) {
      if (params_.chunks_inside_blocks)
        __syncthreads();
      else
        team().sync();
    }
    for (int32_t unit = begin; unit < end; ++unit) {
      rotation = unit < num_values ? order_stats.count(values(), shared().tables + unit, buckets, rotation)
                                   : tile_stats.count(tile_problem(unit), copy_, rotation);
    }
    team().sync();
    order_stats.sum_up(shared().tables + first_table(begin), shared().tables + first_table(end), scale == 0,
                       tile_stats.storage.measured[copy_], params_.num_steps, round_);
    team().sync();
    const int32_t step = order_stats.first_unsettled(first_step(begin), first_step(end), round_);
    if (step == first_step(end)) return ++round_, end;
    const Verdict verdict = order_stats.verdict(step, round_++);
    int32_t unit = begin;
    while (step >= first_step(unit + 1)) ++unit;
    if (unit < num_values)
      order_stats.project_2os_counted(values(), shared().tables + unit, buckets, verdict);
    else
      project_tile_stats(unit, step - first_step(unit), verdict);
    return unit + 1;
  }

  __device__ void project_tile_stats(int32_t unit, int32_t first, Verdict counted) {
    round_ = shared().tile_stats.project_tile_stats(slice_, &tile_problem(unit), copy_, first, counted,
                                                    params_.num_steps, round_);
  }

  // Buckets of the first table for values that are 2^scale times larger.
  __device__ const Buckets* scaled_buckets(int32_t scale) {
    const auto power = [](int32_t exponent) {
      return __uint_as_float(static_cast<uint32_t>(min(max(127 + exponent, 1), 254)) << 23);
    };
    const int32_t column = static_cast<int32_t>(threadIdx.x);
    if (column < Policy::OrderStats::kMaxCountedChunk && column < shared().tables[0].chunk_size) {
      const Buckets typical = shared().buckets[column];
      shared().scaled[column] = {typical.centre * power(scale), typical.deviations * power(-scale)};
    }
    __syncthreads();
    return shared().scaled;
  }

  __device__ int32_t project_uncounted(int32_t unit) {
    if (unit < params_.num_values) {
      team().sync();  // blocks may still read the entries that the unit before has gathered
      shared().order_stats.project_2os_by_sorting(values(), shared().tables + unit);
    } else {
      shared().tile_stats.measure(slice_, &tile_problem(unit), copy_, kNoRound, BlockRotation{});
      team().sync();
      project_tile_stats(unit, 0, {});
    }
    return unit + 1;
  }

  __device__ Values<T, kShared> values() const { return {slice_, params_.size}; }

  __device__ TileProblem<T>& tile_problem(int32_t unit) const {
    return shared().tiles[unit - params_.num_values];
  }

  __device__ int32_t first_table(int32_t unit) const {
    const int32_t tile = unit - params_.num_values;
    return tile < 0                    ? unit
           : tile == params_.num_tiles ? params_.num_tables
                                       : shared().tiles[tile].first_table;
  }
  __device__ int32_t first_step(int32_t unit) const {
    const int32_t tile = unit - params_.num_values;
    return tile < 0 ? unit : tile == params_.num_tiles ? params_.num_steps : shared().tiles[tile].first_step;
  }

  // Takes a butterfly step of a mixing domain.
  __device__ void butterfly_forward(const MixingDomain& domain) {
    if (domain.inside_blocks) {
      __syncthreads();
      butterfly_tiles<false>(slice_, spare_, &domain.grid, domain.grid.tiles_in(slice_.begin),
                             domain.grid.tiles_in(slice_.end), 1, threadIdx.x, blockDim.x);
      swap_slices();
    } else {
      butterfly_step(publish(), slice_, &domain.grid);
    }
  }

  // Undoes the butterfly steps of a mixing domain.
  __device__ void butterfly_inverse(const MixingDomain& domain) {
    const int32_t size = domain.grid.size();
    Sample sample{};
    if (!domain.inside_blocks) sample = publish();
    int32_t at_once;
    for (int32_t left = domain.repeats; left > 0; left -= at_once) {
      at_once = steps_at_once(left, size);
      if (domain.inside_blocks) {
        __syncthreads();
        butterfly_tiles<true>(slice_, spare_, &domain.grid, domain.grid.tiles_in(slice_.begin),
                              domain.grid.tiles_in(slice_.end), at_once, threadIdx.x, blockDim.x);
        swap_slices();
      } else {
        const Sample next = next_sample();
        butterfly_tiles<true>(sample, next, &domain.grid, 0, domain.grid.tiles_in(params_.size), at_once,
                              team().thread(), team().num_threads());
        team().sync();
        sample = next;
      }
    }
    if (domain.inside_blocks) return;
    for (int32_t i = slice_.begin + threadIdx.x; i < slice_.end; i += blockDim.x) slice_[i] = sample[i];
  }

  // Copies the slices of all blocks to global memory and returns the whole sample. It stays valid until the
  // call after the next one, which writes the same copy again; a team barrier lies between.
  __device__ Sample publish() {
    __syncthreads();
    const Sample sample = next_sample();
    for (int32_t i = slice_.begin + threadIdx.x; i < slice_.end; i += blockDim.x) sample[i] = slice_[i];
    team().sync();
    return sample;
  }

  // The other copy of the sample in global memory than the last one used.
  __device__ Sample next_sample() {
    sample_copy_ ^= 1;
    return {buffer<T, Buffer::sample>(sample_copy_), 0, params_.size};
  }

  __device__ void swap_slices() {
    const Part slice = slice_;
    slice_ = spare_;
    spare_ = slice;
  }

  // Copies the tables, tiles and mixing domains to shared memory, with what is computed from them. There is
  // no room for it among the parameters of the kernel.
  __device__ void make_tables() {
    constexpr int32_t D = Policy::OrderStats::kMaxCountedChunk;
    BlockRotation rotation;
    for (int32_t k = rotation.thread(); k < params_.num_tables; k += blockDim.x) {
      TeamTable<T>& table = shared().tables[k];
      static_cast<DeviceTable<T>&>(table) = params_.tables[k];
      table.statistics = -1;
      for (int32_t t = 0; t < params_.num_tiles; ++t) {
        const TileParams<T>& tile = params_.tiles[t];
        if (k >= tile.first_table)
          table.statistics = 2 * tile.first_tile + (k - tile.first_table) % 2 * tile.num_tiles;
      }
      table.prepare();
    }
    rotation.advance(params_.num_tables);
    for (int32_t k = rotation.thread(); k < params_.num_tiles; k += blockDim.x) {
      const TileParams<T>& tile = params_.tiles[k];
      const FastTileGrid grid = FastTileGrid::of(tile.grid);
      const int32_t begin = grid.tiles_in(slice_.begin), end = grid.tiles_in(slice_.end);
      shared().tiles[k] = {grid,
                           WarpTileReduce(grid.size()),
                           begin,
                           end,
                           FastDivisor::of(max(end - begin, 1)),
                           tile.root,
                           tile.first_tile,
                           tile.num_tiles,
                           tile.first_table,
                           tile.num_chunk_sizes,
                           tile.first_step,
                           tile.counted};
    }
    rotation.advance(params_.num_tiles);
    for (int32_t k = rotation.thread(); k < params_.num_mixing; k += blockDim.x) {
      const MixingPlan& domain = params_.mixing[k];
      shared().mixing[k] = {FastTileGrid::of(domain.grid), domain.repeats, domain.inside_blocks};
    }
    for (int32_t k = threadIdx.x; k < params_.num_tables * D; k += blockDim.x) {
      const DeviceTable<T>& table = params_.tables[k / D];
      if (table.is_counted() && k % D < table.chunk_size)
        shared().buckets[table.first_column + k % D] = buckets_of(table, k % D);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int32_t jobs = 0;
      for (int32_t k = 0; k <= params_.num_tables; ++k) {
        const int32_t own = k < params_.num_tables ? shared().tables[k].first_job : 0;
        shared().tables[k].first_job = jobs;
        jobs += own;
      }
    }
  }

  __device__ void find_buffers(uint32_t rank) {
    auto& order_stats = shared().order_stats;
    auto& tile_stats = shared().tile_stats;
    order_stats.team = {buffer<uint32_t, Buffer::arrivals>(), static_cast<uint32_t>(params_.blocks_per_team),
                        rank, 0, params_.clusters};
    auto& storage = order_stats.storage;
    auto& sort = order_stats.sort_storage;
    for (int k = 0; k < 2; ++k) {
      storage.verdicts[k] = buffer<Verdict, Buffer::verdicts>(k);
      tile_stats.storage.measured[k] = buffer<T, Buffer::measured>(k);
      tile_stats.storage.projected[k] = buffer<T, Buffer::projected>(k);
      sort.entries[k] = buffer<Entry<T>, Buffer::entries>(k);
    }
    storage.counters = buffer<uint32_t, Buffer::counters>();
    storage.crowds = buffer<uint32_t, Buffer::crowds>();
    storage.cursors = buffer<uint32_t, Buffer::cursors>();
    storage.columns = buffer<uint32_t, Buffer::columns>();
    storage.ranks = buffer<uint32_t, Buffer::ranks>();
    sort.entries[2] = buffer<Entry<T>, Buffer::kept_entries>();
    sort.digit_counts = buffer<uint32_t, Buffer::digit_counts>();
    tile_stats.order_stats_ = &order_stats;
    tile_stats.tables = shared().tables;
    tile_stats.buckets = shared().buckets;
    tile_stats.storage.means = buffer<T, Buffer::means>();
  }

  const ProjectParams<T>& params_;
  uint32_t team_index_;
  Part slice_, spare_;
  uint32_t uncounted_;
  int32_t sample_copy_ = 0;
  int32_t copy_ = 0;   // of the tile statistics that are measured next
  int32_t round_ = 0;  // number of the next round of counting
};

}  // namespace noisetilt::cuda
