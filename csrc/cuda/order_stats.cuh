// Two-level order statistics, DESIGN section 2, by a team of thread blocks.
//
// Nothing is sorted unless it must be. The rank of a value in its chunk is counted by comparing it with the chunk.
// The values of every column are counted into buckets: a bucket tells between which ranks its values lie, and most of
// a nearly typical sample is settled by that, unchanged. Else the values are gathered by bucket and ranked
// exactly among their neighbours; or, where buckets are crowded (many ties, odd scales) or chunks are long, by sorting.
#pragma once

#include "keys.cuh"
#include "kernels.h"
#include "radix_sort.cuh"
#include "team.cuh"

namespace noisetilt::cuda {

constexpr int32_t kCountedChunk = 32;     // chunks up to this size are ranked by comparing all with all
constexpr uint32_t kMostCompared = 512;   // buckets up to this size likewise: beyond, sorting is faster
constexpr int32_t kSmallColumn = 1024;    // columns up to this length, and
constexpr int32_t kSmallVector = 4096;    // vectors up to this one, are ranked whole by every block on its own

// A table and what belongs to it.
template <class T>
struct Field {
  const T *lower, *upper;
  const RankLimits* limits;
  int64_t row_stride, column_stride;
  int32_t num_chunks, chunk_size, num_buckets;

  __device__ int32_t size() const { return num_chunks * chunk_size; }
  __device__ bool is_small() const {
    return num_chunks <= kSmallColumn && size() <= kSmallVector && chunk_size <= kCountedChunk;
  }
  // x clipped to the bounds of its rank; NaN stays.
  __device__ T clip(T x, int32_t rank, int32_t column) const {
    const int64_t at = rank * row_stride + column * column_stride;
    const T low = lower[at], high = upper[at];
    return x < low ? low : x > high ? high : x;
  }
};

// 4 over the typical size of a value, a power of two: that of a quarter of the largest bound.
template <class T>
__device__ inline float bucket_factor(const Field<T>& field) {
  const int64_t last = (field.num_chunks - 1) * field.row_stride + (field.chunk_size - 1) * field.column_stride;
  const float largest = fmaxf(fabsf(static_cast<float>(field.lower[0])), fabsf(static_cast<float>(field.upper[last])));
  const int32_t exponent = static_cast<int32_t>((__float_as_uint(largest) >> 23) & 255u) - 127 - 2;
  const int32_t inverse = 2 - exponent + 127;
  return __uint_as_float(static_cast<uint32_t>(min(max(inverse, 1), 254)) << 23);
}

// Rank of chunk[i] among the chunk's values; ties by index.
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

// One or two vectors of equally many values that are projected side by side. A block changes its own values, begin to
// end; of `in` it reads those and, where a chunk crosses that range, the rest of the chunk.
template <class T>
struct Vectors {
  const T* first_in;
  T* first_out;
  int32_t count;
  int32_t size;  // of a vector; the second follows the first
  int32_t begin, end;

  __device__ const T* in(int32_t f) const { return first_in + f * size; }
  __device__ T* out(int32_t f) const { return first_out + f * size; }
};

// What the blocks of a team share, in global memory.
template <class T>
struct OrderStatsMemory {
  uint32_t* counters[2];  // [vector][column][bucket], all zero where not in use
  uint32_t* verdicts[2];  // {a value is unsettled, size of the fullest bucket}, likewise
  uint32_t* places;       // [vector][value]: column and bucket
  T* clipped;             // [vector][value]: NaN where it is unchanged
  RadixMemory<T> radix;
};

template <class T>
class OrderStats {
 public:
  // `shared` is working memory of the block: shared_bytes() of it. `memory` may be filled in later, before a barrier.
  __device__ OrderStats(Team& team, const OrderStatsMemory<T>& memory, unsigned char* shared)
      : team_(team), memory_(memory), shared_(shared) {}

  __host__ __device__ static size_t shared_bytes(int32_t threads) {
    const size_t small = 2 * (kSmallVector + 4 * kCountedChunk) * sizeof(Key<T>);
    const size_t radix = RadixSort<T>::shared_bytes(threads);
    return small > radix ? small : radix;
  }

  // The block's own values are there after a __syncthreads, others, where chunks cross blocks, after a team barrier.
  // So are the results for the block's threads; nobody may change `in` before the next team barrier.
  // `settle`: the buckets are those that the limits were made for.
  __device__ __noinline__ void project(const Vectors<T>& v, const Field<T>* fields, const Buckets* buckets, bool settle) {
    if (fields[0].chunk_size <= kCountedChunk) {
      count(v, fields, buckets);
      team_.sync();
      sum_up(v, fields, settle);
      team_.sync();
      const uint32_t* verdict = memory_.verdicts[parity_];
      const bool settled = verdict[0] == 0;
      const uint32_t fullest = verdict[1];
      uint32_t* counters = memory_.counters[parity_];
      parity_ ^= 1;
      used_ = static_cast<uint32_t>(v.count * fields[0].chunk_size * fields[0].num_buckets);
      if (settled) return copy(v);
      if (fullest <= kMostCompared)
        rank_among_neighbours(v, fields, buckets, counters);
      else
        rank_by_sorting(v, fields, fields[0].num_buckets);
    } else {
      rank_by_sorting(v, fields, 1);
    }
    team_.sync();
    for (int32_t f = 0; f < v.count; ++f) {
      for (int32_t i = v.begin + threadIdx.x; i < v.end; i += blockDim.x) {
        const T clipped = memory_.clipped[f * v.size + i];
        v.out(f)[i] = clipped == clipped ? clipped : v.in(f)[i];
      }
    }
  }

  // As project, where fields are small: every block reads all values, and none waits for another.
  __device__ void project_small(const Vectors<T>& v, const Field<T>* fields) {
    const int32_t M = fields[0].num_chunks, D = fields[0].chunk_size;
    const int32_t stride = M + static_cast<int32_t>(16 / sizeof(Key<T>));  // columns begin in different banks
    auto* columns = reinterpret_cast<Key<T>*>(shared_);
    __syncthreads();
    for (int32_t i = threadIdx.x; i < v.count * v.size; i += blockDim.x) {
      const int32_t f = i / v.size, chunk = (i - f * v.size) / D, place = i - f * v.size - chunk * D;
      const T* values = v.in(f) + chunk * D;
      columns[(f * D + rank_in_chunk(values, D, place)) * stride + chunk] = to_key(values[place]);
    }
    __syncthreads();
    // Several neighbouring lanes count for one value.
    const int32_t own = v.end - v.begin, num_values = v.count * own;
    int32_t lanes = 1;
    while (lanes < static_cast<int32_t>(kWarp) && 2 * lanes * num_values <= static_cast<int32_t>(blockDim.x)) lanes *= 2;
    const int32_t lane = static_cast<int32_t>(threadIdx.x) % lanes, per_round = static_cast<int32_t>(blockDim.x) / lanes;
    for (int32_t first = 0; first < num_values; first += per_round) {
      const int32_t k = first + static_cast<int32_t>(threadIdx.x) / lanes;
      const bool valid = k < num_values;
      const int32_t f = valid ? k / own : 0, i = v.begin + (valid ? k - f * own : 0);
      const int32_t chunk = i / D, column = rank_in_chunk(v.in(f) + chunk * D, D, i - chunk * D);
      const T x = v.in(f)[i];
      const Key<T> key = to_key(x);
      const Key<T>* others = columns + (f * D + column) * stride;
      int32_t rank = 0;
      for (int32_t m = lane; m < M; m += lanes) rank += others[m] < key || (others[m] == key && m < chunk);
      for (int32_t d = lanes / 2; d > 0; d /= 2) rank += __shfl_xor_sync(kAllLanes, rank, d);
      if (valid && lane == 0) v.out(f)[i] = fields[f].clip(x, rank, column);
    }
  }

 private:
  __device__ void count(const Vectors<T>& v, const Field<T>* fields, const Buckets* buckets) {
    const int32_t D = fields[0].chunk_size;
    for (int32_t f = 0; f < v.count; ++f) {
      uint32_t* counters = memory_.counters[parity_] + f * D * buckets[f].count;
      for (int32_t i = v.begin + threadIdx.x; i < v.end; i += blockDim.x) {
        const int32_t chunk = i / D, column = rank_in_chunk(v.in(f) + chunk * D, D, i - chunk * D);
        const uint32_t place = static_cast<uint32_t>(column * buckets[f].count + buckets[f].of(v.in(f)[i]));
        memory_.places[f * v.size + i] = place;
        atomicAdd(&counters[place], 1u);
      }
    }
  }

  // Turns the counts of every column into first ranks, and says what they settle.
  __device__ void sum_up(const Vectors<T>& v, const Field<T>* fields, bool settle) {
    const int32_t D = fields[0].chunk_size, num_buckets = fields[0].num_buckets;
    auto* partial = reinterpret_cast<uint32_t*>(shared_);
    bool unsettled = false;
    uint32_t fullest = 0;
    for (int32_t c = team_.rank; c < v.count * D; c += team_.num_blocks) {
      const RankLimits* limits = fields[c / D].limits + static_cast<int64_t>(c % D) * num_buckets;
      auto* counts = reinterpret_cast<uint4*>(memory_.counters[parity_] + static_cast<int64_t>(c) * num_buckets);
      uint32_t before = 0;
      for (int32_t first = 0; first < num_buckets / 4; first += blockDim.x) {
        const int32_t at = first + threadIdx.x;
        const bool inside = at < num_buckets / 4;
        const uint4 four = inside ? counts[at] : uint4{0, 0, 0, 0};
        const uint32_t count[4] = {four.x, four.y, four.z, four.w};
        uint32_t total;
        uint32_t rank = before + block_prefix_sum(four.x + four.y + four.z + four.w, partial, total);
        before += total;
        uint32_t ranks[4];
#pragma unroll
        for (int32_t k = 0; k < 4; ++k) {
          ranks[k] = rank;
          rank += count[k];
          fullest = max(fullest, count[k]);
          if (count[k] == 0) continue;
          if (!settle) {
            unsettled = true;
          } else {
            const RankLimits limit = limits[4 * at + k];
            unsettled |= static_cast<int32_t>(ranks[k]) < limit.first || static_cast<int32_t>(rank) - 1 > limit.last;
          }
        }
        if (inside) counts[at] = uint4{ranks[0], ranks[1], ranks[2], ranks[3]};
      }
    }
    fullest = __reduce_max_sync(kAllLanes, fullest);
    unsettled = __any_sync(kAllLanes, unsettled);
    if (threadIdx.x % kWarp == 0) {
      if (unsettled) atomicOr(&memory_.verdicts[parity_][0], 1u);
      atomicMax(&memory_.verdicts[parity_][1], fullest);
    }
    // Nobody looks at what the projection before this one left: all are past this one's first barrier.
    uint32_t* others = memory_.counters[parity_ ^ 1];
    for (uint32_t i = team_.thread(); i < used_; i += team_.num_threads()) others[i] = 0;
    if (team_.thread() < 2) memory_.verdicts[parity_ ^ 1][team_.thread()] = 0;
  }

  __device__ void copy(const Vectors<T>& v) {
    for (int32_t f = 0; f < v.count; ++f) {
      if (v.in(f) == v.out(f)) continue;
      for (int32_t i = v.begin + threadIdx.x; i < v.end; i += blockDim.x) v.out(f)[i] = v.in(f)[i];
    }
  }

  // Gathers the values by bucket, and ranks every one by comparing it with those of its bucket. What is left of the
  // counters is where each bucket ends.
  __device__ void rank_among_neighbours(const Vectors<T>& v, const Field<T>* fields, const Buckets* buckets,
                                        uint32_t* counters) {
    const int32_t M = fields[0].num_chunks, D = fields[0].chunk_size, num_buckets = fields[0].num_buckets;
    Entry<T>* entries = memory_.radix.entries[0];
    for (int32_t f = 0; f < v.count; ++f) {
      for (int32_t i = v.begin + threadIdx.x; i < v.end; i += blockDim.x) {
        const uint32_t place = memory_.places[f * v.size + i];
        const uint32_t rank = atomicAdd(&counters[static_cast<uint32_t>(f * D * num_buckets) + place], 1u);
        const int32_t column = static_cast<int32_t>(place) / num_buckets;
        entries[f * v.size + column * M + static_cast<int32_t>(rank)] = {to_key(v.in(f)[i]), static_cast<uint32_t>(i)};
      }
    }
    team_.sync();
    for (uint32_t p = team_.thread(); p < static_cast<uint32_t>(v.count * v.size); p += team_.num_threads()) {
      const int32_t column = static_cast<int32_t>(p) / M, f = column / D;  // of both vectors, one after the other
      const Entry<T> own = entries[p];
      const T x = from_key<T>(own.key);
      const int32_t bucket = buckets[f].of(x);
      const uint32_t* ends = counters + static_cast<int64_t>(column) * num_buckets;
      const uint32_t begin = bucket == 0 ? 0 : ends[bucket - 1], end = ends[bucket];
      const Entry<T>* neighbours = entries + static_cast<int64_t>(column) * M;
      uint32_t rank = begin;
#pragma unroll 4
      for (uint32_t k = begin; k < end; ++k) rank += neighbours[k] < own;
      clip(fields[f], f * v.size, own, static_cast<int32_t>(rank), column - f * D);
    }
  }

  // `divisor` makes a place a column.
  __device__ void rank_by_sorting(const Vectors<T>& v, const Field<T>* fields, int32_t divisor) {
    const int32_t M = fields[0].num_chunks, D = fields[0].chunk_size, size = v.size;
    RadixSort<T> radix(team_, memory_.radix, shared_, size);
    for (int32_t f = 0; f < v.count; ++f) {
      uint32_t* columns = memory_.places + f * size;
      Entry<T>* entries = memory_.radix.entries[0];
      for (int32_t i = v.begin + threadIdx.x; i < v.end; i += blockDim.x)
        entries[i] = {to_key(v.in(f)[i]), static_cast<uint32_t>(i)};
      team_.sync();
      entries = radix.sort(entries, ~Key<T>(0), nullptr, [](const Entry<T>& e) { return e.key; });
      if (D > kCountedChunk) {
        // Sorted by chunk as well, every value stands where its chunk begins plus its rank there.
        const Entry<T>* chunks =
            radix.sort(entries, M - 1, entries, [=](const Entry<T>& e) { return e.index / static_cast<uint32_t>(D); });
        for (uint32_t p = team_.thread(); p < static_cast<uint32_t>(size); p += team_.num_threads())
          columns[chunks[p].index] = p % static_cast<uint32_t>(D);
        team_.sync();
      }
      const auto column_of = [=](const Entry<T>& e) { return columns[e.index] / static_cast<uint32_t>(divisor); };
      entries = radix.sort(entries, D - 1, nullptr, column_of);
      for (uint32_t p = team_.thread(); p < static_cast<uint32_t>(size); p += team_.num_threads()) {
        const int32_t column = static_cast<int32_t>(p) / M;
        clip(fields[f], f * size, entries[p], static_cast<int32_t>(p) - column * M, column);
      }
      if (f + 1 < v.count) team_.sync();  // the entries are written again
    }
  }

  __device__ void clip(const Field<T>& field, int32_t offset, const Entry<T>& entry, int32_t rank, int32_t column) {
    const T x = from_key<T>(entry.key), clipped = field.clip(x, rank, column);
    memory_.clipped[offset + static_cast<int32_t>(entry.index)] = clipped == x ? quiet_nan<T>() : clipped;
  }

  Team& team_;
  const OrderStatsMemory<T>& memory_;
  unsigned char* shared_;
  int32_t parity_ = 0;
  uint32_t used_ = 0;  // counters of the other parity that are not zero
};

}  // namespace noisetilt::cuda
