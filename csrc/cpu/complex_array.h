// Arrays of complex numbers in memory, read and written as numbers or as vectors of neighbours.
#pragma once

#include "simd.h"

namespace noisetilt::NOISETILT_VARIANT {

// Complex number, or a vector of them.
template <class V>
struct Complex {
  V re, im;
};

// Real and imaginary parts interleaved. Vectors begin with number k.
template <class T>
struct InterleavedComplex {
  using Value = std::remove_const_t<T>;
  T* v;
  Complex<Vector<Value>> load_vector(int64_t k) const {
    const auto [re, im] = unzip<Value>(load(v + 2 * k), load(v + 2 * k + kLanes<Value>));
    return {re, im};
  }
  void store_vector(int64_t k, const Complex<Vector<Value>>& z) const {
    const auto [first, second] = zip<Value>(z.re, z.im);
    store<Value>(v + 2 * k, first);
    store<Value>(v + 2 * k + kLanes<Value>, second);
  }
  T& re(int64_t k) const { return v[2 * k]; }
  T& im(int64_t k) const { return v[2 * k + 1]; }
};

// Real and imaginary parts in two arrays.
template <class T>
struct SplitComplex {
  using Value = std::remove_const_t<T>;
  T *real, *imaginary;
  Complex<Vector<Value>> load_vector(int64_t k) const { return {load(real + k), load(imaginary + k)}; }
  void store_vector(int64_t k, const Complex<Vector<Value>>& z) const {
    store<Value>(real + k, z.re);
    store<Value>(imaginary + k, z.im);
  }
  T& re(int64_t k) const { return real[k]; }
  T& im(int64_t k) const { return imaginary[k]; }
};

// An array with real and imaginary parts exchanged.
template <class Array>
struct Exchanged {
  using Value = typename Array::Value;
  Array array;
  Complex<Vector<Value>> load_vector(int64_t k) const {
    const auto [im, re] = array.load_vector(k);
    return {re, im};
  }
  void store_vector(int64_t k, const Complex<Vector<Value>>& z) const { array.store_vector(k, {z.im, z.re}); }
  auto& re(int64_t k) const { return array.im(k); }
  auto& im(int64_t k) const { return array.re(k); }
};

// Number k.
template <class Array>
inline auto get(const Array& array, int64_t k) {
  return Complex<typename Array::Value>{array.re(k), array.im(k)};
}
template <class Array>
inline void put(const Array& array, int64_t k, const Complex<typename Array::Value>& z) {
  array.re(k) = z.re;
  array.im(k) = z.im;
}

}  // namespace noisetilt::NOISETILT_VARIANT
