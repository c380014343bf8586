// Stand-in for the CUDA runtime: it counts calls and executes nothing. The kernels compile by the headers of
// the emulation.
#pragma once

#include "../cuda_emulation/cuda_runtime.h"

namespace cuda_host {

enum Call { launch, memset, copy, get_device, get_attribute, set_attribute, occupancy, kNumCalls };
inline int64_t calls[kNumCalls];  // since the process began

inline cudaError_t count(Call call) {
  ++calls[call];
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(const cudaLaunchConfig_t*, void (*)(Parameters...), Arguments&&... arguments) {
  // The runtime copies the arguments too.
  return [](Parameters...) { return count(launch); }(std::forward<Arguments>(arguments)...);
}
inline cudaError_t memset_async(void*, int, size_t, cudaStream_t) { return count(memset); }
inline cudaError_t copy_async(void*, const void*, size_t, cudaMemcpyKind, cudaStream_t) {
  return count(copy);
}
inline cudaError_t current_device(int* number) { return *number = 0, count(get_device); }
inline cudaError_t device_attribute(int* value, cudaDeviceAttr attribute, int device) {
  return cudaDeviceGetAttribute(value, attribute, device), count(get_attribute);
}
template <class Kernel>
cudaError_t set_kernel_attribute(Kernel*, cudaFuncAttribute, int) {
  return count(set_attribute);
}
template <class Kernel>
cudaError_t resident_blocks(int* blocks, Kernel*, int, size_t) {
  return *blocks = 1, count(occupancy);
}

}  // namespace cuda_host

#define cudaLaunchKernelEx cuda_host::launch_kernel
#define cudaMemsetAsync cuda_host::memset_async
#define cudaMemcpyAsync cuda_host::copy_async
#define cudaGetDevice cuda_host::current_device
#define cudaDeviceGetAttribute cuda_host::device_attribute
#define cudaFuncSetAttribute cuda_host::set_kernel_attribute
#define cudaOccupancyMaxActiveBlocksPerMultiprocessor cuda_host::resident_blocks
