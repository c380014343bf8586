// Python module of the host plan of the projection kernel, and of its table of buffers. Compiled without the
// emulation: the headers included here are plain C++.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/whitening_plan.h"

namespace py = pybind11;

namespace noisetilt::cuda {
namespace {

using Ints = std::vector<int64_t>;

// Table of a size, without entries: the plan does not read them.
template <class T>
Table<T> table_of(int64_t size, int64_t chunk_size) {
  return {nullptr, nullptr, size / chunk_size, chunk_size, chunk_size, 1, true};
}

template <class T>
struct MeanAndEnergy {
  Table<T> pair[2];
};

template <class T>
py::dict plan(const Ints& shape, const Ints& chunk_sizes, const std::vector<Ints>& tile_sizes,
              const Ints& tile_chunk_sizes, const std::vector<Ints>& mixing, int64_t batch, int64_t num_sms,
              int64_t max_block_threads, int64_t max_shared_bytes, int64_t max_cluster_blocks,
              size_t fixed_shared_bytes) {
  const Shape sample{shape.at(0), shape.at(1), shape.at(2)};
  std::vector<Table<T>> values;
  for (const int64_t chunk_size : chunk_sizes) values.push_back(table_of<T>(sample.size(), chunk_size));
  std::vector<std::vector<MeanAndEnergy<T>>> tables;
  for (const Ints& tile : tile_sizes) {
    tables.emplace_back();
    for (const int64_t chunk_size : tile_chunk_sizes) {
      const Table<T> table = table_of<T>(sample.size() / (tile.at(0) * tile.at(1)), chunk_size);
      tables.back().push_back({{table, table}});
    }
  }
  std::vector<TileProjection<T>> tiles;
  for (size_t k = 0; k < tile_sizes.size(); ++k)
    tiles.push_back({{0, 0, sample.height, sample.width, {tile_sizes[k][0], tile_sizes[k][1]}},
                     tables[k].empty() ? nullptr : &tables[k].data()->pair,
                     static_cast<int64_t>(tables[k].size())});
  std::vector<Mixing> domains;
  for (const Ints& domain : mixing) domains.push_back({{domain.at(0), domain.at(1)}, domain.at(2)});
  const Projection<T> projection{sample, values.data(), static_cast<int64_t>(values.size()), tiles.data(),
                                 static_cast<int64_t>(tiles.size())};
  const ProjectPlan plan =
      plan_project(projection, batch, domains.data(), static_cast<int64_t>(domains.size()),
                   {num_sms, max_block_threads, max_shared_bytes, max_cluster_blocks}, fixed_shared_bytes);

  py::dict result;
  result["slice_size"] = plan.slice_size;
  result["blocks_per_team"] = plan.blocks_per_team;
  result["num_teams"] = plan.num_teams;
  result["clusters"] = plan.clusters;
  result["slices_shared"] = plan.slices_shared;
  result["chunks_inside_blocks"] = plan.chunks_inside_blocks;
  result["block_threads"] = plan.block_threads;
  result["shared_bytes"] = plan.shared_bytes;
  result["bytes"] = std::vector<size_t>(plan.layout.bytes, plan.layout.bytes + kNumContents);
  result["offsets"] = std::vector<size_t>(plan.layout.offsets, plan.layout.offsets + kNumCopies);
  py::list steps, first_counters, first_columns, planned_tiles, inside_blocks;
  for (int32_t k = 0; k < plan.num_tables; ++k) {
    steps.append(plan.tables[k].step);
    first_counters.append(plan.tables[k].first_counter);
    first_columns.append(plan.tables[k].first_column);
  }
  for (int32_t k = 0; k < plan.num_tiles; ++k) {
    const TilePlan& tile = plan.tiles[k];
    planned_tiles.append(py::make_tuple(tile.first_tile, tile.num_chunk_sizes, tile.first_table,
                                        tile.first_step, tile.counted));
  }
  for (int32_t k = 0; k < plan.num_mixing; ++k) inside_blocks.append(plan.mixing[k].inside_blocks);
  result["steps"] = steps;
  result["first_counters"] = first_counters;
  result["first_columns"] = first_columns;
  result["tiles"] = planned_tiles;
  result["mixing_inside_blocks"] = inside_blocks;
  return result;
}

// Rows of the table of buffers: name, copies, contents, writer, reader, barrier.
py::list buffers() {
  py::list rows;
  for (const BufferRow& row : kBuffers)
    rows.append(py::make_tuple(row.name, row.copies, static_cast<int>(row.contents), row.writer, row.reader,
                               row.barrier));
  return rows;
}

template <class T>
void bind(py::module_& m, const char* name) {
  m.def(name, &plan<T>, py::kw_only(), py::arg("shape"), py::arg("chunk_sizes") = Ints{},
        py::arg("tile_sizes") = std::vector<Ints>{}, py::arg("tile_chunk_sizes") = Ints{},
        py::arg("mixing") = std::vector<Ints>{}, py::arg("batch") = 1, py::arg("num_sms") = 132,
        py::arg("max_block_threads") = 1024, py::arg("max_shared_bytes") = 227 << 10,
        py::arg("max_cluster_blocks") = 0, py::arg("fixed_shared_bytes") = 40'960);
}

}  // namespace
}  // namespace noisetilt::cuda

PYBIND11_MODULE(MODULE, m) {
  noisetilt::cuda::bind<float>(m, "plan_float32");
  noisetilt::cuda::bind<double>(m, "plan_float64");
  m.def("buffers", &noisetilt::cuda::buffers);
  m.def("num_buckets", &noisetilt::cuda::num_buckets);
  m.def("is_tiny", &noisetilt::cuda::is_tiny);
  m.def("quotient",
        [](int32_t n, int32_t divisor) { return noisetilt::cuda::FastDivisor::of(divisor).quotient(n); });
  m.attr("max_tables") = noisetilt::cuda::kMaxTables;
  m.attr("max_steps") = noisetilt::cuda::kMaxSteps;
}
