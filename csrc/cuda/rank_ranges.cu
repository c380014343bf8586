// What a bucket number tells about the rank a value may have: made once for a table, for order_stats.cuh.

#include <cmath>

#include "order_stats.cuh"
#include "runtime.h"

namespace noisetilt::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads)
    check_kernel(const __grid_constant__ Field<T> field, TableFaults* faults) {
  const int64_t size = static_cast<int64_t>(field.num_chunks) * field.chunk_size;
  for (int64_t i = grid_thread(); i < size; i += grid_threads()) {
    const int64_t column = i / field.num_chunks, rank = i - column * field.num_chunks;
    const int64_t at = rank * field.row_stride + column * field.column_stride;
    const T low = field.lower[at], high = field.upper[at];
    if (low != low || high != high) faults->nan = 1;
    if (low > high) faults->crossed = 1;
    const int64_t below = rank > 0 ? at - field.row_stride : at;
    if (low < field.lower[below] || high < field.upper[below]) faults->falling = 1;
  }
}

// Number of ranks whose bound is in a bucket below `bucket`.
template <class T>
__device__ int32_t ranks_below(const T* bounds, int64_t stride, int32_t num_chunks, const Buckets& buckets,
                               int32_t bucket) {
  int32_t begin = 0, end = num_chunks;
  while (begin < end) {
    const int32_t middle = begin + (end - begin) / 2;
    if (buckets.of(bounds[middle * stride]) < bucket)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// A value lies above each bound that is in a lower bucket than it, and below each one in a higher bucket.
template <class T>
__global__ void __launch_bounds__(kThreads)
    limits_kernel(const __grid_constant__ Field<T> field, RankRange* limits, const TableFaults* faults) {
  const Buckets buckets = buckets_of(field);
  const bool monotone = faults->falling == 0 && faults->nan == 0;
  const int64_t size = static_cast<int64_t>(field.chunk_size) * field.num_buckets;
  for (int64_t i = grid_thread(); i < size; i += grid_threads()) {
    const int32_t column = static_cast<int32_t>(i / field.num_buckets);
    const int32_t bucket = static_cast<int32_t>(i - column * static_cast<int64_t>(field.num_buckets));
    const int64_t offset = column * field.column_stride;
    RankRange limit{field.num_chunks, -1};
    if (monotone) {
      limit.first =
          ranks_below(field.upper + offset, field.row_stride, field.num_chunks, buckets, bucket + 1);
      limit.last = ranks_below(field.lower + offset, field.row_stride, field.num_chunks, buckets, bucket) - 1;
    }
    limits[i] = limit;
  }
}

}  // namespace

int32_t num_buckets(int64_t num_chunks, int64_t chunk_size) {
  if (chunk_size > kCountedChunk) return 0;
  // The bounds leave a rank some 2 sqrt(M) to either side; the fullest buckets of typical values hold 10 to
  // 20 times the average.
  int32_t count = 256;
  while (count < 64 * std::sqrt(static_cast<double>(num_chunks))) count *= 2;
  return count;
}

template <class T>
void rank_ranges(const Launch& launch, const Table<T>& table, RankRange* limits, TableFaults* faults) {
  const Field<T> field = field_of<T>(table, nullptr);
  const int threads = block_threads(kThreads);
  check(cudaMemsetAsync(faults, 0, sizeof(TableFaults), launch.stream), "clearing memory");
  enqueue(launch, check_kernel<T>, Residence::any, blocks_for(table.num_chunks * table.chunk_size, threads),
          threads, 0, field, faults);
  enqueue(launch, limits_kernel<T>, Residence::any, blocks_for(table.chunk_size * field.num_buckets, threads),
          threads, 0, field, limits, static_cast<const TableFaults*>(faults));
}

template void rank_ranges<float>(const Launch&, const Table<float>&, RankRange*, TableFaults*);
template void rank_ranges<double>(const Launch&, const Table<double>&, RankRange*, TableFaults*);

}  // namespace noisetilt::cuda
