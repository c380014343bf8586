// Two-level order statistics, DESIGN section 2, by a team of thread blocks.
//
// Nothing is sorted unless it must be. The rank of a value in its chunk is counted by comparing it with the
// chunk. The values of every column are counted into buckets: a bucket tells between which ranks its values
// lie, and most of a nearly typical sample is settled by that, unchanged. Else the values are gathered by
// bucket and ranked exactly among their neighbours; or, where buckets are crowded (many ties, odd scales) or
// chunks are long, by sorting.
//
// A round of counting may test several projections at once: those before the first that is not settled change
// nothing.
#pragma once

#include "kernels.h"
#include "keys.cuh"
#include "radix_sort.cuh"
#include "team.cuh"

namespace noisetilt::cuda {

constexpr int32_t kCountedChunk = 32;    // chunks up to this size are ranked by comparing all with all
constexpr uint32_t kMostCompared = 512;  // buckets up to this size likewise: beyond, sorting is faster
constexpr int32_t kSmallColumn = 1024;   // columns up to this length, and
constexpr int32_t kSmallVector = 4096;   // vectors up to this one, are ranked by every block on its own

// A table and what belongs to it.
template <class T>
struct Field {
  const T *lower, *upper;
  const RankRange* limits;
  int64_t row_stride, column_stride;
  int32_t num_chunks, chunk_size, num_buckets;
  int32_t first_counter;  // of [column][bucket], in the team's memory
  int32_t unit;           // what is projected as one and has one verdict: the values, or the tiles of a size

  // Long chunks are sorted, which needs no buckets.
  __device__ bool is_counted() const { return chunk_size <= kCountedChunk; }
  __device__ int32_t num_counters() const { return chunk_size * num_buckets; }

  __device__ int32_t size() const { return num_chunks * chunk_size; }
  __device__ bool is_small() const {
    return num_chunks <= kSmallColumn && size() <= kSmallVector && is_counted();
  }
  // x clipped to the bounds of its rank; NaN stays.
  __device__ T clip(T x, int32_t rank, int32_t column) const {
    const int64_t at = rank * row_stride + column * column_stride;
    const T low = lower[at], high = upper[at];
    return x < low ? low : x > high ? high : x;
  }
};

template <class T>
Field<T> field_of(const Table<T>& table, const RankRange* limits, int64_t first_counter = 0,
                  int64_t unit = 0) {
  return {table.lower,
          table.upper,
          limits,
          table.row_stride,
          table.column_stride,
          static_cast<int32_t>(table.num_chunks),
          static_cast<int32_t>(table.chunk_size),
          num_buckets(table.num_chunks, table.chunk_size),
          static_cast<int32_t>(first_counter),
          static_cast<int32_t>(unit)};
}

// Buckets for values that the table finds typical: about the bounds of the middle rank; a typical distance,
// as a power of two, is a quarter of the widest from there.
template <class T>
__device__ inline Buckets buckets_of(const Field<T>& field) {
  const int64_t middle = field.num_chunks / 2 * field.row_stride,
                last = (field.num_chunks - 1) * field.row_stride;
  const auto column = [&](int32_t j) { return j * field.column_stride; };
  float centre = 0;
  for (const int32_t j : {(field.chunk_size - 1) / 2, field.chunk_size / 2})
    centre += (static_cast<float>(field.lower[middle + column(j)]) +
               static_cast<float>(field.upper[middle + column(j)])) /
              4;
  if (!is_finite(centre)) centre = 0;
  const float widest = (static_cast<float>(field.upper[last + column(field.chunk_size - 1)]) -
                        static_cast<float>(field.lower[0])) /
                       2;
  const int32_t exponent = static_cast<int32_t>((__float_as_uint(widest) >> 23) & 255u) - 127 - 2;
  const int32_t inverse = 2 - exponent + 127;
  return {centre, __uint_as_float(static_cast<uint32_t>(min(max(inverse, 1), 254)) << 23), field.num_buckets};
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

// One or two vectors of equally many values that are projected side by side. A block changes its own values,
// begin to end; of `in` it reads those and, where a chunk crosses that range, the rest of the chunk.
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

struct Verdict {
  uint32_t unsettled;  // a value may be out of its bounds
  uint32_t fullest;    // number of values in the fullest unsettled bucket
};

constexpr uint32_t kUnsettled = 1u << 31;  // marks a bucket

// What the blocks of a team share, in global memory.
template <class T>
struct OrderStatsMemory {
  uint32_t* counters[2];  // of every field, all zero where not in use
  Verdict* verdicts[2];   // of every unit, likewise
  int32_t num_units;
  // Of every field: the first rank of a bucket, then the one to go to the next value gathered; and
  // kUnsettled.
  uint32_t* ranks;
  T* clipped;         // [vector][value]: NaN where it is unchanged
  uint32_t* columns;  // [value], for sorting
  RadixMemory<T> radix;
};

template <class T>
class OrderStats {
 public:
  // `shared` is working memory of the block: shared_bytes() of it. `memory` may be filled in later, before a
  // barrier.
  __device__ OrderStats(Team& team, const OrderStatsMemory<T>& memory, unsigned char* shared)
      : team_(team), memory_(memory), shared_(shared) {}

  __host__ __device__ static size_t shared_bytes(int32_t threads) {
    const size_t small = 2 * (kSmallVector + 4 * kCountedChunk) * sizeof(Key<T>);
    const size_t radix = RadixSort<T>::shared_bytes(threads);
    return small > radix ? small : radix;
  }

  // A round of counting: count() for each vector of a range of fields, a team barrier, sum_up() of the
  // fields, a team barrier; then verdict() of their units, and end_round().

  // The block's own values are there after a __syncthreads, others, where chunks cross blocks, after a team
  // barrier.
  __device__ __noinline__ void count(const Vectors<T>& v, const Field<T>* fields, const Buckets* buckets,
                                     Rotation& rotation) {
    const int32_t D = fields[0].chunk_size, own = v.end - v.begin;
    for (int32_t f = 0; f < v.count; ++f) {
      uint32_t* counters = memory_.counters[parity_] + fields[f].first_counter;
      if (D == 4 && worth_a_thread_a_chunk(v, f, D)) {
        count_chunks<4>(v, f, counters, buckets[f]);
      } else if (D == 16 && worth_a_thread_a_chunk(v, f, D)) {
        count_chunks<16>(v, f, counters, buckets[f]);
      } else {
        for (int32_t i = v.begin + rotation.thread(); i < v.end; i += blockDim.x)
          atomicAdd(&counters[place_of(v.in(f), D, i, buckets[f])], 1u);
        rotation.advance(own);
      }
    }
  }

  __device__ void declare_unsettled(int32_t unit) { memory_.verdicts[parity_][unit].unsettled = 1; }

  // Turns the counts of every column into first ranks, and says what they settle. `settle`: the buckets are
  // those that the limits were made for.
  __device__ __noinline__ void sum_up(const Field<T>* begin, const Field<T>* end, bool settle) {
    int32_t segment = static_cast<int32_t>(team_.thread() / kWarp);
    const int32_t num_warps = static_cast<int32_t>(team_.num_threads() / kWarp);
    for (const Field<T>* field = begin; field != end; ++field) {
      const int32_t length = min(field->num_buckets, kSegment), per_column = field->num_buckets / length;
      const int32_t num_segments = field->chunk_size * per_column;
      for (; segment < num_segments; segment += num_warps) sum_up_segment(*field, segment, length, settle);
      segment -= num_segments;
    }
    // Nobody looks at what the round before this one left: all are past this one's first barrier.
    uint32_t* others = memory_.counters[parity_ ^ 1];
    for (uint32_t i = used_begin_ + team_.thread(); i < used_end_; i += team_.num_threads()) others[i] = 0;
    for (uint32_t i = team_.thread(); i < static_cast<uint32_t>(memory_.num_units); i += team_.num_threads())
      memory_.verdicts[parity_ ^ 1][i] = {0, 0};
    used_begin_ = begin == end ? 0 : static_cast<uint32_t>(begin->first_counter);
    used_end_ = begin == end ? 0 : static_cast<uint32_t>(end[-1].first_counter + end[-1].num_counters());
  }

  __device__ Verdict verdict(int32_t unit) const { return memory_.verdicts[parity_][unit]; }
  __device__ void end_round() { parity_ ^= 1; }

  // Projects vectors whose unit the last round has not settled; its verdict is `verdict`. The result is for
  // the block's threads after a __syncthreads; nobody may change `in` before the next team barrier.
  __device__ __noinline__ void project_counted(const Vectors<T>& v, const Field<T>* fields,
                                               const Buckets* buckets, const Verdict& verdict) {
    if (verdict.fullest <= kMostCompared)
      rank_among_neighbours(v, fields, buckets);
    else
      rank_by_sorting(v, fields, buckets);
    take_clipped(v);
  }

  // The same without a round before it, for long chunks.
  __device__ void project_by_sorting(const Vectors<T>& v, const Field<T>* fields) {
    rank_by_sorting(v, fields, nullptr);
    take_clipped(v);
  }

  // Projects without a round before it, where fields are small: every block reads all values, and none waits.
  __device__ __noinline__ void project_small(const Vectors<T>& v, const Field<T>* fields) {
    const int32_t M = fields[0].num_chunks, D = fields[0].chunk_size;
    const int32_t stride = M + static_cast<int32_t>(16 / sizeof(Key<T>));  // columns begin in different banks
    auto* columns = reinterpret_cast<Key<T>*>(shared_);
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
          const int32_t chunk = i / D;  // of both vectors, one after the other
          const int32_t column = rank_in_chunk(v.first_in + chunk * D, D, i - chunk * D), f = chunk / M;
          columns[(f * D + column) * stride + chunk - f * M] = to_key(v.first_in[i]);
        }
    }
    __syncthreads();
    // Several neighbouring lanes count for one value.
    const int32_t own = v.end - v.begin, num_values = v.count * own;
    int32_t lanes = 1;
    while (lanes < static_cast<int32_t>(kWarp) && 2 * lanes * num_values <= static_cast<int32_t>(blockDim.x))
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
      if (valid && lane == 0) v.out(f)[i] = fields[f].clip(x, rank, column);
    }
  }

 private:
  static constexpr int32_t kSegment = 1024;  // counters that a warp sums up

  // Sorting a chunk takes a thread less than ranking each of its values takes all of them, if there are
  // chunks for all threads. Chunks must not cross blocks, and be aligned.
  __device__ static bool worth_a_thread_a_chunk(const Vectors<T>& v, int32_t f, int32_t chunk_size) {
    return v.begin % chunk_size == 0 && v.end % chunk_size == 0 &&
           v.end - v.begin >= static_cast<int32_t>(blockDim.x) * chunk_size &&
           reinterpret_cast<uintptr_t>(v.in(f) + v.begin) % sizeof(Four<T>) == 0;
  }

  template <int32_t D>
  __device__ static void count_chunks(const Vectors<T>& v, int32_t f, uint32_t* counters, Buckets buckets) {
    for (int32_t chunk = v.begin / D + threadIdx.x; chunk < v.end / D; chunk += blockDim.x) {
      const auto* fours = reinterpret_cast<const Four<T>*>(v.in(f) + chunk * D);
      Key<T> keys[D];
#pragma unroll
      for (int32_t i = 0; i < D; i += 4) {
        const Four<T> four = fours[i / 4];
#pragma unroll
        for (int32_t k = 0; k < 4; ++k) keys[i + k] = to_key(four.v[k]);
      }
      sort_in_registers(keys);
#pragma unroll
      for (int32_t j = 0; j < D; ++j)
        atomicAdd(&counters[j * buckets.count + buckets.of(from_key<T>(keys[j]))], 1u);
    }
  }

  // columns[(f D + j) stride + m]: the key of rank j in chunk m of vector f.
  template <int32_t D>
  __device__ static void make_columns(const Vectors<T>& v, Key<T>* columns, int32_t num_chunks,
                                      int32_t stride) {
    for (int32_t chunk = threadIdx.x; chunk < v.count * num_chunks; chunk += blockDim.x) {
      const int32_t f = chunk / num_chunks;
      Key<T> keys[D];
#pragma unroll
      for (int32_t i = 0; i < D; ++i) keys[i] = to_key(v.first_in[chunk * D + i]);
      sort_in_registers(keys);
#pragma unroll
      for (int32_t j = 0; j < D; ++j) columns[(f * D + j) * stride + chunk - f * num_chunks] = keys[j];
    }
  }

  // Column and bucket of value i, as an index.
  __device__ static uint32_t place_of(const T* values, int32_t chunk_size, int32_t i, Buckets buckets) {
    const int32_t chunk = i / chunk_size;
    const int32_t column = rank_in_chunk(values + chunk * chunk_size, chunk_size, i - chunk * chunk_size);
    return static_cast<uint32_t>(column * buckets.count + buckets.of(values[i]));
  }

  // By one warp.
  __device__ void sum_up_segment(const Field<T>& field, int32_t segment, int32_t length, bool settle) {
    const int32_t lane = static_cast<int32_t>(threadIdx.x % kWarp), in_row = 4 * static_cast<int32_t>(kWarp);
    const int32_t per_column = field.num_buckets / length, column = segment / per_column;
    const int32_t begin = (segment - column * per_column) * length;
    const int64_t first = static_cast<int64_t>(column) * field.num_buckets;
    const auto* counts =
        reinterpret_cast<const uint4*>(memory_.counters[parity_] + field.first_counter + first);
    auto* ranks = reinterpret_cast<uint4*>(memory_.ranks + field.first_counter + first);
    const auto* limits = reinterpret_cast<const int4*>(field.limits + first);

    uint32_t before = 0;
#pragma unroll 16
    for (int32_t k = 4 * lane; k < begin; k += in_row) {
      const uint4 four = counts[k / 4];
      before += four.x + four.y + four.z + four.w;
    }
    before = __reduce_add_sync(kAllLanes, before);

    uint32_t fullest = 0;
#pragma unroll 4
    for (int32_t row = begin; row < begin + length; row += in_row) {
      const int32_t k = row + 4 * lane;
      const uint4 four = counts[k / 4];
      const int4 low = limits[k / 2], high = limits[k / 2 + 1];
      const uint32_t count[4] = {four.x, four.y, four.z, four.w};
      const int32_t limit[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      const uint32_t sum = four.x + four.y + four.z + four.w;
      const uint32_t inclusive = warp_prefix_sum(sum);
      uint32_t rank = before + inclusive - sum;
      before += __shfl_sync(kAllLanes, inclusive, static_cast<int>(kWarp) - 1);
      uint32_t first_ranks[4];
#pragma unroll
      for (int32_t i = 0; i < 4; ++i) {
        first_ranks[i] = rank;
        rank += count[i];
        const bool inside = settle && static_cast<int32_t>(first_ranks[i]) >= limit[2 * i] &&
                            static_cast<int32_t>(rank) <= limit[2 * i + 1] + 1;
        if (count[i] == 0 || inside) continue;
        first_ranks[i] |= kUnsettled;
        fullest = max(fullest, count[i]);
      }
      ranks[k / 4] = uint4{first_ranks[0], first_ranks[1], first_ranks[2], first_ranks[3]};
    }
    fullest = __reduce_max_sync(kAllLanes, fullest);
    if (lane != 0 || fullest == 0) return;
    Verdict& verdict = memory_.verdicts[parity_][field.unit];
    verdict.unsettled = 1;
    atomicMax(&verdict.fullest, fullest);
  }

  __device__ void take_clipped(const Vectors<T>& v) {
    team_.sync();
    for (int32_t f = 0; f < v.count; ++f) {
      for (int32_t i = v.begin + threadIdx.x; i < v.end; i += blockDim.x) {
        const T clipped = memory_.clipped[f * v.size + i];
        v.out(f)[i] = clipped == clipped ? clipped : v.in(f)[i];
      }
    }
  }

  // Gathers the values by bucket, and ranks those of unsettled buckets by comparing them with their bucket's.
  // What is left of the ranks is where each bucket ends.
  __device__ void rank_among_neighbours(const Vectors<T>& v, const Field<T>* fields, const Buckets* buckets) {
    const int32_t M = fields[0].num_chunks, D = fields[0].chunk_size, num_buckets = fields[0].num_buckets;
    Entry<T>* entries = memory_.radix.entries[0];
    for (int32_t f = 0; f < v.count; ++f) {
      uint32_t* ranks = memory_.ranks + fields[f].first_counter;
      for (int32_t i = v.begin + threadIdx.x; i < v.end; i += blockDim.x) {
        const uint32_t place = place_of(v.in(f), D, i, buckets[f]);
        const int32_t column = static_cast<int32_t>(place) / num_buckets;
        const int32_t rank = static_cast<int32_t>(atomicAdd(&ranks[place], 1u) & ~kUnsettled);
        entries[f * v.size + column * M + rank] = {to_key(v.in(f)[i]), static_cast<uint32_t>(i)};
      }
    }
    team_.sync();
    for (uint32_t p = team_.thread(); p < static_cast<uint32_t>(v.count * v.size); p += team_.num_threads()) {
      const int32_t f = static_cast<int32_t>(p) / v.size, column = static_cast<int32_t>(p) / M - f * D;
      const Entry<T> own = entries[p];
      const int32_t bucket = buckets[f].of(from_key<T>(own.key));
      const uint32_t* ends =
          memory_.ranks + fields[f].first_counter + static_cast<int64_t>(column) * num_buckets;
      const uint32_t end = ends[bucket];
      if (!(end & kUnsettled)) {
        memory_.clipped[f * v.size + static_cast<int32_t>(own.index)] = quiet_nan<T>();
        continue;
      }
      const uint32_t begin = bucket == 0 ? 0 : ends[bucket - 1] & ~kUnsettled;
      const Entry<T>* neighbours = entries + f * v.size + static_cast<int64_t>(column) * M;
      uint32_t rank = begin;
#pragma unroll 4
      for (uint32_t k = begin; k < (end & ~kUnsettled); ++k) rank += neighbours[k] < own;
      clip(fields[f], f * v.size, own, static_cast<int32_t>(rank), column);
    }
  }

  // `buckets` may be null if chunks are long.
  __device__ __noinline__ void rank_by_sorting(const Vectors<T>& v, const Field<T>* fields,
                                               const Buckets* buckets) {
    const int32_t M = fields[0].num_chunks, D = fields[0].chunk_size, size = v.size;
    RadixSort<T> radix(team_, memory_.radix, shared_, size);
    uint32_t* columns = memory_.columns;
    for (int32_t f = 0; f < v.count; ++f) {
      Entry<T>* entries = memory_.radix.entries[0];
      for (int32_t i = v.begin + threadIdx.x; i < v.end; i += blockDim.x) {
        entries[i] = {to_key(v.in(f)[i]), static_cast<uint32_t>(i)};
        if (fields[f].is_counted())
          columns[i] = place_of(v.in(f), D, i, buckets[f]) / static_cast<uint32_t>(fields[f].num_buckets);
      }
      team_.sync();
      entries = radix.sort(entries, ~Key<T>(0), nullptr, [](const Entry<T>& e) { return e.key; });
      if (!fields[f].is_counted()) {
        // Sorted by chunk as well, every value stands where its chunk begins plus its rank there.
        const Entry<T>* chunks = radix.sort(
            entries, M - 1, entries, [=](const Entry<T>& e) { return e.index / static_cast<uint32_t>(D); });
        for (uint32_t p = team_.thread(); p < static_cast<uint32_t>(size); p += team_.num_threads())
          columns[chunks[p].index] = p % static_cast<uint32_t>(D);
        team_.sync();
      }
      entries = radix.sort(entries, D - 1, nullptr, [=](const Entry<T>& e) { return columns[e.index]; });
      for (uint32_t p = team_.thread(); p < static_cast<uint32_t>(size); p += team_.num_threads()) {
        const int32_t column = static_cast<int32_t>(p) / M;
        clip(fields[f], f * size, entries[p], static_cast<int32_t>(p) - column * M, column);
      }
      team_.sync();  // the entries and columns are written again
    }
  }

  __device__ void clip(const Field<T>& field, int32_t offset, const Entry<T>& entry, int32_t rank,
                       int32_t column) {
    const T x = from_key<T>(entry.key), clipped = field.clip(x, rank, column);
    memory_.clipped[offset + static_cast<int32_t>(entry.index)] = clipped == x ? quiet_nan<T>() : clipped;
  }

  Team& team_;
  const OrderStatsMemory<T>& memory_;
  unsigned char* shared_;
  int32_t parity_ = 0;
  uint32_t used_begin_ = 0, used_end_ = 0;  // counters of the other parity that are not zero
};

}  // namespace noisetilt::cuda
