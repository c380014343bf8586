// The spectrum of N real values from the FFT of the same memory read as h = N/2 complex numbers, and back.
//
// With Z that FFT and w = exp(-2 pi i / N), the spectrum is
//
//     X_k = (Z_k + conj Z_{h-k}) / 2 - i w^k (Z_k - conj Z_{h-k}) / 2,
//
// so Z_k and Z_{h-k} give X_k and X_{h-k}. Both directions leave a factor 2 to the caller's scale. X_0 and X_h
// are the sum and the difference of the two parts of Z_0.
#pragma once

#include "simd.h"
#include "twiddles.h"

namespace noisetilt::NOISETILT_VARIANT {

template <class T>
struct InterleavedComplex {
  T* v;
  T re(int64_t k) const { return v[2 * k]; }
  T im(int64_t k) const { return v[2 * k + 1]; }
};
template <class T>
struct SplitComplex {
  T *real, *imaginary;
  T re(int64_t k) const { return real[k]; }
  T im(int64_t k) const { return imaginary[k]; }
};

// put(k, re, im) of 2 X_k and 2 X_{h-k} for k in [begin, end), within 1 .. h/2. `put` may overwrite Z_k, Z_{h-k}.
template <class T, class Z, class Put>
inline void for_spectrum_pairs(int64_t begin, int64_t end, int64_t h, const T* w, const Z& z, const Put& put) {
  for (int64_t k = begin; k < end; ++k) {
    const int64_t n = h - k;
    const T sum_re = z.re(k) + z.re(n), sum_im = z.im(k) - z.im(n);
    const T dif_re = z.re(k) - z.re(n), dif_im = z.im(k) + z.im(n);
    const T odd_re = w[2 * k] * dif_im + w[2 * k + 1] * dif_re;
    const T odd_im = w[2 * k + 1] * dif_im - w[2 * k] * dif_re;
    put(k, sum_re + odd_re, sum_im + odd_im);
    put(n, sum_re - odd_re, odd_im - sum_im);
  }
}

// The other direction: put(k, re, im) of 2 Z_k and 2 Z_{h-k} from the spectrum x.
template <class T, class X, class Put>
inline void for_half_fft_pairs(int64_t begin, int64_t end, int64_t h, const T* w, const X& x, const Put& put) {
  for (int64_t k = begin; k < end; ++k) {
    const int64_t n = h - k;
    const T sum_re = x.re(k) + x.re(n), sum_im = x.im(k) - x.im(n);
    const T dif_re = x.re(k) - x.re(n), dif_im = x.im(k) + x.im(n);
    const T odd_re = w[2 * k + 1] * dif_re - w[2 * k] * dif_im;
    const T odd_im = w[2 * k] * dif_re + w[2 * k + 1] * dif_im;
    put(k, sum_re + odd_re, sum_im + odd_im);
    put(n, sum_re - odd_re, odd_im - sum_im);
  }
}

}  // namespace noisetilt::NOISETILT_VARIANT
