// Sorting inside small chunks: a network in registers, one chunk a lane.
#pragma once

#include <array>

#include "keys.h"

namespace noisetilt::NOISETILT_VARIANT {

template <int D>
struct Network {  // Batcher's odd-even merge sort
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
};

// Sorted chunk keys of a block of kLanes chunks: v[j] holds the j-th smallest of each chunk, chunk by lane.
template <class T, int D>
inline void sort_block(const T* x, Vector<Integer<T>>* v) {
  using V = Vector<Integer<T>>;
  constexpr int W = kLanes<T>;
  V a[D];
  for (int i = 0; i < D; ++i) a[i] = to_keys<T>(load<T>(x + i * W));
  // Unzipping log2(D) times brings element j of every chunk to vector j, with the chunks in order.
  for (int round = 1; round < D; round *= 2) {
    V b[D];
    for (int i = 0; i < D / 2; ++i) {
      auto [even, odd] = unzip<Integer<T>>(a[2 * i], a[2 * i + 1]);
      b[i] = even;
      b[D / 2 + i] = odd;
    }
    for (int i = 0; i < D; ++i) a[i] = b[i];
  }
  Network<D>::sort(a);
  for (int i = 0; i < D; ++i) v[i] = a[i];
}

// Chunks [begin, end) of x, sorted, into `columns` (D, M); copies them to `out` in passing.
template <class T, int D>
void sort_chunks(const T* x, T* out, Integer<T>* columns, int64_t num_chunks, int64_t begin, int64_t end) {
  constexpr int W = kLanes<T>;
  Vector<Integer<T>> v[D];
  int64_t m = begin;
  for (; m + W <= end; m += W) {
    sort_block<T, D>(x + m * D, v);
    for (int j = 0; j < D; ++j) store<Integer<T>>(columns + j * num_chunks + m, v[j]);
    std::memcpy(out + m * D, x + m * D, W * D * sizeof(T));
  }
  if (m < end) {
    T rest[W * D] = {};
    std::memcpy(rest, x + m * D, static_cast<size_t>(end - m) * D * sizeof(T));
    sort_block<T, D>(rest, v);
    for (int j = 0; j < D; ++j) std::memcpy(columns + j * num_chunks + m, &v[j], static_cast<size_t>(end - m) * sizeof(T));
    std::memcpy(out + m * D, rest, static_cast<size_t>(end - m) * D * sizeof(T));
  }
}

// Where in its chunk the element stands whose rank there is `rank` and whose value is `value`.
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
