// WGNC, DESIGN section 6: blockwise projection of the compact complex spectrum, in float64. Each lane of a
// vector holds one block.

#include <algorithm>
#include <cmath>
#include <limits>

#include "chunk_sort.h"
#include "complex_fft.h"
#include "half_fft.h"
#include "kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace noisetilt::NOISETILT_VARIANT {
namespace {

constexpr int64_t kGrain = 2048;  // fewest coefficients per thread

// Norms that every block of B coefficients is projected onto.
struct BlockNorms {
  explicit BlockNorms(int64_t block_size)
      : size(block_size),
        t(3.14159265358979323846 * static_cast<double>(size) / 4),
        l1(std::sqrt(3.14159265358979323846) / 2 * static_cast<double>(size)),
        fewest(static_cast<int64_t>(std::floor(t)) + 1) {}
  int64_t size;
  double t;        // |.|_1^2 / |.|_2^2
  double l1;       // |.|_1, DESIGN's a
  int64_t fewest;  // least number of non-zero coefficients that can have both norms
};

inline double sqrt_of(double x) { return std::sqrt(x); }
inline Vector<double> sqrt_of(Vector<double> x) {
  for (int l = 0; l < kLanes<double>; ++l) x[l] = std::sqrt(x[l]);
  return x;
}

// Soft threshold delta of a block. d holds its magnitudes minus their maximum, descending; d1 and d2 are the
// prefix sums of d and d*d. delta is delta_n of the smallest n with d_{n+1} <= delta_n. The loop goes down,
// so the last match is kept.
template <class V>
inline V threshold(const V* d, const V* d1, const V* d2, const BlockNorms& norms) {
  V delta{};
  for (int64_t n = norms.size; n >= norms.fewest; --n) {
    const double count = static_cast<double>(n);
    const V s1 = d1[n - 1], s2 = d2[n - 1];
    const V candidate = (s1 - sqrt_of(norms.t * (count * s2 - s1 * s1) / (count - norms.t))) / count;
    delta = n == norms.size ? candidate : (d[n] <= candidate ? candidate : delta);
  }
  return delta;
}

// Replaces the radii of a block in which more than t magnitudes tie at the maximum. The first of the tied
// ones gets one radius, the others another; all smaller magnitudes become 0.
void tied_radii(double* r, int64_t stride, const BlockNorms& norms) {
  double greatest = 0;
  for (int64_t j = 0; j < norms.size; ++j) greatest = std::max(greatest, r[j * stride]);
  int64_t ties = 0;
  for (int64_t j = 0; j < norms.size; ++j) ties += r[j * stride] == greatest;
  const double k = static_cast<double>(ties);
  const double first =
      (norms.l1 + std::sqrt((k - 1) * (k * static_cast<double>(norms.size) - norms.l1 * norms.l1))) / k;
  const double other = (norms.l1 - first) / (k - 1);
  bool seen = false;
  for (int64_t j = 0; j < norms.size; ++j) {
    double& radius = r[j * stride];
    radius = radius == greatest ? (seen ? other : (seen = true, first)) : 0.0;
  }
}

// Working memory of one block (V = double) or of one block in each lane.
template <class V>
struct BlockMemory {
  V *re, *im, *radius, *d, *d1, *d2;
};

inline void sort_descending(Vector<double>* v, int64_t) {
  Network<16>::sort(v);
  std::reverse(v, v + 16);
}
inline void sort_descending(double* v, int64_t count) {
  std::sort(v, v + count);
  std::reverse(v, v + count);
}

// Replaces re and im, which must be finite, by the projected block.
template <class V>
inline void project_block(const BlockMemory<V>& b, const BlockNorms& norms) {
  const int64_t B = norms.size;
  for (int64_t j = 0; j < B; ++j) b.d[j] = b.radius[j] = sqrt_of(b.re[j] * b.re[j] + b.im[j] * b.im[j]);
  sort_descending(b.d, B);
  const V greatest = b.d[0];
  V s1{}, s2{};
  for (int64_t j = 0; j < B; ++j) {
    b.d[j] = b.d[j] - greatest;
    b.d1[j] = s1 = s1 + b.d[j];
    b.d2[j] = s2 = s2 + b.d[j] * b.d[j];
  }
  const V delta = threshold(b.d, b.d1, b.d2, norms);
  V total{};
  for (int64_t j = 0; j < B; ++j) {
    const V u = b.d[j] - delta;
    total = total + (u > 0 ? u : V{});
  }
  const V gain = norms.l1 / total;
  for (int64_t j = 0; j < B; ++j) {
    const V u = (b.radius[j] - greatest) - delta;
    b.d1[j] = gain * (u > 0 ? u : V{});  // the projected radius
  }
  constexpr int64_t lanes = sizeof(V) / sizeof(double);
  auto* d = reinterpret_cast<const double*>(b.d);
  for (int64_t l = 0; l < lanes; ++l) {
    if (d[(norms.fewest - 1) * lanes + l] != 0) continue;
    auto* radius = reinterpret_cast<double*>(b.d1) + l;
    for (int64_t j = 0; j < B; ++j) radius[j * lanes] = reinterpret_cast<double*>(b.radius)[j * lanes + l];
    tied_radii(radius, lanes, norms);
  }
  for (int64_t j = 0; j < B; ++j) {
    const auto zero = b.radius[j] == 0;
    const V factor = b.d1[j] / (zero ? V{} + 1 : b.radius[j]);
    b.re[j] = zero ? b.d1[j] : factor * b.re[j];
    b.im[j] = zero ? V{} : factor * b.im[j];
  }
}

// Reads a block of y into lane `lane`. Returns true if it is finite; otherwise the lane holds zeros.
template <class T, class V>
inline bool read_block(const T* y, const BlockMemory<V>& b, int64_t lane, int64_t size) {
  constexpr int64_t lanes = sizeof(V) / sizeof(double);
  auto *re = reinterpret_cast<double*>(b.re) + lane, *im = reinterpret_cast<double*>(b.im) + lane;
  T poison = 0;
  T largest = 0;
  for (int64_t j = 0; j < 2 * size; ++j) {
    poison += y[j] * 0;  // NaN if any is NaN or infinite
    if constexpr (sizeof(T) == 8) largest = std::max(largest, std::abs(y[j]));
  }
  const bool finite = poison == 0;
  // Squares of doubles may overflow or underflow; squares of floats, in double, cannot. The projection does
  // not depend on the scale of a block.
  const double divisor = sizeof(T) == 8 && largest > 0 ? largest : 1;
  for (int64_t j = 0; j < size; ++j) {
    re[j * lanes] = finite ? static_cast<double>(y[2 * j]) / divisor : 0;
    im[j * lanes] = finite ? static_cast<double>(y[2 * j + 1]) / divisor : 0;
  }
  return finite;
}

template <class T, class V>
inline void write_block(T* y, const BlockMemory<V>& b, int64_t lane, int64_t size, bool finite) {
  constexpr int64_t lanes = sizeof(V) / sizeof(double);
  const auto *re = reinterpret_cast<const double*>(b.re) + lane,
             *im = reinterpret_cast<const double*>(b.im) + lane;
  constexpr T nan = std::numeric_limits<T>::quiet_NaN();
  for (int64_t j = 0; j < size; ++j) {
    y[2 * j] = finite ? static_cast<T>(re[j * lanes]) : nan;
    y[2 * j + 1] = finite ? static_cast<T>(im[j * lanes]) : nan;
  }
}

// Projects `count` blocks, each in a lane of V.
template <class T, class V>
inline void project_lanes(const T* y, T* out, int64_t count, const BlockMemory<V>& memory,
                          const BlockNorms& norms) {
  constexpr int64_t lanes = sizeof(V) / sizeof(double);
  bool finite[lanes];
  for (int64_t l = 0; l < lanes; ++l) {
    // A lane without a block computes the last block again.
    finite[l] = read_block(y + 2 * std::min(l, count - 1) * norms.size, memory, l, norms.size);
  }
  project_block(memory, norms);
  for (int64_t l = 0; l < count; ++l) write_block(out + 2 * l * norms.size, memory, l, norms.size, finite[l]);
}

}  // namespace

template <class T>
void project_wgnc_blocks(const T* y, T* out, int64_t num_blocks, int64_t block_size) {
  const BlockNorms norms(block_size);
  parallel_for(num_blocks, std::max<int64_t>(1, kGrain / block_size), [&](int64_t begin, int64_t end) {
    if (block_size == 16) {
      using V = Vector<double>;
      V memory[6][16];
      const BlockMemory<V> block{memory[0], memory[1], memory[2], memory[3], memory[4], memory[5]};
      for (int64_t p = begin; p < end; p += kLanes<double>)
        project_lanes(y + 2 * p * block_size, out + 2 * p * block_size,
                      std::min<int64_t>(kLanes<double>, end - p), block, norms);
    } else {
      Scratch<double> memory(6 * block_size);
      double* v = memory.data();
      const int64_t n = block_size;
      const BlockMemory<double> block{v, v + n, v + 2 * n, v + 3 * n, v + 4 * n, v + 5 * n};
      for (int64_t p = begin; p < end; ++p) project_lanes(y + 2 * p * n, out + 2 * p * n, 1, block, norms);
    }
  });
}

// Replaces the FFT of a sample, read as h complex numbers, by that of its projection: `in` by `out`. `y`
// holds the spectrum in between.
template <class T, class In, class Out>
void project_spectrum(const In& in, T* y, const Out& out, int64_t h, Twiddles<T> w, int64_t block_size) {
  const double root = std::sqrt(2 * static_cast<double>(h));
  const InterleavedComplex<T> coefficients{y};
  // y_0 = (X_0 + i X_h)/sqrt2 and y_k = X_k.
  turn<HalfFft::to_spectrum>(h, w, static_cast<T>(std::sqrt(0.5) / root), static_cast<T>(0.5 / root), in,
                             coefficients);
  project_wgnc_blocks(y, y, h / block_size, block_size);
  turn<HalfFft::from_spectrum>(h, w, static_cast<T>(std::sqrt(2.0) / root), static_cast<T>(1 / root),
                               coefficients, out);
}

template <class T>
void project_wgnc(const T* x, T* out, int64_t batch, int64_t size, Twiddles<T> w, int64_t block_size) {
  for_each_sample(batch, [&](int64_t b) {
    T* result = out + b * size;
    ComplexFft<T> fft(size / 2, w);
    project_spectrum(fft.forward(x + b * size), result, fft.spectrum(), size / 2, w, block_size);
    fft.inverse(result);
  });
}

template <class T>
void wgnc_between_ffts(T* spectrum, int64_t batch, int64_t size, Twiddles<T> w, int64_t block_size) {
  for_each_sample(batch, [&](int64_t b) {
    T* y = spectrum + b * size;
    project_spectrum(InterleavedComplex<T>{y}, y, InterleavedComplex<T>{y}, size / 2, w, block_size);
  });
}

template <class T>
void add_wgnc_kernels(Kernels<T>& kernels) {
  kernels.project_wgnc_blocks = project_wgnc_blocks<T>;
  kernels.project_wgnc = project_wgnc<T>;
  kernels.wgnc_between_ffts = wgnc_between_ffts<T>;
}
template void add_wgnc_kernels<float>(Kernels<float>&);
template void add_wgnc_kernels<double>(Kernels<double>&);

}  // namespace noisetilt::NOISETILT_VARIANT
