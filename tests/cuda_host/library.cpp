// The CUDA library _C_cuda for tensors on the CPU, over the stand-in for the CUDA runtime. It replaces the
// CPU's operators and PyTorch's FFT in its process. No kernel runs, so the values of results mean nothing.

// Everything that cuda_ops.cpp includes, because CUDA is another word below.
#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <optional>
#include <tuple>

#include "binding.h"
#include "cuda/kernels.h"

#define CUDA CPU
#include "cuda_ops.cpp"
#undef CUDA

// Functions of PyTorch that need a GPU.
AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return AOTI_TORCH_SUCCESS;
}
AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return AOTI_TORCH_SUCCESS; }

namespace {

using torch::stable::Tensor;

// An FFT that makes its result and enqueues nothing.
Tensor fft(const Tensor& x, std::vector<int64_t>, int64_t, bool) { return torch::stable::empty_like(x); }

// Python calls it for tensors on the CPU, in place of clone().
Tensor copy(const Tensor& x) { return torch::stable::clone(x); }

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(aten, CPU, m) { m.impl("_fft_c2c", TORCH_BOX(&fft)); }
STABLE_TORCH_LIBRARY_IMPL(noisetilt, CPU, m) { m.impl("_copy", TORCH_BOX(&copy)); }

// Calls of a function of the CUDA runtime since the process began.
extern "C" __attribute__((visibility("default"))) int64_t cuda_host_calls(int function) {
  return cuda_host::calls[function];
}
