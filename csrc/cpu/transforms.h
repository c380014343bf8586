// Butterfly mixing, for the kernels that contain it.
#pragma once

#include "kernels.h"

namespace noisetilt::NOISETILT_VARIANT {

// In place.
template <class T>
void butterfly(const T* x, T* out, int64_t batch, Shape shape, Tile tile, int64_t steps, bool inverse);

template <class T>
void hadamard_transform(const T* x, T* out, int64_t batch, int64_t size, T scale);

// Between a sample's compact Fourier form, or its WGNC spectrum, and the half-length FFT.
template <class T>
void compact_fourier_pack(const T* spectrum, T* z, int64_t batch, int64_t size);
template <class T>
void compact_fourier_unpack(const T* z, T* spectrum, int64_t batch, int64_t size);

}  // namespace noisetilt::NOISETILT_VARIANT
