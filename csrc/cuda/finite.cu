// First step of the whitening operator: a sample with a non-finite value becomes NaN throughout.

#include "keys.cuh"
#include "runtime.h"

namespace noisetilt::cuda {
namespace {

constexpr int kBlockThreads = Policy::FiniteOrNan::kBlockThreads;
constexpr int64_t kItemsPerBlock = Policy::FiniteOrNan::kItemsPerBlock;

// Copies the samples. Sets all_finite[block] to 1 if all values of the block are finite, otherwise to 0.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    finite_or_nan_copy_kernel(const T* x, T* out, int64_t size, int64_t blocks_per_sample,
                              uint32_t* all_finite) {
  const int64_t sample = blockIdx.x / blocks_per_sample,
                begin = blockIdx.x % blocks_per_sample * kItemsPerBlock;
  const int64_t end = min(size, begin + kItemsPerBlock);
  bool finite = true;
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const T value = x[sample * size + i];
    finite &= is_finite(value);
    out[sample * size + i] = value;
  }
  finite = __syncthreads_and(finite);
  if (threadIdx.x == 0) all_finite[blockIdx.x] = finite;
}

// Fills samples with NaN that have a block with a value that is not finite.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    finite_or_nan_poison_kernel(T* out, int64_t size, int64_t blocks_per_sample, const uint32_t* all_finite) {
  const int64_t sample = blockIdx.x / blocks_per_sample,
                begin = blockIdx.x % blocks_per_sample * kItemsPerBlock;
  bool finite = true;
  for (int64_t block = threadIdx.x; block < blocks_per_sample; block += blockDim.x)
    finite &= all_finite[sample * blocks_per_sample + block] != 0;
  if (__syncthreads_and(finite)) return;
  const int64_t end = min(size, begin + kItemsPerBlock);
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) out[sample * size + i] = quiet_nan<T>();
}

}  // namespace

template <class T>
void finite_or_nan(const Launch& launch, const T* x, T* out, int64_t batch, int64_t size) {
  if (batch == 0) return;
  const int threads = block_threads(launch, kBlockThreads);
  const int64_t blocks_per_sample = (size + kItemsPerBlock - 1) / kItemsPerBlock;
  auto* all_finite = allocate<uint32_t>(launch, batch * blocks_per_sample);
  enqueue(launch, finite_or_nan_copy_kernel<T>, Residence::any, batch * blocks_per_sample, threads, 0, x, out,
          size, blocks_per_sample, all_finite);
  enqueue(launch, finite_or_nan_poison_kernel<T>, Residence::any, batch * blocks_per_sample, threads, 0, out,
          size, blocks_per_sample, static_cast<const uint32_t*>(all_finite));
}

template void finite_or_nan<float>(const Launch&, const float*, float*, int64_t, int64_t);
template void finite_or_nan<double>(const Launch&, const double*, double*, int64_t, int64_t);

}  // namespace noisetilt::cuda
