// Device memory and settings for the Python module of tests/cuda_emulation/module.cpp, when its kernels are
// executed from their PTX. CAPABILITY: the compute capability of the PTX, and of the device by default.
#pragma once

#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <memory>
#include <new>

#include "../binding.h"
#include "runtime.h"

// Memory of the device, filled with noise.
class Allocation {
 public:
  Allocation(size_t size, size_t alignment) : size_(size) {
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, size + alignment)) throw std::bad_alloc();
    memory_.reset(static_cast<unsigned char*>(memory));
    for (size_t k = 0; k + 8 <= size + alignment; k += 8) {
      const uint64_t noise = runtime::machine.random_bits();
      std::memcpy(data() + k, &noise, 8);
    }
    runtime::machine.memory.add(data(), size, true);
  }
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;
  ~Allocation() { runtime::machine.memory.remove(data()); }
  unsigned char* data() const { return memory_.get(); }
  size_t size() const { return size_; }
  bool intact() const { return true; }  // writes behind the end are faults

 private:
  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };
  std::unique_ptr<unsigned char, Free> memory_;
  size_t size_;
};

// Memory of the host that kernels may read.
class Borrowed {
 public:
  Borrowed(const void* memory, size_t size) : memory_(memory) {
    runtime::machine.memory.add(memory, size, false);
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  ~Borrowed() { runtime::machine.memory.remove(memory_); }

 private:
  const void* memory_;
};

inline void bind_device(pybind11::module_& m) {
  namespace py = pybind11;
  py::register_local_exception<ptx::Fault>(m, "Fault", PyExc_RuntimeError);
  py::class_<ptx::Machine> machine(m, "Machine", py::module_local());
  bind_settings(machine);
  runtime::device.compute_capability = CAPABILITY;
  m.attr("machine") = py::cast(&runtime::machine, py::return_value_policy::reference);
  m.def(
      "set_device",
      [](int num_sms, int threads_per_block, int64_t shared_bytes_per_block, int compute_capability,
         int sms_per_gpc, int blocks_per_cluster, uint64_t seed) {
        runtime::Device device;
        device.compute_capability = compute_capability;
        device.sms_per_gpc = sms_per_gpc;
        device.blocks_per_cluster = blocks_per_cluster;
        device.num_sms = num_sms;
        device.threads_per_block = threads_per_block;
        device.shared_bytes_per_block = shared_bytes_per_block;
        runtime::device = device;
        runtime::machine.seed = seed;
      },
      py::kw_only(), py::arg("num_sms") = runtime::Device{}.num_sms,
      py::arg("threads_per_block") = runtime::Device{}.threads_per_block,
      py::arg("shared_bytes_per_block") = runtime::Device{}.shared_bytes_per_block,
      py::arg("compute_capability") = CAPABILITY, py::arg("sms_per_gpc") = runtime::Device{}.sms_per_gpc,
      py::arg("blocks_per_cluster") = runtime::Device{}.blocks_per_cluster, py::arg("seed") = 0);
  m.def("edit_ptx", &runtime::edit_ptx, py::arg("edit"),
        "Replace the PTX of every source file by edit(PTX that nvcc made).");
}
