// The projection kernel (csrc/cuda/whitening.cu) with as many blocks as the environment variable
// NOISETILT_MOST_BLOCKS allows, which is read at every launch. `python -m bench.gpu.prepare` links this file
// into the CUDA library in place of whitening.cu, for measurements.

#include <algorithm>
#include <cstdlib>

#include "../../csrc/cuda/policy.h"

namespace noisetilt::cuda {

// Divides samples between as many blocks as there are, even if that divides tiles of the mixing domains.
struct AnyBlocksPolicy : PolicySm80 {
  struct Project : PolicySm80::Project {
    static constexpr int64_t kMinBlocksGained = 1;
  };
};

}  // namespace noisetilt::cuda

#define Policy AnyBlocksPolicy
#include "../../csrc/cuda/runtime.h"

namespace noisetilt::cuda {

// Like device_attribute, but with at most NOISETILT_MOST_BLOCKS multiprocessors.
inline int limited_attribute(cudaDeviceAttr attribute) {
  const int value = device_attribute(attribute);
  const char* most = std::getenv("NOISETILT_MOST_BLOCKS");
  return attribute == cudaDevAttrMultiProcessorCount && most ? std::min(value, std::atoi(most)) : value;
}

}  // namespace noisetilt::cuda

#define device_attribute limited_attribute
#include "../../csrc/cuda/whitening.cu"
