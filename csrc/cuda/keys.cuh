// Integers that order like the values they stand for, and the buckets into which values are counted.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace noisetilt::cuda {

template <class T>
using Key = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;

template <class T>
constexpr Key<T> kSignBit = Key<T>(1) << (8 * sizeof(T) - 1);

__device__ inline uint32_t bits_of(float x) { return __float_as_uint(x); }
__device__ inline uint64_t bits_of(double x) { return static_cast<uint64_t>(__double_as_longlong(x)); }
__device__ inline float value_of(uint32_t bits) { return __uint_as_float(bits); }
__device__ inline double value_of(uint64_t bits) {
  return __longlong_as_double(static_cast<long long>(bits));
}

// -0 equals +0, and every NaN is last.
template <class T>
__device__ inline Key<T> to_key(T x) {
  if (x != x) return ~Key<T>(0);
  const Key<T> bits = bits_of(x + T(0));  // -0 becomes +0
  return bits & kSignBit<T> ? ~bits : bits | kSignBit<T>;
}

template <class T>
__device__ inline T from_key(Key<T> key) {
  return value_of(key & kSignBit<T> ? key ^ kSignBit<T> : ~key);
}

template <class T>
__device__ inline T quiet_nan() {
  return from_key<T>(~Key<T>(0));
}

template <class T>
__device__ inline bool is_finite(T x) {
  return x - x == T(0);
}

// Four values, moved 16 bytes at a time.
template <class T>
struct alignas(16) Four {
  T v[4];
};

// A value of a sample, by its key and its place: ties are ordered by place.
template <class T>
struct alignas(2 * sizeof(T)) Entry {
  Key<T> key;
  uint32_t index;
};

template <class T>
__device__ inline bool operator<(const Entry<T>& a, const Entry<T>& b) {
  return a.key < b.key || (a.key == b.key && a.index < b.index);
}

// Sorts n values, a power of two, ascending. None is NaN.
template <int32_t n, class K>
__device__ inline void sort_in_registers(K (&v)[n]) {
#pragma unroll
  for (int32_t run = 2; run <= n; run *= 2) {
#pragma unroll
    for (int32_t distance = run / 2; distance > 0; distance /= 2) {
#pragma unroll
      for (int32_t i = 0; i < n; ++i) {
        if ((i ^ distance) < i) continue;
        K &a = v[i], &b = v[i ^ distance];
        const K low = b < a ? b : a, high = b < a ? a : b;
        a = (i & run) == 0 ? low : high;
        b = (i & run) == 0 ? high : low;
      }
    }
  }
}

// Counts values into `count` buckets, an even number. Bucket numbers never decrease with the value, which is
// all that correctness needs; for speed, the steps are even near the centre and relative farther out, up to
// 63/factor from it. NaN is in the last.
struct Buckets {
  float centre;
  float factor;  // 4 over the typical distance of a value
  int32_t count;

  template <class T>
  __device__ int32_t of(T x) const {
    if (x != x) return count - 1;
    // The bits of 1 + |distance| * factor above those of 1 count its octaves and, evenly, the parts of each.
    const float distance = static_cast<float>(x) - centre;
    const uint32_t above_one = __float_as_uint(fabsf(distance) * factor + 1.0f) - 0x3f800000u;
    const uint32_t half = static_cast<uint32_t>(count) / 2;
    // above_one / 2^23 octaves of six, times half
    const uint32_t outward = min(__umulhi(above_one, half * 512 / 6), half - 1);
    return static_cast<int32_t>(distance < 0 ? half - 1 - outward : half + outward);
  }
};

}  // namespace noisetilt::cuda
