// Toys: small kernels that test the emulation. Each is correct without a bug, and wrong with one of its bugs.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cuda/atomic>
#include <functional>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "clusters.cuh"
#include "cuda/team.cuh"

namespace toys {
namespace {

constexpr unsigned kAll = 0xffffffffu;

enum Bug {
  kNone,
  kNoBarrier,         // a __syncthreads is missing
  kNoSecondBarrier,   // another __syncthreads is missing
  kDivergentBarrier,  // not all threads reach a __syncthreads
  kTwoBarriers,       // half of the threads wait at another __syncthreads
  kExit,              // a thread exits before a __syncthreads
  kAbsentLane,        // a lane does not take part in a collective operation
  kOtherOperation,    // a lane takes part in another collective operation
  kForeignMask,       // the mask lacks the caller
  kNoSyncwarp,
  kShuffle,       // in place of __syncwarp: the lanes wait for each other, but memory is not ordered
  kPlainCounter,  // a load and a store in place of an atomic operation
  kNoGridBarrier,
  kLostBlock,       // one block never arrives at the grid barrier
  kOrdinary,        // the launch is not cooperative
  kTooLarge,        // more blocks than fit at once
  kStale,           // reads what an earlier launch left in shared memory
  kOverrun,         // reads past shared memory
  kOverwrite,       // writes past shared memory
  kNotAllowed,      // needs more shared memory than cudaFuncSetAttribute allows
  kOverLimit,       // needs more shared memory than the device has
  kOverflow,        // has more threads than a block may have
  kUnorderedWait,   // in place of __syncthreads: a thread waits for the others, but memory is not ordered
  kRelaxedStore,    // a release is missing
  kRelaxedLoad,     // an acquire is missing
  kBlockScope,      // both are there, but not for other blocks
  kNoFence,         // a __threadfence before an atomic operation is missing
  kNoSecondFence,   // a __threadfence behind one is missing
  kConstantLoad,    // __ldg of memory that the launch changes
  kBlockBarrier,    // __syncthreads in place of the barrier of the cluster
  kEarlyEnd,        // a block ends while others still access its shared memory
  kLateAddress,     // asks for the address in the shared memory of a block that may have ended
  kOtherRank,       // the shared memory of another block than the right one
  kAbsentRank,      // a rank that the cluster does not have
  kForeignPointer,  // not a pointer into the block's own shared memory
  kNotPortable,     // more than 8 blocks of a cluster, without permission
  kNotMultiple,     // a grid that is not a multiple of the cluster
  kOldDevice,       // compute capability 8.0
};

struct Shape {
  unsigned blocks, threads;
};

__device__ unsigned* shared_words() {
  return reinterpret_cast<unsigned*>(emulation::dynamic_shared_memory());
}

// ---- a sum by shuffles and shared memory ----

__global__ void reduce(const unsigned* in, unsigned* out, Bug bug) {
  unsigned* partial = shared_words();
  const unsigned t = threadIdx.x, lane = t % 32, num_warps = blockDim.x / 32;
  if (bug == kExit && t == 40) return;
  unsigned sum = in[blockIdx.x * blockDim.x + t];
  const unsigned mask = bug == kForeignMask && t == 7 ? 0xff00u : kAll;
  if (bug == kOtherOperation && t == 3)
    sum += __shfl_down_sync(kAll, sum, 16);
  else if (bug != kAbsentLane || t != 5)
    sum += __shfl_xor_sync(mask, sum, 16);
  for (int d = 8; d; d /= 2) sum += __shfl_xor_sync(kAll, sum, d);
  if (lane == 0) partial[t / 32] = sum;
  if (bug == kTwoBarriers && t < 32)
    __syncthreads();
  else if (bug != kNoBarrier && (bug != kDivergentBarrier || t % 2))
    __syncthreads();
  sum = 0;
  for (unsigned w = 0; w < num_warps; ++w) sum += partial[w];
  if (t == blockDim.x - 1) out[blockIdx.x] = sum;
}

// ---- the inclusive scan of Hillis and Steele in shared memory ----

__global__ void scan(const unsigned* in, unsigned* out, Bug bug) {
  unsigned* sums = shared_words();
  const unsigned t = threadIdx.x, n = blockDim.x, at = blockIdx.x * n + t;
  sums[t] = in[at];
  __syncthreads();
  for (unsigned d = 1; d < n; d *= 2) {
    const unsigned below = t >= d ? sums[t - d] : 0;
    if (bug != kNoBarrier) __syncthreads();
    sums[t] += below;
    if (bug != kNoSecondBarrier) __syncthreads();
  }
  out[at] = sums[t];
}

// ---- exchange between neighbours of a warp, in shared memory ----

__global__ void rotate(const unsigned* in, unsigned* out, Bug bug) {
  unsigned* words = shared_words();
  const unsigned t = threadIdx.x, at = blockIdx.x * blockDim.x + t;
  words[t] = in[at];
  if (bug == kShuffle)
    __shfl_sync(kAll, t, 0);
  else if (bug != kNoSyncwarp)
    __syncwarp();
  out[at] = words[t / 32 * 32 + (t + 1) % 32];
}

// ---- stable ranks among equal values, in a warp ----

__global__ void rank(const unsigned* in, unsigned* out, Bug) {
  const unsigned t = threadIdx.x, at = blockIdx.x * blockDim.x + t;
  const unsigned same = __match_any_sync(kAll, in[at] % 8);
  out[at] = static_cast<unsigned>(__popc(same & ((1u << t % 32) - 1)));
}

// ---- a histogram by atomic operations, in shared memory, then in global memory ----

__global__ void histogram(const unsigned* in, unsigned* out, Bug bug) {
  unsigned* counts = shared_words();
  const unsigned t = threadIdx.x;
  if (t < 16) counts[t] = 0;
  if (bug != kNoBarrier) __syncthreads();
  atomicAdd(&counts[in[blockIdx.x * blockDim.x + t] % 16], 1u);
  if (bug != kNoSecondBarrier) __syncthreads();
  if (t >= 16) return;
  if (bug == kPlainCounter)
    __stcg(&out[t], __ldcg(&out[t]) + counts[t]);
  else
    atomicAdd(&out[t], counts[t]);
}

// ---- a sum of every block by atomic operations in global memory, then read by all of its threads ----

__global__ void tally(const unsigned* in, unsigned* out, unsigned* sums, Bug bug) {
  const unsigned at = blockIdx.x * blockDim.x + threadIdx.x;
  if (threadIdx.x == 0) sums[blockIdx.x] = 1;
  __syncthreads();
  atomicAdd(&sums[blockIdx.x], in[at]);
  if (bug != kNoBarrier) __syncthreads();
  out[at] = sums[blockIdx.x];
}

// ---- blocks that wait for each other: each adds up the words of all blocks, in every round ----

constexpr unsigned kRounds = 3;

__global__ void exchange(const unsigned* in, unsigned* out, unsigned* arrivals, unsigned* words, Bug bug) {
  const cuda::atomic_ref<unsigned, cuda::thread_scope_device> count(*arrivals);
  const unsigned t = threadIdx.x, n = gridDim.x * blockDim.x, at = blockIdx.x * blockDim.x + t;
  unsigned value = in[at], target = 0;
  for (unsigned round = 0; round < kRounds; ++round) {
    words[round * n + at] = value;
    if (bug != kNoGridBarrier) {
      __syncthreads();
      target += gridDim.x;
      if (t == 0) {
        if (bug != kLostBlock || blockIdx.x != 1) count.fetch_add(1, cuda::memory_order_acq_rel);
        while (count.load(cuda::memory_order_acquire) < target) __nanosleep(20);
      }
      __syncthreads();
    }
    value = 0;
    for (unsigned k = 0; k < n; ++k) value += words[round * n + k];
    value += at;
  }
  out[at] = value;
}

// The same through the barrier of the real kernels. All rounds use the same two copies of the words.
__global__ void team(const unsigned* in, unsigned* out, unsigned* arrivals, unsigned* words, Bug) {
  noisetilt::cuda::Team team{arrivals, gridDim.x, blockIdx.x, 0};
  const unsigned n = team.num_threads(), at = team.thread();
  unsigned value = in[at];
  for (unsigned round = 0; round < kRounds; ++round) {
    unsigned* copy = words + round % 2 * n;
    copy[at] = value;
    team.sync();
    value = at;
    for (unsigned k = 0; k < n; ++k) value += copy[k];
  }
  out[at] = value;
}

// ---- messages in a ring: a block writes a row, raises its flag, and reads the row of the next block ----

template <cuda::thread_scope kScope>
__device__ void signal_and_wait(unsigned* mine, unsigned* next, unsigned round, Bug bug) {
  const cuda::atomic_ref<unsigned, kScope> my_flag(*mine), next_flag(*next);
  my_flag.store(round, bug == kRelaxedStore ? cuda::memory_order_relaxed : cuda::memory_order_release);
  const auto order = bug == kRelaxedLoad ? cuda::memory_order_relaxed : cuda::memory_order_acquire;
  while (next_flag.load(order) < round) __nanosleep(20);
}

__global__ void ring(const unsigned* in, unsigned* out, unsigned* flags, unsigned* rows, Bug bug) {
  const unsigned t = threadIdx.x, n = gridDim.x * blockDim.x, at = blockIdx.x * blockDim.x + t;
  const unsigned next = (blockIdx.x + 1) % gridDim.x;
  unsigned* arrived = shared_words();
  if (t == 0) *arrived = 0;
  __syncthreads();
  unsigned value = in[at];
  for (unsigned round = 0; round < kRounds; ++round) {
    rows[round * n + at] = value;
    if (bug == kUnorderedWait) {
      atomicAdd(arrived, 1u);
      while (t == 0 && atomicAdd(arrived, 0u) < (round + 1) * blockDim.x) {
      }
    } else if (bug != kNoBarrier) {
      __syncthreads();
    }
    if (t == 0) {
      if (bug == kBlockScope)
        signal_and_wait<cuda::thread_scope_block>(&flags[blockIdx.x], &flags[next], round + 1, bug);
      else
        signal_and_wait<cuda::thread_scope_device>(&flags[blockIdx.x], &flags[next], round + 1, bug);
    }
    __syncthreads();
    const unsigned* row = rows + round * n + next * blockDim.x;
    value += bug == kConstantLoad ? __ldg(&row[t]) : row[t];
  }
  out[at] = value;
}

// ---- the last block to finish adds up what all blocks have left ----

struct Partial {
  unsigned sums[12];
};

// With volatile words, the last block needs no fence.
template <class Word>
__global__ void finale(const unsigned* in, unsigned* out, unsigned* finished, Partial* partials, Bug bug) {
  const unsigned t = threadIdx.x, n = blockDim.x;
  Word* mine = partials[blockIdx.x].sums;
  if (t < 12) {
    unsigned sum = 0;
    for (unsigned k = t; k < n; k += 12) sum += in[blockIdx.x * n + k];
    mine[t] = sum;
  }
  if (bug != kNoBarrier) __syncthreads();
  bool last = false;
  if (t == 0) {
    if (bug != kNoFence) __threadfence();
    last = atomicAdd(finished, 1u) == gridDim.x - 1;
    if (last && bug != kNoSecondFence && !std::is_volatile_v<Word>) __threadfence();
  }
  if (!__syncthreads_or(last) || t > 0) return;
  unsigned sum = 0;
  for (unsigned k = 0; k < gridDim.x; ++k) {
    if constexpr (std::is_volatile_v<Word>) {
      for (Word& word : partials[k].sums) sum += word;
    } else {
      Partial partial;
      memcpy(&partial, &partials[k], sizeof partial);
      for (unsigned word : partial.sums) sum += word;
    }
  }
  *out = sum;
}

// ---- clusters: every block reads the words of the next one ----

using noisetilt::cuda::cluster_rank;
using noisetilt::cuda::cluster_sync;
using noisetilt::cuda::of_cluster_block;

__global__ void neighbours(const unsigned* in, unsigned* out, unsigned size, Bug bug) {
  unsigned* words = shared_words();
  const unsigned t = threadIdx.x, at = blockIdx.x * blockDim.x + t;
  if (cluster_rank() != blockIdx.x % size) return;
  unsigned rank = (cluster_rank() + 1 + (bug == kOtherRank)) % size;
  if (bug == kAbsentRank && t == 3) rank = size;
  const unsigned* next = of_cluster_block(bug == kForeignPointer ? out : words, rank);
  words[t] = in[at];
  if (bug == kExit && rank == 0 && t == 5) return;
  if (bug == kBlockBarrier || (bug == kTwoBarriers && rank == 0 && t < 32))
    __syncthreads();
  else if (bug != kNoBarrier)
    cluster_sync();
  if (bug == kLateAddress) next = of_cluster_block(words, rank);
  out[at] = next[t];
  if (bug != kEarlyEnd && bug != kLateAddress) cluster_sync();
}

// ---- a histogram in the shared memory of a cluster: block r counts the values of remainder r ----

__global__ void census(const unsigned* in, unsigned* out, unsigned size, Bug bug) {
  unsigned* count = shared_words();
  if (threadIdx.x == 0) *count = 0;
  if (bug != kNoBarrier) cluster_sync();
  const unsigned value = in[blockIdx.x * blockDim.x + threadIdx.x];
  unsigned* theirs = of_cluster_block(count, value % size);
  if (bug == kPlainCounter)
    *theirs += 1;
  else
    atomicAdd(theirs, 1u);
  if (bug != kEarlyEnd) cluster_sync();
  if (threadIdx.x == 0) out[blockIdx.x] = *count;
}

// ---- blocks of a cluster exchange words in global memory ----

__global__ void relay(const unsigned* in, unsigned* out, unsigned* words, unsigned size, Bug bug) {
  const unsigned t = threadIdx.x, n = blockDim.x, first = blockIdx.x / size * size * n;
  const unsigned at = blockIdx.x * n + t;
  unsigned value = in[at];
  for (unsigned round = 0; round < kRounds; ++round) {
    words[at] = value;
    if (bug == kBlockBarrier)
      __syncthreads();
    else
      cluster_sync();
    value += words[first + (at - first + n) % (size * n)];
    if (bug != kNoSecondBarrier) cluster_sync();
  }
  out[at] = value;
}

// ---- shared memory ----

__global__ void reverse(const unsigned* in, unsigned* out, Bug bug) {
  unsigned* words = shared_words();
  const unsigned t = threadIdx.x, n = blockDim.x, at = blockIdx.x * n + t;
  if (bug != kStale) words[n - 1 - t + (bug == kOverwrite)] = in[at];
  __syncthreads();
  out[at] = words[t + (bug == kOverrun || bug == kOverwrite)];
}

// ---- all other collective operations, compared with their definitions ----

__global__ void collectives(const unsigned* in, unsigned* out, Bug) {
  const unsigned t = threadIdx.x, lane = t % 32, first = blockIdx.x * blockDim.x + t - lane;
  const unsigned value = in[first + lane];
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  unsigned sum = 0, most = 0, all = 0, odd = 0;
  for (unsigned k = 0; k < 32; ++k) {
    odd |= (in[first + k] & 1) << k;
    if (!(half >> k & 1)) continue;
    sum += in[first + k];
    most = max(most, in[first + k]);
    all |= in[first + k];
  }
  const int odd_in_block = __syncthreads_count(value & 1), any_odd = __syncthreads_or(value & 1);
  const int all_odd = __syncthreads_and(value & 1);
  const double wide = __shfl_sync(kAll, static_cast<double>(value) + 0.5, 9);
  const bool right[] = {
      __reduce_add_sync(half, value) == sum,
      __reduce_max_sync(half, value) == most,
      __reduce_or_sync(half, value) == all,
      __reduce_min_sync(half, -static_cast<int>(value)) == -static_cast<int>(most),
      __ballot_sync(kAll, value & 1) == odd,
      __any_sync(kAll, value & 1) == (odd != 0),
      __all_sync(kAll, value & 1) == (odd == kAll),
      __ballot_sync(half, value & 1) == (odd & half),
      wide == in[first + 9] + 0.5,
      __shfl_sync(kAll, value, 3, 8) == in[first + lane / 8 * 8 + 3],
      __shfl_up_sync(kAll, value, 2, 8) == in[first + (lane % 8 >= 2 ? lane - 2 : lane)],
      __shfl_down_sync(kAll, value, 3) == in[first + (lane + 3 < 32 ? lane + 3 : lane)],
      __shfl_xor_sync(kAll, value, 9, 8) == in[first + (lane & 8 ? lane ^ 9 : lane)],
      (any_odd != 0) == (odd_in_block > 0),
      (all_odd != 0) == (odd_in_block == static_cast<int>(blockDim.x)),
      __clz(static_cast<int>(value | 1)) + 31 - __builtin_clz(value | 1) * 2 + __clz(1) ==
          62 - __clz(value | 1),
      __ffs(8) == 4 && __brev(1u) == 0x80000000u && __popcll(~0ull) == 64,
  };
  unsigned wrong = 0;
  for (unsigned k = 0; k < sizeof right; ++k) wrong |= static_cast<unsigned>(!right[k]) << k;
  out[first + lane] = wrong;
}

// ---- host functions ----

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

cudaLaunchConfig_t configuration(Shape shape, size_t shared_bytes) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(shape.blocks);
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shared_bytes;
  return config;
}

cudaLaunchAttribute cluster_of(unsigned size) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {size, 1, 1};
  return attribute;
}

template <class... Parameters, class... Arguments>
void launch_clusters(void (*kernel)(Parameters...), Shape shape, unsigned size, size_t shared_bytes,
                     bool cooperative, Arguments... arguments) {
  cudaLaunchAttribute attributes[] = {cluster_of(size), {}};
  attributes[1].id = cudaLaunchAttributeCooperative;
  attributes[1].val.cooperative = cooperative;
  cudaLaunchConfig_t config = configuration(shape, shared_bytes);
  config.attrs = attributes;
  config.numAttrs = 2;
  check(cudaLaunchKernelEx(&config, kernel, arguments...));
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Shape shape, size_t shared_bytes, bool cooperative,
            Arguments... arguments) {
  launch_clusters(kernel, shape, 1, shared_bytes, cooperative, arguments...);
}

// Allocator of global memory.
template <class T>
struct GlobalMemory {
  using value_type = T;
  T* allocate(size_t count) {
    constexpr size_t kAlignment = 256;
    const size_t bytes = count * sizeof(T);
    void* memory = std::aligned_alloc(kAlignment, (bytes + kAlignment - 1) / kAlignment * kAlignment);
    emulation::memory_added(memory, bytes);
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, size_t) {
    emulation::memory_removed(memory);
    std::free(memory);
  }
  bool operator==(const GlobalMemory&) const { return true; }
};
using Words = std::vector<unsigned, GlobalMemory<unsigned>>;

Words numbers(Shape shape) {
  Words words(shape.blocks * shape.threads);
  for (unsigned& word : words) word = static_cast<unsigned>(emulation::random_bits() >> 45);
  return words;
}

bool reduce_is_right(Shape shape, Bug bug) {
  const Words in = numbers(shape);
  Words out(shape.blocks), expected(shape.blocks);
  launch(reduce, shape, shape.threads / 32 * 4, false, in.data(), out.data(), bug);
  for (size_t k = 0; k < in.size(); ++k) expected[k / shape.threads] += in[k];
  return out == expected;
}

bool scan_is_right(Shape shape, Bug bug) {
  const Words in = numbers(shape);
  Words out(in.size()), expected(in.size());
  launch(scan, shape, shape.threads * 4, false, in.data(), out.data(), bug);
  for (size_t k = 0; k < in.size(); ++k) expected[k] = in[k] + (k % shape.threads ? expected[k - 1] : 0);
  return out == expected;
}

bool rotate_is_right(Shape shape, Bug bug) {
  const Words in = numbers(shape);
  Words out(in.size()), expected(in.size());
  launch(rotate, shape, shape.threads * 4, false, in.data(), out.data(), bug);
  for (size_t k = 0; k < in.size(); ++k) expected[k] = in[k / 32 * 32 + (k + 1) % 32];
  return out == expected;
}

bool rank_is_right(Shape shape, Bug bug) {
  const Words in = numbers(shape);
  Words out(in.size()), expected(in.size());
  launch(rank, shape, 0, false, in.data(), out.data(), bug);
  for (size_t k = 0; k < in.size(); ++k)
    for (size_t other = k / 32 * 32; other < k; ++other) expected[k] += in[other] % 8 == in[k] % 8;
  return out == expected;
}

bool histogram_is_right(Shape shape, Bug bug) {
  const Words in = numbers(shape);
  Words out(16), expected(16);
  launch(histogram, shape, 64, false, in.data(), out.data(), bug);
  for (unsigned word : in) ++expected[word % 16];
  return out == expected;
}

bool tally_is_right(Shape shape, Bug bug) {
  const Words in = numbers(shape);
  Words out(in.size()), sums(shape.blocks), expected(shape.blocks, 1);
  launch(tally, shape, 0, false, in.data(), out.data(), sums.data(), bug);
  for (size_t k = 0; k < in.size(); ++k) expected[k / shape.threads] += in[k];
  for (size_t k = 0; k < in.size(); ++k)
    if (out[k] != expected[k / shape.threads]) return false;
  return true;
}

// All blocks that fit at once.
Shape full(Shape shape) {
  int fits = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fits, exchange, static_cast<int>(shape.threads), 0));
  return {static_cast<unsigned>(fits * emulation::device.num_sms), shape.threads};
}

template <auto kKernel, unsigned kCluster = 1>
bool exchange_is_right(Shape shape, Bug bug) {
  shape = full(shape);
  shape.blocks += bug == kTooLarge ? kCluster : 0;
  const Words in = numbers(shape);
  const unsigned n = static_cast<unsigned>(in.size());
  Words out(n), expected = in, arrivals(1), words(kRounds * n);
  launch_clusters(kKernel, shape, kCluster, 0, bug != kOrdinary, in.data(), out.data(), arrivals.data(),
                  words.data(), bug);
  for (unsigned round = 0; round < kRounds; ++round) {
    const unsigned sum = std::accumulate(expected.begin(), expected.end(), 0u);
    for (unsigned k = 0; k < n; ++k) expected[k] = sum + k;
  }
  return out == expected;
}

bool ring_is_right(Shape shape, Bug bug) {
  shape = full(shape);
  const Words in = numbers(shape);
  const unsigned n = static_cast<unsigned>(in.size());
  Words out(n), expected = in, flags(shape.blocks), rows(kRounds * n);
  launch(ring, shape, 4, true, in.data(), out.data(), flags.data(), rows.data(), bug);
  for (unsigned round = 0; round < kRounds; ++round) {
    const Words before = expected;
    for (unsigned k = 0; k < n; ++k) expected[k] += before[(k + shape.threads) % n];
  }
  return out == expected;
}

template <class Word>
bool finale_is_right(Shape shape, Bug bug) {
  const Words in = numbers(shape);
  Words out(1), finished(1);
  std::vector<Partial, GlobalMemory<Partial>> partials(shape.blocks);
  launch(finale<Word>, shape, 0, false, in.data(), out.data(), finished.data(), partials.data(), bug);
  return out[0] == std::accumulate(in.begin(), in.end(), 0u);
}

bool reverse_is_right(Shape shape, Bug bug) {
  const Words in = numbers(shape);
  Words out(in.size()), expected(in.size());
  size_t bytes = shape.threads * 4;
  if (bug == kStale) launch(reverse, shape, bytes, false, in.data(), out.data(), kNone);
  if (bug == kNotAllowed) bytes = (48 << 10) + 1;
  if (bug == kOverLimit) {
    bytes = static_cast<size_t>(emulation::device.shared_bytes_per_block) + 1;
    check(
        cudaFuncSetAttribute(reverse, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  }
  if (bug == kOverflow) shape.threads = static_cast<unsigned>(emulation::device.threads_per_block) + 32;
  launch(reverse, shape, bytes, false, in.data(), out.data(), bug);
  for (size_t k = 0; k < in.size(); ++k)
    expected[k] = in[k / shape.threads * shape.threads + (shape.threads - 1 - k % shape.threads)];
  return out == expected;
}

// Blocks of a cluster for a shape whose blocks all fit at once, and three such clusters.
struct Clusters {
  explicit Clusters(Shape given) : size(std::min(given.blocks, 4u)), shape{3 * size, given.threads} {}
  unsigned size;
  Shape shape;
};

bool neighbours_of(Shape shape, unsigned size, Bug bug) {
  const Words in = numbers(shape);
  Words out(in.size()), expected(in.size());
  launch_clusters(neighbours, shape, size, shape.threads * 4, false, in.data(), out.data(), size, bug);
  const size_t words = size * shape.threads;  // of a cluster
  for (size_t k = 0; k < in.size(); ++k) expected[k] = in[k / words * words + (k + shape.threads) % words];
  return out == expected;
}

bool neighbours_is_right(Shape given, Bug bug) {
  auto [size, shape] = Clusters(given);
  if (bug == kNotPortable) emulation::device.num_sms = static_cast<int>(size = 16);
  if (bug == kTooLarge) size = 7;  // the device can hold 6 blocks
  shape.blocks = 3 * size + (bug == kNotMultiple);
  if (bug == kOldDevice) emulation::device.compute_capability = 80;
  return neighbours_of(shape, size, bug);
}

bool census_is_right(Shape given, Bug bug) {
  const auto [size, shape] = Clusters(given);
  const Words in = numbers(shape);
  Words out(shape.blocks), expected(shape.blocks);
  launch_clusters(census, shape, size, 4, false, in.data(), out.data(), size, bug);
  for (size_t k = 0; k < in.size(); ++k) ++expected[k / shape.threads / size * size + in[k] % size];
  return out == expected;
}

bool relay_is_right(Shape given, Bug bug) {
  const auto [size, shape] = Clusters(given);
  const Words in = numbers(shape);
  Words out(in.size()), words(in.size()), expected = in;
  launch_clusters(relay, shape, size, 0, false, in.data(), out.data(), words.data(), size, bug);
  const size_t of_cluster = size * shape.threads;
  for (unsigned round = 0; round < kRounds; ++round) {
    const Words before = expected;
    for (size_t k = 0; k < in.size(); ++k)
      expected[k] += before[k / of_cluster * of_cluster + (k + shape.threads) % of_cluster];
  }
  return out == expected;
}

// Number of clusters that the device holds at once. portable: they may not have more than 8 blocks.
int active_clusters(unsigned size, unsigned threads, size_t shared_bytes, bool portable) {
  check(cudaFuncSetAttribute(neighbours, cudaFuncAttributeNonPortableClusterSizeAllowed, !portable));
  check(cudaFuncSetAttribute(neighbours, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(emulation::device.shared_bytes_per_block)));
  cudaLaunchAttribute attribute = cluster_of(size);
  cudaLaunchConfig_t config = configuration({size, threads}, shared_bytes);
  config.attrs = &attribute;
  config.numAttrs = 1;
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, neighbours, &config));
  return clusters;
}

bool large_clusters_are_right(unsigned size, unsigned clusters, unsigned threads) {
  check(cudaFuncSetAttribute(neighbours, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  return neighbours_of({size * clusters, threads}, size, kNone);
}

bool collectives_are_right(Shape shape, Bug bug) {
  const Words in = numbers(shape);
  Words out(in.size());
  launch(collectives, shape, 0, false, in.data(), out.data(), bug);
  for (unsigned wrong : out)
    if (wrong) throw std::runtime_error("collective operations " + std::to_string(wrong));
  return true;
}

constexpr unsigned kPeekStride = 8;  // words in a sector

// Every block stores 1 and reads what all blocks have stored, without waiting for them.
__global__ void peek(unsigned* words, unsigned* seen) {
  if (threadIdx.x == 0) words[blockIdx.x * kPeekStride] = 1;
  __syncthreads();
  if (threadIdx.x > 0) return;
  for (unsigned k = 0; k < gridDim.x; ++k) seen[blockIdx.x] += words[k * kPeekStride];
}

// Numbers of stores that each block has seen.
std::vector<unsigned> peeks(unsigned blocks, unsigned threads) {
  Words words(blocks * kPeekStride), seen(blocks);
  launch(peek, {blocks, threads}, 0, false, words.data(), seen.data());
  return {seen.begin(), seen.end()};
}

// For measuring the speed of switching: all threads meet at `count` barriers.
__global__ void barriers(int count) {
  for (int k = 0; k < count; ++k) __syncthreads();
}

struct Toy {
  const char* name;
  bool (*is_right)(Shape, Bug);
  std::vector<std::pair<const char*, Bug>> bugs;
};

const std::vector<Toy>& all() {
  static const std::vector<Toy> toys = {
      {"reduce",
       reduce_is_right,
       {{"no barrier", kNoBarrier},
        {"divergent barrier", kDivergentBarrier},
        {"two barriers", kTwoBarriers},
        {"exit", kExit},
        {"absent lane", kAbsentLane},
        {"other operation", kOtherOperation},
        {"foreign mask", kForeignMask}}},
      {"scan", scan_is_right, {{"no barrier", kNoBarrier}, {"no second barrier", kNoSecondBarrier}}},
      {"rotate", rotate_is_right, {{"no syncwarp", kNoSyncwarp}, {"shuffle", kShuffle}}},
      {"rank", rank_is_right, {}},
      {"histogram",
       histogram_is_right,
       {{"no barrier", kNoBarrier},
        {"no second barrier", kNoSecondBarrier},
        {"plain counter", kPlainCounter}}},
      {"tally", tally_is_right, {{"no barrier", kNoBarrier}}},
      {"exchange",
       exchange_is_right<exchange>,
       {{"no grid barrier", kNoGridBarrier},
        {"lost block", kLostBlock},
        {"ordinary launch", kOrdinary},
        {"too large", kTooLarge}}},
      {"exchange of clusters", exchange_is_right<exchange, 2>, {{"too large", kTooLarge}}},
      {"team", exchange_is_right<team>, {}},
      {"ring",
       ring_is_right,
       {{"no barrier", kNoBarrier},
        {"unordered wait", kUnorderedWait},
        {"relaxed store", kRelaxedStore},
        {"relaxed load", kRelaxedLoad},
        {"scope of a block", kBlockScope},
        {"constant load", kConstantLoad}}},
      {"finale",
       finale_is_right<unsigned>,
       {{"no barrier", kNoBarrier}, {"no fence", kNoFence}, {"no second fence", kNoSecondFence}}},
      {"volatile finale", finale_is_right<volatile unsigned>, {}},
      {"reverse",
       reverse_is_right,
       {{"stale", kStale},
        {"overrun", kOverrun},
        {"overwrite", kOverwrite},
        {"not allowed", kNotAllowed},
        {"over the limit", kOverLimit},
        {"too many threads", kOverflow}}},
      {"collectives", collectives_are_right, {}},
      {"neighbours",
       neighbours_is_right,
       {{"no barrier", kNoBarrier},
        {"barrier of the block", kBlockBarrier},
        {"two barriers", kTwoBarriers},
        {"exit", kExit},
        {"early end", kEarlyEnd},
        {"late address", kLateAddress},
        {"other rank", kOtherRank},
        {"absent rank", kAbsentRank},
        {"foreign pointer", kForeignPointer},
        {"too large", kTooLarge},
        {"not portable", kNotPortable},
        {"not a multiple", kNotMultiple},
        {"old device", kOldDevice}}},
      {"census",
       census_is_right,
       {{"no barrier", kNoBarrier}, {"early end", kEarlyEnd}, {"plain counter", kPlainCounter}}},
      {"relay",
       relay_is_right,
       {{"barrier of the block", kBlockBarrier}, {"no second barrier", kNoSecondBarrier}}},
  };
  return toys;
}

// Returns true if the toy's result is right. Throws if a launch fails.
bool run(const std::string& name, const std::string& bug, unsigned blocks, unsigned threads) {
  for (const Toy& toy : all()) {
    if (toy.name != name) continue;
    if (bug.empty()) return toy.is_right({blocks, threads}, kNone);
    for (const auto& [bug_name, value] : toy.bugs)
      if (bug_name == bug) return toy.is_right({blocks, threads}, value);
  }
  throw std::invalid_argument("there is no toy '" + name + "' with a bug '" + bug + "'");
}

}  // namespace
}  // namespace toys

#ifdef TOYS_MAIN

// Usage: toys NAME BUG SEED. An empty BUG runs the correct toy.
int main(int, char** arguments) try {
  emulation::device.seed = std::strtoull(arguments[3], nullptr, 10);
  const bool right = toys::run(arguments[1], arguments[2], 5, 64);
  std::puts(right ? "right" : "wrong");
  return 0;
} catch (const std::exception& error) {
  std::puts(error.what());
  return 0;
}

#else

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "device.h"

PYBIND11_MODULE(MODULE, m) {
  bind_device(m);
  m.def("run", &toys::run);
  m.def("peeks", &toys::peeks);
  m.def("active_clusters", &toys::active_clusters);
  m.def("large_clusters", &toys::large_clusters_are_right);
  m.def("barriers",
        [](unsigned threads, int count) { toys::launch(toys::barriers, {1, threads}, 0, false, count); });
  m.def("bugs", [] {
    std::map<std::string, std::vector<std::string>> names;
    for (const toys::Toy& toy : toys::all()) {
      names[toy.name];
      for (const auto& bug : toy.bugs) names[toy.name].push_back(bug.first);
    }
    return names;
  });
}

#endif
