// WGNC projection.
#pragma once

#include "kernels.h"

namespace noisetilt::NOISETILT_VARIANT {

// In place, on interleaved complex numbers.
template <class T>
void project_wgnc_blocks(const T* y, T* out, int64_t num_blocks, int64_t block_size);

// From the half-length FFT of each sample to that of its projection.
template <class T>
void wgnc_between_ffts(T* spectrum, int64_t batch, int64_t size, int64_t block_size);

}  // namespace noisetilt::NOISETILT_VARIANT
