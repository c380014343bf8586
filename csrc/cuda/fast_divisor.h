// Quick division by a number that is used many times. Plain C++.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace noisetilt::cuda {

// Quotients by a positive divisor, exact for numerators from 0 to 2^31 - 1: a multiplication and shifts.
struct FastDivisor {
  uint32_t multiplier;
  int32_t shift;

  // The multiplier is larger than 2^(31 + shift) / divisor by at most 1. This adds at most n / 2^(31 + shift)
  // < 1 / 2^shift <= 1 / divisor to the quotient. A quotient that is no integer is at least 1 / divisor below
  // the next one. Not inlined: it is needed once.
  __attribute__((noinline)) NOISETILT_HOST_DEVICE static FastDivisor of(int32_t divisor) {
    int32_t shift = 0;
    while ((int64_t(1) << shift) < divisor) ++shift;
    const uint64_t power = uint64_t(1) << (31 + shift);
    return {static_cast<uint32_t>(power / static_cast<uint32_t>(divisor) + 1), shift};
  }
  NOISETILT_HOST_DEVICE int32_t quotient(int32_t n) const {
    const uint64_t product = static_cast<uint64_t>(2 * static_cast<uint32_t>(n)) * multiplier;
    return static_cast<int32_t>(static_cast<uint32_t>(product >> 32) >> shift);
  }
};

}  // namespace noisetilt::cuda
