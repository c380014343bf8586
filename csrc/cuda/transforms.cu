// Orthogonal domains, DESIGN section 4: butterfly mixing, Walsh-Hadamard, and the steps around a half-length
// complex FFT that make it the compact Fourier transform.

#include <algorithm>
#include <cmath>

#include "butterfly.cuh"
#include "half_fft.cuh"
#include "keys.cuh"
#include "runtime.h"

namespace noisetilt::cuda {
namespace {

constexpr int kUnit = 16;            // values that a thread holds together
constexpr int kMostThreads = 512;    // so that several units fit into a thread's registers
constexpr int kThreads = 256;        // of the other kernels
constexpr int64_t kPerBlock = 4096;  // values of smaller vectors that a block takes together

// Tiles of a whole batch.
struct Tiles {
  TileGrid grid;
  int64_t count;
  __device__ int64_t first_of(int64_t tile) const {
    const int64_t band = tile / grid.across;
    return band * grid.height * grid.row_length + (tile - band * grid.across) * grid.width;
  }
};

// Shared memory has 32 banks; values that lie 16 apart are to be in different ones.
__host__ __device__ constexpr int32_t padded(int32_t i) { return i + i / 32; }

// The units of a thread, in registers.
template <class T, int32_t kUnits>
struct Values {
  T v[kUnits][kUnit];
};

// S steps on vectors of `size` in shared memory, in place: read all, then write all. A unit is kUnit
// consecutive values (after the inverse steps), which is several groups of butterfly_group where S is small.
template <int32_t S, bool kOrthonormal, bool kInverse, int32_t kUnits, class T>
__device__ void steps_in_place(T* shared, Values<T, kUnits>& values, int32_t size, int32_t num_units) {
  constexpr int32_t n = 1 << S, kGroups = kUnit / n;
  const int32_t units = size / kUnit, far = size >> S;
  // Places of the values of a unit: consecutive, or those of each of its groups `far` apart.
  const auto for_each_place = [&](int32_t unit, bool consecutive, const auto& body) {
    if (consecutive) {
      T* v = shared + padded(unit * kUnit);
#pragma unroll
      for (int32_t c = 0; c < kUnit; ++c) body(v[c], c);  // half a row of banks: no padding inside
      return;
    }
    const int32_t vector = unit / units, first = vector * size + (unit - vector * units) * kGroups;
    if (far % 32 == 0) {
      // kGroups neighbours lie in one row of banks, and rows are whole
      T* v = shared + padded(first);
#pragma unroll
      for (int32_t c = 0; c < kUnit; ++c) body(v[c / n + (c % n) * (far + far / 32)], c);
      return;
    }
#pragma unroll
    for (int32_t c = 0; c < kUnit; ++c) body(shared[padded(first + c / n + (c % n) * far)], c);
  };
#pragma unroll
  for (int32_t u = 0; u < kUnits; ++u) {
    const int32_t unit = threadIdx.x + u * blockDim.x;
    if (unit >= num_units) break;
    T(&v)[kUnit] = values.v[u];
    for_each_place(unit, !kInverse, [&](const T& value, int32_t c) { v[c] = value; });
#pragma unroll
    for (int32_t c = 0; c < kUnit; c += n) butterfly<S, kOrthonormal, kInverse>(v + c);
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

// Calls body(k, place) for the `count` values from tile `first` on, k = 0, 1, ..: with the place in x of
// each, or of every fourth where `by_fours`.
template <class Body>
__device__ inline void for_each_value(const Tiles& tiles, int64_t first, int32_t count, bool by_fours,
                                      const Body& body) {
  const int32_t step = by_fours ? 4 : 1, size = tiles.grid.size();
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

// Steps on tiles: a block takes `per_block` of them, in shared memory. `by_fours`: rows of tiles can be moved
// so.
template <class T, int32_t kUnits, bool kOrthonormal, bool kInverse>
__global__ void __launch_bounds__(kMostThreads)
    butterfly_kernel(const T* x, T* out, const __grid_constant__ Tiles tiles, int32_t per_block,
                     bool by_fours, int32_t steps, T scale) {
  T* shared = reinterpret_cast<T*>(dynamic_shared_memory());
  const int32_t size = tiles.grid.size();
  const int64_t first = blockIdx.x * static_cast<int64_t>(per_block);
  const int32_t count =
      static_cast<int32_t>(min(static_cast<int64_t>(per_block), tiles.count - first)) * size;
  for_each_value(tiles, first, count, by_fours, [&](int32_t k, int64_t place) {
    if (by_fours) {
      const Four<T> four = *reinterpret_cast<const Four<T>*>(x + place);
      for (int32_t i = 0; i < 4; ++i) shared[padded(k) + i] = four.v[i];
    } else {
      shared[padded(k)] = x[place];
    }
  });
  __syncthreads();
  Values<T, kUnits> values;
  int32_t at_once;
  for (int32_t left = steps; left > 0; left -= at_once) {
    at_once = min(left, kMostSteps);
    switch (at_once) {
      case 1:
        steps_in_place<1, kOrthonormal, kInverse>(shared, values, size, count / kUnit);
        break;
      case 2:
        steps_in_place<2, kOrthonormal, kInverse>(shared, values, size, count / kUnit);
        break;
      case 3:
        steps_in_place<3, kOrthonormal, kInverse>(shared, values, size, count / kUnit);
        break;
      default:
        steps_in_place<4, kOrthonormal, kInverse>(shared, values, size, count / kUnit);
    }
  }
  const auto result = [&](int32_t at) { return kOrthonormal ? shared[at] : shared[at] * scale; };
  for_each_value(tiles, first, count, by_fours, [&](int32_t k, int64_t place) {
    if (by_fours) {
      Four<T> four;
      for (int32_t i = 0; i < 4; ++i) four.v[i] = result(padded(k) + i);
      *reinterpret_cast<Four<T>*>(out + place) = four;
    } else {
      out[place] = result(padded(k));
    }
  });
}

// `steps` <= kMostSteps steps on tiles of any size, from one array to another.
template <class T, bool kOrthonormal, bool kInverse>
__global__ void __launch_bounds__(kThreads)
    long_butterfly_kernel(const T* in, T* out, const __grid_constant__ Tiles tiles, int32_t steps) {
  const int32_t size = tiles.grid.size(), groups = size >> steps;
  const int64_t all = tiles.count * groups;
  for (int64_t k = grid_thread(); k < all; k += grid_threads()) {
    const int64_t tile = k / groups, place = tiles.first_of(tile);
    butterfly_group<kOrthonormal, kInverse, T>(
        steps, static_cast<int32_t>(k - tile * groups), size,
        [&](int32_t i) { return in[place + tiles.grid.offset_of(i)]; },
        [&](int32_t i, T value) { out[place + tiles.grid.offset_of(i)] = value; });
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) scale_kernel(const T* in, T* out, int64_t count, T scale) {
  for (int64_t i = grid_thread(); i < count; i += grid_threads()) out[i] = in[i] * scale;
}

template <class T, bool kOrthonormal, bool kInverse>
void transform(const Launch& launch, const T* x, T* out, const Tiles& tiles, int64_t steps, T scale) {
  const int64_t size = tiles.grid.size(), all = tiles.count * size;
  const int64_t per_block = std::min(tiles.count, std::max<int64_t>(1, kPerBlock / size));
  const int64_t units = per_block * size / kUnit;
  const int64_t most_threads = block_threads(kMostThreads);
  constexpr int64_t kMostUnits = 16 / sizeof(T);  // of a thread
  const int64_t shared_bytes = (units * kUnit + units) * static_cast<int64_t>(sizeof(T));
  if (size % kUnit == 0 && units <= kMostUnits * most_threads &&
      shared_bytes <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) {
    const auto kernel = units <= most_threads       ? butterfly_kernel<T, 1, kOrthonormal, kInverse>
                        : units <= 2 * most_threads ? butterfly_kernel<T, 2, kOrthonormal, kInverse>
                                                    : butterfly_kernel<T, kMostUnits, kOrthonormal, kInverse>;
    const int64_t each = units <= most_threads ? 1 : units <= 2 * most_threads ? 2 : kMostUnits;
    const int threads = static_cast<int>((units + each * kWarp - 1) / (each * kWarp) * kWarp);
    const bool by_fours = tiles.grid.width % 4 == 0 &&
                          reinterpret_cast<uintptr_t>(x) % sizeof(Four<T>) == 0 &&
                          reinterpret_cast<uintptr_t>(out) % sizeof(Four<T>) == 0;
    allow_shared_memory(kernel);
    enqueue(launch, kernel, Residence::any, (tiles.count + per_block - 1) / per_block, threads,
            static_cast<size_t>(shared_bytes), x, out, tiles, static_cast<int32_t>(per_block), by_fours,
            static_cast<int32_t>(steps), scale);
    return;
  }
  const int threads = block_threads(kThreads);
  const int64_t blocks = blocks_for(all / kUnit, threads);
  int32_t rounds = 0;
  for (int64_t left = steps; left > 0; ++rounds)
    left -= steps_at_once(static_cast<int32_t>(left), static_cast<int32_t>(size));
  // To and fro, so that the last round ends in `out`.
  T* spare = rounds > 1 ? allocate<T>(launch, all) : nullptr;
  const T* from = x;
  for (int64_t left = steps; left > 0; --rounds) {
    const int32_t at_once = steps_at_once(static_cast<int32_t>(left), static_cast<int32_t>(size));
    T* to = rounds % 2 == 1 ? out : spare;
    enqueue(launch, long_butterfly_kernel<T, kOrthonormal, kInverse>, Residence::any, blocks, threads, 0,
            from, to, tiles, at_once);
    from = to;
    left -= at_once;
  }
  if (!kOrthonormal)
    enqueue(launch, scale_kernel<T>, Residence::any, blocks, threads, 0, from, out, all, scale);
  else if (from != out)
    check(cudaMemcpyAsync(out, from, static_cast<size_t>(all) * sizeof(T), cudaMemcpyDeviceToDevice,
                          launch.stream),
          "copying");
}

// Pairs of coefficients k and h - k, k = 1 .. h/2, of samples of 2h values; and coefficient 0.
template <class T, HalfFft kDirection>
__global__ void __launch_bounds__(kThreads)
    compact_fourier_kernel(const T* in, T* out, int64_t batch, int32_t h, T end_scale, T scale) {
  const int64_t pairs = h / 2 + 1;
  for (int64_t p = grid_thread(); p < batch * pairs; p += grid_threads()) {
    const int64_t sample = p / pairs;
    const int32_t k = static_cast<int32_t>(p - sample * pairs), n = h - k;
    const T* from = in + sample * 2 * h;
    T* to = out + sample * 2 * h;
    if (k == 0) {
      to[0] = (from[0] + from[1]) * end_scale;
      to[1] = (from[0] - from[1]) * end_scale;
      continue;
    }
    const bool packing = kDirection == HalfFft::to_spectrum;
    // packed: the real parts from 1 on, the imaginary parts from h on; coefficients otherwise interleaved
    Complex<T> a = packing ? Complex<T>{from[2 * k], from[2 * k + 1]} : Complex<T>{from[1 + k], from[h + k]};
    Complex<T> b = packing ? Complex<T>{from[2 * n], from[2 * n + 1]} : Complex<T>{from[1 + n], from[h + n]};
    turn_pair<kDirection>(a, b, k, h, scale);
    to[packing ? 1 + k : 2 * k] = a.re;
    to[packing ? h + k : 2 * k + 1] = a.im;
    to[packing ? 1 + n : 2 * n] = b.re;
    to[packing ? h + n : 2 * n + 1] = b.im;
  }
}

template <class T, HalfFft kDirection>
void compact_fourier(const Launch& launch, const T* in, T* out, int64_t batch, int64_t size, double end_scale,
                     double scale) {
  const int threads = block_threads(kThreads);
  const int64_t h = size / 2, blocks = blocks_for(batch * (h / 2 + 1), threads);
  enqueue(launch, compact_fourier_kernel<T, kDirection>, Residence::any, blocks, threads, 0, in, out, batch,
          static_cast<int32_t>(h), static_cast<T>(end_scale), static_cast<T>(scale));
}

}  // namespace

template <class T>
void butterfly(const Launch& launch, const T* x, T* out, int64_t batch, Shape shape, Tile tile, int64_t steps,
               bool inverse) {
  const Tiles tiles{grid_of(tile, shape), batch * shape.size() / tile.size()};
  (inverse ? transform<T, true, true> : transform<T, true, false>)(launch, x, out, tiles, steps, T(1));
}

template <class T>
void hadamard_transform(const Launch& launch, const T* x, T* out, int64_t batch, int64_t size, T scale) {
  int64_t steps = 0;
  while ((int64_t(1) << steps) < size) ++steps;
  transform<T, false, false>(launch, x, out, {grid_of({1, size}, {1, 1, size}), batch}, steps, scale);
}

template <class T>
void compact_fourier_pack(const Launch& launch, const T* spectrum, T* z, int64_t batch, int64_t size) {
  const double n = static_cast<double>(size);
  compact_fourier<T, HalfFft::to_spectrum>(launch, spectrum, z, batch, size, 1 / std::sqrt(n),
                                           std::sqrt(0.5 / n));
}

template <class T>
void compact_fourier_unpack(const Launch& launch, const T* z, T* spectrum, int64_t batch, int64_t size) {
  // The inverse FFT divides by h, the orthonormal one by sqrt(N).
  const double n = static_cast<double>(size);
  compact_fourier<T, HalfFft::from_spectrum>(launch, z, spectrum, batch, size, 0.5 * std::sqrt(n),
                                             0.5 * std::sqrt(0.5 * n));
}

#define NOISETILT_INSTANTIATE(T)                                                                \
  template void butterfly<T>(const Launch&, const T*, T*, int64_t, Shape, Tile, int64_t, bool); \
  template void hadamard_transform<T>(const Launch&, const T*, T*, int64_t, int64_t, T);        \
  template void compact_fourier_pack<T>(const Launch&, const T*, T*, int64_t, int64_t);         \
  template void compact_fourier_unpack<T>(const Launch&, const T*, T*, int64_t, int64_t);
NOISETILT_INSTANTIATE(float)
NOISETILT_INSTANTIATE(double)

}  // namespace noisetilt::cuda
