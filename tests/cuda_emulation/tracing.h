// What tracing.cpp, races.cpp and views.cpp know of each other.
#pragma once

#include <array>

#include "emulation.h"

namespace emulation {

// Point in the work of a thread of a block.
struct Moment {
  uint32_t block;          // its slot
  uint32_t cluster_phase;  // number of barriers that the cluster has passed
  uint32_t thread;
  uint32_t phase;     // number of barriers that the block has passed
  uint32_t interval;  // of the thread, between its __syncwarps
};

// Order of the accesses of a block's threads. __syncthreads orders them, and within a warp __syncwarp.
// Shuffles and votes do not. Only the barrier of the cluster orders accesses of several blocks.
class Order {
 public:
  void start(size_t num_threads);
  void synchronize_block() { ++phase_; }
  void synchronize_cluster() { ++cluster_phase_; }
  void synchronize_lanes(const Warp& warp, unsigned mask);
  Moment now() const;                          // of the current thread
  bool is_before(const Moment& moment) const;  // the current thread's next access

 private:
  uint32_t phase_, cluster_phase_;
  // seen_[thread][lane]: the last interval of a lane of the thread's warp that is ordered before the thread's
  // next access.
  std::vector<std::array<uint32_t, kWarpSize>> seen_;
};
Order& order_of(const Block& block);

// Number of a resident block among those that are resident together.
inline uint32_t slot_of(const Block& block) { return static_cast<uint32_t>(&block - grid->blocks.data()); }

namespace races {
void start(const Block& block);
void access(const Block& block, const void* address, size_t bytes, bool write, bool atomic, const void* code);
}  // namespace races

namespace views {
void start(const Block& block);
void finish(const Block& block);
void synchronize(const Cluster& cluster);
bool is_global(const void* address);
void load(const void* address, size_t bytes);
void store(const void* address, size_t bytes);
void strong_access(const void* address, size_t bytes, bool write);
}  // namespace views

}  // namespace emulation
