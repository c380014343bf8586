// The whitening operator between its FFTs (DESIGN section 5): project(x), alone or after every butterfly step
// of the mixing domains, in one launch.
//
// A team of blocks works on a sample. Every block holds a slice of it, in shared memory if it fits, and does
// all work there that needs no other block. The blocks of a team meet at barriers, so they must be resident
// at once. Barriers are in global memory, and the launch is cooperative. Or each team is a cluster, with
// barriers in hardware. If there are more samples than teams, each team takes several in turn.
//
// Where tiles do not divide the plane, each region of tiles of one size takes a separate launch.
//
//   whitening_plan.h       host plan: slices, buffers, grid
//   whitening_buffers.h    table of the buffers: who writes, who reads, which barrier lies between
//   whitening_storage.cuh  kernel parameters and shared memory
//   whitening_agent.cuh    work of a block

#include <cmath>
#include <cstdlib>
#include <string>

#include "regions.cuh"
#include "runtime.h"
#include "whitening_agent.cuh"

namespace noisetilt::cuda {
namespace {

using Tuning = Policy::Project;

// kShared: slices lie in shared memory.
template <class T, bool kShared>
__global__ void __launch_bounds__(Tuning::kBlockThreads, Tuning::kMinBlocksPerSm)
    project_kernel(const __grid_constant__ ProjectParams<T> params) {
  AgentProject<T, kShared>(params).run();
}

template <class T>
auto* kernel_of(const ProjectPlan& plan) {
  return plan.slices_shared ? project_kernel<T, true> : project_kernel<T, false>;
}
Residence residence_of(const ProjectPlan& plan) {
  return plan.clusters ? Residence::clusters_of(plan.blocks_per_team) : Residence::all;
}

// Plan of a launch for `batch` > 0 samples.
template <class T>
ProjectPlan plan_launch(const Launch& launch, int64_t batch, const Projection<T>& projection,
                        const Mixing* mixing, int64_t num_mixing) {
  for (DeviceLimits limits = launch.device->limits;; limits.max_cluster_blocks /= 2) {
    ProjectPlan plan = plan_project(projection, batch, mixing, num_mixing, limits, kSlicesOffset<T>);
    if (!plan.clusters) return plan;
    const int64_t at_once = prepare_once(launch, kernel_of<T>(plan), residence_of(plan), plan.block_threads);
    plan.num_teams = std::min(plan.num_teams, at_once);
    if (at_once > 0) return plan;  // otherwise the device has no room for such a cluster
  }
}

template <class T>
ProjectParams<T> params_of(const ProjectPlan& plan, const Projection<T>& projection,
                           const RankRange* const* ranges) {
  ProjectParams<T> params{};
  const auto add = [&](const Table<T>& table) {
    const int32_t k = params.num_tables++;
    params.tables[k] = device_table(table, ranges[k], plan.tables[k].first_counter,
                                    plan.tables[k].first_column, plan.tables[k].step);
  };
  for (int64_t k = 0; k < projection.num_values; ++k) add(projection.values[k]);
  for (int64_t k = 0; k < projection.num_tiles; ++k) {
    const TileProjection<T>& tile = projection.tiles[k];
    const TilePlan& planned = plan.tiles[k];
    params.tiles[k] = {planned.grid,
                       static_cast<T>(std::sqrt(static_cast<double>(tile.region.tile.size()))),
                       planned.first_tile,
                       static_cast<int32_t>(plan.size / tile.region.tile.size()),
                       planned.num_chunk_sizes,
                       planned.first_table,
                       planned.first_step,
                       planned.counted};
    for (int64_t i = 0; i < tile.num_tables; ++i)
      for (const Table<T>& table : tile.tables[i]) add(table);
  }
  for (int32_t k = 0; k < plan.num_mixing; ++k) params.mixing[k] = plan.mixing[k];
  params.size = plan.size;
  params.slice_size = plan.slice_size;
  params.blocks_per_team = plan.blocks_per_team;
  params.clusters = plan.clusters;
  params.chunks_inside_blocks = plan.chunks_inside_blocks;
  params.layout = plan.layout;
  params.num_values = plan.num_values;
  params.num_tiles = plan.num_tiles;
  params.num_mixing = plan.num_mixing;
  params.num_steps = plan.num_steps;
  return params;
}

// Launch of the projection kernel. Without mixing domains, a single projection.
template <class T>
void dispatch_project(const Launch& launch, T* x, int64_t batch, const Projection<T>& projection,
                      const RankRange* const* ranges, const Mixing* mixing, int64_t num_mixing) {
  if (batch == 0) return;
  const ProjectPlan plan = plan_launch(launch, batch, projection, mixing, num_mixing);
  ProjectParams<T> params = params_of(plan, projection, ranges);
  params.x = x;
  params.batch = batch;
  const size_t zeros = plan.bytes(Contents::zero_always), cleared = plan.bytes(Contents::zero_before);
  reserve_cleared(launch, cleared + (launch.zeros.bytes < zeros ? zeros : 0));
  params.memory[static_cast<int>(Contents::zero_always)] = memory_of_zeros(launch, zeros);
  params.memory[static_cast<int>(Contents::zero_before)] = allocate_cleared(launch, cleared);
  params.memory[static_cast<int>(Contents::any)] = working_memory(launch, plan.bytes(Contents::any));
  enqueue(launch, kernel_of<T>(plan), residence_of(plan), plan.num_teams * plan.blocks_per_team,
          plan.block_threads, plan.shared_bytes, params);
}

// True if each tile size fills the planes with equal tiles: one launch can do it all.
template <class T>
bool is_even(const Projection<T>& projection, const Mixing* mixing, int64_t num_mixing) {
  const Shape& shape = projection.shape;
  return std::all_of(projection.tiles, projection.tiles + projection.num_tiles,
                     [&](const TileProjection<T>& tile) { return tile.region.fills(shape); }) &&
         std::all_of(mixing, mixing + num_mixing, [&](const Mixing& domain) {
           return mixing_regions(shape, domain.tile).regions[0].fills(shape);
         });
}

// Calls body(projection, ranges, region) for the values and for each region of tiles, in turn: a projection
// of samples that consist of the region alone. The values have no region.
template <class T, class Body>
void for_each_part(const Projection<T>& projection, const RankRange* const* ranges, const Body& body) {
  const Shape& shape = projection.shape;
  if (projection.num_values > 0)
    body(Projection<T>{shape, projection.values, projection.num_values, nullptr, 0}, ranges, nullptr);
  if (ranges != nullptr) ranges += projection.num_values;
  for (int64_t k = 0; k < projection.num_tiles; ++k) {
    TileProjection<T> own = projection.tiles[k];
    own.region = own.region.own();
    const Region& region = projection.tiles[k].region;
    body(Projection<T>{region.own_shape(shape), nullptr, 0, &own, 1}, ranges, &region);
    if (ranges != nullptr) ranges += 2 * own.num_tables;
  }
}

template <class T>
void project_parts(const Launch& launch, T* x, int64_t batch, const Projection<T>& projection,
                   const RankRange* const* ranges, T* packed) {
  const Shape& shape = projection.shape;
  const auto dispatch = [&](const Projection<T>& part, const RankRange* const* own, const Region* region) {
    if (region == nullptr || region->fills(shape))
      return dispatch_project(launch, x, batch, part, own, nullptr, 0);
    copy_region<true>(launch, x, packed, *region, batch, shape);
    dispatch_project(launch, packed, batch, part, own, nullptr, 0);
    copy_region<false>(launch, packed, x, *region, batch, shape);
  };
  for_each_part(projection, ranges, dispatch);
}

template <class T>
void mix_parts(const Launch& launch, T* x, int64_t batch, const Projection<T>& projection,
               const RankRange* const* ranges, const Mixing* mixing, int64_t num_mixing) {
  const Shape& shape = projection.shape;
  const int64_t size = batch * shape.size();
  T *packed = allocate<T>(launch, size), *now = x, *next = allocate<T>(launch, size);
  for (int64_t k = 0; k < num_mixing; ++k) {
    const Mixing& domain = mixing[k];
    for (int64_t step = 0; step < domain.repeats; ++step) {
      butterfly(launch, now, next, batch, shape, domain.tile, 1, false);
      std::swap(now, next);
      project_parts(launch, now, batch, projection, ranges, packed);
    }
    butterfly(launch, now, next, batch, shape, domain.tile, domain.repeats, true);
    std::swap(now, next);
  }
  if (now != x) copy_memory(launch, now, x, size);
}

// Memory of a projection.
struct StageBytes {
  size_t cleared, zeros, working;
};

// Memory of a projection that takes a launch for each part.
template <class T>
StageBytes bytes_of_parts(const Launch& launch, int64_t batch, const Projection<T>& projection) {
  StageBytes bytes{};
  for_each_part(projection, nullptr, [&](const Projection<T>& part, const RankRange* const*, const Region*) {
    const ProjectPlan plan = plan_launch(launch, batch, part, nullptr, 0);
    bytes.cleared += plan.bytes(Contents::zero_before);
    bytes.zeros = std::max(bytes.zeros, plan.bytes(Contents::zero_always));
    bytes.working = std::max(bytes.working, plan.bytes(Contents::any));
  });
  return bytes;
}

}  // namespace

DeviceLimits current_device() {
  int device = 0;
  check(cudaGetDevice(&device), "finding the current CUDA device");
  const auto attribute = [device](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device), "reading a device attribute");
    return value;
  };
  DeviceLimits limits{attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxThreadsPerBlock),
                      attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
  // Not the default, as long as nobody has measured that clusters are faster.
  const char* clusters = std::getenv("NOISETILT_CUDA_CLUSTERS");
  if (clusters != nullptr && std::string(clusters) == "1" && attribute(cudaDevAttrClusterLaunch))
    limits.max_cluster_blocks = Tuning::kMaxClusterBlocks;
  return limits;
}

template <class T>
void project(const Launch& launch, T* x, int64_t batch, const Projection<T>& projection,
             const RankRange* const* ranges) {
  if (is_even(projection, nullptr, 0))
    return dispatch_project(launch, x, batch, projection, ranges, nullptr, 0);
  if (batch == 0) return;
  project_parts(launch, x, batch, projection, ranges, allocate<T>(launch, batch * projection.shape.size()));
}

template <class T>
void project_mixing_domains(const Launch& launch, T* x, int64_t batch, const Projection<T>& projection,
                            const RankRange* const* ranges, const Mixing* mixing, int64_t num_mixing) {
  if (num_mixing == 0 || batch == 0) return;
  if (is_even(projection, mixing, num_mixing))
    dispatch_project(launch, x, batch, projection, ranges, mixing, num_mixing);
  else
    mix_parts(launch, x, batch, projection, ranges, mixing, num_mixing);
}

template <class T>
void reserve_for_whiten(const Launch& launch, int64_t batch, const Projection<T>& projection,
                        const Mixing* mixing, int64_t num_mixing) {
  if (batch == 0) return;
  if (!is_even(projection, mixing, num_mixing)) {
    int64_t times = 2;
    for (int64_t k = 0; k < num_mixing; ++k) times += mixing[k].repeats;
    const StageBytes bytes = bytes_of_parts(launch, batch, projection);
    reserve_cleared(launch, bytes_of_flags(batch) + static_cast<size_t>(times) * bytes.cleared + bytes.zeros);
    memory_of_zeros(launch, bytes.zeros);
    working_memory(launch, bytes.working);
    return;
  }
  const ProjectPlan plain = plan_launch(launch, batch, projection, nullptr, 0);
  size_t cleared = bytes_of_flags(batch) + 2 * plain.bytes(Contents::zero_before),
         zeros = plain.bytes(Contents::zero_always), working = plain.bytes(Contents::any);
  if (num_mixing > 0) {
    const ProjectPlan mixed = plan_launch(launch, batch, projection, mixing, num_mixing);
    cleared += mixed.bytes(Contents::zero_before);
    zeros = std::max(zeros, mixed.bytes(Contents::zero_always));
    working = std::max(working, mixed.bytes(Contents::any));
  }
  reserve_cleared(launch, cleared + zeros);
  memory_of_zeros(launch, zeros);
  working_memory(launch, working);
}

#define NOISETILT_INSTANTIATE(T)                                                                       \
  template void project<T>(const Launch&, T*, int64_t, const Projection<T>&, const RankRange* const*); \
  template void project_mixing_domains<T>(const Launch&, T*, int64_t, const Projection<T>&,            \
                                          const RankRange* const*, const Mixing*, int64_t);            \
  template void reserve_for_whiten<T>(const Launch&, int64_t, const Projection<T>&, const Mixing*, int64_t);
NOISETILT_INSTANTIATE(float)
NOISETILT_INSTANTIATE(double)

}  // namespace noisetilt::cuda
