// FFT of h = 2^k complex numbers with defined rounding (python_ref/fourier.py, `complex_fft`): radix 4,
// decimation in frequency, self-sorting.
//
// A pass over memory does two stages, on up to 16 numbers in registers, which lie h/16 apart. In the first pass
// each of the 16 is a vector of neighbours, and the results are transposed. Later the results of neighbours
// are neighbours too.
#pragma once

#include <algorithm>
#include <utility>

#include "../problem.h"
#include "complex_array.h"
#include "parallel.h"
#include "scratch.h"

namespace noisetilt::NOISETILT_VARIANT {

template <class V>
inline Complex<V> operator+(const Complex<V>& a, const Complex<V>& b) {
  return {a.re + b.re, a.im + b.im};
}
template <class V>
inline Complex<V> operator-(const Complex<V>& a, const Complex<V>& b) {
  return {a.re - b.re, a.im - b.im};
}
template <class V, class F>
inline Complex<V> operator*(const Complex<V>& z, const Complex<F>& factor) {
  return {z.re * factor.re - z.im * factor.im, z.re * factor.im + z.im * factor.re};
}

// Transforms kLength numbers, kStride apart.
template <int kLength, int kStride, class V>
inline void transform_few(Complex<V>* z) {
  if constexpr (kLength == 2) {
    const Complex<V> a = z[0], b = z[kStride];
    z[0] = a + b;
    z[kStride] = a - b;
  } else if constexpr (kLength == 4) {
    const Complex<V> a = z[0], b = z[kStride], c = z[2 * kStride], d = z[3 * kStride];
    const Complex<V> even = a + c, even_difference = a - c, odd = b + d, odd_difference = b - d;
    const Complex<V> turned{odd_difference.im, -odd_difference.re};  // times -i
    z[0] = even + odd;
    z[kStride] = even_difference + turned;
    z[2 * kStride] = even - odd;
    z[3 * kStride] = even_difference - turned;
  }
}

// A stage that splits transforms in kFirst, and one that splits these in kSecond, or no second stage (1). With
// kLast they leave transforms of length 1. `first(i, j)` and `second(j)` are the factors.
template <int kFirst, int kSecond, bool kLast, class V, class FirstFactor, class SecondFactor>
inline void two_stages(Complex<V>* z, const FirstFactor& first, const SecondFactor& second) {
#pragma GCC unroll 4
  for (int j = 0; j < kSecond; ++j) {
    transform_few<kFirst, kSecond>(z + j);
    if constexpr (kSecond > 1 || !kLast) {
#pragma GCC unroll 4
      for (int i = 1; i < kFirst; ++i) z[i * kSecond + j] = z[i * kSecond + j] * first(i, j);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kFirst; ++i) {
    transform_few<kSecond, 1>(z + i * kSecond);
    if constexpr (!kLast) {
#pragma GCC unroll 4
      for (int j = 1; j < kSecond; ++j) z[i * kSecond + j] = z[i * kSecond + j] * second(j);
    }
  }
}

constexpr int64_t kFftGrain = 2048;  // fewest numbers per thread

// Pass over transforms of length `left`, of which there are `spread`. Part i of stage one and j of stage two
// goes to place kFirst * j + i of each result. V: type of a register.
template <int kFirst, int kSecond, bool kLast, class V, class T, class In, class Out>
void pass(const In& in, const Out& out, int64_t left, int64_t spread, Twiddles<T> w) {
  constexpr int kPoints = kFirst * kSecond;
  constexpr int64_t W = sizeof(V) / sizeof(T);
  const int64_t m = left / kPoints, across = spread / W;
  const T *re2 = w.re + 3 * (left / 4), *im2 = w.im + 3 * (left / 4);
  parallel_for(m * across, std::max<int64_t>(1, kFftGrain / (W * kPoints)), [&](int64_t begin, int64_t end) {
    int64_t p = begin / across, q = begin % across;
    for (int64_t k = begin; k < end; ++k) {
      Complex<V> z[kPoints];
#pragma GCC unroll 16
      for (int e = 0; e < kPoints; ++e) z[e] = get<V>(in, q * W + spread * (p + e * m));
      two_stages<kFirst, kSecond, kLast>(
          z,
          [&](int i, int j) {
            const int64_t at = (i - 1) * kSecond * m + p + j * m;
            return Complex<T>{w.re[at], w.im[at]};
          },
          [&](int j) {
            return Complex<T>{re2[(j - 1) * m + p], im2[(j - 1) * m + p]};
          });
#pragma GCC unroll 16
      for (int e = 0; e < kPoints; ++e)
        put(out, q * W + spread * (kPoints * p + e), z[e % kFirst * kSecond + e / kFirst]);
      if (++q == across) {
        q = 0;
        ++p;
      }
    }
  });
}

// Interleaves kCount vectors: lane l of vector e goes to place kCount * l + e.
template <class T, int kCount>
inline void interleave(Vector<T>* v) {
#pragma GCC unroll 4
  for (int step = 1; step < kCount; step *= 2) {
    Vector<T> next[kCount];
#pragma GCC unroll 8
    for (int e = 0; e < kCount / 2; ++e) {
      const auto [low, high] = zip<T>(v[e], v[e + kCount / 2]);
      next[2 * e] = low;
      next[2 * e + 1] = high;
    }
#pragma GCC unroll 16
    for (int e = 0; e < kCount; ++e) v[e] = next[e];
  }
}

// First pass over one transform of length h, a multiple of 16 vectors.
template <class T, class In>
void first_pass(const In& in, const SplitComplex<T>& out, int64_t h, Twiddles<T> w) {
  using V = Vector<T>;
  constexpr int W = kLanes<T>;
  const int64_t m = h / 16;
  const T *re2 = w.re + 12 * m, *im2 = w.im + 12 * m;
  parallel_for(m / W, std::max<int64_t>(1, kFftGrain / (W * 16)), [&](int64_t begin, int64_t end) {
    for (int64_t p = begin * W; p < end * W; p += W) {
      Complex<V> z[16];
#pragma GCC unroll 16
      for (int e = 0; e < 16; ++e) z[e] = in.load_vector(p + e * m);
      two_stages<4, 4, false>(
          z,
          [&](int i, int j) {
            const int64_t at = (i - 1) * 4 * m + p + j * m;
            return Complex<V>{load(w.re + at), load(w.im + at)};
          },
          [&](int j) {
            return Complex<V>{load(re2 + (j - 1) * m + p), load(im2 + (j - 1) * m + p)};
          });
      V re[16], im[16];
#pragma GCC unroll 16
      for (int e = 0; e < 16; ++e) {
        re[e] = z[e % 4 * 4 + e / 4].re;
        im[e] = z[e % 4 * 4 + e / 4].im;
      }
      interleave<T, 16>(re);
#pragma GCC unroll 16
      for (int e = 0; e < 16; ++e) store<T>(out.real + 16 * p + e * W, re[e]);
      interleave<T, 16>(im);
#pragma GCC unroll 16
      for (int e = 0; e < 16; ++e) store<T>(out.imaginary + 16 * p + e * W, im[e]);
    }
  });
}

// FFT of h numbers, not scaled, with working memory. begin(in) does all passes but the last one, end(out) does
// this one.
template <class T>
class ComplexFft {
 public:
  ComplexFft(int64_t h, Twiddles<T> twiddles) : h_(h), twiddles_(twiddles), memory_(4 * h) {}

  // Working memory for `in`. After end() it has the result.
  SplitComplex<T> held() { return half(held_); }

  template <class In>
  void begin(const In& in) {
    left_ = h_;
    spread_ = 1;
    w_ = twiddles_;
    if (h_ <= 16) {
      for (int64_t k = 0; k < h_; ++k) put(half(held_), k, get<T>(in, k));
      return;
    }
    if (h_ >= 16 * kLanes<T>) {
      first_pass(in, half(held_ ^ 1), h_, w_);
      advance(4, 4);
    } else {
      middle_pass<T>(in);
    }
    while (left_ > 16) {
      if (spread_ >= kLanes<T>)
        middle_pass<Vector<T>>(held());
      else
        middle_pass<T>(held());
    }
  }

  template <class Out>
  void end(const Out& out) {
    if (spread_ >= kLanes<T>)
      last_pass<Vector<T>>(out);
    else
      last_pass<T>(out);
  }
  void end() {
    end(half(held_ ^ 1));
    held_ ^= 1;
  }

 private:
  SplitComplex<T> half(int which) {
    T* begin = memory_.data() + 2 * h_ * which;
    return {begin, begin + h_};
  }
  // Counts a pass whose result is in the other half of the working memory.
  void advance(int first, int second) {
    held_ ^= 1;
    for (int radix : {first, second}) {
      if (radix == 1) continue;
      w_ = {w_.re + left_ / 4 * 3, w_.im + left_ / 4 * 3};
      left_ /= radix;
      spread_ *= radix;
    }
  }
  template <class V, class In>
  void middle_pass(const In& in) {
    const SplitComplex<T> out = half(held_ ^ 1);
    if (left_ == 32) {  // leaves 8, not 2
      pass<4, 1, false, V>(in, out, left_, spread_, w_);
      advance(4, 1);
    } else {
      pass<4, 4, false, V>(in, out, left_, spread_, w_);
      advance(4, 4);
    }
  }
  template <class V, class Out>
  void last_pass(const Out& out) {
    switch (left_) {
      case 16:
        return pass<4, 4, true, V>(held(), out, left_, spread_, w_);
      case 8:
        return pass<4, 2, true, V>(held(), out, left_, spread_, w_);
      case 4:
        return pass<4, 1, true, V>(held(), out, left_, spread_, w_);
      case 2:
        return pass<2, 1, true, V>(held(), out, left_, spread_, w_);
      default:
        put(out, 0, get<T>(held(), 0));
    }
  }

  int64_t h_, left_ = 0, spread_ = 0;
  Twiddles<T> twiddles_, w_{};  // of all stages, of the stages from the next pass on
  Scratch<T> memory_;
  int held_ = 0;  // which half of the memory holds numbers
};

}  // namespace noisetilt::NOISETILT_VARIANT
