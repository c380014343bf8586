// Enqueueing a kernel.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace noisetilt::cuda {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // or the next one to ask would be told of it
  throw std::runtime_error(std::string("noisetilt: ") + what + ": " + cudaGetErrorString(status));
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "no CUDA device");
  check(cudaDeviceGetAttribute(&value, attribute, device), "reading a device attribute");
  return value;
}

// Threads of a block that was compiled for up to `most`.
inline int block_threads(int most) { return std::min(most, device_attribute(cudaDevAttrMaxThreadsPerBlock)); }

// Blocks for `work` items, one a thread, in a kernel that strides over what is left.
inline int64_t blocks_for(int64_t work, int threads) {
  return std::clamp<int64_t>((work + threads - 1) / threads, 1, 1 << 20);
}

template <class T>
T* allocate(const Launch& launch, int64_t count) {
  return static_cast<T*>(launch.allocate(launch.allocator, static_cast<size_t>(count) * sizeof(T)));
}

// Allows the kernel all the shared memory that a block can have: always all, since threads of the host that
// launch it with other sizes must not take it from each other.
template <class... Parameters>
void allow_shared_memory(void (*kernel)(Parameters...)) {
  const int most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
        "asking for shared memory");
}

// Blocks of the kernel that a multiprocessor holds at once.
template <class... Parameters>
int resident_blocks(void (*kernel)(Parameters...), int threads, size_t shared_bytes) {
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes),
        "asking for occupancy");
  return blocks;
}

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
