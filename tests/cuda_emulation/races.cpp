// Detection of races in shared memory. The kernels are compiled with -fsanitize=thread, so every access calls
// a function of ThreadSanitizer's runtime. The functions here are linked in its place. A race: two threads
// access a byte, at least one of them writes, not both accesses are atomic, and nothing orders them.
// __syncthreads orders them, and within a warp __syncwarp. Shuffles and votes do not.
#include <array>

#include "emulation.h"

namespace emulation {
namespace {

// Last access to a byte.
struct Access {
  const void* code;  // null: none so far
  uint32_t thread, phase, moment;
  bool atomic;
};

struct Byte {
  Access write, read;
};

struct History {
  std::vector<Byte> bytes;
  uint32_t phase;  // number of barriers that the block has passed
  // seen[thread][lane]: the last moment of a lane of the thread's warp that is ordered before the thread's
  // next access. A lane's moments are the intervals between its __syncwarps.
  std::vector<std::array<uint32_t, kWarpSize>> seen;
};
std::vector<History> histories;  // of the resident blocks

History& history_of(const Block& block) {
  return histories[static_cast<size_t>(&block - grid->blocks.data())];
}

uint32_t number_of(const Fiber& fiber) {
  return static_cast<uint32_t>(fiber.warp - fiber.warp->block->warps.data()) * kWarpSize + fiber.lane;
}

void check(const void* address, size_t bytes, bool write, bool atomic, const void* code) {
  if (!current) return;
  const Block& block = *current->warp->block;
  const size_t begin = static_cast<size_t>(static_cast<const unsigned char*>(address) - block.shared.data());
  if (begin >= block.shared.size()) return;
  History& history = history_of(block);
  const uint32_t thread = number_of(*current);
  const auto& seen = history.seen[thread];
  const Access now{static_cast<const char*>(code) - 1, thread, history.phase, seen[current->lane], atomic};
  for (size_t k = begin; k < std::min(begin + bytes, block.shared.size()); ++k) {
    Byte& byte = history.bytes[k];
    for (const Access* earlier : {&byte.write, write ? &byte.read : nullptr}) {
      if (!earlier || !earlier->code || earlier->thread == thread || earlier->phase != history.phase)
        continue;
      if (earlier->atomic && atomic) continue;
      const bool same_warp = earlier->thread / kWarpSize == thread / kWarpSize;
      if (same_warp && seen[earlier->thread % kWarpSize] >= earlier->moment) continue;
      fail("race at byte " + std::to_string(k) + " of shared memory: " + place_of(now.code) +
           (write ? " writes" : " reads") + " what " + place_of(earlier->code) + " of thread " +
           std::to_string(earlier->thread) + " has accessed");
    }
    (write ? byte.write : byte.read) = now;
  }
}

}  // namespace

void block_started(const Block& block) {
  histories.resize(grid->blocks.size());
  History& history = history_of(block);
  history.bytes.assign(block.shared.size(), {});
  history.phase = 0;
  history.seen.assign(grid->num_threads, {});
  for (size_t t = 0; t < grid->num_threads; ++t) history.seen[t][t % kWarpSize] = 1;
}

void block_synchronized(const Block& block) { ++history_of(block).phase; }

void lanes_synchronized(const Warp& warp, unsigned mask) {
  History& history = history_of(*warp.block);
  std::array<uint32_t, kWarpSize> past{};
  for (unsigned lane = 0; lane < kWarpSize; ++lane)
    if (mask >> lane & 1)
      for (unsigned k = 0; k < kWarpSize; ++k)
        past[k] = std::max(past[k], history.seen[number_of(warp.lanes[lane])][k]);
  for (unsigned lane = 0; lane < kWarpSize; ++lane)
    if (mask >> lane & 1) {
      auto& seen = history.seen[number_of(warp.lanes[lane])];
      seen = past;
      ++seen[lane];
    }
}

void atomic_access(const void* address, size_t bytes, const void* code) {
  check(address, bytes, true, true, code);
}

}  // namespace emulation

extern "C" {
// called by host code
char __tsan_atomic8_load(const volatile char* p, int) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
int __tsan_atomic32_fetch_add(volatile int* p, int value, int) {
  return __atomic_fetch_add(p, value, __ATOMIC_SEQ_CST);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
#define ACCESS(name, size)                                                                                  \
  void __tsan_read##name(void* p) { emulation::check(p, size, false, false, __builtin_return_address(0)); } \
  void __tsan_write##name(void* p) { emulation::check(p, size, true, false, __builtin_return_address(0)); }
ACCESS(1, 1)
ACCESS(2, 2)
ACCESS(4, 4)
ACCESS(8, 8)
ACCESS(16, 16)
#undef ACCESS
void __tsan_read_range(void* p, size_t n) {
  emulation::check(p, n, false, false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t n) {
  emulation::check(p, n, true, false, __builtin_return_address(0));
}
}
