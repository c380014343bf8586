// CUDA's names for emulation.h: the part of cuda_runtime.h, and of the built-in functions of device code,
// that the kernels use. Extend it if a kernel needs more.
#pragma once

#include <math.h>

#include <cmath>
#include <set>
#include <tuple>
#include <type_traits>
#include <utility>

#include "emulation.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__  // empty: g++ has an attribute of this name
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)

// ---- types and indices ----

#define EMULATE_VECTORS(type, name)                                                           \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                    \
  struct alignas(4 * sizeof(type) < 16 ? 4 * sizeof(type) : 16) name##4 { type x, y, z, w; }; \
  constexpr name##2 make_##name##2(type x, type y) { return {x, y}; }                         \
  constexpr name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMULATE_VECTORS(short, short)
EMULATE_VECTORS(unsigned short, ushort)
EMULATE_VECTORS(int, int)
EMULATE_VECTORS(unsigned, uint)
EMULATE_VECTORS(long long, longlong)
EMULATE_VECTORS(unsigned long long, ulonglong)
EMULATE_VECTORS(float, float)
EMULATE_VECTORS(double, double)
#undef EMULATE_VECTORS

constexpr int warpSize = emulation::kWarpSize;

#define threadIdx (emulation::current->thread)
#define blockIdx (emulation::current->warp->block->index)

// ---- time ----

namespace emulation {
// Clock that goes on by 10 us each time it is read.
inline uint64_t now_ns() {
  static uint64_t now = 0;
  return now += 10'000;
}
}  // namespace emulation

// ---- barriers and collective operations ----

inline void __syncthreads(emulation::Site site = emulation::here()) {
  emulation::barrier("__syncthreads", false, site);
}
inline int __syncthreads_count(int predicate, emulation::Site site = emulation::here()) {
  return emulation::barrier("__syncthreads_count", predicate != 0, site);
}
inline int __syncthreads_or(int predicate, emulation::Site site = emulation::here()) {
  return emulation::barrier("__syncthreads_or", predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, emulation::Site site = emulation::here()) {
  return emulation::barrier("__syncthreads_and", predicate == 0, site) == 0;
}

namespace emulation {

template <class T>
uint64_t to_bits(T value) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Reading a lane outside of the mask returns noise.
template <class T>
T shuffle(const char* operation, unsigned mask, T value, unsigned source, Site site) {
  const auto read = [](const Warp& warp, unsigned mask, unsigned lane) {
    const unsigned source = warp.source[lane];
    return mask >> source & 1 ? warp.argument[source] : random_bits();
  };
  return from_bits<T>(collective(operation, mask, to_bits(value), source, site, read));
}

template <class Combine>
uint64_t reduce(const char* operation, unsigned mask, uint64_t value, Site site, const Combine& combine) {
  const auto combine_all = [&](const Warp& warp, unsigned mask, unsigned) {
    uint64_t result = warp.argument[__builtin_ctz(mask)];
    for (unsigned lanes = mask & (mask - 1); lanes; lanes &= lanes - 1)
      result = combine(result, warp.argument[__builtin_ctz(lanes)]);
    return result;
  };
  return collective(operation, mask, value, 0, site, combine_all);
}

inline unsigned ballot(const char* operation, unsigned mask, int predicate, Site site) {
  const uint64_t mine = predicate ? uint64_t{1} << current->lane : 0;
  return static_cast<unsigned>(
      reduce(operation, mask, mine, site, [](uint64_t a, uint64_t b) { return a | b; }));
}

}  // namespace emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize,
              emulation::Site site = emulation::here()) {
  const unsigned within = static_cast<unsigned>(width) - 1, lane = emulation::current->lane;
  return emulation::shuffle("__shfl_sync", mask, value,
                            (lane & ~within) | (static_cast<unsigned>(source) & within), site);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = warpSize,
                  emulation::Site site = emulation::here()) {
  const unsigned within = static_cast<unsigned>(width) - 1, lane = emulation::current->lane;
  const unsigned source = lane ^ static_cast<unsigned>(lane_mask);
  return emulation::shuffle("__shfl_xor_sync", mask, value, source <= (lane | within) ? source : lane, site);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                 emulation::Site site = emulation::here()) {
  const unsigned within = static_cast<unsigned>(width) - 1, lane = emulation::current->lane;
  return emulation::shuffle("__shfl_up_sync", mask, value, delta <= (lane & within) ? lane - delta : lane,
                            site);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize,
                   emulation::Site site = emulation::here()) {
  const unsigned within = static_cast<unsigned>(width) - 1, lane = emulation::current->lane;
  return emulation::shuffle("__shfl_down_sync", mask, value,
                            delta <= within - (lane & within) ? lane + delta : lane, site);
}

inline void __syncwarp(unsigned mask = ~0u, emulation::Site site = emulation::here()) {
  const auto order = [](const emulation::Warp& warp, unsigned mask, unsigned lane) {
    if (mask >> lane == 1) emulation::lanes_synchronized(warp, mask);  // only once, for the last lane
    return 0;
  };
  emulation::collective("__syncwarp", mask, 0, 0, site, order);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, emulation::Site site = emulation::here()) {
  return emulation::ballot("__ballot_sync", mask, predicate, site);
}
inline int __any_sync(unsigned mask, int predicate, emulation::Site site = emulation::here()) {
  return emulation::ballot("__any_sync", mask, predicate, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, emulation::Site site = emulation::here()) {
  return emulation::ballot("__all_sync", mask, !predicate, site) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, emulation::Site site = emulation::here()) {
  const auto same = [](const emulation::Warp& warp, unsigned mask, unsigned lane) {
    uint64_t result = 0;
    for (unsigned lanes = mask; lanes; lanes &= lanes - 1) {
      const int other = __builtin_ctz(lanes);
      result |= uint64_t{warp.argument[other] == warp.argument[lane]} << other;
    }
    return result;
  };
  return static_cast<unsigned>(
      emulation::collective("__match_any_sync", mask, emulation::to_bits(value), 0, site, same));
}

#define EMULATE_REDUCE(type, name, expression)                                            \
  inline type name(unsigned mask, type value, emulation::Site site = emulation::here()) { \
    const auto combine = [](uint64_t x, uint64_t y) {                                     \
      const type a = emulation::from_bits<type>(x), b = emulation::from_bits<type>(y);    \
      return emulation::to_bits<type>(expression);                                        \
    };                                                                                    \
    return emulation::from_bits<type>(                                                    \
        emulation::reduce(#name, mask, emulation::to_bits(value), site, combine));        \
  }
EMULATE_REDUCE(unsigned, __reduce_add_sync, a + b)
EMULATE_REDUCE(unsigned, __reduce_min_sync, a < b ? a : b)
EMULATE_REDUCE(unsigned, __reduce_max_sync, a < b ? b : a)
EMULATE_REDUCE(unsigned, __reduce_and_sync, a& b)
EMULATE_REDUCE(unsigned, __reduce_or_sync, a | b)
EMULATE_REDUCE(unsigned, __reduce_xor_sync, a ^ b)
EMULATE_REDUCE(int, __reduce_add_sync, static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
EMULATE_REDUCE(int, __reduce_min_sync, a < b ? a : b)
EMULATE_REDUCE(int, __reduce_max_sync, a < b ? b : a)
#undef EMULATE_REDUCE

inline void __nanosleep(unsigned) { emulation::poll(); }
[[noreturn]] inline void __trap(emulation::Site site = emulation::here()) {
  emulation::fail(emulation::text("__trap", site));
}

// ---- memory ----

namespace emulation {

// T if it is one of the types that CUDA has an overload for.
template <class T, class... Types>
using OneOf = std::enable_if_t<(std::is_same_v<T, Types> || ...), T>;

// What an atomic operation does to the block's other accesses.
struct Ordering {
  bool acquires = false, releases = false;
};

// An atomic operation that does not change memory may be part of a loop that waits.
template <class T, class Update>
__attribute__((noinline, no_sanitize("thread"))) T read_modify_write(T* address, const Update& update,
                                                                     Ordering ordering = {}) {
  preempt();
  if (ordering.releases) release();
  strong_access(address, sizeof *address, true, __builtin_return_address(0));
  const T old = *address;
  const T next = update(old);
  *address = next;
  if (ordering.acquires) acquire();
  if (std::memcmp(&next, &old, sizeof old))
    progress();
  else
    poll();
  return old;
}

// Load of what all blocks share.
template <class T>
__attribute__((noinline, no_sanitize("thread"))) T strong_load(const T* address, Ordering ordering = {}) {
  strong_access(address, sizeof *address, false, __builtin_return_address(0));
  const T value = *address;
  if (ordering.acquires) acquire();
  return value;
}

template <class T>
T cached_load(const T* address) {
  preempt();
  return strong_load(address);
}

template <class T>
void cached_store(T* address, T value) {
  preempt();
  *address = value;
}

// Load of memory that does not change during the launch.
template <class T>
T constant_load(const T* address) {
  T value;
  load_constant(&value, address, sizeof value);
  return value;
}

}  // namespace emulation

#define EMULATE_ATOMIC(name, expression, ...)                                                        \
  template <class T>                                                                                 \
  emulation::OneOf<T, __VA_ARGS__> name(T* address, std::common_type_t<T> value) {                   \
    return emulation::read_modify_write(address, [=](T old) { return static_cast<T>(expression); }); \
  }
EMULATE_ATOMIC(atomicAdd, old + value, int, unsigned, unsigned long long, float, double)
EMULATE_ATOMIC(atomicSub, old - value, int, unsigned)
EMULATE_ATOMIC(atomicMin, old < value ? old : value, int, unsigned, long long, unsigned long long)
EMULATE_ATOMIC(atomicMax, old < value ? value : old, int, unsigned, long long, unsigned long long)
EMULATE_ATOMIC(atomicAnd, old& value, int, unsigned, unsigned long long)
EMULATE_ATOMIC(atomicOr, old | value, int, unsigned, unsigned long long)
EMULATE_ATOMIC(atomicXor, old ^ value, int, unsigned, unsigned long long)
EMULATE_ATOMIC(atomicExch, value, int, unsigned, unsigned long long, float)
#undef EMULATE_ATOMIC
template <class T>
emulation::OneOf<T, int, unsigned, unsigned long long, unsigned short> atomicCAS(
    T* address, std::common_type_t<T> expected, std::common_type_t<T> value) {
  return emulation::read_modify_write(address, [=](T old) { return old == expected ? value : old; });
}

inline void __threadfence() {
  emulation::release();
  emulation::acquire();
  emulation::poll();  // a missing second fence is found only if others run between the first and what follows
}

// clang-format off
template <class T> T __ldg(const T* address) { return emulation::constant_load(address); }
template <class T> T __ldcs(const T* address) { return *address; }
template <class T> T __ldca(const T* address) { return *address; }
template <class T> T __ldcg(const T* address) { return emulation::cached_load(address); }
template <class T> T __ldcv(const T* address) { return emulation::cached_load(address); }
template <class T> void __stcs(T* address, std::common_type_t<T> value) { *address = value; }
template <class T> void __stcg(T* address, std::common_type_t<T> value) { emulation::cached_store(address, value); }
template <class T> void __stwt(T* address, std::common_type_t<T> value) { emulation::cached_store(address, value); }

// ---- integers ----

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline unsigned long long __brevll(unsigned long long x) {
  unsigned long long reversed = 0;
  for (int k = 0; k < 64; ++k) reversed |= (x >> k & 1) << (63 - k);
  return reversed;
}
inline unsigned __brev(unsigned x) { return static_cast<unsigned>(__brevll(x) >> 32); }

#define EMULATE_MIN_MAX(type)                                  \
  constexpr type min(type a, type b) { return b < a ? b : a; } \
  constexpr type max(type a, type b) { return a < b ? b : a; }
EMULATE_MIN_MAX(int)
EMULATE_MIN_MAX(unsigned)
EMULATE_MIN_MAX(long)
EMULATE_MIN_MAX(unsigned long)
EMULATE_MIN_MAX(long long)
EMULATE_MIN_MAX(unsigned long long)
#undef EMULATE_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

// ---- floating point: needs -ffp-contract=off ----

inline unsigned __float_as_uint(float x) { return emulation::from_bits<unsigned>(emulation::to_bits(x)); }
inline float __uint_as_float(unsigned x) { return emulation::from_bits<float>(emulation::to_bits(x)); }
inline long long __double_as_longlong(double x) { return emulation::from_bits<long long>(emulation::to_bits(x)); }
inline double __longlong_as_double(long long x) { return emulation::from_bits<double>(emulation::to_bits(x)); }

// clang-format on

// ---- host functions ----

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorNotSupported = 801,
  cudaErrorInvalidClusterSize = 912,
};
using cudaStream_t = struct CUstream_st*;
enum cudaDeviceAttr {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrCooperativeLaunch = 95,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
  cudaDevAttrMaxBlocksPerMultiprocessor = 106,
  cudaDevAttrReservedSharedMemoryPerBlock = 111,
  cudaDevAttrClusterLaunch = 120,
};
enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 14,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaLaunchAttributeID { cudaLaunchAttributeCooperative = 2, cudaLaunchAttributeClusterDimension = 4 };
union cudaLaunchAttributeValue {
  char pad[64];
  int cooperative;
  struct {
    unsigned x, y, z;
  } clusterDim;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

namespace emulation {

constexpr int64_t kSharedBytesByDefault = 48 << 10;
constexpr int64_t kPortableClusterBlocks = 8;
inline std::map<const void*, int64_t> allowed_shared_bytes;  // of kernels that asked for more
inline std::set<const void*> non_portable;                   // kernels that may have larger clusters
inline cudaError_t last_error = cudaSuccess;
inline std::set<const void*> launched;  // kernels

inline cudaError_t status(cudaError_t error) { return error ? last_error = error : error; }

inline int64_t blocks_per_sm(int64_t threads, int64_t shared_bytes) {
  const int64_t padded = (threads + kWarpSize - 1) / kWarpSize * kWarpSize;
  return std::min(
      {static_cast<int64_t>(device.blocks_per_sm), device.threads_per_sm / padded,
       device.shared_bytes_per_sm / std::max<int64_t>(shared_bytes + device.reserved_shared_bytes, 1)});
}

inline bool allows(const void* kernel, int64_t threads, int64_t shared_bytes) {
  const auto found = allowed_shared_bytes.find(kernel);
  const int64_t allowed = found == allowed_shared_bytes.end() ? kSharedBytesByDefault : found->second;
  return threads > 0 && threads <= device.threads_per_block && shared_bytes >= 0 &&
         shared_bytes <= std::min(allowed, device.shared_bytes_per_block) &&
         blocks_per_sm(threads, shared_bytes) > 0;
}

// Blocks of a cluster, by the attributes of a launch.
inline dim3 cluster_of(const cudaLaunchConfig_t& config) {
  dim3 cluster;
  for (unsigned k = 0; k < config.numAttrs; ++k)
    if (config.attrs[k].id == cudaLaunchAttributeClusterDimension) {
      const auto& given = config.attrs[k].val.clusterDim;
      cluster = dim3(given.x, given.y, given.z);
    }
  return cluster;
}

inline bool is_cooperative(const cudaLaunchConfig_t& config) {
  return std::any_of(config.attrs, config.attrs + config.numAttrs, [](const cudaLaunchAttribute& attribute) {
    return attribute.id == cudaLaunchAttributeCooperative && attribute.val.cooperative;
  });
}

inline size_t product(dim3 d) { return size_t{d.x} * d.y * d.z; }

// Sets the number of clusters that the device can hold at once; 0 if the launch exceeds it. A block alone is
// a cluster, too.
inline cudaError_t active_clusters(size_t* count, const void* kernel, const cudaLaunchConfig_t& config) {
  const dim3 cluster = cluster_of(config);
  const int64_t size = cluster.x;
  *count = 0;
  if (cluster.y != 1 || cluster.z != 1) return cudaErrorNotSupported;  // here, not by CUDA
  if (size > 1 && device.compute_capability < 90) return cudaErrorNotSupported;
  if (size == 0 || size > (non_portable.count(kernel) ? device.blocks_per_cluster : kPortableClusterBlocks))
    return cudaErrorInvalidClusterSize;
  const auto threads = static_cast<int64_t>(product(config.blockDim));
  const auto shared_bytes = static_cast<int64_t>(config.dynamicSmemBytes);
  if (!allows(kernel, threads, shared_bytes)) return cudaSuccess;
  for (int64_t rest = device.num_sms; rest > 0; rest -= device.sms_per_gpc) {
    const int64_t sms = std::min<int64_t>(rest, device.sms_per_gpc);
    *count += static_cast<size_t>(sms * blocks_per_sm(threads, shared_bytes) / size);
  }
  return cudaSuccess;
}

inline cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, std::function<void()> body) {
  const dim3 blocks = config.gridDim, threads = config.blockDim;
  const size_t num_blocks = product(blocks), num_threads = product(threads);
  if (num_blocks == 0 || num_threads == 0 || blocks.x > 0x7fffffff || blocks.y > 0xffff ||
      blocks.z > 0xffff || threads.z > 64)
    return cudaErrorInvalidConfiguration;
  if (!allows(kernel, static_cast<int64_t>(num_threads), static_cast<int64_t>(config.dynamicSmemBytes)))
    return cudaErrorInvalidValue;
  size_t limit = 0;
  if (const cudaError_t error = active_clusters(&limit, kernel, config)) return error;
  const unsigned cluster = cluster_of(config).x;
  if (blocks.x % cluster || limit == 0) return cudaErrorInvalidClusterSize;
  const size_t num_clusters = num_blocks / cluster;
  // Clusters of an ordinary launch must not wait for each other: only a few are resident at a time.
  constexpr size_t kThreadsAtOnce = 1 << 14;  // so that their stacks do not need too many pieces of memory
  size_t residents = std::min({num_clusters, limit, size_t{1} + random_bits() % 4,
                               std::max<size_t>(kThreadsAtOnce / (num_threads * cluster), 1)});
  if (is_cooperative(config)) {
    if (num_clusters > limit) return cudaErrorCooperativeLaunchTooLarge;
    residents = num_clusters;
  }
  launched.insert(kernel);
  Grid grid{};
  grid.kernel = kernel;
  grid.body = std::move(body);
  gridDim = blocks;
  blockDim = threads;
  grid.num_blocks = num_blocks;
  grid.num_threads = num_threads;
  grid.shared_bytes = config.dynamicSmemBytes;
  grid.blocks_per_cluster = cluster;
  run(grid, residents);
  return cudaSuccess;
}

}  // namespace emulation

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return [&](Parameters... values) {
    return emulation::status(
        emulation::launch(*config, reinterpret_cast<const void*>(kernel), [&] { kernel(values...); }));
  }(std::forward<Arguments>(arguments)...);
}

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDeviceFunction:
      return "invalid device function";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorNotSupported:
      return "operation not supported";
    case cudaErrorInvalidClusterSize:
      return "cluster misconfiguration";
    default:
      return "invalid argument";
  }
}
inline cudaError_t cudaGetLastError() { return std::exchange(emulation::last_error, cudaSuccess); }
inline cudaError_t cudaPeekAtLastError() { return emulation::last_error; }
inline cudaError_t cudaGetDevice(int* number) { return *number = 0, cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  using emulation::device;
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      return *value = device.threads_per_block, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      return *value = emulation::kSharedBytesByDefault, cudaSuccess;
    case cudaDevAttrWarpSize:
      return *value = warpSize, cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      return *value = device.num_sms, cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      return *value = device.threads_per_sm, cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      return *value = device.compute_capability / 10, cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      return *value = device.compute_capability % 10, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      return *value = static_cast<int>(device.shared_bytes_per_sm), cudaSuccess;
    case cudaDevAttrCooperativeLaunch:
      return *value = 1, cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      return *value = static_cast<int>(device.shared_bytes_per_block), cudaSuccess;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
      return *value = device.blocks_per_sm, cudaSuccess;
    case cudaDevAttrReservedSharedMemoryPerBlock:
      return *value = static_cast<int>(device.reserved_shared_bytes), cudaSuccess;
    case cudaDevAttrClusterLaunch:
      return *value = device.compute_capability >= 90, cudaSuccess;
  }
  return emulation::status(cudaErrorInvalidValue);
}

template <class T>
cudaError_t cudaFuncSetAttribute(T* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    const auto key = reinterpret_cast<const void*>(kernel);
    value ? void(emulation::non_portable.insert(key)) : void(emulation::non_portable.erase(key));
    return cudaSuccess;
  }
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || value > emulation::device.shared_bytes_per_block)
    return emulation::status(cudaErrorInvalidValue);
  emulation::allowed_shared_bytes[reinterpret_cast<const void*>(kernel)] = value;
  return cudaSuccess;
}

template <class T>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, T* kernel, int threads,
                                                          size_t shared_bytes) {
  const auto bytes = static_cast<int64_t>(shared_bytes);
  *blocks = emulation::allows(reinterpret_cast<const void*>(kernel), threads, bytes)
                ? static_cast<int>(emulation::blocks_per_sm(threads, bytes))
                : 0;
  return cudaSuccess;
}

template <class T>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, T* kernel, const cudaLaunchConfig_t* config) {
  size_t count = 0;
  const cudaError_t error =
      emulation::active_clusters(&count, reinterpret_cast<const void*>(kernel), *config);
  *clusters = static_cast<int>(count);
  return emulation::status(error);
}

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t = nullptr) {
  if (bytes) std::memset(to, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t = nullptr) {
  if (bytes) std::memmove(to, from, bytes);
  return cudaSuccess;
}
