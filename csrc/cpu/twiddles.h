// Twiddle factors of the real FFT of half length.
#pragma once

#include <cstdint>

namespace noisetilt {

// exp(-2 pi i k / size) for k = 0 .. size/4, interleaved, computed in double and rounded once. Computed on
// first use and kept; the pointer stays valid until the process ends. Thread-safe.
template <class T>
const T* twiddles(int64_t size);

}  // namespace noisetilt
