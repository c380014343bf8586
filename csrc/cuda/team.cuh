// A team: the thread blocks that work on one sample together, all of them resident at once. The level above
// block and warp: names of cooperative primitives begin with Team, Block or Warp.
#pragma once

#include <cuda_runtime.h>

#include <cuda/atomic>

#include <cstdint>

#include "block_scan.cuh"

#ifdef NOISETILT_CUDA_DEBUG
#include <cstdio>
#endif

namespace noisetilt::cuda {

__device__ inline unsigned char* dynamic_shared_memory() {
#ifdef __CUDACC__
  extern __shared__ uint4 memory[];
  return reinterpret_cast<unsigned char*>(memory);
#else
  return emulation::dynamic_shared_memory();
#endif
}

// A pointer, and the promise that it is to shared or to global memory. Loads and stores that do not know
// their space are slower.
template <class T>
__device__ inline T* in_shared(T* pointer) {
#ifdef __CUDACC__
  __builtin_assume(__isShared(pointer));
#endif
  return pointer;
}
template <class T>
__device__ inline T* in_global(T* pointer) {
#ifdef __CUDACC__
  __builtin_assume(__isGlobal(pointer));
#endif
  return pointer;
}

#ifdef NOISETILT_CUDA_DEBUG
// Time that a block waits at a team barrier before it ends the kernel with an error. It is meant to be
// far longer than the work between two barriers, also under compute-sanitizer.
constexpr uint64_t kMaxWaitNs = 2'000'000'000;

// Time of a clock that all multiprocessors share.
__device__ inline uint64_t now_ns() {
#ifdef __CUDACC__
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
#else
  return emulation::now_ns();
#endif
}

// Wait of a thread at a team barrier. It ends the kernel with an error if the barrier takes too long.
class TeamWait {
 public:
  // Called after each look at the count of arrivals.
  __device__ void check(uint32_t rank, uint32_t num_blocks, uint32_t target, uint32_t count) const {
    if (now_ns() - begin_ < kMaxWaitNs) return;
    printf("noisetilt: a team barrier gave up: block %u, rank %u of %u, waits for %u arrivals and saw %u\n",
           static_cast<unsigned>(blockIdx.x), rank, num_blocks, target, count);
    __trap();
  }

 private:
  uint64_t begin_ = now_ns();
};
#else
struct TeamWait {
  __device__ void check(uint32_t, uint32_t, uint32_t, uint32_t) const {}
};
#endif

// Code for compute capability 9.0 and newer, and the emulation, have barriers of thread block clusters.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define NOISETILT_HAS_CLUSTERS

// Barrier for all threads of a cluster. Writes before it, to global memory and to shared memory of any block,
// are visible to all threads after it.
__device__ inline void cluster_sync() {
#ifdef __CUDACC__
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
#else
  emulation::cluster_sync();
#endif
}
#endif

struct Team {
  uint32_t* arrivals;  // of blocks at barriers, since the launch
  uint32_t num_blocks;
  uint32_t rank;    // of this block
  uint32_t target;  // arrivals that ended the last barrier; only the first thread of a block knows
  bool is_cluster = false;

  __device__ uint32_t thread() const { return rank * blockDim.x + threadIdx.x; }
  __device__ uint32_t num_threads() const { return num_blocks * blockDim.x; }

  // Barrier for all threads of the team. Writes before it are visible to all threads after it.
  __device__ __noinline__ void sync() {
    in_shared(this);
#ifdef NOISETILT_HAS_CLUSTERS
    if (is_cluster) return cluster_sync();
#endif
    __syncthreads();
    if (num_blocks == 1) return;
    if (threadIdx.x == 0) {
      target += num_blocks;
      const ::cuda::atomic_ref<uint32_t, ::cuda::thread_scope_device> count(*in_global(arrivals));
      count.fetch_add(1, ::cuda::memory_order_release);
      const TeamWait wait;
      // The difference is compared, because the count may wrap around at 2^32.
      uint32_t seen;
      while (static_cast<int32_t>((seen = count.load(::cuda::memory_order_acquire)) - target) < 0) {
        wait.check(rank, num_blocks, target, seen);
      }
    }
    __syncthreads();
  }
};

// Distribution of small jobs that need only a part of the block's threads and follow each other without a
// barrier. Each job begins with the first warp that the job before left idle.
struct BlockRotation {
  int32_t begin = 0;

  // Index of this thread within the current job.
  __device__ int32_t thread() const {
    const int32_t thread = static_cast<int32_t>(threadIdx.x) - begin;
    return thread < 0 ? thread + static_cast<int32_t>(blockDim.x) : thread;
  }
  // Ends a job that used `threads` threads.
  __device__ void advance(int32_t threads) {
    constexpr int32_t warp = static_cast<int32_t>(kWarpThreads);
    if (threads >= static_cast<int32_t>(blockDim.x)) return;  // all
    begin += (threads + warp - 1) / warp * warp;
    if (begin >= static_cast<int32_t>(blockDim.x)) begin -= static_cast<int32_t>(blockDim.x);
  }
};

// First item of this thread, and distance to its next one, in kernels whose threads stride over their work.
__device__ inline int64_t grid_thread() {
  return blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
}
__device__ inline int64_t grid_threads() { return gridDim.x * static_cast<int64_t>(blockDim.x); }

}  // namespace noisetilt::cuda
