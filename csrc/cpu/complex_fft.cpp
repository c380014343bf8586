// Radix 4, decimation in frequency, self-sorting.
//
// A pass over memory does up to eight binary digits of the length. It works on blocks of up to 256 vectors,
// which fit into the first-level cache, in one or two steps of up to two stages on up to 16 vectors in
// registers.
#include "complex_fft.h"

#include <algorithm>
#include <utility>

#include "parallel.h"

namespace noisetilt::NOISETILT_VARIANT {
namespace {

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

// Binary digits of the two stages of a step: a stage does two, or one if there is no second.
template <int kBits>
constexpr int kFirstBits = kBits < 2 ? kBits : 2;
template <int kBits>
constexpr int kSecondBits = kBits - kFirstBits<kBits>;

// Where the step leaves number e = i + radix * j of its result: part i of the first stage, j of the second.
template <int kBits>
constexpr int place_of_result(int e) {
  return ((e & ((1 << kFirstBits<kBits>)-1)) << kSecondBits<kBits>)+(e >> kFirstBits<kBits>);
}

// Step: a stage, and perhaps a second one, of transforms of 2^kBits numbers. With kLast they leave transforms
// of length 1. `first(i, j)` and `second(j)` are the factors of part i of the first stage and part j of
// the second.
template <int kBits, bool kLast, class V, class FirstFactor, class SecondFactor>
inline void step(Complex<V>* z, const FirstFactor& first, const SecondFactor& second) {
  constexpr int kFirst = 1 << kFirstBits<kBits>, kSecond = 1 << kSecondBits<kBits>;
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

// What remains after stages that do `bits` binary digits.
template <class T>
Remaining<T> after(int bits, Remaining<T> now) {
  for (; bits > 0; bits -= 2) {
    const int64_t quarter = now.left / 4;
    now = {quarter, now.spread * 4, {now.w.re + 3 * quarter, now.w.im + 3 * quarter}};
  }
  return now;
}

// Pass that does four binary digits, and kBits more in a second step. The lanes of a vector are neighbouring
// numbers. In the first pass, with spread 1, these belong to one transform, and the pass transposes its
// result. In later passes they belong to different transforms, which have the same factors.
template <int kBits, bool kFirst, bool kLast, class T, class In, class Out>
void pass(const In& in, const Out& out, const Remaining<T>& now) {
  using V = Vector<T>;
  constexpr int W = kLanes<T>, A = 16, B = 1 << kBits, kPoints = A * B;
  const int64_t m = now.left / kPoints, across = kFirst ? 1 : now.spread / W;
  const int64_t num_blocks = (kFirst ? m / W : m) * across;
  const Remaining<T> second = after(2, now), third = after(4, now), fourth = after(6, now);
  auto factor = [](const Remaining<T>& stage, int64_t part, int64_t p) {
    const int64_t at = (part - 1) * (stage.left / 4) + p;
    if constexpr (kFirst)
      return Complex<V>{load(stage.w.re + at), load(stage.w.im + at)};
    else
      return Complex<T>{stage.w.re[at], stage.w.im[at]};
  };
  parallel_for(num_blocks, std::max<int64_t>(1, kFftGrain / (W * kPoints)), [&](int64_t begin, int64_t end) {
    V re[kPoints], im[kPoints];
    for (int64_t block = begin; block < end; ++block) {
      const int64_t p = kFirst ? block * W : block / across, q = kFirst ? 0 : block % across * W;
      for (int b = 0; b < B; ++b) {
        Complex<V> z[A];
#pragma GCC unroll 16
        for (int e = 0; e < A; ++e) z[e] = in.load_vector(q + now.spread * (p + m * (b + e * B)));
        step<4, kLast && B == 1>(
            z, [&](int i, int j) { return factor(now, i, p + m * (b + j * B)); },
            [&](int j) { return factor(second, j, p + m * b); });
#pragma GCC unroll 16
        for (int e = 0; e < A; ++e) {
          const Complex<V>& result = z[place_of_result<4>(e)];
          if constexpr (B == 1 && !kFirst) {
            out.store_vector(q + now.spread * (kPoints * p + e), result);
          } else {
            re[A * b + e] = result.re;
            im[A * b + e] = result.im;
          }
        }
      }
      for (int a = 0; B > 1 && a < A; ++a) {
        Complex<V> z[B];
#pragma GCC unroll 16
        for (int e = 0; e < B; ++e) z[e] = {re[A * e + a], im[A * e + a]};
        step<kBits, kLast>(
            z, [&](int i, int j) { return factor(third, i, p + m * j); },
            [&](int j) { return factor(fourth, j, p); });
#pragma GCC unroll 16
        for (int e = 0; e < B; ++e) {
          const Complex<V>& result = z[place_of_result<kBits>(e)];
          if constexpr (kFirst) {
            re[A * e + a] = result.re;
            im[A * e + a] = result.im;
          } else {
            out.store_vector(q + now.spread * (kPoints * p + A * e + a), result);
          }
        }
      }
      if constexpr (kFirst) {
        for (int e = 0; e < kPoints; e += 16) {
          interleave<T, 16>(re + e);
          interleave<T, 16>(im + e);
#pragma GCC unroll 16
          for (int k = 0; k < 16; ++k)  // run of W values, of which lane k * W / 16 has 16
            out.store_vector(kPoints * (p + k * W / 16) + e + k * W % 16, {re[e + k], im[e + k]});
        }
      }
    }
  });
}

// A stage of one number at a time.
template <class T, class Out>
void stage(const SplitComplex<T>& in, const Out& out, const Remaining<T>& now) {
  const int radix = now.left % 4 == 0 ? 4 : 2;
  const int64_t m = now.left / radix;
  for (int64_t p = 0; p < m; ++p) {
    for (int64_t q = 0; q < now.spread; ++q) {
      Complex<T> z[4];
      for (int i = 0; i < radix; ++i) z[i] = get(in, q + now.spread * (p + i * m));
      radix == 4 ? transform_few<4, 1>(z) : transform_few<2, 1>(z);
      for (int i = 0; i < radix; ++i) {
        const int64_t at = (i - 1) * m + p;
        if (m > 1 && i > 0) z[i] = z[i] * Complex<T>{now.w.re[at], now.w.im[at]};
        put(out, q + now.spread * (radix * p + i), z[i]);
      }
    }
  }
}

// Up to kShort the stages take one number at a time. From kTwoSteps on a pass has two steps, and leaves
// transforms of 32 or more.
constexpr int64_t kShort = 256, kTwoSteps = 8192;

}  // namespace

// Counts `bits` binary digits, whose result is in the free half of the working memory.
template <class T>
void ComplexFft<T>::advance(int bits) {
  now_ = after(bits, now_);
  held_ ^= 1;
}

template <class T>
void ComplexFft<T>::all_passes_but_last(const T* x) {
  const InterleavedComplex<const T> in{x};
  // The first pass must not write where it reads.
  held_ = x == memory_.data() ? 0 : 1;
  now_ = {h_, 1, w_};
  if (h_ <= kShort) {
    for (int64_t k = 0; k < h_; ++k) put(free(), k, get(in, k));
    held_ ^= 1;
    for (; now_.left > 4; advance(2)) stage(held(), free(), now_);
    return;
  }
  if (h_ >= kTwoSteps) {
    pass<4, true, false>(in, free(), now_);
    advance(8);
  } else {
    pass<0, true, false>(in, free(), now_);
    advance(4);
  }
  while (now_.left > 256) {
    if (now_.left >= kTwoSteps) {
      pass<4, false, false>(held(), free(), now_);
      advance(8);
    } else {
      pass<0, false, false>(held(), free(), now_);
      advance(4);
    }
  }
}

template <class T>
template <class Out>
void ComplexFft<T>::last_pass(const Out& out) {
  switch (now_.left) {
    case 256:
      return pass<4, false, true>(held(), out, now_);
    case 128:
      return pass<3, false, true>(held(), out, now_);
    case 64:
      return pass<2, false, true>(held(), out, now_);
    case 32:
      return pass<1, false, true>(held(), out, now_);
    case 1:
      return put(out, 0, get(held(), 0));
    default:
      stage(held(), out, now_);
  }
}

template <class T>
SplitComplex<T> ComplexFft<T>::forward(const T* x) {
  all_passes_but_last(x);
  last_pass(free());
  return free();
}

template <class T>
void ComplexFft<T>::inverse(T* out) {
  all_passes_but_last(memory_.data());
  last_pass(Exchanged<InterleavedComplex<T>>{{out}});
}

template class ComplexFft<float>;
template class ComplexFft<double>;

}  // namespace noisetilt::NOISETILT_VARIANT
