#include "scratch.h"

#include <cstdlib>
#include <new>

namespace noisetilt {
namespace {

// Free blocks of one thread, in one list per size. Sizes are powers of two.
class FreeBlocks {
 public:
  ~FreeBlocks() {
    for (Block*& head : lists_) {
      while (head) std::free(pop(head));
    }
  }
  void* take(size_t bytes) {
    const int list = list_of(bytes);
    if (lists_[list]) return pop(lists_[list]);
    void* block = std::aligned_alloc(kAlignment, size_t(1) << list);
    if (!block) throw std::bad_alloc();
    return block;
  }
  void give(void* memory, size_t bytes) {
    if (bytes > kLargestKept) return std::free(memory);
    Block*& head = lists_[list_of(bytes)];
    head = new (memory) Block{head};
  }

 private:
  struct Block {
    Block* next;
  };
  static constexpr size_t kAlignment = 64;
  static constexpr size_t kLargestKept = 2 << 20;  // larger blocks would keep too much memory from other uses

  static void* pop(Block*& head) {
    Block* block = head;
    head = block->next;
    return block;
  }
  static int list_of(size_t bytes) {
    int list = 6;  // at least the alignment
    while (size_t(1) << list < bytes) ++list;
    return list;
  }
  Block* lists_[64] = {};
};

thread_local FreeBlocks free_blocks;

}  // namespace

void* take_scratch(size_t bytes) { return free_blocks.take(bytes); }
void give_scratch(void* block, size_t bytes) { free_blocks.give(block, bytes); }

}  // namespace noisetilt
