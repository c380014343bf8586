// Two-level order statistics, for the kernels that contain it.
#pragma once

#include "kernels.h"

namespace noisetilt::NOISETILT_VARIANT {

// In place.
template <class T>
void project_2os(T* x, int64_t batch, const Table<T>& table);

template <class T>
TableFault check_table(Table<T>& table);

}  // namespace noisetilt::NOISETILT_VARIANT
