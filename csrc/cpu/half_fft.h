// Spectrum of N real values from the FFT of the same memory read as h = N/2 complex numbers, and back.
//
// Let Z be this FFT and w = exp(-2 pi i / N). The spectrum is
//
//     X_k = (Z_k + conj Z_{h-k}) / 2 - i w^k (Z_k - conj Z_{h-k}) / 2,
//
// so Z_k and Z_{h-k} determine X_k and X_{h-k}, and conversely. X_0 and X_h are the sum and the difference of
// the real and imaginary part of Z_0; the callers compute these.
#pragma once

#include "simd.h"
#include "twiddles.h"

namespace noisetilt::NOISETILT_VARIANT {

// Array of complex numbers, real and imaginary parts interleaved. Vectors begin with number k.
template <class T>
struct InterleavedComplex {
  T* v;
  Pair<std::remove_const_t<T>> load_vector(int64_t k) const {
    return unzip<std::remove_const_t<T>>(load(v + 2 * k), load(v + 2 * k + kLanes<T>));
  }
  void store_vector(int64_t k, Vector<T> re, Vector<T> im) const {
    auto [first, second] = zip<T>(re, im);
    store<T>(v + 2 * k, first);
    store<T>(v + 2 * k + kLanes<T>, second);
  }
  T& re(int64_t k) const { return v[2 * k]; }
  T& im(int64_t k) const { return v[2 * k + 1]; }
};

// Array of complex numbers, real and imaginary parts in two arrays.
template <class T>
struct SplitComplex {
  T *real, *imaginary;
  Pair<std::remove_const_t<T>> load_vector(int64_t k) const { return {load(real + k), load(imaginary + k)}; }
  void store_vector(int64_t k, Vector<T> re, Vector<T> im) const {
    store<T>(real + k, re);
    store<T>(imaginary + k, im);
  }
  T& re(int64_t k) const { return real[k]; }
  T& im(int64_t k) const { return imaginary[k]; }
};

enum class HalfFft { to_spectrum, from_spectrum };

// Values are divided by this before they are added. The sums of up to four finite values are then finite.
constexpr int kGuard = 4;

// Sum and difference of the two real numbers at the ends of a spectrum, times scale.
template <class T>
inline std::pair<T, T> turn_ends(T a, T b, T scale) {
  a /= kGuard;
  b /= kGuard;
  return {(a + b) * (kGuard * scale), (a - b) * (kGuard * scale)};
}

// Replaces one pair: elements k and n = h - k. (c, s) is w^k.
template <HalfFft direction, class V>
inline void turn_pair(V& k_re, V& k_im, V& n_re, V& n_im, V c, V s, V scale) {
  for (V* value : {&k_re, &k_im, &n_re, &n_im}) *value = *value / kGuard;
  scale = scale * kGuard;
  const V sum_re = k_re + n_re, sum_im = k_im - n_im;
  const V dif_re = k_re - n_re, dif_im = k_im + n_im;
  // The difference times -i w^k; from_spectrum: times i conj(w^k).
  const V odd_re = direction == HalfFft::to_spectrum ? c * dif_im + s * dif_re : s * dif_re - c * dif_im;
  const V odd_im = direction == HalfFft::to_spectrum ? s * dif_im - c * dif_re : c * dif_re + s * dif_im;
  k_re = (sum_re + odd_re) * scale;
  k_im = (sum_im + odd_im) * scale;
  n_re = (sum_re - odd_re) * scale;
  n_im = (odd_im - sum_im) * scale;
}

// Replaces the pairs k in [begin, end), a part of 1 .. h/2, and multiplies them by 2*scale. Reads `in` and
// writes `out`, which may be the same.
template <HalfFft direction, class T, class In, class Out>
inline void turn_pairs(int64_t begin, int64_t end, int64_t h, const T* w, T scale, const In& in,
                       const Out& out) {
  constexpr int W = kLanes<T>;
  const InterleavedComplex<const T> twiddle{w};
  int64_t k = begin;
  for (; k + W <= end && 2 * (k + W - 1) < h; k += W) {  // while the two vectors do not overlap
    const int64_t n = h - k - (W - 1);
    auto [k_re, k_im] = in.load_vector(k);
    auto [n_re, n_im] = in.load_vector(n);
    auto [c, s] = twiddle.load_vector(k);
    n_re = reverse_lanes<T>(n_re);
    n_im = reverse_lanes<T>(n_im);
    turn_pair<direction, Vector<T>>(k_re, k_im, n_re, n_im, c, s, broadcast(scale));
    out.store_vector(k, k_re, k_im);
    out.store_vector(n, reverse_lanes<T>(n_re), reverse_lanes<T>(n_im));
  }
  for (; k < end; ++k) {
    const int64_t n = h - k;
    T k_re = in.re(k), k_im = in.im(k), n_re = in.re(n), n_im = in.im(n);
    turn_pair<direction, T>(k_re, k_im, n_re, n_im, w[2 * k], w[2 * k + 1], scale);
    out.re(k) = k_re;
    out.im(k) = k_im;
    out.re(n) = n_re;
    out.im(n) = n_im;
  }
}

}  // namespace noisetilt::NOISETILT_VARIANT
