// The one thing the kernels need from their host: a parallel loop. The operator library maps it to
// PyTorch's thread pool (csrc/ops.cpp), the stand-alone test to threads of its own.
#pragma once

#include <cstdint>

namespace noisetilt {

using RangeFunction = void (*)(int64_t begin, int64_t end, void* context);

// Calls `body` on ranges that cover [0, count), in parallel; inside a parallel loop, in place.
void parallel_ranges(int64_t count, int64_t grain, RangeFunction body, void* context);
int num_threads();

// body(begin, end) on ranges of at least `grain` iterations.
template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  parallel_ranges(
      count, grain,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// body(index) for every sample of a batch: samples in parallel where there are enough of them, else one
// after the other, each with all threads (loops inside a parallel loop run in place).
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
