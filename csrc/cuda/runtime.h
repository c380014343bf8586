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

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "finding the current CUDA device");
  check(cudaDeviceGetAttribute(&value, attribute, device), "reading a device attribute");
  return value;
}

// Number of threads in a block of a kernel that is compiled for at most `max` threads.
inline int block_threads(int max) { return std::min(max, device_attribute(cudaDevAttrMaxThreadsPerBlock)); }

// Blocks of a kernel whose threads stride over `num_items` items: one item a thread, if the grid is not too
// large.
inline int64_t blocks_for(int64_t num_items, int threads) {
  return std::clamp<int64_t>((num_items + threads - 1) / threads, 1, Policy::kMaxGridBlocks);
}

template <class T>
T* allocate(const Launch& launch, int64_t count) {
  return static_cast<T*>(launch.allocate(launch.allocator, static_cast<size_t>(count) * sizeof(T)));
}

// Allows the kernel all the shared memory that a block can have. The limit is always the maximum:
// otherwise host threads that launch the kernel with different sizes would overwrite each other's setting.
template <class... Parameters>
void allow_shared_memory(void (*kernel)(Parameters...)) {
  const int max = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, max),
        "asking for shared memory");
}

// Number of blocks of the kernel that a multiprocessor holds at once.
template <class... Parameters>
int resident_blocks(void (*kernel)(Parameters...), int threads, size_t shared_bytes) {
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes),
        "asking for the occupancy of a kernel");
  return blocks;
}

// all_at_once: a cooperative launch, which fails unless all blocks are resident together.
enum class Residence { any, all_at_once };

template <class... Parameters, class... Arguments>
void enqueue(const Launch& launch, void (*kernel)(Parameters...), Residence residence, int64_t blocks,
             int threads, size_t shared_bytes, Arguments&&... arguments) {
  if (blocks == 0) return;
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = launch.stream;
  config.attrs = &cooperative;
  config.numAttrs = residence == Residence::all_at_once ? 1 : 0;
  check(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...), "launching a kernel");
}

}  // namespace noisetilt::cuda
