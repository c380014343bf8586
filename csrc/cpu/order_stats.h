// Two-level order statistics (2OS), for other kernels that use them.
#pragma once

#include "../problem.h"

namespace noisetilt::NOISETILT_VARIANT {

// In place.
template <class T>
void project_2os(T* x, int64_t batch, const Table<T>& table);

}  // namespace noisetilt::NOISETILT_VARIANT
