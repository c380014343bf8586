// Two-level order statistics (DESIGN section 2) by a team of thread blocks.
//
// Values are sorted only if no cheaper method works. The rank of a value in its chunk is counted by comparing
// it with the chunk. The values of every column are counted into buckets. The counts give the first and the
// last rank in a bucket; if both are in the bucket's rank range, its values are settled: the projection does
// not change them. That settles most of a nearly typical sample. Otherwise the values are gathered by bucket
// and ranked exactly among their neighbours. Where buckets are crowded (many ties, unusual scales) or chunks
// are long, they are ranked by sorting.
//
// A round of counting may test several units at once: those before the first unsettled one change nothing.
#pragma once

#include "kernels.h"
#include "keys.cuh"
#include "policy.h"
#include "radix_sort.cuh"
#include "team.cuh"

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
  int32_t unit;           // see whitening_plan.h

  // Long chunks are sorted, and have no buckets.
  __device__ bool is_counted() const { return chunk_size <= Policy::OrderStats::kMaxCountedChunk; }
  // Index of a counter in [column][bucket]. `buckets`: of every column.
  __device__ int32_t counter_of(T x, int32_t column, const Buckets* buckets) const {
    return column * num_buckets + buckets[column].of(x, static_cast<uint32_t>(num_buckets) / 2);
  }

  __device__ int32_t size() const { return num_chunks * chunk_size; }
  __device__ bool is_small() const {
    return num_chunks <= Policy::OrderStats::kMaxSmallColumn &&
           size() <= Policy::OrderStats::kMaxSmallVector && is_counted();
  }
  // x clipped to the entries for its rank and column; NaN stays.
  __device__ T clip(T x, int32_t rank, int32_t column) const {
    const int64_t at = rank * row_stride + column * column_stride;
    const T low = lower[at], high = upper[at];
    return x < low ? low : x > high ? high : x;
  }
};

template <class T>
DeviceTable<T> device_table(const Table<T>& table, const RankRange* ranges, int32_t first_counter = 0,
                            int32_t first_column = 0, int32_t unit = 0) {
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
          unit};
}

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

// Rank of chunk[i] among the values of the chunk. Ties are ordered by index.
template <class T>
__device__ inline int32_t rank_in_chunk(const T* chunk, int32_t chunk_size, int32_t i) {
  const Key<T> key = to_key(chunk[i]);
  int32_t rank = 0;
#pragma unroll 4
  for (int32_t k = 0; k < chunk_size; ++k) {
    const Key<T> other = to_key(chunk[k]);
    rank += other < key || (other == key && k < i);
  }
  return rank;
}

// One or two vectors of equal size that are projected side by side. A block changes its own values, begin ..
// end - 1. It reads the same values of `in`, and the rest of each chunk that crosses the border of its range.
template <class T>
struct Vectors {
  const T* first_in;
  T* first_out;
  int32_t count;
  int32_t size;  // of one vector; the second follows the first in memory
  int32_t begin, end;

  __device__ const T* in(int32_t f) const { return first_in + f * size; }
  __device__ T* out(int32_t f) const { return first_out + f * size; }
};

// Result of a round of counting for a unit.
struct Verdict {
  uint32_t unsettled;  // 1 if the projection may change a value
  uint32_t fullest;    // number of values in the fullest unsettled bucket
};

constexpr uint32_t kUnsettled = 1u << 31;  // flag of a bucket, beside its first rank

template <class T>
class TeamOrderStats {
 public:
  using Sort = TeamRadixSort<T>;
  using Tuning = Policy::OrderStats;

  // Storage of a team in global memory, see whitening_buffers.h.
  struct GlobalStorage {
    uint32_t* counters;    // of every table; zero unless in use
    Verdict* verdicts[2];  // of every unit; zero unless in use
    int32_t num_units;
    // First rank in each bucket of every table, with the flag kUnsettled. Gathering advances it to the rank
    // of the next value in the bucket.
    uint32_t* ranks;
    T* clipped;         // [vector][value]; NaN if the value is unchanged
    uint32_t* columns;  // [value], for sorting
    typename Sort::GlobalStorage sort;
  };
  // Storage of a block in shared memory.
  union TempStorage {
    uint32_t sums[2][kMaxBlockWarps];  // of the counters of each warp
    // Two small vectors by columns, with a gap behind every column.
    Key<T> columns[2 * (Tuning::kMaxSmallVector + 4 * Tuning::kMaxCountedChunk)];
    typename Sort::TempStorage sort;
  };

  // `storage` may be filled in later, before a barrier of the block.
  __device__ TeamOrderStats(Team& team, const GlobalStorage& storage, TempStorage& temp_storage)
      : team_(team), storage_(storage), temp_storage_(temp_storage) {}

  // A round of counting: count() for all vectors of a range of tables, a team barrier, sum_up() of the
  // tables, a team barrier; then verdict() of their units, and end_round().

  // Counts the block's own values. They must be written before a __syncthreads, and values of other blocks in
  // chunks that cross the border before a team barrier. `buckets`: of the columns of all tables.
  __device__ __noinline__ void count(const Vectors<T>& v, const DeviceTable<T>* tables,
                                     const Buckets* buckets, BlockRotation& rotation) {
    const int32_t D = tables[0].chunk_size, own = v.end - v.begin;
    for (int32_t f = 0; f < v.count; ++f) {
      const DeviceTable<T>& table = tables[f];
      uint32_t* counters = storage_.counters + table.first_counter;
      const Buckets* columns = buckets + table.first_column;
      if (D == 4 && worth_a_thread_a_chunk(v, f, D)) {
        count_chunks<4>(v, f, counters, table, columns);
      } else if (D == 16 && worth_a_thread_a_chunk(v, f, D)) {
        count_chunks<16>(v, f, counters, table, columns);
      } else {
        for (int32_t i = v.begin + rotation.thread(); i < v.end; i += blockDim.x)
          atomicAdd(&counters[place_of(v.in(f), i, table, columns)], 1u);
        rotation.advance(own);
      }
    }
  }

  __device__ void declare_unsettled(int32_t unit) { storage_.verdicts[parity_][unit].unsettled = 1; }

  // Turns the counts of every column into first ranks, and writes the verdicts. `settle`: true if
  // the buckets are the same as for the rank ranges. If false, no bucket is settled. Leaves the counters
  // zero.
  __device__ __noinline__ void sum_up(const DeviceTable<T>* begin, const DeviceTable<T>* end, bool settle) {
    const int32_t num_warps = static_cast<int32_t>(blockDim.x / kWarpThreads),
                  warp = static_cast<int32_t>(threadIdx.x / kWarpThreads);
    // A job of a block are as many whole columns as its warps can sum up at once.
    int32_t job = static_cast<int32_t>(team_.rank);
    uint32_t parity = 0;
    for (const DeviceTable<T>* table = begin; table != end; ++table) {
      const int32_t num_rows = (table->num_buckets + kRow - 1) / kRow, sharing = min(num_rows, num_warps);
      const int32_t at_once = num_warps / sharing, part = warp % sharing;
      const int32_t per_warp = (num_rows + sharing - 1) / sharing * kRow;
      for (; job * at_once < table->chunk_size; job += static_cast<int32_t>(team_.num_blocks)) {
        const int32_t column = job * at_once + warp / sharing;
        const bool valid = warp < at_once * sharing && column < table->chunk_size;
        const int32_t first = valid ? part * per_warp : table->num_buckets;
        sum_up_counters(*table, column, first, min(first + per_warp, table->num_buckets), part, sharing > 1,
                        temp_storage_.sums[parity], settle);
        parity ^= 1;
      }
      job -= (table->chunk_size + at_once - 1) / at_once;
    }
    for (uint32_t i = team_.thread(); i < static_cast<uint32_t>(storage_.num_units); i += team_.num_threads())
      storage_.verdicts[parity_ ^ 1][i] = {0, 0};
  }

  __device__ Verdict verdict(int32_t unit) const { return storage_.verdicts[parity_][unit]; }
  __device__ void end_round() { parity_ ^= 1; }

  // Projects vectors of a unit that the last round found unsettled. `verdict`: result of that round. The
  // block's threads may read the result after a __syncthreads. No block may change `in` before the next team
  // barrier.
  __device__ __noinline__ void project_2os_counted(const Vectors<T>& v, const DeviceTable<T>* tables,
                                                   const Buckets* buckets, const Verdict& verdict) {
    if (verdict.fullest <= Tuning::kMaxComparedBucket)
      rank_among_neighbours(v, tables, buckets);
    else
      rank_by_sorting(v, tables, buckets);
    take_clipped(v);
  }

  // The same for long chunks, which have no round of counting.
  __device__ void project_2os_by_sorting(const Vectors<T>& v, const DeviceTable<T>* tables) {
    rank_by_sorting(v, tables, nullptr);
    take_clipped(v);
  }

  // The same for small tables, without a round of counting: every block reads all values, and none waits.
  __device__ __noinline__ void project_2os_small(const Vectors<T>& v, const DeviceTable<T>* tables) {
    const int32_t M = tables[0].num_chunks, D = tables[0].chunk_size;
    // The gap of 16 bytes lets columns begin in different banks.
    const int32_t stride = M + static_cast<int32_t>(16 / sizeof(Key<T>));
    Key<T>* columns = temp_storage_.columns;
    __syncthreads();
    switch (D) {
      case 4:
        make_columns<4>(v, columns, M, stride);
        break;
      case 16:
        make_columns<16>(v, columns, M, stride);
        break;
      default:
        for (int32_t i = threadIdx.x; i < v.count * v.size; i += blockDim.x) {
          const int32_t chunk = i / D;  // numbered through both vectors
          const int32_t column = rank_in_chunk(v.first_in + chunk * D, D, i - chunk * D), f = chunk / M;
          columns[(f * D + column) * stride + chunk - f * M] = to_key(v.first_in[i]);
        }
    }
    __syncthreads();
    // Several neighbouring lanes count the rank of one value together.
    const int32_t own = v.end - v.begin, num_values = v.count * own;
    int32_t lanes = 1;
    while (lanes < static_cast<int32_t>(kWarpThreads) &&
           2 * lanes * num_values <= static_cast<int32_t>(blockDim.x))
      lanes *= 2;
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % lanes,
                  per_round = static_cast<int32_t>(blockDim.x) / lanes;
    for (int32_t first = 0; first < num_values; first += per_round) {
      const int32_t k = first + static_cast<int32_t>(threadIdx.x) / lanes;
      const bool valid = k < num_values;
      const int32_t f = valid ? k / own : 0, i = v.begin + (valid ? k - f * own : 0);
      const int32_t chunk = i / D, column = rank_in_chunk(v.in(f) + chunk * D, D, i - chunk * D);
      const T x = v.in(f)[i];
      const Key<T> key = to_key(x);
      const Key<T>* others = columns + (f * D + column) * stride;
      int32_t rank = 0, m = lane;
#pragma unroll 4
      for (; m < chunk; m += lanes) rank += others[m] <= key;
#pragma unroll 4
      for (; m < M; m += lanes) rank += others[m] < key;
      for (int32_t d = lanes / 2; d > 0; d /= 2) rank += __shfl_xor_sync(kAllLanes, rank, d);
      if (valid && lane == 0) v.out(f)[i] = tables[f].clip(x, rank, column);
    }
  }

 private:
  // Returns true if one thread should sort a whole chunk in registers. That is faster than a thread for every
  // value if there are chunks for all threads. Chunks must not cross blocks, and must be aligned.
  __device__ static bool worth_a_thread_a_chunk(const Vectors<T>& v, int32_t f, int32_t chunk_size) {
    return v.begin % chunk_size == 0 && v.end % chunk_size == 0 &&
           v.end - v.begin >= static_cast<int32_t>(blockDim.x) * chunk_size &&
           reinterpret_cast<uintptr_t>(v.in(f) + v.begin) % sizeof(Pack4<T>) == 0;
  }

  template <int32_t D>
  __device__ static void count_chunks(const Vectors<T>& v, int32_t f, uint32_t* counters,
                                      const DeviceTable<T>& table, const Buckets* buckets) {
    for (int32_t chunk = v.begin / D + threadIdx.x; chunk < v.end / D; chunk += blockDim.x) {
      const auto* packs = reinterpret_cast<const Pack4<T>*>(v.in(f) + chunk * D);
      Key<T> keys[D];
#pragma unroll
      for (int32_t i = 0; i < D; i += 4) {
        const Pack4<T> pack = packs[i / 4];
#pragma unroll
        for (int32_t k = 0; k < 4; ++k) keys[i + k] = to_key(pack.v[k]);
      }
      thread_sort(keys);
#pragma unroll
      for (int32_t j = 0; j < D; ++j)
        atomicAdd(&counters[table.counter_of(from_key<T>(keys[j]), j, buckets)], 1u);
    }
  }

  // Writes the key of rank j in chunk m of vector f to columns[(f D + j) stride + m].
  template <int32_t D>
  __device__ static void make_columns(const Vectors<T>& v, Key<T>* columns, int32_t num_chunks,
                                      int32_t stride) {
    for (int32_t chunk = threadIdx.x; chunk < v.count * num_chunks; chunk += blockDim.x) {
      const int32_t f = chunk / num_chunks;
      Key<T> keys[D];
#pragma unroll
      for (int32_t i = 0; i < D; ++i) keys[i] = to_key(v.first_in[chunk * D + i]);
      thread_sort(keys);
#pragma unroll
      for (int32_t j = 0; j < D; ++j) columns[(f * D + j) * stride + chunk - f * num_chunks] = keys[j];
    }
  }

  // Index of value i's counter in [column][bucket].
  __device__ static uint32_t place_of(const T* values, int32_t i, const DeviceTable<T>& table,
                                      const Buckets* buckets) {
    const int32_t D = table.chunk_size, chunk = i / D;
    const int32_t column = rank_in_chunk(values + chunk * D, D, i - chunk * D);
    return static_cast<uint32_t>(table.counter_of(values[i], column, buckets));
  }

  // Number of counters that a warp reads at once.
  static constexpr int32_t kRow = 4 * static_cast<int32_t>(kWarpThreads);

  // Sums up the counters begin .. end - 1 of a column, by one warp. `part`: number of this warp among those
  // of the column, if there are several (`shared`). `sums`: of all warps of the block. Nobody else reads
  // these counters in this round, so the warp clears them.
  __device__ void sum_up_counters(const DeviceTable<T>& table, int32_t column, int32_t begin, int32_t end,
                                  int32_t part, bool shared, uint32_t* sums, bool settle) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % kWarpThreads),
                  warp = static_cast<int32_t>(threadIdx.x / kWarpThreads);
    const int64_t first = static_cast<int64_t>(column) * table.num_buckets;
    auto* counts = reinterpret_cast<uint4*>(storage_.counters + table.first_counter + first);
    auto* ranks = reinterpret_cast<uint4*>(storage_.ranks + table.first_counter + first);
    const auto* ranges = reinterpret_cast<const int4*>(table.ranges + first);

    uint32_t before = 0;
    if (shared) {
      uint32_t sum = 0;
      for (int32_t k = begin + 4 * lane; k < end; k += kRow) {
        const uint4 four = counts[k / 4];
        sum += four.x + four.y + four.z + four.w;
      }
      sum = __reduce_add_sync(kAllLanes, sum);
      if (lane == 0) sums[warp] = sum;
      __syncthreads();
      before = __reduce_add_sync(kAllLanes, lane < part ? sums[warp - part + lane] : 0);
    }

    uint32_t fullest = 0;
    for (int32_t row = begin; row < end; row += kRow) {
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
      uint32_t first_ranks[4];
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        first_ranks[i] = rank;
        rank += count[i];
        const bool inside = settle && static_cast<int32_t>(first_ranks[i]) >= range[2 * i] &&
                            static_cast<int32_t>(rank) <= range[2 * i + 1] + 1;
        if (count[i] == 0 || inside) continue;
        first_ranks[i] |= kUnsettled;
        fullest = max(fullest, count[i]);
      }
      ranks[k / 4] = uint4{first_ranks[0], first_ranks[1], first_ranks[2], first_ranks[3]};
    }
    fullest = __reduce_max_sync(kAllLanes, fullest);
    if (lane != 0 || fullest == 0) return;
    Verdict& verdict = storage_.verdicts[parity_][table.unit];
    verdict.unsettled = 1;
    atomicMax(&verdict.fullest, fullest);
  }

  // Writes the clipped values to `out`, and copies the others.
  __device__ void take_clipped(const Vectors<T>& v) {
    team_.sync();
    for (int32_t f = 0; f < v.count; ++f) {
      for (int32_t i = v.begin + threadIdx.x; i < v.end; i += blockDim.x) {
        const T clipped = storage_.clipped[f * v.size + i];
        v.out(f)[i] = clipped == clipped ? clipped : v.in(f)[i];
      }
    }
  }

  // Gathers the values by bucket, and ranks those of unsettled buckets by comparing them with all values of
  // their bucket. Gathering turns the first rank of each bucket into the rank after its last.
  __device__ void rank_among_neighbours(const Vectors<T>& v, const DeviceTable<T>* tables,
                                        const Buckets* buckets) {
    const int32_t M = tables[0].num_chunks, D = tables[0].chunk_size, num_buckets = tables[0].num_buckets;
    Entry<T>* entries = storage_.sort.entries[0];
    for (int32_t f = 0; f < v.count; ++f) {
      uint32_t* ranks = storage_.ranks + tables[f].first_counter;
      for (int32_t i = v.begin + threadIdx.x; i < v.end; i += blockDim.x) {
        const uint32_t place = place_of(v.in(f), i, tables[f], buckets + tables[f].first_column);
        const int32_t column = static_cast<int32_t>(place) / num_buckets;
        const int32_t rank = static_cast<int32_t>(atomicAdd(&ranks[place], 1u) & ~kUnsettled);
        entries[f * v.size + column * M + rank] = {to_key(v.in(f)[i]), static_cast<uint32_t>(i)};
      }
    }
    team_.sync();
    for (uint32_t p = team_.thread(); p < static_cast<uint32_t>(v.count * v.size); p += team_.num_threads()) {
      const int32_t f = static_cast<int32_t>(p) / v.size, column = static_cast<int32_t>(p) / M - f * D;
      const Entry<T> own = entries[p];
      const int32_t bucket =
          tables[f].counter_of(from_key<T>(own.key), column, buckets + tables[f].first_column) -
          column * num_buckets;
      const uint32_t* ends =
          storage_.ranks + tables[f].first_counter + static_cast<int64_t>(column) * num_buckets;
      const uint32_t end = ends[bucket];
      if (!(end & kUnsettled)) {
        storage_.clipped[f * v.size + static_cast<int32_t>(own.index)] = quiet_nan<T>();
        continue;
      }
      const uint32_t begin = bucket == 0 ? 0 : ends[bucket - 1] & ~kUnsettled;
      const Entry<T>* neighbours = entries + f * v.size + static_cast<int64_t>(column) * M;
      uint32_t rank = begin;
#pragma unroll 4
      for (uint32_t k = begin; k < (end & ~kUnsettled); ++k) rank += neighbours[k] < own;
      clip(tables[f], f * v.size, own, static_cast<int32_t>(rank), column);
    }
  }

  // Ranks all values by radix sorts. `buckets` may be null if the chunks are long.
  __device__ __noinline__ void rank_by_sorting(const Vectors<T>& v, const DeviceTable<T>* tables,
                                               const Buckets* buckets) {
    const int32_t M = tables[0].num_chunks, D = tables[0].chunk_size, size = v.size;
    Sort sort(team_, storage_.sort, temp_storage_.sort, size);
    uint32_t* columns = storage_.columns;
    for (int32_t f = 0; f < v.count; ++f) {
      Entry<T>* entries = storage_.sort.entries[0];
      for (int32_t i = v.begin + threadIdx.x; i < v.end; i += blockDim.x) {
        entries[i] = {to_key(v.in(f)[i]), static_cast<uint32_t>(i)};
        if (tables[f].is_counted())
          columns[i] = place_of(v.in(f), i, tables[f], buckets + tables[f].first_column) /
                       static_cast<uint32_t>(tables[f].num_buckets);
      }
      team_.sync();
      entries = sort.sort(entries, ~Key<T>(0), nullptr, [](const Entry<T>& e) { return e.key; });
      if (!tables[f].is_counted()) {
        // Sorted by chunk as well, a value stands at the beginning of its chunk plus its rank in the chunk.
        const Entry<T>* chunks = sort.sort(
            entries, M - 1, entries, [=](const Entry<T>& e) { return e.index / static_cast<uint32_t>(D); });
        for (uint32_t p = team_.thread(); p < static_cast<uint32_t>(size); p += team_.num_threads())
          columns[chunks[p].index] = p % static_cast<uint32_t>(D);
        team_.sync();
      }
      entries = sort.sort(entries, D - 1, nullptr, [=](const Entry<T>& e) { return columns[e.index]; });
      for (uint32_t p = team_.thread(); p < static_cast<uint32_t>(size); p += team_.num_threads()) {
        const int32_t column = static_cast<int32_t>(p) / M;
        clip(tables[f], f * size, entries[p], static_cast<int32_t>(p) - column * M, column);
      }
      team_.sync();  // before entries and columns are written again
    }
  }

  // Clips an entry, and writes the result to `clipped`.
  __device__ void clip(const DeviceTable<T>& table, int32_t offset, const Entry<T>& entry, int32_t rank,
                       int32_t column) {
    const T x = from_key<T>(entry.key), clipped = table.clip(x, rank, column);
    storage_.clipped[offset + static_cast<int32_t>(entry.index)] = clipped == x ? quiet_nan<T>() : clipped;
  }

  Team& team_;
  const GlobalStorage& storage_;
  TempStorage& temp_storage_;
  int32_t parity_ = 0;  // of the round: the copy of verdicts in use
};

}  // namespace noisetilt::cuda
