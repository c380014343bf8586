// FFT of h = 2^k complex numbers with defined rounding (python_ref/fourier.py, `complex_fft`), not scaled.
#pragma once

#include "../problem.h"
#include "complex_array.h"
#include "scratch.h"

namespace noisetilt::NOISETILT_VARIANT {

// Transforms of length `left`, of which there are `spread`, and the factors of their stages.
template <class T>
struct Remaining {
  int64_t left, spread;
  Twiddles<T> w;
};

template <class T>
class ComplexFft {
 public:
  ComplexFft(int64_t h, Twiddles<T> w) : h_(h), w_(w), memory_(4 * h) {}

  // Transforms h interleaved numbers. The result is in working memory.
  SplitComplex<T> forward(const T* x);

  // Working memory for the numbers that `inverse` transforms.
  Exchanged<InterleavedComplex<T>> spectrum() { return {{memory_.data()}}; }
  // Writes h interleaved numbers. An inverse FFT is the FFT with real and imaginary parts exchanged.
  void inverse(T* out);

 private:
  SplitComplex<T> half(int which) {
    T* begin = memory_.data() + 2 * h_ * which;
    return {begin, begin + h_};
  }
  SplitComplex<T> held() { return half(held_); }
  SplitComplex<T> free() { return half(held_ ^ 1); }
  void advance(int bits);
  void all_passes_but_last(const T* x);
  template <class Out>
  void last_pass(const Out& out);

  int64_t h_;
  Twiddles<T> w_;
  Scratch<T> memory_;  // two halves: a pass reads one and writes the other
  int held_ = 0;       // the half with the numbers
  Remaining<T> now_{};
};

}  // namespace noisetilt::NOISETILT_VARIANT
