// Functions of thread block clusters that only the tests use.
#pragma once

#include "cuda/team.cuh"

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

// Place in the shared memory of block `rank` that `pointer` has in this block's. The block must not have
// ended.
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
