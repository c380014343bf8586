// Clipping of a column to the table, with as little ranking across chunks as possible.
#pragma once

#include <algorithm>

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

constexpr int64_t kRunSize = 256;       // entries to sort at a time; they fit in the first-level cache
constexpr int64_t kExchangeReach = 32;  // largest bucket that is sorted together with its neighbours

// Sorts at most kRunSize + kExchangeReach entries, each fewer than `reach` places from its sorted place. Does
// `reach` rounds of branch-free odd-even transposition. Entries at even and at odd places are kept in two
// arrays, so that a round is a minimum and a maximum of vectors.
inline void exchange_neighbours(Entry<float>* entries, int64_t count, int64_t reach) {
  constexpr int W = kLanes<int64_t>;
  constexpr int64_t kMost = (kRunSize + kExchangeReach) / 2 + W + 1;
  int64_t even[kMost], odd[kMost];
  const int64_t half = (count + 1) / 2, padded = (half + W - 1) / W * W;
  for (int64_t i = 0; i < count / 2; ++i) {
    even[i] = entries[2 * i].bits;
    odd[i] = entries[2 * i + 1].bits;
  }
  if (count % 2) even[half - 1] = entries[count - 1].bits;
  // Padding sorts last.
  for (int64_t i = half; i <= padded; ++i) even[i] = std::numeric_limits<int64_t>::max();
  for (int64_t i = count / 2; i < padded; ++i) odd[i] = std::numeric_limits<int64_t>::max();

  auto round = [padded](int64_t* lower, int64_t* upper) {
    for (int64_t i = 0; i < padded; i += W) {
      const Vector<int64_t> a = load(lower + i), b = load(upper + i);
      store(lower + i, a < b ? a : b);
      store(upper + i, a < b ? b : a);
    }
  };
  for (int64_t k = 0; k < reach; k += 2) {
    round(even, odd);
    round(odd, even + 1);
  }
  for (int64_t i = 0; i < count / 2; ++i) {
    entries[2 * i].bits = even[i];
    entries[2 * i + 1].bits = odd[i];
  }
  if (count % 2) entries[count - 1].bits = even[half - 1];
}
inline void exchange_neighbours(Entry<double>* entries, int64_t count, int64_t) {
  std::sort(entries, entries + count);
}

// One column of a table: lower and upper bound of each rank.
template <class T>
struct TableColumn {
  const T *lower, *upper;
  int64_t stride;
  bool monotone;
  T low(int64_t rank) const { return lower[rank * stride]; }
  T high(int64_t rank) const { return upper[rank * stride]; }
  // Copies the bounds of ranks [first, first + count).
  void read(int64_t first, int64_t count, T* low, T* high) const {
    if (stride == 1) {
      std::memcpy(low, lower + first, static_cast<size_t>(count) * sizeof(T));
      std::memcpy(high, upper + first, static_cast<size_t>(count) * sizeof(T));
    } else {
      for (int64_t i = 0; i < count; ++i) {
        low[i] = lower[(first + i) * stride];
        high[i] = upper[(first + i) * stride];
      }
    }
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
};

// Clips columns of M keys to the table. Holds the working memory of one thread.
//
// The keys are counted into buckets of equal width, about six keys each. The counts give the range of ranks
// in a bucket. If the table is monotone, one comparison with the largest lower bound and the smallest upper
// bound of this range shows whether any key of the bucket can change. Buckets with such a key are "open":
// their keys are sorted, which gives the exact ranks.
template <class T>
class ColumnClipper {
  using Key = Integer<T>;

 public:
  explicit ColumnClipper(int64_t num_chunks)
      : num_chunks_(num_chunks),
        num_buckets_(bucket_count(num_chunks)),
        ids_(num_chunks),
        starts_(num_buckets_ + 1),
        next_(num_buckets_),
        open_(num_buckets_),
        entries_(num_chunks) {}

  // Clips `keys` in place. Appends the changes to `changes` while there is room, and counts all of them.
  void clip(Key* keys, const TableColumn<T>& column, ChangeList<T>& changes) {
    if (!count_buckets(keys)) {
      for (int64_t m = 0; m < num_chunks_; ++m) entries_[m] = Entry<T>::make(keys[m], m);
      sort_entries<T>(entries_.data(), num_chunks_);
      clip_ranks(0, num_chunks_, keys, column, changes);
    } else if (open_buckets(column)) {
      for (int64_t m = 0; m < num_chunks_; ++m) {
        const auto id = ids_[m];
        if (open_[id]) entries_[next_[id]++] = Entry<T>::make(keys[m], m);
      }
      for (int64_t b = 0; b < num_buckets_;) b = clip_run(b, keys, column, changes);
    }
  }

 private:
  static int64_t bucket_count(int64_t num_chunks) {
    return std::max<int64_t>(1, std::min<int64_t>(num_chunks / 6, kMostBuckets));
  }

  // Counts the keys into buckets. Returns false if buckets of equal width cannot separate them.
  bool count_buckets(const Key* keys) {
    if (num_buckets_ == 1) return false;
    Key least = keys[0], greatest = keys[0];
    for (int64_t m = 1; m < num_chunks_; ++m) {
      least = keys[m] < least ? keys[m] : least;
      greatest = keys[m] > greatest ? keys[m] : greatest;
    }
    least_ = from_key<T>(least);
    greatest_ = from_key<T>(greatest);  // both may be infinite or NaN
    origin_ = least_ > -kLargest ? least_ : -kLargest;
    const T end = greatest_ < kLargest ? greatest_ : kLargest;
    scale_ = static_cast<T>(num_buckets_) / (end - origin_);
    if (!(scale_ > 0 && scale_ <= std::numeric_limits<T>::max())) return false;

    const T last = static_cast<T>(num_buckets_ - 1);
    for (int64_t m = 0; m < num_chunks_; ++m) {
      T t = position(from_key<T>(keys[m]));
      t = t < last ? t : last;  // NaN: last bucket
      t = t > 0 ? t : T(0);
      ids_[m] = static_cast<uint16_t>(static_cast<int32_t>(t));
    }
    std::memset(starts_.data(), 0, static_cast<size_t>(num_buckets_ + 1) * sizeof(uint32_t));
    for (int64_t m = 0; m < num_chunks_; ++m) ++starts_[ids_[m] + 1];
    for (int64_t b = 0; b < num_buckets_; ++b) starts_[b + 1] += starts_[b];
    return true;
  }

  // Marks as open the buckets in which a key may change. Returns true if there are any.
  bool open_buckets(const TableColumn<T>& column) {
    bool any = false;
    for (int64_t b = 0; b < num_buckets_; ++b) {
      const int64_t first = starts_[b], last = static_cast<int64_t>(starts_[b + 1]) - 1;
      bool open = last >= first;
      if (open && column.monotone) {
        // position() is monotone: a bound whose position is outside the bucket is outside the range of its
        // values. The first and the last bucket also hold the values beyond them.
        const T low = column.low(last), high = column.high(first);
        const bool above_low = b == 0 ? low <= least_ : position(low) < static_cast<T>(b);
        const bool below_high =
            b == num_buckets_ - 1 ? greatest_ <= high : position(high) >= static_cast<T>(b + 1);
        open = !(above_low && below_high);
      }
      open_[b] = open;
      next_[b] = starts_[b];
      any |= open;
    }
    return any;
  }

  // Sorts and clips a run of open buckets that starts at bucket b. Returns the bucket after the run.
  int64_t clip_run(int64_t b, Key* keys, const TableColumn<T>& column, ChangeList<T>& changes) {
    if (!open_[b]) return b + 1;
    const int64_t first = starts_[b];
    int64_t end = starts_[b + 1];
    if (end - first > kExchangeReach) {
      sort_entries<T>(entries_.data() + first, end - first);
      ++b;
    } else {
      int64_t largest = 0;
      for (; b < num_buckets_ && open_[b] && starts_[b] - first < kRunSize; ++b) {
        const int64_t size = starts_[b + 1] - starts_[b];
        if (size > kExchangeReach) break;
        largest = std::max(largest, size);
        end = starts_[b + 1];
      }
      exchange_neighbours(entries_.data() + first, end - first, largest);
    }
    clip_ranks(first, end, keys, column, changes);
    return b;
  }

  // Clips the entries of ranks [first, end). In each block, vectorised comparisons come before the writes.
  void clip_ranks(int64_t first, int64_t end, Key* keys, const TableColumn<T>& column,
                  ChangeList<T>& changes) {
    constexpr int kBlock = 64;
    T value[kBlock], low[kBlock], high[kBlock], clipped[kBlock];
    Key clipped_key[kBlock];
    for (int64_t rank = first; rank < end; rank += kBlock) {
      const int count = static_cast<int>(std::min<int64_t>(kBlock, end - rank));
      const Entry<T>* entries = entries_.data() + rank;
      column.read(rank, count, low, high);
      int32_t changed = 0;
      for (int i = 0; i < count; ++i) {
        value[i] = from_key<T>(entries[i].key());
        const T at_most = value[i] > high[i] ? high[i] : value[i];
        clipped[i] = value[i] < low[i] ? low[i] : at_most;
        clipped_key[i] = to_exact_key<T>(clipped[i]);  // a bound may be -0
        changed += clipped_key[i] != entries[i].key();
      }
      if (changed == 0) continue;
      for (int i = 0; i < count; ++i) keys[entries[i].index()] = clipped_key[i];
      if (changes.count + changed <= changes.capacity) {
        Change<T>* next = changes.entries + changes.count;
        for (int i = 0; i < count; ++i) {
          if (clipped_key[i] != entries[i].key()) *next++ = {entries[i].index(), value[i], clipped[i]};
        }
      }
      changes.count += changed;
    }
  }

  T position(T value) const { return (value - origin_) * scale_; }

  static constexpr int64_t kMostBuckets = 65536;  // bucket numbers have 16 bits
  // A range between -kLargest and kLargest has a finite width.
  static constexpr T kLargest = static_cast<T>(1e30);

  int64_t num_chunks_, num_buckets_;
  T least_, greatest_, origin_, scale_;
  Scratch<uint16_t> ids_;
  Scratch<uint32_t> starts_, next_;  // bucket b has ranks [starts_[b], starts_[b + 1])
  Scratch<uint8_t> open_;
  Scratch<Entry<T>> entries_;  // by rank
};

}  // namespace noisetilt::NOISETILT_VARIANT
