// Compact Fourier transform and WGNC of samples of 2^k values, with an FFT whose rounding is defined
// (python_ref/fourier.py).

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "fourier.cuh"
#include "runtime.h"
#include "wgnc_block.cuh"

namespace noisetilt::cuda {
namespace {

using Tuning = Policy::Fourier;
constexpr int kBlockThreads = Tuning::kBlockThreads, kBlocksPerSm = Tuning::kBlocksPerSm;

// Neighbouring rows of a column that fill a sector of 32 bytes. In the first pass, the results of a column
// follow each other in memory.
constexpr PowerOfTwo kRowsOfSector{2};

// Coefficient k of a sample's spectrum. Packed, real parts begin at 1 and imaginary parts at h. Unpacked,
// they are interleaved. Coefficient 0 has the two real ends of the spectrum.
template <bool kPacked, class T>
__device__ inline Complex<T> load_coefficient(const T* spectrum, int32_t k, int32_t h) {
  if constexpr (!kPacked) return reinterpret_cast<const Complex<T>*>(spectrum)[k];
  return {spectrum[k > 0 ? 1 + k : 0], spectrum[k > 0 ? h + k : 1]};
}
template <bool kPacked, class T>
__device__ inline void store_coefficient(T* spectrum, int32_t k, int32_t h, Complex<T> value) {
  if constexpr (kPacked) {
    spectrum[k > 0 ? 1 + k : 0] = value.re;
    spectrum[k > 0 ? h + k : 1] = value.im;
  } else {
    reinterpret_cast<Complex<T>*>(spectrum)[k] = value;
  }
}

// Turns Z_k and its partner Z_n into the spectrum or back, times scales. n is h - k. The partner of 0 is the
// middle, which is turned with itself.
template <class T>
struct TurnScales {
  T ends, pairs;
  template <HalfFft kDirection>
  __device__ void turn(Complex<T>& a, Complex<T>& b, int32_t k, int32_t n, const Twiddles<T>& turns) const {
    Complex<T> c = k > 0 ? a : b;
    turn_pair<kDirection>(c, b, factor(turns, k > 0 ? k : n), pairs);
    a = k > 0 ? c : turn_ends(a.re, a.im, ends);
  }
};

// Two arrays in shared memory between which the steps of a block alternate.
template <class T>
struct SharedArrays {
  Complex<T>*from, *to;
  __device__ explicit SharedArrays(const FftPass<T>& pass)
      : from(reinterpret_cast<Complex<T>*>(dynamic_shared_memory())), to(from + pass.numbers_in_shared()) {}
  // Takes steps until `done` is `end`. The result is in `from`.
  __device__ void steps(const BlockFft<T>& fft, PowerOfTwo& done, PowerOfTwo end) {
    while (done.log < end.log) {
      done = fft.step(done, fft.from_shared(from), fft.to_shared(to));
      Complex<T>* swapped = from;
      from = to;
      to = swapped;
    }
  }
  // Takes all steps, the last of them to global memory.
  template <bool kExchange>
  __device__ void steps_to_global(const BlockFft<T>& fft, const FftPass<T>& pass, Complex<T>* out) {
    PowerOfTwo done{0};
    steps(fft, done, before_last_step(pass.radix));
    fft.step(done, fft.from_shared(from), fft.template to_global<kExchange>(out), kRowsOfSector);
  }
};

// A pass that is not next to the spectrum: at most two steps.
template <class T, bool kExchange>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerSm)
    fft_columns_kernel(const Complex<T>* in, Complex<T>* out, const __grid_constant__ FftPass<T> pass) {
  auto* shared = reinterpret_cast<Complex<T>*>(dynamic_shared_memory());
  const BlockFft<T> fft(pass);
  const PowerOfTwo done = fft.step({0}, fft.from_global(in), fft.to_shared(shared));
  const bool first = pass.length.log == pass.size.log;
  fft.step(done, fft.from_shared(shared), fft.template to_global<kExchange>(out),
           first ? kRowsOfSector : PowerOfTwo{0});
}

// The last pass of an FFT, and the step to the spectrum.
template <class T, bool kPacked>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerSm)
    fft_to_spectrum_kernel(const Complex<T>* in, T* out, const __grid_constant__ FftPass<T> pass,
                           TurnScales<T> scales) {
  SharedArrays<T> arrays(pass);
  const BlockFft<T> fft(pass);
  PowerOfTwo done = fft.step({0}, fft.from_global(in), fft.to_shared(arrays.from));
  arrays.steps(fft, done, pass.radix);
  const int32_t h = pass.size.value();
  fft.for_each_pair([&](int32_t slab, int32_t k, int32_t n, int32_t at_k, int32_t at_n) {
    T* spectrum = out + 2 * fft.begin_of(slab);
    Complex<T> a = arrays.from[at_k], b = arrays.from[at_n];
    scales.template turn<HalfFft::to_spectrum>(a, b, k, n, pass.turns);
    store_coefficient<kPacked>(spectrum, n, h, b);
    store_coefficient<kPacked>(spectrum, k, h, a);
  });
}

// The step from the spectrum, and the first pass of an inverse FFT.
template <class T, bool kPacked, bool kExchange>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerSm)
    fft_from_spectrum_kernel(const T* in, Complex<T>* out, const __grid_constant__ FftPass<T> pass,
                             TurnScales<T> scales) {
  SharedArrays<T> arrays(pass);
  const BlockFft<T> fft(pass);
  const int32_t h = pass.size.value();
  fft.for_each_pair([&](int32_t slab, int32_t k, int32_t n, int32_t at_k, int32_t at_n) {
    const T* spectrum = in + 2 * fft.begin_of(slab);
    Complex<T> a = load_coefficient<kPacked>(spectrum, k, h), b = load_coefficient<kPacked>(spectrum, n, h);
    scales.template turn<HalfFft::from_spectrum>(a, b, k, n, pass.turns);
    arrays.from[at_n] = exchanged(b);
    arrays.from[at_k] = exchanged(a);
  });
  arrays.template steps_to_global<kExchange>(fft, pass, out);
}

// WGNC of samples that fit into a block, in blocks of 16 coefficients.
template <class T>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerSm)
    project_wgnc_kernel(const Complex<T>* in, Complex<T>* out, const __grid_constant__ FftPass<T> pass,
                        TurnScales<T> forth, TurnScales<T> back, const __grid_constant__ BlockNorms norms) {
  SharedArrays<T> arrays(pass);
  const BlockFft<T> fft(pass);
  PowerOfTwo done = fft.step({0}, fft.from_global(in), fft.to_shared(arrays.from));
  arrays.steps(fft, done, pass.radix);
  Complex<T>* y = arrays.from;
  fft.for_each_pair([&](int32_t, int32_t k, int32_t n, int32_t at_k, int32_t at_n) {
    Complex<T> a = y[at_k], b = y[at_n];
    forth.template turn<HalfFft::to_spectrum>(a, b, k, n, pass.turns);
    y[at_n] = b;
    y[at_k] = a;
  });
  const PowerOfTwo blocks = pass.size / PowerOfTwo{4};  // of a sample
  project_wgnc_blocks_of_16(
      blocks.times(fft.slabs()),
      [&](int32_t b) { return y + fft.place(blocks.quotient(b), 0, blocks.remainder(b) * kWgncBlock); },
      norms);
  __syncthreads();
  fft.for_each_pair([&](int32_t, int32_t k, int32_t n, int32_t at_k, int32_t at_n) {
    Complex<T> a = y[at_k], b = y[at_n];
    back.template turn<HalfFft::from_spectrum>(a, b, k, n, pass.turns);
    y[at_n] = exchanged(b);
    y[at_k] = exchanged(a);
  });
  arrays.template steps_to_global<true>(fft, pass, out);
}

// ---- host ----

int32_t log2_of(int64_t x) {
  int32_t log = 0;
  while ((int64_t(1) << log) < x) ++log;
  return log;
}

// The passes of an FFT, and their launches.
template <class T>
class Fft {
 public:
  Fft(const Launch& launch, int64_t batch, int64_t size, const Twiddles<T>& factors)
      : launch_(launch), numbers_(batch * size / 2) {
    FftPass<T> pass{};
    pass.factors = factors;
    const int64_t first_turn = num_stage_twiddles(size / 2);
    pass.turns = {factors.re + first_turn, factors.im + first_turn};
    pass.batch = batch;
    pass.size = pass.length = pass.radix = {log2_of(size / 2)};
    if (pass.size.log <= Tuning::kLogMostInBlock && fits(pass, 2)) {
      // Small samples share a block.
      pass.slabs = {std::max(0, Tuning::kLogNumbersOfSmallSamples - pass.size.log)};
      while (!fits(pass, 2) && pass.slabs.log > 0) --pass.slabs.log;
      passes_.push_back(pass);
      return;
    }
    // All radices but the last are powers of four.
    for (int32_t left = (pass.size.log + Tuning::kLogMostPass - 1) / Tuning::kLogMostPass; left > 0; --left) {
      const int32_t log = pass.length.log;
      pass.radix = {left > 1 ? (log + 2 * left - 1) / (2 * left) * 2 : log};
      passes_.push_back(pass);
      pass.length = pass.length / pass.radix;
    }
  }
  bool is_one_pass() const { return passes_.size() == 1; }

  template <bool kPacked>
  void to_spectrum(const Complex<T>* x, T* spectrum, const TurnScales<T>& scales) {
    for (size_t k = 0; k + 1 < passes_.size(); ++k) {
      run(fft_columns_kernel<T, false>, passes_[k], 1, x, buffer(k));
      x = buffer(k);
    }
    run(fft_to_spectrum_kernel<T, kPacked>, next_to_spectrum(passes_.back()), 2, x, spectrum, scales);
  }
  template <bool kPacked>
  void from_spectrum(const T* spectrum, Complex<T>* x, const TurnScales<T>& scales) {
    const FftPass<T> first = without_gaps_if_short(next_to_spectrum(passes_.front()));
    if (is_one_pass()) return run(fft_from_spectrum_kernel<T, kPacked, true>, first, 2, spectrum, x, scales);
    const size_t last = passes_.size() - 1;
    run(fft_from_spectrum_kernel<T, kPacked, false>, first, 2, spectrum, buffer(0), scales);
    for (size_t k = 1; k < last; ++k)
      run(fft_columns_kernel<T, false>, passes_[k], 1, buffer(k - 1), buffer(k));
    run(fft_columns_kernel<T, true>, passes_[last], 1, buffer(last - 1), x);
  }
  // Needs samples that fit into a block.
  void project_wgnc(const Complex<T>* x, Complex<T>* out, const TurnScales<T>& forth,
                    const TurnScales<T>& back, const BlockNorms& norms) {
    run(project_wgnc_kernel<T>, without_gaps_if_short(passes_.front()), 2, x, out, forth, back, norms);
  }

 private:
  bool fits(const FftPass<T>& pass, int arrays) const {
    return arrays * pass.numbers_in_shared() * int64_t(sizeof(Complex<T>)) <=
           launch_.device->limits.max_shared_bytes;
  }

  FftPass<T> next_to_spectrum(FftPass<T> pass) const {
    if (!is_one_pass()) pass.slabs = {1};
    return pass;
  }
  // The first step reads rows that are R/16 apart, which must be a multiple of rows_together.
  static FftPass<T> without_gaps_if_short(FftPass<T> pass) {
    if (pass.radix.log < 2 * kLogMostRadix) pass.rows_together = {31};
    return pass;
  }

  // Launches the kernel of a pass, whose blocks have `arrays` arrays in shared memory.
  template <class Kernel, class In, class Out, class... Arguments>
  void run(Kernel kernel, FftPass<T> pass, int arrays, const In* in, Out* out,
           const Arguments&... rest) const {
    const PowerOfTwo across = pass.size / pass.radix;
    int64_t blocks = (pass.batch + pass.slabs.value() - 1) >> pass.slabs.log;
    if (across.log > 0) {
      pass.columns = {std::min(across.log - pass.slabs.log, Tuning::kLogColumns)};
      while (!fits(pass, arrays) && pass.columns.log > 0) --pass.columns.log;
      blocks = pass.batch << (across / (pass.columns * pass.slabs)).log;
    }
    const int64_t numbers = int64_t(1) << (pass.radix * pass.columns * pass.slabs).log;
    const int threads = static_cast<int>(std::max<int64_t>(numbers >> kLogMostRadix, kWarpThreads));
    enqueue(launch_, kernel, Residence::any, blocks, std::min(threads, block_threads(launch_, kBlockThreads)),
            static_cast<size_t>(arrays * pass.numbers_in_shared()) * sizeof(Complex<T>), in, out, pass,
            rest...);
  }

  // Passes alternate between two buffers.
  Complex<T>* buffer(size_t k) const {
    const auto count = static_cast<int64_t>(std::min<size_t>(passes_.size() - 1, 2)) * numbers_;
    auto* memory = working_memory(launch_, static_cast<size_t>(count) * sizeof(Complex<T>));
    return reinterpret_cast<Complex<T>*>(memory) + static_cast<int64_t>(k % 2) * numbers_;
  }

  const Launch& launch_;
  const int64_t numbers_;  // of the batch
  std::vector<FftPass<T>> passes_;
};

template <class T>
const Complex<T>* as_complex(const T* values) {
  return reinterpret_cast<const Complex<T>*>(values);
}
template <class T>
Complex<T>* as_complex(T* values) {
  return reinterpret_cast<Complex<T>*>(values);
}

template <class T>
TurnScales<T> scales_of(double ends, double pairs) {
  return {static_cast<T>(ends), static_cast<T>(pairs)};
}

}  // namespace

template <class T>
void compact_fourier(const Launch& launch, const T* x, T* out, int64_t batch, int64_t size,
                     Twiddles<T> factors, bool inverse) {
  if (batch == 0) return;
  require_complex(inverse ? out : x);
  const double n = static_cast<double>(size);
  // The inverse is the transpose, so it has the same scales.
  const auto scales = scales_of<T>(1 / std::sqrt(n), std::sqrt(0.5 / n));
  Fft<T> fft(launch, batch, size, factors);
  if (inverse)
    fft.template from_spectrum<true>(x, as_complex(out), scales);
  else
    fft.template to_spectrum<true>(as_complex(x), out, scales);
}

template <class T>
void project_wgnc(const Launch& launch, const T* x, T* out, int64_t batch, int64_t size, Twiddles<T> factors,
                  int64_t block_size) {
  if (batch == 0) return;
  require_complex(x);
  require_complex(out);
  const double root = std::sqrt(static_cast<double>(size));
  const auto forth = scales_of<T>(std::sqrt(0.5) / root, 0.5 / root);
  const auto back = scales_of<T>(std::sqrt(2.0) / root, 1 / root);
  Fft<T> fft(launch, batch, size, factors);
  if (fft.is_one_pass() && block_size == kWgncBlock) {
    fft.project_wgnc(as_complex(x), as_complex(out), forth, back, BlockNorms(block_size));
    return;
  }
  fft.template to_spectrum<false>(as_complex(x), out, forth);
  project_wgnc_blocks<T>(launch, out, out, batch * size / 2 / block_size, block_size);
  fft.template from_spectrum<false>(out, as_complex(out), back);
}

#define NOISETILT_INSTANTIATE(T)                                                                      \
  template void compact_fourier<T>(const Launch&, const T*, T*, int64_t, int64_t, Twiddles<T>, bool); \
  template void project_wgnc<T>(const Launch&, const T*, T*, int64_t, int64_t, Twiddles<T>, int64_t);
NOISETILT_INSTANTIATE(float)
NOISETILT_INSTANTIATE(double)

}  // namespace noisetilt::cuda
