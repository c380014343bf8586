// Toy kernel of clusters, with its host code: what nvcc makes of it, over the stand-in of the runtime.
#include <cstdint>
#include <vector>

#include "../../cuda_emulation/clusters.cuh"
#include "cuda/kernels.h"
#include "cuda/runtime.h"
#include "device.h"

namespace {

using namespace noisetilt::cuda;

// Every block of a cluster reads the words of the next one, and adds their sum to a word of block 0.
__global__ void neighbours(const unsigned* in, unsigned* out, unsigned* sums) {
  extern __shared__ unsigned words[];
  unsigned* sum = words + blockDim.x;
  const unsigned t = threadIdx.x, at = blockIdx.x * blockDim.x + t, rank = cluster_rank();
  words[t] = in[at];
  if (t == 0) *sum = 0;
  cluster_sync();
  unsigned size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  const unsigned word = of_cluster_block(words, (rank + 1) % size)[t];
  out[at] = word;
  atomicAdd(of_cluster_block(sum, 0), word);
  cluster_sync();
  if (rank == 0 && t == 0) sums[blockIdx.x / size] = *sum;
}

struct Clusters {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute cluster{};
  Clusters(unsigned blocks, unsigned size, unsigned threads, size_t shared_bytes) {
    cluster.id = cudaLaunchAttributeClusterDimension;
    cluster.val.clusterDim.x = size;
    cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.attrs = &cluster;
    config.numAttrs = 1;
  }
};

void allow(bool non_portable) {
  check(cudaFuncSetAttribute(neighbours, cudaFuncAttributeNonPortableClusterSizeAllowed, non_portable),
        "allowing large clusters");
}

// Words that the blocks have read, and the sums of all clusters.
std::vector<unsigned> run(const std::vector<unsigned>& in, unsigned blocks, unsigned size,
                          bool non_portable) {
  allow(non_portable);
  const auto threads = static_cast<unsigned>(in.size() / blocks);
  const Borrowed input(in.data(), in.size() * 4);
  const Allocation out(in.size() * 4, 256), sums(blocks * 4, 256);
  auto* words = reinterpret_cast<unsigned*>(out.data());
  auto* totals = reinterpret_cast<unsigned*>(sums.data());
  const Clusters launch(blocks, size, threads, (threads + 1) * 4);
  check(cudaLaunchKernelEx(&launch.config, neighbours, in.data(), words, totals), "launching a kernel");
  std::vector<unsigned> result(words, words + in.size());
  result.insert(result.end(), totals, totals + blocks / size);
  return result;
}

int active_clusters(unsigned size, unsigned threads, size_t shared_bytes, bool non_portable) {
  allow(non_portable);
  check(cudaFuncSetAttribute(neighbours, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(shared_bytes)),
        "asking for shared memory");
  const Clusters launch(size, size, threads, shared_bytes);
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, neighbours, &launch.config), "asking for the occupancy");
  return clusters;
}

std::vector<int> attributes() {
  std::vector<int> result;
  for (const cudaDeviceAttr attribute :
       {cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor, cudaDevAttrClusterLaunch}) {
    result.emplace_back();
    check(cudaDeviceGetAttribute(&result.back(), attribute, 0), "asking for an attribute");
  }
  return result;
}

}  // namespace

PYBIND11_MODULE(MODULE, m) {
  bind_device(m);
  m.def("run", &run);
  m.def("active_clusters", &active_clusters);
  m.def("attributes", &attributes);
}
