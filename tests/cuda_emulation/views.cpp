// Memory model of global memory: what a block sees of it, and when others see what the block has stored.
//
// An ordinary load returns what memory held at the last acquire of its block, or at the start of the launch:
// on a GPU the block's first-level cache may still hold it, or the load may have been made early. A store of
// a block is seen at once by its own threads. Others see it after a release by the thread, or by a thread of
// the block behind a barrier. Stores without a release become visible at the end of the launch, not at the
// end of their block. Atomic operations, volatile accesses and __ldcg go to what all blocks share, and
// acquire or release nothing but their own address, unless their order says so. The barrier of a cluster
// releases and acquires, for all of its threads.
//
// That is the worst case. In half of the launches a random half of memory is better: every store is seen by
// others as soon as another block runs, and a load returns the last value.
//
// How it works. Memory holds what all blocks share, like the second-level cache of a GPU. Every block has a
// view: the bytes that it sees differently, or has seen, in sectors of 32 bytes. Just before a block accesses
// a sector, the bytes of its view are exchanged with those in memory, which may then be loaded or stored as
// usual. The exchange is undone before another block accesses memory, and before every release, acquire and
// strong access. The past of memory is kept for the whole launch.
#include <optional>
#include <unordered_map>

#include "tracing.h"

namespace emulation {
namespace views {
namespace {

constexpr uintptr_t kSectorBytes = 32;
using Bytes = std::array<unsigned char, kSectorBytes>;
using Mask = uint32_t;  // of the bytes of a sector

// Sector of a view.
struct Sector {
  Mask held = 0;        // bytes of the view
  Mask unreleased = 0;  // those of them that the block has stored, and others do not see yet
  bool shown = false;
  bool early = false;  // its stores are seen at once
  bool fresh = false;  // its loads return the last value
  Bytes bytes;         // the view's, or the shared ones while the sector is shown in memory
};

struct Range {
  uintptr_t address;
  size_t bytes;
};

struct Store {
  Range range;
  Moment moment;
};

struct View {
  std::unordered_map<uintptr_t, Sector> sectors;
  std::vector<std::pair<uintptr_t, Sector*>> shown;
  std::vector<Store> stores;  // since the last release, and those that it did not cover
  uint64_t acquired = 0;      // time of the last acquire
};

// Content of a sector before its first change at this time.
struct Version {
  uint64_t time;
  Bytes bytes;
};

struct Region {
  uintptr_t begin, end;
  uint64_t serial;
};

std::vector<Region> regions;  // of global memory, and of shared memory, in ascending order

// The last answers of is_global, for pieces of memory: no two regions share one.
constexpr uintptr_t kPieceBytes = 256;
struct Answer {
  uintptr_t piece;
  bool global;
};
std::array<Answer, 1024> answers;

// State of the running launch.
std::vector<std::unique_ptr<View>> all;  // of all blocks that have started
std::vector<View*> residents;
View* last;                   // of the block that has accessed memory last
std::optional<Range> strong;  // of the strong access that this block is making
std::unordered_map<uintptr_t, std::vector<Version>> past;
uint64_t now;  // number of acquires
bool mixed;
uint64_t salt;

uintptr_t number(const void* address) { return reinterpret_cast<uintptr_t>(address); }
unsigned char* memory(uintptr_t address) { return reinterpret_cast<unsigned char*>(address); }

// Calls f(address of sector, mask) for every sector of the range.
template <class F>
void for_each_sector(Range range, const F& f) {
  const auto [address, bytes] = range;
  const uintptr_t end = address + bytes;
  for (uintptr_t sector = address / kSectorBytes * kSectorBytes; sector < end; sector += kSectorBytes) {
    const uintptr_t first = std::max(sector, address) - sector,
                    count = std::min(sector + kSectorBytes, end) - sector - first;
    f(sector, static_cast<Mask>(((uint64_t{1} << count) - 1) << first));
  }
}

// Calls f(k) for every byte of the mask.
template <class F>
void for_each_byte(Mask mask, const F& f) {
  for (; mask; mask &= mask - 1) f(static_cast<unsigned>(__builtin_ctz(mask)));
}

void exchange(uintptr_t address, Sector& sector) {
  for_each_byte(sector.held, [&](unsigned k) { std::swap(memory(address)[k], sector.bytes[k]); });
  sector.shown = !sector.shown;
}

// First region that does not end before the address.
auto find_region(uintptr_t address) {
  return std::upper_bound(regions.begin(), regions.end(), address,
                          [](uintptr_t at, const Region& region) { return at < region.end; });
}

// Sector of a view; new ones hold nothing. Whether it is early and fresh depends on its place and on the
// seed, not on the address, which is another one in every process.
Sector& sector_at(View& view, uintptr_t address) {
  const auto [at, is_new] = view.sectors.try_emplace(address);
  if (is_new && mixed) {
    const auto region = find_region(address);  // none if an access goes on behind its region
    const uint64_t place = region == regions.end() ? 0 : (region->serial << 32) + address - region->begin;
    const uint64_t bits = place * salt;
    at->second.early = bits >> 63;
    at->second.fresh = bits >> 62 & 1;
  }
  return at->second;
}

Sector& show(View& view, uintptr_t address) {
  Sector& sector = sector_at(view, address);
  if (!sector.shown) {
    exchange(address, sector);
    view.shown.emplace_back(address, &sector);
  }
  return sector;
}

// Content of a sector at a time, or null if it has not changed since.
const Bytes* version(uintptr_t address, uint64_t time) {
  const auto found = past.find(address);
  if (found == past.end()) return nullptr;
  const auto& versions = found->second;
  const auto later = std::upper_bound(versions.begin(), versions.end(), time,
                                      [](uint64_t time, const Version& v) { return time < v.time; });
  return later == versions.end() ? nullptr : &later->bytes;
}

// Called before a change of the shared bytes, when they are in memory.
void keep(uintptr_t address) {
  auto& versions = past[address];
  if (!versions.empty() && versions.back().time == now) return;
  versions.push_back({now, {}});
  for (unsigned k = 0; k < kSectorBytes; ++k) versions.back().bytes[k] = memory(address)[k];
}

// Lets all blocks see the stores of a block to a range.
void publish(View& view, Range range) {
  for_each_sector(range, [&](uintptr_t at, Mask mask) {
    const auto found = view.sectors.find(at);
    if (found == view.sectors.end()) return;
    Sector& sector = found->second;
    mask &= sector.unreleased;
    if (!mask) return;
    if (sector.shown) exchange(at, sector);
    keep(at);
    for_each_byte(mask, [&](unsigned k) { memory(at)[k] = sector.bytes[k]; });
    sector.unreleased &= ~mask;
  });
}

// Lets memory hold again what all blocks share.
void hide(View& view) {
  for (const auto& [address, sector] : view.shown) {
    if (sector->shown) exchange(address, *sector);
    if (sector->unreleased && sector->early) publish(view, {address, kSectorBytes});
  }
  view.shown.clear();
}

// Forgets what the block has not stored itself. Its sectors must be hidden.
void forget(View& view) {
  for (auto at = view.sectors.begin(); at != view.sectors.end();) {
    Sector& sector = at->second;
    sector.held = sector.unreleased;
    at = sector.held ? std::next(at) : view.sectors.erase(at);
  }
}

// The current block now sees, of the address of its last strong access, what it has read or written.
void end_strong_access() {
  if (!strong) return;
  for_each_sector(*strong, [](uintptr_t at, Mask mask) {
    Sector& sector = sector_at(*last, at);
    for_each_byte(mask, [&](unsigned k) { sector.bytes[k] = memory(at)[k]; });
    sector.held |= mask;
  });
  strong.reset();
}

// View of the current block. All others are hidden.
View& current_view() {
  end_strong_access();
  View* const mine = residents[slot_of(*current->warp->block)];
  if (last && last != mine) hide(*last);
  last = mine;
  return *mine;
}

}  // namespace

bool is_global(const void* address) {
  const uintptr_t piece = number(address) / kPieceBytes;
  Answer& answer = answers[piece % answers.size()];
  if (answer.piece != piece) {
    const auto region = find_region(number(address));
    answer = {piece, region != regions.end() && number(address) >= region->begin};
  }
  return answer.global;
}

void load(const void* address, size_t bytes) {
  View& view = current_view();
  for_each_sector({number(address), bytes}, [&](uintptr_t at, Mask mask) {
    Sector& sector = show(view, at);
    if (sector.fresh || !(mask & ~sector.held)) return;
    const Bytes* const old = version(at, view.acquired);
    for_each_byte(~sector.held, [&](unsigned k) {
      sector.bytes[k] = memory(at)[k];
      if (old) memory(at)[k] = (*old)[k];
    });
    sector.held = ~Mask{0};
  });
}

void store(const void* address, size_t bytes) {
  View& view = current_view();
  for_each_sector({number(address), bytes}, [&](uintptr_t at, Mask mask) {
    Sector& sector = show(view, at);
    for_each_byte(mask & ~sector.held, [&](unsigned k) { sector.bytes[k] = memory(at)[k]; });
    sector.held |= mask;
    sector.unreleased |= mask;
  });
  view.stores.push_back({{number(address), bytes}, order_of(*current->warp->block).now()});
}

void strong_access(const void* address, size_t bytes, bool write) {
  View& view = current_view();
  publish(view, {number(address), bytes});
  for_each_sector({number(address), bytes}, [&](uintptr_t at, Mask mask) {
    Sector& sector = sector_at(view, at);
    if (sector.shown) exchange(at, sector);
    sector.held &= ~mask;
    if (write) keep(at);
  });
  strong = {number(address), bytes};
}

void start(const Block& block) {
  residents.resize(grid->blocks.size());
  residents[slot_of(block)] = all.emplace_back(std::make_unique<View>()).get();
}

void finish(const Block& block) {
  end_strong_access();
  View& view = *residents[slot_of(block)];
  hide(view);
  forget(view);
}

// A release and an acquire by all threads of the cluster.
void synchronize(const Cluster& cluster) {
  hide(current_view());
  for (unsigned rank = 0; rank < grid->blocks_per_cluster; ++rank) {
    View& view = *residents[slot_of(cluster.blocks[rank])];
    for (const Store& store : view.stores) publish(view, store.range);
    view.stores.clear();
    forget(view);
    view.acquired = now;
  }
  ++now;
}

}  // namespace views

using namespace views;

void launch_started() {
  now = 1;
  mixed = random_bits() & 1;
  salt = random_bits() | 1;
}

void launch_finished() {
  end_strong_access();
  if (last) hide(*last);
  last = nullptr;
  for (size_t k = all.size(); k > 0; --k) {  // in random order
    std::swap(all[k - 1], all[below(random_bits(), k)]);
    for (const auto& [address, sector] : all[k - 1]->sectors) publish(*all[k - 1], {address, kSectorBytes});
  }
  all.clear();
  residents.clear();
  past.clear();
}

void release() {
  View& view = current_view();
  hide(view);
  const Order& order = order_of(*current->warp->block);
  const auto covered = [&](const Store& store) {
    if (!order.is_before(store.moment)) return false;
    publish(view, store.range);
    return true;
  };
  view.stores.erase(std::remove_if(view.stores.begin(), view.stores.end(), covered), view.stores.end());
}

void acquire() {
  View& view = current_view();
  hide(view);
  forget(view);
  view.acquired = now++;
}

void load_constant(void* to, const void* from, size_t bytes) {
  hide(current_view());
  for_each_sector({number(from), bytes}, [&](uintptr_t at, Mask mask) {
    const Bytes* const old = version(at, 0);
    for_each_byte(mask, [&](unsigned k) {
      static_cast<unsigned char*>(to)[at + k - number(from)] = old ? (*old)[k] : memory(at)[k];
    });
  });
}

void memory_added(const void* begin, size_t bytes) {
  static uint64_t serial;
  serial = regions.empty() ? 0 : serial + 1;
  const uintptr_t pieces = (bytes + kPieceBytes - 1) / kPieceBytes;
  const Region region{number(begin), number(begin) + pieces * kPieceBytes, serial};
  regions.insert(find_region(region.begin), region);
  answers = {};
}

void memory_removed(const void* begin) {
  answers = {};
  regions.erase(std::find_if(regions.begin(), regions.end(),
                             [=](const Region& region) { return region.begin == number(begin); }));
}

}  // namespace emulation
