// CUB's sorts, for comparison: a simple projection onto order statistics would begin with one. Also the
// number of clusters of 16 blocks that the GPU holds at once. `python -m bench.gpu.prepare` compiles this
// file into a shared library, which Python opens.

#include <cuda_runtime.h>

#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <cub/cub.cuh>

namespace {

enum Sort { segmented_radix_sort, segmented_sort, radix_sort_of_wide_keys };

// First key of a column. Columns of `length` keys follow each other.
struct Begin {
  int length;
  __host__ __device__ int operator()(int column) const { return column * length; }
};

__global__ void __launch_bounds__(256) cluster_kernel(int* out) {
  if (out != nullptr) *out = 0;
}

}  // namespace

// Sorts the keys of every column together with their places. Returns a cudaError_t. If `memory` is null, it
// only writes the number of bytes of memory that it needs. Wide keys have the column above the 32 bits of the
// key.
extern "C" int noisetilt_sort(int sort, void* memory, size_t* bytes, const void* keys, void* sorted_keys,
                              const int* places, int* sorted_places, int columns, int length,
                              cudaStream_t stream) {
  const auto begins = thrust::make_transform_iterator(thrust::make_counting_iterator(0), Begin{length});
  const int size = columns * length;
  const auto* in = static_cast<const float*>(keys);
  auto* out = static_cast<float*>(sorted_keys);
  switch (sort) {
    case segmented_radix_sort:
      return cub::DeviceSegmentedRadixSort::SortPairs(memory, *bytes, in, out, places, sorted_places, size,
                                                      columns, begins, begins + 1, 0, 32, stream);
    case segmented_sort:
      return cub::DeviceSegmentedSort::StableSortPairs(memory, *bytes, in, out, places, sorted_places, size,
                                                       columns, begins, begins + 1, stream);
    default: {
      int bits = 32;
      while ((1 << (bits - 32)) < columns) ++bits;
      return cub::DeviceRadixSort::SortPairs(memory, *bytes, static_cast<const unsigned long long*>(keys),
                                             static_cast<unsigned long long*>(sorted_keys), places,
                                             sorted_places, size, 0, bits, stream);
    }
  }
}

extern "C" int noisetilt_clusters_of_16() {
  cudaFuncSetAttribute(cluster_kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {16, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(16 * 8);
  config.blockDim = dim3(256);
  config.dynamicSmemBytes = 0;
  config.attrs = &cluster;
  config.numAttrs = 1;
  int clusters = 0;
  const cudaError_t status = cudaOccupancyMaxActiveClusters(&clusters, cluster_kernel, &config);
  cudaGetLastError();
  return status == cudaSuccess ? clusters : 0;
}
