// The operator library: schemas, and the CPU kernels behind them, on PyTorch's stable ABI.
//
// What arrives here has been checked by noisetilt_kernels/ops.py; the checks that remain guard memory.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace noisetilt {

void parallel_ranges(int64_t count, int64_t grain, RangeFunction body, void* context) {
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(std::string("noisetilt: ") + what);
}

template <class T>
T* data(const Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

// Calls body with a float or a double, whichever x holds.
template <class Body>
void for_dtype(const Tensor& x, const Body& body) {
  require(x.is_contiguous(), "a kernel needs contiguous samples");
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::Double:
      return body(double{});
    default:
      require(false, "a kernel takes float32 or float64");
  }
}

Shape shape_of(const Tensor& x) {
  require(x.dim() == 4, "expected samples (B, C, H, W)");
  return {x.size(1), x.size(2), x.size(3)};
}

template <class T>
Table<T> table_of(const Tensor& lower, const Tensor& upper, const Tensor& x, bool monotone) {
  require(lower.dim() == 2 && upper.dim() == 2 && lower.size(0) == upper.size(0) && lower.size(1) == upper.size(1) &&
              lower.stride(0) == upper.stride(0) && lower.stride(1) == upper.stride(1),
          "the two tables must agree in shape and strides");
  require(lower.scalar_type() == x.scalar_type() && upper.scalar_type() == x.scalar_type(), "tables of another dtype");
  return {data<T>(lower), data<T>(upper), lower.size(0), lower.size(1), lower.stride(0), lower.stride(1), monotone};
}

void project_2os_(const Tensor& x, const Tensor& lower, const Tensor& upper) {
  for_dtype(x, [&](auto type) {
    using T = decltype(type);
    Table<T> table = table_of<T>(lower, upper, x, false);
    require(x.dim() == 2 && x.size(1) == table.num_chunks * table.chunk_size, "tables for another size");
    switch (kernels<T>().check_table(table)) {
      case TableFault::nan:
        throw std::invalid_argument("project_2os: lower and upper must not contain NaN");
      case TableFault::crossed:
        throw std::invalid_argument("project_2os: lower must not exceed upper anywhere");
      case TableFault::none:
        break;
    }
    kernels<T>().project_2os(data<T>(x), x.size(0), table);
  });
}

Tensor finite_or_nan(const Tensor& x) {
  Tensor out = torch::stable::empty_like(x);
  for_dtype(x, [&](auto type) {
    using T = decltype(type);
    const Shape shape = shape_of(x);
    kernels<T>().finite_or_nan(data<T>(x), data<T>(out), x.size(0), shape.size());
  });
  return out;
}

// A Projection and the arrays that it points to. `tables` lists lower and upper of each table: those of the
// values, then for each tile those of means and energies, alternating. `tiles` holds (height, width, number of
// chunk sizes) of each tile.
template <class T>
class OwnedProjection {
 public:
  OwnedProjection(const Tensor& x, const std::vector<Tensor>& tables, const Ints& monotone, int64_t num_values,
                  const Ints& tiles) {
    require(tables.size() == 2 * monotone.size() && tiles.size() % 3 == 0, "malformed projection");
    const Shape shape = shape_of(x);
    for (size_t k = 0; k < monotone.size(); ++k)
      tables_.push_back(table_of<T>(tables[2 * k], tables[2 * k + 1], x, monotone[k] != 0));
    size_t used = static_cast<size_t>(num_values);
    for (size_t k = 0; k < tiles.size(); k += 3) used += 2 * static_cast<size_t>(tiles[k + 2]);
    require(used == tables_.size(), "malformed projection");

    for (int64_t k = 0; k < num_values; ++k) require_size(tables_[k], shape.size());
    size_t next = static_cast<size_t>(num_values);
    for (size_t k = 0; k < tiles.size(); k += 3) {
      const Tile tile{tiles[k], tiles[k + 1]};
      require_divides(tile, shape);
      pairs_.emplace_back();
      for (int64_t i = 0; i < tiles[k + 2]; ++i, next += 2) {
        require_size(tables_[next], shape.size() / tile.size());
        require_size(tables_[next + 1], shape.size() / tile.size());
        pairs_.back().push_back({{tables_[next], tables_[next + 1]}});
      }
      tiles_.push_back({tile, nullptr, tiles[k + 2]});
    }
    for (size_t k = 0; k < tiles_.size(); ++k) tiles_[k].tables = &pairs_[k].data()->pair;
    projection_ = {shape, tables_.data(), num_values, tiles_.data(), static_cast<int64_t>(tiles_.size())};
  }
  const Projection<T>& get() const { return projection_; }

  static void require_divides(Tile tile, Shape shape) {
    require(tile.height > 0 && tile.width > 0 && shape.height % tile.height == 0 && shape.width % tile.width == 0,
            "a tile that does not divide the sample");
  }

 private:
  struct MeanAndEnergy {
    Table<T> pair[2];
  };
  static void require_size(const Table<T>& table, int64_t size) {
    require(table.num_chunks * table.chunk_size == size, "tables for another size");
  }
  std::vector<Table<T>> tables_;
  std::vector<std::vector<MeanAndEnergy>> pairs_;
  std::vector<TileProjection<T>> tiles_;
  Projection<T> projection_;
};

void project_(const Tensor& x, const std::vector<Tensor>& tables, const Ints& monotone, int64_t num_values,
              const Ints& tiles) {
  for_dtype(x, [&](auto type) {
    using T = decltype(type);
    const OwnedProjection<T> projection(x, tables, monotone, num_values, tiles);
    kernels<T>().project(data<T>(x), x.size(0), projection.get());
  });
}

void mix_(const Tensor& x, const std::vector<Tensor>& tables, const Ints& monotone, int64_t num_values,
          const Ints& tiles, const Ints& mixing) {
  for_dtype(x, [&](auto type) {
    using T = decltype(type);
    const OwnedProjection<T> projection(x, tables, monotone, num_values, tiles);
    require(mixing.size() % 3 == 0, "malformed mixing");
    std::vector<Mixing> domains;
    for (size_t k = 0; k < mixing.size(); k += 3) {
      domains.push_back({{mixing[k], mixing[k + 1]}, mixing[k + 2]});
      OwnedProjection<T>::require_divides(domains.back().tile, projection.get().shape);
    }
    kernels<T>().mix(data<T>(x), x.size(0), projection.get(), domains.data(), static_cast<int64_t>(domains.size()));
  });
}

void butterfly_(const Tensor& x, const Ints& tile, int64_t steps, bool inverse) {
  for_dtype(x, [&](auto type) {
    using T = decltype(type);
    require(tile.size() == 2, "a tile is (height, width)");
    const Tile t{tile[0], tile[1]};
    OwnedProjection<T>::require_divides(t, shape_of(x));
    kernels<T>().butterfly(data<T>(x), x.size(0), shape_of(x), t, steps, inverse);
  });
}

void hadamard_transform_(const Tensor& x, double scale) {
  for_dtype(x, [&](auto type) {
    using T = decltype(type);
    require(x.dim() == 2 && (x.size(1) & (x.size(1) - 1)) == 0 && x.size(1) > 0, "a power of two is needed");
    kernels<T>().hadamard_transform(data<T>(x), x.size(0), x.size(1), static_cast<T>(scale));
  });
}

Tensor compact_fourier_pack(const Tensor& spectrum) {
  Tensor out = torch::stable::empty_like(spectrum);
  for_dtype(spectrum, [&](auto type) {
    using T = decltype(type);
    require(spectrum.dim() == 2 && spectrum.size(1) % 2 == 0, "expected (B, N), N even");
    kernels<T>().compact_fourier_pack(data<T>(spectrum), data<T>(out), spectrum.size(0), spectrum.size(1));
  });
  return out;
}

Tensor compact_fourier_unpack(const Tensor& z) {
  Tensor out = torch::stable::empty_like(z);
  for_dtype(z, [&](auto type) {
    using T = decltype(type);
    require(z.dim() == 2 && z.size(1) % 2 == 0, "expected (B, N), N even");
    kernels<T>().compact_fourier_unpack(data<T>(z), data<T>(out), z.size(0), z.size(1));
  });
  return out;
}

void project_wgnc_blocks_(const Tensor& y, int64_t block_size) {
  for_dtype(y, [&](auto type) {
    using T = decltype(type);
    require(block_size >= 2 && y.numel() % (2 * block_size) == 0, "a block size that does not divide");
    kernels<T>().project_wgnc_blocks(data<T>(y), y.numel() / (2 * block_size), block_size);
  });
}

void wgnc_between_ffts_(const Tensor& spectrum, int64_t block_size) {
  for_dtype(spectrum, [&](auto type) {
    using T = decltype(type);
    require(spectrum.dim() == 2 && block_size >= 2 && spectrum.size(1) % (2 * block_size) == 0,
            "a block size that does not divide");
    kernels<T>().wgnc_between_ffts(data<T>(spectrum), spectrum.size(0), spectrum.size(1), block_size);
  });
}

// Lines "key: value".
std::string build_info() {
#ifdef __clang__
  const char* compiler = __VERSION__;
#else
  const char* compiler = "g++ " __VERSION__;
#endif
  return std::string("compiler: ") + compiler + "\nflags: " + NOISETILT_BUILD_FLAGS +
         "\nvariants: " + NOISETILT_BUILD_VARIANTS + "\nvariant: " + variant_name(num_variants() - 1) +
         "\ntorch_target: 2.11";
}

}  // namespace
}  // namespace noisetilt

STABLE_TORCH_LIBRARY(noisetilt, m) {
#define SCHEMA(text) m.def(text);
#include "../noisetilt_kernels/schemas.def"
#undef SCHEMA
}

STABLE_TORCH_LIBRARY_IMPL(noisetilt, CPU, m) {
  m.impl("_project_2os_", TORCH_BOX(&noisetilt::project_2os_));
  m.impl("_finite_or_nan", TORCH_BOX(&noisetilt::finite_or_nan));
  m.impl("_project_", TORCH_BOX(&noisetilt::project_));
  m.impl("_mix_", TORCH_BOX(&noisetilt::mix_));
  m.impl("_butterfly_", TORCH_BOX(&noisetilt::butterfly_));
  m.impl("_hadamard_transform_", TORCH_BOX(&noisetilt::hadamard_transform_));
  m.impl("_compact_fourier_pack", TORCH_BOX(&noisetilt::compact_fourier_pack));
  m.impl("_compact_fourier_unpack", TORCH_BOX(&noisetilt::compact_fourier_unpack));
  m.impl("_project_wgnc_blocks_", TORCH_BOX(&noisetilt::project_wgnc_blocks_));
  m.impl("_wgnc_between_ffts_", TORCH_BOX(&noisetilt::wgnc_between_ffts_));
}

STABLE_TORCH_LIBRARY_IMPL(noisetilt, CompositeExplicitAutograd, m) {
  m.impl("_build_info", TORCH_BOX(&noisetilt::build_info));
}
