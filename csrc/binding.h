// Operators on PyTorch's stable ABI: the part that is the same for every device.
//
// noisetilt_kernels/ops.py has checked the arguments. The checks here only prevent out-of-bounds access.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "problem.h"
#include "tiling.h"

namespace noisetilt {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

inline void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("noisetilt: ") + what);
}

template <class T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

// Half the number of values in a sample, which must be even.
inline int64_t half_size_of(const Tensor& x) {
  int64_t size = 1;
  for (int64_t k = 1; k < x.dim(); ++k) size *= x.size(k);
  require(x.dim() > 1 && size % 2 == 0, "expected samples with an even number of values");
  return size / 2;
}

// Calls body(float{}) or body(double{}), for the dtype of x.
template <class Body>
void for_dtype(const Tensor& x, const Body& body) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    default:
      require(false, "expected float32 or float64 samples");
  }
}

inline void require_contiguous(const Tensor& x) { require(x.is_contiguous(), "expected contiguous samples"); }

// Places in a sample are kept in 32 bits. noisetilt_kernels leaves larger samples to the reference.
inline void require_countable(int64_t size, int64_t most) {
  if (size > most)
    require(false, ("samples and tables may have at most " + std::to_string(most) + " values").c_str());
}

inline Shape shape_of(const Tensor& x) {
  require(x.dim() == 4, "expected samples (B, C, H, W)");
  return {x.size(1), x.size(2), x.size(3)};
}

inline Tile tile_of(int64_t height, int64_t width, Shape shape) {
  require(height > 0 && width > 0 && height <= shape.height && width <= shape.width,
          "a tile must fit into the plane of a sample");
  return {height, width};
}

// Mixing domains for samples like x. `mixing` lists height, width and repeats of each.
inline std::vector<Mixing> domains_of(const Ints& mixing, const Tensor& x) {
  require(mixing.size() % 3 == 0, "malformed mixing: expected height, width and repeats of each domain");
  std::vector<Mixing> domains;
  for (size_t k = 0; k < mixing.size(); k += 3)
    domains.push_back({tile_of(mixing[k], mixing[k + 1], shape_of(x)), mixing[k + 2]});
  return domains;
}

// Table with the entries of lower and upper. Both must have the device and the dtype of `like`.
template <class T>
Table<T> table_of(const Tensor& lower, const Tensor& upper, const Tensor& like, bool monotone) {
  require(lower.dim() == 2 && upper.dim() == 2 && lower.size(0) == upper.size(0) &&
              lower.size(1) == upper.size(1) && lower.stride(0) == upper.stride(0) &&
              lower.stride(1) == upper.stride(1),
          "lower and upper must have the same shape and strides");
  for (const Tensor* bound : {&lower, &upper})
    require(bound->scalar_type() == like.scalar_type() && bound->device() == like.device(),
            "lower and upper must have the dtype and the device of the samples");
  return {data<T>(lower),  data<T>(upper),  lower.size(0), lower.size(1),
          lower.stride(0), lower.stride(1), monotone};
}

// PyTorch's FFT of each row of complex numbers, not scaled.
template <class T>
Tensor fft_of_rows(const T* values, int64_t rows, int64_t length, bool inverse,
                   const torch::stable::Device& device) {
  const Tensor x =
      torch::stable::from_blob(const_cast<T*>(values), {rows, length}, {length, 1}, device,
                               sizeof(T) == 4 ? ScalarType::ComplexFloat : ScalarType::ComplexDouble);
  std::array<StableIValue, 4> stack{torch::stable::detail::from(x), torch::stable::detail::from(Ints{1}),
                                    torch::stable::detail::from(int64_t{0}),
                                    torch::stable::detail::from(!inverse)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::_fft_c2c", "", stack.data(), TORCH_ABI_VERSION));
  Tensor result = torch::stable::detail::to<Tensor>(stack[0]);
  require_contiguous(result);
  return result;
}

// Factors of the FFT of N = `size` real values, from a tensor like twiddle_factors() in Python makes.
template <class T>
Twiddles<T> twiddles_of(const Tensor& factors, int64_t size, const Tensor& like) {
  const int64_t count = num_twiddles(size);
  require(factors.dim() == 2 && factors.size(0) == 2 && factors.size(1) == count && factors.is_contiguous() &&
              factors.scalar_type() == like.scalar_type() && factors.device() == like.device(),
          "the factors of the FFT do not belong to the samples");
  return {data<const T>(factors), data<const T>(factors) + count};
}

// Samples that a projection is for.
struct SampleType {
  Shape shape;
  ScalarType dtype;
  torch::stable::Device device;

  explicit SampleType(const Tensor& x) : shape(shape_of(x)), dtype(x.scalar_type()), device(x.device()) {}
  bool operator==(const SampleType& other) const {
    return shape.channels == other.shape.channels && shape.height == other.shape.height &&
           shape.width == other.shape.width && dtype == other.dtype && device == other.device;
  }
};

// A Projection, the arrays that it points to, and the tensors that these point to. `tensors` lists
// kTensorsPerTable tensors for each table: lower, upper and, on CUDA, its rank ranges. The tables of the
// values come first, then for each region of each tile those of means and energies, alternating. `tiles`
// lists height and width of each tile, and the number of chunk sizes of each of its regions (tiling.h).
template <class T, size_t kTensorsPerTable>
class OwnedProjection : public SampleType {
 public:
  // x: any samples of the shape, the dtype and the device that the projection is for.
  OwnedProjection(const Tensor& x, std::vector<Tensor> tensors, const Ints& monotone, int64_t num_values,
                  const Ints& tiles, std::optional<Tensor> factors)
      : SampleType(x), tensors_(std::move(tensors)), factors_(std::move(factors)) {
    require(tensors_.size() == kTensorsPerTable * monotone.size(), kMalformed);
    for (size_t k = 0; k < monotone.size(); ++k)
      tables_.push_back(table_of<T>(tensor(k, 0), tensor(k, 1), x, monotone[k] != 0));
    require(num_values >= 0 && static_cast<size_t>(num_values) <= tables_.size(), kMalformed);
    for (int64_t k = 0; k < num_values; ++k) require_size(tables_[k], shape.size());

    size_t next = static_cast<size_t>(num_values);
    for (size_t k = 0; k < tiles.size();) {
      require(k + 2 < tiles.size(), kMalformed);
      const Regions regions = tile_regions(shape, tile_of(tiles[k], tiles[k + 1], shape));
      k += 2;
      for (const Region& region : regions) {
        require(k < tiles.size(), kMalformed);
        const int64_t num_tables = tiles[k++], num_tiles = region.tiles_in(shape);
        pairs_.emplace_back();
        for (int64_t i = 0; i < num_tables; ++i, next += 2) {
          require(next + 1 < tables_.size(), kMalformed);
          require_size(tables_[next], num_tiles);
          require_size(tables_[next + 1], num_tiles);
          pairs_.back().push_back({{tables_[next], tables_[next + 1]}});
        }
        tiles_.push_back({region, nullptr, num_tables});
      }
    }
    require(next == tables_.size(), kMalformed);
    for (size_t k = 0; k < tiles_.size(); ++k) tiles_[k].tables = &pairs_[k].data()->pair;
    projection_ = {shape, tables_.data(), num_values, tiles_.data(), static_cast<int64_t>(tiles_.size())};
  }
  OwnedProjection(const OwnedProjection&) = delete;
  OwnedProjection& operator=(const OwnedProjection&) = delete;

  operator const Projection<T>&() const { return projection_; }
  const std::vector<Table<T>>& tables() const { return tables_; }
  // Factors of the FFT of a sample, for whiten.
  const Tensor& factors() const {
    require(factors_.has_value(), "the projection has no factors for the FFT of whiten");
    return *factors_;
  }
  // Tensor number `which` of a table.
  const Tensor& tensor(size_t table, size_t which) const {
    return tensors_[kTensorsPerTable * table + which];
  }

 private:
  static constexpr const char* kMalformed =
      "malformed projection: the numbers of tables and tiles do not agree";
  struct MeanAndEnergy {
    Table<T> pair[2];
  };
  static void require_size(const Table<T>& table, int64_t size) {
    require(table.num_chunks * table.chunk_size == size,
            "a table must have as many entries as there are values to project");
  }
  std::vector<Tensor> tensors_;
  std::optional<Tensor> factors_;
  std::vector<Table<T>> tables_;
  std::vector<std::vector<MeanAndEnergy>> pairs_;
  std::vector<TileProjection<T>> tiles_;
  Projection<T> projection_;
};

// Tensor that stands for an object in arguments of operators. It has the bytes of the object, on the CPU, and
// deletes the object when it dies. A copy of the tensor must not be used: its pointers would be to an object
// that may be gone.
template <class Object>
Tensor handle_of(std::unique_ptr<Object> object) {
  const Tensor handle =
      torch::stable::from_blob(object.get(), {static_cast<int64_t>(sizeof(Object))}, {1},
                               torch::stable::Device(torch::headeronly::DeviceType::CPU), ScalarType::Byte,
                               [](void* memory) { delete static_cast<Object*>(memory); });
  object.release();
  return handle;
}

// The projection that a handle stands for, made for samples like x.
template <class Projection>
const Projection& projection_of(const Tensor& handle, const Tensor& x) {
  require(handle.is_cpu() && handle.scalar_type() == ScalarType::Byte &&
              handle.numel() == static_cast<int64_t>(sizeof(Projection)),
          "expected a handle from _projection");
  require(*data<SampleType>(handle) == SampleType(x), "the projection was made for other samples");
  return *data<Projection>(handle);
}

// Operators that every device has. `Device` has:
// - Owned<T>: the OwnedProjection of the device
// - run(x, body): calls body(kernels, T{}), with the kernels for the device and the dtype of x
// - run_on_stored(x, body): the same, also for dtypes that are only stored, if the device has such kernels
// - half_length_fft<T>(x, inverse): PyTorch's FFT of samples read as complex numbers, not scaled, as samples
// - reserve_for_whiten(kernels, ..): memory for the projections of whiten
template <class Device>
struct Operators {
  template <class T>
  using Owned = typename Device::template Owned<T>;

  static Tensor projection(const Tensor& x, const std::vector<Tensor>& tables, const Ints& monotone,
                           int64_t num_values, const Ints& tiles, const std::optional<Tensor>& factors) {
    Tensor handle;
    for_dtype(x, [&](auto type) {
      handle =
          handle_of(std::make_unique<Owned<decltype(type)>>(x, tables, monotone, num_values, tiles, factors));
    });
    return handle;
  }

  static Tensor whiten(const Tensor& x, const Tensor& projection, const Ints& mixing) {
    Tensor result;
    Device::run(x, [&](const auto& kernels, auto type) {
      using T = decltype(type);
      const auto& owned = projection_of<Owned<T>>(projection, x);
      const std::vector<Mixing> domains = domains_of(mixing, x);
      const auto num_domains = static_cast<int64_t>(domains.size());
      const int64_t batch = x.size(0), size = 2 * half_size_of(x);
      const auto w = twiddles_of<T>(owned.factors(), size, x);
      Device::reserve_for_whiten(kernels, batch, owned, domains.data(), num_domains);
      result = torch::stable::empty_like(x);
      kernels.finite_or_nan(data<T>(x), data<T>(result), batch, size);
      kernels.project(data<T>(result), batch, owned);
      result = fourier<T>(kernels, std::move(result), w, false, true);
      kernels.project(data<T>(result), batch, owned);
      result = fourier<T>(kernels, std::move(result), w, true, true);
      kernels.project_mixing_domains(data<T>(result), batch, owned, domains.data(), num_domains);
    });
    return result;
  }

  static Tensor finite_or_nan(const Tensor& x) {
    Tensor out = torch::stable::empty_like(x);
    Device::run(x, [&](const auto& kernels, auto type) {
      using T = decltype(type);
      kernels.finite_or_nan(data<T>(x), data<T>(out), x.size(0), shape_of(x).size());
    });
    return out;
  }

  static void project_(const Tensor& x, const Tensor& projection) {
    Device::run(x, [&](const auto& kernels, auto type) {
      using T = decltype(type);
      kernels.project(data<T>(x), x.size(0), projection_of<Owned<T>>(projection, x));
    });
  }

  static void project_mixing_domains_(const Tensor& x, const Tensor& projection, const Ints& mixing) {
    Device::run(x, [&](const auto& kernels, auto type) {
      using T = decltype(type);
      const std::vector<Mixing> domains = domains_of(mixing, x);
      kernels.project_mixing_domains(data<T>(x), x.size(0), projection_of<Owned<T>>(projection, x),
                                     domains.data(), static_cast<int64_t>(domains.size()));
    });
  }

  static Tensor butterfly(const Tensor& x, const Ints& tile, int64_t steps, bool inverse) {
    Tensor out = torch::stable::empty_like(x);
    Device::run(x, [&](const auto& kernels, auto type) {
      using T = decltype(type);
      require(tile.size() == 2, "expected a tile (height, width)");
      const Shape shape = shape_of(x);
      kernels.butterfly(data<T>(x), data<T>(out), x.size(0), shape, tile_of(tile[0], tile[1], shape), steps,
                        inverse);
    });
    return out;
  }

  static Tensor hadamard_transform(const Tensor& x, double scale) {
    Tensor out = torch::stable::empty_like(x);
    Device::run_on_stored(x, [&](const auto& kernels, auto type) {
      using T = decltype(type);
      require(x.dim() == 2 && (x.size(1) & (x.size(1) - 1)) == 0 && x.size(1) > 0,
              "expected samples (B, N), N a power of two");
      kernels.hadamard_transform(data<T>(x), data<T>(out), x.size(0), x.size(1), scale);
    });
    return out;
  }

  static Tensor compact_fourier(const Tensor& x, const Tensor& factors, bool inverse) {
    Tensor result;
    Device::run(x, [&](const auto& kernels, auto type) {
      using T = decltype(type);
      result = fourier<T>(kernels, x, twiddles_of<T>(factors, 2 * half_size_of(x), x), inverse, false);
    });
    return result;
  }

  static Tensor project_wgnc(const Tensor& x, const Tensor& factors, int64_t block_size) {
    Tensor result;
    Device::run(x, [&](const auto& kernels, auto type) {
      using T = decltype(type);
      const int64_t batch = x.size(0), size = 2 * half_size_of(x);
      require(block_size >= 2 && size % (2 * block_size) == 0,
              "block size does not divide the number of coefficients");
      const auto w = twiddles_of<T>(factors, size, x);
      if (has_defined_fft(size)) {
        result = torch::stable::empty_like(x);
        kernels.project_wgnc(data<T>(x), data<T>(result), batch, size, w, block_size);
        return;
      }
      const Tensor spectrum = Device::template half_length_fft<T>(x, false);
      kernels.wgnc_between_ffts(data<T>(spectrum), batch, size, w, block_size);
      result = Device::template half_length_fft<T>(spectrum, true);
    });
    return result;
  }

  static Tensor project_wgnc_blocks(const Tensor& y, int64_t block_size) {
    Tensor out = torch::stable::empty_like(y);
    Device::run(y, [&](const auto& kernels, auto type) {
      using T = decltype(type);
      require(block_size >= 2 && y.numel() % (2 * block_size) == 0,
              "block size does not divide the number of coefficients");
      kernels.project_wgnc_blocks(data<T>(y), data<T>(out), y.numel() / (2 * block_size), block_size);
    });
    return out;
  }

  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("_projection", TORCH_BOX(&projection));
    library.impl("_whiten", TORCH_BOX(&whiten));
    library.impl("_finite_or_nan", TORCH_BOX(&finite_or_nan));
    library.impl("_project_", TORCH_BOX(&project_));
    library.impl("_project_mixing_domains_", TORCH_BOX(&project_mixing_domains_));
    library.impl("_butterfly", TORCH_BOX(&butterfly));
    library.impl("_hadamard_transform", TORCH_BOX(&hadamard_transform));
    library.impl("_compact_fourier", TORCH_BOX(&compact_fourier));
    library.impl("_project_wgnc", TORCH_BOX(&project_wgnc));
    library.impl("_project_wgnc_blocks", TORCH_BOX(&project_wgnc_blocks));
  }

 private:
  // Compact Fourier transform of x, or its inverse. With `reuse`, x is no longer needed: the result may take
  // its memory, or x is freed before the result is allocated.
  template <class T, class DeviceKernels>
  static Tensor fourier(const DeviceKernels& kernels, Tensor x, Twiddles<T> w, bool inverse, bool reuse) {
    const int64_t batch = x.size(0), size = 2 * half_size_of(x);
    if (has_defined_fft(size)) {
      Tensor result = reuse ? x : torch::stable::empty_like(x);
      kernels.compact_fourier(data<T>(x), data<T>(result), batch, size, w, inverse);
      return result;
    }
    if (inverse) {
      const Tensor spectrum = torch::stable::empty_like(x);
      kernels.compact_fourier_unpack(data<T>(x), data<T>(spectrum), batch, size, w);
      x = Tensor();
      return Device::template half_length_fft<T>(spectrum, true);
    }
    const Tensor spectrum = Device::template half_length_fft<T>(x, false);
    x = Tensor();
    Tensor result = torch::stable::empty_like(spectrum);
    kernels.compact_fourier_pack(data<T>(spectrum), data<T>(result), batch, size, w);
    return result;
  }
};

}  // namespace noisetilt
