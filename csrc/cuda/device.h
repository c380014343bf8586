// The device of a launch: its limits, and the kernels that are ready for it. Plain C++.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <utility>

namespace noisetilt::cuda {

// Properties of a device that launches and their plans depend on.
struct DeviceLimits {
  int64_t num_sms;
  int64_t max_block_threads;
  int64_t max_shared_bytes;  // of a block
  // Blocks of a cluster. 0: teams of blocks are no clusters.
  int64_t max_cluster_blocks = 0;
};

// One object serves all launches on a device, so that none of them asks the CUDA runtime for what another one
// knows.
class Device {
 public:
  explicit Device(const DeviceLimits& limits) : limits(limits) {}
  const DeviceLimits limits;

  // Result of prepare() for the kernel and the number of blocks of its clusters, or of the first call for
  // them that has succeeded. Two host threads may call prepare() at once.
  template <class Prepare>
  int64_t prepare_once(const void* kernel, int64_t cluster_blocks, const Prepare& prepare) const {
    const std::pair<const void*, int64_t> key{kernel, cluster_blocks};
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (const auto found = ready_.find(key); found != ready_.end()) return found->second;
    }
    const int64_t result = prepare();
    const std::lock_guard<std::mutex> lock(mutex_);
    return ready_[key] = result;
  }

 private:
  mutable std::mutex mutex_;
  mutable std::map<std::pair<const void*, int64_t>, int64_t> ready_;
};

}  // namespace noisetilt::cuda
