// The device behind the stand-in of the CUDA runtime.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "../machine.h"

namespace runtime {

// Properties of a device. Those of an H200 but for the number of multiprocessors.
struct Device {
  int num_sms = 4;
  int threads_per_block = 1024;
  int threads_per_sm = 2048;
  int blocks_per_sm = 32;
  int registers_per_sm = 65536;
  int compute_capability = 90;
  int sms_per_gpc = 16;  // the blocks of a cluster run on multiprocessors of one GPC
  int blocks_per_cluster = 16;
  int64_t shared_bytes_per_block = 227 << 10;
  int64_t shared_bytes_per_sm = 228 << 10;
  int64_t reserved_shared_bytes = 1 << 10;  // of every block, by the system
};
extern Device device;
extern ptx::Machine machine;

// Replaces the PTX of every source file by edit(PTX that nvcc made).
void edit_ptx(const std::function<std::string(const std::string&)>& edit);

}  // namespace runtime
