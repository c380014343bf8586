// A CUDA device on the CPU. Every thread of a launch is a fiber of one operating-system thread. A fiber runs
// until it must wait; which fiber goes on next is random. A kernel that is right only for some order of its
// threads is therefore wrong for nearly every seed.
//
// A launch throws if threads wait for ever, or pass a wrong warp mask. Every write is visible to all threads
// at once, unless the accesses are traced: see tracing.cpp. Not found: violations of __launch_bounds__, too
// many registers. A loop that waits for memory without an atomic operation or a cached load hangs. See
// README.md.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline dim3 gridDim, blockDim;  // of the running launch; threadIdx and blockIdx are macros of cuda_runtime.h

namespace emulation {

constexpr unsigned kWarpSize = 32;

// Properties of the device. Tests set them.
struct Device {
  int num_sms = 4;
  int threads_per_block = 1024;
  int threads_per_sm = 2048;
  int blocks_per_sm = 32;
  int64_t shared_bytes_per_block = 227 << 10;
  int64_t shared_bytes_per_sm = 228 << 10;
  int64_t reserved_shared_bytes = 1 << 10;  // of every block, by the system
  int compute_capability = 90;
  int sms_per_gpc = 16;  // the blocks of a cluster run on multiprocessors of one GPC
  int blocks_per_cluster = 16;
  uint64_t seed = 0;  // of the order of threads; changes with every use
};
inline Device device;

inline uint64_t random_bits() {
  uint64_t z = device.seed += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// Number below `limit`, from the upper 32 of `bits`.
inline uint32_t below(uint64_t bits, size_t limit) {
  return static_cast<uint32_t>((bits >> 32) * limit >> 32);
}

inline uint3 index_of(size_t linear, dim3 extent) {
  return {static_cast<unsigned>(linear % extent.x), static_cast<unsigned>(linear / extent.x % extent.y),
          static_cast<unsigned>(linear / extent.x / extent.y)};
}

inline std::string text(uint3 i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

struct Warp;
struct Block;
struct Cluster;

// What tracing.cpp and views.cpp must know. Without them, nothing.
#ifdef EMULATION_TRACED
void launch_started();
void launch_finished();
void block_started(const Block&);
void block_finished(const Block&);
void block_synchronized(const Block&);
void cluster_synchronized(const Cluster&);
void lanes_synchronized(const Warp&, unsigned mask);
void memory_added(const void* begin, size_t bytes);
void memory_removed(const void* begin);
void strong_access(const void* address, size_t bytes, bool write, const void* code);  // comes next
void release();  // by the current thread, at the scope of the device
void acquire();
void load_constant(void* to, const void* from, size_t bytes);
#else
inline void launch_started() {}
inline void launch_finished() {}
inline void block_started(const Block&) {}
inline void block_finished(const Block&) {}
inline void block_synchronized(const Block&) {}
inline void cluster_synchronized(const Cluster&) {}
inline void lanes_synchronized(const Warp&, unsigned) {}
inline void memory_added(const void*, size_t) {}
inline void memory_removed(const void*) {}
inline void strong_access(const void*, size_t, bool, const void*) {}
inline void release() {}
inline void acquire() {}
inline void load_constant(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
#endif

// Memory of exactly the given size. AddressSanitizer finds accesses outside, intact() finds some writes
// behind the end. It is filled with noise, or with ones, which are NaN.
class Memory {
 public:
  Memory() = default;
  Memory(size_t size, size_t alignment) : size_(size) {
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, size + kMargin)) throw std::bad_alloc();
    memory_.reset(static_cast<unsigned char*>(memory));
    uint64_t word = ~uint64_t{0};
    const bool noise = random_bits() & 1;
    for (size_t k = 0; k < size; k += 8) {
      if (noise) word = random_bits();
      std::memcpy(data() + k, &word, std::min<size_t>(8, size - k));
    }
    std::memset(data() + size, kMarginByte, kMargin);
    memory_added(data(), size);
  }
  unsigned char* data() const { return memory_.get(); }
  size_t size() const { return size_; }
  bool intact() const {
    return std::all_of(data() + size_, data() + size_ + kMargin,
                       [](unsigned char b) { return b == kMarginByte; });
  }

 private:
#ifdef __SANITIZE_ADDRESS__
  static constexpr size_t kMargin = 0;
#else
  static constexpr size_t kMargin = 256;
#endif
  static constexpr unsigned char kMarginByte = 0xa5;
  struct Free {
    void operator()(unsigned char* memory) const {
      memory_removed(memory);
      std::free(memory);
    }
  };
  std::unique_ptr<unsigned char, Free> memory_;
  size_t size_ = 0;
};

// Place in the sources. here() as a default argument is the place of the caller.
struct Site {
  const char *file, *function;
  int line;
};
constexpr Site here(const char* file = __builtin_FILE(), const char* function = __builtin_FUNCTION(),
                    int line = __builtin_LINE()) {
  return {file, function, line};
}

struct Fiber {
  Context context;
  Warp* warp;
  unsigned lane;
  uint3 thread;
  const char* waits_at;  // name of an operation, or null
  unsigned mask;         // of lanes for which it waits, or 0
  Site site;
};

// Unordered set of warps, or blocks, with a fiber that may go on.
template <class T>
struct ReadySet {
  std::vector<T*> items;
  void insert(T* item) {
    item->position = items.size();
    items.push_back(item);
  }
  void erase(T* item) {
    items[item->position] = items.back();
    items[item->position]->position = item->position;
    items.pop_back();
  }
  T* pick(uint64_t bits) { return items[below(bits, items.size())]; }
};

// Lanes that have arrived at one collective operation.
struct Gathering {
  unsigned mask, arrived;
  const char* operation;
};

struct Warp {
  Block* block;
  unsigned live, ready;  // lanes
  size_t position;
  unsigned num_gatherings;
  Gathering gatherings[kWarpSize];
  // of each lane: arguments and result of its collective operation
  uint64_t argument[kWarpSize], result[kWarpSize];
  unsigned source[kWarpSize];
  Fiber lanes[kWarpSize];
};

struct Block {
  Cluster* cluster;
  uint3 index;
  Memory shared;
  std::vector<Warp> warps;
  ReadySet<Warp> ready;
  size_t position;
  unsigned live, waiting;  // threads
  const char* barrier;     // name of the barrier at which they wait
  Site site;
  int count, result;  // of threads with a true predicate: so far, and at the last barrier
};

// Blocks that start together. Without clusters, each block is one of its own.
struct Cluster {
  Block* blocks;           // the one of rank 0; the others follow
  unsigned live, waiting;  // threads; those that wait at the barrier of the cluster
  Site site;
};

// The running launch.
struct Grid {
  const void* kernel;
  std::function<void()> body;
  size_t num_blocks, num_threads, shared_bytes;
  unsigned blocks_per_cluster;

  Context main;
  std::vector<Block> blocks;  // resident ones
  std::vector<Cluster> clusters;
  ReadySet<Block> ready;
  std::vector<Fiber*> pollers;  // go on when no other fiber can
  uint64_t idle_polls;
  unsigned keep_warp, keep_block;  // how many times of 256 the next fiber is of the same warp, block
  Block* finished;
  std::string error;
};
inline Grid* grid = nullptr;
inline Fiber* current = nullptr;

inline unsigned char* dynamic_shared_memory() { return current->warp->block->shared.data(); }

// ---- errors ----

// File and line of an address in the code, by addr2line. Several for an inlined function.
inline std::string place_of(const void* code, const char* options = "-sie") {
  Dl_info info;
  if (!dladdr(code, &info)) return "?";
  char line[1024];
  std::snprintf(line, sizeof line, "addr2line %s '%s' %#zx 2>/dev/null", options, info.dli_fname,
                static_cast<size_t>(static_cast<const char*>(code) - static_cast<char*>(info.dli_fbase)));
  std::string place;
  if (FILE* pipe = popen(line, "r")) {
    while (std::fgets(line, sizeof line, pipe))
      place += (place.empty() ? "" : " < ") + std::string(line, std::strcspn(line, "\n"));
    pclose(pipe);
  }
  return place.empty() ? "?" : place;
}

// Name of a kernel, from debugging information.
inline std::string kernel_name(const void* kernel) {
  const std::string name = place_of(kernel, "-Cfe");
  return name.substr(0, name.find(" < "));
}

inline std::string text(const char* operation, Site site, unsigned mask = 0) {
  char words[512];
  std::snprintf(words, sizeof words, mask ? "%s(%#x) in %s, %s:%d" : "%s%.0x in %s, %s:%d", operation, mask,
                site.function, site.file, site.line);
  return words;
}

// Ends the launch, which throws with the message. Its fibers are abandoned.
[[noreturn]] inline void fail(const std::string& why) {
  Grid& g = *grid;
  g.error = why;
  if (current) {
    g.error =
        "thread " + text(current->thread) + " of block " + text(current->warp->block->index) + ": " + why;
    switch_context(current->context, g.main);
  }
  std::abort();
}

// List of places where fibers wait, for an error message.
inline std::string waiting_fibers() {
  std::map<std::string, std::pair<size_t, const Fiber*>> groups;
  for (const Block& block : grid->blocks)
    for (const Warp& warp : block.warps)
      for (const Fiber& fiber : warp.lanes)
        if (warp.live >> fiber.lane & 1) {
          auto& [count, example] =
              groups[fiber.waits_at ? text(fiber.waits_at, fiber.site, fiber.mask) : "a poll"];
          if (!count++) example = &fiber;
        }
  std::string all;
  for (const auto& [where, group] : groups)
    all += "\n  " + std::to_string(group.first) + " waiting at " + where + ", such as thread " +
           text(group.second->thread) + " of block " + text(group.second->warp->block->index);
  return all;
}

// ---- scheduler ----

inline void make_ready(Warp& warp, unsigned lanes) {
  if (!warp.ready) {
    if (warp.block->ready.items.empty()) grid->ready.insert(warp.block);
    warp.block->ready.insert(&warp);
  }
  warp.ready |= lanes;
}

// Takes a fiber out of those that may go on. Returns null if all of them wait.
inline Fiber* next_fiber(bool elsewhere) {
  Grid& g = *grid;
  if (g.ready.items.empty()) {
    if (g.pollers.empty()) return nullptr;
    if ((g.idle_polls += g.pollers.size()) > 3'000'000) return nullptr;
    for (Fiber* fiber : g.pollers) make_ready(*fiber->warp, 1u << fiber->lane);
    g.pollers.clear();
  }
  const uint64_t bits = random_bits();
  Warp* warp = current ? current->warp : nullptr;
  if (!warp || elsewhere || !warp->ready || (bits & 255) >= g.keep_warp) {
    Block* block = warp ? warp->block : nullptr;
    if (!block || elsewhere || block->ready.items.empty() || (bits >> 8 & 255) >= g.keep_block)
      block = g.ready.pick(bits);
    warp = block->ready.pick(random_bits());
  }
  const unsigned turn = bits >> 16 & 31;
  const unsigned turned = warp->ready >> turn | warp->ready << (-turn & 31);
  const unsigned lane = (static_cast<unsigned>(__builtin_ctz(turned)) + turn) & 31;
  warp->ready &= ~(1u << lane);
  if (!warp->ready) {
    warp->block->ready.erase(warp);
    if (warp->block->ready.items.empty()) g.ready.erase(warp->block);
  }
  return &warp->lanes[lane];
}

// Lets other fibers run until this one is ready and is chosen.
inline void wait(bool elsewhere = false) {
  Fiber* const me = current;
  Fiber* const next = next_fiber(elsewhere);
  if (!next) fail("no thread can go on:" + waiting_fibers());
  if (next == me) return;
  current = next;
  switch_context(me->context, next->context);
}

// Called after a thread has read unchanged memory that it may be waiting for. Other fibers run first.
inline void poll() {
  const uint64_t bits = random_bits();
  if (bits & 1)
    grid->pollers.push_back(current);  // goes on late, when all others wait
  else
    make_ready(*current->warp, 1u << current->lane);
  current->waits_at = nullptr;
  wait(true);
}

// Called before accesses to memory that other threads may be reading: lets one of them go on, sometimes.
inline void preempt() {
  if (random_bits() & 3) return;
  make_ready(*current->warp, 1u << current->lane);
  wait(true);
}

inline void progress() { grid->idle_polls = 0; }

// ---- barriers and collective operations ----

// Barrier of the block. Returns the number of its threads with a true predicate.
inline int barrier(const char* operation, bool predicate, Site site) {
  Fiber& me = *current;
  Block& block = *me.warp->block;
  if (block.live < grid->num_threads)
    fail("waits at " + text(operation, site) + ", but threads of the block have exited");
  if (block.waiting && (std::strcmp(block.barrier, operation) || block.site.line != site.line ||
                        std::strcmp(block.site.file, site.file)))
    fail("waits at " + text(operation, site) + ", but others of the block at " +
         text(block.barrier, block.site));
  me.waits_at = block.barrier = operation;
  me.site = block.site = site;
  me.mask = 0;
  block.count += predicate;
  if (++block.waiting == block.live) {
    block.result = block.count;
    block.count = 0;
    block.waiting = 0;
    block_synchronized(block);
    for (Warp& warp : block.warps) make_ready(warp, warp.live);
  }
  wait();
  return block.result;
}

// ---- clusters ----

inline uint32_t cluster_rank() {
  const Block& block = *current->warp->block;
  return static_cast<uint32_t>(&block - block.cluster->blocks);
}

// Barrier of the cluster.
inline void cluster_sync(Site site = here()) {
  Fiber& me = *current;
  Cluster& cluster = *me.warp->block->cluster;
  const char* const operation = "cluster_sync";
  if (cluster.live < grid->num_threads * grid->blocks_per_cluster)
    fail("waits at " + text(operation, site) + ", but threads of the cluster have exited");
  me.waits_at = operation;
  me.site = cluster.site = site;
  me.mask = 0;
  if (++cluster.waiting == cluster.live) {
    cluster.waiting = 0;
    cluster_synchronized(cluster);
    for (unsigned rank = 0; rank < grid->blocks_per_cluster; ++rank)
      for (Warp& warp : cluster.blocks[rank].warps) make_ready(warp, warp.live);
  }
  wait();
}

// Place of block `rank` that `pointer` has in the shared memory of the current block.
template <class T>
T* of_cluster_block(T* pointer, uint32_t rank) {
  const Block& mine = *current->warp->block;
  const auto at = reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(mine.shared.data());
  if (at > mine.shared.size())
    fail("of_cluster_block: the pointer is not into the block's own shared memory");
  if (rank >= grid->blocks_per_cluster)
    fail("of_cluster_block: rank " + std::to_string(rank) + " in a cluster of " +
         std::to_string(grid->blocks_per_cluster) + " blocks");
  const Block& block = mine.cluster->blocks[rank];
  if (!block.live) fail("of_cluster_block: block " + text(block.index) + " of the cluster has ended");
  return reinterpret_cast<T*>(block.shared.data() + at);
}

// Collective operation of the lanes in `mask`. Each lane passes an argument and the number of a lane to read,
// and gets resolve(warp, mask, lane), which is called when all lanes have arrived.
template <class Resolve>
uint64_t collective(const char* operation, unsigned mask, uint64_t argument, unsigned source, Site site,
                    const Resolve& resolve) {
  Fiber& me = *current;
  Warp& warp = *me.warp;
  if (!(mask >> me.lane & 1)) fail(text(operation, site, mask) + " by lane " + std::to_string(me.lane));
  if (mask & ~warp.live)
    fail(text(operation, site, mask) + " names a lane that does not exist or has exited");
  Gathering* gathering = std::find_if(warp.gatherings, warp.gatherings + warp.num_gatherings,
                                      [=](const Gathering& g) { return g.mask == mask; });
  if (gathering == warp.gatherings + warp.num_gatherings) {
    *gathering = {mask, 0, operation};
    ++warp.num_gatherings;
  }
  if (gathering->operation != operation && std::strcmp(gathering->operation, operation))
    fail("is at " + text(operation, site, mask) + ", but other lanes at " + gathering->operation);
  me.waits_at = operation;
  me.site = site;
  me.mask = mask;
  warp.argument[me.lane] = argument;
  warp.source[me.lane] = source;
  gathering->arrived |= 1u << me.lane;
  if (gathering->arrived == mask) {
    *gathering = warp.gatherings[--warp.num_gatherings];
    for (unsigned lanes = mask; lanes; lanes &= lanes - 1) {
      const unsigned lane = static_cast<unsigned>(__builtin_ctz(lanes));
      warp.result[lane] = resolve(warp, mask, lane);
    }
    make_ready(warp, mask);
  }
  wait();
  return warp.result[me.lane];
}

// ---- launches ----

inline void fiber_main() {
  arrived(nullptr, &grid->main);
  try {
    grid->body();
  } catch (const std::exception& error) {
    fail(error.what());
  }
  Fiber& me = *current;
  Warp& warp = *me.warp;
  Block& block = *warp.block;
  progress();
  Cluster& cluster = *block.cluster;
  if (block.waiting) fail("has exited, but others of the block wait at " + text(block.barrier, block.site));
  if (cluster.waiting)
    fail("has exited, but others of the cluster wait at " + text("cluster_sync", cluster.site));
  for (unsigned k = 0; k < warp.num_gatherings; ++k)
    if (warp.gatherings[k].mask >> me.lane & 1)
      fail(std::string("has exited, but other lanes wait for it at ") + warp.gatherings[k].operation);
  warp.live &= ~(1u << me.lane);
  --cluster.live;
  if (--block.live == 0) {
    grid->finished = &block;
    switch_context(me.context, grid->main);
  }
  wait();
  std::abort();  // a fiber that exited was made ready
}

inline void start(Block& block, size_t slot, size_t linear) {
  Grid& g = *grid;
  block.index = index_of(linear, gridDim);
  block.shared = Memory(g.shared_bytes, 1024);
  block.cluster = &g.clusters[slot / g.blocks_per_cluster];
  block.live = static_cast<unsigned>(g.num_threads);
  block.waiting = 0;
  block.count = 0;
  block.warps.resize((g.num_threads + kWarpSize - 1) / kWarpSize);
  for (size_t w = 0; w < block.warps.size(); ++w) {
    Warp& warp = block.warps[w];
    const size_t num_lanes = std::min<size_t>(kWarpSize, g.num_threads - w * kWarpSize);
    warp.block = &block;
    warp.live = num_lanes == kWarpSize ? ~0u : (1u << num_lanes) - 1;
    warp.ready = 0;
    warp.num_gatherings = 0;
    for (unsigned lane = 0; lane < num_lanes; ++lane) {
      const size_t thread = w * kWarpSize + lane;
      Fiber& fiber = warp.lanes[lane];
      fiber.warp = &warp;
      fiber.lane = lane;
      fiber.thread = index_of(thread, blockDim);
      fiber.waits_at = nullptr;
      prepare(fiber.context, stack(slot * g.num_threads + thread), &fiber_main);
    }
    make_ready(warp, warp.live);
  }
  block_started(block);
}

// Starts the blocks of cluster number `linear`, in the place of resident cluster `slot`.
inline void start_cluster(size_t slot, size_t linear) {
  Grid& g = *grid;
  const size_t size = g.blocks_per_cluster;
  g.clusters[slot] = {&g.blocks[slot * size], static_cast<unsigned>(size * g.num_threads), 0, {}};
  for (size_t rank = 0; rank < size; ++rank)
    start(g.blocks[slot * size + rank], slot * size + rank, linear * size + rank);
}

// Content of the shared memory of a block that has ended before its cluster: NaN.
constexpr unsigned char kEndedByte = 0xff;

inline void finish(Block& block) {
  block_finished(block);
  if (!block.shared.intact())
    grid->error = "block " + text(block.index) + " has written past its shared memory";
  std::memset(block.shared.data(), kEndedByte, block.shared.size());
}

inline void finish_cluster(Cluster& cluster) {
  for (unsigned rank = 0; rank < grid->blocks_per_cluster; ++rank) {
    Block& block = cluster.blocks[rank];
    const unsigned char *begin = block.shared.data(), *end = begin + block.shared.size();
    if (!std::all_of(begin, end, [](unsigned char b) { return b == kEndedByte; }))
      grid->error = "another block of the cluster has written to the shared memory of block " +
                    text(block.index) + ", which has ended";
    block.shared = {};
  }
}

// Runs all clusters, up to `residents` of them at a time.
inline void run(Grid& g, size_t residents) {
  struct Guard {
    ~Guard() {
      launch_finished();
      grid = nullptr;
      current = nullptr;
    }
  } guard;
  grid = &g;
  launch_started();
  constexpr unsigned kKeep[] = {0, 240, 256};
  g.keep_warp = kKeep[random_bits() % 3];
  g.keep_block = kKeep[random_bits() % 3];
  std::vector<size_t> order(g.num_blocks / g.blocks_per_cluster);
  for (size_t k = 0; k < order.size(); ++k) {  // a random permutation
    order[k] = k;
    std::swap(order[k], order[below(random_bits(), k + 1)]);
  }
  size_t started = 0, finished = 0;
  g.blocks.resize(residents * g.blocks_per_cluster);
  g.clusters.resize(residents);
  for (; started < residents; ++started) start_cluster(started, order[started]);
  while (finished < order.size() && g.error.empty()) {
    Fiber* next = next_fiber(true);
    if (!next) {
      g.error = "no thread can go on:" + waiting_fibers();
      break;
    }
    g.finished = nullptr;
    current = next;
    switch_context(g.main, next->context);
    current = nullptr;
    if (Block* block = g.finished) {
      Cluster& cluster = *block->cluster;
      finish(*block);
      if (cluster.live) continue;
      finish_cluster(cluster);
      ++finished;
      if (started < order.size())
        start_cluster(static_cast<size_t>(&cluster - g.clusters.data()), order[started++]);
    }
  }
  if (!g.error.empty()) throw std::runtime_error(kernel_name(g.kernel) + ": " + g.error);
}

}  // namespace emulation
