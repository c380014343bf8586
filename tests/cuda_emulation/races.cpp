// Detection of races in shared memory. A race: two threads access a byte, at least one of them writes, not
// both accesses are atomic, and nothing orders them.
#include "tracing.h"

namespace emulation::races {
namespace {

// Last access to a byte.
struct Access {
  const void* code;  // null: none so far
  Moment moment;
  bool atomic;
};

struct Byte {
  Access write, read;
};

std::vector<std::vector<Byte>> histories;  // of the shared memory of the resident blocks

// Name of the block for a message, if it is not the current one.
std::string of_block(const Moment& moment) {
  const Block& block = grid->blocks[moment.block];
  return &block == current->warp->block ? "" : " of block " + text(block.index);
}

}  // namespace

void start(const Block& block) {
  histories.resize(grid->blocks.size());
  histories[slot_of(block)].assign(block.shared.size(), {});
}

// `block`: the one that has the shared memory.
void access(const Block& block, const void* address, size_t bytes, bool write, bool atomic,
            const void* code) {
  const size_t begin = static_cast<size_t>(static_cast<const unsigned char*>(address) - block.shared.data());
  const Order& order = order_of(*current->warp->block);
  const Access now{code, order.now(), atomic};
  for (size_t k = begin; k < std::min(begin + bytes, block.shared.size()); ++k) {
    Byte& byte = histories[slot_of(block)][k];
    for (const Access* earlier : {&byte.write, write ? &byte.read : nullptr}) {
      if (!earlier || !earlier->code || order.is_before(earlier->moment)) continue;
      if (earlier->atomic && atomic) continue;
      fail("race at byte " + std::to_string(k) + " of shared memory: " + place_of(now.code) +
           (write ? " writes" : " reads") + " what " + place_of(earlier->code) + " of thread " +
           std::to_string(earlier->moment.thread) + of_block(earlier->moment) + " has accessed");
    }
    (write ? byte.write : byte.read) = now;
  }
}

}  // namespace emulation::races
