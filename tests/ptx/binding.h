// Settings and counts of a Machine, for Python modules.
#pragma once

#include <pybind11/pybind11.h>

#include <cstring>

#include "machine.h"

inline pybind11::dict dict_of(const ptx::Launch& launch) {
  const ptx::Counters& c = launch.counters;
  pybind11::dict result;
  result["kernel"] = launch.kernel;
  result["blocks"] = launch.blocks;
  result["blocks_per_cluster"] = launch.blocks_per_cluster;
  result["threads"] = launch.threads;
  result["shared_bytes"] = launch.shared_bytes;
  result["local_bytes"] = launch.local_bytes;
  result["instructions"] = launch.instructions;
  const std::pair<const char*, uint64_t> counts[] = {
      {"warp_instructions", c.warp_instructions},
      {"thread_instructions", c.thread_instructions},
      {"block_barriers", c.block_barriers},
      {"releases", c.releases},
      {"global_requests", c.global_requests},
      {"global_sectors", c.global_sectors},
      {"ideal_sectors", c.ideal_sectors},
      {"bytes_read", c.bytes_read},
      {"bytes_written", c.bytes_written},
      {"shared_requests", c.shared_requests},
      {"shared_wavefronts", c.shared_wavefronts},
      {"ideal_wavefronts", c.ideal_wavefronts},
      {"local_requests", c.local_requests},
      {"global_atomics", c.global_atomics},
      {"shared_atomics", c.shared_atomics},
      {"cluster_barriers", c.cluster_barriers},
      {"cluster_requests", c.cluster_requests},
      {"cluster_atomics", c.cluster_atomics},
      {"most_atomics_on_one_address", c.most_atomics_on_one_address},
  };
  for (const auto& [name, count] : counts) result[name] = count;
  return result;
}

template <class Class>
void bind_settings(Class& machine) {
  machine.def_readwrite("seed", &ptx::Machine::seed)
      .def_readwrite("stale", &ptx::Machine::stale)
      .def_readwrite("check_races", &ptx::Machine::check_races)
      .def_readwrite("counting", &ptx::Machine::counting)
      .def("take_launches", [](ptx::Machine& self) {
        pybind11::list result;
        for (const ptx::Launch& launch : self.launches) result.append(dict_of(launch));
        self.launches.clear();
        return result;
      });
}
