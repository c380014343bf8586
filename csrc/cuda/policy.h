// Tuning constants of the kernels, in one policy for each family of architectures. Plain C++.
//
// A policy changes speed, not results. A second policy, such as PolicySm90, needs kernels with the policy as
// a template parameter, and a launch that chooses among them by compute capability.
#pragma once

#include <cstdint>

namespace noisetilt::cuda {

// Compute capability 8.0 and newer. kBlockThreads is the largest block that a kernel is compiled for. The
// launch takes fewer threads on a device with smaller blocks.
struct PolicySm80 {
  // Blocks of a grid whose threads stride over the work.
  static constexpr int64_t kMaxGridBlocks = int64_t(1) << 20;

  // finite.cu
  struct FiniteOrNan {
    static constexpr int kBlockThreads = 256;
    static constexpr int64_t kItemsPerBlock = 4096;  // all from one sample
  };

  // rank_ranges.cu
  struct RankRanges {
    static constexpr int kBlockThreads = 256;
    // Buckets of a column of M values: the smallest multiple of kBucketsStep that is at least
    // kBucketsPerSqrt sqrt(M). A value stays within its table if its rank is off by up to about 1.6 sqrt(M).
    // Half as many buckets leave more values of noise unsettled that the table does not change: whitening a
    // FLUX latent then takes 17 % more team barriers.
    static constexpr int32_t kBucketsStep = 32;
    static constexpr int32_t kBucketsPerSqrt = 32;
  };

  // order_stats.cuh
  struct OrderStats {
    // Chunks up to this size are ranked by comparing all values with all. Longer ones are sorted.
    static constexpr int32_t kMaxCountedChunk = 32;
    // Unsettled buckets up to this size are ranked by comparing all values with all. Beyond it, sorting is
    // faster.
    static constexpr uint32_t kMaxComparedBucket = 512;
    // If a share of 1/kManyUnsettled of the values is unsettled, and a bucket is larger than this, it is
    // worth a barrier to rank them in the order of the buckets.
    static constexpr uint32_t kManyUnsettled = 8;
    static constexpr uint32_t kMaxScatteredBucket = 64;
    // Columns and vectors of tile statistics up to these lengths are ranked by every block separately,
    // without a team barrier.
    static constexpr int32_t kMaxSmallColumn = 1024;
    static constexpr int32_t kMaxSmallVector = 4096;
    // Vectors up to this length are ranked so even after a round of counting. That is faster than to gather
    // the values.
    static constexpr int32_t kMaxUngathered = 256;
    // Among these, columns up to this length are not counted: one block compares all values with all.
    static constexpr int32_t kMaxTinyColumn = 32;
  };

  // radix_sort.cuh
  struct RadixSort {
    static constexpr uint32_t kDigitBits = 8;
  };

  // whitening.cu
  struct Project {
#ifdef NOISETILT_CUDA_DEBUG
    // Half of the register file: compute-sanitizer adds code that needs registers too.
    static constexpr int kBlockThreads = 256;
    static constexpr int kMinBlocksPerSm = 2;
#else
    static constexpr int kBlockThreads = 512;
    static constexpr int kMinBlocksPerSm = 1;
#endif
    // 8 is portable. 16 fit on sm_90 and sm_100.
    static constexpr int64_t kMaxClusterBlocks = 16;
    // Mixing tiles are divided between blocks if that gives at least this many times as many blocks.
    static constexpr int64_t kMinBlocksGained = 4;
  };

  // butterfly.cuh and the butterfly kernels of transforms.cu
  struct Butterfly {
    static constexpr int kBlockThreads = 512;      // lets several units fit into the registers of a thread
    static constexpr int32_t kMaxStepsAtOnce = 4;  // in registers
    static constexpr int32_t kItemsPerUnit = 16;   // values that a thread holds together
    static constexpr int32_t kMaxBytesPerThread = 256;  // of units
    static constexpr int64_t kItemsPerBlock = 4096;     // smaller tiles share a block
  };

  // hadamard.cuh and the Hadamard kernel of transforms.cu
  struct Hadamard {
    static constexpr int kBlockThreads = 128;  // short rows share a block
    // A thread holds 32 values, so at most 64 or 128 registers.
    template <class T>
    static constexpr int kMaxBlockThreads = sizeof(T) == 4 ? 1024 : 512;
  };

  // fourier.cu
  struct Fourier {
    static constexpr int kBlockThreads = 256;
    static constexpr int kBlocksPerSm = 1;                   // if not given, ptxas may spill to fit two
    static constexpr int32_t kLogMostInBlock = 13;           // h of a sample in one block
    static constexpr int32_t kLogNumbersOfSmallSamples = 9;  // smaller samples share a block
    static constexpr int32_t kLogMostPass = 8;               // radix of a pass
    static constexpr int32_t kLogColumns = 3;  // neighbours of a block: they fill sectors of 32 bytes
  };

  // The kernels of transforms.cu and regions.cuh whose threads stride over global memory.
  struct Strided {
    static constexpr int kBlockThreads = 256;
  };

  // wgnc.cu
  struct Wgnc {
    static constexpr int kBlockThreads = 128;
    static constexpr int kSetAsideThreads = 32;
    static constexpr int kBlocksPerSm = 8;  // limits a thread to 64 registers
  };
};

// Policy that all kernels are compiled with.
using Policy = PolicySm80;

}  // namespace noisetilt::cuda
