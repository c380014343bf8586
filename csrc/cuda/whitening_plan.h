// Host plan of the projection kernel: sizes, slices, buffers and grid of a launch. Plain C++, tested alone by
// tests/cuda_emulation/test_whitening_plan.py.
//
// The kernel projects onto *units*, one after the other: the values for each of their chunk sizes, then the
// tile statistics for each tile size. A unit has a *step* for each chunk size, with one table (values), or
// two (means and energies of tiles). Tiles have one more step, without tables: those that are not finite
// become NaN.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>

#include "../problem.h"
#include "../tiling.h"
#include "device.h"
#include "policy.h"
#include "rank_range.h"
#include "tile_grid.h"
#include "whitening_buffers.h"

namespace noisetilt::cuda {

// Capacity of the kernel's parameters.
constexpr int kMaxTables = 40, kMaxTiles = 8, kMaxMixing = 8;
constexpr int kMaxChunkSizes = 8;  // of the values
constexpr int kMaxSteps = kMaxTables + kMaxTiles;
constexpr int kMaxColumns = kMaxTables * Policy::OrderStats::kMaxCountedChunk;

struct TablePlan {
  int32_t first_counter;  // number of counters of the tables before
  int32_t first_column;   // number of columns of the tables before that are counted
  int32_t step;
};

struct TilePlan {
  TileGrid grid;
  int32_t first_tile;  // number of tiles of the sizes before
  int32_t num_chunk_sizes;
  int32_t first_table, first_step;
  bool counted;  // no chunk is sorted
};

struct MixingPlan {
  TileGrid grid;
  int32_t repeats;
  bool inside_blocks;  // no tile is divided between blocks
};

struct ProjectPlan {
  int32_t num_values, num_tiles, num_mixing, num_tables, num_steps;
  TablePlan tables[kMaxTables];
  TilePlan tiles[kMaxTiles];
  MixingPlan mixing[kMaxMixing];

  int32_t size;        // of a sample
  int32_t slice_size;  // values of a block; fewer or none in the last blocks of a team
  int32_t blocks_per_team;
  int64_t num_teams;
  bool clusters;              // teams are clusters: a power of two of blocks, the last of which may be idle
  bool slices_shared;         // slices lie in shared memory
  bool chunks_inside_blocks;  // no chunk of tile statistics that is counted is divided between blocks

  int block_threads;
  size_t shared_bytes;  // of a block
  BufferLayout layout;

  // Memory of all teams.
  size_t bytes(Contents contents) const {
    return layout.bytes[static_cast<int>(contents)] * static_cast<size_t>(num_teams);
  }
};

constexpr size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

// Division of a sample into slices, one for each block of a team.
struct Slicing {
  int64_t slice_size, num_blocks;
  bool shared;
};

// Slices are multiples of `granule` values. Every block keeps `slices_per_block` slices. There are up to
// wanted_blocks blocks. If slices do not fit into shared_bytes then, but do with max_blocks, there are more.
inline Slicing slice_sample(int64_t size, int64_t granule, int64_t wanted_blocks, int64_t max_blocks,
                            int64_t shared_bytes, int64_t slices_per_block, int64_t value_bytes) {
  const int64_t granules = size / granule;
  const int64_t granules_that_fit = shared_bytes / (slices_per_block * granule * value_bytes);
  int64_t blocks = std::min(granules, wanted_blocks);
  bool shared = false;
  if (granules_that_fit > 0 && (granules + granules_that_fit - 1) / granules_that_fit <= max_blocks) {
    blocks = std::max(blocks, (granules + granules_that_fit - 1) / granules_that_fit);
    shared = true;
  }
  const int64_t per_slice = (granules + blocks - 1) / blocks;
  return {per_slice * granule, (granules + per_slice - 1) / per_slice, shared};
}

// Sizes that decide how many items a buffer has.
struct BufferSizes {
  int64_t counters, values, tiles, largest_tiles, blocks, value_bytes;
  bool long_chunks, mixing, slices_shared;
};

inline int64_t num_items(Items items, const BufferSizes& sizes) {
  switch (items) {
    case Items::one:
      return 1;
    case Items::counters:
      return sizes.counters;
    case Items::steps:
      return kMaxSteps;
    case Items::values:
      return sizes.values;
    case Items::values_if_long_chunks:
      return sizes.long_chunks ? sizes.values : 0;
    case Items::values_if_mixing:
      return sizes.mixing ? sizes.values : 0;
    case Items::values_if_not_shared:
      return sizes.slices_shared ? 0 : sizes.values;
    case Items::values_if_not_shared_and_mixing:
      return sizes.slices_shared || !sizes.mixing ? 0 : sizes.values;
    case Items::digits:
      return sizes.blocks << Policy::RadixSort::kDigitBits;
    case Items::tiles:
      return sizes.tiles;
    case Items::tile_statistics:
      return 2 * sizes.tiles;
    case Items::largest_tile_statistics:
      return 2 * sizes.largest_tiles;
  }
  return 0;
}

inline int64_t item_bytes(ItemType type, int64_t value_bytes) {
  switch (type) {
    case ItemType::word:
      return 4;
    case ItemType::verdict:
      return 8;
    case ItemType::value:
      return value_bytes;
    case ItemType::entry:
      return 2 * value_bytes;
  }
  return 0;
}

inline BufferLayout lay_out(const BufferSizes& sizes) {
  BufferLayout layout{};
  int copy = 0;
  for (const BufferRow& row : kBuffers) {
    size_t& end = layout.bytes[static_cast<int>(row.contents)];
    const int64_t bytes = num_items(row.items, sizes) * item_bytes(row.type, sizes.value_bytes);
    for (int k = 0; k < row.copies; ++k) {
      layout.offsets[copy++] = end;
      end += aligned(static_cast<size_t>(bytes));
    }
  }
  return layout;
}

// Plan for `batch` > 0 samples, whose planes all tiles divide. `fixed_shared_bytes`: shared memory of a block
// beside its slices. Throws std::invalid_argument if the problem exceeds the kernel's capacity. Reads only
// the sizes of the tables.
template <class T>
ProjectPlan plan_project(const Projection<T>& projection, int64_t batch, const Mixing* mixing,
                         int64_t num_mixing, const DeviceLimits& device, size_t fixed_shared_bytes) {
  const Shape& shape = projection.shape;
  const int64_t size = shape.size();
  if (projection.num_values > kMaxChunkSizes || projection.num_tiles > kMaxTiles || num_mixing > kMaxMixing)
    throw std::invalid_argument("noisetilt: got " + std::to_string(projection.num_values) + " chunk sizes, " +
                                std::to_string(projection.num_tiles) + " tile sizes and " +
                                std::to_string(num_mixing) +
                                " mixing domains; the CUDA kernels take up to 8 of each");
  ProjectPlan plan{};
  // `granule`: slices that are multiples of it divide no tile, and no chunk of values that is counted.
  int64_t granule = 1, num_counters = 0, num_columns = 0, num_tiles = 0, largest_tiles = 0;
  bool long_chunks = false;
  const auto add_table = [&](const Table<T>& table, bool counted) {
    if (plan.num_tables == kMaxTables)
      throw std::invalid_argument("noisetilt: the CUDA kernels take up to 40 confidence tables at once");
    plan.tables[plan.num_tables++] = {static_cast<int32_t>(num_counters), static_cast<int32_t>(num_columns),
                                      plan.num_steps};
    if (counted) num_counters += table.chunk_size * num_buckets(table.num_chunks, table.chunk_size);
    num_columns += is_counted(table.chunk_size) ? table.chunk_size : 0;
    long_chunks |= !is_counted(table.chunk_size);
  };
  for (int64_t k = 0; k < projection.num_values; ++k) {
    const Table<T>& table = projection.values[k];
    add_table(table, true);
    ++plan.num_steps;
    if (is_counted(table.chunk_size)) granule = std::lcm(granule, table.chunk_size);
  }
  for (int64_t k = 0; k < projection.num_tiles; ++k) {
    const TileProjection<T>& tile = projection.tiles[k];
    TilePlan& planned = plan.tiles[k];
    planned = {grid_of(tile.region.tile, shape),
               static_cast<int32_t>(num_tiles),
               static_cast<int32_t>(tile.num_tables),
               plan.num_tables,
               plan.num_steps,
               true};
    for (int64_t i = 0; i < tile.num_tables; ++i, ++plan.num_steps) {
      for (const Table<T>& table : tile.tables[i])
        add_table(table, !is_tiny(table.num_chunks, table.chunk_size));
      planned.counted &= is_counted(tile.tables[i][0].chunk_size);
    }
    const int64_t in_sample = size / tile.region.tile.size();
    ++plan.num_steps;
    granule = std::lcm(granule, planned.grid.band());
    num_tiles += in_sample;
    largest_tiles = std::max(largest_tiles, in_sample);
  }
  if (num_counters > INT32_MAX || 2 * num_tiles > INT32_MAX)
    throw std::invalid_argument("noisetilt: the confidence tables for a sample of " + std::to_string(size) +
                                " values have " + std::to_string(num_counters) + " buckets and " +
                                std::to_string(2 * num_tiles) +
                                " tile statistics; the CUDA kernels count up to 2147483647 of each");

  // Blocks that hold whole mixing tiles exchange nothing, but there may be few such blocks.
  int64_t mixing_granule = granule;
  for (int64_t k = 0; k < num_mixing; ++k) {
    const Tile tile = mixing_regions(shape, mixing[k].tile).regions[0].tile;
    plan.mixing[k] = {grid_of(tile, shape), static_cast<int32_t>(mixing[k].repeats), false};
    mixing_granule = std::lcm(mixing_granule, plan.mixing[k].grid.band());
  }
  const int64_t slices_per_block = num_mixing > 0 ? 2 : 1;
  const auto slice = [&](int64_t max_blocks) {
    const int64_t wanted_blocks = std::clamp<int64_t>(device.num_sms / batch, 1, max_blocks);
    const auto slice_by = [&](int64_t granule) {
      return slice_sample(size, granule, wanted_blocks, max_blocks,
                          device.max_shared_bytes - static_cast<int64_t>(fixed_shared_bytes),
                          slices_per_block, sizeof(T));
    };
    const Slicing slicing = slice_by(mixing_granule), finer = slice_by(granule);
    const bool prefer_finer = finer.num_blocks >= Policy::Project::kMinBlocksGained * slicing.num_blocks ||
                              (finer.shared && !slicing.shared);
    return prefer_finer ? finer : slicing;
  };
  Slicing slicing{};
  if (device.max_cluster_blocks > 0) slicing = slice(std::min(device.num_sms, device.max_cluster_blocks));
  plan.clusters = slicing.shared;
  // A sample that does not fit into the shared memory of a cluster has a larger team.
  if (!plan.clusters) slicing = slice(device.num_sms);

  for (int64_t k = 0; k < num_mixing; ++k)
    plan.mixing[k].inside_blocks = slicing.slice_size % plan.mixing[k].grid.band() == 0;
  plan.chunks_inside_blocks = true;
  for (int64_t k = 0; k < projection.num_tiles; ++k) {
    const TileProjection<T>& tile = projection.tiles[k];
    for (int64_t i = 0; i < tile.num_tables; ++i) {
      const Table<T>& table = tile.tables[i][0];
      plan.chunks_inside_blocks &= is_tiny(table.num_chunks, table.chunk_size) ||
                                   slicing.slice_size / tile.region.tile.size() % table.chunk_size == 0;
    }
  }

  plan.num_values = static_cast<int32_t>(projection.num_values);
  plan.num_tiles = static_cast<int32_t>(projection.num_tiles);
  plan.num_mixing = static_cast<int32_t>(num_mixing);
  plan.size = static_cast<int32_t>(size);
  plan.slice_size = static_cast<int32_t>(slicing.slice_size);
  plan.blocks_per_team = static_cast<int32_t>(slicing.num_blocks);
  if (plan.clusters)
    for (plan.blocks_per_team = 1; plan.blocks_per_team < slicing.num_blocks;) plan.blocks_per_team *= 2;
  plan.num_teams = std::min(batch, std::max<int64_t>(1, device.num_sms / plan.blocks_per_team));
  plan.slices_shared = slicing.shared;
  plan.block_threads =
      static_cast<int>(std::min<int64_t>(Policy::Project::kBlockThreads, device.max_block_threads));
  plan.shared_bytes =
      fixed_shared_bytes +
      (slicing.shared ? static_cast<size_t>(slices_per_block * slicing.slice_size) * sizeof(T) : 0);
  plan.layout = lay_out({num_counters, size, num_tiles, largest_tiles, plan.blocks_per_team, sizeof(T),
                         long_chunks, num_mixing > 0, slicing.shared});
  return plan;
}

}  // namespace noisetilt::cuda
