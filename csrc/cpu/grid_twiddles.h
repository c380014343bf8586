// Twiddle factors between the two steps of a long FFT (csrc/half_length_fft.h).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace noisetilt {

// Factors exp(-2 pi i row column / (a b)) of b rows and a columns, interleaved, computed in double and
// rounded once. The tables of the last sizes are kept, up to 16 MB for each type. Thread-safe.
template <class T>
std::shared_ptr<const std::vector<T>> grid_twiddles(int64_t a, int64_t b);

}  // namespace noisetilt
