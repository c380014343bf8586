// WGNC (DESIGN section 6): projection of a block of 16 coefficients, in float64, by four lanes.
#pragma once

#include <cmath>
#include <cstdint>

#include "block_scan.cuh"
#include "half_fft.cuh"
#include "keys.cuh"

namespace noisetilt::cuda {

// Norms onto which every block of B coefficients is projected.
struct BlockNorms {
  explicit BlockNorms(int64_t block_size)
      : size(static_cast<int32_t>(block_size)),
        min_support(0),
        t(3.14159265358979323846 * static_cast<double>(block_size) / 4),
        l1(std::sqrt(3.14159265358979323846) / 2 * static_cast<double>(block_size)) {
    min_support = static_cast<int32_t>(std::floor(t)) + 1;
  }
  int32_t size;
  int32_t min_support;  // fewer non-zero coefficients cannot have both norms
  double t;             // |.|_1^2 = t |.|_2^2
  double l1;            // a = |.|_1
};

__device__ inline double positive_part(double x) { return x > 0 ? x : 0.0; }

// Soft threshold if exactly n magnitudes exceed it. d1, d2: sum of the n largest, and of their squares.
__device__ inline double threshold(double d1, double d2, int32_t n, double t) {
  const double count = n;
  return (d1 - sqrt(t * (count * d2 - d1 * d1) / (count - t))) / count;
}

// Radii of a block in which `ties` > t magnitudes are equal to the maximum: `first` for the first of them,
// `other` for the rest.
__device__ inline void tied_radii(const BlockNorms& norms, int32_t ties, double& first, double& other) {
  const double k = ties;
  first = (norms.l1 + sqrt((k - 1) * (k * norms.size - norms.l1 * norms.l1))) / k;
  other = (norms.l1 - first) / (k - 1);
}

// Coefficient of magnitude r, rescaled to `radius`. The phase of 0 is 1.
template <class T>
__device__ inline Complex<T> with_radius(double re, double im, double r, double radius) {
  if (r == 0) return {static_cast<T>(radius), T(0)};
  const double factor = radius / r;
  return {static_cast<T>(factor * re), static_cast<T>(factor * im)};
}

// Divisor of a block before it is squared. Squares of doubles may overflow or underflow, those of widened
// floats cannot. The projection does not depend on the scale.
template <class T>
__device__ inline double divisor_of(double largest) {
  return sizeof(T) == 8 && largest > 0 ? largest : 1.0;
}

// ---- blocks of 16 coefficients ----

constexpr int32_t kWgncBlock = 16;

// Four neighbouring lanes project a block. Lane l of them has the coefficients, and later the sorted
// magnitudes, 4l .. 4l + 3.
constexpr int32_t kLanes = 4, kEach = kWgncBlock / kLanes;

// Value of lane l of a block.
template <class V>
__device__ inline V of_lane(int32_t l, V value) {
  return __shfl_sync(kAllLanes, value, l, kLanes);
}

// Sorts 16 magnitudes in descending order, by a bitonic network.
__device__ inline void lanes_sort(double (&v)[kEach], int32_t lane) {
  // Exchange with value i ^ flip of lane ^ lanes.
  const auto exchange = [&](int32_t lanes, int32_t flip) {
    double result[kEach];
#pragma unroll
    for (int32_t i = 0; i < kEach; ++i) {
      const double other = lanes == 0 ? v[i ^ flip] : __shfl_xor_sync(kAllLanes, v[i ^ flip], lanes);
      const bool larger = lanes == 0 ? i < (i ^ flip) : lane < (lane ^ lanes);
      result[i] = (v[i] < other) == larger ? other : v[i];
    }
#pragma unroll
    for (int32_t i = 0; i < kEach; ++i) v[i] = result[i];
  };
#pragma unroll
  for (int32_t run = 2; run <= kWgncBlock; run *= 2) {
    exchange((run - 1) / kEach, min(run, kEach) - 1);
#pragma unroll
    for (int32_t distance = run / 4; distance > 0; distance /= 2)
      exchange(distance / kEach, distance % kEach);
  }
}

template <class T>
__device__ inline double magnitude(Complex<T> v) {
  const double re = v.re, im = v.im;
  return sqrt(re * re + im * im);
}

// Projects the coefficients of a lane in a block with so many equal maxima that several points are nearest.
// The result is the one in which the first maximum becomes the largest. This is rare, so the loops are short.
template <class T>
__device__ inline void lane_project_tied(Complex<T>* y, bool active, int32_t lane, double greatest,
                                         const BlockNorms& norms) {
  int32_t ties = 0;
#pragma unroll 1
  for (int32_t j = 0; j < kEach && active; ++j) ties += magnitude(y[j]) == greatest;
  int32_t before = 0, all = 0;
#pragma unroll
  for (int32_t l = 0; l < kLanes; ++l) {
    const int32_t of_l = of_lane(l, ties);
    before += l < lane ? of_l : 0;
    all += of_l;
  }
  if (!active) return;
  double first, other;
  tied_radii(norms, all, first, other);
  if (before > 0) first = other;
#pragma unroll 1
  for (int32_t j = 0; j < kEach; ++j) {
    const double r = magnitude(y[j]);
    y[j] = with_radius<T>(y[j].re, y[j].im, r, r == greatest ? first : 0.0);
    first = r == greatest ? other : first;
  }
}

// Projects a block of 16 in place. All lanes of a warp call this; `active`: the lane has a block. Sums are
// sequential, as they are defined: each lane continues those of the one before.
template <class T>
__device__ inline void lanes_project_wgnc_block(Complex<T>* y, bool active, const BlockNorms& norms) {
  const int32_t lane = threadIdx.x % kLanes;
  y += lane * kEach;
  double divisor = 1;
  if constexpr (sizeof(T) == 8) {
    double largest = 0;
#pragma unroll
    for (int32_t j = 0; j < kEach; ++j)
      if (active) largest = fmax(largest, fmax(fabs(y[j].re), fabs(y[j].im)));
#pragma unroll
    for (int32_t l = 1; l < kLanes; l *= 2) largest = fmax(largest, __shfl_xor_sync(kAllLanes, largest, l));
    divisor = divisor_of<T>(largest);
  }
  double r[kEach], d[kEach], sum = 0;
#pragma unroll
  for (int32_t j = 0; j < kEach; ++j) {
    Complex<T> v = active ? y[j] : Complex<T>{0, 0};
    if constexpr (sizeof(T) == 8) {
      v = {v.re / divisor, v.im / divisor};
      if (active) y[j] = v;
    }
    d[j] = r[j] = magnitude(v);
    sum = sum + r[j];
  }
  // No sum of finite magnitudes overflows: those of floats are far below, those of doubles are at most sqrt2.
#pragma unroll
  for (int32_t l = 1; l < kLanes; l *= 2) sum = sum + __shfl_xor_sync(kAllLanes, sum, l);
  const bool finite = is_finite(sum);
  lanes_sort(d, lane);
  const double greatest = of_lane(0, d[0]);
#pragma unroll
  for (int32_t j = 0; j < kEach; ++j) d[j] = d[j] - greatest;

  // Sums of the n largest magnitudes and of their squares, n = 4l + j + 1 in lane l.
  double d1[kEach], d2[kEach];
#pragma unroll
  for (int32_t l = 0; l < kLanes; ++l) {
    double sum1 = l == 0 ? 0 : of_lane(l - 1, d1[kEach - 1]),
           sum2 = l == 0 ? 0 : of_lane(l - 1, d2[kEach - 1]);
#pragma unroll
    for (int32_t j = 0; j < kEach; ++j) {
      d1[j] = sum1 = sum1 + d[j];
      d2[j] = sum2 = sum2 + d[j] * d[j];
    }
  }
  // At least 13 magnitudes are left, floor(16 pi / 4) + 1. Lane l tries 13 + l.
  double sum1 = 0, sum2 = 0, next = 0;
#pragma unroll
  for (int32_t l = 0; l < kLanes; ++l) {
    const double l1 = of_lane(kLanes - 1, d1[l]), l2 = of_lane(kLanes - 1, d2[l]);
    const double l_next = of_lane(kLanes - 1, d[(l + 1) % kEach]);
    sum1 = lane == l ? l1 : sum1;
    sum2 = lane == l ? l2 : sum2;
    next = lane == l ? l_next : next;
  }
  const double candidate = threshold(sum1, sum2, kWgncBlock - kEach + 1 + lane, norms.t);
  const uint32_t all_fits = __ballot_sync(kAllLanes, next <= candidate || lane == kLanes - 1);
  const uint32_t fits = all_fits >> (threadIdx.x % kWarpThreads - lane);
  const double delta = of_lane(__popc(~fits & (fits - 1)), candidate);  // of the first that fits

  double total = 0;
#pragma unroll
  for (int32_t l = 0; l < kLanes; ++l) {
    total = l == 0 ? 0 : of_lane(l - 1, total);
#pragma unroll
    for (int32_t j = 0; j < kEach; ++j) total = total + positive_part(d[j] - delta);
  }
  const double gain = norms.l1 / of_lane(kLanes - 1, total);
  const bool tied = of_lane(kLanes - 1, d[0]) == 0 && finite;  // at least 13 of them
  if (__any_sync(kAllLanes, tied)) lane_project_tied(y, active && tied, lane, greatest, norms);
  if (!active || tied) return;
#pragma unroll
  for (int32_t j = 0; j < kEach; ++j) {
    const double radius = gain * positive_part((r[j] - greatest) - delta);
    y[j] =
        finite ? with_radius<T>(y[j].re, y[j].im, r[j], radius) : Complex<T>{quiet_nan<T>(), quiet_nan<T>()};
  }
}

// Projects blocks 0 .. count - 1 in shared memory, by all threads. block(b): first coefficient.
template <class Block>
__device__ inline void project_wgnc_blocks_of_16(int32_t count, const Block& block, const BlockNorms& norms) {
  const int32_t at_once = blockDim.x / kLanes;
  for (int32_t first = 0; first < count; first += at_once) {
    const int32_t b = first + threadIdx.x / kLanes;
    lanes_project_wgnc_block(block(min(b, count - 1)), b < count, norms);
  }
}

}  // namespace noisetilt::cuda
