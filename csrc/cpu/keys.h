// Integers that order like the values they stand for, with -0 equal to +0 and every NaN last.
#pragma once

#include <limits>

#include "simd.h"

namespace noisetilt::NOISETILT_VARIANT {

template <class T>
constexpr Integer<T> kNanKey = std::numeric_limits<Integer<T>>::max();

template <class T>
constexpr int kSignShift = 8 * sizeof(T) - 1;

template <class T>
inline Vector<Integer<T>> to_keys(Vector<T> x) {
  using V = Vector<Integer<T>>;
  x = x + T(0);  // -0 becomes +0
  V bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits ^= (bits >> kSignShift<T>)&kNanKey<T>;
  return x == x ? bits : broadcast<Integer<T>>(kNanKey<T>);
}

// The key from which from_key gives back x to the bit: apart from -0, the key of x. x is not NaN, or the NaN
// of from_key.
template <class T>
inline Integer<T> to_exact_key(T x) {
  Integer<T> bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ ((bits >> kSignShift<T>)&kNanKey<T>);
}

template <class T>
inline Integer<T> to_key(T x) {
  return x == x ? to_exact_key<T>(x + T(0)) : kNanKey<T>;
}

template <class T>
inline T from_key(Integer<T> key) {
  key ^= (key >> kSignShift<T>)&kNanKey<T>;
  T x;
  std::memcpy(&x, &key, sizeof x);
  return x;
}

}  // namespace noisetilt::NOISETILT_VARIANT
