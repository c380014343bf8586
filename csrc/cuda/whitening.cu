// The whitening operator between the FFTs, DESIGN section 5: project(x), alone or after every butterfly step
// of the mixing domains, in one launch.
//
// A team of blocks takes a sample; every block holds a slice of it, in shared memory if it fits, and does
// there what needs no other block. Blocks of a team meet at barriers in global memory, so all of them must be
// resident at once; more samples than there are teams are taken in turns.

#include <algorithm>
#include <cmath>
#include <numeric>

#include "butterfly.cuh"
#include "runtime.h"
#include "tile_stats.cuh"

namespace noisetilt::cuda {
namespace {

constexpr int kMostFields = 40, kMostTiles = 8, kMostUnits = 16, kMostMixing = 8;

constexpr int kThreads = 512;

template <class T>
struct TileSize {
  TileGrid grid;
  T root;  // of the tile's size
  int32_t first_tile, num_chunk_sizes, first_field;
  bool counted;  // so are all its fields
};

struct MixingDomain {
  TileGrid grid;
  int32_t repeats;
  bool inside_blocks;  // no tile is divided between blocks
};

// Where in a team's memory its arrays begin, in bytes.
struct Layout {
  size_t counters[2], verdicts[2], arrivals, zeroed;  // the first part, zero at the start, and its size
  size_t ranks, clipped, columns, entries[3], digit_counts, measured[2], projected[2], means, mixing[2],
      slices[2], rest;
};

template <class T>
struct Work {
  T* x;
  int64_t batch;
  int32_t size, slice_size, num_blocks;  // of a sample, a block's part, a team
  bool slices_shared;                    // they are in shared memory
  bool chunks_inside_blocks;             // no chunk of tile statistics is divided between blocks
  Layout layout;
  unsigned char *zeroed, *rest;
  int32_t num_values, num_tiles, num_mixing;
  Field<T> fields[kMostFields];  // as in Projection: of the values; then for each tile of mean and energy,
                                 // alternating
  TileSize<T> tiles[kMostTiles];
  MixingDomain mixing[kMostMixing];
  int32_t num_fields;
};
static_assert(sizeof(Work<double>) <= 4096, "what every driver takes as kernel parameters");

// Shared memory of a block: this, then what OrderStats needs, then the slices.
template <class T>
struct SharedHead {
  Work<T> work;  // which as a parameter would be read through the first-level cache, that every team barrier
                 // empties
  OrderStatsMemory<T> order_stats;
  TileStatsMemory<T> tile_stats;
  Buckets buckets[kMostFields];
  int32_t scale;
  // How a unit fared: it is not tested again for so many projections; the longer, the more often it was
  // unsettled.
  struct {
    int32_t rest, patience;
  } tests[kMostUnits];
};

__host__ __device__ constexpr size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

template <class T>
class Worker {
 public:
  // All is there after a __syncthreads.
  __device__ explicit Worker(const Work<T>& work)
      : team_index_(blockIdx.x / work.num_blocks),
        team_{at<uint32_t>(work.zeroed, work.layout.zeroed, work.layout.arrivals),
              static_cast<uint32_t>(work.num_blocks), blockIdx.x % work.num_blocks, 0},
        head_(*reinterpret_cast<SharedHead<T>*>(dynamic_shared_memory())),
        work_(head_.work),
        order_stats_(team_, head_.order_stats, dynamic_shared_memory() + aligned(sizeof(SharedHead<T>))),
        tile_stats_(team_, order_stats_, head_.tile_stats) {
    const int32_t begin = min(work.size, static_cast<int32_t>(team_.rank) * work.slice_size);
    const int32_t end = min(work.size, begin + work.slice_size);
    unsigned char* slices = dynamic_shared_memory() + aligned(sizeof(SharedHead<T>)) +
                            aligned(OrderStats<T>::shared_bytes(blockDim.x));
    for (int k = 0; k < 2; ++k) {
      T* values = work.slices_shared ? reinterpret_cast<T*>(slices) + k * work.slice_size
                                     : at<T>(work.rest, work.layout.rest, work.layout.slices[k]) + begin;
      (k == 0 ? slice_ : spare_) = {values, begin, end};
    }
    static_assert(sizeof(Work<T>) % sizeof(uint32_t) == 0, "copied by words");
    for (int32_t k = threadIdx.x; k < static_cast<int32_t>(sizeof(Work<T>) / sizeof(uint32_t));
         k += blockDim.x)
      reinterpret_cast<uint32_t*>(&head_.work)[k] = reinterpret_cast<const uint32_t*>(&work)[k];
    if (threadIdx.x == 0) find_memory(work);
    for (int32_t k = threadIdx.x; k < work.num_fields; k += blockDim.x)
      head_.buckets[k] = buckets_of(work.fields[k]);
    for (int32_t k = threadIdx.x; k < kMostUnits; k += blockDim.x) head_.tests[k] = {0, 0};
  }

  __device__ void run() {
    __syncthreads();
    const int32_t num_teams = gridDim.x / work_.num_blocks;
    for (int64_t sample = team_index_; sample < work_.batch; sample += num_teams) {
      T* x = work_.x + sample * work_.size;
      for (int32_t i = slice_.begin + threadIdx.x; i < slice_.end; i += blockDim.x) slice_[i] = x[i];
      if (work_.num_mixing == 0) {
        project(work_.num_values > 0 ? scale_of(x) : 0);
      } else {
        for (int32_t k = 0; k < work_.num_mixing; ++k) mix(work_.mixing[k]);
      }
      __syncthreads();
      for (int32_t i = slice_.begin + threadIdx.x; i < slice_.end; i += blockDim.x) x[i] = slice_[i];
    }
  }

 private:
  // Power of two by which the values are larger than typical ones, seen from a sample of them. They do not
  // change before the first team barrier.
  __device__ int32_t scale_of(const T* x) {
    if (threadIdx.x == 0) head_.scale = 0;
    __syncthreads();
    const int32_t step = max(work_.size / static_cast<int32_t>(blockDim.x), 1);
    const int64_t place = static_cast<int64_t>(threadIdx.x) * step;
    int32_t exponent = 0;
    if (place < work_.size) {
      const uint32_t bits = __float_as_uint(fabsf(static_cast<float>(x[place]))) >> 23;
      exponent = static_cast<int32_t>(min(max(bits, 1u), 254u)) - 127;
    }
    exponent = __reduce_add_sync(kAllLanes, exponent);
    if (threadIdx.x % kWarp == 0) atomicAdd(&head_.scale, exponent);
    __syncthreads();
    const int32_t seen = min(work_.size, static_cast<int32_t>(blockDim.x));
    return head_.scale / seen + 1;  // of standard normal values the mean exponent is -1.4
  }

  // Projects the slice. `scale`: of the values, as scale_of gives it.
  __device__ void project(int32_t scale = 0) {
    const int32_t num_units = work_.num_values + work_.num_tiles;
    __syncthreads();
    if (threadIdx.x < kMostUnits && head_.tests[threadIdx.x].rest > 0) --head_.tests[threadIdx.x].rest;
    // After the first projection the values have their typical size.
    bool typical = abs(scale) <= 1;
    for (int32_t unit = 0; unit < num_units; typical = true) {
      __syncthreads();
      const int32_t end = typical ? end_of_round(unit) : min(end_of_round(unit), unit + 1);
      unit = end > unit ? project_round(unit, end, typical ? 0 : scale) : project_untested(unit);
    }
  }

  // The units from `begin` on that a round of counting tests: those that will be settled by it, as far as the
  // past tells, and of the values one more, since counting is the first step of their projection.
  __device__ int32_t end_of_round(int32_t begin) const {
    const int32_t num_units = work_.num_values + work_.num_tiles;
    for (int32_t unit = begin; unit < num_units; ++unit) {
      const bool of_values = unit < work_.num_values;
      if (!(of_values ? work_.fields[unit].is_counted() : work_.tiles[unit - work_.num_values].counted))
        return unit;
      if (head_.tests[unit].rest > 0) return of_values ? unit + 1 : unit;
    }
    return num_units;
  }

  // Tests units, and projects the first that is not settled. Returns the one after it, or `end`.
  __device__ int32_t project_round(int32_t begin, int32_t end, int32_t scale) {
    const int32_t num_values = work_.num_values;
    const int32_t inverse = min(max(127 - scale, 1), 254);
    const Buckets scaled{0,
                         head_.buckets[begin].factor * __uint_as_float(static_cast<uint32_t>(inverse) << 23),
                         head_.buckets[begin].count};
    Rotation rotation;
    for (int32_t unit = max(begin, num_values); unit < end; ++unit)
      tile_stats_.measure(slice_, tile_problem(unit), rotation);
    if (end > num_values) {
      if (work_.chunks_inside_blocks)
        __syncthreads();
      else
        team_.sync();
    }
    for (int32_t unit = begin; unit < end; ++unit) {
      if (unit < num_values)
        order_stats_.count(values(), work_.fields + unit, scale == 0 ? head_.buckets + unit : &scaled,
                           rotation);
      else
        tile_stats_.count(slice_, tile_problem(unit), rotation);
    }
    team_.sync();
    order_stats_.sum_up(work_.fields + first_field(begin), work_.fields + first_field(end), scale == 0);
    team_.sync();
    int32_t unit = begin;
    Verdict verdict{};
    for (; unit < end; ++unit) {
      verdict = order_stats_.verdict(unit);
      if (verdict.unsettled) break;
    }
    order_stats_.end_round();
    if (threadIdx.x == 0) {
      for (int32_t k = begin; k < unit; ++k) head_.tests[k] = {0, 0};
      if (unit < end && scale == 0) {
        constexpr int32_t kMostPatience = 8;
        const int32_t patience = min(2 * head_.tests[unit].patience + 1, kMostPatience);
        head_.tests[unit] = {patience, patience};
      }
    }
    if (unit == end) return end;
    if (unit < num_values)
      order_stats_.project_counted(values(), work_.fields + unit, scale == 0 ? head_.buckets + unit : &scaled,
                                   verdict);
    else
      tile_stats_.project(slice_, tile_problem(unit), &verdict);
    return unit + 1;
  }

  __device__ int32_t project_untested(int32_t unit) {
    if (unit < work_.num_values) {
      order_stats_.project_by_sorting(values(), work_.fields + unit);
    } else {
      const TileStatsProblem<T> problem = tile_problem(unit);
      Rotation rotation;
      tile_stats_.measure(slice_, problem, rotation);
      team_.sync();
      tile_stats_.project(slice_, problem, nullptr);
    }
    return unit + 1;
  }

  __device__ Vectors<T> values() const {
    T* values = slice_.values - slice_.begin;
    return {values, values, 1, work_.size, slice_.begin, slice_.end};
  }

  __device__ int32_t first_field(int32_t unit) const {
    const int32_t tile = unit - work_.num_values;
    return tile < 0 ? unit : tile == work_.num_tiles ? work_.num_fields : work_.tiles[tile].first_field;
  }

  __device__ TileStatsProblem<T> tile_problem(int32_t unit) const {
    const TileSize<T>& tile = work_.tiles[unit - work_.num_values];
    return {tile.grid,
            tile.root,
            unit,
            tile.first_tile,
            work_.size / tile.grid.size(),
            tile.num_chunk_sizes,
            work_.fields + tile.first_field,
            head_.buckets + tile.first_field};
  }

  __device__ void mix(const MixingDomain& domain) {
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
    unmix(domain);
  }

  __device__ void unmix(const MixingDomain& domain) {
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
        const Slice<T> next = exchange();
        butterfly_tiles(sample, next, domain.grid, 0, work_.size / size, at_once, true, team_.thread(),
                        team_.num_threads());
        team_.sync();
        sample = next;
      }
    }
    if (domain.inside_blocks) return;
    for (int32_t i = slice_.begin + threadIdx.x; i < slice_.end; i += blockDim.x) slice_[i] = sample[i];
  }

  // The whole sample, for all of the team to read. The next two calls leave it as it is until a team barrier
  // is passed.
  __device__ Slice<T> publish() {
    __syncthreads();
    const Slice<T> sample = exchange();
    for (int32_t i = slice_.begin + threadIdx.x; i < slice_.end; i += blockDim.x) sample[i] = slice_[i];
    team_.sync();
    return sample;
  }

  __device__ Slice<T> exchange() {
    exchange_ ^= 1;
    return {at_rest<T>(work_.layout.mixing[exchange_]), 0, work_.size};
  }

  __device__ void swap_slices() {
    const Slice<T> slice = slice_;
    slice_ = spare_;
    spare_ = slice;
  }

  template <class U>
  __device__ U* at(unsigned char* memory, size_t per_team, size_t offset) const {
    return reinterpret_cast<U*>(memory + team_index_ * per_team + offset);
  }
  template <class U>
  __device__ U* at_rest(size_t offset) const {
    return at<U>(work_.rest, work_.layout.rest, offset);
  }

  __device__ void find_memory(const Work<T>& work) {
    const Layout& layout = work.layout;
    const auto in_zeroed = [&](size_t offset) {
      return at<unsigned char>(work.zeroed, layout.zeroed, offset);
    };
    const auto in_rest = [&](size_t offset) { return at<unsigned char>(work.rest, layout.rest, offset); };
    OrderStatsMemory<T>& order_stats = head_.order_stats;
    for (int k = 0; k < 2; ++k) {
      order_stats.counters[k] = reinterpret_cast<uint32_t*>(in_zeroed(layout.counters[k]));
      order_stats.verdicts[k] = reinterpret_cast<Verdict*>(in_zeroed(layout.verdicts[k]));
      head_.tile_stats.measured[k] = reinterpret_cast<T*>(in_rest(layout.measured[k]));
      head_.tile_stats.projected[k] = reinterpret_cast<T*>(in_rest(layout.projected[k]));
    }
    order_stats.ranks = reinterpret_cast<uint32_t*>(in_rest(layout.ranks));
    order_stats.num_units = work.num_values + work.num_tiles;
    order_stats.clipped = reinterpret_cast<T*>(in_rest(layout.clipped));
    order_stats.columns = reinterpret_cast<uint32_t*>(in_rest(layout.columns));
    for (int k = 0; k < 3; ++k)
      order_stats.radix.entries[k] = reinterpret_cast<Entry<T>*>(in_rest(layout.entries[k]));
    order_stats.radix.counts = reinterpret_cast<uint32_t*>(in_rest(layout.digit_counts));
    head_.tile_stats.means = reinterpret_cast<T*>(in_rest(layout.means));
  }

  uint32_t team_index_;
  Team team_;
  SharedHead<T>& head_;
  const Work<T>& work_;
  OrderStats<T> order_stats_;
  TileStats<T> tile_stats_;
  Slice<T> slice_, spare_;
  int32_t exchange_ = 0;
};

template <class T>
__global__ void __launch_bounds__(kThreads, 1) projection_kernel(const __grid_constant__ Work<T> work) {
  Worker<T>(work).run();
}

// How samples are cut: `slices` of shared memory hold a block's part each, if it fits.
struct Slicing {
  int64_t slice_size, num_blocks;
  bool shared;
};

template <class T>
Slicing slice(int64_t size, int64_t unit, int64_t batch, int64_t most_blocks, int64_t shared_bytes,
              int64_t slices) {
  const int64_t units = size / unit;
  const int64_t units_that_fit = shared_bytes / (slices * unit * static_cast<int64_t>(sizeof(T)));
  int64_t blocks = std::min(units, std::max<int64_t>(1, most_blocks / batch));
  bool shared = false;
  if (units_that_fit > 0 && (units + units_that_fit - 1) / units_that_fit <= most_blocks) {
    blocks = std::max(blocks, (units + units_that_fit - 1) / units_that_fit);
    shared = true;
  }
  const int64_t in_slice = (units + blocks - 1) / blocks;
  return {in_slice * unit, (units + in_slice - 1) / in_slice, shared};
}

template <class T>
void run(const Launch& launch, T* x, int64_t batch, const Projection<T>& projection,
         const RankRange* const* limits, const Mixing* mixing, int64_t num_mixing) {
  const Shape& shape = projection.shape;
  const int64_t size = shape.size();
  if (batch == 0) return;

  if (projection.num_values > kMostUnits - kMostTiles || projection.num_tiles > kMostTiles ||
      num_mixing > kMostMixing)
    throw std::invalid_argument("noisetilt: more than 8 tile sizes, chunk sizes or mixing domains");
  Work<T> work{};
  int64_t unit = 1, num_counters = 0, num_tiles = 0, most_tiles = 0;
  bool all_counted = true;
  const auto add = [&](const Table<T>& table, int64_t of_unit) {
    if (work.num_fields == kMostFields)
      throw std::invalid_argument("noisetilt: more than 40 tables of bounds");
    work.fields[work.num_fields] = field_of(table, limits[work.num_fields], num_counters, of_unit);
    const Field<T>& field = work.fields[work.num_fields++];
    num_counters += int64_t(field.chunk_size) * field.num_buckets;
    all_counted &= field.chunk_size <= kCountedChunk;
  };
  for (int64_t k = 0; k < projection.num_values; ++k) {
    add(projection.values[k], k);
    if (projection.values[k].chunk_size <= kCountedChunk)
      unit = std::lcm(unit, projection.values[k].chunk_size);
  }
  for (int64_t k = 0; k < projection.num_tiles; ++k) {
    const TileProjection<T>& tile = projection.tiles[k];
    const int64_t in_sample = size / tile.tile.size();
    work.tiles[k] = {grid_of(tile.tile, shape),
                     static_cast<T>(std::sqrt(static_cast<double>(tile.tile.size()))),
                     static_cast<int32_t>(num_tiles),
                     static_cast<int32_t>(tile.num_tables),
                     work.num_fields,
                     true};
    for (int64_t i = 0; i < tile.num_tables; ++i) {
      for (const Table<T>& table : tile.tables[i]) add(table, projection.num_values + k);
      work.tiles[k].counted &= tile.tables[i][0].chunk_size <= kCountedChunk;
    }
    unit = std::lcm(unit, work.tiles[k].grid.band());
    num_tiles += in_sample;
    most_tiles = std::max(most_tiles, in_sample);
  }
  if (num_counters > INT32_MAX || 2 * num_tiles > INT32_MAX)
    throw std::invalid_argument("noisetilt: too many tables of bounds for so large a sample");

  // Blocks that hold whole mixing tiles need no exchange, but there may be few such blocks.
  int64_t mixing_unit = unit;
  for (int64_t k = 0; k < num_mixing; ++k) {
    work.mixing[k] = {grid_of(mixing[k].tile, shape), static_cast<int32_t>(mixing[k].repeats), false};
    mixing_unit = std::lcm(mixing_unit, work.mixing[k].grid.band());
  }
  const int threads = block_threads(kThreads);
  const size_t fixed_bytes = aligned(sizeof(SharedHead<T>)) + aligned(OrderStats<T>::shared_bytes(threads));
  const int64_t for_slices =
      device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - static_cast<int64_t>(fixed_bytes);
  const int64_t num_slices = num_mixing > 0 ? 2 : 1;
  const int64_t most_blocks = device_attribute(cudaDevAttrMultiProcessorCount);
  Slicing slicing = slice<T>(size, mixing_unit, batch, most_blocks, for_slices, num_slices);
  const Slicing finer = slice<T>(size, unit, batch, most_blocks, for_slices, num_slices);
  if (finer.num_blocks >= 4 * slicing.num_blocks || (finer.shared && !slicing.shared)) slicing = finer;

  for (int64_t k = 0; k < num_mixing; ++k)
    work.mixing[k].inside_blocks = slicing.slice_size % work.mixing[k].grid.band() == 0;

  work.chunks_inside_blocks = true;
  for (int64_t k = 0; k < projection.num_tiles; ++k) {
    const TileProjection<T>& tile = projection.tiles[k];
    for (int64_t i = 0; i < tile.num_tables; ++i)
      work.chunks_inside_blocks &= slicing.slice_size / tile.tile.size() % tile.tables[i][0].chunk_size == 0;
  }

  Layout& layout = work.layout;
  size_t offset = 0;
  auto place = [&](int64_t count, size_t each) {
    const size_t at = offset;
    offset += aligned(static_cast<size_t>(count) * each);
    return at;
  };
  for (size_t& at : layout.counters) at = place(num_counters, sizeof(uint32_t));
  for (size_t& at : layout.verdicts) at = place(kMostUnits, sizeof(Verdict));
  layout.arrivals = place(1, sizeof(uint32_t));
  layout.zeroed = offset;
  offset = 0;
  layout.ranks = place(num_counters, sizeof(uint32_t));
  layout.clipped = place(size, sizeof(T));
  layout.columns = place(size, sizeof(uint32_t));
  for (int k = 0; k < 3; ++k) layout.entries[k] = place(k == 2 && all_counted ? 0 : size, sizeof(Entry<T>));
  layout.digit_counts = place(slicing.num_blocks * 256, sizeof(uint32_t));
  for (size_t& at : layout.measured) at = place(2 * num_tiles, sizeof(T));
  for (size_t& at : layout.projected) at = place(2 * most_tiles, sizeof(T));
  layout.means = place(num_tiles, sizeof(T));
  for (size_t& at : layout.mixing) at = place(num_mixing > 0 ? size : 0, sizeof(T));
  for (int k = 0; k < 2; ++k)
    layout.slices[k] = place(!slicing.shared && k < num_slices ? size : 0, sizeof(T));
  layout.rest = offset;

  const int64_t num_teams = std::min(batch, std::max<int64_t>(1, most_blocks / slicing.num_blocks));
  work.x = x;
  work.batch = batch;
  work.size = static_cast<int32_t>(size);
  work.slice_size = static_cast<int32_t>(slicing.slice_size);
  work.num_blocks = static_cast<int32_t>(slicing.num_blocks);
  work.slices_shared = slicing.shared;
  work.num_values = static_cast<int32_t>(projection.num_values);
  work.num_tiles = static_cast<int32_t>(projection.num_tiles);
  work.num_mixing = static_cast<int32_t>(num_mixing);
  const size_t zeroed = layout.zeroed * static_cast<size_t>(num_teams);
  work.zeroed = allocate<unsigned char>(launch, static_cast<int64_t>(zeroed));
  work.rest = allocate<unsigned char>(launch, static_cast<int64_t>(layout.rest) * num_teams);
  check(cudaMemsetAsync(work.zeroed, 0, zeroed, launch.stream), "clearing memory");

  const size_t shared_bytes =
      fixed_bytes + (slicing.shared ? static_cast<size_t>(num_slices * slicing.slice_size) * sizeof(T) : 0);
  allow_shared_memory(projection_kernel<T>);
  if (resident_blocks(projection_kernel<T>, threads, shared_bytes) < 1)
    throw std::runtime_error("noisetilt: this GPU does not hold a block of the projection kernel");
  enqueue(launch, projection_kernel<T>, Residence::all_at_once, num_teams * slicing.num_blocks, threads,
          shared_bytes, work);
}

}  // namespace

template <class T>
void project(const Launch& launch, T* x, int64_t batch, const Projection<T>& projection,
             const RankRange* const* limits) {
  run(launch, x, batch, projection, limits, nullptr, 0);
}

template <class T>
void mix(const Launch& launch, T* x, int64_t batch, const Projection<T>& projection,
         const RankRange* const* limits, const Mixing* mixing, int64_t num_mixing) {
  if (num_mixing > 0) run(launch, x, batch, projection, limits, mixing, num_mixing);
}

#define NOISETILT_INSTANTIATE(T)                                                                       \
  template void project<T>(const Launch&, T*, int64_t, const Projection<T>&, const RankRange* const*); \
  template void mix<T>(const Launch&, T*, int64_t, const Projection<T>&, const RankRange* const*,      \
                       const Mixing*, int64_t);
NOISETILT_INSTANTIATE(float)
NOISETILT_INSTANTIATE(double)

}  // namespace noisetilt::cuda
