// Stable least-significant-digit radix sort by a team of thread blocks: slow beside what order_stats.cuh does
// for the common case, but as fast for any values.
#pragma once

#include "keys.cuh"
#include "team.cuh"

namespace noisetilt::cuda {

// What the blocks of a team share, in global memory.
template <class T>
struct RadixMemory {
  Entry<T>* entries[3];
  uint32_t* counts;  // [block][digit]
};

template <class T>
class RadixSort {
 public:
  __device__ RadixSort(Team& team, const RadixMemory<T>& memory, unsigned char* shared, int32_t size)
      : team_(team),
        memory_(memory),
        shared_(reinterpret_cast<uint32_t*>(shared)),
        size_(static_cast<uint32_t>(size)) {}

  __host__ __device__ static size_t shared_bytes(int32_t threads) {
    return (kDigits + (kDigits + 1) * (static_cast<size_t>(threads) / kWarp)) * sizeof(uint32_t);
  }

  // Sorts entries by key(entry), which is at most `largest`; equal ones keep their order. The entries are up
  // to date for the team, and so is the result, which is another of the three arrays: never `kept`, unless
  // nothing was to be done. Where `kept` is null `entries` may be overwritten.
  template <class GetKey, class K>
  __device__ Entry<T>* sort(Entry<T>* entries, K largest, const Entry<T>* kept, const GetKey& key) {
    for (uint32_t shift = 0; shift < 8 * sizeof(K) && (largest >> shift) != 0; shift += kDigitBits) {
      Entry<T>* to = nullptr;
      for (Entry<T>* candidate : memory_.entries) {
        if (candidate != entries && candidate != kept && to == nullptr) to = candidate;
      }
      pass(entries, to, [&](const Entry<T>& e) { return static_cast<uint32_t>(key(e) >> shift) % kDigits; });
      entries = to;
    }
    return entries;
  }

 private:
  static constexpr uint32_t kDigitBits = 8, kDigits = 1u << kDigitBits;

  template <class GetDigit>
  __device__ void pass(const Entry<T>* from, Entry<T>* to, const GetDigit& digit_of) {
    uint32_t* next = shared_;                   // [digit]: where the next entry goes
    uint32_t* warp_counts = shared_ + kDigits;  // [warp][digit]
    const uint32_t per_block = (size_ + team_.num_blocks - 1) / team_.num_blocks;
    const uint32_t begin = min(size_, team_.rank * per_block), end = min(size_, begin + per_block);

    for (uint32_t d = threadIdx.x; d < kDigits; d += blockDim.x) next[d] = 0;
    __syncthreads();
    for (uint32_t p = begin + threadIdx.x; p < end; p += blockDim.x) atomicAdd(&next[digit_of(from[p])], 1u);
    __syncthreads();
    for (uint32_t d = threadIdx.x; d < kDigits; d += blockDim.x)
      memory_.counts[team_.rank * kDigits + d] = next[d];
    team_.sync();

    // First all smaller digits, then this digit in the blocks before.
    uint32_t before = 0;
    for (uint32_t first = 0; first < kDigits; first += blockDim.x) {
      const uint32_t d = first + threadIdx.x;
      uint32_t in_blocks_before = 0, in_all = 0;
      for (uint32_t b = 0; d < kDigits && b < team_.num_blocks; ++b) {
        const uint32_t count = memory_.counts[b * kDigits + d];
        in_blocks_before += b < team_.rank ? count : 0;
        in_all += count;
      }
      uint32_t total;
      const uint32_t smaller = block_prefix_sum(in_all, warp_counts, total);
      if (d < kDigits) next[d] = before + smaller + in_blocks_before;
      before += total;
    }

    const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, num_warps = blockDim.x / kWarp;
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
  const RadixMemory<T>& memory_;
  uint32_t* shared_;
  uint32_t size_;
};

}  // namespace noisetilt::cuda
