// Device memory, and functions of Python modules. set_device(num_sms=3, seed=7) resets all other properties
// to their defaults.
#pragma once

#include <cuda_runtime.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

using Allocation = emulation::Memory;

// Memory of the host that kernels may read. Emulated ones may read everything.
struct Borrowed {
  Borrowed(const void*, size_t) {}
};

inline void bind_device(pybind11::module_& m) {
  namespace py = pybind11;
  const emulation::Device usual;
  m.def(
      "set_device",
      [](int num_sms, int threads_per_block, int threads_per_sm, int64_t shared_bytes_per_block,
         int64_t shared_bytes_per_sm, int compute_capability, int sms_per_gpc, int blocks_per_cluster,
         uint64_t seed) {
        emulation::Device device;
        device.num_sms = num_sms;
        device.threads_per_block = threads_per_block;
        device.threads_per_sm = threads_per_sm;
        device.shared_bytes_per_block = shared_bytes_per_block;
        device.shared_bytes_per_sm = shared_bytes_per_sm;
        device.compute_capability = compute_capability;
        device.sms_per_gpc = sms_per_gpc;
        device.blocks_per_cluster = blocks_per_cluster;
        device.seed = seed;
        emulation::device = device;
        emulation::allowed_shared_bytes.clear();
        emulation::non_portable.clear();
      },
      py::kw_only(), py::arg("num_sms") = usual.num_sms,
      py::arg("threads_per_block") = usual.threads_per_block,
      py::arg("threads_per_sm") = usual.threads_per_sm,
      py::arg("shared_bytes_per_block") = usual.shared_bytes_per_block,
      py::arg("shared_bytes_per_sm") = usual.shared_bytes_per_sm,
      py::arg("compute_capability") = usual.compute_capability, py::arg("sms_per_gpc") = usual.sms_per_gpc,
      py::arg("blocks_per_cluster") = usual.blocks_per_cluster, py::arg("seed") = usual.seed);
  m.def("take_launched", [] {  // names of the kernels launched since the last call
    std::vector<std::string> names;
    for (const void* kernel : std::exchange(emulation::launched, {}))
      names.push_back(emulation::kernel_name(kernel));
    return names;
  });
}
