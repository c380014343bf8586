// Python module `interpreter`: PTX text is loaded and launched on memory of this process, for Triton's
// kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "binding.h"
#include "machine.h"

namespace py = pybind11;
using namespace ptx;

namespace {

// The kernel of a PTX text that has just one.
std::unique_ptr<Kernel> load(const Module& module) {
  std::string name;
  for (const auto& [other, function] : module.functions)
    if (function.is_entry) {
      if (!name.empty()) throw Fault("the PTX has several kernels");
      name = other;
    }
  return assemble(module, name);
}

// A kernel, with the text that its instructions refer to.
struct Loaded {
  explicit Loaded(const std::string& text) : module(parse(text)), kernel(load(module)) {}
  Module module;
  std::unique_ptr<Kernel> kernel;
};

}  // namespace

PYBIND11_MODULE(interpreter, m) {
  py::register_local_exception<Fault>(m, "Fault", PyExc_RuntimeError);
  py::class_<Loaded>(m, "Kernel", py::module_local())
      .def(py::init<const std::string&>(), py::arg("ptx"))
      .def_property_readonly("name", [](const Loaded& loaded) { return loaded.kernel->name; })
      .def_property_readonly("num_parameters",
                             [](const Loaded& loaded) { return loaded.kernel->parameters.size(); });
  py::class_<Machine> machine(m, "Machine", py::module_local());
  machine.def(py::init<>())
      .def(
          "add_memory",
          [](Machine& self, uint64_t address, size_t size, bool writable) {
            self.memory.add(reinterpret_cast<const void*>(address), size, writable);
          },
          py::arg("address"), py::arg("size"), py::arg("writable") = true)
      .def(
          "remove_memory",
          [](Machine& self, uint64_t address) { self.memory.remove(reinterpret_cast<const void*>(address)); })
      .def(
          "run",
          [](Machine& self, const Loaded& loaded, uint32_t blocks, uint32_t threads, size_t shared_bytes,
             uint32_t residents, const std::vector<uint64_t>& arguments, uint32_t blocks_per_cluster) {
            const auto& parameters = loaded.kernel->parameters;
            if (arguments.size() != parameters.size()) throw Fault("the number of arguments does not fit");
            std::vector<unsigned char> bytes(loaded.kernel->parameter_bytes);
            for (size_t k = 0; k < parameters.size(); ++k)
              std::memcpy(bytes.data() + parameters[k].offset, &arguments[k], parameters[k].size);
            py::gil_scoped_release unlocked;
            self.run(*loaded.kernel, blocks, blocks_per_cluster, threads, shared_bytes, residents,
                     bytes.data());
          },
          py::arg("kernel"), py::arg("blocks"), py::arg("threads"), py::arg("shared_bytes"),
          py::arg("residents"), py::arg("arguments"), py::arg("blocks_per_cluster") = 1);
  bind_settings(machine);
}
