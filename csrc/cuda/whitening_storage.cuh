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
  int32_t first_tile, num_tiles, num_chunk_sizes, first_table, first_step;
  bool counted;
};

// The plan and the pointers of a launch, as kernel parameters.
template <class T>
struct ProjectParams {
  T* x;
  int64_t batch;
  int32_t size, slice_size, blocks_per_team;
  bool clusters, chunks_inside_blocks;
  BufferLayout layout;
  unsigned char* memory[kNumContents];  // of all teams
  int32_t num_values, num_tiles, num_mixing, num_steps;
  DeviceTable<T> tables[kMaxTables];  // of the values; then for each tile of means and energies, alternating
  TileParams<T> tiles[kMaxTiles];
  MixingPlan mixing[kMaxMixing];
  int32_t num_tables;
};
static_assert(sizeof(ProjectParams<double>) <= 4096, "kernel parameters that every driver accepts");

// The plan computes sizes without these types.
static_assert(sizeof(Verdict) == 8 && sizeof(Entry<float>) == 8 && sizeof(Entry<double>) == 16,
              "item_bytes() in whitening_plan.h");

// A mixing domain in shared memory.
struct MixingDomain {
  FastTileGrid grid;
  int32_t repeats;
  bool inside_blocks;
};

// Shared memory of a block. Behind it lie the block's slices, if they fit (kShared). Functions that are not
// inlined find all of their state here: none of it lies in local memory.
template <class T, bool kShared>
struct SharedStorage {
  TeamOrderStats<T> order_stats;
  TeamTileStats<T, kShared> tile_stats;
  TeamTable<T> tables[kMaxTables + 1];
  TileProblem<T> tiles[kMaxTiles];
  MixingDomain mixing[kMaxMixing];
  Buckets buckets[kMaxColumns];  // of every column of the tables
  Buckets scaled[Policy::OrderStats::kMaxCountedChunk];
  int32_t scale;
};

// Offset of the slices in a block's shared memory.
template <class T>
constexpr size_t kSlicesOffset = aligned(sizeof(SharedStorage<T, true>));
static_assert(sizeof(SharedStorage<float, true>) == sizeof(SharedStorage<float, false>));

}  // namespace noisetilt::cuda
