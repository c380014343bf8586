// Two-level order statistics (2OS), DESIGN section 2, without a full sort.
//
// Every chunk is sorted; column j consists of the j-th smallest value of every chunk. A column is ranked only
// as far as clipping it to the table requires (column_clip.h). A clipped value is found in its chunk by
// comparison: it is the n-th of the equal values. Only clipped values are written.

#include "order_stats.h"

#include <algorithm>
#include <atomic>

#include "chunk_sort.h"
#include "column_clip.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace noisetilt::NOISETILT_VARIANT {
namespace {

constexpr int64_t kGrain = 8192;  // fewest values per thread

int64_t grain_for(int64_t values_each) { return std::max<int64_t>(1, kGrain / values_each); }

// Lists of the clipped values of each column. If a column has too many, its list is incomplete.
template <class T>
class Changes {
 public:
  Changes(int64_t num_chunks, int64_t chunk_size)
      : size_(num_chunks * chunk_size),
        capacity_(num_chunks / kChunksPerListed),
        entries_(chunk_size * capacity_),
        counts_(chunk_size) {}

  ChangeList<T> list(int64_t j) { return {&entries_[j * capacity_], capacity_}; }
  void set_count(int64_t j, int64_t count) { counts_[j] = count; }
  // Returns true if all are listed and few.
  bool worth_finding(int64_t chunk_size) {
    int64_t sum = 0;
    for (int64_t j = 0; j < chunk_size; ++j) {
      if (counts_[j] > capacity_) return false;
      sum += counts_[j];
    }
    return sum <= size_ / kValuesPerChange;
  }
  template <class Visit>
  void for_each(int64_t chunk_size, const Visit& visit) {
    for (int64_t j = 0; j < chunk_size; ++j) {
      for (int64_t i = 0; i < counts_[j]; ++i) visit(j, entries_[j * capacity_ + i]);
    }
  }

 private:
  static constexpr int64_t kChunksPerListed = 8;  // a column has room for one change per so many chunks
  // With more changes than one in kValuesPerChange values, undoing the whole sort is faster than finding each
  // place.
  static constexpr int64_t kValuesPerChange = 16;
  int64_t size_, capacity_;
  Scratch<Change<T>> entries_;
  Scratch<int64_t> counts_;
};

template <class T>
void clip_columns(Integer<T>* columns, const Table<T>& table, Changes<T>& changes) {
  const int64_t M = table.num_chunks, D = table.chunk_size;
  parallel_for(D, grain_for(M), [&](int64_t begin, int64_t end) {
    ColumnClipper<T> clipper(M);
    for (int64_t j = begin; j < end; ++j) {
      const int64_t offset = j * table.column_stride;
      const TableColumn<T> column{table.lower + offset, table.upper + offset, table.row_stride,
                                  table.monotone};
      ChangeList<T> list = changes.list(j);
      clipper.clip(columns + j * M, column, list);
      changes.set_count(j, list.count);
    }
  });
}

// Chunks of D values, sorted by a sorting network.
template <class T, int D>
void project_small_chunks(T* x, const Table<T>& table) {
  const int64_t M = table.num_chunks;
  Scratch<Integer<T>> columns(M * D);
  Changes<T> changes(M, D);
  parallel_for(M, grain_for(D),
               [&](int64_t begin, int64_t end) { sort_chunks<T, D>(x, columns.data(), M, begin, end); });
  clip_columns<T>(columns.data(), table, changes);
  if (changes.worth_finding(D)) {
    // Finds all places before it writes to any, because several values of a chunk may change.
    changes.for_each(D, [&](int64_t j, Change<T>& change) {
      change.index = change.index * D + place_in_chunk<T, D>(x + change.index * D, j, change.value);
    });
    changes.for_each(D, [&](int64_t, Change<T>& change) { x[change.index] = change.clipped; });
  } else {
    parallel_for(M, grain_for(D),
                 [&](int64_t begin, int64_t end) { unsort_chunks<T, D>(x, columns.data(), M, begin, end); });
  }
}

// Chunks of any size. Sorts (key, index) pairs and keeps the indices.
template <class T>
void project_any_chunks(T* x, const Table<T>& table) {
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
  Changes<T> changes(M, D);
  clip_columns<T>(columns.data(), table, changes);
  parallel_for(M, grain_for(D), [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      for (int64_t j = 0; j < D; ++j) {
        T& value = x[m * D + places[j * M + m]];
        const Integer<T> key = columns[j * M + m];
        if (key != to_key<T>(value)) value = from_key<T>(key);
      }
    }
  });
}

}  // namespace

template <class T>
void project_2os(T* x, int64_t batch, const Table<T>& table) {
  const int64_t size = table.num_chunks * table.chunk_size;
  for_each_sample(batch, [&](int64_t b) {
    T* sample = x + b * size;
    switch (table.chunk_size) {
      case 1:
        return project_small_chunks<T, 1>(sample, table);
      case 2:
        return project_small_chunks<T, 2>(sample, table);
      case 4:
        return project_small_chunks<T, 4>(sample, table);
      case 8:
        return project_small_chunks<T, 8>(sample, table);
      case 16:
        return project_small_chunks<T, 16>(sample, table);
      default:
        return project_any_chunks<T>(sample, table);
    }
  });
}

template void project_2os<float>(float*, int64_t, const Table<float>&);
template void project_2os<double>(double*, int64_t, const Table<double>&);

namespace {

template <class T>
TableFault check_table(Table<T>& table) {
  // Loops along the direction in which the table is contiguous, so that the compiler can vectorise.
  const bool down = table.row_stride == 1;
  const int64_t runs = down ? table.chunk_size : table.num_chunks,
                length = down ? table.num_chunks : table.chunk_size;
  const int64_t between = down ? table.column_stride : table.row_stride,
                inside = down ? 1 : table.column_stride;
  std::atomic<bool> all_ordered{true}, all_monotone{true};
  parallel_for(runs, grain_for(length), [&](int64_t begin, int64_t end) {
    bool ordered = true, monotone = true;
    for (int64_t run = begin; run < end; ++run) {
      const T *low = table.lower + run * between, *high = table.upper + run * between;
      // Distance to the entry of the rank below; the first row has none.
      const int64_t first = down ? 1 : 0, below = !down && run == 0 ? 0 : table.row_stride;
      int32_t bad = 0, falling = 0;
      for (int64_t i = 0; i < length; ++i) bad |= !(low[i * inside] <= high[i * inside]);
      for (int64_t i = first; i < length; ++i) {
        falling |= low[i * inside] < low[i * inside - below];
        falling |= high[i * inside] < high[i * inside - below];
      }
      ordered &= !bad;
      monotone &= !falling;
    }
    if (!ordered) all_ordered = false;
    if (!monotone) all_monotone = false;
  });
  table.monotone = all_monotone;
  if (all_ordered) return TableFault::none;
  for (int64_t r = 0; r < table.num_chunks; ++r) {
    for (int64_t j = 0; j < table.chunk_size; ++j) {
      const int64_t at = r * table.row_stride + j * table.column_stride;
      if (table.lower[at] > table.upper[at]) return TableFault::crossed;
    }
  }
  return TableFault::nan;
}

}  // namespace

template <class T>
void add_order_stats_kernels(Kernels<T>& kernels) {
  kernels.check_table = check_table<T>;
  kernels.project_2os = project_2os<T>;
}
template void add_order_stats_kernels<float>(Kernels<float>&);
template void add_order_stats_kernels<double>(Kernels<double>&);

}  // namespace noisetilt::NOISETILT_VARIANT
