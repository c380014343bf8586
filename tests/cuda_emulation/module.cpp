// Python module of the kernels of csrc/cuda, emulated here or executed from their PTX (tests/ptx). Arrays are
// float32 or float64. Arguments are not changed; results are new arrays. The kernels get memory of exactly
// the size that they asked for.
#include <cuda_runtime.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <deque>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <device.h>  // of the emulation, or of tests/ptx

#include "cuda/kernels.h"
#include "tiling.h"

namespace py = pybind11;

namespace noisetilt::cuda {
namespace {

using Ints = std::vector<int64_t>;
template <class T>
using Array = py::array_t<T, py::array::c_style>;
template <class T>
using Tables = std::vector<std::pair<py::array_t<T>, py::array_t<T>>>;  // lower and upper

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

// Number of values by which the arguments of a call are displaced in their memory, see `displace`.
int64_t displacement = 0;

// Memory of one call.
class DeviceMemory {
 public:
  Launch launch() { return {nullptr, &device_, &allocate, this}; }

  template <class T>
  T* make(int64_t count) {
    return reinterpret_cast<T*>(add(static_cast<size_t>(count) * sizeof(T)));
  }
  template <class T>
  T* copy(const Array<T>& array) {
    T* values = make<T>(array.size() + displacement) + displacement;
    std::copy(array.data(), array.data() + array.size(), values);
    return values;
  }
  // Lets kernels read an array of the host.
  template <class T>
  void borrow(const py::array_t<T>& array) {
    size_t bytes = sizeof(T);
    for (py::ssize_t k = 0; k < array.ndim(); ++k)
      bytes += static_cast<size_t>((array.shape(k) - 1) * array.strides(k));
    tables_.emplace_back(array.data(), bytes);
  }
  // Array of `shape` with the values. Throws if the kernels wrote past any memory of the call.
  template <class T>
  Array<T> result(const T* values, const Ints& shape) const {
    for (const Allocation& memory : memories_)
      if (!memory.intact())
        throw std::runtime_error("a kernel has written past memory of " + std::to_string(memory.size()) +
                                 " bytes");
    Array<T> array(shape);
    std::copy(values, values + array.size(), array.mutable_data());
    return array;
  }

 private:
  static void* allocate(void* memory, size_t bytes) { return static_cast<DeviceMemory*>(memory)->add(bytes); }
  unsigned char* add(size_t bytes) { return memories_.emplace_back(bytes, 256).data(); }
  const Device device_{current_device()};
  std::deque<Allocation> memories_;
  std::deque<Borrowed> tables_;
};

template <class T>
Ints shape_of(const Array<T>& x) {
  return Ints(x.shape(), x.shape() + x.ndim());
}

template <class T>
Shape sample_shape(const Array<T>& x) {
  require(x.ndim() == 4, "expected samples (B, C, H, W)");
  return {x.shape(1), x.shape(2), x.shape(3)};
}

Tile tile_of(const Ints& tile) {
  require(tile.size() == 2, "expected a tile (height, width)");
  return {tile[0], tile[1]};
}

std::vector<Mixing> domains_of(const Ints& mixing) {
  require(mixing.size() % 3 == 0, "expected mixing domains (height, width, repeats)");
  std::vector<Mixing> domains;
  for (size_t k = 0; k < mixing.size(); k += 3)
    domains.push_back({{mixing[k], mixing[k + 1]}, mixing[k + 2]});
  return domains;
}

template <class T>
Table<T> table_of(const py::array_t<T>& lower, const py::array_t<T>& upper) {
  require(lower.ndim() == 2 && upper.ndim() == 2, "expected tables (M, D)");
  for (int k = 0; k < 2; ++k)
    require(lower.shape(k) == upper.shape(k) && lower.strides(k) == upper.strides(k),
            "lower and upper must have the same shape and strides");
  bool monotone = true;
  for (const py::array_t<T>& entries : {lower, upper})
    for (py::ssize_t r = 1; r < entries.shape(0); ++r)
      for (py::ssize_t j = 0; j < entries.shape(1); ++j) monotone &= entries.at(r - 1, j) <= entries.at(r, j);
  const auto size = static_cast<py::ssize_t>(sizeof(T));
  return {lower.data(),
          upper.data(),
          lower.shape(0),
          lower.shape(1),
          lower.strides(0) / size,
          lower.strides(1) / size,
          monotone};
}

// Cosines and sines (2, K).
template <class T>
Twiddles<T> twiddles_of(DeviceMemory& memory, const Array<T>& factors) {
  require(factors.ndim() == 2 && factors.shape(0) == 2, "expected factors (2, K)");
  const T* re = memory.copy(factors);
  return {re, re + factors.shape(1)};
}

// Rank ranges of a table, and its faults.
template <class T>
std::pair<RankRange*, TableFaults*> ranges_of(DeviceMemory& memory, const Table<T>& table) {
  auto* ranges = memory.make<RankRange>(table.chunk_size * num_buckets(table.num_chunks, table.chunk_size));
  auto* faults = memory.make<TableFaults>(1);
  rank_ranges(memory.launch(), table, ranges, faults);
  return {ranges, faults};
}

// A Projection and what it points to. The lists are those of _project_ in noisetilt_kernels/schemas.def.
template <class T>
class OwnedProjection {
 public:
  OwnedProjection(DeviceMemory& memory, Shape shape, const Tables<T>& tables, int64_t num_values,
                  const Ints& tiles) {
    for (const auto& [lower, upper] : tables) {
      memory.borrow(lower);
      memory.borrow(upper);
      tables_.push_back(table_of<T>(lower, upper));
      ranges_.push_back(ranges_of(memory, tables_.back()).first);
    }
    auto next = static_cast<size_t>(num_values);
    for (size_t k = 0; k < tiles.size();) {
      const Regions regions = tile_regions(shape, {tiles.at(k), tiles.at(k + 1)});
      k += 2;
      for (const Region& region : regions) {
        const int64_t num_tables = tiles.at(k++);
        pairs_.emplace_back();
        for (int64_t i = 0; i < num_tables; ++i, next += 2)
          pairs_.back().push_back({{tables_.at(next), tables_.at(next + 1)}});
        tiles_.push_back({region, nullptr, num_tables});
      }
    }
    require(next == tables_.size(), "the numbers of tables and tiles do not agree");
    for (size_t k = 0; k < tiles_.size(); ++k) tiles_[k].tables = &pairs_[k].data()->pair;
    projection_ = {shape, tables_.data(), num_values, tiles_.data(), static_cast<int64_t>(tiles_.size())};
  }
  const Projection<T>& get() const { return projection_; }
  const RankRange* const* ranges() const { return ranges_.data(); }

 private:
  struct MeanAndEnergy {
    Table<T> pair[2];
  };
  std::vector<Table<T>> tables_;
  std::vector<const RankRange*> ranges_;
  std::vector<std::vector<MeanAndEnergy>> pairs_;
  std::vector<TileProjection<T>> tiles_;
  Projection<T> projection_;
};

template <class T>
void bind(py::module_& m) {
  const auto x = py::arg("x").noconvert();
  const auto tables = py::arg("tables").noconvert(), factors = py::arg("factors").noconvert();

  m.def(
      "rank_ranges",
      [](const py::array_t<T>& lower, const py::array_t<T>& upper) {
        DeviceMemory memory;
        memory.borrow(lower);
        memory.borrow(upper);
        const Table<T> table = table_of<T>(lower, upper);
        const auto [ranges, faults] = ranges_of(memory, table);
        const int64_t buckets = num_buckets(table.num_chunks, table.chunk_size);
        return std::pair(memory.result(&ranges->first, {table.chunk_size, buckets, 2}),
                         memory.result(&faults->nan, {3}));
      },
      py::arg("lower").noconvert(), py::arg("upper").noconvert());
  m.def(
      "project",
      [](const Array<T>& x, const Tables<T>& tables, int64_t num_values, const Ints& tiles) {
        DeviceMemory memory;
        const OwnedProjection<T> projection(memory, sample_shape(x), tables, num_values, tiles);
        T* values = memory.copy(x);
        project(memory.launch(), values, x.shape(0), projection.get(), projection.ranges());
        return memory.result(values, shape_of(x));
      },
      x, tables, py::arg("num_values"), py::arg("tiles"));
  m.def(
      "project_mixing_domains",
      [](const Array<T>& x, const Tables<T>& tables, int64_t num_values, const Ints& tiles,
         const Ints& mixing) {
        DeviceMemory memory;
        const OwnedProjection<T> projection(memory, sample_shape(x), tables, num_values, tiles);
        const std::vector<Mixing> domains = domains_of(mixing);
        T* values = memory.copy(x);
        project_mixing_domains(memory.launch(), values, x.shape(0), projection.get(), projection.ranges(),
                               domains.data(), static_cast<int64_t>(domains.size()));
        return memory.result(values, shape_of(x));
      },
      x, tables, py::arg("num_values"), py::arg("tiles"), py::arg("mixing"));
  m.def(
      "stages_of_whiten",  // all but those around its FFTs, with the same memory
      [](const Array<T>& x, const Tables<T>& tables, int64_t num_values, const Ints& tiles,
         const Ints& mixing) {
        DeviceMemory memory;
        const OwnedProjection<T> projection(memory, sample_shape(x), tables, num_values, tiles);
        const std::vector<Mixing> domains = domains_of(mixing);
        const auto num_domains = static_cast<int64_t>(domains.size());
        T* values = memory.make<T>(x.size());
        const Launch launch = memory.launch();
        reserve_for_whiten(launch, x.shape(0), projection.get(), domains.data(), num_domains);
        finite_or_nan(launch, static_cast<const T*>(memory.copy(x)), values, x.shape(0),
                      sample_shape(x).size());
        project(launch, values, x.shape(0), projection.get(), projection.ranges());
        project(launch, values, x.shape(0), projection.get(), projection.ranges());
        project_mixing_domains(launch, values, x.shape(0), projection.get(), projection.ranges(),
                               domains.data(), num_domains);
        if (launch.cleared.bytes != 0) throw std::runtime_error("more memory was cleared than was used");
        return memory.result(values, shape_of(x));
      },
      x, tables, py::arg("num_values"), py::arg("tiles"), py::arg("mixing"));
  m.def(
      "finite_or_nan",
      [](const Array<T>& x) {
        DeviceMemory memory;
        T* out = memory.make<T>(x.size());
        finite_or_nan(memory.launch(), static_cast<const T*>(memory.copy(x)), out, x.shape(0),
                      sample_shape(x).size());
        return memory.result(out, shape_of(x));
      },
      x);

  m.def(
      "butterfly",
      [](const Array<T>& x, const Ints& tile, int64_t steps, bool inverse) {
        DeviceMemory memory;
        T* out = memory.make<T>(x.size());
        butterfly<T>(memory.launch(), memory.copy(x), out, x.shape(0), sample_shape(x), tile_of(tile), steps,
                     inverse);
        return memory.result(out, shape_of(x));
      },
      x, py::arg("tile"), py::arg("steps"), py::arg("inverse") = false);
  m.def(
      "hadamard_transform",
      [](const Array<T>& x, double scale) {
        require(x.ndim() == 2, "expected (B, N)");
        DeviceMemory memory;
        T* out = memory.make<T>(x.size());
        hadamard_transform<T>(memory.launch(), memory.copy(x), out, x.shape(0), x.shape(1), scale);
        return memory.result(out, shape_of(x));
      },
      x, py::arg("scale") = 1.0);
  // Calls transform(launch, x, out, batch, size, factors) on rows.
  const auto of_rows = [](const Array<T>& x, const Array<T>& factors, bool in_place, auto transform) {
    require(x.ndim() == 2, "expected (B, N)");
    DeviceMemory memory;
    T* values = memory.copy(x);
    T* out = in_place ? values : memory.make<T>(x.size());
    transform(memory.launch(), values, out, x.shape(0), x.shape(1), twiddles_of(memory, factors));
    return memory.result(out, shape_of(x));
  };
  m.def(
      "compact_fourier",
      [of_rows](const Array<T>& x, const Array<T>& factors, bool inverse, bool in_place) {
        return of_rows(x, factors, in_place,
                       [inverse](auto&&... arguments) { compact_fourier<T>(arguments..., inverse); });
      },
      x, factors, py::arg("inverse") = false, py::arg("in_place") = false);
  const auto bind_repacking = [&](const char* name, auto repack) {
    m.def(
        name,
        [of_rows, repack](const Array<T>& x, const Array<T>& factors) {
          return of_rows(x, factors, false, repack);
        },
        x, factors);
  };
  bind_repacking("compact_fourier_pack", &compact_fourier_pack<T>);
  bind_repacking("compact_fourier_unpack", &compact_fourier_unpack<T>);

  m.def(
      "project_wgnc_blocks",
      [](const Array<T>& y, int64_t block_size) {
        DeviceMemory memory;
        T* out = memory.make<T>(y.size());
        project_wgnc_blocks<T>(memory.launch(), memory.copy(y), out, y.size() / (2 * block_size), block_size);
        return memory.result(out, shape_of(y));
      },
      x, py::arg("block_size"));
  m.def(
      "wgnc_between_ffts",
      [](const Array<T>& spectrum, const Array<T>& factors, int64_t block_size) {
        require(spectrum.ndim() == 2, "expected (B, N)");
        DeviceMemory memory;
        T* values = memory.copy(spectrum);
        wgnc_between_ffts(memory.launch(), values, spectrum.shape(0), spectrum.shape(1),
                          twiddles_of(memory, factors), block_size);
        return memory.result(values, shape_of(spectrum));
      },
      x, factors, py::arg("block_size"));
  m.def(
      "project_wgnc",
      [of_rows](const Array<T>& x, const Array<T>& factors, int64_t block_size, bool in_place) {
        return of_rows(x, factors, in_place,
                       [block_size](auto&&... arguments) { project_wgnc<T>(arguments..., block_size); });
      },
      x, factors, py::arg("block_size"), py::arg("in_place") = false);
}

// S: Half or BFloat16, as uint16.
template <class S>
void bind_hadamard_transform(py::module_& m, const char* name) {
  m.def(
      name,
      [](const Array<uint16_t>& x, double scale) {
        require(x.ndim() == 2, "expected (B, N)");
        DeviceMemory memory;
        auto* out = memory.make<uint16_t>(x.size());
        hadamard_transform<S>(memory.launch(), reinterpret_cast<const S*>(memory.copy(x)),
                              reinterpret_cast<S*>(out), x.shape(0), x.shape(1), scale);
        return memory.result(out, shape_of(x));
      },
      py::arg("x").noconvert(), py::arg("scale") = 1.0);
}

}  // namespace
}  // namespace noisetilt::cuda

PYBIND11_MODULE(MODULE, m) {
  bind_device(m);
  m.def("num_buckets", &noisetilt::cuda::num_buckets);
  m.def("displace", [](int64_t num_values) { noisetilt::cuda::displacement = num_values; });
  noisetilt::cuda::bind<float>(m);
  noisetilt::cuda::bind<double>(m);
  noisetilt::cuda::bind_hadamard_transform<noisetilt::cuda::Half>(m, "hadamard_transform_float16");
  noisetilt::cuda::bind_hadamard_transform<noisetilt::cuda::BFloat16>(m, "hadamard_transform_bfloat16");
}
