// Walsh-Hadamard transform of rows of 2^log values. A thread holds 32 values in registers, of which it takes
// the first five steps. Then it exchanges values with the other threads of the row through shared memory,
// takes up to four more steps, and so on: the steps follow each other as in the definition.
#pragma once

#include <cstring>
#include <type_traits>

#include "half.cuh"
#include "policy.h"
#include "team.cuh"

namespace noisetilt::cuda {

constexpr int32_t kLogHadamardItems = 5, kHadamardItems = 1 << kLogHadamardItems;  // of a thread

// Type of an access to so many bytes at once.
template <size_t kBytes>
using Bits = std::conditional_t<
    kBytes == 16, uint4,
    std::conditional_t<kBytes == 8, uint2, std::conditional_t<kBytes == 4, uint32_t, uint16_t>>>;

// Stores to global memory. Without assembly, nvcc divides them into smaller ones.
template <class B>
__device__ inline void store_global(B* to, const B& bits) {
#ifdef __CUDACC__
  const size_t at = __cvta_generic_to_global(to);
  if constexpr (sizeof(B) == 16)
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(at), "r"(bits.x), "r"(bits.y), "r"(bits.z),
                 "r"(bits.w)
                 : "memory");
  else if constexpr (sizeof(B) == 8)
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(at), "r"(bits.x), "r"(bits.y) : "memory");
  else
    *to = bits;
#else
  *to = bits;
#endif
}

// Place of value i of a row in shared memory. A gap of 16 bytes behind the values of a thread puts those of
// the next thread into other banks.
template <class T>
__host__ __device__ constexpr int32_t hadamard_place(int32_t i) {
  return i + (i >> kLogHadamardItems) * static_cast<int32_t>(16 / sizeof(T));
}

// Number of neighbouring values that are accessed at once, of kWidth neighbours.
template <class S, int32_t kWidth>
constexpr int32_t kAtOnce = kWidth * sizeof(S) < 16 ? kWidth : static_cast<int32_t>(16 / sizeof(S));

// Load and store the values of a thread: kWidth neighbours, again and again, `apart` values apart.
template <int32_t kWidth, class S>
__device__ inline void load_values(Computed<S> (&v)[kHadamardItems], const S* from, int32_t apart) {
  constexpr int32_t n = kAtOnce<S, kWidth>;
#pragma unroll
  for (int32_t k = 0; k < kHadamardItems; k += n) {
    S values[n];
    const auto bits = *reinterpret_cast<const Bits<sizeof values>*>(from + k / kWidth * apart + k % kWidth);
    std::memcpy(values, &bits, sizeof values);
#pragma unroll
    for (int32_t i = 0; i < n; ++i) v[k + i] = computed(values[i]);
  }
}
template <int32_t kWidth, bool kGlobal, class S>
__device__ inline void store_values(const Computed<S> (&v)[kHadamardItems], S* to, int32_t apart) {
  constexpr int32_t n = kAtOnce<S, kWidth>;
#pragma unroll
  for (int32_t k = 0; k < kHadamardItems; k += n) {
    S values[n];
#pragma unroll
    for (int32_t i = 0; i < n; ++i) values[i] = rounded<S>(v[k + i]);
    Bits<sizeof values> bits;
    std::memcpy(&bits, values, sizeof values);
    auto* place = reinterpret_cast<Bits<sizeof values>*>(to + k / kWidth * apart + k % kWidth);
    if constexpr (kGlobal)
      store_global(place, bits);
    else
      *place = bits;
  }
}

// Steps on values of a thread whose numbers differ in the bits from kFirst on.
template <int32_t kFirst, class T>
__device__ inline void hadamard_steps(T (&v)[kHadamardItems]) {
#pragma unroll
  for (int32_t bit = 1 << kFirst; bit < kHadamardItems; bit *= 2) {
#pragma unroll
    for (int32_t i = 0; i < kHadamardItems; ++i) {
      if (i & bit) continue;
      const T a = v[i], b = v[i | bit];
      v[i] = a + b;
      v[i | bit] = a - b;
    }
  }
}

// Rows of 2^log values, one behind the other, of which a block has a part in shared memory. Numbers of values
// are counted from its first row on: they, and the numbers of its threads, begin with that of the row.
template <class S>
struct BlockHadamard {
  using T = Computed<S>;
  int32_t log;
  T scale;

  // Transforms rows that begin at x and out, aligned to 16 bytes. `valid`: false for threads behind the last
  // row.
  __device__ void transform(const S* x, S* out, bool valid) const {
    T v[kHadamardItems];
    const auto first = static_cast<int32_t>(threadIdx.x) * kHadamardItems;
    load_values<kHadamardItems>(v, x + (valid ? first : 0), 0);
    hadamard_steps<0>(v);
    if (log == kLogHadamardItems) return finish<kHadamardItems>(v, out + first, 0, valid);
    store_values<kHadamardItems, false>(v, shared(first), 0);
    int32_t bits;
    for (int32_t done = kLogHadamardItems; done < log; done += bits) {
      // As few passes as four steps at once allow, with numbers of steps that differ little.
      const int32_t left = log - done;
      bits = min(left, left % 3 == 0 || left == 5 ? 3 : 4);
      if (log <= 2 * kLogHadamardItems)
        __syncwarp();  // a row belongs to one warp
      else
        __syncthreads();
      switch (bits) {
        case 1:
          pass<1>(v, done, out, valid);
          break;
        case 2:
          pass<2>(v, done, out, valid);
          break;
        case 3:
          pass<3>(v, done, out, valid);
          break;
        default:
          pass<4>(v, done, out, valid);
      }
    }
  }

 private:
  __device__ static T* shared(int32_t number) {
    return reinterpret_cast<T*>(dynamic_shared_memory()) + hadamard_place<T>(number);
  }

  // Steps for kBits bits of the numbers of values, from bit `done` on. The values of a thread differ in these
  // bits, and in as many of the lowest bits as there is room for.
  template <int32_t kBits>
  __device__ void pass(T (&v)[kHadamardItems], int32_t done, S* out, bool valid) const {
    constexpr int32_t kWidth = kHadamardItems >> kBits;
    const auto thread = static_cast<int32_t>(threadIdx.x);
    const int32_t group = thread >> kBits, outer = group >> (done - kLogHadamardItems),
                  inner = group - (outer << (done - kLogHadamardItems));
    const int32_t first = (outer << (done + kBits)) + inner * kHadamardItems + thread % (1 << kBits) * kWidth;
    const int32_t apart = hadamard_place<T>(1 << done);
    load_values<kWidth, T>(v, shared(first), apart);
    hadamard_steps<kLogHadamardItems - kBits>(v);
    if (done + kBits < log)
      store_values<kWidth, false>(v, shared(first), apart);
    else
      finish<kWidth>(v, out + first, 1 << done, valid);
  }

  template <int32_t kWidth>
  __device__ void finish(T (&v)[kHadamardItems], S* to, int32_t apart, bool valid) const {
#pragma unroll
    for (T& value : v) value *= scale;
    if (valid) store_values<kWidth, true>(v, to, apart);
  }
};

}  // namespace noisetilt::cuda
