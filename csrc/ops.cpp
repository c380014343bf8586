// The operator library _C: all schemas, and the operators for the CPU, on PyTorch's stable ABI.

#include <algorithm>
#include <cstring>
#include <optional>

#include "binding.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "half_length_fft.h"
#include "openmp.h"

namespace noisetilt {

int num_threads() {
  return threads_before > 0 ? threads_before : static_cast<int>(torch::stable::get_num_threads());
}

namespace {

struct Cpu {
  template <class T>
  using Owned = OwnedProjection<T, 2>;
  static constexpr int64_t most_values = int64_t(1) << 31;  // a place in a chunk has 31 bits

  template <class Body>
  static void run(const Tensor& x, const Body& body) {
    require_contiguous(x);
    require_countable(x.numel() / std::max<int64_t>(x.size(0), 1), most_values);
    for_dtype(x, [&](auto type) { body(kernels<decltype(type)>(), type); });
  }
  template <class Body>
  static void run_on_stored(const Tensor& x, const Body& body) {
    run(x, body);
  }

  template <class T>
  static Tensor half_length_fft(const Tensor& x, bool inverse) {
    Tensor out = torch::stable::empty_like(x);
    const int64_t h = half_size_of(x);
    auto transform = [&](int64_t b) {
      fft_of_sample(data<const ComplexValue<T>>(x) + b * h, data<ComplexValue<T>>(out) + b * h, h, inverse);
    };
    if (h <= kMostOnOwnThread) {
      for_each_sample(x.size(0), transform);
    } else {
      for (int64_t b = 0; b < x.size(0); ++b) transform(b);
    }
    return out;
  }

  template <class... Arguments>
  static void reserve_for_whiten(const Arguments&...) {}  // the kernels have memory of their own
};

// Copies with the threads that will work on the parts: their caches then hold the copy.
Tensor copy(const Tensor& x) {
  require_contiguous(x);
  Tensor out = torch::stable::empty_like(x);
  auto *from = data<char>(x), *to = data<char>(out);
  const int64_t bytes = x.numel() * static_cast<int64_t>(x.element_size());
  parallel_for(bytes, 1 << 15, [&](int64_t begin, int64_t end) {
    std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin));
  });
  return out;
}

void project_2os_(const Tensor& x, const Tensor& lower, const Tensor& upper, const std::optional<Tensor>&) {
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
  m.impl("_copy", TORCH_BOX(&noisetilt::copy));
}

STABLE_TORCH_LIBRARY_IMPL(noisetilt, CompositeExplicitAutograd, m) {
  m.impl("_build_info", TORCH_BOX(&noisetilt::build_info));
  m.impl("_leave_openmp", TORCH_BOX(&noisetilt::leave_openmp));
  m.impl("_return_to_openmp", TORCH_BOX(&noisetilt::return_to_openmp));
}
