// Thread block clusters: blocks that run at once on neighbouring multiprocessors, wait for each other at a
// barrier of the hardware, and reach each other's shared memory. Devices of compute capability 9.0 and newer.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace noisetilt::cuda {

// Number of this block in its cluster.
__device__ inline uint32_t cluster_rank() {
#ifdef __CUDACC__
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  return emulation::cluster_rank();
#endif
}

// Barrier for all threads of the cluster. Writes before it, to global memory and to shared memory of any block,
// are visible to all threads after it.
__device__ inline void cluster_sync() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  __trap();  // no such launch
#elif defined(__CUDACC__)
  asm volatile("barrier.cluster.arrive.release.aligned;\n\tbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  emulation::cluster_sync();
#endif
}

// Place in the shared memory of block `rank` that `pointer` has in this block's. The block must not have ended.
template <class T>
__device__ inline T* of_cluster_block(T* pointer, uint32_t rank) {
#ifdef __CUDACC__
  uint64_t result;
  asm("mapa.u64 %0, %1, %2;" : "=l"(result) : "l"(pointer), "r"(rank));
  return reinterpret_cast<T*>(result);
#else
  return emulation::of_cluster_block(pointer, rank);
#endif
}

}  // namespace noisetilt::cuda
