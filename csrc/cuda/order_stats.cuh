// Two-level order statistics (DESIGN section 2) by a team of thread blocks.
//
// Values are sorted only if no cheaper method works. The rank of a value in its chunk is counted by comparing
// it with the chunk. The values of every column are counted into buckets. The counts give the first and the
// last rank in a bucket; if both are in the bucket's rank range, its values are settled: the projection does
// not change them. That settles most of a nearly typical sample. The values of the other buckets are gathered
// by bucket and ranked exactly among their neighbours. Where buckets are crowded (many ties, unusual scales)
// or chunks are long, they are ranked by sorting. Columns of very few values are ranked by one block.
//
// A round of counting may test several projections at once: those before the first unsettled one change
// nothing.
#pragma once

#include "kernels.h"
#include "keys.cuh"
#include "policy.h"
#include "radix_sort.cuh"
#include "team.cuh"
#include "tiles.cuh"

namespace noisetilt::cuda {

// A table on the device, with its rank ranges and its place in the projection.
template <class T>
struct DeviceTable {
  const T *lower, *upper;
  const RankRange* ranges;
  int64_t row_stride, column_stride;
  int32_t num_chunks, chunk_size, num_buckets;
  int32_t first_counter;  // of [column][bucket], in the buffers of the team
  int32_t first_column;   // number of columns of the tables before
  int32_t step;           // see whitening_plan.h

  __device__ bool is_counted() const { return cuda::is_counted(chunk_size); }
  __device__ bool is_tiny() const { return cuda::is_tiny(num_chunks, chunk_size); }
  // Index of a counter in [column][bucket]. `buckets`: of every column.
  __device__ int32_t counter_of(T x, int32_t column, const Buckets* buckets) const {
    return column * num_buckets + buckets[column].of(x, static_cast<uint32_t>(num_buckets) / 2);
  }

  __device__ int32_t size() const { return num_chunks * chunk_size; }
  __device__ bool is_small() const { return cuda::is_small(num_chunks, chunk_size); }
  // x clipped to the entries for its rank and column; NaN stays.
  __device__ T clip(T x, int32_t rank, int32_t column) const {
    const int64_t at = rank * row_stride + column * column_stride;
    const T low = in_global(lower)[at], high = in_global(upper)[at];
    return x < low ? low : x > high ? high : x;
  }
};

template <class T>
DeviceTable<T> device_table(const Table<T>& table, const RankRange* ranges, int32_t first_counter = 0,
                            int32_t first_column = 0, int32_t step = 0) {
  return {table.lower,
          table.upper,
          ranges,
          table.row_stride,
          table.column_stride,
          static_cast<int32_t>(table.num_chunks),
          static_cast<int32_t>(table.chunk_size),
          num_buckets(table.num_chunks, table.chunk_size),
          first_counter,
          first_column,
          step};
}

// Number of counters that a warp reads at once.
constexpr int32_t kCountersPerRow = 4 * static_cast<int32_t>(kWarpThreads);

// A table as the blocks of a team keep it in shared memory.
template <class T>
struct TeamTable : DeviceTable<T> {
  FastDivisor by_chunk_size, by_num_chunks;
  int32_t statistics;  // for tables of tiles: place of the vector among the tile statistics; otherwise -1

  // Jobs of summing up the counters: a job of a block are as many whole columns as its warps can sum up at
  // once, or a tiny table.
  int32_t first_job;        // number of jobs of the tables before
  int32_t columns_at_once;  // 0 for a tiny table
  int32_t warps_per_column;
  FastDivisor by_warps_per_column;
  int32_t counters_per_warp;

  // Fills in all but the table itself and the place of its vector. first_job becomes the number of its own
  // jobs.
  __device__ void prepare() {
    by_chunk_size = FastDivisor::of(this->chunk_size);
    by_num_chunks = FastDivisor::of(this->num_chunks);
    const int32_t num_warps = static_cast<int32_t>(blockDim.x / kWarpThreads);
    const int32_t rows = (this->num_buckets + kCountersPerRow - 1) / kCountersPerRow;
    const bool tiny = statistics >= 0 && this->is_tiny();
    warps_per_column = max(min(rows, num_warps), 1);
    by_warps_per_column = FastDivisor::of(warps_per_column);
    columns_at_once = tiny ? 0 : num_warps / warps_per_column;
    counters_per_warp = (rows + warps_per_column - 1) / warps_per_column * kCountersPerRow;
    first_job = tiny ? 1 : (this->chunk_size + columns_at_once - 1) / columns_at_once;
  }
};

// Buckets of a column for values that are typical for the table. Centre and deviation are those of the
// middles between lower and upper entries: the middle rank, and half the distance of the ranks at a sixth of
// the column from its ends. In columns of few values, whose middle ranks say little, the deviation is larger.
template <class T>
__device__ inline Buckets buckets_of(const DeviceTable<T>& table, int32_t column) {
  const auto entry = [&](const T* bound, int32_t rank) {
    return static_cast<float>(bound[rank * table.row_stride + column * table.column_stride]);
  };
  const auto middle = [&](int32_t rank) {
    return entry(table.lower, rank) / 2 + entry(table.upper, rank) / 2;
  };
  const int32_t last = table.num_chunks - 1, half = table.num_chunks / 2, low = last / 6;
  const float centre = middle(half),
              two_deviations = fmaxf(middle(last - low) - middle(low),
                                     (entry(table.upper, half) - entry(table.lower, half)) / 4);
  const float deviations = 2 / two_deviations;
  return {is_finite(centre) ? centre : 0, is_finite(deviations) && deviations > 0 ? deviations : 1};
}

// The block's slice of the values of a sample, projected in place. `size`: of the sample.
template <class T, bool kShared>
struct Values {
  static constexpr int32_t kCount = 1;
  static constexpr bool kInPlace = true;
  Slice<T, kShared> slice;
  int32_t size;

  __device__ int32_t begin() const { return slice.begin; }
  __device__ int32_t end() const { return slice.end; }
  __device__ T get(int32_t, int32_t i) const { return slice[i]; }
  __device__ void set(int32_t, int32_t i, T x) const { slice[i] = x; }
};

// The block's part of two vectors of tile statistics, one behind the other. Blocks may divide chunks.
template <class T>
struct Statistics {
  static constexpr int32_t kCount = 2;
  static constexpr bool kInPlace = false;
  const T* in;
  T* out;
  int32_t size;  // of a vector
  int32_t begin_, end_;

  __device__ int32_t begin() const { return begin_; }
  __device__ int32_t end() const { return end_; }
  __device__ T get(int32_t f, int32_t i) const { return in_global(in)[f * size + i]; }
  __device__ void set(int32_t f, int32_t i, T x) const { in_global(out)[f * size + i] = x; }
};

// Result of a round of counting for a step.
struct Verdict {
  uint32_t unsettled;  // number of values in unsettled buckets, or 1 if they are not counted
  uint32_t fullest;    // number of values in the fullest unsettled bucket
};

// Kept by a block in shared memory. A *round* of counting: count() for all values or statistics of some
// steps, a team barrier, sum_up() of their tables, a team barrier, then verdict(). `round`: number of the
// round.
template <class T>
class TeamOrderStats {
 public:
  using Sort = TeamRadixSort<T>;
  using Tuning = Policy::OrderStats;

  // Storage of a team in global memory, see whitening_buffers.h.
  struct GlobalStorage {
    uint32_t* counters;    // of every table; zero unless in use
    Verdict* verdicts[2];  // of every step, for even and odd rounds; zero unless in use
    uint32_t* crowds;      // values in each bucket of every table; 0 if it is settled
    uint32_t*
        cursors;  // first rank in each unsettled bucket; gathering advances it to the rank after its last
    uint32_t* columns;  // [vector][value]
    uint32_t* ranks;    // [value], by sorting
  };
  // Storage of a block in shared memory.
  union TempStorage {
    uint32_t sums[2][kMaxBlockWarps];  // of the counters of each warp
    // A small vector by columns, with a gap behind every column.
    Key<T> columns[Tuning::kMaxSmallVector + 4 * Tuning::kMaxCountedChunk];
    typename Sort::TempStorage sort;
  };

  Team team;
  GlobalStorage storage;
  typename Sort::GlobalStorage sort_storage;
  TempStorage temp;

  // Counts the block's own values, of a table. They must be written before a __syncthreads. `buckets`: of the
  // columns of all tables.
  template <bool kShared>
  __device__ __noinline__ BlockRotation count(Values<T, kShared> v, const TeamTable<T>* table_,
                                              const Buckets* buckets, BlockRotation rotation) {
    in_shared(this);
    const TeamTable<T>& table = *in_shared(table_);
    uint32_t* counters = in_global(storage.counters) + table.first_counter;
    const Buckets* columns = in_shared(buckets) + table.first_column;
    if (table.chunk_size == 4) return count_chunks<4>(v, table, counters, columns, rotation);
    if (table.chunk_size == 16) return count_chunks<16>(v, table, counters, columns, rotation);
    for (int32_t i = v.begin() + rotation.thread(); i < v.end(); i += blockDim.x)
      atomicAdd(&counters[table.counter_of(v.get(0, i), column_of(v, 0, i, table), columns)], 1u);
    rotation.advance(v.end() - v.begin());
    return rotation;
  }

  // Counts the block's own tile statistics, of `num_tables` tables, which alternate between both vectors.
  // They must be written before a __syncthreads, and those of other blocks in chunks that cross the border
  // before a team barrier. `by_own`: divisor by the number of the block's tiles.
  __device__ __noinline__ BlockRotation count(Statistics<T> v, FastDivisor by_own, const TeamTable<T>* tables,
                                              int32_t num_tables, const Buckets* buckets,
                                              BlockRotation rotation) {
    in_shared(this);
    const int32_t own = v.end() - v.begin(), items = num_tables * own;
    for (int32_t item = rotation.thread(); item < items; item += blockDim.x) {
      const int32_t k = by_own.quotient(item), i = v.begin() + item - k * own;
      const TeamTable<T>& table = in_shared(tables)[k];
      if (table.columns_at_once == 0) continue;  // tiny
      uint32_t* counters = in_global(storage.counters) + table.first_counter;
      const Buckets* columns = in_shared(buckets) + table.first_column;
      atomicAdd(&counters[table.counter_of(v.get(k % 2, i), column_of(v, k % 2, i, table), columns)], 1u);
    }
    rotation.advance(items);
    return rotation;
  }

  __device__ void declare_unsettled(int32_t step, int32_t round) {
    in_global(storage.verdicts[round % 2])[step].unsettled = 1;
  }

  // Turns the counts of every column into first ranks, and writes the verdicts. Leaves the counters zero.
  // Behind the tables of the team stands one that has only first_job. `settle`: true if the buckets are the
  // same as for the rank ranges. If false, no bucket is settled. `statistics`: measured in this round. Tiny
  // tables are judged by them.
  __device__ __noinline__ void sum_up(const TeamTable<T>* begin, const TeamTable<T>* end, bool settle,
                                      const T* statistics, int32_t num_steps, int32_t round) {
    in_shared(this);
    in_shared(begin);
    in_shared(end);
    const int32_t warp = static_cast<int32_t>(threadIdx.x / kWarpThreads);
    Verdict* verdicts = in_global(storage.verdicts[round % 2]);
    uint32_t parity = 0;
    const TeamTable<T>* table = begin;
    for (int32_t job = begin->first_job + static_cast<int32_t>(team.rank); job < end->first_job;
         job += static_cast<int32_t>(team.num_blocks)) {
      while (job >= table[1].first_job) ++table;
      const int32_t at_once = table->columns_at_once;
      if (at_once == 0) {
        const bool changed = project_2os_small(statistics + table->statistics, static_cast<T*>(nullptr),
                                               *table, 0, table->size());
        if (changed) verdicts[table->step].unsettled = 1;
        __syncthreads();  // before temp is used again
        continue;
      }
      const int32_t place = table->by_warps_per_column.quotient(warp),
                    part = warp - place * table->warps_per_column;
      const int32_t column = (job - table->first_job) * at_once + place;
      const bool valid = place < at_once && column < table->chunk_size;
      const int32_t first = valid ? part * table->counters_per_warp : table->num_buckets;
      sum_up_counters(*table, column, first, min(first + table->counters_per_warp, table->num_buckets), part,
                      temp.sums[parity], settle, verdicts);
      if (table->warps_per_column > 1) parity ^= 1;  // other jobs have no barrier
    }
    for (uint32_t i = team.thread(); i < static_cast<uint32_t>(num_steps); i += team.num_threads())
      in_global(storage.verdicts[(round + 1) % 2])[i] = {0, 0};
  }

  __device__ Verdict verdict(int32_t step, int32_t round) const {
    return in_global(storage.verdicts[round % 2])[step];
  }

  // First unsettled step from `begin` on, or `end`.
  __device__ int32_t first_unsettled(int32_t begin, int32_t end, int32_t round) const {
    for (int32_t first = begin; first < end; first += static_cast<int32_t>(kWarpThreads)) {
      const int32_t step = first + static_cast<int32_t>(threadIdx.x % kWarpThreads);
      const uint32_t found = __ballot_sync(kAllLanes, step < end && verdict(step, round).unsettled);
      if (found != 0) return first + lowest_bit(found);
    }
    return end;
  }

  // Projects the values or statistics of a step that the last round found unsettled. `verdict`: result of
  // that round. The block's threads may read the result after a __syncthreads.
  template <class V>
  __device__ __noinline__ void project_2os_counted(V v, const TeamTable<T>* tables, const Buckets* buckets,
                                                   Verdict verdict) {
    in_shared(this);
    in_shared(tables);
    in_shared(buckets);
    if (verdict.fullest > Tuning::kMaxComparedBucket) return project_2os_by_sorting(v, tables);
    gather(v, tables, buckets);
    team.sync();
    // One barrier more pays off for many values: neighbouring threads then read the same bucket.
    const bool many = verdict.fullest > Tuning::kMaxScatteredBucket &&
                      verdict.unsettled >= static_cast<uint32_t>(v.size) / Tuning::kManyUnsettled;
    if (many) {
      rank_in_order(v, tables, buckets);
      team.sync();
    }
    rank_own(v, tables, buckets, many);
  }

  // The same without a round of counting, in a time that does not depend on the values.
  template <class V>
  __device__ __noinline__ void project_2os_by_sorting(V v, const TeamTable<T>* tables) {
    in_shared(this);
    in_shared(tables);
    uint32_t *columns = in_global(storage.columns), *ranks = in_global(storage.ranks);
    for (int32_t f = 0; f < V::kCount; ++f) {
      const TeamTable<T>& table = tables[f];
      const int32_t M = table.num_chunks, D = table.chunk_size, size = table.size();
      Sort sort{team, sort_storage, temp.sort, size};
      Entry<T>* entries = in_global(sort_storage.entries[0]);
      for (int32_t i = v.begin() + threadIdx.x; i < v.end(); i += blockDim.x) {
        entries[i] = {to_key(v.get(f, i)), static_cast<uint32_t>(i)};
        if (table.is_counted()) columns[i] = static_cast<uint32_t>(column_of(v, f, i, table));
      }
      team.sync();
      entries = sort.sort_by_key(entries);
      if (!table.is_counted()) {
        // Sorted by chunk as well, a value stands at the beginning of its chunk plus its rank in the chunk.
        const Entry<T>* chunks = in_global(sort.sort_by_chunk(entries, table.by_chunk_size, M - 1));
        for (uint32_t p = team.thread(); p < static_cast<uint32_t>(size); p += team.num_threads())
          columns[chunks[p].index] = p - table.by_chunk_size.quotient(static_cast<int32_t>(p)) * D;
        team.sync();
      }
      entries = in_global(sort.sort_by_column(entries, columns, D - 1));
      for (uint32_t p = team.thread(); p < static_cast<uint32_t>(size); p += team.num_threads())
        ranks[entries[p].index] = p - table.by_num_chunks.quotient(static_cast<int32_t>(p)) * M;
      team.sync();
      for (int32_t i = v.begin() + threadIdx.x; i < v.end(); i += blockDim.x)
        v.set(f, i,
              table.clip(v.get(f, i), static_cast<int32_t>(ranks[i]), static_cast<int32_t>(columns[i])));
    }
  }

  // Projects the values begin .. end - 1 of a vector with a small table from `in` to `out`, unless that is
  // null. Returns true if one of them changes that this thread has ranked. Every block reads all of the
  // vector, and none waits.
  __device__ __noinline__ bool project_2os_small(const T* in, T* out, const TeamTable<T>& table,
                                                 int32_t begin, int32_t end) {
    in_shared(this);
    in_shared(&table);
    in = in_global(in);
    const int32_t M = table.num_chunks, D = table.chunk_size;
    // The gap of 16 bytes lets columns begin in different banks.
    const int32_t stride = M + static_cast<int32_t>(16 / sizeof(Key<T>));
    Key<T>* columns = temp.columns;
    __syncthreads();
    if (D == 4)
      make_columns<4>(in, columns, M, stride);
    else if (D == 16)
      make_columns<16>(in, columns, M, stride);
    else
      for (int32_t i = threadIdx.x; i < table.size(); i += blockDim.x) {
        const int32_t chunk = table.by_chunk_size.quotient(i);
        columns[rank_in_chunk(in, chunk * D, D, i) * stride + chunk] = to_key(in[i]);
      }
    __syncthreads();
    // Several neighbouring lanes count the rank of one value together.
    const int32_t own = end - begin;
    int32_t shift = 0;
    while ((2 << shift) <= static_cast<int32_t>(kWarpThreads) &&
           (own << (shift + 1)) <= static_cast<int32_t>(blockDim.x))
      ++shift;
    const int32_t lanes = 1 << shift, lane = static_cast<int32_t>(threadIdx.x) & (lanes - 1),
                  per_round = static_cast<int32_t>(blockDim.x) >> shift;
    bool changed = false;
    for (int32_t first = 0; first < own; first += per_round) {
      const int32_t k = first + (static_cast<int32_t>(threadIdx.x) >> shift);
      const int32_t i = begin + min(k, own - 1), chunk = table.by_chunk_size.quotient(i);
      const T x = in[i];
      const Key<T> key = to_key(x);
      int32_t column = 0, rank = 0, m = lane;
      for (int32_t n = chunk * D + lane; n < chunk * D + D; n += lanes) {
        const Key<T> other = to_key(in[n]);
        column += other < key || (other == key && n < i);
      }
      for (int32_t d = lanes / 2; d > 0; d /= 2) column += __shfl_xor_sync(kAllLanes, column, d);
      const Key<T>* others = columns + column * stride;
#pragma unroll 4
      for (; m < chunk; m += lanes) rank += others[m] <= key;
#pragma unroll 4
      for (; m < M; m += lanes) rank += others[m] < key;
      for (int32_t d = lanes / 2; d > 0; d /= 2) rank += __shfl_xor_sync(kAllLanes, rank, d);
      const T clipped = table.clip(x, rank, column);
      changed |= clipped != x && x == x;
      if (out != nullptr && k < own && lane == 0) in_global(out)[i] = clipped;
    }
    return changed;
  }

 private:
  // Rank of value i among the values begin .. begin + chunk_size - 1. Ties are ordered by place.
  template <class P>
  __device__ static int32_t rank_in_chunk(const P& values, int32_t begin, int32_t chunk_size, int32_t i) {
    const T x = values[i];
    int32_t rank = 0;
    if (x == x) {
#pragma unroll 4
      for (int32_t k = begin; k < begin + chunk_size; ++k) {
        const T other = values[k];
        rank += other < x || (other == x && k < i);
      }
    } else {
      for (int32_t k = begin; k < begin + chunk_size; ++k) rank += values[k] == values[k] || k < i;
    }
    return rank;
  }

  template <class V>
  __device__ static int32_t column_of(const V& v, int32_t f, int32_t i, const TeamTable<T>& table) {
    struct {
      const V& v;
      int32_t f;
      __device__ T operator[](int32_t k) const { return v.get(f, k); }
    } const values{v, f};
    return rank_in_chunk(values, table.by_chunk_size.quotient(i) * table.chunk_size, table.chunk_size, i);
  }

  // One thread sorts a whole chunk in registers.
  template <int32_t D, class V>
  __device__ static BlockRotation count_chunks(const V& v, const TeamTable<T>& table, uint32_t* counters,
                                               const Buckets* buckets, BlockRotation rotation) {
    const int32_t begin = v.begin() / D, end = v.end() / D;
    for (int32_t chunk = begin + rotation.thread(); chunk < end; chunk += blockDim.x) {
      const auto* packs = reinterpret_cast<const Pack4<T>*>(&v.slice[chunk * D]);
      Key<T> keys[D];
#pragma unroll
      for (int32_t i = 0; i < D / 4; ++i) {
        // Neighbouring threads begin in different banks.
        const Pack4<T> pack = packs[(i + chunk * D / 32) % (D / 4)];
#pragma unroll
        for (int32_t k = 0; k < 4; ++k) keys[4 * i + k] = to_key(pack.v[k]);
      }
      thread_sort(keys);
#pragma unroll
      for (int32_t j = 0; j < D; ++j)
        atomicAdd(&counters[table.counter_of(from_key<T>(keys[j]), j, buckets)], 1u);
    }
    rotation.advance(end - begin);
    return rotation;
  }

  // Writes the key of rank j in chunk m to columns[j stride + m].
  template <int32_t D>
  __device__ static void make_columns(const T* in, Key<T>* columns, int32_t num_chunks, int32_t stride) {
    for (int32_t chunk = threadIdx.x; chunk < num_chunks; chunk += blockDim.x) {
      Key<T> keys[D];
#pragma unroll
      for (int32_t i = 0; i < D; ++i) keys[i] = to_key(in[chunk * D + i]);
      thread_sort(keys);
#pragma unroll
      for (int32_t j = 0; j < D; ++j) columns[j * stride + chunk] = keys[j];
    }
  }

  // Sums up the counters begin .. end - 1 of a column, by one warp. `part`: number of this warp among those
  // of the column. `sums`: of all warps of the block. Nobody else reads these counters in this round, so the
  // warp clears them.
  __device__ void sum_up_counters(const TeamTable<T>& table, int32_t column, int32_t begin, int32_t end,
                                  int32_t part, uint32_t* sums, bool settle, Verdict* verdicts) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % kWarpThreads),
                  warp = static_cast<int32_t>(threadIdx.x / kWarpThreads);
    const int32_t first = column * table.num_buckets, first_counter = table.first_counter + first;
    auto* counts = reinterpret_cast<uint4*>(in_global(storage.counters) + first_counter);
    auto* crowds = reinterpret_cast<uint4*>(in_global(storage.crowds) + first_counter);
    uint32_t* cursors = in_global(storage.cursors) + first_counter;
    const auto* ranges = reinterpret_cast<const int4*>(in_global(table.ranges) + first);

    uint32_t before = 0;
    if (table.warps_per_column > 1) {
      uint32_t sum = 0;
      for (int32_t k = begin + 4 * lane; k < end; k += kCountersPerRow) {
        const uint4 four = counts[k / 4];
        sum += four.x + four.y + four.z + four.w;
      }
      sum = __reduce_add_sync(kAllLanes, sum);
      if (lane == 0) sums[warp] = sum;
      __syncthreads();
      before = __reduce_add_sync(kAllLanes, lane < part ? sums[warp - part + lane] : 0);
    }

    uint32_t unsettled = 0, fullest = 0;
    for (int32_t row = begin; row < end; row += kCountersPerRow) {
      const int32_t k = row + 4 * lane;
      const bool valid = k < end;
      const uint4 four = valid ? counts[k / 4] : uint4{};
      const uint32_t count[4] = {four.x, four.y, four.z, four.w};
      const uint32_t sum = four.x + four.y + four.z + four.w;
      const uint32_t inclusive = WarpScan::inclusive_sum(sum);
      uint32_t rank = before + inclusive - sum;
      before += __shfl_sync(kAllLanes, inclusive, static_cast<int>(kWarpThreads) - 1);
      if (!valid) continue;
      const int4 low = ranges[k / 2], high = ranges[k / 2 + 1];
      const int32_t range[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      counts[k / 4] = uint4{};
      uint32_t crowd[4];
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        const uint32_t end_rank = rank + count[i];
        const bool settled = count[i] == 0 || (settle && static_cast<int32_t>(rank) >= range[2 * i] &&
                                               static_cast<int32_t>(end_rank) <= range[2 * i + 1] + 1);
        crowd[i] = settled ? 0 : count[i];
        if (!settled) cursors[k + i] = rank;
        unsettled += crowd[i];
        fullest = max(fullest, crowd[i]);
        rank = end_rank;
      }
      crowds[k / 4] = uint4{crowd[0], crowd[1], crowd[2], crowd[3]};
    }
    fullest = __reduce_max_sync(kAllLanes, fullest);
    if (fullest == 0) return;
    unsettled = __reduce_add_sync(kAllLanes, unsettled);
    if (lane != 0) return;
    atomicAdd(&verdicts[table.step].unsettled, unsettled);
    atomicMax(&verdicts[table.step].fullest, fullest);
  }

  static constexpr uint32_t kSettled = ~0u;  // in place of the column of a value

  // Gathers the values of unsettled buckets by bucket.
  template <class V>
  __device__ void gather(const V& v, const TeamTable<T>* tables, const Buckets* buckets) {
    for (int32_t f = 0; f < V::kCount; ++f) {
      const TeamTable<T>& table = tables[f];
      Entry<T>* entries = in_global(sort_storage.entries[0]) + f * v.size;
      for (int32_t i = v.begin() + threadIdx.x; i < v.end(); i += blockDim.x) {
        const T x = v.get(f, i);
        const int32_t column = column_of(v, f, i, table);
        const int32_t at = table.first_counter + table.counter_of(x, column, buckets + table.first_column);
        const bool settled = in_global(storage.crowds)[at] == 0;
        in_global(storage.columns)[f * v.size + i] = settled ? kSettled : static_cast<uint32_t>(column);
        if (settled) continue;
        const uint32_t rank = atomicAdd(&in_global(storage.cursors)[at], 1u);
        entries[column * table.num_chunks + static_cast<int32_t>(rank)] = {to_key(x),
                                                                           static_cast<uint32_t>(i)};
      }
    }
  }

  // Rank of a gathered value among the values of its bucket, whose first rank is `rank`.
  __device__ static int32_t rank_among_neighbours(const Entry<T>& own, const Entry<T>* column, int32_t rank,
                                                  int32_t crowd) {
    const Entry<T>* neighbours = column + rank;
#pragma unroll 4
    for (int32_t k = 0; k < crowd; ++k) rank += neighbours[k] < own;
    return rank;
  }

  // Ranks all gathered values, in the order of their buckets. Other entries are left from earlier
  // projections: they do not lie within the bucket that their key has now.
  template <class V>
  __device__ void rank_in_order(const V& v, const TeamTable<T>* tables, const Buckets* buckets) {
    for (int32_t f = 0; f < V::kCount; ++f) {
      const TeamTable<T>& table = tables[f];
      const Entry<T>* entries = in_global(sort_storage.entries[0]) + f * v.size;
      for (uint32_t p = team.thread(); p < static_cast<uint32_t>(v.size); p += team.num_threads()) {
        const int32_t column = table.by_num_chunks.quotient(static_cast<int32_t>(p)),
                      first = column * table.num_chunks, place = static_cast<int32_t>(p) - first;
        const Entry<T> own = entries[p];
        const int32_t at = table.first_counter +
                           table.counter_of(from_key<T>(own.key), column, buckets + table.first_column);
        const auto crowd = static_cast<int32_t>(in_global(storage.crowds)[at]);
        if (crowd == 0) continue;
        const int32_t end = static_cast<int32_t>(in_global(storage.cursors)[at]);
        if (place < end - crowd || place >= end) continue;
        in_global(storage.ranks)[f * v.size + static_cast<int32_t>(own.index)] =
            static_cast<uint32_t>(rank_among_neighbours(own, entries + first, end - crowd, crowd));
      }
    }
  }

  // Clips the block's own values of unsettled buckets. `ranked`: their ranks are known.
  template <class V>
  __device__ void rank_own(const V& v, const TeamTable<T>* tables, const Buckets* buckets, bool ranked) {
    for (int32_t f = 0; f < V::kCount; ++f) {
      const TeamTable<T>& table = tables[f];
      const Entry<T>* entries = in_global(sort_storage.entries[0]) + f * v.size;
      for (int32_t i = v.begin() + threadIdx.x; i < v.end(); i += blockDim.x) {
        const uint32_t found = in_global(storage.columns)[f * v.size + i];
        if (found == kSettled && V::kInPlace) continue;
        T x = v.get(f, i);
        if (found != kSettled) {
          const auto column = static_cast<int32_t>(found);
          int32_t rank;
          if (ranked) {
            rank = static_cast<int32_t>(in_global(storage.ranks)[f * v.size + i]);
          } else {
            const int32_t at =
                table.first_counter + table.counter_of(x, column, buckets + table.first_column);
            const auto crowd = static_cast<int32_t>(in_global(storage.crowds)[at]);
            rank = rank_among_neighbours({to_key(x), static_cast<uint32_t>(i)},
                                         entries + column * table.num_chunks,
                                         static_cast<int32_t>(in_global(storage.cursors)[at]) - crowd, crowd);
          }
          x = table.clip(x, rank, column);
        }
        v.set(f, i, x);
      }
    }
  }
};

}  // namespace noisetilt::cuda
