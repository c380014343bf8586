// Walsh-Hadamard transform of 2^n values in natural order: n butterfly steps without their permutations. A
// butterfly step pairs neighbours and rotates the bits of the index by one; n rotations cancel. So step s may
// pair the values whose indices differ in bit s, and leave them in place. Sums and roundings are the same.
#pragma once

#include "simd.h"

namespace noisetilt::NOISETILT_VARIANT {

// v times 1/sqrt(2) if kOrthonormal, otherwise v.
template <class T, bool kOrthonormal, class V>
inline V step_scaled(V v) {
  if constexpr (kOrthonormal) v = v * static_cast<T>(0.70710678118654752440);
  return v;
}

// The step of distance kDistance < kLanes inside a vector.
template <class T, bool kOrthonormal, int kDistance>
inline Vector<T> step_in_vector(Vector<T> v) {
  // Each pair of lanes (a, b) becomes (a + b, a - b).
  constexpr Vector<T> sign = select_lanes<kDistance, T>(-1, 1);
  return step_scaled<T, kOrthonormal>(exchange_lanes<kDistance, T>(v) + v * sign);
}

template <class T, bool kOrthonormal, bool kDescending, int kDistance = 1>
inline Vector<T> steps_in_vector(Vector<T> v) {
  if constexpr (kDistance < kLanes<T>) {
    if constexpr (!kDescending) v = step_in_vector<T, kOrthonormal, kDistance>(v);
    v = steps_in_vector<T, kOrthonormal, kDescending, 2 * kDistance>(v);
    if constexpr (kDescending) v = step_in_vector<T, kOrthonormal, kDistance>(v);
  }
  return v;
}

template <class T, bool kOrthonormal, class V>
inline void step_between(V& a, V& b) {
  const V sum = step_scaled<T, kOrthonormal>(a + b), difference = step_scaled<T, kOrthonormal>(a - b);
  a = sum;
  b = difference;
}

// The step of distance h >= kLanes.
template <class T, bool kOrthonormal>
inline void single_step(T* x, int64_t size, int64_t h) {
  for (int64_t group = 0; group < size; group += 2 * h) {
    for (int64_t i = group; i < group + h; i += kLanes<T>) {
      Vector<T> a = load(x + i), b = load(x + i + h);
      step_between<T, kOrthonormal>(a, b);
      store<T>(x + i, a);
      store<T>(x + i + h, b);
    }
  }
}

// The steps of distances h and 2h (kDescending: 2h and h) in one pass.
template <class T, bool kOrthonormal, bool kDescending>
inline void double_step(T* x, int64_t size, int64_t h) {
  for (int64_t group = 0; group < size; group += 4 * h) {
    for (int64_t i = group; i < group + h; i += kLanes<T>) {
      Vector<T> v[4];
      for (int k = 0; k < 4; ++k) v[k] = load(x + i + k * h);
      for (int round = 0; round < 2; ++round) {
        if ((round == 0) != kDescending) {
          step_between<T, kOrthonormal>(v[0], v[1]);
          step_between<T, kOrthonormal>(v[2], v[3]);
        } else {
          step_between<T, kOrthonormal>(v[0], v[2]);
          step_between<T, kOrthonormal>(v[1], v[3]);
        }
      }
      for (int k = 0; k < 4; ++k) store<T>(x + i + k * h, v[k]);
    }
  }
}

// Steps of distances 1, 2, ..., size/2 (kDescending: size/2, ..., 2, 1), each times 1/sqrt(2) if
// kOrthonormal. In place. size is a power of two.
template <class T, bool kOrthonormal, bool kDescending>
void walsh_hadamard(T* x, int64_t size) {
  constexpr int W = kLanes<T>;
  if (size < W) {
    for (int64_t step = 1; step < size; step *= 2) {
      const int64_t h = kDescending ? size / 2 / step : step;
      for (int64_t i = 0; i < size; ++i) {
        if (!(i & h)) step_between<T, kOrthonormal>(x[i], x[i + h]);
      }
    }
    return;
  }
  auto inside_vectors = [&] {
    for (int64_t i = 0; i < size; i += W)
      store<T>(x + i, steps_in_vector<T, kOrthonormal, kDescending>(load(x + i)));
  };
  if constexpr (kDescending) {
    int64_t h = size / 2;
    for (; h / 2 >= W; h /= 4) double_step<T, kOrthonormal, true>(x, size, h / 2);
    if (h >= W) single_step<T, kOrthonormal>(x, size, h);
    inside_vectors();
  } else {
    inside_vectors();
    int64_t h = W;
    for (; 2 * h < size; h *= 4) double_step<T, kOrthonormal, false>(x, size, h);
    if (h < size) single_step<T, kOrthonormal>(x, size, h);
  }
}

}  // namespace noisetilt::NOISETILT_VARIANT
