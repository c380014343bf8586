// Orthogonal transforms (DESIGN section 4): butterfly, Walsh-Hadamard, and the steps around a half-length
// complex FFT that turn it into the compact Fourier transform.

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "butterfly.cuh"
#include "hadamard.cuh"
#include "half_fft.cuh"
#include "keys.cuh"
#include "regions.cuh"
#include "runtime.h"

namespace noisetilt::cuda {
namespace {

constexpr int kItemsPerUnit = Policy::Butterfly::kItemsPerUnit;
constexpr int kBlockThreads = Policy::Strided::kBlockThreads;  // of the kernels without shared memory

// True if kernels can access 16 bytes at once.
template <class T>
bool is_aligned(const T* values) {
  return reinterpret_cast<uintptr_t>(values) % 16 == 0;
}

// Tiles of a whole batch.
struct Tiles {
  TileGrid grid;
  int64_t count;
  __device__ int64_t first_of(int64_t tile) const {
    const int64_t band = tile / grid.across;
    return band * grid.height * grid.row_length + (tile - band * grid.across) * grid.width;
  }
};

// Place of value i in shared memory. A gap after every 32 values puts values that are 16 apart into different
// banks.
__host__ __device__ constexpr int32_t padded(int32_t i) { return i + (i >> 5); }

// Units of a thread, in registers.
template <class T, int32_t kUnits>
struct Values {
  T v[kUnits][kItemsPerUnit];
};

// S steps on vectors of `size` values in shared memory, in place: all threads read, then all write. A unit is
// kItemsPerUnit consecutive values, before the steps or after the inverse steps. For small S these are
// several groups of butterfly_group.
template <int32_t S, bool kInverse, int32_t kUnits, class T>
__device__ void steps_in_place(T* shared, Values<T, kUnits>& values, int32_t size, int32_t num_units) {
  constexpr int32_t n = 1 << S, kGroups = kItemsPerUnit / n;
  const int32_t units = size / kItemsPerUnit, far = size >> S;
  // Calls body(value, c) for the values of a unit: consecutive ones, or for each of its groups values that
  // are `far` apart.
  const auto for_each_place = [&](int32_t unit, bool consecutive, const auto& body) {
    if (consecutive) {
      T* v = shared + padded(unit * kItemsPerUnit);
#pragma unroll
      for (int32_t c = 0; c < kItemsPerUnit; ++c) body(v[c], c);  // half a row of banks: no gap inside
      return;
    }
    const int32_t vector = unit / units, first = vector * size + (unit - vector * units) * kGroups;
    if (far % 32 == 0) {
      // kGroups neighbours lie in one row of banks, and `far` is a number of whole rows.
      T* v = shared + padded(first);
#pragma unroll
      for (int32_t c = 0; c < kItemsPerUnit; ++c) body(v[c / n + (c % n) * (far + far / 32)], c);
      return;
    }
#pragma unroll
    for (int32_t c = 0; c < kItemsPerUnit; ++c) body(shared[padded(first + c / n + (c % n) * far)], c);
  };
#pragma unroll
  for (int32_t u = 0; u < kUnits; ++u) {
    const int32_t unit = threadIdx.x + u * blockDim.x;
    if (unit >= num_units) break;
    T(&v)[kItemsPerUnit] = values.v[u];
    for_each_place(unit, !kInverse, [&](const T& value, int32_t c) { v[c] = value; });
#pragma unroll
    for (int32_t c = 0; c < kItemsPerUnit; c += n) butterfly<S, true, kInverse>(v + c);
  }
  __syncthreads();
#pragma unroll
  for (int32_t u = 0; u < kUnits; ++u) {
    const int32_t unit = threadIdx.x + u * blockDim.x;
    if (unit >= num_units) break;
    for_each_place(unit, kInverse, [&](T& value, int32_t c) { value = values.v[u][c]; });
  }
  __syncthreads();
}

// Calls body(k, place) for the `count` values from tile `first` on, k = 0, 1, ..; `place` is the value's
// place in x. If `by_packs`, only for every fourth value.
template <class Body>
__device__ inline void for_each_value(const Tiles& tiles, int64_t first, int32_t count, bool by_packs,
                                      const Body& body) {
  const int32_t step = by_packs ? 4 : 1, size = tiles.grid.size();
  const int64_t begin = first * size;
  for (int32_t k = threadIdx.x * step; k < count; k += blockDim.x * step) {
    if (tiles.grid.contiguous()) {
      body(k, begin + k);
    } else {
      const int32_t tile = k / size;
      body(k, tiles.first_of(first + tile) + tiles.grid.offset_of(k - tile * size));
    }
  }
}

// Steps on tiles in shared memory, `per_block` tiles in each block. `by_packs`: x and out can be accessed by
// four values at once.
template <class T, int32_t kUnits, bool kInverse>
__global__ void __launch_bounds__(Policy::Butterfly::kBlockThreads)
    butterfly_kernel(const T* x, T* out, const __grid_constant__ Tiles tiles, int32_t per_block,
                     bool by_packs, int32_t steps) {
  T* shared = reinterpret_cast<T*>(dynamic_shared_memory());
  const int32_t size = tiles.grid.size();
  const int64_t first = blockIdx.x * static_cast<int64_t>(per_block);
  const int32_t count =
      static_cast<int32_t>(min(static_cast<int64_t>(per_block), tiles.count - first)) * size;
  for_each_value(tiles, first, count, by_packs, [&](int32_t k, int64_t place) {
    if (by_packs) {
      const Pack4<T> pack = *reinterpret_cast<const Pack4<T>*>(x + place);
      for (int32_t i = 0; i < 4; ++i) shared[padded(k) + i] = pack.v[i];
    } else {
      shared[padded(k)] = x[place];
    }
  });
  __syncthreads();
  Values<T, kUnits> values;
  int32_t at_once;
  for (int32_t left = steps; left > 0; left -= at_once) {
    at_once = min(left, kMaxStepsAtOnce);
    switch (at_once) {
      case 1:
        steps_in_place<1, kInverse>(shared, values, size, count / kItemsPerUnit);
        break;
      case 2:
        steps_in_place<2, kInverse>(shared, values, size, count / kItemsPerUnit);
        break;
      case 3:
        steps_in_place<3, kInverse>(shared, values, size, count / kItemsPerUnit);
        break;
      default:
        steps_in_place<4, kInverse>(shared, values, size, count / kItemsPerUnit);
    }
  }
  for_each_value(tiles, first, count, by_packs, [&](int32_t k, int64_t place) {
    if (by_packs) {
      Pack4<T> pack;
      for (int32_t i = 0; i < 4; ++i) pack.v[i] = shared[padded(k) + i];
      *reinterpret_cast<Pack4<T>*>(out + place) = pack;
    } else {
      out[place] = shared[padded(k)];
    }
  });
}

// Up to kMaxStepsAtOnce steps on tiles of any size, from one array to another.
template <class In, class T, bool kOrthonormal, bool kInverse>
__global__ void __launch_bounds__(kBlockThreads)
    butterfly_long_kernel(const In* in, T* out, const __grid_constant__ Tiles tiles, int32_t steps) {
  const int32_t size = tiles.grid.size(), groups = size >> steps;
  const int64_t all = tiles.count * groups;
  for (int64_t k = grid_thread(); k < all; k += grid_threads()) {
    const int64_t tile = k / groups, place = tiles.first_of(tile);
    butterfly_group<kOrthonormal, kInverse, T>(
        steps, static_cast<int32_t>(k - tile * groups), size,
        [&](int32_t i) { return computed(in[place + tiles.grid.offset_of(i)]); },
        [&](int32_t i, T value) { out[place + tiles.grid.offset_of(i)] = value; });
  }
}

template <class In, class S>
__global__ void __launch_bounds__(kBlockThreads)
    scale_kernel(const In* in, S* out, int64_t count, Computed<S> scale) {
  for (int64_t i = grid_thread(); i < count; i += grid_threads())
    out[i] = rounded<S>(computed(in[i]) * scale);
}

// Rows of 2^log values. x and out are aligned to 16 bytes.
template <class S>
__global__ void __launch_bounds__(Policy::Hadamard::kMaxBlockThreads<Computed<S>>)
    hadamard_kernel(const S* x, S* out, int64_t rows, int32_t log, Computed<S> scale) {
  const int64_t begin = blockIdx.x * static_cast<int64_t>(blockDim.x) * kHadamardItems;
  const bool valid = begin + threadIdx.x * kHadamardItems < rows << log;
  BlockHadamard<S>{log, scale}.transform(x + begin, out + begin, valid);
}

// Takes the steps in shared memory. Returns false if the tiles do not fit.
template <class T, bool kInverse>
bool butterfly_in_shared(const Launch& launch, const T* x, T* out, const Tiles& tiles, int64_t steps) {
  using Tuning = Policy::Butterfly;
  const int64_t size = tiles.grid.size();
  const int64_t per_block = std::min(tiles.count, std::max<int64_t>(1, Tuning::kItemsPerBlock / size));
  const int64_t units = per_block * size / kItemsPerUnit;
  const int64_t max_threads = block_threads(launch, Tuning::kBlockThreads);
  constexpr int64_t kMaxUnits = Tuning::kMaxBytesPerThread / (kItemsPerUnit * sizeof(T));  // of a thread
  const int64_t shared_bytes = (units * kItemsPerUnit + units) * static_cast<int64_t>(sizeof(T));
  if (size % kItemsPerUnit != 0 || units > kMaxUnits * max_threads ||
      shared_bytes > launch.device->limits.max_shared_bytes)
    return false;
  const auto kernel = units <= max_threads       ? butterfly_kernel<T, 1, kInverse>
                      : units <= 2 * max_threads ? butterfly_kernel<T, 2, kInverse>
                                                 : butterfly_kernel<T, kMaxUnits, kInverse>;
  const int64_t each = units <= max_threads ? 1 : units <= 2 * max_threads ? 2 : kMaxUnits;
  const int threads =
      static_cast<int>((units + each * kWarpThreads - 1) / (each * kWarpThreads) * kWarpThreads);
  const bool by_packs = tiles.grid.width % 4 == 0 && is_aligned(x) && is_aligned(out);
  enqueue(launch, kernel, Residence::any, (tiles.count + per_block - 1) / per_block, threads,
          static_cast<size_t>(shared_bytes), x, out, tiles, static_cast<int32_t>(per_block), by_packs,
          static_cast<int32_t>(steps));
  return true;
}

// Transforms rows of 2^log values in shared memory. Returns false if they do not fit, are shorter than the
// values of a thread, or are not aligned.
template <class S>
bool hadamard_in_shared(const Launch& launch, const S* x, S* out, int64_t rows, int32_t log,
                        Computed<S> scale) {
  using T = Computed<S>;
  using Tuning = Policy::Hadamard;
  const int log_threads = log - kLogHadamardItems,
            max_threads = block_threads(launch, Tuning::kMaxBlockThreads<T>);
  if (!is_aligned(x) || !is_aligned(out) || log_threads < 0 || log_threads > 30 ||
      (1 << log_threads) > max_threads)
    return false;
  const int threads = std::max(1 << log_threads, std::min(max_threads, Tuning::kBlockThreads));
  const int64_t per_block = threads >> log_threads;
  const int64_t shared_bytes = per_block * hadamard_place<T>(1 << log) * static_cast<int64_t>(sizeof(T));
  if (shared_bytes > launch.device->limits.max_shared_bytes) return false;
  enqueue(launch, hadamard_kernel<S>, Residence::any, (rows + per_block - 1) / per_block, threads,
          static_cast<size_t>(shared_bytes), x, out, rows, log, scale);
  return true;
}

// Takes the steps in global memory, a few in each launch, then multiplies by `scale` unless they are
// orthonormal.
template <class S, bool kOrthonormal, bool kInverse>
void steps_in_global(const Launch& launch, const S* x, S* out, const Tiles& tiles, int64_t steps,
                     Computed<S> scale) {
  using T = Computed<S>;
  const int64_t size = tiles.grid.size(), all = tiles.count * size;
  const int threads = block_threads(launch, kBlockThreads);
  const int64_t blocks = blocks_for(all / kItemsPerUnit, threads);
  if (steps == 0) {
    if (kOrthonormal)
      copy_memory(launch, x, out, all);
    else
      enqueue(launch, scale_kernel<S, S>, Residence::any, blocks, threads, 0, x, out, all, scale);
    return;
  }
  int32_t rounds = 0;
  for (int64_t left = steps; left > 0; ++rounds)
    left -= steps_at_once(static_cast<int32_t>(left), static_cast<int32_t>(size));
  // The rounds alternate between two arrays such that the last one ends in `last`. Values of 16 bits need two
  // arrays of floats.
  T *spare = rounds > 1 ? allocate<T>(launch, all) : nullptr, *last = nullptr;
  if constexpr (std::is_same_v<S, T>)
    last = out;
  else
    last = allocate<T>(launch, all);
  const T* from = nullptr;
  for (int64_t left = steps; left > 0; --rounds) {
    const int32_t at_once = steps_at_once(static_cast<int32_t>(left), static_cast<int32_t>(size));
    T* to = rounds % 2 == 1 ? last : spare;
    if (left == steps)
      enqueue(launch, butterfly_long_kernel<S, T, kOrthonormal, kInverse>, Residence::any, blocks, threads, 0,
              x, to, tiles, at_once);
    else
      enqueue(launch, butterfly_long_kernel<T, T, kOrthonormal, kInverse>, Residence::any, blocks, threads, 0,
              from, to, tiles, at_once);
    from = to;
    left -= at_once;
  }
  if (!kOrthonormal)
    enqueue(launch, scale_kernel<T, S>, Residence::any, blocks, threads, 0, from, out, all, scale);
}

// Compact Fourier transform of samples of 2h values from half-length FFTs, or back. A thread takes
// coefficients k and h - k, 1 <= k <= h/2, or coefficient 0.
template <class T, HalfFft kDirection>
__global__ void __launch_bounds__(kBlockThreads)
    compact_fourier_kernel(const T* in, T* out, int64_t batch, int32_t h, Twiddles<T> turns, T end_scale,
                           T scale) {
  const int64_t pairs = h / 2 + 1;
  for (int64_t p = grid_thread(); p < batch * pairs; p += grid_threads()) {
    const int64_t sample = p / pairs;
    const int32_t k = static_cast<int32_t>(p - sample * pairs), n = h - k;
    const T* from = in + sample * 2 * h;
    T* to = out + sample * 2 * h;
    if (k == 0) {
      const Complex<T> ends = turn_ends(from[0], from[1], end_scale);
      to[0] = ends.re;
      to[1] = ends.im;
      continue;
    }
    const bool packing = kDirection == HalfFft::to_spectrum;
    // Packed, real parts begin at 1 and imaginary parts at h. Unpacked, they are interleaved.
    Complex<T> a = packing ? Complex<T>{from[2 * k], from[2 * k + 1]} : Complex<T>{from[1 + k], from[h + k]};
    Complex<T> b = packing ? Complex<T>{from[2 * n], from[2 * n + 1]} : Complex<T>{from[1 + n], from[h + n]};
    turn_pair<kDirection>(a, b, factor(turns, k), scale);
    to[packing ? 1 + k : 2 * k] = a.re;
    to[packing ? h + k : 2 * k + 1] = a.im;
    to[packing ? 1 + n : 2 * n] = b.re;
    to[packing ? h + n : 2 * n + 1] = b.im;
  }
}

template <class T, HalfFft kDirection>
void dispatch_compact_fourier(const Launch& launch, const T* in, T* out, int64_t batch, int64_t size,
                              const Twiddles<T>& turns, double end_scale, double scale) {
  const int threads = block_threads(launch, kBlockThreads);
  const int64_t h = size / 2, blocks = blocks_for(batch * (h / 2 + 1), threads);
  enqueue(launch, compact_fourier_kernel<T, kDirection>, Residence::any, blocks, threads, 0, in, out, batch,
          static_cast<int32_t>(h), turns, static_cast<T>(end_scale), static_cast<T>(scale));
}

// Tiles that divide the plane.
template <class T>
void butterfly_equal_tiles(const Launch& launch, const T* x, T* out, int64_t batch, const Shape& shape,
                           Tile tile, int64_t steps, bool inverse) {
  const Tiles tiles{grid_of(tile, shape), batch * shape.size() / tile.size()};
  if (tiles.count == 0) return;
  if (inverse ? butterfly_in_shared<T, true>(launch, x, out, tiles, steps)
              : butterfly_in_shared<T, false>(launch, x, out, tiles, steps))
    return;
  (inverse ? steps_in_global<T, true, true> : steps_in_global<T, true, false>)(launch, x, out, tiles, steps,
                                                                               T(1));
}

}  // namespace

template <class T>
void butterfly(const Launch& launch, const T* x, T* out, int64_t batch, Shape shape, Tile tile, int64_t steps,
               bool inverse) {
  const Regions regions = mixing_regions(shape, tile);
  if (regions.regions[0].fills(shape))
    return butterfly_equal_tiles(launch, x, out, batch, shape, regions.regions[0].tile, steps, inverse);
  const int64_t size = batch * shape.size();
  if (size_of(regions) < shape.height * shape.width) copy_memory(launch, x, out, size);
  T* packed = reinterpret_cast<T*>(working_memory(launch, 2 * static_cast<size_t>(size) * sizeof(T)));
  T* result = packed + size;
  for (const Region& region : regions) {
    copy_region<true>(launch, x, packed, region, batch, shape);
    butterfly_equal_tiles(launch, packed, result, batch, region.own_shape(shape), region.tile, steps,
                          inverse);
    copy_region<false>(launch, result, out, region, batch, shape);
  }
}

template <class S>
void hadamard_transform(const Launch& launch, const S* x, S* out, int64_t batch, int64_t size, double scale) {
  if (batch == 0) return;
  int32_t log = 0;
  while ((int64_t(1) << log) < size) ++log;
  const auto factor = static_cast<Computed<S>>(scale);
  if (hadamard_in_shared(launch, x, out, batch, log, factor)) return;
  steps_in_global<S, false, false>(launch, x, out, {grid_of({1, size}, {1, 1, size}), batch}, log, factor);
}

template <class T>
void compact_fourier_pack(const Launch& launch, const T* spectrum, T* z, int64_t batch, int64_t size,
                          Twiddles<T> turns) {
  const double n = static_cast<double>(size);
  dispatch_compact_fourier<T, HalfFft::to_spectrum>(launch, spectrum, z, batch, size, turns, 1 / std::sqrt(n),
                                                    std::sqrt(0.5 / n));
}

template <class T>
void compact_fourier_unpack(const Launch& launch, const T* z, T* spectrum, int64_t batch, int64_t size,
                            Twiddles<T> turns) {
  // The inverse is the transpose, so it has the same scales, and the FFT after it none.
  const double n = static_cast<double>(size);
  dispatch_compact_fourier<T, HalfFft::from_spectrum>(launch, z, spectrum, batch, size, turns,
                                                      1 / std::sqrt(n), std::sqrt(0.5 / n));
}

#define NOISETILT_INSTANTIATE(T)                                                                     \
  template void butterfly<T>(const Launch&, const T*, T*, int64_t, Shape, Tile, int64_t, bool);      \
  template void hadamard_transform<T>(const Launch&, const T*, T*, int64_t, int64_t, double);        \
  template void compact_fourier_pack<T>(const Launch&, const T*, T*, int64_t, int64_t, Twiddles<T>); \
  template void compact_fourier_unpack<T>(const Launch&, const T*, T*, int64_t, int64_t, Twiddles<T>);
NOISETILT_INSTANTIATE(float)
NOISETILT_INSTANTIATE(double)
template void hadamard_transform<Half>(const Launch&, const Half*, Half*, int64_t, int64_t, double);
template void hadamard_transform<BFloat16>(const Launch&, const BFloat16*, BFloat16*, int64_t, int64_t,
                                           double);

}  // namespace noisetilt::cuda
