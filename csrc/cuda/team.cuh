// A team: the thread blocks that work on one sample together, all of them resident at once.
#pragma once

#include <cuda_runtime.h>

#include <cuda/atomic>

#include <cstdint>

namespace noisetilt::cuda {

constexpr uint32_t kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ inline unsigned char* dynamic_shared_memory() {
#ifdef __CUDACC__
  extern __shared__ uint4 memory[];
  return reinterpret_cast<unsigned char*>(memory);
#else
  return emulation::dynamic_shared_memory();
#endif
}

struct Team {
  uint32_t* arrivals;  // of blocks at the barrier since the launch
  uint32_t num_blocks;
  uint32_t rank;    // of this block
  uint32_t target;  // arrivals at which the last barrier was over

  __device__ uint32_t thread() const { return rank * blockDim.x + threadIdx.x; }
  __device__ uint32_t num_threads() const { return num_blocks * blockDim.x; }

  // Barrier for all threads of the team; what they wrote before it is seen by all after it.
  __device__ void sync() {
    __syncthreads();
    if (num_blocks == 1) return;
    target += num_blocks;
    if (threadIdx.x == 0) {
      const ::cuda::atomic_ref<uint32_t, ::cuda::thread_scope_device> count(*arrivals);
      count.fetch_add(1, ::cuda::memory_order_release);
      // a difference, since the count may pass 2^32
      while (static_cast<int32_t>(count.load(::cuda::memory_order_acquire) - target) < 0) {
      }
    }
    __syncthreads();
  }
};

// Small jobs that follow each other without a barrier, each for a part of the block's threads: one begins
// with the warp after those of the one before.
struct Rotation {
  int32_t begin = 0;

  __device__ int32_t thread() const {
    const int32_t thread = static_cast<int32_t>(threadIdx.x) - begin;
    return thread < 0 ? thread + static_cast<int32_t>(blockDim.x) : thread;
  }
  __device__ void advance(int32_t threads) {
    constexpr int32_t warp = static_cast<int32_t>(kWarp);
    begin = (begin + (threads + warp - 1) / warp * warp) % static_cast<int32_t>(blockDim.x);
  }
};

// First item of this thread, and how far it is to the next one, in a kernel that strides over its work.
__device__ inline int64_t grid_thread() {
  return blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
}
__device__ inline int64_t grid_threads() { return gridDim.x * static_cast<int64_t>(blockDim.x); }

// Sum over the lanes of the warp up to this one.
__device__ inline uint32_t warp_prefix_sum(uint32_t value) {
#pragma unroll
  for (uint32_t d = 1; d < kWarp; d *= 2) {
    const uint32_t below = __shfl_up_sync(kAllLanes, value, d);
    if (threadIdx.x % kWarp >= d) value += below;
  }
  return value;
}

// Exclusive prefix sum over the threads of the block; `total` is the sum of all. `partial` holds a word a
// warp, in shared memory. The block has a multiple of 32 threads.
__device__ inline uint32_t block_prefix_sum(uint32_t value, uint32_t* partial, uint32_t& total) {
  const uint32_t lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, num_warps = blockDim.x / kWarp;
  const uint32_t inclusive = warp_prefix_sum(value);
  if (lane == kWarp - 1) partial[warp] = inclusive;
  __syncthreads();
  uint32_t before = 0;
  total = 0;
  for (uint32_t w = 0; w < num_warps; ++w) {
    before += w < warp ? partial[w] : 0;
    total += partial[w];
  }
  __syncthreads();  // partial may be written again
  return before + inclusive - value;
}

}  // namespace noisetilt::cuda
