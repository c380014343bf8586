// The barrier of a team of blocks alone (csrc/cuda/team.cuh): its time, and whether writes before it are
// visible after it. `python -m bench.gpu.prepare` compiles this file into a shared library, which Python
// opens.

#include <cuda_runtime.h>

#include "../../csrc/cuda/team.cuh"

namespace {

using noisetilt::cuda::Team;

__device__ Team whole_grid(uint32_t* arrivals) { return {arrivals, gridDim.x, blockIdx.x, 0}; }

__global__ void barrier_kernel(uint32_t* arrivals, int barriers) {
  Team team = whole_grid(arrivals);
  for (int k = 0; k < barriers; ++k) team.sync();
}

// Every block writes a word, and after the barrier reads the word of another block. `words` has two words per
// block, used in turn: a fast block must not overwrite what a slow one has still to read.
__global__ void exchange_kernel(uint32_t* arrivals, int barriers, uint32_t* words, uint32_t* wrong) {
  Team team = whole_grid(arrivals);
  for (uint32_t k = 0; k < static_cast<uint32_t>(barriers); ++k) {
    uint32_t* const turn = words + k % 2 * team.num_blocks;
    if (threadIdx.x == 0) turn[team.rank] = k;
    team.sync();
    // The last thread reads: another one than the one that waits at the barrier.
    if (threadIdx.x == blockDim.x - 1 && turn[(team.rank + 1 + k) % team.num_blocks] != k)
      atomicAdd(wrong, 1u);
  }
}

template <class... Parameters>
int launch(void (*kernel)(Parameters...), int blocks, int threads, cudaStream_t stream,
           Parameters... values) {
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = 0;
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, values...);
}

}  // namespace

// Enqueue `barriers` barriers of a grid. `arrivals` is a word 0. Returns a cudaError_t.
extern "C" int noisetilt_barriers(int blocks, int threads, int barriers, uint32_t* arrivals,
                                  cudaStream_t stream) {
  return launch(barrier_kernel, blocks, threads, stream, arrivals, barriers);
}

// The same with an exchange of words at each barrier. Adds to `wrong` the number of words that were not seen.
extern "C" int noisetilt_exchanges(int blocks, int threads, int barriers, uint32_t* arrivals, uint32_t* words,
                                   uint32_t* wrong, cudaStream_t stream) {
  return launch(exchange_kernel, blocks, threads, stream, arrivals, barriers, words, wrong);
}
