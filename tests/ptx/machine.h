// A GPU that executes PTX: warps of 32 threads, blocks, memory, and counts of what they do. See README.md.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <unordered_map>
#include <vector>

#include "text.h"

namespace ptx {

constexpr unsigned kLanes = 32;
constexpr uint32_t kAllLanes = 0xffffffff;
constexpr unsigned kSector = 32;  // bytes that a global access moves at least

// Generic addresses. Global memory is the memory of this process; the other state spaces have windows.
constexpr uint64_t kSharedWindow = uint64_t{1} << 56;
constexpr uint64_t kThreadWindow = uint64_t{2} << 56;     // .local, and .param of functions
constexpr uint64_t kParameterWindow = uint64_t{3} << 56;  // .param of kernels
constexpr uint64_t kSharedBase = 1024;                    // first address of the shared state space
// Shared memory of a cluster: these bits of an address are 0 for the own block, and rank + 1 for any block.
constexpr unsigned kRankShift = 24;
constexpr uint32_t kMaxClusterBlocks = 16;

enum class Space : uint8_t { generic, global, shared, cluster, thread, parameters };
enum class Order : uint8_t { weak, constant, relaxed, acquire, release, acq_rel };  // constant: ld.global.nc

// ---- code ----

struct Operand {
  uint32_t at = 0;     // in bytes, in the registers of a warp or in the constants of the kernel
  uint32_t index = 0;  // of its mask of written lanes; 0 for constants and special registers
  uint8_t bits = 0;    // 1 for a predicate, which is a mask of lanes
  bool constant = false;
  bool negated = false;  // of a predicate
};

struct Warp;
struct Instruction;
using Run = void (*)(Warp&, const Instruction&, uint32_t mask);

enum class Flow : uint8_t {
  next,
  branch,
  call,
  leave,
  finish,
  barrier,
  cluster_arrive,
  cluster_wait,
  collective
};

// Bytes of one thread that a call passes to the parameters of a function, or back.
struct Copy {
  uint32_t from, to, size;
};

struct Instruction {
  Run run = nullptr;
  Flow flow = Flow::next;
  bool guarded = false;
  Operand guard;
  std::array<Operand, 9> operands;  // results first
  uint8_t num_operands = 0;
  // of memory accesses; the last operand is the base of the address
  Space space = Space::generic;
  Order order = Order::weak;
  bool block_scope = false;      // of the order
  uint8_t item = 0, vector = 1;  // bytes of an item, items
  int64_t offset = 0;
  int how = 0;                 // variant: a comparison, a rounding, an operation
  bool names_members = false;  // of a collective operation: the last operand is the mask of lanes
  uint32_t target = 0;         // of a branch or a call
  std::vector<Copy> arguments, results;
  const Statement* statement = nullptr;
  uint32_t function = 0;  // number in Kernel::functions
};

struct Kernel {
  std::string name;
  std::vector<Instruction> code;
  std::vector<std::string> functions;
  std::vector<unsigned char> constants;
  size_t register_bytes = 0;   // of a warp
  uint32_t num_registers = 1;  // masks of written lanes
  size_t thread_bytes = 0;     // of the variables of a thread, all functions
  size_t local_bytes = 0;      // of those in .local, which come first
  struct Parameter {
    size_t offset, size;
  };
  std::vector<Parameter> parameters;
  size_t parameter_bytes = 0;
  size_t static_shared_bytes = 0;
  int64_t max_threads = 1024, min_blocks = 1;
  std::map<std::string, Operand> special;  // %tid.x: registers that are set when a warp starts
};

// Throws Fault if the kernel does not exist, or if an instruction is unknown.
std::unique_ptr<Kernel> assemble(const Module& module, const std::string& name);

// Name of a C++ function as in the source, with its template arguments.
std::string readable(const std::string& name);

// ---- state ----

struct Machine;
struct Block;
struct Cluster;

// Threads of a warp that execute the same instruction next.
struct Group {
  static constexpr unsigned kMaxDepth = 8;
  enum State : uint8_t { runs, waits };  // waits: for the other lanes of a collective operation or a barrier
  uint32_t mask = 0;
  uint32_t pc = 0;
  State state = runs;
  uint8_t depth = 0;
  std::array<uint32_t, kMaxDepth> returns{};
  bool same_place(const Group& other) const {
    return pc == other.pc && depth == other.depth && returns == other.returns;
  }
};

struct Warp {
  Block* block;
  uint32_t number = 0;  // in its block
  uint32_t live = 0;    // lanes that have not exited
  std::vector<Group> groups;
  unsigned char* registers = nullptr;
  uint32_t* written = nullptr;
  unsigned char* thread_memory = nullptr;  // thread_bytes of lane 0, then of lane 1, ...
  bool at_barrier = false;
  // The barrier of the cluster: the warp has arrived there; it waits; it has arrived, and so have all others.
  enum AtCluster : uint8_t { nowhere, arrived, waiting, passed } at_cluster = nowhere;
  uint32_t pc = 0;               // of the instruction that is executed
  uint32_t defined = kAllLanes;  // lanes whose operands of this instruction have been written
  bool polled = false;           // the instruction has read memory that another thread may change
  uint64_t last_poll = 0;        // what the last poll has found

  template <class T>
  T* values(const Operand& operand);
  uint32_t predicate(const Operand& operand);
  void check_written(const Operand& operand, uint32_t mask) {
    if (~written[operand.index] & mask) fail_unwritten(operand, mask);
  }
  [[noreturn]] void fail_unwritten(const Operand& operand, uint32_t mask);
  [[noreturn]] void fail(const std::string& why);
};

// What a block sees of global memory, if stores become visible late (Machine::stale).
class View {
 public:
  void read(const unsigned char* from, size_t size, unsigned char* to);
  void write(uint32_t epoch, unsigned warp, unsigned char* to, size_t size, const unsigned char* from);
  void forget();                              // an acquire
  void publish(Block& block, unsigned warp);  // a release by a warp
  void publish_all();
  // Before an access that goes past the view: publishes own stores to the place, and forgets it.
  void pass(const unsigned char* place, size_t size);

 private:
  struct Sector {
    unsigned char data[kSector];
    uint32_t valid = 0, stored = 0;  // bit k: byte k
    uint32_t epoch[kSector];         // of a stored byte: when, and by whom
    uint16_t warp[kSector];
  };
  static void publish(uint64_t number, Sector& sector, uint32_t bytes);
  std::unordered_map<uint64_t, Sector> sectors_;
};

// Memory that is used again and again. If it must grow, its content is lost. New memory is zero, and costs
// nothing before it is touched.
template <class T>
class Storage {
 public:
  void reserve(size_t size) {
    if (size <= size_) return;
    size_ = 0;
    memory_.reset(static_cast<T*>(std::calloc(size, sizeof(T))));
    if (!memory_) throw std::bad_alloc();
    size_ = size;
  }
  T* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
  size_t size_ = 0;
};

struct Block {
  Machine* machine;
  Cluster* cluster = nullptr;
  uint32_t index = 0, rank = 0;  // in the grid, in the cluster
  Storage<unsigned char> shared, registers, thread_memory;
  Storage<uint32_t> written;
  std::vector<Warp> warps;
  unsigned live = 0, waiting = 0;  // warps
  uint32_t epoch = 0;              // grows at every barrier, and when a block starts here
  uint32_t cluster_epoch = 0;      // epoch at the last barrier of the cluster, or at the start
  // Last write and last read of each byte of shared memory, if Machine::check_races. Epochs are those of the
  // block that has accessed it. Writer and reader: rank of that block * kLanes + warp.
  struct Shadow {
    uint32_t write_epoch, read_epoch;
    uint16_t writer, reader;
    bool only_atomic;  // the writes
  };
  static constexpr uint16_t kSeveralOfBlock = 0x4000;  // + rank: several warps of a block
  static constexpr uint16_t kSeveral = 0x8000;         // warps of several blocks; the epoch is the owner's
  Storage<Shadow> shadows;
  View view;
  uint64_t releases = 0;  // release operations and fences
  uint64_t cluster_barriers = 0;
};

// Blocks that start together. Without clusters, each block is one of its own.
struct Cluster {
  std::vector<Block*> blocks;      // by rank
  unsigned live = 0, arrived = 0;  // warps
  bool ordered = true;             // all arrivals so far are releases
};

struct Counters {
  uint64_t warp_instructions = 0, thread_instructions = 0;
  uint64_t block_barriers = 0;  // of all blocks
  uint64_t releases = 0;        // the most release operations and fences of a block
  uint64_t global_requests = 0, global_sectors = 0, ideal_sectors = 0;
  uint64_t bytes_read = 0, bytes_written = 0;  // sectors of loads and of stores
  uint64_t shared_requests = 0, shared_wavefronts = 0, ideal_wavefronts = 0;
  uint64_t local_requests = 0;
  uint64_t global_atomics = 0, shared_atomics = 0;     // of threads
  uint64_t cluster_barriers = 0;                       // the most of a block
  uint64_t cluster_requests = 0, cluster_atomics = 0;  // to shared memory of other blocks
  uint64_t most_atomics_on_one_address = 0;            // in global memory
};

struct Launch {
  std::string kernel;
  uint32_t blocks, blocks_per_cluster, threads;
  size_t shared_bytes, local_bytes, instructions;  // instructions: of the kernel's code
  Counters counters;
};

// Memory that kernels may access.
class Memory {
 public:
  void add(const void* begin, size_t size, bool writable);
  void remove(const void* begin);
  // True if all these bytes belong to one region, which may be written if `write`.
  bool holds(uint64_t address, size_t size, bool write) const;

 private:
  struct Region {
    uint64_t end;
    bool writable;
  };
  std::map<uint64_t, Region> regions_;
  mutable uint64_t begin_ = 1, end_ = 0;  // of the region that was found last
  mutable bool writable_ = false;
};

struct Machine {
  Machine() = default;
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  // settings
  uint64_t seed = 0;
  // Stores appear to other blocks only after a release. Loads return what their block has read there before,
  // until it performs an acquire.
  bool stale = false;
  bool check_races = true;  // in shared memory
  bool counting = false;
  Memory memory;

  // Runs a kernel to its end. `residents`: number of blocks that run at the same time, at least those of a
  // cluster. `parameters`: the bytes of the kernel's parameters. Throws Fault.
  void run(const Kernel& kernel, uint32_t blocks, uint32_t blocks_per_cluster, uint32_t threads,
           size_t dynamic_shared, uint32_t residents, const unsigned char* parameters);

  std::vector<Launch> launches;  // if counting

  // of the running launch
  const Kernel* kernel = nullptr;
  const unsigned char* parameters = nullptr;
  uint32_t num_blocks = 0, blocks_per_cluster = 1, num_threads = 0;
  size_t shared_bytes = 0;
  Counters counters;
  std::unordered_map<uint64_t, uint64_t> atomics;  // by address
  bool progress = false;
  uint64_t random_bits();
  void count_global(const uint64_t* addresses, uint32_t mask, size_t size, bool write);
  void count_shared(const uint64_t* addresses, uint32_t mask, size_t size);

 private:
  std::vector<std::unique_ptr<Block>> blocks_;  // resident ones; kept, because their memory is large
  std::vector<Cluster> clusters_;
  std::vector<View> unpublished_;  // views of blocks that have ended
  void start(Block& block, uint32_t index);
  bool step(Warp& warp, uint64_t instructions);
  void release_barrier(Block& block, std::vector<Warp*>& ready);
  void release_cluster(Cluster& cluster, std::vector<Warp*>& ready);
};

template <class T>
T* Warp::values(const Operand& operand) {
  unsigned char* base =
      operand.constant ? const_cast<unsigned char*>(block->machine->kernel->constants.data()) : registers;
  return reinterpret_cast<T*>(base + operand.at);
}

inline uint32_t Warp::predicate(const Operand& operand) {
  const uint32_t mask = *values<uint32_t>(operand);
  return operand.negated ? ~mask : mask;
}

}  // namespace ptx
