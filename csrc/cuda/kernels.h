// Host functions that enqueue the CUDA kernels, for the operator library and the tests. No PyTorch here.
//
// Every function enqueues its work on launch.stream of the current device and returns at once. Nothing
// synchronises, so all of it can be captured in a graph. All pointers are to contiguous device memory. A
// function with x alone works in place; x and out must not overlap. T is float or double. The operator layer
// has validated the arguments.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "../problem.h"
#include "device.h"
#include "rank_range.h"

namespace noisetilt::cuda {

// Limits of the current device.
DeviceLimits current_device();

struct Memory {
  unsigned char* begin;
  size_t bytes;
};

// Stream, device, and working memory.
struct Launch {
  cudaStream_t stream;
  const Device* device;
  // Returns memory aligned to 256 bytes. It must stay valid until all work that the calling host function
  // enqueues on the stream is done.
  void* (*allocate)(void* allocator, size_t bytes);
  void* allocator;
  // Memory that reserve_for_whiten has cleared and no launch has taken yet; memory that launches
  // use, one after the other: of zeros, for the projection kernel, and of anything.
  mutable Memory cleared{}, zeros{}, working{};
};

// Writes the rank ranges of a table, [D][num_buckets], and its faults. If an entry decreases with the rank,
// or is NaN, the ranges are empty: they settle no bucket.
template <class T>
void rank_ranges(const Launch& launch, const Table<T>& table, RankRange* ranges, TableFaults* faults);

// Projects samples [batch][channels][height][width] onto order statistics and tile statistics. `ranges` lists
// the rank ranges of every table: those of the values, then for each tile those of mean and energy for each
// chunk size, alternating.
template <class T>
void project(const Launch& launch, T* x, int64_t batch, const Projection<T>& projection,
             const RankRange* const* ranges);
// The same projection after every butterfly step of each mixing domain, one domain after the other.
template <class T>
void project_mixing_domains(const Launch& launch, T* x, int64_t batch, const Projection<T>& projection,
                            const RankRange* const* ranges, const Mixing* mixing, int64_t num_mixing);
// Allocates the memory of the stages of W that follow: `finite_or_nan`, `project` twice,
// `project_mixing_domains`. Clears the part that must be zero. Without this call each stage does so itself.
template <class T>
void reserve_for_whiten(const Launch& launch, int64_t batch, const Projection<T>& projection,
                        const Mixing* mixing, int64_t num_mixing);
// Copies samples of `size` values. A sample with a non-finite value becomes NaN throughout.
template <class T>
void finite_or_nan(const Launch& launch, const T* x, T* out, int64_t batch, int64_t size);

template <class T>
void butterfly(const Launch& launch, const T* x, T* out, int64_t batch, Shape shape, Tile tile, int64_t steps,
               bool inverse);
// Bits of a float16 and of a bfloat16.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};
// Rows of `size` values, a power of two. S is float, double, Half or BFloat16. The latter are computed in
// float and rounded once.
template <class S>
void hadamard_transform(const Launch& launch, const S* x, S* out, int64_t batch, int64_t size, double scale);
// Compact Fourier transform of samples of `size` values, a power of two, or its inverse. x and out may be the
// same. The array of samples (x, or out of the inverse) must be aligned to a complex number.
template <class T>
void compact_fourier(const Launch& launch, const T* x, T* out, int64_t batch, int64_t size,
                     Twiddles<T> factors, bool inverse);
// For other sizes. `spectrum` is the half-length complex FFT of a sample that is read as size/2 complex
// numbers.
template <class T>
void compact_fourier_pack(const Launch& launch, const T* spectrum, T* z, int64_t batch, int64_t size,
                          Twiddles<T> factors);
template <class T>
void compact_fourier_unpack(const Launch& launch, const T* z, T* spectrum, int64_t batch, int64_t size,
                            Twiddles<T> factors);

// Interleaved complex numbers. y and out may be the same. out must be aligned to a complex number.
template <class T>
void project_wgnc_blocks(const Launch& launch, const T* y, T* out, int64_t num_blocks, int64_t block_size);
// WGNC of samples of `size` values, a power of two. x and out may be the same. They begin at a multiple of a
// complex number.
template <class T>
void project_wgnc(const Launch& launch, const T* x, T* out, int64_t batch, int64_t size, Twiddles<T> factors,
                  int64_t block_size);
// For other sizes: unpacks half-length FFTs into spectra, projects their blocks, and packs them again, in
// place.
template <class T>
void wgnc_between_ffts(const Launch& launch, T* spectrum, int64_t batch, int64_t size, Twiddles<T> factors,
                       int64_t block_size);

}  // namespace noisetilt::cuda
