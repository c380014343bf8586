// Whitening, DESIGN section 5, without the FFTs, which are PyTorch's.

#include <algorithm>
#include <atomic>
#include <limits>

#include "kernels.h"
#include "order_stats.h"
#include "parallel.h"
#include "tile_stats.h"
#include "transforms.h"

namespace noisetilt::NOISETILT_VARIANT {
namespace {

constexpr int64_t kGrain = 8192;  // fewest values per thread

template <class T>
void project_sample(T* x, const Projection<T>& projection) {
  for (int64_t k = 0; k < projection.num_values; ++k) project_2os<T>(x, 1, projection.values[k]);
  for (int64_t k = 0; k < projection.num_tiles; ++k)
    project_tile_stats<T>(x, projection.shape, projection.tiles[k]);
}

template <class T>
void project(T* x, int64_t batch, const Projection<T>& projection) {
  for_each_sample(batch, [&](int64_t b) { project_sample(x + b * projection.shape.size(), projection); });
}

template <class T>
void project_mixing_domains(T* x, int64_t batch, const Projection<T>& projection, const Mixing* mixing,
                            int64_t num_mixing) {
  const Shape& shape = projection.shape;
  for_each_sample(batch, [&](int64_t b) {
    T* sample = x + b * shape.size();
    for (int64_t k = 0; k < num_mixing; ++k) {
      for (int64_t step = 0; step < mixing[k].repeats; ++step) {
        butterfly<T>(sample, sample, 1, shape, mixing[k].tile, 1, false);
        project_sample(sample, projection);
      }
      butterfly<T>(sample, sample, 1, shape, mixing[k].tile, mixing[k].repeats, true);
    }
  });
}

template <class T>
void finite_or_nan(const T* x, T* out, int64_t batch, int64_t size) {
  for_each_sample(batch, [&](int64_t b) {
    const T* sample = x + b * size;
    T* result = out + b * size;
    std::atomic<bool> all_finite{true};
    parallel_for(size, kGrain, [&](int64_t begin, int64_t end) {
      bool finite = true;
      for (int64_t i = begin; i < end; ++i) {
        finite &= sample[i] - sample[i] == 0;
        result[i] = sample[i];
      }
      if (!finite) all_finite = false;
    });
    if (!all_finite) std::fill(result, result + size, std::numeric_limits<T>::quiet_NaN());
  });
}

}  // namespace

template <class T>
void add_whitening_kernels(Kernels<T>& kernels) {
  kernels.finite_or_nan = finite_or_nan<T>;
  kernels.project = project<T>;
  kernels.project_mixing_domains = project_mixing_domains<T>;
}
template void add_whitening_kernels<float>(Kernels<float>&);
template void add_whitening_kernels<double>(Kernels<double>&);

}  // namespace noisetilt::NOISETILT_VARIANT
