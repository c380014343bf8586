// WGNC (DESIGN section 6): blockwise projection of the compact complex spectrum, in float64. Four lanes
// project a block of 16 coefficients. For any other block size a thread block projects a block; this path is
// not optimised.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "runtime.h"
#include "team.cuh"
#include "wgnc_block.cuh"

namespace noisetilt::cuda {
namespace {

using Tuning = Policy::Wgnc;
constexpr int kBlockThreads = Tuning::kBlockThreads, kBlocksPerSm = Tuning::kBlocksPerSm;
constexpr int32_t kBlock = kWgncBlock;

// Place of coefficient k in shared memory. A gap after every block lets neighbouring blocks begin in
// different banks.
__host__ __device__ constexpr int32_t spread(int32_t k) { return k + k / kBlock; }

template <class T>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerSm)
    project_wgnc_blocks_of_16_kernel(const T* y, T* out, int64_t num_blocks,
                                     const __grid_constant__ BlockNorms norms) {
  auto* shared = reinterpret_cast<Complex<T>*>(dynamic_shared_memory());
  const int32_t threads = blockDim.x;
  const int64_t at_once = threads / kLanes;
  for (int64_t first = blockIdx.x * at_once; first < num_blocks; first += gridDim.x * at_once) {
    const int32_t blocks = static_cast<int32_t>(min(at_once, num_blocks - first));
    const auto* from = reinterpret_cast<const Complex<T>*>(y) + first * kBlock;
    auto* to = reinterpret_cast<Complex<T>*>(out) + first * kBlock;
    for (int32_t k = threadIdx.x; k < blocks * kBlock; k += threads) shared[spread(k)] = from[k];
    __syncthreads();
    project_wgnc_blocks_of_16(blocks, [&](int32_t b) { return shared + spread(b * kBlock); }, norms);
    __syncthreads();
    for (int32_t k = threadIdx.x; k < blocks * kBlock; k += threads) to[k] = shared[spread(k)];
    __syncthreads();
  }
}

// ---- blocks of 16 coefficients, from and to half-length FFTs in one pass ----
//
// A thread block owns a range of coefficients k, begin <= k < end and k <= h/2, which are whole blocks, and
// their partners h - k. The partners are whole blocks as well, except for h - begin; therefore one more block
// is projected. A thread block also needs coefficients beside its range, which other thread blocks own and
// overwrite. Another kernel sets these pairs aside before.

constexpr int32_t kMaxBeside = 32;  // pairs; a range needs at most 15 before it and 1 after it

struct Range {
  int32_t begin, end;
  int32_t last;  // last k that the range owns
  __device__ Range(int32_t index, int32_t blocks, int32_t h)
      : begin(index * blocks * kBlock),
        end(min((index + 1) * blocks * kBlock, (h / 2 / kBlock + 1) * kBlock)),
        last(min(end - 1, h / 2)) {}
  // Pairs first() .. end are read. Those that others own are numbered.
  __device__ int32_t first() const { return begin == 0 ? 0 : begin - (kBlock - 1); }
  __device__ bool owns(int32_t k) const { return k >= begin && k <= last; }
  __device__ int32_t number_beside(int32_t k) const {
    return k < begin ? k - first() : begin - first() + k - last - 1;
  }
};

template <class T>
struct Pair {
  Complex<T> a, b;  // elements k and h - k
};

template <class T>
__device__ inline Pair<T> load_pair(const Complex<T>* z, int32_t k, int32_t h) {
  return {z[k == h ? 0 : k], z[k == 0 ? 0 : h - k]};
}

// A range has a few pairs whose k is more than h/2. They are turned as h - k and k.
template <HalfFft kDirection, class T>
__device__ inline void turn(Pair<T>& pair, int32_t k, int32_t h, const Twiddles<T>& turns, T scale) {
  if (k <= h - k)
    turn_pair<kDirection>(pair.a, pair.b, factor(turns, k), scale);
  else
    turn_pair<kDirection>(pair.b, pair.a, factor(turns, h - k), scale);
}

template <class T>
__global__ void wgnc_set_aside_kernel(const T* spectrum, int32_t h, int32_t blocks, int32_t ranges,
                                      Pair<T>* beside) {
  const int64_t sample = blockIdx.x / ranges;
  const Range range(static_cast<int32_t>(blockIdx.x % ranges), blocks, h);
  const auto* z = reinterpret_cast<const Complex<T>*>(spectrum) + sample * h;
  for (int32_t k = range.first() + threadIdx.x; k <= range.end; k += blockDim.x) {
    if (range.owns(k)) continue;
    beside[static_cast<int64_t>(blockIdx.x) * kMaxBeside + range.number_beside(k)] = load_pair(z, k, h);
  }
}

struct Scales {
  double ends, pairs, ends_back, pairs_back;
};

template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    wgnc_between_ffts_kernel(T* spectrum, int32_t h, int32_t blocks, int32_t ranges, const Pair<T>* beside,
                             Twiddles<T> turns, const __grid_constant__ BlockNorms norms,
                             const __grid_constant__ Scales scales) {
  const int64_t sample = blockIdx.x / ranges;
  const Range range(static_cast<int32_t>(blockIdx.x % ranges), blocks, h);
  auto* z = reinterpret_cast<Complex<T>*>(spectrum) + sample * h;
  beside += static_cast<int64_t>(blockIdx.x) * kMaxBeside;

  // `left` holds coefficients begin .. end - 1, `right` holds h - end .. h - begin + 15.
  auto* left = reinterpret_cast<Complex<T>*>(dynamic_shared_memory());
  Complex<T>* right = left + spread(range.end - range.begin);
  const auto at_left = [&](int32_t k) -> Complex<T>& { return left[spread(k - range.begin)]; };
  const auto at_right = [&](int32_t n) -> Complex<T>& { return right[spread(n - (h - range.end))]; };
  // Between Z_0 = (X_0 + X_h, X_0 - X_h)/2 and y_0 = (X_0, X_h)/sqrt2, in both directions.
  const auto turn_first = [](Complex<T> c, T scale) { return turn_ends(c.re, c.im, scale); };

  for (int32_t k = range.first() + static_cast<int32_t>(threadIdx.x); k <= range.end; k += blockDim.x) {
    Pair<T> pair = range.owns(k) ? load_pair(z, k, h) : beside[range.number_beside(k)];
    if (k == 0 || k == h) {
      const Complex<T> y = turn_first(pair.a, static_cast<T>(scales.ends));
      (k == 0 ? at_left(0) : at_right(0)) = y;
      continue;
    }
    turn<HalfFft::to_spectrum>(pair, k, h, turns, static_cast<T>(scales.pairs));
    if (k >= range.begin && k < range.end) at_left(k) = pair.a;
    at_right(h - k) = pair.b;
  }
  __syncthreads();
  const int32_t own = (range.end - range.begin) / kBlock, extra = range.begin == 0 ? 0 : 1;
  project_wgnc_blocks_of_16(
      2 * own + extra,
      [&](int32_t b) { return b < own ? left + spread(b * kBlock) : right + spread((b - own) * kBlock); },
      norms);
  __syncthreads();
  for (int32_t k = range.begin + static_cast<int32_t>(threadIdx.x); k <= range.last; k += blockDim.x) {
    if (k == 0) {
      z[0] = turn_first(at_left(0), static_cast<T>(scales.ends_back));
      continue;
    }
    Pair<T> pair{at_left(k), at_right(h - k)};
    turn<HalfFft::from_spectrum>(pair, k, h, turns, static_cast<T>(scales.pairs_back));
    z[k] = pair.a;
    z[h - k] = pair.b;  // the middle has two images, and this one counts
  }
}

// ---- blocks of any size ----

// Shared memory of a thread block: results of one thread for the block of coefficients.
struct WgncTempStorage {
  double divisor, greatest, delta, gain, first, other;
  int32_t first_tied;  // -1 if none
  bool finite;
};

// Projects y to out, which may be the same; a thread block takes one block at a time. `memory` holds two
// doubles for each coefficient of a block, for each thread block.
template <class T>
__global__ void __launch_bounds__(kBlockThreads)
    project_wgnc_blocks_kernel(const T* y, T* out, int64_t num_blocks,
                               const __grid_constant__ BlockNorms norms, double* memory) {
  WgncTempStorage& found = *reinterpret_cast<WgncTempStorage*>(dynamic_shared_memory());
  const int32_t B = norms.size, thread = threadIdx.x, threads = blockDim.x;
  double *r = memory + static_cast<int64_t>(blockIdx.x) * 2 * B, *sorted = r + B;
  for (int64_t p = blockIdx.x; p < num_blocks; p += gridDim.x) {
    const auto* block = reinterpret_cast<const Complex<T>*>(y) + p * B;
    auto* result = reinterpret_cast<Complex<T>*>(out) + p * B;
    if (thread == 0) {
      double largest = 0;
      found.finite = true;
      for (int32_t j = 0; j < B; ++j) {
        found.finite &= is_finite(block[j].re) && is_finite(block[j].im);
        largest = fmax(largest,
                       fmax(fabs(static_cast<double>(block[j].re)), fabs(static_cast<double>(block[j].im))));
      }
      found.divisor = divisor_of<T>(largest);
    }
    __syncthreads();
    if (!found.finite) {
      for (int32_t j = thread; j < B; j += threads) result[j] = {quiet_nan<T>(), quiet_nan<T>()};
      __syncthreads();
      continue;
    }
    for (int32_t j = thread; j < B; j += threads) {
      const double re = block[j].re / found.divisor, im = block[j].im / found.divisor;
      r[j] = sqrt(re * re + im * im);
    }
    __syncthreads();
    for (int32_t j = thread; j < B; j += threads) {
      int32_t rank = 0;
      for (int32_t k = 0; k < B; ++k) rank += r[k] > r[j] || (r[k] == r[j] && k < j);
      sorted[rank] = r[j];
    }
    __syncthreads();
    if (thread == 0) {
      // DESIGN defines these sums as sequential.
      const double greatest = sorted[0];
      double d1 = 0, d2 = 0, delta = 0, total = 0;
      for (int32_t n = 1; n <= B; ++n) {
        const double d = sorted[n - 1] - greatest;
        d1 = d1 + d;
        d2 = d2 + d * d;
        if (n < norms.min_support) continue;
        delta = threshold(d1, d2, n, norms.t);
        if (n == B || sorted[n] - greatest <= delta) break;
      }
      for (int32_t n = 0; n < B; ++n) total = total + positive_part((sorted[n] - greatest) - delta);
      found.greatest = greatest;
      found.delta = delta;
      found.gain = norms.l1 / total;
      found.first_tied = -1;
      if (sorted[norms.min_support - 1] == greatest) {
        int32_t ties = 0;
        for (int32_t j = B; j-- > 0;) {
          if (r[j] != greatest) continue;
          found.first_tied = j;
          ++ties;
        }
        tied_radii(norms, ties, found.first, found.other);
      }
    }
    __syncthreads();
    for (int32_t j = thread; j < B; j += threads) {
      double radius = found.gain * positive_part((r[j] - found.greatest) - found.delta);
      if (found.first_tied >= 0)
        radius = r[j] != found.greatest ? 0.0 : j == found.first_tied ? found.first : found.other;
      result[j] = with_radius<T>(block[j].re / found.divisor, block[j].im / found.divisor, r[j], radius);
    }
    __syncthreads();
  }
}

// The steps between half-length FFT and spectrum, without the projection.
template <class T, HalfFft kDirection>
__global__ void __launch_bounds__(kBlockThreads)
    wgnc_turn_kernel(T* spectrum, int64_t batch, int32_t h, Twiddles<T> turns, double end_scale,
                     double scale) {
  const int64_t pairs = h / 2 + 1;
  for (int64_t p = grid_thread(); p < batch * pairs; p += grid_threads()) {
    const int64_t sample = p / pairs;
    const int32_t k = static_cast<int32_t>(p - sample * pairs);
    auto* y = reinterpret_cast<Complex<T>*>(spectrum) + sample * h;
    if (k == 0) {
      y[0] = turn_ends(y[0].re, y[0].im, static_cast<T>(end_scale));
      continue;
    }
    Complex<T> a = y[k], b = y[h - k];
    turn_pair<kDirection>(a, b, factor(turns, k), static_cast<T>(scale));
    y[k] = a;
    y[h - k] = b;
  }
}

}  // namespace

template <class T>
void project_wgnc_blocks(const Launch& launch, const T* y, T* out, int64_t num_blocks, int64_t block_size) {
  if (num_blocks == 0) return;
  if (!is_complex(y)) {
    const int64_t count = 2 * num_blocks * block_size;
    T* copy = allocate<T>(launch, count);
    copy_memory(launch, y, copy, count);
    y = copy;
  }
  const BlockNorms norms(block_size);
  const int threads = block_threads(launch, kBlockThreads);
  if (block_size == kBlock) {
    const size_t shared_bytes = static_cast<size_t>(spread(threads / kLanes * kBlock)) * sizeof(Complex<T>);
    enqueue(launch, project_wgnc_blocks_of_16_kernel<T>, Residence::any,
            blocks_for(num_blocks, threads / kLanes), threads, shared_bytes, y, out, num_blocks, norms);
  } else {
    const int64_t blocks = std::min<int64_t>(num_blocks, kBlocksPerSm * launch.device->limits.num_sms);
    double* memory = allocate<double>(launch, blocks * 2 * block_size);
    enqueue(launch, project_wgnc_blocks_kernel<T>, Residence::any, blocks, threads, sizeof(WgncTempStorage),
            y, out, num_blocks, norms, memory);
  }
}

template <class T>
void wgnc_between_ffts(const Launch& launch, T* spectrum, int64_t batch, int64_t size, Twiddles<T> turns,
                       int64_t block_size) {
  if (batch == 0) return;
  require_complex(spectrum);
  const int32_t h = static_cast<int32_t>(size / 2);
  const double root = std::sqrt(static_cast<double>(size));
  const Scales scales{std::sqrt(0.5) / root, 0.5 / root, std::sqrt(2.0) / root, 1 / root};
  const int threads = block_threads(launch, kBlockThreads);
  if (block_size != kBlock) {
    const int64_t blocks = blocks_for(batch * (h / 2 + 1), threads);
    enqueue(launch, wgnc_turn_kernel<T, HalfFft::to_spectrum>, Residence::any, blocks, threads, 0, spectrum,
            batch, h, turns, scales.ends, scales.pairs);
    project_wgnc_blocks<T>(launch, spectrum, spectrum, batch * h / block_size, block_size);
    enqueue(launch, wgnc_turn_kernel<T, HalfFft::from_spectrum>, Residence::any, blocks, threads, 0, spectrum,
            batch, h, turns, scales.ends_back, scales.pairs_back);
    return;
  }
  const BlockNorms norms(block_size);
  // All blocks are projected at once: those of the range, as many partners, and one more. With 128 threads:
  // 15 + 15 + 1. A small batch is spread over all multiprocessors.
  const int64_t all = h / 2 / kBlock + 1, spread_out = launch.device->limits.num_sms / batch;
  const int64_t blocks =
      std::clamp<int64_t>(all / std::max<int64_t>(spread_out, 1), 1, (threads / kLanes - 1) / 2);
  const int64_t ranges = (all + blocks - 1) / blocks;
  auto* beside = allocate<Pair<T>>(launch, batch * ranges * kMaxBeside);
  enqueue(launch, wgnc_set_aside_kernel<T>, Residence::any, batch * ranges, Tuning::kSetAsideThreads, 0,
          static_cast<const T*>(spectrum), h, static_cast<int32_t>(blocks), static_cast<int32_t>(ranges),
          beside);
  const size_t shared_bytes =
      static_cast<size_t>(spread(static_cast<int32_t>(2 * blocks + 1) * kBlock)) * sizeof(Complex<T>);
  enqueue(launch, wgnc_between_ffts_kernel<T>, Residence::any, batch * ranges, threads, shared_bytes,
          spectrum, h, static_cast<int32_t>(blocks), static_cast<int32_t>(ranges),
          static_cast<const Pair<T>*>(beside), turns, norms, scales);
}

#define NOISETILT_INSTANTIATE(T)                                                       \
  template void project_wgnc_blocks<T>(const Launch&, const T*, T*, int64_t, int64_t); \
  template void wgnc_between_ffts<T>(const Launch&, T*, int64_t, int64_t, Twiddles<T>, int64_t);
NOISETILT_INSTANTIATE(float)
NOISETILT_INSTANTIATE(double)

}  // namespace noisetilt::cuda
