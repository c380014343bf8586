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
#include "../../csrc/cuda/whitening_plan.h"

namespace noisetilt::cuda {

// plan_project for at most NOISETILT_MOST_BLOCKS multiprocessors.
template <class T>
ProjectPlan plan_limited(const Projection<T>& projection, int64_t batch, const Mixing* mixing,
                         int64_t num_mixing, DeviceLimits device, size_t fixed_shared_bytes) {
  if (const char* most = std::getenv("NOISETILT_MOST_BLOCKS"))
    device.num_sms = std::min<int64_t>(device.num_sms, std::atoi(most));
  return plan_project(projection, batch, mixing, num_mixing, device, fixed_shared_bytes);
}

}  // namespace noisetilt::cuda

#define plan_project plan_limited
#include "../../csrc/cuda/whitening.cu"
