// Rank ranges: for each bucket of values, the ranks at which the table leaves them unchanged. Plain C++.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "policy.h"

namespace noisetilt::cuda {

// Ranks first .. last at which any value of a bucket lies within the table. They depend on the table alone.
// rank_ranges() computes them once for each table: [D][num_buckets] for chunks of D values.
struct RankRange {
  int32_t first, last;
};

// Faults of a table, each 1 or 0: an entry is NaN; lower exceeds upper somewhere; an entry decreases with the
// rank, which is not an error.
struct TableFaults {
  int32_t nan, crossed, falling;
};

// True if the values of a chunk are counted into buckets. Longer chunks are sorted, and have no buckets.
NOISETILT_HOST_DEVICE inline bool is_counted(int64_t chunk_size) {
  return chunk_size <= Policy::OrderStats::kMaxCountedChunk;
}
// True if every block ranks tile statistics alone, once they are known to be unsettled; and if one block
// alone finds that out. Then they are not counted.
NOISETILT_HOST_DEVICE inline bool is_small(int64_t num_chunks, int64_t chunk_size) {
  return is_counted(chunk_size) && num_chunks <= Policy::OrderStats::kMaxSmallColumn &&
         num_chunks * chunk_size <= Policy::OrderStats::kMaxSmallVector;
}
NOISETILT_HOST_DEVICE inline bool is_tiny(int64_t num_chunks, int64_t chunk_size) {
  return is_small(num_chunks, chunk_size) && num_chunks <= Policy::OrderStats::kMaxTinyColumn;
}

// Number of buckets of a column, or 0 for long chunks.
inline int32_t num_buckets(int64_t num_chunks, int64_t chunk_size) {
  using Tuning = Policy::RankRanges;
  if (!is_counted(chunk_size)) return 0;
  const double wanted = Tuning::kBucketsPerSqrt * std::sqrt(static_cast<double>(num_chunks));
  return Tuning::kBucketsStep * static_cast<int32_t>(std::ceil(wanted / Tuning::kBucketsStep));
}

}  // namespace noisetilt::cuda
