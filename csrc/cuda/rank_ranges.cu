// Rank ranges of a table, for order_stats.cuh. They are computed once for each table.

#include "order_stats.cuh"
#include "runtime.h"

namespace noisetilt::cuda {
namespace {

constexpr int kBlockThreads = Policy::RankRanges::kBlockThreads;

template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    table_faults_kernel(const __grid_constant__ DeviceTable<T> table, TableFaults* faults) {
  const int64_t size = static_cast<int64_t>(table.num_chunks) * table.chunk_size;
  for (int64_t i = grid_thread(); i < size; i += grid_threads()) {
    const int64_t column = i / table.num_chunks, rank = i - column * table.num_chunks;
    const int64_t at = rank * table.row_stride + column * table.column_stride;
    const T low = table.lower[at], high = table.upper[at];
    if (low != low || high != high) faults->nan = 1;
    if (low > high) faults->crossed = 1;
    const int64_t below = rank > 0 ? at - table.row_stride : at;
    if (low < table.lower[below] || high < table.upper[below]) faults->falling = 1;
  }
}

// Number of ranks whose entry lies in a bucket below `bucket`. `entries`: lower or upper of one column.
template <class T>
__device__ int32_t ranks_below(const T* entries, const DeviceTable<T>& table, const Buckets& buckets,
                               int32_t bucket) {
  int32_t begin = 0, end = table.num_chunks;
  while (begin < end) {
    const int32_t middle = begin + (end - begin) / 2;
    if (buckets.of(entries[middle * table.row_stride], static_cast<uint32_t>(table.num_buckets) / 2) < bucket)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// A value is larger than every entry in a lower bucket than its own, and smaller than every entry in a higher
// bucket.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    rank_ranges_kernel(const __grid_constant__ DeviceTable<T> table, RankRange* ranges,
                       const TableFaults* faults) {
  const bool monotone = faults->falling == 0 && faults->nan == 0;
  const int64_t size = static_cast<int64_t>(table.chunk_size) * table.num_buckets;
  for (int64_t i = grid_thread(); i < size; i += grid_threads()) {
    const int32_t column = static_cast<int32_t>(i / table.num_buckets);
    const int32_t bucket = static_cast<int32_t>(i - column * static_cast<int64_t>(table.num_buckets));
    const int64_t offset = column * table.column_stride;
    RankRange range{table.num_chunks, -1};
    if (monotone) {
      const Buckets buckets = buckets_of(table, column);
      range.first = ranks_below(table.upper + offset, table, buckets, bucket + 1);
      range.last = ranks_below(table.lower + offset, table, buckets, bucket) - 1;
    }
    ranges[i] = range;
  }
}

}  // namespace

template <class T>
void rank_ranges(const Launch& launch, const Table<T>& table, RankRange* ranges, TableFaults* faults) {
  const DeviceTable<T> on_device = device_table<T>(table, nullptr);
  const int threads = block_threads(launch, kBlockThreads);
  check(cudaMemsetAsync(faults, 0, sizeof(TableFaults), launch.stream), "clearing memory");
  enqueue(launch, table_faults_kernel<T>, Residence::any,
          blocks_for(table.num_chunks * table.chunk_size, threads), threads, 0, on_device, faults);
  enqueue(launch, rank_ranges_kernel<T>, Residence::any,
          blocks_for(table.chunk_size * on_device.num_buckets, threads), threads, 0, on_device, ranges,
          static_cast<const TableFaults*>(faults));
}

template void rank_ranges<float>(const Launch&, const Table<float>&, RankRange*, TableFaults*);
template void rank_ranges<double>(const Launch&, const Table<double>&, RankRange*, TableFaults*);

}  // namespace noisetilt::cuda
