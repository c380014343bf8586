// Prefix sums of a warp and of a block.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace noisetilt::cuda {

constexpr uint32_t kWarpThreads = 32;
constexpr uint32_t kMaxBlockWarps = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

// Place of the lowest bit that is 1.
__device__ inline int32_t lowest_bit(uint32_t bits) { return __popc((bits & (0u - bits)) - 1); }

struct WarpScan {
  // Sum over the lanes of the warp up to this one. Every lane must take part.
  __device__ static uint32_t inclusive_sum(uint32_t value) {
#pragma unroll
    for (uint32_t d = 1; d < kWarpThreads; d *= 2) {
      const uint32_t below = __shfl_up_sync(kAllLanes, value, d);
      if (threadIdx.x % kWarpThreads >= d) value += below;
    }
    return value;
  }
};

// For blocks of a multiple of 32 threads.
class BlockScan {
 public:
  struct TempStorage {
    uint32_t warp_totals[kMaxBlockWarps];
  };

  __device__ explicit BlockScan(TempStorage& temp_storage) : temp_storage_(temp_storage) {}

  // Sum over the threads of the block before this one; `total` is the sum over all. Ends with a barrier,
  // after which the storage may be used again.
  __device__ uint32_t exclusive_sum(uint32_t value, uint32_t& total) {
    const uint32_t lane = threadIdx.x % kWarpThreads, warp = threadIdx.x / kWarpThreads,
                   num_warps = blockDim.x / kWarpThreads;
    const uint32_t inclusive = WarpScan::inclusive_sum(value);
    if (lane == kWarpThreads - 1) temp_storage_.warp_totals[warp] = inclusive;
    __syncthreads();
    uint32_t before = 0;
    total = 0;
    for (uint32_t w = 0; w < num_warps; ++w) {
      before += w < warp ? temp_storage_.warp_totals[w] : 0;
      total += temp_storage_.warp_totals[w];
    }
    __syncthreads();
    return before + inclusive - value;
  }

 private:
  TempStorage& temp_storage_;
};

}  // namespace noisetilt::cuda
