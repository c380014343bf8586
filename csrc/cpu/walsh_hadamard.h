// Walsh-Hadamard transform of 2^n values in natural order: n butterfly steps without their permutations. Step s of
// the butterfly pairs neighbours and rotates the index by one bit; n rotations are none, so it may as well
// pair the values whose indices differ in bit s where they stand. The sums and their roundings are the same.
#pragma once

#include "simd.h"

namespace noisetilt::NOISETILT_VARIANT {

// A value times the factor of a step: 1/sqrt2, or nothing.
template <class T, bool kOrthonormal, class V>
inline V step_scaled(V v) {
  if constexpr (kOrthonormal) v = v * static_cast<T>(0.70710678118654752440);
  return v;
}

// The step of distance kDistance < kLanes inside a vector.
template <class T, bool kOrthonormal, int kDistance>
inline Vector<T> step_in_vector(Vector<T> v) {
  // a + b in the lower lanes of each pair, a - b in the upper ones
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

// The step of distance h >= kLanes, from `in` to `out`, which may be the same.
template <class T, bool kOrthonormal>
inline void single_step(const T* in, T* out, int64_t size, int64_t h) {
  for (int64_t group = 0; group < size; group += 2 * h) {
    for (int64_t i = group; i < group + h; i += kLanes<T>) {
      Vector<T> a = load<T>(in + i), b = load<T>(in + i + h);
      step_between<T, kOrthonormal>(a, b);
      store<T>(out + i, a);
      store<T>(out + i + h, b);
    }
  }
}

// The steps of distances h and 2h (kDescending: 2h and h) in one pass.
template <class T, bool kOrthonormal, bool kDescending>
inline void double_step(const T* in, T* out, int64_t size, int64_t h) {
  for (int64_t group = 0; group < size; group += 4 * h) {
    for (int64_t i = group; i < group + h; i += kLanes<T>) {
      Vector<T> v[4];
      for (int k = 0; k < 4; ++k) v[k] = load<T>(in + i + k * h);
      for (int round = 0; round < 2; ++round) {
        if ((round == 0) != kDescending) {
          step_between<T, kOrthonormal>(v[0], v[1]);
          step_between<T, kOrthonormal>(v[2], v[3]);
        } else {
          step_between<T, kOrthonormal>(v[0], v[2]);
          step_between<T, kOrthonormal>(v[1], v[3]);
        }
      }
      for (int k = 0; k < 4; ++k) store<T>(out + i + k * h, v[k]);
    }
  }
}

// Steps at distances 1, 2, ..., size/2 (kDescending: the other way), each times 1/sqrt2 if kOrthonormal, from `in`
// to `out`, which may be the same. size is a power of two.
template <class T, bool kOrthonormal, bool kDescending>
void walsh_hadamard(const T* in, T* out, int64_t size) {
  constexpr int W = kLanes<T>;
  if (size < W) {
    if (in != out) std::memcpy(out, in, static_cast<size_t>(size) * sizeof(T));
    for (int64_t step = 1; step < size; step *= 2) {
      const int64_t h = kDescending ? size / 2 / step : step;
      for (int64_t i = 0; i < size; ++i) {
        if (!(i & h)) step_between<T, kOrthonormal>(out[i], out[i + h]);
      }
    }
    return;
  }
  auto inside_vectors = [&](const T* from) {
    for (int64_t i = 0; i < size; i += W)
      store<T>(out + i, steps_in_vector<T, kOrthonormal, kDescending>(load<T>(from + i)));
  };
  if constexpr (kDescending) {
    const T* from = in;
    int64_t h = size / 2;
    for (; h / 2 >= W; h /= 4) {
      double_step<T, kOrthonormal, true>(from, out, size, h / 2);
      from = out;
    }
    if (h >= W) {
      single_step<T, kOrthonormal>(from, out, size, h);
      from = out;
    }
    inside_vectors(from);
  } else {
    inside_vectors(in);
    int64_t h = W;
    for (; 2 * h < size; h *= 4) double_step<T, kOrthonormal, false>(out, out, size, h);
    if (h < size) single_step<T, kOrthonormal>(out, out, size, h);
  }
}

}  // namespace noisetilt::NOISETILT_VARIANT
