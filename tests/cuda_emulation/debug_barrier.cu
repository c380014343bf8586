// Kernel whose blocks meet at team barriers, in the debug build: a block that never arrives is reported.
#include <pybind11/pybind11.h>

#include <stdexcept>

#include "cuda/team.cuh"
#include "device.h"

namespace {

__global__ void meet_kernel(uint32_t* arrivals, uint32_t num_barriers, uint32_t lost_block) {
  noisetilt::cuda::Team team{arrivals, gridDim.x, blockIdx.x, 0};
  for (uint32_t k = 0; k < num_barriers; ++k) {
    if (blockIdx.x == lost_block && k + 1 == num_barriers) return;
    team.sync();
  }
}

// Returns the number of arrivals at `num_barriers` barriers. Block `lost_block` misses the last one.
uint32_t meet(unsigned num_blocks, uint32_t num_barriers, uint32_t lost_block) {
  uint32_t arrivals = 0;
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(num_blocks);
  config.blockDim = dim3(32);
  config.attrs = &cooperative;
  config.numAttrs = 1;
  if (cudaLaunchKernelEx(&config, meet_kernel, &arrivals, num_barriers, lost_block) != cudaSuccess)
    throw std::invalid_argument("the launch failed");
  return arrivals;
}

}  // namespace

PYBIND11_MODULE(MODULE, m) {
  bind_device(m);
  m.def("meet", &meet);
}
