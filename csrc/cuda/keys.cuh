// Keys: integers in the order of the values. Buckets: numbers in the order of the values, for counting.
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

// Key of a value: -0 and +0 have the same key, and every NaN has the last one.
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

// Four neighbouring values, which are loaded and stored 16 bytes at a time.
template <class T>
struct alignas(16) Pack4 {
  T v[4];
};

// A value of a sample: its key, and its place, which orders values with the same key.
template <class T>
struct alignas(2 * sizeof(T)) Entry {
  Key<T> key;
  uint32_t index;
};

template <class T>
__device__ inline bool operator<(const Entry<T>& a, const Entry<T>& b) {
  return a.key < b.key || (a.key == b.key && a.index < b.index);
}

// Sorts n values in ascending order; n is a power of two, and no value is NaN. A bitonic network of one
// thread.
template <int32_t n, class K>
__device__ inline void thread_sort(K (&v)[n]) {
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

// Assignment of the values of a column to buckets. Correctness needs only that the bucket number never
// decreases with the value, and that NaN is in the last bucket.
//
// For speed, a bucket should be narrow, measured by how far a rank may be off at which the table changes
// nothing. Up to one deviation from the centre buckets are equally wide. Farther out, where values are rarer,
// widths double whenever the distance plus one deviation does. Half of the buckets lie on either side and
// reach to 11 deviations: the values of a sample that is no noise spread wider than the column of a table.
//
// Buckets of equal probability would need a table of borders in every block, and a search in it for every
// value. They would be worse, too: ranks near the ends of a column vary less, so buckets must be finer there.
struct Buckets {
  float centre;      // of the column
  float deviations;  // 1 divided by the standard deviation of the column

  // Bucket of x, if there are 2 * half.
  template <class T>
  __device__ int32_t of(T x, uint32_t half) const {
    // The bits of 1 + |distance|, minus the bits of 1, are a piecewise linear logarithm: octaves times 2^23.
    // Those of NaN are the largest.
    const float distance = (static_cast<float>(x) - centre) * deviations;
    const uint32_t octaves = __float_as_uint(fabsf(distance) + 1.0f) - 0x3f800000u;
    // half the buckets for three and a half octaves: octaves / 2^23 / 3.5 * half
    const uint32_t outward = min(__umulhi(octaves, half * 1024 / 7), half - 1);
    return static_cast<int32_t>(distance < 0 ? half - 1 - outward : half + outward);
  }
};

}  // namespace noisetilt::cuda
