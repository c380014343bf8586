// Tile statistics, for other kernels that use them.
#pragma once

#include "../problem.h"

namespace noisetilt::NOISETILT_VARIANT {

// In place, on one sample.
template <class T>
void project_tile_stats(T* x, const Shape& shape, const TileProjection<T>& projection);

}  // namespace noisetilt::NOISETILT_VARIANT
