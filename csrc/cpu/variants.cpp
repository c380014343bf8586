// Chooses the instruction-set variant once, for the processor at hand.

#include "kernels.h"

namespace noisetilt {

#define NOISETILT_DECLARE_VARIANT(name) \
  namespace name {                      \
  template <class T>                    \
  const Kernels<T>& table();            \
  }

NOISETILT_DECLARE_VARIANT(baseline)
#ifdef NOISETILT_HAS_X86_64_V3
NOISETILT_DECLARE_VARIANT(x86_64_v3)

#endif

static bool runs_x86_64_v3() {
#ifdef NOISETILT_HAS_X86_64_V3
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
#else
  return false;
#endif
}

template <class T>
const Kernels<T>& kernels() {
#ifdef NOISETILT_HAS_X86_64_V3
  static const Kernels<T>& best = runs_x86_64_v3() ? x86_64_v3::table<T>() : baseline::table<T>();
  return best;
#else
  return baseline::table<T>();
#endif
}

const char* variant_name() { return runs_x86_64_v3() ? "x86-64-v3" : "baseline"; }

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace noisetilt
