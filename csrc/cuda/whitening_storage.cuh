// Parameters and storage of the projection kernel.
#pragma once

#include "order_stats.cuh"
#include "tile_stats.cuh"
#include "whitening_buffers.h"
#include "whitening_plan.h"

namespace noisetilt::cuda {

template <class T>
struct TileParams {
  TileGrid grid;
  T root;  // square root of the tile's size
  int32_t first_tile, num_chunk_sizes, first_table;
  bool counted;
};

// The plan and the pointers of a launch, as kernel parameters.
template <class T>
struct ProjectParams {
  T* x;
  int64_t batch;
  int32_t size, slice_size, blocks_per_team;
  bool slices_shared;
  bool chunks_inside_blocks;
  BufferLayout layout;
  unsigned char* memory[kNumContents];  // of all teams
  int32_t num_values, num_tiles, num_mixing;
  DeviceTable<T> tables[kMaxTables];  // of the values; then for each tile of means and energies, alternating
  TileParams<T> tiles[kMaxTiles];
  MixingPlan mixing[kMaxMixing];
  int32_t num_tables;
};
static_assert(sizeof(ProjectParams<double>) <= 4096, "kernel parameters that every driver accepts");

// The plan computes sizes without these types.
static_assert(sizeof(Verdict) == 8 && sizeof(Entry<float>) == 8 && sizeof(Entry<double>) == 16,
              "item_bytes() in whitening_plan.h");

// Shared memory of a block. Behind it lie the block's slices, if they fit.
template <class T>
struct SharedStorage {
  // A copy: parameters would be read through the first-level cache, which every team barrier empties.
  ProjectParams<T> params;
  typename TeamOrderStats<T>::GlobalStorage order_stats;
  typename TeamTileStats<T>::GlobalStorage tile_stats;
  Buckets buckets[kMaxColumns];  // of every column of the tables
  Buckets scaled[Policy::OrderStats::kMaxCountedChunk];
  int32_t scale;
  // State of the tests of each unit in advance: `rest` is the number of projections left without a test. It
  // starts at `patience`, which grows each time the unit is found unsettled.
  struct {
    int32_t rest, patience;
  } tests[kMaxUnits];
};

// Offsets in a block's shared memory: of the storage of TeamOrderStats, and of the slices.
template <class T>
constexpr size_t kOrderStatsOffset = aligned(sizeof(SharedStorage<T>));
template <class T>
constexpr size_t kSlicesOffset =
    kOrderStatsOffset<T> + aligned(sizeof(typename TeamOrderStats<T>::TempStorage));

// Addresses of the buffers of a team.
template <class T>
struct BufferPointers {
  const ProjectParams<T>& params;
  uint32_t team;

  template <class U, Buffer kBuffer>
  __device__ U* get(int32_t copy = 0) const {
    constexpr auto contents = static_cast<int>(kBuffers[static_cast<int>(kBuffer)].contents);
    return reinterpret_cast<U*>(params.memory[contents] + team * params.layout.bytes[contents] +
                                params.layout.offsets[kFirstCopy<kBuffer> + copy]);
  }
};

}  // namespace noisetilt::cuda
