// Two-level order statistics, for the kernels that contain it.
#pragma once

#include "kernels.h"

namespace noisetilt::NOISETILT_VARIANT {

// x and out must not overlap.
template <class T>
void project_2os(const T* x, T* out, int64_t batch, const Table<T>& table);

template <class T>
TableFault check_table(Table<T>& table);

}  // namespace noisetilt::NOISETILT_VARIANT
