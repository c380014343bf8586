// The whitening operator between its FFTs (DESIGN section 5): project(x), alone or after every butterfly step
// of the mixing domains, in one launch.
//
// A team of blocks works on a sample. Every block holds a slice of it, in shared memory if it fits, and does
// all work there that needs no other block. The blocks of a team meet at barriers in global memory, so all of
// them must be resident at once. If there are more samples than teams, each team takes several in turn.
//
//   whitening_plan.h       host plan: slices, buffers, grid
//   whitening_buffers.h    table of the buffers: who writes, who reads, which barrier lies between
//   whitening_storage.cuh  kernel parameters and shared memory
//   whitening_agent.cuh    work of a block

#include <cmath>
#include <stdexcept>

#include "runtime.h"
#include "whitening_agent.cuh"

namespace noisetilt::cuda {
namespace {

using Tuning = Policy::Project;

template <class T>
__global__ void __launch_bounds__(Tuning::kBlockThreads, Tuning::kMinBlocksPerSm)
    project_kernel(const __grid_constant__ ProjectParams<T> params) {
  AgentProject<T>(params).run();
}

DeviceLimits current_device() {
  return {device_attribute(cudaDevAttrMultiProcessorCount), device_attribute(cudaDevAttrMaxThreadsPerBlock),
          device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
}

template <class T>
ProjectParams<T> params_of(const ProjectPlan& plan, const Projection<T>& projection,
                           const RankRange* const* ranges) {
  ProjectParams<T> params{};
  const auto add = [&](const Table<T>& table) {
    const int32_t k = params.num_tables++;
    params.tables[k] = device_table(table, ranges[k], plan.tables[k].first_counter, plan.tables[k].unit);
  };
  for (int64_t k = 0; k < projection.num_values; ++k) add(projection.values[k]);
  for (int64_t k = 0; k < projection.num_tiles; ++k) {
    const TileProjection<T>& tile = projection.tiles[k];
    const TilePlan& planned = plan.tiles[k];
    params.tiles[k] = {planned.grid,        static_cast<T>(std::sqrt(static_cast<double>(tile.tile.size()))),
                       planned.first_tile,  planned.num_chunk_sizes,
                       planned.first_table, planned.counted};
    for (int64_t i = 0; i < tile.num_tables; ++i)
      for (const Table<T>& table : tile.tables[i]) add(table);
  }
  for (int32_t k = 0; k < plan.num_mixing; ++k) params.mixing[k] = plan.mixing[k];
  params.size = plan.size;
  params.slice_size = plan.slice_size;
  params.blocks_per_team = plan.blocks_per_team;
  params.slices_shared = plan.slices_shared;
  params.chunks_inside_blocks = plan.chunks_inside_blocks;
  params.layout = plan.layout;
  params.num_values = plan.num_values;
  params.num_tiles = plan.num_tiles;
  params.num_mixing = plan.num_mixing;
  return params;
}

// Launch of the projection kernel. Without mixing domains, a single projection.
template <class T>
void dispatch_project(const Launch& launch, T* x, int64_t batch, const Projection<T>& projection,
                      const RankRange* const* ranges, const Mixing* mixing, int64_t num_mixing) {
  if (batch == 0) return;
  const ProjectPlan plan =
      plan_project(projection, batch, mixing, num_mixing, current_device(), kSlicesOffset<T>);
  ProjectParams<T> params = params_of(plan, projection, ranges);
  params.x = x;
  params.batch = batch;
  const size_t zeroed_bytes = plan.layout.zeroed_bytes * static_cast<size_t>(plan.num_teams);
  params.zeroed_memory = allocate<unsigned char>(launch, static_cast<int64_t>(zeroed_bytes));
  params.memory =
      allocate<unsigned char>(launch, static_cast<int64_t>(plan.layout.rest_bytes) * plan.num_teams);
  check(cudaMemsetAsync(params.zeroed_memory, 0, zeroed_bytes, launch.stream), "clearing memory");

  allow_shared_memory(project_kernel<T>);
  if (resident_blocks(project_kernel<T>, plan.block_threads, plan.shared_bytes) < 1)
    throw std::runtime_error("noisetilt: a multiprocessor of this GPU cannot hold a block of " +
                             std::to_string(plan.block_threads) + " threads with " +
                             std::to_string(plan.shared_bytes) +
                             " bytes of shared memory, which the projection kernel needs");
  enqueue(launch, project_kernel<T>, Residence::all_at_once, plan.num_teams * plan.blocks_per_team,
          plan.block_threads, plan.shared_bytes, params);
}

}  // namespace

template <class T>
void project(const Launch& launch, T* x, int64_t batch, const Projection<T>& projection,
             const RankRange* const* ranges) {
  dispatch_project(launch, x, batch, projection, ranges, nullptr, 0);
}

template <class T>
void project_mixing_domains(const Launch& launch, T* x, int64_t batch, const Projection<T>& projection,
                            const RankRange* const* ranges, const Mixing* mixing, int64_t num_mixing) {
  if (num_mixing > 0) dispatch_project(launch, x, batch, projection, ranges, mixing, num_mixing);
}

#define NOISETILT_INSTANTIATE(T)                                                                       \
  template void project<T>(const Launch&, T*, int64_t, const Projection<T>&, const RankRange* const*); \
  template void project_mixing_domains<T>(const Launch&, T*, int64_t, const Projection<T>&,            \
                                          const RankRange* const*, const Mixing*, int64_t);
NOISETILT_INSTANTIATE(float)
NOISETILT_INSTANTIATE(double)

}  // namespace noisetilt::cuda
