// PyTorch's operations on the calling thread alone. A region of OpenMP takes 10 to 100 ms while other
// processes hold the cores, because its threads wait for one another. The kernels' threads do not
// (cpu/parallel.cpp).
#pragma once

#include <torch/csrc/stable/ops.h>

// Of libraries that PyTorch loads; null in a build of PyTorch without them. Both act on the calling thread.
extern "C" {
__attribute__((weak)) void omp_set_num_threads(int threads);
__attribute__((weak)) int MKL_Set_Num_Threads_Local(int threads);  // returns the number before
}

namespace noisetilt {

// Number of threads that PyTorch had on this thread before `leave_openmp`, and MKL's; 0 outside.
inline thread_local int threads_before = 0, mkl_threads_before = 0;

// Makes PyTorch's own operations run on the calling thread alone. Returns false if they did already. The
// kernels go on to use helpers.
inline bool leave_openmp() {
  if (threads_before > 0) return false;
  threads_before = static_cast<int>(torch::stable::get_num_threads());
  if (omp_set_num_threads) omp_set_num_threads(1);
  if (MKL_Set_Num_Threads_Local) mkl_threads_before = MKL_Set_Num_Threads_Local(1);
  return true;
}

inline void return_to_openmp() {
  if (omp_set_num_threads) omp_set_num_threads(threads_before);
  if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(mkl_threads_before);
  threads_before = 0;
}

// Leaves OpenMP for its lifetime, if `leave`.
struct OwnThread {
  explicit OwnThread(bool leave) : left(leave && leave_openmp()) {}
  ~OwnThread() {
    if (left) return_to_openmp();
  }
  const bool left;
};

}  // namespace noisetilt
