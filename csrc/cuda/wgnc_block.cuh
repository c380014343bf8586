// WGNC (DESIGN section 6): projection of a block of 16 coefficients, in float64, by one thread.
#pragma once

#include <cmath>
#include <cstdint>

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

// Projects a block of 16 in place, by one thread.
template <class T>
__device__ void thread_project_wgnc_block(Complex<T>* y, const BlockNorms& norms) {
  double largest = 0;
  bool finite = true;
#pragma unroll
  for (int32_t j = 0; j < kWgncBlock; ++j) {
    finite &= is_finite(y[j].re) && is_finite(y[j].im);
    if constexpr (sizeof(T) == 8) largest = fmax(largest, fmax(fabs(y[j].re), fabs(y[j].im)));
  }
  if (!finite) {
    for (int32_t j = 0; j < kWgncBlock; ++j) y[j] = {quiet_nan<T>(), quiet_nan<T>()};
    return;
  }
  const double divisor = divisor_of<T>(largest);
  double r[kWgncBlock], ascending[kWgncBlock], d[kWgncBlock];
#pragma unroll
  for (int32_t j = 0; j < kWgncBlock; ++j) {
    const double re = y[j].re / divisor, im = y[j].im / divisor;
    ascending[j] = r[j] = sqrt(re * re + im * im);
  }
  thread_sort(ascending);
  const double greatest = ascending[kWgncBlock - 1];
#pragma unroll
  for (int32_t j = 0; j < kWgncBlock; ++j) d[j] = ascending[kWgncBlock - 1 - j] - greatest;
  constexpr int32_t kMinSupport = 13;  // floor(16 pi / 4) + 1
  double d1 = 0, d2 = 0, delta = 0;
  bool found = false;
#pragma unroll
  for (int32_t n = 1; n <= kWgncBlock; ++n) {
    d1 = d1 + d[n - 1];
    d2 = d2 + d[n - 1] * d[n - 1];
    if (n < kMinSupport) continue;
    const double candidate = threshold(d1, d2, n, norms.t);
    const bool fits = !found && (n == kWgncBlock || d[n % kWgncBlock] <= candidate);
    delta = fits ? candidate : delta;
    found |= fits;
  }
  double total = 0;
#pragma unroll
  for (int32_t j = 0; j < kWgncBlock; ++j) total = total + positive_part(d[j] - delta);
  const double gain = norms.l1 / total;
  const bool tied = d[kMinSupport - 1] == 0;
  double first = 0, other = 0;
  if (tied) {
    int32_t ties = 0;
    for (int32_t j = 0; j < kWgncBlock; ++j) ties += r[j] == greatest;
    tied_radii(norms, ties, first, other);
  }
#pragma unroll
  for (int32_t j = 0; j < kWgncBlock; ++j) {
    double radius = gain * positive_part((r[j] - greatest) - delta);
    if (tied) {
      radius = r[j] == greatest ? first : 0.0;
      first = r[j] == greatest ? other : first;
    }
    y[j] = with_radius<T>(y[j].re / divisor, y[j].im / divisor, r[j], radius);
  }
}

}  // namespace noisetilt::cuda
