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

// all_at_once: a cooperative launch, which fails unless all blocks are resident together.
enum class Residence { any, all_at_once };

// Allows the kernel all the shared memory that a block can have. The limit is always the maximum:
// otherwise host threads that launch the kernel with different sizes would overwrite each other's setting.
// Throws std::runtime_error if all blocks must be resident, and a multiprocessor cannot even hold one.
template <class... Parameters>
void prepare(const Device& device, void (*kernel)(Parameters...), Residence residence, int threads) {
  const auto shared_bytes = static_cast<int>(device.limits.max_shared_bytes);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
        "asking for shared memory");
  if (residence == Residence::any) return;
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads,
                                                      static_cast<size_t>(shared_bytes)),
        "asking for the occupancy of a kernel");
  if (blocks < 1)
    throw std::runtime_error("noisetilt: a multiprocessor of this GPU cannot hold a block of " +
                             std::to_string(threads) + " threads with " + std::to_string(shared_bytes) +
                             " bytes of shared memory, which the projection kernel needs");
}

template <class... Parameters, class... Arguments>
void enqueue(const Launch& launch, void (*kernel)(Parameters...), Residence residence, int64_t blocks,
             int threads, size_t shared_bytes, Arguments&&... arguments) {
  if (blocks == 0) return;
  if (shared_bytes > 0)
    launch.device->prepare_once(reinterpret_cast<const void*>(kernel),
                                [&] { prepare(*launch.device, kernel, residence, threads); });
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
