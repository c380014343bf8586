// The test for non-finite samples with which the whitening operator begins.

#include "keys.cuh"
#include "runtime.h"

namespace noisetilt::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kPerBlock = 4096;  // values of one sample

template <class T>
__global__ void __launch_bounds__(kThreads)
    copy_kernel(const T* x, T* out, int64_t size, int64_t blocks_per_sample, uint32_t* poisoned) {
  const int64_t sample = blockIdx.x / blocks_per_sample, begin = blockIdx.x % blocks_per_sample * kPerBlock;
  const int64_t end = min(size, begin + kPerBlock);
  bool finite = true;
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const T value = x[sample * size + i];
    finite &= is_finite(value);
    out[sample * size + i] = value;
  }
  if (!finite) poisoned[sample] = 1;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    poison_kernel(T* out, int64_t size, int64_t blocks_per_sample, const uint32_t* poisoned) {
  const int64_t sample = blockIdx.x / blocks_per_sample, begin = blockIdx.x % blocks_per_sample * kPerBlock;
  if (!poisoned[sample]) return;
  const int64_t end = min(size, begin + kPerBlock);
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) out[sample * size + i] = quiet_nan<T>();
}

}  // namespace

template <class T>
void finite_or_nan(const Launch& launch, const T* x, T* out, int64_t batch, int64_t size) {
  if (batch == 0) return;
  auto* poisoned = allocate<uint32_t>(launch, batch);
  check(cudaMemsetAsync(poisoned, 0, static_cast<size_t>(batch) * sizeof(uint32_t), launch.stream),
        "clearing memory");
  const int threads = block_threads(kThreads);
  const int64_t blocks_per_sample = (size + kPerBlock - 1) / kPerBlock;
  enqueue(launch, copy_kernel<T>, Residence::any, batch * blocks_per_sample, threads, 0, x, out, size,
          blocks_per_sample, poisoned);
  enqueue(launch, poison_kernel<T>, Residence::any, batch * blocks_per_sample, threads, 0, out, size,
          blocks_per_sample, poisoned);
}

template void finite_or_nan<float>(const Launch&, const float*, float*, int64_t, int64_t);
template void finite_or_nan<double>(const Launch&, const double*, double*, int64_t, int64_t);

}  // namespace noisetilt::cuda
