// The butterfly, for other kernels that use it.
#pragma once

#include "../problem.h"

namespace noisetilt::NOISETILT_VARIANT {

// x and out may be the same.
template <class T>
void butterfly(const T* x, T* out, int64_t batch, Shape shape, Tile tile, int64_t steps, bool inverse);

}  // namespace noisetilt::NOISETILT_VARIANT
