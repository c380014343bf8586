// Choice of the instruction-set variant for the processor that runs the program.

#include "kernels.h"

namespace noisetilt {

#define NOISETILT_DECLARE_VARIANT(name)   \
  namespace name {                        \
  template <class T>                      \
  const Kernels<T>& kernels_of_variant(); \
  }

NOISETILT_DECLARE_VARIANT(baseline)

#ifdef NOISETILT_X86_64

NOISETILT_DECLARE_VARIANT(x86_64_v3)
NOISETILT_DECLARE_VARIANT(x86_64_v4)

int num_variants() {
  static const int count = [] {
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2")))
      return 1;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    return avx512 ? 3 : 2;
  }();
  return count;
}

template <class T>
const Kernels<T>& kernels(int variant) {
  switch (variant) {
    case 2:
      return x86_64_v4::kernels_of_variant<T>();
    case 1:
      return x86_64_v3::kernels_of_variant<T>();
    default:
      return baseline::kernels_of_variant<T>();
  }
}

const char* variant_name(int variant) {
  return variant == 2 ? "x86-64-v4" : variant == 1 ? "x86-64-v3" : "baseline";
}

#else

int num_variants() { return 1; }

template <class T>
const Kernels<T>& kernels(int) {
  return baseline::kernels_of_variant<T>();
}

const char* variant_name(int) { return "baseline"; }

#endif

template const Kernels<float>& kernels<float>(int);
template const Kernels<double>& kernels<double>(int);

}  // namespace noisetilt
