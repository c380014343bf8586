// Stable least-significant-digit radix sort by a team. Slower than the methods of order_stats.cuh for typical
// values, but equally fast for all values.
#pragma once

#include "keys.cuh"
#include "policy.h"
#include "team.cuh"

namespace noisetilt::cuda {

template <class T>
class TeamRadixSort {
 public:
  static constexpr uint32_t kDigitBits = Policy::RadixSort::kDigitBits, kDigits = 1u << kDigitBits;

  // Storage of a team in global memory.
  struct GlobalStorage {
    Entry<T>* entries[3];
    uint32_t* digit_counts;  // [block][digit]
  };
  // Storage of a block in shared memory.
  struct TempStorage {
    uint32_t next[kDigits];  // place of the next entry with the digit
    union {
      uint32_t warp_counts[Policy::Project::kBlockThreads / kWarpThreads * kDigits];  // [warp][digit]
      BlockScan::TempStorage scan;
    };
  };

  __device__ TeamRadixSort(Team& team, const GlobalStorage& storage, TempStorage& temp_storage, int32_t size)
      : team_(team), storage_(storage), temp_storage_(temp_storage), size_(static_cast<uint32_t>(size)) {}

  // Sorts the entries by key(entry), which is at most `largest`. Entries with equal keys keep their order.
  // The team must have passed a barrier since the entries were written, and has passed one when the result is
  // returned. The result is another of the three arrays, but never `kept`; it is `entries` itself if
  // `largest` is 0. If `kept` is null, `entries` may be overwritten.
  template <class GetKey, class K>
  __device__ Entry<T>* sort(Entry<T>* entries, K largest, const Entry<T>* kept, const GetKey& key) {
    for (uint32_t shift = 0; shift < 8 * sizeof(K) && (largest >> shift) != 0; shift += kDigitBits) {
      Entry<T>* to = nullptr;
      for (Entry<T>* candidate : storage_.entries) {
        if (candidate != entries && candidate != kept && to == nullptr) to = candidate;
      }
      pass(entries, to, [&](const Entry<T>& e) { return static_cast<uint32_t>(key(e) >> shift) % kDigits; });
      entries = to;
    }
    return entries;
  }

 private:
  template <class GetDigit>
  __device__ void pass(const Entry<T>* from, Entry<T>* to, const GetDigit& digit_of) {
    uint32_t *next = temp_storage_.next, *warp_counts = temp_storage_.warp_counts;
    const uint32_t per_block = (size_ + team_.num_blocks - 1) / team_.num_blocks;
    const uint32_t begin = min(size_, team_.rank * per_block), end = min(size_, begin + per_block);

    for (uint32_t d = threadIdx.x; d < kDigits; d += blockDim.x) next[d] = 0;
    __syncthreads();
    for (uint32_t p = begin + threadIdx.x; p < end; p += blockDim.x) atomicAdd(&next[digit_of(from[p])], 1u);
    __syncthreads();
    for (uint32_t d = threadIdx.x; d < kDigits; d += blockDim.x)
      storage_.digit_counts[team_.rank * kDigits + d] = next[d];
    team_.sync();

    // Entries before those of a digit: all with smaller digits, then those of the digit in earlier blocks.
    uint32_t before = 0;
    for (uint32_t first = 0; first < kDigits; first += blockDim.x) {
      const uint32_t d = first + threadIdx.x;
      uint32_t in_blocks_before = 0, in_all = 0;
      for (uint32_t b = 0; d < kDigits && b < team_.num_blocks; ++b) {
        const uint32_t count = storage_.digit_counts[b * kDigits + d];
        in_blocks_before += b < team_.rank ? count : 0;
        in_all += count;
      }
      uint32_t total;
      const uint32_t smaller = BlockScan(temp_storage_.scan).exclusive_sum(in_all, total);
      if (d < kDigits) next[d] = before + smaller + in_blocks_before;
      before += total;
    }

    const uint32_t lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads,
                   num_warps = blockDim.x / kWarpThreads;
    for (uint32_t first = begin; first < end; first += blockDim.x) {
      for (uint32_t k = threadIdx.x; k < num_warps * kDigits; k += blockDim.x) warp_counts[k] = 0;
      __syncthreads();
      const uint32_t p = first + threadIdx.x;
      const bool inside = p < end;
      const Entry<T> entry = inside ? from[p] : Entry<T>{};
      const uint32_t digit = inside ? digit_of(entry) : kDigits;
      const uint32_t alike = __match_any_sync(kAllLanes, digit);
      const uint32_t alike_before = __popc(alike & ((1u << lane) - 1));
      if (inside && alike_before == 0) warp_counts[warp * kDigits + digit] = __popc(alike);
      __syncthreads();
      for (uint32_t d = threadIdx.x; d < kDigits; d += blockDim.x) {
        uint32_t sum = next[d];
        for (uint32_t w = 0; w < num_warps; ++w) {
          const uint32_t count = warp_counts[w * kDigits + d];
          warp_counts[w * kDigits + d] = sum;
          sum += count;
        }
        next[d] = sum;
      }
      __syncthreads();
      if (inside) to[warp_counts[warp * kDigits + digit] + alike_before] = entry;
      __syncthreads();
    }
    team_.sync();
  }

  Team& team_;
  const GlobalStorage& storage_;
  TempStorage& temp_storage_;
  uint32_t size_;
};

}  // namespace noisetilt::cuda
