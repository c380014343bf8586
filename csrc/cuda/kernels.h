// The CUDA kernels: what the operator library and the tests see of them. No PyTorch here.
//
// Everything is enqueued on launch.stream of the current device and returns at once: no synchronisation, so
// all of it can be captured in a graph. All pointers are to contiguous device memory; x alone is worked on in
// place; x and out do not overlap. T is float or double. No function validates; the operator layer has.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "../problem.h"

namespace noisetilt::cuda {

// How to enqueue work.
struct Launch {
  cudaStream_t stream;
  // Working memory, aligned to 256 bytes, that must live until the work enqueued so far and next on the
  // stream is done.
  void* (*allocate)(void* allocator, size_t bytes);
  void* allocator;
};

// Ranks between which a value is sure to lie within its bounds, given the bucket of the value: first <= rank
// <= last. They depend on the table alone; rank_ranges makes them, num_buckets(M, D) for each column,
// [D][buckets].
struct RankRange {
  int32_t first, last;
};

int32_t num_buckets(int64_t num_chunks, int64_t chunk_size);

// What is the matter with a table, 1 or 0: it holds NaN; lower exceeds upper somewhere; a bound decreases in
// r, which is no error.
struct TableFaults {
  int32_t nan, crossed, falling;
};

// Writes [D][num_buckets] limits, such as no rank meets where a bound decreases, and the table's faults.
template <class T>
void rank_ranges(const Launch& launch, const Table<T>& table, RankRange* limits, TableFaults* faults);

// Order statistics and tile statistics of samples [batch][channels][height][width]. `limits` holds those of
// every table: of the values, then for each tile those of mean and energy for each chunk size, alternating.
template <class T>
void project(const Launch& launch, T* x, int64_t batch, const Projection<T>& projection,
             const RankRange* const* limits);
template <class T>
void mix(const Launch& launch, T* x, int64_t batch, const Projection<T>& projection,
         const RankRange* const* limits, const Mixing* mixing, int64_t num_mixing);
// Copies; a sample with a non-finite value becomes NaN throughout.
template <class T>
void finite_or_nan(const Launch& launch, const T* x, T* out, int64_t batch, int64_t size);

template <class T>
void butterfly(const Launch& launch, const T* x, T* out, int64_t batch, Shape shape, Tile tile, int64_t steps,
               bool inverse);
// Rows of `size` values, a power of two.
template <class T>
void hadamard_transform(const Launch& launch, const T* x, T* out, int64_t batch, int64_t size, T scale);
// The spectrum is the half-length complex FFT of a sample seen as N/2 complex numbers.
template <class T>
void compact_fourier_pack(const Launch& launch, const T* spectrum, T* z, int64_t batch, int64_t size);
template <class T>
void compact_fourier_unpack(const Launch& launch, const T* z, T* spectrum, int64_t batch, int64_t size);

// On interleaved complex numbers; here y and out may be the same.
template <class T>
void project_wgnc_blocks(const Launch& launch, const T* y, T* out, int64_t num_blocks, int64_t block_size);
template <class T>
void wgnc_between_ffts(const Launch& launch, T* spectrum, int64_t batch, int64_t size, int64_t block_size);

}  // namespace noisetilt::cuda
