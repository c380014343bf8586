#include "machine.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstring>

namespace ptx {

// ---- messages ----

std::string readable(const std::string& name) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(
      abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status), std::free);
  if (status) return name;
  std::string result = text.get();
  for (const char* noise : {"noisetilt::cuda::", "(anonymous namespace)::", "void "})
    for (size_t at; (at = result.find(noise)) != std::string::npos;) result.erase(at, std::strlen(noise));
  return result.substr(0, result.find('('));
}

void Warp::fail(const std::string& why) {
  const Machine& machine = *block->machine;
  const Instruction& instruction = machine.kernel->code[pc];
  const Statement& statement = *instruction.statement;
  std::string where = readable(machine.kernel->name);
  if (machine.kernel->functions[instruction.function] != machine.kernel->name)
    where += ", in " + readable(machine.kernel->functions[instruction.function]);
  where += ", line " + std::to_string(statement.line) + " of the PTX";
  if (statement.source_line) where += " (line " + std::to_string(statement.source_line) + " of the source)";
  throw Fault(where + ", block " + std::to_string(block->index) + ", warp " + std::to_string(number) + ": " +
              statement.source + ": " + why);
}

void Warp::fail_unwritten(const Operand& operand, uint32_t mask) {
  const unsigned lane = static_cast<unsigned>(__builtin_ctz(~written[operand.index] & mask));
  fail("the result depends on a register that was never written, in lane " + std::to_string(lane));
}

// ---- memory that a launch may access ----

void Memory::add(const void* begin, size_t size, bool writable) {
  const auto first = reinterpret_cast<uint64_t>(begin);
  regions_[first] = {first + size, writable};
}

void Memory::remove(const void* begin) {
  regions_.erase(reinterpret_cast<uint64_t>(begin));
  begin_ = 1, end_ = 0;
}

bool Memory::holds(uint64_t address, size_t size, bool write) const {
  if (address < begin_ || address > end_ || size > end_ - address) {
    auto region = regions_.upper_bound(address);
    if (region == regions_.begin()) return false;
    const uint64_t end = (--region)->second.end;
    if (address > end || size > end - address) return false;
    begin_ = region->first, end_ = region->second.end, writable_ = region->second.writable;
  }
  return writable_ || !write;
}

// ---- view of a block ----

// A sector that is not there is fetched as a whole, so that the bytes beside those that are read get old too.
void View::read(const unsigned char* from, size_t size, unsigned char* to) {
  const auto first = reinterpret_cast<uint64_t>(from);
  for (size_t k = 0; k < size; ++k) {
    const uint64_t number = (first + k) / kSector, byte = (first + k) % kSector;
    Sector& sector = sectors_[number];
    if (!(sector.valid >> byte & 1)) {
      for (unsigned other = 0; other < kSector; ++other)
        if (!(sector.valid >> other & 1))
          sector.data[other] = *reinterpret_cast<const unsigned char*>(number * kSector + other);
      sector.valid = kAllLanes;
    }
    to[k] = sector.data[byte];
  }
}

void View::write(uint32_t epoch, unsigned warp, unsigned char* to, size_t size, const unsigned char* from) {
  const auto first = reinterpret_cast<uint64_t>(to);
  for (size_t k = 0; k < size; ++k) {
    const uint64_t address = first + k, byte = address % kSector;
    Sector& sector = sectors_[address / kSector];
    sector.data[byte] = from[k];
    sector.valid |= 1u << byte;
    sector.stored |= 1u << byte;
    sector.epoch[byte] = epoch;
    sector.warp[byte] = static_cast<uint16_t>(warp);
  }
}

void View::publish(uint64_t number, Sector& sector, uint32_t bytes) {
  for (uint32_t rest = bytes; rest; rest &= rest - 1) {
    const unsigned byte = static_cast<unsigned>(__builtin_ctz(rest));
    *reinterpret_cast<unsigned char*>(number * kSector + byte) = sector.data[byte];
  }
  sector.stored &= ~bytes;
}

// A release covers the warp's own stores, and those of other warps before the last barrier of the block.
void View::publish(Block& block, unsigned warp) {
  for (auto& [number, sector] : sectors_) {
    uint32_t bytes = 0;
    for (uint32_t rest = sector.stored; rest; rest &= rest - 1) {
      const unsigned byte = static_cast<unsigned>(__builtin_ctz(rest));
      if (sector.warp[byte] == warp || sector.epoch[byte] < block.epoch) bytes |= 1u << byte;
    }
    publish(number, sector, bytes);
  }
}

void View::publish_all() {
  for (auto& [number, sector] : sectors_) publish(number, sector, sector.stored);
  sectors_.clear();
}

void View::forget() {
  for (auto place = sectors_.begin(); place != sectors_.end();) {
    place->second.valid = place->second.stored;
    place = place->second.valid ? std::next(place) : sectors_.erase(place);
  }
}

void View::pass(const unsigned char* place, size_t size) {
  for (size_t k = 0; k < size; ++k) {
    const auto address = reinterpret_cast<uint64_t>(place) + k;
    const auto found = sectors_.find(address / kSector);
    if (found == sectors_.end()) continue;
    const uint32_t byte = 1u << address % kSector;
    publish(found->first, found->second, found->second.stored & byte);
    found->second.valid &= ~byte;
  }
}

// ---- counts ----

namespace {

// Number of different values among the first `count`, which are sorted.
size_t distinct(uint64_t* values, size_t count) {
  std::sort(values, values + count);
  return static_cast<size_t>(std::unique(values, values + count) - values);
}

}  // namespace

void Machine::count_global(const uint64_t* addresses, uint32_t mask, size_t size, bool write) {
  uint64_t sectors[2 * kLanes], places[kLanes];
  size_t num_sectors = 0, num_places = 0;
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    const uint64_t address = addresses[__builtin_ctz(rest)];
    places[num_places++] = address;
    for (uint64_t sector = address / kSector; sector <= (address + size - 1) / kSector; ++sector)
      sectors[num_sectors++] = sector;
  }
  num_sectors = distinct(sectors, num_sectors);
  num_places = distinct(places, num_places);
  counters.global_requests += 1;
  counters.global_sectors += num_sectors;
  counters.ideal_sectors += (num_places * size + kSector - 1) / kSector;
  (write ? counters.bytes_written : counters.bytes_read) += num_sectors * kSector;
}

// An access of 8 or 16 bytes a lane is served for a half or a quarter of the warp at a time. Each of these
// parts takes as many wavefronts as different words in the bank that has most of them.
void Machine::count_shared(const uint64_t* addresses, uint32_t mask, size_t size) {
  const size_t lanes_at_once = size <= 4 ? kLanes : size <= 8 ? kLanes / 2 : kLanes / 4;
  counters.shared_requests += 1;
  for (size_t first = 0; first < kLanes; first += lanes_at_once) {
    uint64_t words[4 * kLanes];
    size_t num_words = 0;
    for (size_t lane = first; lane < first + lanes_at_once; ++lane)
      if (mask >> lane & 1)
        for (uint64_t word = addresses[lane] / 4; word <= (addresses[lane] + size - 1) / 4; ++word)
          words[num_words++] = word;
    if (num_words == 0) continue;
    num_words = distinct(words, num_words);
    unsigned in_bank[32] = {}, most = 0;
    for (size_t k = 0; k < num_words; ++k) most = std::max(most, ++in_bank[words[k] % 32]);
    counters.shared_wavefronts += most;
    counters.ideal_wavefronts += 1;
  }
}

// ---- execution ----

uint64_t Machine::random_bits() {
  uint64_t z = seed += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

void Machine::start(Block& block, uint32_t index) {
  const uint32_t num_warps = (num_threads + kLanes - 1) / kLanes;
  block.machine = this;
  block.index = index;
  block.cluster_epoch = ++block.epoch;
  block.view = {};
  block.waiting = 0;
  block.live = num_warps;
  block.releases = block.cluster_barriers = 0;
  // Memory of a block holds what others have left there: noise, of which most is NaN.
  const size_t thread_bytes = num_warps * kLanes * kernel->thread_bytes;
  block.shared.reserve(shared_bytes);
  block.thread_memory.reserve(thread_bytes);
  for (const auto& [memory, size] :
       {std::pair(block.shared.data(), shared_bytes), std::pair(block.thread_memory.data(), thread_bytes)})
    for (size_t k = 0; k < size; k += 8) {
      const uint64_t noise = random_bits() | 0x7ff0'0000'7f80'0000;
      std::memcpy(memory + k, &noise, std::min<size_t>(8, size - k));
    }
  block.registers.reserve(num_warps * kernel->register_bytes);
  block.written.reserve(size_t{num_warps} * kernel->num_registers);
  std::memset(block.written.data(), 0, size_t{num_warps} * kernel->num_registers * sizeof(uint32_t));
  if (check_races) block.shadows.reserve(shared_bytes);
  block.warps.resize(num_warps);
  for (uint32_t k = 0; k < num_warps; ++k) {
    Warp& warp = block.warps[k];
    warp.block = &block;
    warp.number = k;
    warp.at_barrier = false;
    warp.at_cluster = Warp::nowhere;
    warp.last_poll = 0;
    warp.registers = block.registers.data() + k * kernel->register_bytes;
    warp.written = block.written.data() + size_t{k} * kernel->num_registers;
    warp.thread_memory = block.thread_memory.data() + k * kLanes * kernel->thread_bytes;
    warp.written[0] = kAllLanes;
    const uint32_t lanes = std::min(kLanes, num_threads - k * kLanes);
    warp.live = lanes == kLanes ? kAllLanes : (1u << lanes) - 1;
    warp.groups = {Group{warp.live}};
    for (const auto& [name, place] : kernel->special) {
      auto* values = warp.values<uint32_t>(place);
      for (uint32_t lane = 0; lane < kLanes; ++lane) {
        const auto is = [&n = name](const char* other) { return n == other; };
        values[lane] = is("%tid.x")                         ? k * kLanes + lane
                       : is("%ctaid.x")                     ? index
                       : is("%ntid.x")                      ? num_threads
                       : is("%nctaid.x")                    ? num_blocks
                       : is("%ntid.y") || is("%ntid.z")     ? 1
                       : is("%nctaid.y") || is("%nctaid.z") ? 1
                       : is("%cluster_ctarank")             ? block.rank
                       : is("%cluster_ctaid.x")             ? block.rank
                       : is("%cluster_nctarank")            ? blocks_per_cluster
                       : is("%cluster_nctaid.x")            ? blocks_per_cluster
                       : is("%clusterid.x")                 ? index / blocks_per_cluster
                       : is("%nclusterid.x")                ? num_blocks / blocks_per_cluster
                       : is("%laneid")                      ? lane
                       : is("%warpid")                      ? k
                       : is("%lanemask_lt")                 ? (1u << lane) - 1
                       : is("%lanemask_le")                 ? (2u << lane) - 1
                       : is("%lanemask_eq")                 ? 1u << lane
                       : is("%lanemask_ge")                 ? ~((1u << lane) - 1)
                       : is("%lanemask_gt")                 ? ~((2u << lane) - 1)
                                                            : 0;
      }
    }
  }
}

namespace {

// Number of the group that goes on next, or -1: of those that may run, the one that is in the innermost call,
// and there at the lowest place. Lanes that have branched apart meet again in this way.
int choose(const std::vector<Group>& groups) {
  int chosen = -1;
  for (size_t k = 0; k < groups.size(); ++k) {
    if (groups[k].state != Group::runs) continue;
    if (chosen < 0 || groups[k].depth > groups[static_cast<size_t>(chosen)].depth ||
        (groups[k].depth == groups[static_cast<size_t>(chosen)].depth &&
         groups[k].pc < groups[static_cast<size_t>(chosen)].pc))
      chosen = static_cast<int>(k);
  }
  return chosen;
}

// Joins groups at the same place.
void join(std::vector<Group>& groups) {
  for (size_t k = 0; k < groups.size(); ++k)
    for (size_t other = k + 1; other < groups.size();) {
      if (!groups[k].same_place(groups[other])) {
        ++other;
        continue;
      }
      groups[k].mask |= groups[other].mask;
      groups[k].state = Group::runs;
      groups[other] = groups.back();
      groups.pop_back();
    }
}

}  // namespace

namespace {

// Arrival of a warp at the barrier of its cluster.
void arrive(Warp& warp, bool release) {
  if (warp.at_cluster != Warp::nowhere)
    warp.fail("the warp arrives at the barrier of the cluster without having waited for the last one");
  warp.at_cluster = Warp::arrived;
  Block& block = *warp.block;
  ++block.cluster->arrived;
  if (!release) block.cluster->ordered = false;
  if (release && block.machine->stale) block.view.publish(block, warp.number);
}

}  // namespace

// Executes up to `instructions` instructions of a warp. Returns false if the warp waits at a barrier of its
// block or cluster, or has exited.
bool Machine::step(Warp& warp, uint64_t instructions) try {
  std::vector<Group>& groups = warp.groups;
  warp.polled = false;
  while (!groups.empty()) {
    if (groups.size() > 1) join(groups);
    const int chosen = choose(groups);
    if (chosen < 0) {
      warp.pc = groups[0].pc;
      if (groups.size() == 1) warp.fail("the other lanes of the operation have exited");
      const Statement& elsewhere = *kernel->code[groups[1].pc].statement;
      warp.fail("only a part of the warp is here; another waits at line " + std::to_string(elsewhere.line) +
                ": " + elsewhere.source);
    }
    const auto at = static_cast<size_t>(chosen);
    // The group goes on alone up to the place where another one is.
    uint32_t limit = ~0u;
    for (size_t k = 0; k < groups.size(); ++k)
      if (k != at && groups[k].depth == groups[at].depth && groups[k].pc > groups[at].pc)
        limit = std::min(limit, groups[k].pc);
    for (bool same = true; same;) {
      Group& group = groups[at];
      if (group.pc >= limit) break;
      if (instructions-- == 0 || warp.polled) return true;
      const Instruction& instruction = kernel->code[group.pc];
      warp.pc = group.pc;
      warp.defined = kAllLanes;
      uint32_t mask = group.mask;
      if (instruction.guarded) {
        warp.check_written(instruction.guard, mask);
        mask &= warp.predicate(instruction.guard);
      }
      if (counting) {
        counters.warp_instructions += 1;
        counters.thread_instructions += static_cast<unsigned>(__builtin_popcount(mask));
      }
      switch (instruction.flow) {
        case Flow::next:
          if (mask) instruction.run(warp, instruction, mask);
          ++group.pc;
          break;
        case Flow::branch:
          if (mask == group.mask) {
            group.pc = instruction.target;
          } else if (mask == 0) {
            ++group.pc;
          } else {
            Group taken = group;
            taken.mask = mask;
            taken.pc = instruction.target;
            group.mask &= ~mask;
            ++group.pc;
            groups.push_back(taken);
            same = false;
          }
          if (groups.size() > 1) same = false;
          break;
        case Flow::collective:
          // Lanes wait until all lanes that the operation names are here.
          if (mask == 0) {
            ++group.pc;
            break;
          }
          if (mask != group.mask)
            warp.fail("a collective operation under a predicate that differs in the warp");
          {
            uint32_t members = group.mask;
            if (instruction.names_members) {
              const Operand& operand = instruction.operands[instruction.num_operands - 1u];
              warp.check_written(operand, mask);
              const auto* named = warp.values<uint32_t>(operand);
              members = named[__builtin_ctz(mask)];
              for (uint32_t rest = mask; rest; rest &= rest - 1)
                if (named[__builtin_ctz(rest)] != members) warp.fail("lanes name different members");
              if (mask & ~members) warp.fail("a lane takes part that is not named as a member");
              if (members == kAllLanes) members = warp.live;  // also of an incomplete warp, as on a device
            } else {
              members = warp.live;
            }
            if (members != group.mask) {
              if (members & ~warp.live) warp.fail("a lane that is named as a member has exited");
              group.state = Group::waits;
              same = false;
              break;
            }
          }
          instruction.run(warp, instruction, mask);
          ++group.pc;
          break;
        case Flow::barrier:
        case Flow::cluster_arrive:
        case Flow::cluster_wait:
          if (mask == 0) {
            ++group.pc;
            break;
          }
          if (mask != group.mask) warp.fail("a barrier under a predicate that differs in the warp");
          if (group.mask != warp.live) {
            group.state = Group::waits;
            same = false;
            break;
          }
          if (instruction.flow == Flow::barrier) {
            warp.at_barrier = true;
            ++warp.block->waiting;
            return false;
          }
          if (instruction.flow == Flow::cluster_arrive) {
            arrive(warp, instruction.order == Order::release);
          } else if (warp.at_cluster == Warp::arrived) {
            warp.at_cluster = Warp::waiting;
            return false;
          } else if (warp.at_cluster == Warp::passed) {
            warp.at_cluster = Warp::nowhere;
            if (stale) warp.block->view.forget();
          } else {
            warp.fail("the warp waits for a barrier of the cluster at which it has not arrived");
          }
          ++group.pc;
          break;
        case Flow::call: {
          if (mask == 0) {
            ++group.pc;
            break;
          }
          if (mask != group.mask) warp.fail("a call under a predicate that differs in the warp");
          if (group.depth == Group::kMaxDepth) warp.fail("too many nested calls");
          for (uint32_t rest = mask; rest; rest &= rest - 1) {
            unsigned char* memory =
                warp.thread_memory + static_cast<unsigned>(__builtin_ctz(rest)) * kernel->thread_bytes;
            for (const Copy& copy : instruction.arguments)
              std::memcpy(memory + copy.to, memory + copy.from, copy.size);
          }
          group.returns[group.depth++] = group.pc;
          group.pc = instruction.target;
          same = false;
          break;
        }
        case Flow::leave:
        case Flow::finish:
          if (mask == 0) {
            ++group.pc;
            break;
          }
          same = false;
          if (instruction.flow == Flow::finish || group.depth == 0) {
            progress = true;
            warp.live &= ~mask;
            group.mask &= ~mask;
            ++group.pc;
            if (group.mask == 0) groups.erase(groups.begin() + chosen);
            break;
          }
          if (mask != group.mask) {
            Group stay = group;
            stay.mask &= ~mask;
            ++stay.pc;
            group.mask = mask;
            groups.push_back(stay);
          }
          {
            Group& leaving = groups[at];
            const Instruction& call = kernel->code[leaving.returns[--leaving.depth]];
            leaving.pc = leaving.returns[leaving.depth] + 1;
            leaving.returns[leaving.depth] = 0;
            for (uint32_t rest = mask; rest; rest &= rest - 1) {
              unsigned char* memory =
                  warp.thread_memory + static_cast<unsigned>(__builtin_ctz(rest)) * kernel->thread_bytes;
              for (const Copy& copy : call.results)
                std::memcpy(memory + copy.to, memory + copy.from, copy.size);
            }
          }
          break;
      }
    }
  }
  return false;
} catch (const std::domain_error& error) {
  warp.fail(error.what());
}

void Machine::release_barrier(Block& block, std::vector<Warp*>& ready) {
  ++block.epoch;
  block.waiting = 0;
  progress = true;
  if (counting) counters.block_barriers += 1;
  for (Warp& warp : block.warps) {
    if (!warp.at_barrier) continue;
    warp.at_barrier = false;
    ++warp.groups[0].pc;
    ready.push_back(&warp);
  }
}

void Machine::release_cluster(Cluster& cluster, std::vector<Warp*>& ready) {
  progress = true;
  for (Block* block : cluster.blocks) {
    ++block->cluster_barriers;
    if (cluster.ordered) block->cluster_epoch = ++block->epoch;
    if (stale) block->view.forget();
    for (Warp& warp : block->warps) {
      if (warp.at_cluster == Warp::arrived) warp.at_cluster = Warp::passed;
      if (warp.at_cluster != Warp::waiting) continue;
      warp.at_cluster = Warp::nowhere;
      ++warp.groups[0].pc;
      ready.push_back(&warp);
    }
  }
  cluster.arrived = 0;
  cluster.ordered = true;
}

void Machine::run(const Kernel& kernel_, uint32_t blocks, uint32_t blocks_per_cluster_, uint32_t threads,
                  size_t dynamic_shared, uint32_t residents, const unsigned char* parameters_) {
  kernel = &kernel_;
  parameters = parameters_;
  num_blocks = blocks;
  blocks_per_cluster = blocks_per_cluster_;
  num_threads = threads;
  shared_bytes = (kernel->static_shared_bytes + 15) / 16 * 16 + dynamic_shared;
  counters = {};
  atomics.clear();
  unpublished_.clear();
  if (threads == 0 || threads > static_cast<uint64_t>(kernel->max_threads))
    throw Fault(readable(kernel->name) + ": launched with " + std::to_string(threads) + " threads");

  if (blocks_per_cluster == 0 || blocks_per_cluster > kMaxClusterBlocks || blocks % blocks_per_cluster)
    throw Fault(readable(kernel->name) + ": " + std::to_string(blocks) + " blocks in clusters of " +
                std::to_string(blocks_per_cluster));

  clusters_.assign(std::clamp(residents / blocks_per_cluster, 1u, std::max(blocks / blocks_per_cluster, 1u)),
                   {});
  uint32_t epoch = 0;  // all launches before this one are over
  for (const auto& block : blocks_) epoch = std::max(epoch, block->epoch);
  while (blocks_.size() < clusters_.size() * blocks_per_cluster) blocks_.push_back(std::make_unique<Block>());
  for (size_t k = 0; k < clusters_.size() * blocks_per_cluster; ++k) {
    Block& block = *blocks_[k];
    block.epoch = epoch;
    block.cluster = &clusters_[k / blocks_per_cluster];
    block.rank = static_cast<uint32_t>(k % blocks_per_cluster);
    block.cluster->blocks.push_back(&block);
  }
  std::vector<Warp*> ready, polling;
  uint32_t started = 0, finished = 0;
  const auto begin = [&](Cluster& cluster) {
    for (Block* block : cluster.blocks) {
      start(*block, started++);
      cluster.live += block->live;
      for (Warp& warp : block->warps) ready.push_back(&warp);
    }
  };
  for (Cluster& cluster : clusters_)
    if (started < blocks) begin(cluster);
  // Threads that wait for memory to change come back when no other can go on. If this happens again and again
  // and nothing else does, they wait for ever.
  unsigned idle_rounds = 0;
  while (finished < blocks) {
    if (ready.empty()) {
      if (polling.empty()) {
        for (const Cluster& cluster : clusters_)
          for (Block* block : cluster.blocks)
            for (Warp& warp : block->warps)
              if (!warp.groups.empty()) {
                warp.pc = warp.groups[0].pc;
                warp.fail("no thread can go on; some wait at this barrier");
              }
        throw Fault(readable(kernel->name) + ": no thread can go on");
      }
      if (!progress && ++idle_rounds > 1000)
        polling[0]->fail("no thread can go on; some wait for this memory to change");
      if (progress) idle_rounds = 0;
      progress = false;
      std::swap(ready, polling);
    }
    const uint64_t bits = random_bits();
    const size_t place = (bits >> 32) * ready.size() >> 32;
    Warp& warp = *ready[place];
    Block& block = *warp.block;
    ready[place] = ready.back();
    ready.pop_back();
    // Some turns are short, so that many orders of the warps are seen.
    if (step(warp, bits & 3 ? 100'000 : bits >> 2 & 63)) {
      (warp.polled ? polling : ready).push_back(&warp);
      continue;
    }
    Cluster& cluster = *block.cluster;
    if (warp.groups.empty()) {
      --block.live;
      --cluster.live;
      if (warp.at_cluster == Warp::arrived) --cluster.arrived;
    }
    if (block.live == 0) {
      if (stale) unpublished_.push_back(std::move(block.view));
      counters.releases = std::max(counters.releases, block.releases);
      counters.cluster_barriers = std::max(counters.cluster_barriers, block.cluster_barriers);
      ++finished;
      if (cluster.live == 0 && started < blocks) begin(cluster);
    } else if (block.waiting == block.live) {
      release_barrier(block, ready);
    }
    if (cluster.arrived && cluster.arrived == cluster.live) release_cluster(cluster, ready);
  }
  for (View& view : unpublished_) view.publish_all();
  unpublished_.clear();
  for (const auto& [address, count] : atomics)
    counters.most_atomics_on_one_address = std::max(counters.most_atomics_on_one_address, count);
  if (counting)
    launches.push_back({readable(kernel->name), blocks, blocks_per_cluster, threads, shared_bytes,
                        kernel->local_bytes, kernel->code.size(), counters});
}

}  // namespace ptx
