// Factors of the half-length real FFT.
#pragma once

#include <cstdint>

namespace noisetilt {

// exp(-2 pi i k / size) for k = 0 .. size/4, interleaved, computed in double and rounded once. Made on first
// use and kept; thread-safe. The pointer stays valid for the life of the process.
template <class T>
const T* twiddles(int64_t size);

}  // namespace noisetilt
