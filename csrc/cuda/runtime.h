// Launching a kernel.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels.h"
#include "policy.h"

namespace noisetilt::cuda {

// Throws std::runtime_error if a call of the CUDA runtime failed. `what`: the call, such as "launching a
// kernel".
inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears the error; otherwise a later call would report it
  throw std::runtime_error(std::string("noisetilt: ") + what + " failed: " + cudaGetErrorString(status));
}

// Number of threads in a block of a kernel that is compiled for at most `max` threads.
inline int block_threads(const Launch& launch, int max) {
  return static_cast<int>(std::min<int64_t>(max, launch.device->limits.max_block_threads));
}

// Blocks of a kernel whose threads stride over `num_items` items: one item a thread, if the grid is not too
// large.
inline int64_t blocks_for(int64_t num_items, int threads) {
  return std::clamp<int64_t>((num_items + threads - 1) / threads, 1, Policy::kMaxGridBlocks);
}

template <class T>
T* allocate(const Launch& launch, int64_t count) {
  return static_cast<T*>(launch.allocate(launch.allocator, static_cast<size_t>(count) * sizeof(T)));
}

template <class T>
void copy_memory(const Launch& launch, const T* from, T* to, int64_t count) {
  check(cudaMemcpyAsync(to, from, static_cast<size_t>(count) * sizeof(T), cudaMemcpyDeviceToDevice,
                        launch.stream),
        "copying memory");
}

// Clears memory, all at once, that calls of allocate_cleared will return.
inline void reserve_cleared(const Launch& launch, size_t bytes) {
  if (launch.cleared.bytes >= bytes) return;
  launch.cleared = {allocate<unsigned char>(launch, static_cast<int64_t>(bytes)), bytes};
  check(cudaMemsetAsync(launch.cleared.begin, 0, bytes, launch.stream), "clearing memory");
}

// Memory of zeros.
inline unsigned char* allocate_cleared(const Launch& launch, size_t bytes) {
  reserve_cleared(launch, bytes);
  unsigned char* memory = launch.cleared.begin;
  launch.cleared = {memory + bytes, launch.cleared.bytes - bytes};
  return memory;
}

// Memory of zeros for a kernel that leaves it so. Kernels of a stream follow each other, so the next one gets
// it too. No call finds what a kernel left that did not end: the memory is allocated and cleared by each call
// of a host function, or once by reserve_for_whiten for those that follow it.
inline unsigned char* memory_of_zeros(const Launch& launch, size_t bytes) {
  Memory& zeros = launch.zeros;
  if (zeros.bytes < bytes) zeros = {allocate_cleared(launch, bytes), bytes};
  return zeros.begin;
}

// Bytes of a 32-bit flag for each sample. What lies behind them in cleared memory is aligned.
inline size_t bytes_of_flags(int64_t batch) {
  return (static_cast<size_t>(batch) * sizeof(uint32_t) + 255) / 256 * 256;
}

// Memory for the work of one kernel. Kernels of a stream follow each other, so the next one may get it too.
inline unsigned char* working_memory(const Launch& launch, size_t bytes) {
  Memory& working = launch.working;
  if (working.bytes < bytes) working = {allocate<unsigned char>(launch, static_cast<int64_t>(bytes)), bytes};
  return working.begin;
}

// Blocks that are resident together. Not a cluster: cluster_blocks is 0.
struct Residence {
  bool all_at_once;  // a cooperative launch, which fails unless all blocks can be resident together
  int cluster_blocks;
  static const Residence any, all;
  static constexpr Residence clusters_of(int blocks) { return {false, blocks}; }
};
inline constexpr Residence Residence::any{false, 0}, Residence::all{true, 0};

// Grid, block and shared memory of a launch, with room for its attribute.
struct LaunchConfig : cudaLaunchConfig_t {
  LaunchConfig(const Launch& launch, Residence residence, int64_t blocks, int threads, size_t shared_bytes)
      : cudaLaunchConfig_t{} {
    gridDim = dim3(static_cast<unsigned>(blocks));
    blockDim = dim3(static_cast<unsigned>(threads));
    dynamicSmemBytes = shared_bytes;
    stream = launch.stream;
    if (residence.cluster_blocks > 0) {
      attribute_.id = cudaLaunchAttributeClusterDimension;
      attribute_.val.clusterDim.x = static_cast<unsigned>(residence.cluster_blocks);
      attribute_.val.clusterDim.y = attribute_.val.clusterDim.z = 1;
    } else {
      attribute_.id = cudaLaunchAttributeCooperative;
      attribute_.val.cooperative = 1;
    }
    attrs = &attribute_;
    numAttrs = residence.all_at_once || residence.cluster_blocks > 0 ? 1 : 0;
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;

 private:
  cudaLaunchAttribute attribute_{};
};

// Allows the kernel all the shared memory that a block can have. The limit is always the maximum:
// otherwise host threads that launch the kernel with different sizes would overwrite each other's setting.
// Returns the number of clusters that can be resident together, if there are clusters. Throws
// std::runtime_error if all blocks must be resident, and a multiprocessor cannot even hold one.
template <class... Parameters>
int64_t prepare(const Launch& launch, void (*kernel)(Parameters...), Residence residence, int threads) {
  const Device& device = *launch.device;
  const auto shared_bytes = static_cast<int>(device.limits.max_shared_bytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "asking for shared memory");
  if (residence.cluster_blocks > 0) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
          "asking for large clusters");
    const LaunchConfig config(launch, residence, residence.cluster_blocks, threads,
                              device.limits.max_shared_bytes);
    int clusters = 0;
    check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config), "asking for the number of clusters");
    return clusters;
  }
  if (!residence.all_at_once) return 0;
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads,
                                                      static_cast<size_t>(shared_bytes)),
        "asking for the occupancy of a kernel");
  if (blocks < 1)
    throw std::runtime_error("noisetilt: a multiprocessor of this GPU cannot hold a block of " +
                             std::to_string(threads) + " threads with " + std::to_string(shared_bytes) +
                             " bytes of shared memory, which the projection kernel needs");
  return 0;
}

// The same, once for each device, kernel and size of clusters.
template <class... Parameters>
int64_t prepare_once(const Launch& launch, void (*kernel)(Parameters...), Residence residence, int threads) {
  return launch.device->prepare_once(reinterpret_cast<const void*>(kernel), residence.cluster_blocks,
                                     [&] { return prepare(launch, kernel, residence, threads); });
}

template <class... Parameters, class... Arguments>
void enqueue(const Launch& launch, void (*kernel)(Parameters...), Residence residence, int64_t blocks,
             int threads, size_t shared_bytes, Arguments&&... arguments) {
  if (blocks == 0) return;
  if (shared_bytes > 0) prepare_once(launch, kernel, residence, threads);
  const LaunchConfig config(launch, residence, blocks, threads, shared_bytes);
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), "launching a kernel");
}

}  // namespace noisetilt::cuda
