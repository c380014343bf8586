// The CPU kernels: what the operator library and the stand-alone test see of them.
//
// Every kernel source is compiled once per instruction-set variant, each time in its own namespace, and
// `kernels<T>()` gives the functions of the best variant this processor runs. T is float or double. All
// pointers are to contiguous samples; x alone is worked on in place, x with out from one to the other, which
// may be the same. No function validates; the operator layer has.
#pragma once

#include "../problem.h"

namespace noisetilt {

template <class T>
struct Kernels {
  // order_stats.cpp. check_table also finds out whether the tables are monotone.
  TableFault (*check_table)(Table<T>& table);
  void (*project_2os)(T* x, int64_t batch, const Table<T>& table);
  // whitening.cpp. finite_or_nan copies; a sample with a non-finite value becomes NaN throughout.
  void (*finite_or_nan)(const T* x, T* out, int64_t batch, int64_t size);
  void (*project)(T* x, int64_t batch, const Projection<T>& projection);
  void (*mix)(T* x, int64_t batch, const Projection<T>& projection, const Mixing* mixing, int64_t num_mixing);
  // transforms.cpp. The spectrum is the half-length complex FFT of a sample seen as N/2 complex numbers.
  void (*butterfly)(const T* x, T* out, int64_t batch, Shape shape, Tile tile, int64_t steps, bool inverse);
  void (*hadamard_transform)(const T* x, T* out, int64_t batch, int64_t size, T scale);
  void (*compact_fourier_pack)(const T* spectrum, T* z, int64_t batch, int64_t size);
  void (*compact_fourier_unpack)(const T* z, T* spectrum, int64_t batch, int64_t size);
  // wgnc.cpp, on interleaved complex numbers
  void (*project_wgnc_blocks)(const T* y, T* out, int64_t num_blocks, int64_t block_size);
  void (*wgnc_between_ffts)(T* spectrum, int64_t batch, int64_t size, int64_t block_size);
};

// The variants that this processor runs are numbered from 0, the portable one, to num_variants() - 1, the
// best.
int num_variants();
const char* variant_name(int variant);
template <class T>
const Kernels<T>& kernels(int variant);

template <class T>
const Kernels<T>& kernels() {
  return kernels<T>(num_variants() - 1);
}

}  // namespace noisetilt
