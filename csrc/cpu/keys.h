// Sorting keys: integers in the order of their values, with -0 equal to +0 and every NaN last.
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

// Key from which from_key restores x bit for bit. Differs from to_key(x) only for -0. x must not be NaN,
// except the NaN that from_key returns.
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
inline Vector<T> from_keys(Vector<Integer<T>> keys) {
  keys ^= (keys >> kSignShift<T>)&kNanKey<T>;
  Vector<T> x;
  std::memcpy(&x, &keys, sizeof x);
  return x;
}

template <class T>
inline T from_key(Integer<T> key) {
  key ^= (key >> kSignShift<T>)&kNanKey<T>;
  T x;
  std::memcpy(&x, &key, sizeof x);
  return x;
}

}  // namespace noisetilt::NOISETILT_VARIANT
