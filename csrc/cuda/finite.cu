// First step of the whitening operator: a sample with a non-finite value becomes NaN throughout.

#include "keys.cuh"
#include "runtime.h"

namespace noisetilt::cuda {
namespace {

constexpr int kBlockThreads = Policy::FiniteOrNan::kBlockThreads;
constexpr int64_t kItemsPerBlock = Policy::FiniteOrNan::kItemsPerBlock;

// Copies the samples. Sets poisoned[sample] if the sample has a non-finite value.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    finite_or_nan_copy_kernel(const T* x, T* out, int64_t size, int64_t blocks_per_sample,
                              uint32_t* poisoned) {
  const int64_t sample = blockIdx.x / blocks_per_sample,
                begin = blockIdx.x % blocks_per_sample * kItemsPerBlock;
  const int64_t end = min(size, begin + kItemsPerBlock);
  bool finite = true;
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
    const T value = x[sample * size + i];
    finite &= is_finite(value);
    out[sample * size + i] = value;
  }
  if (!finite) poisoned[sample] = 1;
}

// Fills poisoned samples with NaN.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    finite_or_nan_poison_kernel(T* out, int64_t size, int64_t blocks_per_sample, const uint32_t* poisoned) {
  const int64_t sample = blockIdx.x / blocks_per_sample,
                begin = blockIdx.x % blocks_per_sample * kItemsPerBlock;
  if (!poisoned[sample]) return;
  const int64_t end = min(size, begin + kItemsPerBlock);
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) out[sample * size + i] = quiet_nan<T>();
}

}  // namespace

template <class T>
void finite_or_nan(const Launch& launch, const T* x, T* out, int64_t batch, int64_t size) {
  if (batch == 0) return;
  auto* poisoned = reinterpret_cast<uint32_t*>(allocate_cleared(launch, bytes_of_flags(batch)));
  const int threads = block_threads(launch, kBlockThreads);
  const int64_t blocks_per_sample = (size + kItemsPerBlock - 1) / kItemsPerBlock;
  enqueue(launch, finite_or_nan_copy_kernel<T>, Residence::any, batch * blocks_per_sample, threads, 0, x, out,
          size, blocks_per_sample, poisoned);
  enqueue(launch, finite_or_nan_poison_kernel<T>, Residence::any, batch * blocks_per_sample, threads, 0, out,
          size, blocks_per_sample, poisoned);
}

template void finite_or_nan<float>(const Launch&, const float*, float*, int64_t, int64_t);
template void finite_or_nan<double>(const Launch&, const double*, double*, int64_t, int64_t);

}  // namespace noisetilt::cuda
