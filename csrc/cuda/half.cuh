// Values of 16 bits in memory. The kernels compute with float, and round once.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels.h"

namespace noisetilt::cuda {

// Type of the arithmetic on values that are stored as S.
template <class S>
using Computed = std::conditional_t<sizeof(S) == 2, float, S>;

__device__ inline float computed(float x) { return x; }
__device__ inline double computed(double x) { return x; }
__device__ inline float computed(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ inline float computed(Half x) {
#ifdef __CUDACC__
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(x.bits));
  return result;
#else
  _Float16 value;
  std::memcpy(&value, &x, sizeof value);
  return static_cast<float>(value);
#endif
}

template <class S>
__device__ inline S rounded(Computed<S> x) {
  if constexpr (sizeof(S) > 2) {
    return x;
  } else {
    S result;
#ifdef __CUDACC__
    if constexpr (std::is_same_v<S, Half>)
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    else
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
#else
    if constexpr (std::is_same_v<S, Half>) {
      const auto value = static_cast<_Float16>(x);
      std::memcpy(&result, &value, sizeof value);
    } else {
      const uint32_t bits = __float_as_uint(x);
      result.bits = x != x ? 0x7fff : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
#endif
    return result;
  }
}

}  // namespace noisetilt::cuda
