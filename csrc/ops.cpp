// The operator library _C: all schemas, and the operators for the CPU, on PyTorch's stable ABI.

#include "binding.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace noisetilt {

void parallel_ranges(int64_t count, int64_t grain, RangeFunction body, void* context) {
  torch::stable::parallel_for(0, count, grain,
                              [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

namespace {

struct Cpu {
  static constexpr size_t tensors_per_table = 2;

  template <class Body>
  static void run(const Tensor& x, const Body& body) {
    require_contiguous(x);
    for_dtype(x, [&](auto type) { body(kernels<decltype(type)>(), type); });
  }
};

void project_2os_(const Tensor& x, const Tensor& lower, const Tensor& upper) {
  Cpu::run(x, [&](const auto& kernels, auto type) {
    using T = decltype(type);
    Table<T> table = table_of<T>(lower, upper, x, false);
    require(x.dim() == 2 && x.size(1) == table.num_chunks * table.chunk_size,
            "lower and upper must have as many entries as a sample has values");
    switch (kernels.check_table(table)) {
      case TableFault::nan:
        throw std::invalid_argument("project_2os: lower and upper must not contain NaN");
      case TableFault::crossed:
        throw std::invalid_argument("project_2os: lower must not exceed upper anywhere");
      case TableFault::none:
        break;
    }
    kernels.project_2os(data<T>(x), x.size(0), table);
  });
}

// Lines "key: value", for library.build_info() in Python.
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
  noisetilt::Operators<noisetilt::Cpu>::implement(m);
  m.impl("_project_2os_", TORCH_BOX(&noisetilt::project_2os_));
}

STABLE_TORCH_LIBRARY_IMPL(noisetilt, CompositeExplicitAutograd, m) {
  m.impl("_build_info", TORCH_BOX(&noisetilt::build_info));
}
