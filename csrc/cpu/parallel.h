// Parallel loops of the kernels, on threads of their own (parallel.cpp).
#pragma once

#include <cstdint>

namespace noisetilt {

using RangeFunction = void (*)(int64_t begin, int64_t end, void* context);

// Calls `body` in parallel on ranges that cover [0, count). Inside another parallel loop: on the same thread.
void parallel_ranges(int64_t count, int64_t grain, RangeFunction body, void* context);

// Number of threads for a loop of the calling thread. The program that contains the kernels defines it: the
// operator library (csrc/ops.cpp) as PyTorch's number, the kernel test as a variable.
int num_threads();

// Calls body(begin, end) in parallel on ranges of at least `grain` iterations.
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  parallel_ranges(
      count, grain,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Calls body(index) for every sample of a batch. With at least as many samples as threads, the samples run in
// parallel; otherwise one after the other, and the loops inside `body` use all threads.
template <class Body>
void for_each_sample(int64_t batch, const Body& body) {
  auto range = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  };
  if (batch >= num_threads()) {
    parallel_for(batch, 1, range);
  } else {
    range(0, batch);
  }
}

}  // namespace noisetilt
