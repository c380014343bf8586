// Table of the buffers of the projection kernel in global memory. Every team has its own buffers. Plain C++.
//
// The host plan (whitening_plan.h) lays out the buffers as the table says. The kernel finds them by name
// (whitening_storage.cuh).
#pragma once

#include <cstddef>
#include <cstdint>

namespace noisetilt::cuda {

enum class Buffer {
  counters,
  verdicts,
  arrivals,
  crowds,
  cursors,
  columns,
  ranks,
  entries,
  kept_entries,
  digit_counts,
  measured,
  projected,
  means,
  sample,
  slice,
  spare_slice,
};
constexpr int kNumBuffers = 16;

// Number of items in one copy of a buffer.
enum class Items {
  one,
  counters,               // of all tables
  steps,                  // kMaxSteps
  values,                 // of a sample
  values_if_long_chunks,  // none if all chunks are counted
  values_if_mixing,       // none without mixing domains
  values_if_not_shared,   // none if slices lie in shared memory
  values_if_not_shared_and_mixing,
  digits,                   // of every block of the team
  tiles,                    // of all tile sizes
  tile_statistics,          // two for each of these tiles
  largest_tile_statistics,  // two for each tile of the size with the most tiles
};

enum class ItemType { word, verdict, value, entry };

// What a buffer holds before the launch, and after it.
enum class Contents {
  zero_always,  // before and after: launches that follow each other can use the same memory, cleared once
  zero_before,
  any,
};
constexpr int kNumContents = 3;

struct BufferRow {
  Buffer buffer;
  const char* name;
  int copies;  // two: one is written while slow blocks may still read the other
  Items items;
  ItemType type;
  Contents contents;
  const char *writer, *reader;
  const char* barrier;  // between writer and reader
};

// clang-format off
constexpr BufferRow kBuffers[kNumBuffers] = {
    {Buffer::counters, "counters", 1, Items::counters, ItemType::word, Contents::zero_always,
     "TeamOrderStats::count, atomically",
     "TeamOrderStats::sum_up, which clears them",
     "team barrier between count and sum_up, and after sum_up"},
    {Buffer::verdicts, "verdicts", 2, Items::steps, ItemType::verdict, Contents::zero_before,
     "TeamOrderStats::count and sum_up; sum_up of the next round clears them",
     "TeamOrderStats::verdict, every block",
     "team barrier after sum_up"},
    {Buffer::arrivals, "arrivals", 1, Items::one, ItemType::word, Contents::zero_before,
     "Team::sync, atomically",
     "Team::sync",
     "none: the counter is the team barrier"},
    {Buffer::crowds, "crowds", 1, Items::counters, ItemType::word, Contents::any,
     "TeamOrderStats::sum_up",
     "TeamOrderStats::gather, rank_in_order and rank_own",
     "team barrier after sum_up"},
    {Buffer::cursors, "cursors", 1, Items::counters, ItemType::word, Contents::any,
     "TeamOrderStats::sum_up; gather advances them atomically",
     "TeamOrderStats::rank_in_order and rank_own",
     "team barrier after sum_up, and after gather"},
    {Buffer::columns, "columns", 1, Items::values, ItemType::word, Contents::any,
     "TeamOrderStats::gather, own values; project_2os_by_sorting",
     "TeamOrderStats::rank_own, own values; project_2os_by_sorting, when it sorts by column",
     "team barrier after gather, and before that sort"},
    {Buffer::ranks, "ranks", 1, Items::values, ItemType::word, Contents::any,
     "TeamOrderStats::rank_in_order and project_2os_by_sorting, values of all blocks",
     "TeamOrderStats::rank_own and project_2os_by_sorting, own values",
     "team barrier between"},
    {Buffer::entries, "entries", 2, Items::values, ItemType::entry, Contents::any,
     "TeamOrderStats::gather and project_2os_by_sorting; passes of TeamRadixSort, to and fro",
     "TeamOrderStats::rank_in_order, rank_own and project_2os_by_sorting; the next pass of TeamRadixSort",
     "team barrier after gather, and after every pass"},
    {Buffer::kept_entries, "kept_entries", 1, Items::values_if_long_chunks, ItemType::entry, Contents::any,
     "passes of TeamRadixSort that must keep their input",
     "the next pass of TeamRadixSort, and project_2os_by_sorting",
     "team barrier after every pass"},
    {Buffer::digit_counts, "digit_counts", 1, Items::digits, ItemType::word, Contents::any,
     "TeamRadixSort::pass, counts of the own block",
     "TeamRadixSort::pass, counts of all blocks",
     "team barrier in the middle of the pass"},
    {Buffer::measured, "measured", 2, Items::tile_statistics, ItemType::value, Contents::any,
     "TeamTileStats::measure, own tiles",
     "TeamTileStats::count, project_tile_stats and rescale; TeamOrderStats::project_2os_small, of all blocks",
     "team barrier after measure, or after count; __syncthreads before count if blocks hold whole chunks"},
    {Buffer::projected, "projected", 2, Items::largest_tile_statistics, ItemType::value, Contents::any,
     "TeamTileStats::project_tile_stats for one chunk size, own tiles",
     "TeamTileStats::project_tile_stats for the next chunk size, tiles of all blocks; rescale, own tiles",
     "team barrier before the next chunk size; __syncthreads before rescale"},
    {Buffer::means, "means", 1, Items::tiles, ItemType::value, Contents::any,
     "TeamTileStats::measure, own tiles",
     "TeamTileStats::rescale, own tiles",
     "the same as for measured"},
    {Buffer::sample, "sample", 2, Items::values_if_mixing, ItemType::value, Contents::any,
     "AgentProject::publish, own slice; butterfly_inverse, tiles of all blocks",
     "AgentProject::butterfly_forward and butterfly_inverse, tiles of all blocks",
     "team barrier after publish, and after every step of butterfly_inverse"},
    {Buffer::slice, "slice", 1, Items::values_if_not_shared, ItemType::value, Contents::any,
     "AgentProject::run, own slice",
     "AgentProject::run, own slice",
     "__syncthreads"},
    {Buffer::spare_slice, "spare_slice", 1, Items::values_if_not_shared_and_mixing, ItemType::value,
     Contents::any,
     "AgentProject::run, own slice",
     "AgentProject::run, own slice",
     "__syncthreads"},
};
// clang-format on

// Number of the first copy of a buffer among all copies.
constexpr int first_copy(Buffer buffer) {
  int copy = 0;
  for (int row = 0; row < static_cast<int>(buffer); ++row) copy += kBuffers[row].copies;
  return copy;
}
template <Buffer kBuffer>
constexpr int kFirstCopy = first_copy(kBuffer);
constexpr int kNumCopies = kFirstCopy<Buffer::spare_slice> + 1;

constexpr bool rows_are_in_order() {
  for (int row = 0; row < kNumBuffers; ++row)
    if (static_cast<int>(kBuffers[row].buffer) != row) return false;
  return true;
}
static_assert(rows_are_in_order(), "a row for every buffer, in their order");

// Offsets in bytes of the copies within the memory of a team. Buffers of the same contents lie together.
struct BufferLayout {
  size_t offsets[kNumCopies];
  size_t bytes[kNumContents];  // of a team
};

}  // namespace noisetilt::cuda
