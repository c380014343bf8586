// Ranking a column across chunks, as far as needed, and clipping it.
#pragma once

#include <algorithm>

#include "keys.h"
#include "scratch.h"

namespace noisetilt::NOISETILT_VARIANT {

// A value to be ranked: its key, made unsigned, and its index, which breaks ties.
template <class T>
struct Entry;
template <>
struct Entry<float> {
  uint64_t bits;
  static Entry make(int32_t key, int64_t index) {
    return {static_cast<uint64_t>(static_cast<uint32_t>(key) ^ 0x80000000u) << 32 | static_cast<uint32_t>(index)};
  }
  uint64_t ordered() const { return bits >> 32; }
  int32_t key() const { return static_cast<int32_t>(static_cast<uint32_t>(bits >> 32) ^ 0x80000000u); }
  int64_t index() const { return static_cast<int64_t>(bits & 0xffffffffu); }
  friend bool operator<(Entry a, Entry b) { return a.bits < b.bits; }
};
template <>
struct Entry<double> {
  uint64_t bits;
  int64_t position;
  static Entry make(int64_t key, int64_t index) { return {static_cast<uint64_t>(key) ^ (uint64_t(1) << 63), index}; }
  uint64_t ordered() const { return bits; }
  int64_t key() const { return static_cast<int64_t>(bits ^ (uint64_t(1) << 63)); }
  int64_t index() const { return position; }
  friend bool operator<(Entry a, Entry b) { return a.bits != b.bits ? a.bits < b.bits : a.position < b.position; }
};

constexpr int64_t kInsertionSize = 24;
constexpr int64_t kRadixSize = 1024;

// Stable least-significant-digit radix sort; digits in which all keys agree cost one look.
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
  if (from != entries) std::memcpy(static_cast<void*>(entries), from, static_cast<size_t>(count) * sizeof(Entry<T>));
}

// Sorts entries that stand in the order of their indices.
template <class T>
void sort_entries(Entry<T>* entries, int64_t count) {
  if (count > kRadixSize) {
    radix_sort<T>(entries, count);
  } else if (count > kInsertionSize) {
    std::sort(entries, entries + count);
  } else {
    for (int64_t i = 1; i < count; ++i) {
      const Entry<T> e = entries[i];
      int64_t k = i;
      for (; k > 0 && e < entries[k - 1]; --k) entries[k] = entries[k - 1];
      entries[k] = e;
    }
  }
}

// One column of the bounds tables.
template <class T>
struct Bounds {
  const T *lower, *upper;
  int64_t stride;
  bool monotone;
  T low(int64_t rank) const { return lower[rank * stride]; }
  T high(int64_t rank) const { return upper[rank * stride]; }
};

// Clips columns of M keys to the bounds of their ranks; holds the working memory of one thread.
//
// The keys are counted into buckets of equal width, about four elements each. The count bounds the ranks of
// a bucket's elements, and where the tables do not decrease, one comparison with the largest lower and the
// smallest upper bound of these ranks shows that none of them changes. The elements of all other ("open")
// buckets are sorted inside their bucket, which gives exact ranks.
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

  // Calls write(chunk, value, bound) for every element that is clipped, from `value` to `bound`.
  template <class Write>
  void clip(const Key* keys, const Bounds<T>& bounds, const Write& write) {
    if (!count_buckets(keys)) {
      for (int64_t m = 0; m < num_chunks_; ++m) entries_[m] = Entry<T>::make(keys[m], m);
      clip_bucket(0, num_chunks_, bounds, write);
    } else if (open_buckets(bounds)) {
      for (int64_t m = 0; m < num_chunks_; ++m) {
        const auto id = ids_[m];
        if (open_[id]) entries_[next_[id]++] = Entry<T>::make(keys[m], m);
      }
      for (int64_t b = 0; b < num_buckets_; ++b) {
        if (open_[b]) clip_bucket(starts_[b], starts_[b + 1], bounds, write);
      }
    }
  }

 private:
  static int64_t bucket_count(int64_t num_chunks) {
    int64_t count = 1;
    while (count < num_chunks / 4 && count < kMostBuckets) count *= 2;
    return count;
  }

  // Counts the keys into buckets; false where equal-width buckets cannot tell them apart.
  bool count_buckets(const Key* keys) {
    if (num_buckets_ == 1) return false;
    Key least = keys[0], greatest = keys[0];
    for (int64_t m = 1; m < num_chunks_; ++m) {
      least = keys[m] < least ? keys[m] : least;
      greatest = keys[m] > greatest ? keys[m] : greatest;
    }
    least_ = from_key<T>(least);
    greatest_ = from_key<T>(greatest);  // may be infinite or NaN, as the least may
    origin_ = least_ > -kLargest ? least_ : -kLargest;
    const T end = greatest_ < kLargest ? greatest_ : kLargest;
    scale_ = static_cast<T>(num_buckets_) / (end - origin_);
    if (!(scale_ > 0 && scale_ <= std::numeric_limits<T>::max())) return false;

    const T last = static_cast<T>(num_buckets_ - 1);
    for (int64_t m = 0; m < num_chunks_; ++m) {
      T t = position(from_key<T>(keys[m]));
      t = t < last ? t : last;  // NaN goes last
      t = t > 0 ? t : T(0);
      ids_[m] = static_cast<uint16_t>(static_cast<int32_t>(t));
    }
    std::memset(starts_.data(), 0, static_cast<size_t>(num_buckets_ + 1) * sizeof(uint32_t));
    for (int64_t m = 0; m < num_chunks_; ++m) ++starts_[ids_[m] + 1];
    for (int64_t b = 0; b < num_buckets_; ++b) starts_[b + 1] += starts_[b];
    return true;
  }

  // Finds the buckets in which some element might change; whether there is any.
  bool open_buckets(const Bounds<T>& bounds) {
    bool any = false;
    for (int64_t b = 0; b < num_buckets_; ++b) {
      const int64_t first = starts_[b], last = static_cast<int64_t>(starts_[b + 1]) - 1;
      bool open = last >= first;
      if (open && bounds.monotone) {
        // position() does not decrease, so a bound whose position lies outside the bucket lies outside
        // of its values. The end buckets also hold what lies beyond them.
        const T low = bounds.low(last), high = bounds.high(first);
        const bool above_low = b == 0 ? low <= least_ : position(low) < static_cast<T>(b);
        const bool below_high = b == num_buckets_ - 1 ? greatest_ <= high : position(high) >= static_cast<T>(b + 1);
        open = !(above_low && below_high);
      }
      open_[b] = open;
      next_[b] = starts_[b];
      any |= open;
    }
    return any;
  }

  // Sorts the entries of ranks [first, end) and clips them.
  template <class Write>
  void clip_bucket(int64_t first, int64_t end, const Bounds<T>& bounds, const Write& write) {
    sort_entries<T>(entries_.data() + first, end - first);
    for (int64_t rank = first; rank < end; ++rank) {
      const T value = from_key<T>(entries_[rank].key()), low = bounds.low(rank), high = bounds.high(rank);
      if (value < low) {
        write(entries_[rank].index(), value, low);
      } else if (value > high) {
        write(entries_[rank].index(), value, high);
      }
    }
  }

  T position(T value) const { return (value - origin_) * scale_; }

  static constexpr int64_t kMostBuckets = 16384;
  static constexpr T kLargest = static_cast<T>(1e30);  // the width of a range below it does not overflow

  int64_t num_chunks_, num_buckets_;
  T least_, greatest_, origin_, scale_;
  Scratch<uint16_t> ids_;
  Scratch<uint32_t> starts_, next_;  // bucket b holds the ranks [starts_[b], starts_[b + 1])
  Scratch<uint8_t> open_;
  Scratch<Entry<T>> entries_;  // by rank
};

}  // namespace noisetilt::NOISETILT_VARIANT
