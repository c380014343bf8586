// Sorting of small chunks by a sorting network in registers. Each lane of a vector holds one chunk.
#pragma once

#include <array>

#include "keys.h"

namespace noisetilt::NOISETILT_VARIANT {

template <int D>
struct Network {  // Batcher's odd-even mergesort
  struct Comparator {
    int low, high;
  };

  template <class Visit>
  static constexpr void visit(Visit&& f) {
    for (int p = 1; p < D; p *= 2)
      for (int k = p; k >= 1; k /= 2)
        for (int j = k % p; j + k < D; j += 2 * k)
          for (int i = 0; i < k && i + j + k < D; ++i)
            if ((i + j) / (2 * p) == (i + j + k) / (2 * p)) f(i + j, i + j + k);
  }
  static constexpr int count() {
    int n = 0;
    visit([&](int, int) { ++n; });
    return n;
  }
  static constexpr auto list() {
    std::array<Comparator, count()> all{};
    int n = 0;
    visit([&](int low, int high) { all[n++] = {low, high}; });
    return all;
  }

  template <class V, size_t... I>
  static inline void sort(V* v, std::index_sequence<I...>) {
    constexpr auto all = list();
    auto exchange = [v](int low, int high) {
      V a = v[low], b = v[high];
      v[low] = a < b ? a : b;
      v[high] = a < b ? b : a;
    };
    (exchange(all[I].low, all[I].high), ...);
  }
  template <class V>
  static inline void sort(V* v) {
    if constexpr (D > 1) sort(v, std::make_index_sequence<count()>{});
  }

  // The exchanges of a sort, one bit for each comparator and lane.
  template <class E>
  struct Exchanges {
    static constexpr int kBits = 8 * sizeof(E);
    Vector<E> words[count() / kBits + 1] = {};
    static constexpr Vector<E> bit(int comparator) {
      return broadcast(static_cast<E>(std::make_unsigned_t<E>(1) << comparator % kBits));
    }
  };
  template <class E, size_t... I>
  static inline Exchanges<E> sort_and_note(Vector<E>* v, std::index_sequence<I...>) {
    constexpr auto all = list();
    Exchanges<E> exchanges;
    auto exchange = [&](int low, int high, int comparator) {
      const Vector<E> a = v[low], b = v[high], swapped = a > b;
      v[low] = swapped ? b : a;
      v[high] = swapped ? a : b;
      Vector<E>& word = exchanges.words[comparator / Exchanges<E>::kBits];
      word = swapped ? word | Exchanges<E>::bit(comparator) : word;
    };
    (exchange(all[I].low, all[I].high, I), ...);
    return exchanges;
  }
  template <class E, size_t... I>
  static inline void undo(Vector<E>* elements, const Exchanges<E> exchanges, std::index_sequence<I...>) {
    constexpr auto all = list();
    Vector<E> v[D];
    for (int i = 0; i < D; ++i) v[i] = elements[i];
    auto exchange = [&](int low, int high, int comparator) {
      const Vector<E> a = v[low], b = v[high];
      const auto swapped =
          (exchanges.words[comparator / Exchanges<E>::kBits] & Exchanges<E>::bit(comparator)) != 0;
      v[low] = swapped ? b : a;
      v[high] = swapped ? a : b;
    };
    (exchange(all[count() - 1 - I].low, all[count() - 1 - I].high, count() - 1 - I), ...);
    for (int i = 0; i < D; ++i) elements[i] = v[i];
  }
};

// Reads kLanes chunks: lane l of v[j] is element j of chunk l. log2(D) rounds of unzipping bring the elements
// of all chunks together, with the chunks in order.
template <class E, int D>
inline void load_block(const E* x, Vector<E>* v) {
  for (int i = 0; i < D; ++i) v[i] = load(x + i * kLanes<E>);
  for (int round = 1; round < D; round *= 2) {
    Vector<E> unzipped[D];
    for (int i = 0; i < D / 2; ++i) {
      auto [even, odd] = unzip<E>(v[2 * i], v[2 * i + 1]);
      unzipped[i] = even;
      unzipped[D / 2 + i] = odd;
    }
    for (int i = 0; i < D; ++i) v[i] = unzipped[i];
  }
}

// Inverse of load_block.
template <class E, int D>
inline void store_block(E* x, Vector<E>* v) {
  interleave<E, D>(v);
  for (int i = 0; i < D; ++i) store(x + i * kLanes<E>, v[i]);
}

// Calls block(chunks, number of the first chunk, count) for the chunks [begin, end) of x, kLanes at a time.
// If the last block is shorter, it is called on a padded copy, which is then copied back.
template <class T, int D, class Block>
inline void for_blocks(T* x, int64_t begin, int64_t end, const Block& block) {
  constexpr int W = kLanes<T>;
  int64_t m = begin;
  for (; m + W <= end; m += W) block(x + m * D, m, W);
  if (m < end) {
    const auto bytes = static_cast<size_t>(end - m) * D * sizeof(T);
    T rest[W * D] = {};
    std::memcpy(rest, x + m * D, bytes);
    block(rest, m, end - m);
    std::memcpy(x + m * D, rest, bytes);
  }
}

// Sorts chunks [begin, end) of x and writes their keys to `columns` (D, M).
template <class T, int D>
void sort_chunks(T* x, Integer<T>* columns, int64_t num_chunks, int64_t begin, int64_t end) {
  constexpr int W = kLanes<T>;
  for_blocks<T, D>(x, begin, end, [&](const T* chunks, int64_t m, int64_t count) {
    Vector<T> values[D];
    load_block<T, D>(chunks, values);
    Vector<Integer<T>> v[D];
    for (int i = 0; i < D; ++i) v[i] = to_keys<T>(values[i]);
    Network<D>::sort(v);
    for (int j = 0; j < D; ++j) {
      Integer<T>* column = columns + j * num_chunks + m;
      if (count == W) {
        store<Integer<T>>(column, v[j]);
      } else {
        std::memcpy(column, &v[j], static_cast<size_t>(count) * sizeof(T));
      }
    }
  });
}

// Brings at_rank, the elements of chunks by rank, to the places of these ranks in the unsorted `keys`. Equal
// keys are ranked by place.
template <class E, int D>
inline void unsort_by_counting(const Vector<E>* keys, Vector<E>* at_rank) {
  using V = Vector<E>;
  V rank[D] = {}, result[D];
  for (int i = 0; i < D; ++i) {
    for (int k = i + 1; k < D; ++k) {
      const V after = keys[i] > keys[k];  // -1 where element i sorts after element k
      rank[i] -= after;
      rank[k] += after + 1;
    }
  }
  for (int i = 0; i < D; ++i) {
    result[i] = at_rank[0];
    for (int j = 1; j < D; ++j) result[i] = rank[i] == j ? at_rank[j] : result[i];
  }
  for (int i = 0; i < D; ++i) at_rank[i] = result[i];
}

// The same. Sorts the keys and undoes the exchanges. This takes less time, but if keys of a chunk are
// equal, the network may exchange them.
template <class E, int D>
inline void unsort(const Vector<E>* keys, Vector<E>* at_rank) {
  if constexpr (D <= 4) {
    unsort_by_counting<E, D>(keys, at_rank);
  } else {
    constexpr auto comparators = std::make_index_sequence<Network<D>::count()>{};
    Vector<E> sorted[D], equal{};
    for (int i = 0; i < D; ++i) sorted[i] = keys[i];
    const auto exchanges = Network<D>::template sort_and_note<E>(sorted, comparators);
    for (int i = 0; i + 1 < D; ++i) equal |= sorted[i] == sorted[i + 1];
    if (any_lane<E>(equal)) return unsort_by_counting<E, D>(keys, at_rank);
    Network<D>::template undo<E>(at_rank, exchanges, comparators);
  }
}

// Inverse of sort_chunks: replaces each element of chunks [begin, end) of x by the value of the key at its
// rank in `columns`. An element whose key has not changed keeps its bits.
template <class T, int D>
void unsort_chunks(T* x, const Integer<T>* columns, int64_t num_chunks, int64_t begin, int64_t end) {
  using V = Vector<Integer<T>>;
  for_blocks<T, D>(x, begin, end, [&](T* chunks, int64_t m, int64_t count) {
    Vector<T> values[D];
    load_block<T, D>(chunks, values);
    V keys[D], clipped[D] = {};
    for (int i = 0; i < D; ++i) keys[i] = to_keys<T>(values[i]);
    for (int j = 0; j < D; ++j)
      std::memcpy(&clipped[j], columns + j * num_chunks + m, static_cast<size_t>(count) * sizeof(T));
    unsort<Integer<T>, D>(keys, clipped);
    for (int i = 0; i < D; ++i) values[i] = clipped[i] != keys[i] ? from_keys<T>(clipped[i]) : values[i];
    store_block<T, D>(chunks, values);
  });
}

// Index in the chunk of the element that has this rank in the chunk and this value.
template <class T, int D>
inline int64_t place_in_chunk(const T* chunk, int64_t rank, T value) {
  int64_t equals_before = rank;
  for (int i = 0; i < D; ++i) equals_before -= chunk[i] < value;
  int64_t i = 0;
  for (;; ++i) {
    if (chunk[i] == value && equals_before-- == 0) return i;
  }
}

}  // namespace noisetilt::NOISETILT_VARIANT
