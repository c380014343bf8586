// Tile statistics, for the kernels that contain them.
#pragma once

#include "kernels.h"

namespace noisetilt::NOISETILT_VARIANT {

// In place, on one sample.
template <class T>
void project_tile_stats(T* x, const Shape& shape, const TileProjection<T>& projection);

}  // namespace noisetilt::NOISETILT_VARIANT
