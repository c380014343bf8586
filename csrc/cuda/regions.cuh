// Regions of tiles of one size, where tiles do not divide the plane (../tiling.h). A region is copied to
// separate memory, where it is the whole plane of a sample, and back.
#pragma once

#include "../tiling.h"
#include "runtime.h"
#include "team.cuh"

namespace noisetilt::cuda {

// kPack: copies a region of every plane, height x width, to contiguous memory; otherwise back.
template <class T, bool kPack>
__global__ void __launch_bounds__(Policy::Strided::kBlockThreads)
    copy_region_kernel(const T* from, T* to, const __grid_constant__ Region region, int64_t height,
                       int64_t width, int64_t count) {
  for (int64_t i = grid_thread(); i < count; i += grid_threads()) {
    const int64_t line = i / region.width, plane = line / region.height;
    const int64_t row = plane * height + region.top + line - plane * region.height;
    const int64_t place = row * width + region.left + i - line * region.width;
    to[kPack ? i : place] = from[kPack ? place : i];
  }
}

template <bool kPack, class T>
void copy_region(const Launch& launch, const T* from, T* to, const Region& region, int64_t batch,
                 const Shape& shape) {
  const int64_t count = batch * shape.channels * region.height * region.width;
  const int threads = block_threads(launch, Policy::Strided::kBlockThreads);
  enqueue(launch, copy_region_kernel<T, kPack>, Residence::any, blocks_for(count, threads), threads, 0, from,
          to, region, shape.height, shape.width, count);
}

}  // namespace noisetilt::cuda
