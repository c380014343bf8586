// Tracing of memory. The kernels are compiled with -fsanitize=thread, so every access calls a function of
// ThreadSanitizer's runtime, just before the access. The functions here are linked in its place. races.cpp
// gets the accesses to shared memory, views.cpp those to global memory.
#include "tracing.h"

namespace emulation {
namespace {

std::vector<Order> orders;  // of the resident blocks

uint32_t number_of(const Fiber& fiber) {
  return static_cast<uint32_t>(fiber.warp - fiber.warp->block->warps.data()) * kWarpSize + fiber.lane;
}

enum class Kind { ordinary, strong };  // strong: atomic or volatile

bool has_in_shared_memory(const Block& block, const void* address) {
  const auto* const at = static_cast<const unsigned char*>(address);
  return at >= block.shared.data() && at < block.shared.data() + block.shared.size();
}

// Block of the current cluster that has the address in its shared memory, or null.
const Block* owner_of(const void* address) {
  const Block& mine = *current->warp->block;
  if (has_in_shared_memory(mine, address)) return &mine;
  for (unsigned rank = 0; rank < grid->blocks_per_cluster; ++rank)
    if (const Block& block = mine.cluster->blocks[rank]; has_in_shared_memory(block, address)) return &block;
  return nullptr;
}

void access(const void* address, size_t bytes, bool write, Kind kind, const void* code) {
  if (!current) return;
  if (const Block* const block = owner_of(address)) {
    const void* const place = static_cast<const char*>(code) - 1;
    if (!block->live)
      fail(place_of(place) + " accesses shared memory of block " + text(block->index) + ", which has ended");
    races::access(*block, address, bytes, write, kind == Kind::strong, place);
  } else if (views::is_global(address)) {
    if (kind == Kind::strong)
      views::strong_access(address, bytes, write);
    else if (write)
      views::store(address, bytes);
    else
      views::load(address, bytes);
  }
}

}  // namespace

void Order::start(size_t num_threads) {
  phase_ = cluster_phase_ = 0;
  seen_.assign(num_threads, {});
  for (size_t t = 0; t < num_threads; ++t) seen_[t][t % kWarpSize] = 1;
}

void Order::synchronize_lanes(const Warp& warp, unsigned mask) {
  std::array<uint32_t, kWarpSize> past{};
  for (unsigned lane = 0; lane < kWarpSize; ++lane)
    if (mask >> lane & 1)
      for (unsigned k = 0; k < kWarpSize; ++k)
        past[k] = std::max(past[k], seen_[number_of(warp.lanes[lane])][k]);
  for (unsigned lane = 0; lane < kWarpSize; ++lane)
    if (mask >> lane & 1) {
      auto& seen = seen_[number_of(warp.lanes[lane])];
      seen = past;
      ++seen[lane];
    }
}

Moment Order::now() const {
  const uint32_t thread = number_of(*current);
  return {slot_of(*current->warp->block), cluster_phase_, thread, phase_, seen_[thread][current->lane]};
}

bool Order::is_before(const Moment& moment) const {
  if (moment.cluster_phase != cluster_phase_) return true;
  if (moment.block != slot_of(*current->warp->block)) return false;
  const uint32_t thread = number_of(*current);
  if (moment.thread == thread || moment.phase != phase_) return true;
  const bool same_warp = moment.thread / kWarpSize == thread / kWarpSize;
  return same_warp && seen_[thread][moment.thread % kWarpSize] >= moment.interval;
}

Order& order_of(const Block& block) { return orders[slot_of(block)]; }

void block_started(const Block& block) {
  orders.resize(grid->blocks.size());
  order_of(block).start(grid->num_threads);
  races::start(block);
  views::start(block);
}
void block_finished(const Block& block) { views::finish(block); }
void block_synchronized(const Block& block) { order_of(block).synchronize_block(); }
void cluster_synchronized(const Cluster& cluster) {
  for (unsigned rank = 0; rank < grid->blocks_per_cluster; ++rank)
    order_of(cluster.blocks[rank]).synchronize_cluster();
  views::synchronize(cluster);
}
void lanes_synchronized(const Warp& warp, unsigned mask) {
  order_of(*warp.block).synchronize_lanes(warp, mask);
}
void strong_access(const void* address, size_t bytes, bool write, const void* code) {
  access(address, bytes, write, Kind::strong, code);
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

#define TRACE(p, size, write, kind) \
  emulation::access(p, size, write, emulation::Kind::kind, __builtin_return_address(0))
#define ACCESS(size)                                                          \
  void __tsan_read##size(void* p) { TRACE(p, size, false, ordinary); }        \
  void __tsan_write##size(void* p) { TRACE(p, size, true, ordinary); }        \
  void __tsan_volatile_read##size(void* p) { TRACE(p, size, false, strong); } \
  void __tsan_volatile_write##size(void* p) { TRACE(p, size, true, strong); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
#undef ACCESS
void __tsan_read_range(void* p, size_t n) { TRACE(p, n, false, ordinary); }
void __tsan_write_range(void* p, size_t n) { TRACE(p, n, true, ordinary); }

// see traced.h
void* traced_memcpy(void* to, const void* from, size_t n) {
  TRACE(from, n, false, ordinary);
  TRACE(to, n, true, ordinary);
  return std::memcpy(to, from, n);
}
void* traced_memmove(void* to, const void* from, size_t n) {
  TRACE(from, n, false, ordinary);
  TRACE(to, n, true, ordinary);
  return std::memmove(to, from, n);
}
void* traced_memset(void* to, int value, size_t n) {
  TRACE(to, n, true, ordinary);
  return std::memset(to, value, n);
}
}
