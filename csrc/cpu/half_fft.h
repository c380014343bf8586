// Spectrum of N real values from the FFT of the same memory read as h = N/2 complex numbers, and back.
//
// Let Z be this FFT and w = exp(-2 pi i / N). The spectrum is
//
//     X_k = (Z_k + conj Z_{h-k}) / 2 - i w^k (Z_k - conj Z_{h-k}) / 2,
//
// so Z_k and Z_{h-k} determine X_k and X_{h-k}, and conversely. X_0 and X_h are the sum and the difference of
// the real and imaginary part of Z_0; number 0 of a spectrum has both.
#pragma once

#include <tuple>
#include <utility>

#include "../problem.h"
#include "complex_array.h"
#include "parallel.h"

namespace noisetilt::NOISETILT_VARIANT {

enum class HalfFft { to_spectrum, from_spectrum };

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

// Replaces the pairs k in [begin, end), a part of 1 .. h/2, and multiplies them by 2*scale. `w` has the
// factors w^k. Reads `in` and writes `out`, which may be the same.
template <HalfFft direction, class T, class In, class Out>
inline void turn_pairs(int64_t begin, int64_t end, int64_t h, Twiddles<T> w, T scale, const In& in,
                       const Out& out) {
  constexpr int W = kLanes<T>;
  int64_t k = begin;
  for (; k + W <= end && 2 * (k + W - 1) < h; k += W) {  // while the two vectors do not overlap
    const int64_t n = h - k - (W - 1);
    Complex<Vector<T>> a = in.load_vector(k), b = in.load_vector(n);
    b = {reverse_lanes<T>(b.re), reverse_lanes<T>(b.im)};
    turn_pair<direction, Vector<T>>(a.re, a.im, b.re, b.im, load(w.re + k), load(w.im + k), broadcast(scale));
    out.store_vector(k, a);
    out.store_vector(n, {reverse_lanes<T>(b.re), reverse_lanes<T>(b.im)});
  }
  for (; k < end; ++k) {
    const int64_t n = h - k;
    Complex<T> a{in.re(k), in.im(k)}, b{in.re(n), in.im(n)};
    turn_pair<direction, T>(a.re, a.im, b.re, b.im, w.re[k], w.im[k], scale);
    put(out, k, a);
    put(out, n, b);
  }
}

// Turns half-length FFTs into spectra of h numbers, or back. Number 0 of a spectrum has X_0 and X_h. `w`:
// factors of the FFT of N = 2h real values.
template <HalfFft direction, class T, class In, class Out>
void turn(int64_t h, Twiddles<T> w, T end_scale, T scale, const In& in, const Out& out) {
  constexpr int64_t kGrain = 8192;  // fewest pairs per thread
  const int64_t first = num_twiddles(2 * h) - (h / 2 + 1);
  std::tie(out.re(0), out.im(0)) = turn_ends<T>(in.re(0), in.im(0), end_scale);
  parallel_for(h / 2, kGrain, [&](int64_t begin, int64_t end) {
    turn_pairs<direction>(begin + 1, end + 1, h, {w.re + first, w.im + first}, scale, in, out);
  });
}

}  // namespace noisetilt::NOISETILT_VARIANT
