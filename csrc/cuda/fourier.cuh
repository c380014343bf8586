// FFT of N = 2^k real values (python_ref/fourier.py), as a complex FFT of length h = N/2 whose stages are
// grouped.
//
// Stages on transforms of length L with spread s = h/L form one transform of radix R: with z[g + j h/R] for
// j = 0 .. R - 1 as input, column g = q + s p gives the outputs q + s (R p + i), i = 0 .. R - 1. Stages with
// R = 2, 4, 8 or 16 are a step: a thread takes them in registers. Steps are a pass: a block takes several
// columns through them in shared memory. Steps number their values within a column in the same way.
#pragma once

#include "../problem.h"
#include "half_fft.cuh"
#include "team.cuh"

namespace noisetilt::cuda {

struct PowerOfTwo {
  int32_t log;
  __host__ __device__ constexpr int32_t value() const { return 1 << log; }
  __device__ int32_t quotient(int32_t x) const { return x >> log; }
  __device__ int32_t remainder(int32_t x) const { return x & (value() - 1); }
  __device__ int32_t times(int32_t x) const { return x << log; }
};
__host__ __device__ constexpr PowerOfTwo operator*(PowerOfTwo a, PowerOfTwo b) { return {a.log + b.log}; }
__host__ __device__ constexpr PowerOfTwo operator/(PowerOfTwo a, PowerOfTwo b) { return {a.log - b.log}; }

template <class T>
__device__ inline Complex<T> operator+(Complex<T> a, Complex<T> b) {
  return {a.re + b.re, a.im + b.im};
}
template <class T>
__device__ inline Complex<T> operator-(Complex<T> a, Complex<T> b) {
  return {a.re - b.re, a.im - b.im};
}
template <class T>
__device__ inline Complex<T> operator*(Complex<T> z, Complex<T> w) {
  return {z.re * w.re - z.im * w.im, z.re * w.im + z.im * w.re};
}
// An inverse FFT, not scaled, is the FFT with real and imaginary parts exchanged.
template <class T>
__device__ inline Complex<T> exchanged(Complex<T> z) {
  return {z.im, z.re};
}

// Factors of the stages for transforms of length `length`: those of longer ones come first.
template <class T>
struct StageFactors {
  Twiddles<T> all;
  int32_t h;
  // exp(-2 pi i ip/length)
  __device__ Complex<T> operator()(int32_t length, int32_t i, int32_t p) const {
    return factor(all, h - length + (i - 1) * (length / 4) + p);
  }
};

template <int32_t kRadix, class T>
__device__ inline void transform(Complex<T> (&v)[kRadix]) {
  if constexpr (kRadix == 2) {
    const Complex<T> sum = v[0] + v[1], difference = v[0] - v[1];
    v[0] = sum;
    v[1] = difference;
  } else {
    const Complex<T> even = v[0] + v[2], even_difference = v[0] - v[2];
    const Complex<T> odd = v[1] + v[3], odd_difference = v[1] - v[3];
    const Complex<T> turned{odd_difference.im, -odd_difference.re};  // times -i
    v[0] = even + odd;
    v[1] = even_difference + turned;
    v[2] = even - odd;
    v[3] = even_difference - turned;
  }
}

// The stages of a step, from transforms of length kLength of its values on. `length`: that of the sample's
// transforms at this stage. A stage that leaves transforms of length 1 multiplies by no factors.
template <int32_t kLength, class T, int32_t kRadix>
__device__ inline void stages(Complex<T> (&values)[kRadix], const StageFactors<T>& factors, int32_t length,
                              int32_t p) {
  if constexpr (kLength > 1) {
    constexpr int32_t kStage = kLength % 4 == 0 ? 4 : 2, kLeft = kLength / kStage, kSpread = kRadix / kLength;
    const bool multiply = kLeft > 1 || length > kStage;
    Complex<T> results[kRadix];
#pragma unroll
    for (int32_t j = 0; j < kLeft; ++j) {
      Complex<T> w[kStage];
      if (kStage == 4 && multiply)
#pragma unroll
        for (int32_t i = 1; i < kStage; ++i) w[i] = factors(length, i, p + j * (length / kLength));
#pragma unroll
      for (int32_t a = 0; a < kSpread; ++a) {
        Complex<T> v[kStage];
#pragma unroll
        for (int32_t i = 0; i < kStage; ++i) v[i] = values[a + kSpread * (j + i * kLeft)];
        transform(v);
#pragma unroll
        for (int32_t i = 0; i < kStage; ++i)
          results[a + kSpread * (kStage * j + i)] = i > 0 && kStage == 4 && multiply ? v[i] * w[i] : v[i];
      }
    }
#pragma unroll
    for (int32_t i = 0; i < kRadix; ++i) values[i] = results[i];
    stages<kLeft>(values, factors, length / kStage, p);
  }
}

constexpr int32_t kLogMostRadix = 4;  // of a step

// All steps but the last have the largest radix.
__device__ inline PowerOfTwo step_radix(PowerOfTwo left) { return {min(left.log, kLogMostRadix)}; }
__device__ inline PowerOfTwo before_last_step(PowerOfTwo all) {
  return {max(0, all.log - 1) / kLogMostRadix * kLogMostRadix};
}

// A pass, and how it is divided among blocks.
template <class T>
struct FftPass {
  Twiddles<T> factors;  // of the stages
  Twiddles<T> turns;    // exp(-2 pi i k/N)
  int64_t batch;
  PowerOfTwo size;           // h
  PowerOfTwo length, radix;  // L, R
  PowerOfTwo samples;        // of a block; more than one only if R = h
  PowerOfTwo columns;        // of a block
  bool mirrored;             // the second half of a block's columns are mirror images of the first

  // Row of a column in shared memory. A gap after every 16 rows puts those that steps read and write together
  // into different banks. In shorter columns, the rows of a step would not be equally far apart.
  __host__ __device__ int32_t shared_row(int32_t row) const {
    return radix.log < 2 * kLogMostRadix ? row : row + (row >> kLogMostRadix);
  }
  // Numbers of a sample in shared memory. The last row is a gap between samples.
  __host__ __device__ int32_t shared_size() const { return (shared_row(radix.value()) + 1) << columns.log; }
  __host__ __device__ int32_t numbers_in_shared() const { return samples.value() * shared_size(); }
};

// Work of a block on its columns. A place in shared memory belongs to a sample, a column and a row.
template <class T>
class BlockFft {
 public:
  using Value = Complex<T>;

  __device__ explicit BlockFft(const FftPass<T>& pass)
      : pass_(pass),
        factors_{pass.factors, pass.size.value()},
        across_(pass.size / pass.radix),
        half_(pass.mirrored ? pass.columns / PowerOfTwo{1} : pass.columns) {
    const PowerOfTwo blocks = across_ / pass.columns;  // of a sample
    first_sample_ = static_cast<int64_t>(blockIdx.x >> blocks.log) << pass.samples.log;
    samples_ = static_cast<int32_t>(min(int64_t(pass.samples.value()), pass.batch - first_sample_));
    first_column_ = half_.times(blocks.remainder(blockIdx.x));
  }

  __device__ int32_t samples() const { return samples_; }
  // Place of a sample's first value in an array of samples.
  __device__ int64_t begin_of(int32_t sample) const { return (first_sample_ + sample) << pass_.size.log; }
  __device__ int32_t place(int32_t sample, int32_t column, int32_t row) const {
    return sample * pass_.shared_size() + pass_.columns.times(pass_.shared_row(row)) + column;
  }

  // Sources and sinks of a step: each returns a function that reads or writes value t of a column, at row
  // `row` + t `stride`.
  __device__ auto from_global(const Value* in) const {
    return [this, in](int32_t sample, int32_t column, int32_t row, PowerOfTwo stride) {
      const Value* first = in + begin_of(sample) + number_of(column) + across_.times(row);
      return [first, apart = (across_ * stride).value()](int32_t t) { return first[t * apart]; };
    };
  }
  __device__ auto from_shared(const Value* in) const {
    return [this, in](int32_t sample, int32_t column, int32_t row, PowerOfTwo stride) {
      const Value* first = in + place(sample, column, row);
      return [first, apart = place(0, 0, stride.value())](int32_t t) { return first[t * apart]; };
    };
  }
  __device__ auto to_shared(Value* out) const {
    return [this, out](int32_t sample, int32_t column, int32_t row, PowerOfTwo stride) {
      Value* first = out + place(sample, column, row);
      return [first, apart = place(0, 0, stride.value())](int32_t t, Value v) { first[t * apart] = v; };
    };
  }
  // `kExchange`: the results are those of an inverse FFT.
  template <bool kExchange>
  __device__ auto to_global(Value* out) const {
    return [this, out](int32_t sample, int32_t column, int32_t row, PowerOfTwo stride) {
      const PowerOfTwo spread = pass_.size / pass_.length;
      const int32_t g = number_of(column), q = spread.remainder(g), p = spread.quotient(g);
      Value* first = out + begin_of(sample) + q + spread.times(pass_.radix.times(p) + row);
      return [first, apart = (spread * stride).value()](int32_t t, Value v) {
        first[t * apart] = kExchange ? exchanged(v) : v;
      };
    };
  }

  // The next step, after steps of radix `done` together. Returns done times its radix. Neighbouring threads
  // take neighbouring columns, or, `by_rows`, neighbouring rows.
  template <class Source, class Sink>
  __device__ PowerOfTwo step(PowerOfTwo done, const Source& source, const Sink& sink,
                             bool by_rows = false) const {
    const PowerOfTwo radix = step_radix(pass_.radix / done);
    switch (radix.log) {
      case 0:
        step_of<0>(done, source, sink, by_rows);
        break;
      case 1:
        step_of<1>(done, source, sink, by_rows);
        break;
      case 2:
        step_of<2>(done, source, sink, by_rows);
        break;
      case 3:
        step_of<3>(done, source, sink, by_rows);
        break;
      default:
        step_of<4>(done, source, sink, by_rows);
    }
    __syncthreads();
    return done * radix;
  }

  // Calls body(sample, k, a, b) for all pairs of coefficients k and h - k, 0 <= k <= h/2, of the block's
  // columns. a and b are their places. Coefficient 0 has no partner.
  template <class Body>
  __device__ void for_each_pair(const Body& body) const {
    const int32_t R = pass_.radix.value(), half = half_.value();
    const PowerOfTwo pairs{max(0, pass_.radix.log + pass_.columns.log - 1)};  // of a sample
    for (int32_t item = threadIdx.x; item < pairs.times(samples_); item += blockDim.x) {
      const int32_t sample = pairs.quotient(item), left = half_.remainder(pairs.remainder(item));
      const int32_t row = half_.quotient(pairs.remainder(item));
      const auto pair = [&](int32_t column, int32_t row, int32_t other_column, int32_t other_row) {
        const int32_t k = number_of(column) + across_.times(row), n = pass_.size.value() - k;
        const int32_t a = place(sample, column, row), b = place(sample, other_column, other_row);
        k <= n ? body(sample, k, a, b) : body(sample, n, b, a);
      };
      if (first_column_ + left > 0) {
        pair(left, row, left + half, R - 1 - row);
      } else if (row == 0) {
        pair(0, 0, 0, 0);
        if (R > 1) pair(0, R / 2, 0, R / 2);
      } else if (row < R / 2) {
        pair(0, row, 0, R - row);
      } else {
        pair(half, row - R / 2, half, R - 1 - (row - R / 2));
      }
    }
    __syncthreads();
  }

 private:
  // Number g of a column of the block. The mirror image of column g is h/R - g. Column 0 is its own, so is
  // h/(2R), which takes the free place.
  __device__ int32_t number_of(int32_t column) const {
    if (column < half_.value()) return first_column_ + column;
    const int32_t g = first_column_ + column - half_.value();
    return g == 0 ? across_.value() / 2 : across_.value() - g;
  }

  template <int32_t kLogRadix, class Source, class Sink>
  __device__ void step_of(PowerOfTwo done, const Source& source, const Sink& sink, bool by_rows) const {
    constexpr int32_t kRadix = 1 << kLogRadix;
    const PowerOfTwo groups = pass_.radix / PowerOfTwo{kLogRadix}, columns = pass_.columns;  // of a column
    const PowerOfTwo inner = by_rows ? groups : columns, spread = pass_.size / pass_.length;
    for (int32_t item = threadIdx.x; item < (groups * columns).times(samples_); item += blockDim.x) {
      const int32_t sample = (groups * columns).quotient(item), rest = (groups * columns).remainder(item);
      const int32_t fast = inner.remainder(rest), slow = inner.quotient(rest);
      const int32_t column = by_rows ? slow : fast, group = by_rows ? fast : slow;
      const int32_t q = done.remainder(group), p = done.quotient(group);
      Value v[kRadix];
      const auto load = source(sample, column, group, groups);
#pragma unroll
      for (int32_t t = 0; t < kRadix; ++t) v[t] = load(t);
      stages<kRadix>(v, factors_, (pass_.length / done).value(),
                     spread.quotient(number_of(column)) + (pass_.length / pass_.radix).times(p));
      const auto store = sink(sample, column, q + done.times(p << kLogRadix), done);
#pragma unroll
      for (int32_t t = 0; t < kRadix; ++t) store(t, v[t]);
    }
  }

  const FftPass<T>& pass_;
  const StageFactors<T> factors_;
  const PowerOfTwo across_;  // h/R columns of a sample
  const PowerOfTwo half_;    // columns of a block that are no mirror images
  int64_t first_sample_;
  int32_t samples_, first_column_;
};

}  // namespace noisetilt::cuda
