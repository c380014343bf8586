// A stand-in of the CUDA runtime: the functions that host code compiled by nvcc calls. Kernels are taken from
// the PTX that nvcc has put into the object files, and are executed at once.
#include "runtime.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

namespace runtime {

Device device;
ptx::Machine machine;

namespace {

// The code of one source file.
struct Binary {
  std::string original, text;  // text: as it is executed
  std::optional<ptx::Module> module;
  std::map<std::string, std::unique_ptr<ptx::Kernel>> kernels;
};

struct Function {
  Binary* binary;
  std::string name;
  int64_t allowed_shared_bytes = 48 << 10;
  bool non_portable_cluster = false;  // a cluster may have more than 8 blocks
};

std::vector<std::unique_ptr<Binary>>& binaries() {
  static std::vector<std::unique_ptr<Binary>> all;
  return all;
}
std::map<const void*, Function>& functions() {
  static std::map<const void*, Function> all;
  return all;
}
cudaError_t last_error = cudaSuccess;

cudaError_t status(cudaError_t error) { return error ? last_error = error : error; }

const ptx::Kernel& kernel_of(const Function& function) {
  Binary& binary = *function.binary;
  if (!binary.module) binary.module = ptx::parse(binary.text);
  auto& kernel = binary.kernels[function.name];
  if (!kernel) kernel = ptx::assemble(*binary.module, function.name);
  return *kernel;
}

// As many blocks as fit, if a thread uses as many registers as the launch bounds of the kernel allow.
int64_t blocks_per_sm(const Function& function, int64_t threads, int64_t shared_bytes) {
  const ptx::Kernel& kernel = kernel_of(function);
  const auto static_bytes = static_cast<int64_t>(kernel.static_shared_bytes);
  if (threads <= 0 || threads > std::min<int64_t>(kernel.max_threads, device.threads_per_block) ||
      shared_bytes < 0 ||
      shared_bytes > std::min(function.allowed_shared_bytes, device.shared_bytes_per_block - static_bytes))
    return 0;
  const int64_t padded = (threads + 31) / 32 * 32;
  const int64_t registers =
      std::min<int64_t>(255, device.registers_per_sm / (kernel.max_threads * kernel.min_blocks));
  return std::min(
      {static_cast<int64_t>(device.blocks_per_sm), device.threads_per_sm / padded,
       device.registers_per_sm / (registers * padded),
       device.shared_bytes_per_sm / (static_bytes + shared_bytes + device.reserved_shared_bytes)});
}

// Blocks of a cluster, by the attributes of a launch; 0 if it has several dimensions, unknown here.
uint32_t cluster_of(const cudaLaunchConfig_t& config) {
  uint32_t blocks = 1;
  for (unsigned k = 0; k < config.numAttrs; ++k)
    if (config.attrs[k].id == cudaLaunchAttributeClusterDimension) {
      const auto& cluster = config.attrs[k].val.clusterDim;
      blocks = cluster.y == 1 && cluster.z == 1 ? cluster.x : 0;
    }
  return blocks;
}

// Sets the number of clusters that the device can hold at once; 0 if a block exceeds it. A block alone is a
// cluster, too.
cudaError_t active_clusters(int64_t* count, const Function& function, const cudaLaunchConfig_t& config) {
  const int64_t size = cluster_of(config);
  *count = 0;
  if (size > 1 && device.compute_capability < 90) return cudaErrorNotSupported;
  if (size == 0 || size > (function.non_portable_cluster ? device.blocks_per_cluster : 8))
    return cudaErrorInvalidClusterSize;
  const int64_t blocks =
      blocks_per_sm(function, config.blockDim.x, static_cast<int64_t>(config.dynamicSmemBytes));
  for (int64_t rest = device.num_sms; rest > 0; rest -= device.sms_per_gpc)
    *count += std::min<int64_t>(rest, device.sms_per_gpc) * blocks / size;
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* stub, void** arguments) {
  const auto found = functions().find(stub);
  if (found == functions().end()) return cudaErrorInvalidDeviceFunction;
  const Function& function = found->second;
  const dim3 blocks = config.gridDim, threads = config.blockDim;
  if (blocks.x == 0 || blocks.x > 0x7fffffff || threads.x == 0 ||
      blocks.y * blocks.z * threads.y * threads.z != 1)
    return cudaErrorInvalidConfiguration;
  if (blocks_per_sm(function, threads.x, static_cast<int64_t>(config.dynamicSmemBytes)) == 0)
    return cudaErrorInvalidValue;
  int64_t at_once = 0;
  if (const cudaError_t error = active_clusters(&at_once, function, config)) return error;
  const uint32_t cluster = cluster_of(config);
  if (blocks.x % cluster || at_once == 0) return cudaErrorInvalidClusterSize;
  // Clusters of an ordinary launch must not wait for each other: only a few are resident at a time.
  uint32_t residents = cluster * (1 + static_cast<uint32_t>(machine.random_bits() % 4));
  for (unsigned k = 0; k < config.numAttrs; ++k) {
    const cudaLaunchAttribute& attribute = config.attrs[k];
    if (attribute.id == cudaLaunchAttributeClusterDimension) continue;
    if (attribute.id != cudaLaunchAttributeCooperative) return cudaErrorNotSupported;
    if (!attribute.val.cooperative) continue;
    if (blocks.x / cluster > at_once) return cudaErrorCooperativeLaunchTooLarge;
    residents = blocks.x;
  }
  const ptx::Kernel& kernel = kernel_of(function);
  std::vector<unsigned char> parameters(kernel.parameter_bytes);
  for (size_t k = 0; k < kernel.parameters.size(); ++k)
    std::memcpy(parameters.data() + kernel.parameters[k].offset, arguments[k], kernel.parameters[k].size);
  machine.run(kernel, blocks.x, cluster, threads.x, config.dynamicSmemBytes, residents, parameters.data());
  return cudaSuccess;
}

}  // namespace

void edit_ptx(const std::function<std::string(const std::string&)>& edit) {
  for (auto& binary : binaries()) {
    binary->text = edit(binary->original);
    binary->kernels.clear();
    binary->module.reset();
  }
}

}  // namespace runtime

using namespace runtime;

extern "C" {

// ---- registration, called when the program starts ----

void** __cudaRegisterFatBinary(void* wrapper) {
  struct Wrapper {
    int magic, version;
    const char* data;
    void* rest;
  };
  // The header: magic number, version and size of the header, size of all that follows.
  const char* data = static_cast<Wrapper*>(wrapper)->data;
  uint64_t size;
  std::memcpy(&size, data + 8, sizeof size);
  const std::string bytes(data, size);
  const size_t begin = bytes.find(".version");
  auto binary = std::make_unique<Binary>();
  if (begin != std::string::npos) binary->original = bytes.substr(begin, bytes.find('\0', begin) - begin);
  binary->text = binary->original;
  binaries().push_back(std::move(binary));
  return reinterpret_cast<void**>(binaries().back().get());
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void** binary, const char* stub, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  functions()[stub] = {reinterpret_cast<Binary*>(binary), name};
}

// ---- launches by <<< >>>, which the kernels here do not use ----

unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void*) { return 1; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaErrorNotSupported; }
cudaError_t __cudaGetKernel(cudaKernel_t*, const void*) { return cudaErrorNotSupported; }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t) {
  return cudaErrorNotSupported;
}

// ---- functions of the runtime ----

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* function, void** arguments) {
  return status(launch(*config, function, arguments));
}

cudaError_t cudaFuncSetAttribute(const void* stub, cudaFuncAttribute attribute, int value) {
  const auto found = functions().find(stub);
  if (found == functions().end()) return status(cudaErrorInvalidDeviceFunction);
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    found->second.non_portable_cluster = value;
    return cudaSuccess;
  }
  const auto static_bytes = static_cast<int64_t>(kernel_of(found->second).static_shared_bytes);
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize || value < 0 ||
      value > device.shared_bytes_per_block - static_bytes)
    return status(cudaErrorInvalidValue);
  found->second.allowed_shared_bytes = value;
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* stub, int threads,
                                                                   size_t shared_bytes, unsigned) {
  const auto found = functions().find(stub);
  if (found == functions().end()) return status(cudaErrorInvalidDeviceFunction);
  *blocks = static_cast<int>(blocks_per_sm(found->second, threads, static_cast<int64_t>(shared_bytes)));
  return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void* stub,
                                           const cudaLaunchConfig_t* config) {
  const auto found = functions().find(stub);
  if (found == functions().end()) return status(cudaErrorInvalidDeviceFunction);
  int64_t count;
  const cudaError_t error = active_clusters(&count, found->second, *config);
  *clusters = static_cast<int>(count);
  return status(error);
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      return *value = device.threads_per_block, cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      return *value = device.num_sms, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = static_cast<int>(device.shared_bytes_per_block), cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = device.compute_capability / 10, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = device.compute_capability % 10, cudaSuccess;
    case cudaDevAttrClusterLaunch:
      return *value = device.compute_capability >= 90, cudaSuccess;
    default:
      return status(cudaErrorInvalidValue);
  }
}

cudaError_t cudaGetDevice(int* number) { return *number = 0, cudaSuccess; }
cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDeviceFunction:
      return "invalid device function";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorInvalidClusterSize:
      return "cluster misconfiguration";
    default:
      return "operation not supported";
  }
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  if (bytes && !(machine.memory.holds(reinterpret_cast<uint64_t>(to), bytes, true) &&
                 machine.memory.holds(reinterpret_cast<uint64_t>(from), bytes, false)))
    return status(cudaErrorInvalidValue);
  if (bytes) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  if (bytes && !machine.memory.holds(reinterpret_cast<uint64_t>(to), bytes, true))
    return status(cudaErrorInvalidValue);
  if (bytes) std::memset(to, value, bytes);
  return cudaSuccess;
}

}  // extern "C"
