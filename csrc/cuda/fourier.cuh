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
  // A block has one slab of neighbouring columns. Or it has several: if R < h, a second one with the mirror
  // images of these columns; if R = h, and a sample has one column, those of other samples.
  PowerOfTwo columns, slabs;
  // Rows of shared memory without a gap. A gap puts rows that threads access together into different banks.
  PowerOfTwo rows_together{kLogMostRadix};

  __host__ __device__ int32_t shared_row(int32_t row) const { return row + (row >> rows_together.log); }
  // Numbers of a slab in shared memory. Its last row is a gap.
  __host__ __device__ int32_t shared_size() const { return (shared_row(radix.value()) + 1) << columns.log; }
  __host__ __device__ int32_t numbers_in_shared() const { return slabs.value() * shared_size(); }
  __device__ bool mirrored() const { return radix.log < size.log && slabs.log > 0; }
};

// Work of a block on its columns. A place in shared memory belongs to a slab, a column of it and a row.
template <class T>
class BlockFft {
 public:
  using Value = Complex<T>;

  __device__ explicit BlockFft(const FftPass<T>& pass)
      : pass_(pass), factors_{pass.factors, pass.size.value()}, across_(pass.size / pass.radix) {
    if (pass.radix.log == pass.size.log) {
      first_sample_ = static_cast<int64_t>(blockIdx.x) << pass.slabs.log;
      slabs_ = static_cast<int32_t>(min(int64_t(pass.slabs.value()), pass.batch - first_sample_));
      first_column_ = 0;
    } else {
      const PowerOfTwo blocks = across_ / (pass.columns * pass.slabs);  // of a sample
      first_sample_ = blockIdx.x >> blocks.log;
      slabs_ = pass.slabs.value();
      first_column_ = pass.columns.times(blocks.remainder(blockIdx.x));
    }
  }

  __device__ int32_t slabs() const { return slabs_; }
  // Place of the first value of a slab's sample in an array of samples.
  __device__ int64_t begin_of(int32_t slab) const {
    return (first_sample_ + (pass_.mirrored() ? 0 : slab)) << pass_.size.log;
  }
  __device__ int32_t place(int32_t slab, int32_t column, int32_t row) const {
    return slab * pass_.shared_size() + pass_.columns.times(pass_.shared_row(row)) + column;
  }

  // Sources and sinks of a step: each returns a function that reads or writes value t of a column, at row
  // `row` + t `stride`.
  __device__ auto from_global(const Value* in) const {
    return [this, in](int32_t slab, int32_t column, int32_t row, PowerOfTwo stride) {
      const Value* first = in + begin_of(slab) + number_of(slab, column) + across_.times(row);
      return [first, apart = (across_ * stride).value()](int32_t t) { return first[t * apart]; };
    };
  }
  __device__ auto from_shared(const Value* in) const {
    return [this, in](int32_t slab, int32_t column, int32_t row, PowerOfTwo stride) {
      const Value* first = in + place(slab, column, row);
      return [first, apart = place(0, 0, stride.value())](int32_t t) { return first[t * apart]; };
    };
  }
  __device__ auto to_shared(Value* out) const {
    return [this, out](int32_t slab, int32_t column, int32_t row, PowerOfTwo stride) {
      Value* first = out + place(slab, column, row);
      return [first, apart = place(0, 0, stride.value())](int32_t t, Value v) { first[t * apart] = v; };
    };
  }
  // `kExchange`: the results are those of an inverse FFT.
  template <bool kExchange>
  __device__ auto to_global(Value* out) const {
    return [this, out](int32_t slab, int32_t column, int32_t row, PowerOfTwo stride) {
      const PowerOfTwo spread = pass_.size / pass_.length;
      const int32_t g = number_of(slab, column), q = spread.remainder(g), p = spread.quotient(g);
      Value* first = out + begin_of(slab) + q + spread.times(pass_.radix.times(p) + row);
      return [first, apart = (spread * stride).value()](int32_t t, Value v) {
        first[t * apart] = kExchange ? exchanged(v) : v;
      };
    };
  }

  // The next step, after steps of radix `done` together. Returns done times its radix. Neighbouring threads
  // take `together` neighbouring rows, then the columns of a slab, then other rows.
  template <class Source, class Sink>
  __device__ PowerOfTwo step(PowerOfTwo done, const Source& source, const Sink& sink,
                             PowerOfTwo together = {0}) const {
    const PowerOfTwo radix = step_radix(pass_.radix / done);
    switch (radix.log) {
      case 0:
        step_of<0>(done, source, sink, together);
        break;
      case 1:
        step_of<1>(done, source, sink, together);
        break;
      case 2:
        step_of<2>(done, source, sink, together);
        break;
      case 3:
        step_of<3>(done, source, sink, together);
        break;
      default:
        step_of<4>(done, source, sink, together);
    }
    __syncthreads();
    return done * radix;
  }

  // Calls body(slab, k, n, at_k, at_n) for all pairs of coefficients k <= h/2 and n = h - k of the block's
  // columns, with their places. The pair of 0 is the middle, h/2.
  template <class Body>
  __device__ void for_each_pair(const Body& body) const {
    const PowerOfTwo half{max(0, pass_.radix.log - 1)};
    const PowerOfTwo pairs = pass_.mirrored() ? pass_.radix * pass_.columns : half;  // of a sample
    const int32_t samples = pass_.mirrored() ? 1 : slabs_;
    for (int32_t item = threadIdx.x; item < pairs.times(samples); item += blockDim.x) {
      const int32_t sample = pairs.quotient(item), column = pass_.columns.remainder(pairs.remainder(item));
      int32_t slab = sample, other_slab = 1, row = pass_.columns.quotient(pairs.remainder(item));
      int32_t other_row = pass_.radix.value() - 1 - row;
      if (first_column_ + column == 0) {
        // Column 0 is its own mirror image. So is the column in its mirror image's place.
        const bool other = row >= half.value() && pass_.mirrored();
        row -= other ? half.value() : 0;
        slab = other_slab = other ? 1 : sample;
        other_row = other      ? pass_.radix.value() - 1 - row
                    : row == 0 ? pass_.radix.value() / 2
                               : pass_.radix.value() - row;
      }
      const int32_t k = number_of(slab, column) + across_.times(row);
      const int32_t n = k == 0 ? pass_.size.value() / 2 : pass_.size.value() - k;
      const int32_t at_k = place(slab, column, row), at_n = place(other_slab, column, other_row);
      body(slab, min(k, n), max(k, n), k < n ? at_k : at_n, k < n ? at_n : at_k);
    }
    __syncthreads();
  }

 private:
  // Number g of a column. The mirror image of column g is h/R - g. Column 0 is its own; h/(2R), which is its
  // own as well, takes the free place.
  __device__ int32_t number_of(int32_t slab, int32_t column) const {
    const int32_t g = first_column_ + column;
    if (!pass_.mirrored() || slab == 0) return g;
    return g == 0 ? across_.value() >> 1 : across_.value() - g;
  }

  template <int32_t kLogRadix, class Source, class Sink>
  __device__ void step_of(PowerOfTwo done, const Source& source, const Sink& sink,
                          PowerOfTwo together) const {
    constexpr int32_t kRadix = 1 << kLogRadix;
    const PowerOfTwo columns = pass_.columns, groups = pass_.radix / PowerOfTwo{kLogRadix};  // of a column
    const PowerOfTwo all = groups * columns, spread = pass_.size / pass_.length;
    for (int32_t item = threadIdx.x; item < all.times(slabs_); item += blockDim.x) {
      const int32_t slab = all.quotient(item), in_slab = all.remainder(item);
      const int32_t column = columns.remainder(together.quotient(in_slab));
      const int32_t group =
          together.remainder(in_slab) + together.times((together * columns).quotient(in_slab));
      const int32_t q = done.remainder(group), p = done.quotient(group);
      Value v[kRadix];
      const auto load = source(slab, column, group, groups);
#pragma unroll
      for (int32_t t = 0; t < kRadix; ++t) v[t] = load(t);
      stages<kRadix>(v, factors_, (pass_.length / done).value(),
                     spread.quotient(number_of(slab, column)) + (pass_.length / pass_.radix).times(p));
      const auto store = sink(slab, column, q + done.times(p << kLogRadix), done);
#pragma unroll
      for (int32_t t = 0; t < kRadix; ++t) store(t, v[t]);
    }
  }

  const FftPass<T>& pass_;
  const StageFactors<T> factors_;
  const PowerOfTwo across_;  // h/R columns of a sample
  int64_t first_sample_;
  int32_t slabs_, first_column_;
};

}  // namespace noisetilt::cuda
