// Rank ranges: what the bucket of a value tells about the ranks at which its table leaves it unchanged. Plain
// C++.
#pragma once

#include <cmath>
#include <cstdint>

#include "policy.h"

namespace noisetilt::cuda {

// Ranks first .. last at which any value of a bucket lies within the table. They depend on the table alone
// and are computed once, by rank_ranges(): [D][num_buckets] of a table with chunks of D values.
struct RankRange {
  int32_t first, last;
};

// Faults of a table, each 1 or 0: an entry is NaN; lower exceeds upper somewhere; an entry decreases with the
// rank, which is not an error.
struct TableFaults {
  int32_t nan, crossed, falling;
};

// Longer chunks are sorted, and have no buckets.
inline bool is_counted(int64_t chunk_size) { return chunk_size <= Policy::OrderStats::kMaxCountedChunk; }

// Number of buckets of a column: a power of two, or 0 for long chunks.
inline int32_t num_buckets(int64_t num_chunks, int64_t chunk_size) {
  using Tuning = Policy::RankRanges;
  if (!is_counted(chunk_size)) return 0;
  int32_t count = Tuning::kMinBuckets;
  while (count < Tuning::kBucketsPerSqrt * std::sqrt(static_cast<double>(num_chunks))) count *= 2;
  return count;
}

}  // namespace noisetilt::cuda
