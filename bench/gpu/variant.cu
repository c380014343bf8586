// The projection kernel (csrc/cuda/whitening.cu) with other tuning constants, for measurements and for
// compute-sanitizer. `python -m bench.gpu.prepare` links it into the CUDA library in place of whitening.cu.
//
// NOISETILT_VARIANT_THREADS   threads of a block
// NOISETILT_VARIANT_BLOCKS    if defined: samples are divided between as many blocks as the environment
//                             variable NOISETILT_MOST_BLOCKS allows, which is read at every launch

#include "../../csrc/cuda/policy.h"

namespace noisetilt::cuda {

struct VariantPolicy : PolicySm80 {
  struct Project : PolicySm80::Project {
    static constexpr int kBlockThreads = NOISETILT_VARIANT_THREADS;
#ifdef NOISETILT_VARIANT_BLOCKS
    static constexpr int64_t kMinBlocksGained = 1;
#endif
  };
};

}  // namespace noisetilt::cuda

#define Policy VariantPolicy
#include "../../csrc/cuda/runtime.h"

#ifdef NOISETILT_VARIANT_BLOCKS
#include <algorithm>
#include <cstdlib>

namespace noisetilt::cuda {

// Like device_attribute, but with at most NOISETILT_MOST_BLOCKS multiprocessors.
inline int limited_attribute(cudaDeviceAttr attribute) {
  const int value = device_attribute(attribute);
  const char* most = std::getenv("NOISETILT_MOST_BLOCKS");
  return attribute == cudaDevAttrMultiProcessorCount && most ? std::min(value, std::atoi(most)) : value;
}

}  // namespace noisetilt::cuda

#define device_attribute limited_attribute
#endif

#include "../../csrc/cuda/whitening.cu"
