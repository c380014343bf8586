// Operators of the CUDA kernels. They are a separate library, because it needs symbols that only a CUDA build
// of PyTorch has.

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <tuple>

#include "binding.h"
#include "cuda/kernels.h"

namespace noisetilt {
namespace {

using cuda::Launch;
using cuda::RankRange;
using cuda::TableFaults;

// Scope of an operator on x: makes its device the current one, and provides its current stream and working
// memory. PyTorch may reuse the memory as soon as the scope ends: the work that then uses it comes later on
// the same stream.
class LaunchScope {
 public:
  explicit LaunchScope(const Tensor& x) : x_(x), device_(x.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    launch_ = {static_cast<cudaStream_t>(stream), &allocate, this};
  }
  LaunchScope(const LaunchScope&) = delete;
  LaunchScope& operator=(const LaunchScope&) = delete;

  const Launch& launch() const { return launch_; }

 private:
  static void* allocate(void* self, size_t bytes) {
    auto* scope = static_cast<LaunchScope*>(self);
    const auto size = static_cast<int64_t>(bytes);
    scope->memory_.push_back(torch::stable::new_empty(scope->x_, {size}, ScalarType::Byte));
    return scope->memory_.back().data_ptr();
  }
  const Tensor& x_;
  torch::stable::accelerator::DeviceGuard device_;
  std::vector<Tensor> memory_;
  Launch launch_;
};

// The kernels with the interface of the CPU's Kernels<T>.
template <class T>
struct Kernels {
  const Launch& launch;

  void finite_or_nan(const T* x, T* out, int64_t batch, int64_t size) const {
    cuda::finite_or_nan(launch, x, out, batch, size);
  }
  void project(T* x, int64_t batch, const OwnedProjection<T>& projection) const {
    cuda::project<T>(launch, x, batch, projection, ranges_of(projection).data());
  }
  void project_mixing_domains(T* x, int64_t batch, const OwnedProjection<T>& projection, const Mixing* mixing,
                              int64_t num_mixing) const {
    cuda::project_mixing_domains<T>(launch, x, batch, projection, ranges_of(projection).data(), mixing,
                                    num_mixing);
  }
  void butterfly(const T* x, T* out, int64_t batch, Shape shape, Tile tile, int64_t steps,
                 bool inverse) const {
    cuda::butterfly(launch, x, out, batch, shape, tile, steps, inverse);
  }
  void hadamard_transform(const T* x, T* out, int64_t batch, int64_t size, T scale) const {
    cuda::hadamard_transform(launch, x, out, batch, size, scale);
  }
  void compact_fourier_pack(const T* spectrum, T* z, int64_t batch, int64_t size) const {
    cuda::compact_fourier_pack(launch, spectrum, z, batch, size);
  }
  void compact_fourier_unpack(const T* z, T* spectrum, int64_t batch, int64_t size) const {
    cuda::compact_fourier_unpack(launch, z, spectrum, batch, size);
  }
  void project_wgnc_blocks(const T* y, T* out, int64_t num_blocks, int64_t block_size) const {
    cuda::project_wgnc_blocks(launch, y, out, num_blocks, block_size);
  }
  void wgnc_between_ffts(T* spectrum, int64_t batch, int64_t size, int64_t block_size) const {
    cuda::wgnc_between_ffts(launch, spectrum, batch, size, block_size);
  }

 private:
  // Rank ranges of each table: its third tensor, a result of _rank_ranges.
  static std::vector<const RankRange*> ranges_of(const OwnedProjection<T>& projection) {
    std::vector<const RankRange*> ranges;
    for (const Table<T>& table : projection.tables()) {
      const Tensor& tensor = projection.tensor(ranges.size(), 2);
      require(
          tensor.device() == projection.tensor(ranges.size(), 0).device() &&
              tensor.scalar_type() == ScalarType::Int && tensor.is_contiguous() &&
              tensor.numel() == 2 * table.chunk_size * cuda::num_buckets(table.num_chunks, table.chunk_size),
          "the rank ranges do not belong to the table");
      ranges.push_back(data<RankRange>(tensor));
    }
    return ranges;
  }
};

struct Cuda {
  static constexpr size_t tensors_per_table = 3;
  static constexpr int64_t most_values = int64_t(1) << 30;  // sums and products of places have 32 bits

  template <class Body>
  static void run(const Tensor& x, const Body& body) {
    require_contiguous(x);
    require_countable(x.numel() / std::max<int64_t>(x.size(0), 1), most_values);
    const LaunchScope scope(x);
    for_dtype(x, [&](auto type) { body(Kernels<decltype(type)>{scope.launch()}, type); });
  }
};

std::tuple<Tensor, Tensor> rank_ranges(const Tensor& lower, const Tensor& upper) {
  require(lower.dim() == 2 && lower.numel() > 0, "expected a table (M, D)");
  require_countable(lower.numel(), Cuda::most_values);
  const LaunchScope scope(lower);
  const int64_t buckets = cuda::num_buckets(lower.size(0), lower.size(1));
  Tensor ranges = torch::stable::new_empty(lower, {lower.size(1), buckets, 2}, ScalarType::Int);
  Tensor faults = torch::stable::new_empty(lower, {3}, ScalarType::Int);
  for_dtype(lower, [&](auto type) {
    const auto table = table_of<decltype(type)>(lower, upper, lower, false);
    cuda::rank_ranges(scope.launch(), table, data<RankRange>(ranges), data<TableFaults>(faults));
  });
  return {ranges, faults};
}

// Lines "key: value".
std::string build_info() {
  return "nvcc: " NOISETILT_NVCC_VERSION "\nflags: " NOISETILT_CUDA_FLAGS
         "\narchitectures: " NOISETILT_CUDA_ARCHITECTURES;
}

}  // namespace
}  // namespace noisetilt

STABLE_TORCH_LIBRARY_IMPL(noisetilt, CUDA, m) {
  noisetilt::Operators<noisetilt::Cuda>::implement(m);
  m.impl("_rank_ranges", TORCH_BOX(&noisetilt::rank_ranges));
}

STABLE_TORCH_LIBRARY_IMPL(noisetilt, CompositeExplicitAutograd, m) {
  m.impl("_cuda_build_info", TORCH_BOX(&noisetilt::build_info));
}
