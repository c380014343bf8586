// The device of a launch: its limits, and the kernels that are ready for it. Plain C++.
#pragma once

#include <cstdint>
#include <mutex>
#include <set>

namespace noisetilt::cuda {

// Properties of a device that launches and their plans depend on.
struct DeviceLimits {
  int64_t num_sms;
  int64_t max_block_threads;
  int64_t max_shared_bytes;  // of a block
};

// One object serves all launches on a device, so that none of them asks the CUDA runtime for what another one
// knows.
class Device {
 public:
  explicit Device(const DeviceLimits& limits) : limits(limits) {}
  const DeviceLimits limits;

  // Calls prepare() unless an earlier call for this kernel has succeeded. Two host threads may do so at once.
  template <class Prepare>
  void prepare_once(const void* kernel, const Prepare& prepare) const {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (ready_.count(kernel)) return;
    }
    prepare();
    const std::lock_guard<std::mutex> lock(mutex_);
    ready_.insert(kernel);
  }

 private:
  mutable std::mutex mutex_;
  mutable std::set<const void*> ready_;
};

}  // namespace noisetilt::cuda
