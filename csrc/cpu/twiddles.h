// Twiddle factors of the real FFT of half length.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace noisetilt {

// exp(-2 pi i k / size) for k = 0 .. size/4, interleaved, computed in double and rounded once. The tables of
// the last sizes are kept, up to 16 MB for each type. Thread-safe.
template <class T>
std::shared_ptr<const std::vector<T>> twiddles(int64_t size);

}  // namespace noisetilt
