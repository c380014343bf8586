// The CPU kernels: interface for the operator library and the kernel test.
//
// A kernel file is compiled once per instruction-set variant, each time in a namespace with the name of the
// variant. `kernels<T>()` returns the kernels of the best variant that this processor runs. T is float or
// double.
//
// All pointers are to contiguous samples. A kernel that takes only x works in place; x and out may be the
// same. Complex numbers are interleaved: real part, imaginary part. No kernel checks its arguments: the
// operators in noisetilt_kernels/ops.py and csrc/binding.h do.
#pragma once

#include "../problem.h"

namespace noisetilt {

// To add a kernel, add a member here and set it in the `add_..._kernels` function of its file.
template <class T>
struct Kernels {
  // order_stats.cpp. check_table also sets table.monotone.
  TableFault (*check_table)(Table<T>& table);
  void (*project_2os)(T* x, int64_t batch, const Table<T>& table);

  // whitening.cpp. finite_or_nan copies; a sample with a non-finite value becomes NaN throughout.
  void (*finite_or_nan)(const T* x, T* out, int64_t batch, int64_t size);
  void (*project)(T* x, int64_t batch, const Projection<T>& projection);
  void (*project_mixing_domains)(T* x, int64_t batch, const Projection<T>& projection, const Mixing* mixing,
                                 int64_t num_mixing);

  // transforms.cpp
  void (*butterfly)(const T* x, T* out, int64_t batch, Shape shape, Tile tile, int64_t steps, bool inverse);
  void (*hadamard_transform)(const T* x, T* out, int64_t batch, int64_t size, T scale);

  // fourier.cpp. compact_fourier is for samples of 2^k values. The two kernels after it are for other sizes:
  // `spectrum` is the complex FFT of a sample read as N/2 complex numbers, not scaled, the inverse neither.
  void (*compact_fourier)(const T* x, T* out, int64_t batch, int64_t size, Twiddles<T> w, bool inverse);
  void (*compact_fourier_pack)(const T* spectrum, T* z, int64_t batch, int64_t size, Twiddles<T> w);
  void (*compact_fourier_unpack)(const T* z, T* spectrum, int64_t batch, int64_t size, Twiddles<T> w);

  // wgnc.cpp. project_wgnc is for samples of 2^k values. wgnc_between_ffts is for other sizes: it replaces
  // the `spectrum` of a sample by the spectrum of its projection.
  void (*project_wgnc_blocks)(const T* y, T* out, int64_t num_blocks, int64_t block_size);
  void (*project_wgnc)(const T* x, T* out, int64_t batch, int64_t size, Twiddles<T> w, int64_t block_size);
  void (*wgnc_between_ffts)(T* spectrum, int64_t batch, int64_t size, Twiddles<T> w, int64_t block_size);
};

// Number of variants that this processor runs: 0 is the portable one, num_variants() - 1 the best.
int num_variants();
const char* variant_name(int variant);
template <class T>
const Kernels<T>& kernels(int variant);

template <class T>
const Kernels<T>& kernels() {
  return kernels<T>(num_variants() - 1);
}

}  // namespace noisetilt
