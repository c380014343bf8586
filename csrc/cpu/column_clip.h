// Clipping of a column to the table, with as little ranking across chunks as possible.
#pragma once

#include <algorithm>

#include "chunk_sort.h"
#include "keys.h"
#include "scratch.h"

namespace noisetilt::NOISETILT_VARIANT {

// A value to rank: its key, and its index, which breaks ties.
template <class T>
struct Entry;
template <>
struct Entry<float> {
  int64_t bits;
  static Entry make(int32_t key, int64_t index) {
    return {static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(key)) << 32 |
                                 static_cast<uint32_t>(index))};
  }
  uint64_t ordered() const { return static_cast<uint64_t>(bits) >> 32 ^ 0x80000000u; }
  int32_t key() const { return static_cast<int32_t>(bits >> 32); }
  int64_t index() const { return bits & 0xffffffff; }
  friend bool operator<(Entry a, Entry b) { return a.bits < b.bits; }
};
template <>
struct Entry<double> {
  int64_t bits;
  int64_t position;
  static Entry make(int64_t key, int64_t index) { return {key, index}; }
  uint64_t ordered() const { return static_cast<uint64_t>(bits) ^ uint64_t(1) << 63; }  // unsigned order
  int64_t key() const { return bits; }
  int64_t index() const { return position; }
  friend bool operator<(Entry a, Entry b) {
    return a.bits != b.bits ? a.bits < b.bits : a.position < b.position;
  }
};

constexpr int64_t kRadixSize = 1024;  // more entries than this are sorted by radix sort

// Stable least-significant-digit radix sort. Skips digits in which all keys agree.
template <class T>
void radix_sort(Entry<T>* entries, int64_t count) {
  constexpr int kDigitBits = 11;
  constexpr uint64_t kDigits = uint64_t(1) << kDigitBits;
  uint64_t common_ones = ~uint64_t(0), any_ones = 0;
  for (int64_t i = 0; i < count; ++i) {
    common_ones &= entries[i].ordered();
    any_ones |= entries[i].ordered();
  }
  const uint64_t varying = common_ones ^ any_ones;
  Scratch<Entry<T>> other(count);
  Entry<T>*from = entries, *to = other.data();
  for (int shift = 0; shift < 64 && varying >> shift; shift += kDigitBits) {
    if (!(varying >> shift & (kDigits - 1))) continue;
    int64_t start[kDigits] = {};
    for (int64_t i = 0; i < count; ++i) ++start[from[i].ordered() >> shift & (kDigits - 1)];
    int64_t sum = 0;
    for (auto& s : start) sum += std::exchange(s, sum);
    for (int64_t i = 0; i < count; ++i) to[start[from[i].ordered() >> shift & (kDigits - 1)]++] = from[i];
    std::swap(from, to);
  }
  if (from != entries)
    std::memcpy(static_cast<void*>(entries), from, static_cast<size_t>(count) * sizeof(Entry<T>));
}

// Sorts entries that are in the order of their indices.
template <class T>
void sort_entries(Entry<T>* entries, int64_t count) {
  if (count > kRadixSize) {
    radix_sort<T>(entries, count);
  } else {
    std::sort(entries, entries + count);
  }
}

constexpr int kGroup = 8;           // buckets that are sorted together
constexpr int kMostInNetwork = 16;  // largest bucket that a sorting network sorts

typedef uint32_t StartsOfLanes __attribute__((vector_size(kVectorBytes / 2)));  // of kLanes<int64_t> buckets

// Sorts the buckets of a group by a sorting network. Each lane of a vector holds one bucket. Bucket i has
// starts[i + 1] - starts[i] entries, at most kSlots, and follows the bucket before it. Writes the buckets in
// this order to `sorted`. Reads and writes up to kMostInNetwork places after the last entry.
template <int kSlots>
inline void sort_in_lanes(const Entry<float>* entries, const uint32_t* starts, Entry<float>* sorted) {
  constexpr int W = kLanes<int64_t>, kPadded = (kSlots + W - 1) / W * W;
  const auto last = broadcast(std::numeric_limits<int64_t>::max());
  for (const uint32_t* start = starts; start < starts + kGroup; start += W) {
    StartsOfLanes begin, end;
    std::memcpy(&begin, start, sizeof begin);
    std::memcpy(&end, start + 1, sizeof end);
    const StartsOfLanes sizes = end - begin;
    const auto size = __builtin_convertvector(sizes, Vector<int64_t>);

    // Turns rows, each with the entries of one bucket, into columns. Interleaving W vectors transposes them.
    Vector<int64_t> slots[kPadded];
    for (int slot = 0; slot < kPadded; slot += W) {
      for (int i = 0; i < W; ++i) slots[slot + i] = load(&entries[start[i] - starts[0]].bits + slot);
      interleave<int64_t, W>(slots + slot);
    }
    for (int slot = 0; slot < kPadded; ++slot)
      slots[slot] = size > broadcast<int64_t>(slot) ? slots[slot] : last;
    Network<kSlots>::sort(slots);
    for (int slot = 0; slot < kPadded; slot += W) interleave<int64_t, W>(slots + slot);
    // What a row has after its last entry, the next row overwrites.
    for (int i = 0; i < W; ++i) {
      for (int slot = 0; slot < kPadded; slot += W)
        store(&sorted[start[i] - starts[0]].bits + slot, slots[slot + i]);
    }
  }
}

// Sorts the buckets of a group to `sorted`. Returns false if one of them is too large for a network.
inline bool sort_small_buckets(const Entry<float>* entries, const uint32_t* starts, Entry<float>* sorted) {
  uint32_t largest = 0;
  for (int i = 0; i < kGroup; ++i) largest = std::max(largest, starts[i + 1] - starts[i]);
  if (largest <= 8) {
    sort_in_lanes<8>(entries, starts, sorted);
  } else if (largest <= 12) {
    sort_in_lanes<12>(entries, starts, sorted);
  } else if (largest <= kMostInNetwork) {
    sort_in_lanes<kMostInNetwork>(entries, starts, sorted);
  } else {
    return false;
  }
  return true;
}
// Entries with keys of 64 bits are sorted in place.
inline bool sort_small_buckets(const Entry<double>*, const uint32_t*, Entry<double>*) { return false; }

// One column of a table: lower and upper bound of each rank.
template <class T>
struct TableColumn {
  const T *lower, *upper;
  int64_t stride;
  bool monotone;
  T low(int64_t rank) const { return lower[rank * stride]; }
  T high(int64_t rank) const { return upper[rank * stride]; }
  // Bounds of ranks [first, first + count). Copies them to `copy` if they are not contiguous.
  const T* low(int64_t first, int64_t count, T* copy) const { return read(lower, first, count, copy); }
  const T* high(int64_t first, int64_t count, T* copy) const { return read(upper, first, count, copy); }

 private:
  const T* read(const T* bounds, int64_t first, int64_t count, T* copy) const {
    if (stride == 1) return bounds + first;
    for (int64_t i = 0; i < count; ++i) copy[i] = bounds[(first + i) * stride];
    return copy;
  }
};

// A clipped value of a column.
template <class T>
struct Change {
  int64_t index;  // number of its chunk
  T value, clipped;
};
template <class T>
struct ChangeList {
  Change<T>* entries;
  int64_t capacity;
  int64_t count = 0;  // if larger than capacity, the list is incomplete
  void give_up() { count = capacity + 1; }
};

// Monotone map of values to bucket numbers, as real numbers in [0, num_buckets). Buckets of a normal column
// hold about equally many values.
//
// The map is a sum of two clamped linear functions: one over nearly all values, one over those near the
// middle. Every step of its computation is monotone in spite of rounding, so the sum is.
template <class T>
class BucketMap {
 public:
  // Fits the map to keys of values between `least` and `greatest`. Returns false if these do not allow it.
  bool fit(const Integer<T>* keys, int64_t count, T least, T greatest, int64_t num_buckets) {
    constexpr int kRows = 16;
    // Sorts each lane of a sample: row i is then near the quantile (i + 1/2) / kRows. Two of the rows give
    // the middle and the spread, in spite of outliers.
    Vector<Integer<T>> rows[kRows];
    for (int i = 0; i < kRows; ++i) rows[i] = load(keys + (count - kLanes<T>)*i / (kRows - 1));
    Network<kRows>::sort(rows);
    const T second = mean_of(from_keys<T>(rows[1])), last_but_one = mean_of(from_keys<T>(rows[kRows - 2]));
    const T spread = last_but_one - second, middle = within((second + last_but_one) / 2, least, greatest);
    T buckets = 0;
    for (int i = 0; i < 2; ++i) {
      low_[i] = std::max(least, middle - kReach[i] * spread);
      high_[i] = std::min(greatest, middle + kReach[i] * spread);
      buckets += kDensity[i] * (high_[i] - low_[i]);
    }
    // A small margin keeps the largest result below num_buckets.
    const T scale = static_cast<T>(num_buckets) * static_cast<T>(0.99999) / buckets;
    for (int i = 0; i < 2; ++i) slope_[i] = scale * kDensity[i];
    return scale > 0 && scale <= std::numeric_limits<T>::max();
  }
  T operator()(T value) const {  // of NaN: the largest
    return slope_[0] * (within(value, low_[0], high_[0]) - low_[0]) +
           slope_[1] * (within(value, low_[1], high_[1]) - low_[1]);
  }

 private:
  static T within(T value, T low, T high) {  // of NaN: high
    value = value < high ? value : high;
    return value > low ? value : low;
  }
  static T mean_of(Vector<T> x) {
    T sum = 0;
    for (int i = 0; i < kLanes<T>; ++i) sum += x[i];
    return sum / kLanes<T>;
  }
  // The spread is 2.57 standard deviations of a normal column: the functions reach 7.7 and 1.4 of them. No
  // bucket is then likely to hold more than twice the mean, and few values at the ends share one.
  static constexpr T kReach[] = {T(3), T(0.55)}, kDensity[] = {T(0.36), T(0.64)};
  T low_[2], high_[2], slope_[2];
};

// Clips columns of M keys to the table. Holds the working memory of one thread.
//
// The keys are counted into buckets, three or four keys each. The counts give the range of ranks in a bucket.
// If the table is monotone, one comparison with the largest lower bound and the smallest upper bound of this
// range shows whether any key of the bucket can change. Groups of buckets with such a key are "open": their
// keys are sorted, which gives the exact ranks.
template <class T>
class ColumnClipper {
  using Key = Integer<T>;

 public:
  explicit ColumnClipper(int64_t num_chunks)
      : num_chunks_(num_chunks),
        num_groups_(group_count(num_chunks)),
        num_buckets_(num_groups_ * kGroup),
        ids_(num_chunks),
        starts_(num_buckets_ + 1),
        next_(num_buckets_),
        open_(num_groups_),
        entries_(num_chunks + kMostInNetwork) {}

  // Clips `keys` in place. Appends the changes to `changes` while there is room, and counts all of them.
  void clip(Key* keys, const TableColumn<T>& column, ChangeList<T>& changes) {
    if (!count_buckets(keys)) {
      for (int64_t m = 0; m < num_chunks_; ++m) entries_[m] = Entry<T>::make(keys[m], m);
      sort_entries<T>(entries_.data(), num_chunks_);
      clip_ranks(0, num_chunks_, entries_.data(), keys, column, changes);
    } else if (const int64_t num_open = open_groups(column)) {
      if (num_open > changes.capacity) changes.give_up();  // most open keys change
      gather_entries(keys, num_open);
      for (int64_t g = 0; g < num_groups_;) g = clip_run(g, keys, column, changes);
    }
  }

 private:
  // Smaller buckets settle more of the few ranks of a short column.
  static int64_t group_count(int64_t num_chunks) {
    const int64_t group_keys = kGroup * (num_chunks <= 1024 ? 3 : 4);
    return std::min((num_chunks + group_keys - 1) / group_keys, kMostGroups);
  }

  // Counts the keys into buckets. Returns false if this would not help.
  bool count_buckets(const Key* keys) {
    if (num_chunks_ < kFewest) return false;
    Key least = keys[0], greatest = keys[0];
    for (int64_t m = 1; m < num_chunks_; ++m) {
      least = keys[m] < least ? keys[m] : least;
      greatest = keys[m] > greatest ? keys[m] : greatest;
    }
    least_ = from_key<T>(least);
    greatest_ = from_key<T>(greatest);  // both may be infinite or NaN
    constexpr T kLargest = std::numeric_limits<T>::max();
    if (!map_.fit(keys, num_chunks_, least_ > -kLargest ? least_ : -kLargest,
                  greatest_ < kLargest ? greatest_ : kLargest, num_buckets_))
      return false;

    const BucketMap<T> map = map_;
    for (int64_t m = 0; m < num_chunks_; ++m)
      ids_[m] = static_cast<uint32_t>(static_cast<int32_t>(map(from_key<T>(keys[m]))));
    std::memset(starts_.data(), 0, static_cast<size_t>(num_buckets_ + 1) * sizeof(uint32_t));
    for (int64_t m = 0; m < num_chunks_; ++m) ++starts_[ids_[m] + 1];
    // Sums each group first: one chain of additions through all buckets would take longer.
    uint32_t before = 0;
    for (int64_t g = 0; g < num_groups_; ++g) {
      uint32_t *counts = &starts_[g * kGroup + 1], sums[kGroup], sum = 0;
      for (int i = 0; i < kGroup; ++i) sums[i] = sum += counts[i];
      for (int i = 0; i < kGroup; ++i) counts[i] = before + sums[i];
      before += sum;
    }
    return true;
  }

  // First rank of a group.
  int64_t group_start(int64_t g) const { return starts_[g * kGroup]; }

  // Marks as open the groups in which a key may change. Returns the number of their keys.
  int64_t open_groups(const TableColumn<T>& column) {
    if (!column.monotone) {
      std::memset(open_.data(), 1, static_cast<size_t>(num_groups_));
      return num_chunks_;
    }
    for (int64_t g = 0; g < num_groups_; g += kTested) {
      test_sets<kGroup>(
          column, std::min(kTested, num_groups_ - g), [g](int64_t i) { return (g + i) * kGroup; }, &open_[g]);
    }
    // A look at single buckets closes more groups. Gives up if it closes few.
    constexpr int64_t kTogether = kTested / kGroup;
    int64_t tries = 2, num_open = 0;
    for (int64_t g = 0; g < num_groups_ && tries > 0;) {
      int64_t groups[kTogether], count = 0;
      for (; g < num_groups_ && count < kTogether; ++g) {
        if (open_[g]) groups[count++] = g;
      }
      uint8_t open[kTested];
      test_sets<1>(
          column, count * kGroup, [&](int64_t i) { return groups[i / kGroup] * kGroup + i % kGroup; }, open);
      for (int64_t i = 0; i < count; ++i) {
        const uint8_t* of_group = open + i * kGroup;
        open_[groups[i]] = std::any_of(of_group, of_group + kGroup, [](uint8_t flag) { return flag != 0; });
        tries += open_[groups[i]] ? -1 : 1;
      }
    }
    for (int64_t g = 0; g < num_groups_; ++g) num_open += open_[g] ? group_start(g + 1) - group_start(g) : 0;
    return num_open;
  }

  // Finds in which of `count` sets of kSize buckets a key may change. The first bucket of set i is
  // bucket_of(i). The sets are in the order of their buckets.
  template <int kSize, class BucketOf>
  void test_sets(const TableColumn<T>& column, int64_t count, const BucketOf& bucket_of,
                 uint8_t* open) const {
    if (count == 0) return;
    T low[kTested], high[kTested];
    int32_t bucket[kTested], size[kTested];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t b = bucket_of(i), first = starts_[b], end = starts_[b + kSize];
      bucket[i] = static_cast<int32_t>(b);
      size[i] = static_cast<int32_t>(end - first);
      low[i] = column.low(std::max<int64_t>(end, 1) - 1);
      high[i] = column.high(std::min(first, num_chunks_ - 1));
    }
    // The map is monotone: a bound whose image is outside a set is outside the range of its values. The first
    // and the last bucket also hold the values beyond the map.
    const bool all_above = bucket[0] == 0 && low[0] <= least_;
    const bool all_below = bucket[count - 1] + kSize == num_buckets_ && greatest_ <= high[count - 1];
    for (int64_t i = 0; i < count; ++i) {
      low[i] = map_(low[i]);
      high[i] = map_(high[i]);
    }
    if (all_above) low[0] = -1;
    if (all_below) high[count - 1] = static_cast<T>(num_buckets_);
    for (int64_t i = 0; i < count; ++i) {
      const bool inside = low[i] < static_cast<T>(bucket[i]) && static_cast<T>(bucket[i] + kSize) <= high[i];
      open[i] = size[i] > 0 && !inside;
    }
  }

  // Writes the entries of open groups to the places of their buckets, in the order of their indices.
  void gather_entries(const Key* keys, int64_t num_open) {
    std::memcpy(next_.data(), starts_.data(), static_cast<size_t>(num_buckets_) * sizeof(uint32_t));
    if (num_open < num_chunks_ / 16) {
      for (int64_t m = 0; m < num_chunks_; ++m) {
        if (open_[ids_[m] / kGroup]) entries_[next_[ids_[m]]++] = Entry<T>::make(keys[m], m);
      }
    } else {  // a branch that is hard to predict would take longer than writing all
      for (int64_t m = 0; m < num_chunks_; ++m) entries_[next_[ids_[m]]++] = Entry<T>::make(keys[m], m);
    }
  }

  // Sorts and clips a run of open groups that starts with group g. Returns the group after the run.
  int64_t clip_run(int64_t g, Key* keys, const TableColumn<T>& column, ChangeList<T>& changes) {
    if (!open_[g]) return g + 1;
    const int64_t first = group_start(g);
    Entry<T> sorted[kRunKeys + (kGroup + 1) * kMostInNetwork];
    int64_t end = g;
    while (end < num_groups_ && open_[end] && group_start(end) - first < kRunKeys &&
           sort_small_buckets(&entries_[group_start(end)], &starts_[end * kGroup],
                              sorted + (group_start(end) - first)))
      ++end;
    if (end > g) {
      clip_ranks(first, group_start(end), sorted, keys, column, changes);
      return end;
    }
    for (int64_t b = g * kGroup; b < (g + 1) * kGroup; ++b)
      sort_entries<T>(&entries_[starts_[b]], starts_[b + 1] - starts_[b]);
    clip_ranks(first, group_start(g + 1), &entries_[first], keys, column, changes);
    return g + 1;
  }

  // Clips sorted entries of ranks [first, end). In each block, vectorised comparisons come before the writes.
  void clip_ranks(int64_t first, int64_t end, const Entry<T>* entries, Key* keys,
                  const TableColumn<T>& column, ChangeList<T>& changes) {
    constexpr int kBlock = 64;
    T value[kBlock], clipped[kBlock], low_copy[kBlock], high_copy[kBlock];
    Key clipped_key[kBlock];
    for (int64_t rank = first; rank < end; rank += kBlock, entries += kBlock) {
      const int count = static_cast<int>(std::min<int64_t>(kBlock, end - rank));
      const T *low = column.low(rank, count, low_copy), *high = column.high(rank, count, high_copy);
      int32_t changed = 0;
      for (int i = 0; i < count; ++i) {
        value[i] = from_key<T>(entries[i].key());
        const T at_most = value[i] > high[i] ? high[i] : value[i];
        clipped[i] = value[i] < low[i] ? low[i] : at_most;
        clipped_key[i] = to_exact_key<T>(clipped[i]);  // a bound may be -0
        changed += clipped_key[i] != entries[i].key();
      }
      if (changed == 0) continue;
      for (int i = 0; i < count; ++i) {
        int64_t index = entries[i].index();
        asm("" : "+r"(index));  // keeps the loop scalar: scatter instructions are slower
        keys[index] = clipped_key[i];
      }
      if (changes.count + changed <= changes.capacity) {
        Change<T>* next = changes.entries + changes.count;
        for (int i = 0; i < count; ++i) {
          if (clipped_key[i] != entries[i].key()) *next++ = {entries[i].index(), value[i], clipped[i]};
        }
      }
      changes.count += changed;
    }
  }

  static constexpr int64_t kMostGroups = 1 << 15;  // a float has digits enough for the number of a bucket
  static constexpr int64_t kFewest = 48;           // fewer keys are sorted at once
  static constexpr int64_t kTested = 32;           // sets of buckets that are tested together
  static constexpr int64_t kRunKeys = 256;         // about as many keys are clipped together

  int64_t num_chunks_, num_groups_, num_buckets_;
  T least_, greatest_;
  BucketMap<T> map_;
  Scratch<uint32_t> ids_;
  Scratch<uint32_t> starts_, next_;  // bucket b has ranks [starts_[b], starts_[b + 1])
  Scratch<uint8_t> open_;            // by group
  Scratch<Entry<T>> entries_;        // by rank
};

}  // namespace noisetilt::NOISETILT_VARIANT
