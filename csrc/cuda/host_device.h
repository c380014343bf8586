// Marks functions for host and device that are also plain C++: NOISETILT_HOST_DEVICE is empty without nvcc.
#pragma once

#ifdef __CUDACC__
#define NOISETILT_HOST_DEVICE __host__ __device__
#else
#define NOISETILT_HOST_DEVICE
#endif
