// Operators of the CUDA kernels. They are a separate library, because it needs symbols that only a CUDA build
// of PyTorch has.

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <optional>
#include <tuple>

#include "binding.h"
#include "cuda/kernels.h"

namespace noisetilt {
namespace {

using cuda::Device;
using cuda::Launch;
using cuda::RankRange;
using cuda::TableFaults;

// The current device, whose number is `index`.
const Device& current_device(int index) {
  static std::mutex mutex;
  static std::map<int, Device> devices;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = devices.find(index);
  return found != devices.end() ? found->second
                                : devices.try_emplace(index, cuda::current_device()).first->second;
}

// Scope of an operator on x: makes its device the current one, and provides its current stream and working
// memory. PyTorch may reuse the memory as soon as the scope ends: the work that then uses it comes later on
// the same stream.
class LaunchScope {
 public:
  explicit LaunchScope(const Tensor& x) : index_(x.get_device_index()), device_(index_) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &type_));
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    launch_ = {static_cast<cudaStream_t>(stream), &current_device(index_), &allocate, this};
  }
  LaunchScope(const LaunchScope&) = delete;
  LaunchScope& operator=(const LaunchScope&) = delete;

  const Launch& launch() const { return launch_; }

 private:
  static void* allocate(void* self, size_t bytes) {
    auto* scope = static_cast<LaunchScope*>(self);
    const auto size = static_cast<int64_t>(bytes), stride = int64_t(1);
    AtenTensorHandle memory = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, &size, &stride, aoti_torch_dtype_uint8(), scope->type_,
                                                    scope->index_, &memory));
    return scope->memory_.emplace_back(memory).data_ptr();
  }
  int32_t type_, index_;  // of x's device
  torch::stable::accelerator::DeviceGuard device_;
  std::vector<Tensor> memory_;
  Launch launch_;
};

// A projection with the rank ranges of each table: its third tensor, a result of _rank_ranges.
template <class T>
class CudaProjection : public OwnedProjection<T, 3> {
 public:
  template <class... Arguments>
  explicit CudaProjection(Arguments&&... arguments)
      : OwnedProjection<T, 3>(std::forward<Arguments>(arguments)...) {
    for (const Table<T>& table : this->tables())
      ranges_.push_back(ranges_of(this->tensor(ranges_.size(), 2), table, this->device));
  }
  const RankRange* const* ranges() const { return ranges_.data(); }

  static const RankRange* ranges_of(const Tensor& tensor, const Table<T>& table,
                                    const torch::stable::Device& device) {
    require(
        tensor.device() == device && tensor.scalar_type() == ScalarType::Int && tensor.is_contiguous() &&
            tensor.numel() == 2 * table.chunk_size * cuda::num_buckets(table.num_chunks, table.chunk_size),
        "the rank ranges do not belong to the table");
    return data<RankRange>(tensor);
  }

 private:
  std::vector<const RankRange*> ranges_;
};

// The kernels with the interface of the CPU's Kernels<T>.
template <class T>
struct Kernels {
  const Launch& launch;

  void finite_or_nan(const T* x, T* out, int64_t batch, int64_t size) const {
    cuda::finite_or_nan(launch, x, out, batch, size);
  }
  void project(T* x, int64_t batch, const CudaProjection<T>& projection) const {
    cuda::project<T>(launch, x, batch, projection, projection.ranges());
  }
  void project_mixing_domains(T* x, int64_t batch, const CudaProjection<T>& projection, const Mixing* mixing,
                              int64_t num_mixing) const {
    cuda::project_mixing_domains<T>(launch, x, batch, projection, projection.ranges(), mixing, num_mixing);
  }
  void butterfly(const T* x, T* out, int64_t batch, Shape shape, Tile tile, int64_t steps,
                 bool inverse) const {
    cuda::butterfly(launch, x, out, batch, shape, tile, steps, inverse);
  }
  void hadamard_transform(const T* x, T* out, int64_t batch, int64_t size, double scale) const {
    cuda::hadamard_transform(launch, x, out, batch, size, scale);
  }
  void compact_fourier(const T* x, T* out, int64_t batch, int64_t size, Twiddles<T> w, bool inverse) const {
    cuda::compact_fourier(launch, x, out, batch, size, w, inverse);
  }
  void compact_fourier_pack(const T* spectrum, T* z, int64_t batch, int64_t size, Twiddles<T> w) const {
    cuda::compact_fourier_pack(launch, spectrum, z, batch, size, w);
  }
  void compact_fourier_unpack(const T* z, T* spectrum, int64_t batch, int64_t size, Twiddles<T> w) const {
    cuda::compact_fourier_unpack(launch, z, spectrum, batch, size, w);
  }
  void project_wgnc(const T* x, T* out, int64_t batch, int64_t size, Twiddles<T> w,
                    int64_t block_size) const {
    cuda::project_wgnc(launch, x, out, batch, size, w, block_size);
  }
  void project_wgnc_blocks(const T* y, T* out, int64_t num_blocks, int64_t block_size) const {
    cuda::project_wgnc_blocks(launch, y, out, num_blocks, block_size);
  }
  void wgnc_between_ffts(T* spectrum, int64_t batch, int64_t size, Twiddles<T> w, int64_t block_size) const {
    cuda::wgnc_between_ffts(launch, spectrum, batch, size, w, block_size);
  }
};

struct Cuda {
  template <class T>
  using Owned = CudaProjection<T>;
  static constexpr int64_t most_values = int64_t(1) << 30;  // sums and products of places have 32 bits

  template <class Body>
  static void run(const Tensor& x, const Body& body) {
    for_launch(x, [&](const Launch& launch) {
      for_dtype(x, [&](auto type) { body(Kernels<decltype(type)>{launch}, type); });
    });
  }
  // Also for float16 and bfloat16.
  template <class Body>
  static void run_on_stored(const Tensor& x, const Body& body) {
    for_launch(x, [&](const Launch& launch) {
      if (x.scalar_type() == ScalarType::Half) return body(Kernels<cuda::Half>{launch}, cuda::Half{});
      if (x.scalar_type() == ScalarType::BFloat16)
        return body(Kernels<cuda::BFloat16>{launch}, cuda::BFloat16{});
      for_dtype(x, [&](auto type) { body(Kernels<decltype(type)>{launch}, type); });
    });
  }
  template <class Body>
  static void for_launch(const Tensor& x, const Body& body) {
    require_contiguous(x);
    require_countable(x.numel() / std::max<int64_t>(x.size(0), 1), most_values);
    const LaunchScope scope(x);
    body(scope.launch());
  }

  // One FFT transforms the batch: single samples would leave the device idle.
  template <class T>
  static Tensor half_length_fft(const Tensor& x, bool inverse) {
    const Tensor spectrum = fft_of_rows(data<const T>(x), x.size(0), half_size_of(x), inverse, x.device());
    std::array<StableIValue, 2> stack{torch::stable::detail::from(spectrum),
                                      torch::stable::detail::from(x.scalar_type())};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::view", "dtype", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::view(torch::stable::detail::to<Tensor>(stack[0]), x.sizes());
  }

  template <class T>
  static void reserve_for_whiten(const Kernels<T>& kernels, int64_t batch,
                                 const CudaProjection<T>& projection, const Mixing* mixing,
                                 int64_t num_mixing) {
    cuda::reserve_for_whiten<T>(kernels.launch, batch, projection, mixing, num_mixing);
  }
};

void project_2os_(const Tensor& x, const Tensor& lower, const Tensor& upper,
                  const std::optional<Tensor>& rank_ranges) {
  Cuda::run(x, [&](const auto& kernels, auto type) {
    using T = decltype(type);
    const Table<T> table = table_of<T>(lower, upper, x, false);
    require(x.dim() == 2 && x.size(1) == table.num_chunks * table.chunk_size,
            "lower and upper must have as many entries as a sample has values");
    require(rank_ranges.has_value(), "the rank ranges of the table are missing");
    const RankRange* ranges = CudaProjection<T>::ranges_of(*rank_ranges, table, x.device());
    cuda::project<T>(kernels.launch, data<T>(x), x.size(0), {{1, 1, x.size(1)}, &table, 1, nullptr, 0},
                     &ranges);
  });
}

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
  m.impl("_project_2os_", TORCH_BOX(&noisetilt::project_2os_));
  m.impl("_rank_ranges", TORCH_BOX(&noisetilt::rank_ranges));
}

STABLE_TORCH_LIBRARY_IMPL(noisetilt, CompositeExplicitAutograd, m) {
  m.impl("_cuda_build_info", TORCH_BOX(&noisetilt::build_info));
}
