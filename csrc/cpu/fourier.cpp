// Compact Fourier transform, DESIGN section 4.

#include <cmath>

#include "complex_fft.h"
#include "half_fft.h"
#include "kernels.h"

namespace noisetilt::NOISETILT_VARIANT {
namespace {

// Scales of the transform. The inverse is the transpose, so it has the same.
template <class T>
struct Scales {
  explicit Scales(int64_t size)
      : ends(static_cast<T>(1 / std::sqrt(static_cast<double>(size)))),
        others(static_cast<T>(std::sqrt(0.5 / static_cast<double>(size)))) {}  // sqrt(2) / sqrt(N) / 2
  T ends, others;
};

// The compact spectrum as h complex numbers: their real parts begin at 1, their imaginary parts at h. Number
// 0 has the places 0 and 1.
template <class T>
struct PackedComplex : SplitComplex<T> {
  PackedComplex(T* z, int64_t h) : SplitComplex<T>{z + 1, z + h}, ends(z) {}
  T* ends;
  T& re(int64_t k) const { return k == 0 ? ends[0] : this->real[k]; }
  T& im(int64_t k) const { return k == 0 ? ends[1] : this->imaginary[k]; }
};

template <class T>
void compact_fourier(const T* x, T* out, int64_t batch, int64_t size, Twiddles<T> w, bool inverse) {
  const int64_t h = size / 2;
  const Scales<T> scales(size);
  for_each_sample(batch, [&](int64_t b) {
    const T* from = x + b * size;
    T* to = out + b * size;
    ComplexFft<T> fft(h, w);
    if (inverse) {
      turn<HalfFft::from_spectrum>(h, w, scales.ends, scales.others, PackedComplex<const T>(from, h),
                                   fft.spectrum());
      fft.inverse(to);
    } else {
      turn<HalfFft::to_spectrum>(h, w, scales.ends, scales.others, fft.forward(from),
                                 PackedComplex<T>(to, h));
    }
  });
}

template <class T>
void compact_fourier_pack(const T* spectrum, T* z, int64_t batch, int64_t size, Twiddles<T> w) {
  const int64_t h = size / 2;
  const Scales<T> scales(size);
  for_each_sample(batch, [&](int64_t b) {
    turn<HalfFft::to_spectrum>(h, w, scales.ends, scales.others,
                               InterleavedComplex<const T>{spectrum + b * size},
                               PackedComplex<T>(z + b * size, h));
  });
}

template <class T>
void compact_fourier_unpack(const T* z, T* spectrum, int64_t batch, int64_t size, Twiddles<T> w) {
  const int64_t h = size / 2;
  const Scales<T> scales(size);
  for_each_sample(batch, [&](int64_t b) {
    turn<HalfFft::from_spectrum>(h, w, scales.ends, scales.others, PackedComplex<const T>(z + b * size, h),
                                 InterleavedComplex<T>{spectrum + b * size});
  });
}

}  // namespace

template <class T>
void add_fourier_kernels(Kernels<T>& kernels) {
  kernels.compact_fourier = compact_fourier<T>;
  kernels.compact_fourier_pack = compact_fourier_pack<T>;
  kernels.compact_fourier_unpack = compact_fourier_unpack<T>;
}
template void add_fourier_kernels<float>(Kernels<float>&);
template void add_fourier_kernels<double>(Kernels<double>&);

}  // namespace noisetilt::NOISETILT_VARIANT
