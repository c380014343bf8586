// Spectrum X of N real values from their half-length FFT Z, and back. Z is the FFT of the same memory, read
// as h = N/2 complex numbers. With w = exp(-2 pi i / N),
//
//     X_k = (Z_k + conj Z_{h-k}) / 2 - i w^k (Z_k - conj Z_{h-k}) / 2,
//
// so Z_k and Z_{h-k} give X_k and X_{h-k}, and vice versa. X_0 and X_h are the sum and the
// difference of the real and the imaginary part of Z_0; the callers compute them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>

#include "../problem.h"

namespace noisetilt::cuda {

template <class T>
struct alignas(2 * sizeof(T)) Complex {
  T re, im;
};

template <class T>
bool is_complex(const T* values) {
  return reinterpret_cast<uintptr_t>(values) % alignof(Complex<T>) == 0;
}
// Throws std::invalid_argument unless kernels can read and write whole complex numbers.
template <class T>
void require_complex(const T* values) {
  if (!is_complex(values))
    throw std::invalid_argument("noisetilt: complex numbers must begin at a multiple of their size");
}

enum class HalfFft { to_spectrum, from_spectrum };

// Factor number k of a table.
template <class T>
__device__ inline Complex<T> factor(const Twiddles<T>& table, int32_t k) {
  return {__ldg(table.re + k), __ldg(table.im + k)};
}

// Sum and difference of the two real numbers at the ends of a spectrum, times scale.
template <class T>
__device__ inline Complex<T> turn_ends(T a, T b, T scale) {
  a *= T(1) / kGuard;
  b *= T(1) / kGuard;
  return {(a + b) * (kGuard * scale), (a - b) * (kGuard * scale)};
}

// Replaces elements a (number k) and b (number h - k), 0 < k <= h/2, by their images times 2*scale. w is
// exp(-2 pi i k/N).
template <HalfFft kDirection, class T>
__device__ inline void turn_pair(Complex<T>& a, Complex<T>& b, Complex<T> w, T scale) {
  for (T* value : {&a.re, &a.im, &b.re, &b.im}) *value *= T(1) / kGuard;
  scale *= kGuard;
  const T sum_re = a.re + b.re, sum_im = a.im - b.im;
  const T dif_re = a.re - b.re, dif_im = a.im + b.im;
  // the difference times -i w^k to the spectrum, times i conj(w^k) from it
  constexpr bool forth = kDirection == HalfFft::to_spectrum;
  const T odd_re = forth ? w.re * dif_im + w.im * dif_re : w.im * dif_re - w.re * dif_im;
  const T odd_im = forth ? w.im * dif_im - w.re * dif_re : w.re * dif_re + w.im * dif_im;
  a = {(sum_re + odd_re) * scale, (sum_im + odd_im) * scale};
  b = {(sum_re - odd_re) * scale, (odd_im - sum_im) * scale};
}

}  // namespace noisetilt::cuda
