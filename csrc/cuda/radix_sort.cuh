// Stable least-significant-digit radix sort by a team. Slower than the methods of order_stats.cuh for typical
// values, but equally fast for all values.
#pragma once

#include "fast_divisor.h"
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

  Team& team;  // in shared memory, as all of these
  const GlobalStorage& storage;
  TempStorage& temp;
  int32_t size;

  // Sort entries by a number that each of them has. Entries with equal numbers keep their order. The team
  // must have passed a barrier since the entries were written, and has passed one when the result is
  // returned. The result is another of the three arrays, or `entries` itself if all numbers are 0.

  // By the key. `entries` may be overwritten.
  __device__ Entry<T>* sort_by_key(Entry<T>* entries) {
    return sort(entries, Digits{Digits::of_key, 0, {}, nullptr}, 8 * static_cast<int32_t>(sizeof(T)),
                nullptr);
  }
  // By the chunk of the index, which is at most `last`. Keeps `entries`.
  __device__ Entry<T>* sort_by_chunk(Entry<T>* entries, FastDivisor by_chunk_size, int32_t last) {
    return sort(entries, Digits{Digits::of_chunk, 0, by_chunk_size, nullptr}, bits_of_number(last), entries);
  }
  // By columns[index], which is at most `last`. `entries` may be overwritten.
  __device__ Entry<T>* sort_by_column(Entry<T>* entries, const uint32_t* columns, int32_t last) {
    return sort(entries, Digits{Digits::of_column, 0, {}, columns}, bits_of_number(last), nullptr);
  }

 private:
  // A digit of the number of an entry.
  struct Digits {
    enum Kind { of_key, of_chunk, of_column } kind;
    int32_t shift;
    FastDivisor by_chunk_size;
    const uint32_t* columns;

    __device__ uint32_t operator()(const Entry<T>& entry) const {
      const Key<T> number =
          kind == of_key ? entry.key
          : kind == of_chunk
              ? static_cast<uint32_t>(by_chunk_size.quotient(static_cast<int32_t>(entry.index)))
              : in_global(columns)[entry.index];
      return static_cast<uint32_t>(number >> shift) % kDigits;
    }
  };

  __device__ static int32_t bits_of_number(int32_t number) { return 32 - __clz(number); }

  // Sorts by numbers of so many bits. The result is never `kept`.
  __device__ Entry<T>* sort(Entry<T>* entries, Digits digits, int32_t num_bits, const Entry<T>* kept) {
    for (; digits.shift < num_bits; digits.shift += kDigitBits) {
      Entry<T>* to = nullptr;
      for (Entry<T>* candidate : storage.entries) {
        if (candidate != entries && candidate != kept && to == nullptr) to = candidate;
      }
      pass(team, storage, temp, static_cast<uint32_t>(size), entries, to, digits);
      entries = to;
    }
    return entries;
  }

  __device__ __noinline__ static void pass(Team& team, const GlobalStorage& storage, TempStorage& temp,
                                           uint32_t size, const Entry<T>* from, Entry<T>* to,
                                           Digits digit_of) {
    in_shared(&team);
    in_shared(&storage);
    in_shared(&temp);
    from = in_global(from);
    to = in_global(to);
    uint32_t* digit_counts = in_global(storage.digit_counts);
    uint32_t *next = temp.next, *warp_counts = temp.warp_counts;
    const uint32_t per_block = (size + team.num_blocks - 1) / team.num_blocks;
    const uint32_t begin = min(size, team.rank * per_block), end = min(size, begin + per_block);

    for (uint32_t d = threadIdx.x; d < kDigits; d += blockDim.x) next[d] = 0;
    __syncthreads();
    for (uint32_t p = begin + threadIdx.x; p < end; p += blockDim.x) atomicAdd(&next[digit_of(from[p])], 1u);
    __syncthreads();
    for (uint32_t d = threadIdx.x; d < kDigits; d += blockDim.x)
      digit_counts[team.rank * kDigits + d] = next[d];
    team.sync();

    // Entries before those of a digit: all with smaller digits, then those of the digit in earlier blocks.
    uint32_t before = 0;
    for (uint32_t first = 0; first < kDigits; first += blockDim.x) {
      const uint32_t d = first + threadIdx.x;
      uint32_t in_blocks_before = 0, in_all = 0;
      for (uint32_t b = 0; d < kDigits && b < team.num_blocks; ++b) {
        const uint32_t count = digit_counts[b * kDigits + d];
        in_blocks_before += b < team.rank ? count : 0;
        in_all += count;
      }
      uint32_t total;
      const uint32_t smaller = BlockScan(temp.scan).exclusive_sum(in_all, total);
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
    team.sync();
  }
};

}  // namespace noisetilt::cuda
