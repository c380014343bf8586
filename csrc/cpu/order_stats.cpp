// Two-level order statistics (2OS), DESIGN section 2, without a full sort.
//
// Every chunk is sorted, and of the sorted chunks the j-th smallest values make column j. Each column is
// ranked only as far as its bounds ask (column_clip.h). An element that is clipped is found again in its chunk
// by its value: the n-th among its equals. Only such elements are written; the rest is a copy.

#include "order_stats.h"

#include <algorithm>

#include "chunk_sort.h"
#include "column_clip.h"
#include "parallel.h"
#include "scratch.h"

namespace noisetilt::NOISETILT_VARIANT {
namespace {

constexpr int64_t kGrain = 8192;  // elements of work that are worth a thread

int64_t grain_for(int64_t elements_each) { return std::max<int64_t>(1, kGrain / elements_each); }

// Clips every column; place(chunk, rank in chunk, value) tells where in its chunk an element stands.
template <class T, class Place>
void clip_columns(T* out, const Integer<T>* columns, const Table<T>& table, const Place& place) {
  const int64_t M = table.num_chunks, D = table.chunk_size;
  parallel_for(D, grain_for(M), [&](int64_t begin, int64_t end) {
    ColumnClipper<T> clipper(M);
    for (int64_t j = begin; j < end; ++j) {
      const int64_t offset = j * table.column_stride;
      const Bounds<T> bounds{table.lower + offset, table.upper + offset, table.row_stride, table.monotone};
      clipper.clip(columns + j * M, bounds,
                   [&](int64_t m, T value, T bound) { out[m * D + place(m, j, value)] = bound; });
    }
  });
}

// Chunks of D values, sorted by a network.
template <class T, int D>
void project_small_chunks(const T* x, T* out, const Table<T>& table) {
  const int64_t M = table.num_chunks;
  Scratch<Integer<T>> columns(M * D);
  parallel_for(M, grain_for(D),
               [&](int64_t begin, int64_t end) { sort_chunks<T, D>(x, out, columns.data(), M, begin, end); });
  clip_columns<T>(out, columns.data(), table, [&](int64_t m, int64_t j, T value) {
    return place_in_chunk<T, D>(x + m * D, j, value);
  });
}

// Chunks of any size: (key, index) pairs are sorted, and the indices kept.
template <class T>
void project_any_chunks(const T* x, T* out, const Table<T>& table) {
  const int64_t M = table.num_chunks, D = table.chunk_size;
  Scratch<Integer<T>> columns(M * D);
  Scratch<int32_t> places(M * D);
  parallel_for(M, grain_for(D), [&](int64_t begin, int64_t end) {
    Scratch<Entry<T>> chunk(D);
    for (int64_t m = begin; m < end; ++m) {
      for (int64_t i = 0; i < D; ++i) chunk[i] = Entry<T>::make(to_key<T>(x[m * D + i]), i);
      sort_entries<T>(chunk.data(), D);
      for (int64_t j = 0; j < D; ++j) {
        columns[j * M + m] = chunk[j].key();
        places[j * M + m] = static_cast<int32_t>(chunk[j].index());
      }
    }
  });
  std::memcpy(out, x, static_cast<size_t>(M * D) * sizeof(T));
  clip_columns<T>(out, columns.data(), table, [&](int64_t m, int64_t j, T) { return places[j * M + m]; });
}

}  // namespace

template <class T>
void project_2os(const T* x, T* out, int64_t batch, const Table<T>& table) {
  const int64_t size = table.num_chunks * table.chunk_size;
  for_each_sample(batch, [&](int64_t b) {
    const T* sample = x + b * size;
    T* result = out + b * size;
    switch (table.chunk_size) {
      case 1: return project_small_chunks<T, 1>(sample, result, table);
      case 2: return project_small_chunks<T, 2>(sample, result, table);
      case 4: return project_small_chunks<T, 4>(sample, result, table);
      case 8: return project_small_chunks<T, 8>(sample, result, table);
      case 16: return project_small_chunks<T, 16>(sample, result, table);
      default: return project_any_chunks<T>(sample, result, table);
    }
  });
}

template <class T>
TableFault check_table(Table<T>& table) {
  bool nan = false, crossed = false, monotone = true;
  for (int64_t r = 0; r < table.num_chunks; ++r) {
    for (int64_t j = 0; j < table.chunk_size; ++j) {
      const int64_t at = r * table.row_stride + j * table.column_stride;
      const T low = table.lower[at], high = table.upper[at];
      nan |= low != low || high != high;
      crossed |= low > high;
      if (r > 0) monotone &= low >= table.lower[at - table.row_stride] && high >= table.upper[at - table.row_stride];
    }
  }
  table.monotone = monotone;
  return nan ? TableFault::nan : crossed ? TableFault::crossed : TableFault::none;
}

template void project_2os<float>(const float*, float*, int64_t, const Table<float>&);
template void project_2os<double>(const double*, double*, int64_t, const Table<double>&);
template TableFault check_table<float>(Table<float>&);
template TableFault check_table<double>(Table<double>&);

}  // namespace noisetilt::NOISETILT_VARIANT
