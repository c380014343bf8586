// The FFT of samples read as complex numbers, on the CPU, from PyTorch's FFTs of short rows.
//
// A sample of h = a b complex numbers z is a matrix of a rows. With n = n1 b + n2 and k = k1 + a k2,
//
//     Z_k = sum over n2 of w_b^(n2 k2) w_h^(n2 k1) sum over n1 of w_a^(n1 k1) z_n,
//
// where w_m = exp(-2 pi i / m). So an FFT of every column is followed by a factor for every value and an FFT
// of every row. On one thread this takes two thirds of the time of a long FFT, whose factors PyTorch computes
// at every call. One thread does it alone: on two, the exchange between the cores takes longer than is
// gained.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "binding.h"
#include "cpu/grid_twiddles.h"
#include "cpu/scratch.h"
#include "openmp.h"

namespace noisetilt {

constexpr int64_t kLongestRow = 4096;          // a shorter sample is one row
constexpr int64_t kMostOnOwnThread = 1 << 17;  // PyTorch's threads serve a longer sample
constexpr int64_t kLine = 8;                   // values that are moved together

template <class T>
struct ComplexValue {
  T re, im;
};

template <class T>
Tensor fft_of_rows(const ComplexValue<T>* values, int64_t rows, int64_t length, bool inverse) {
  return fft_of_rows(&values->re, rows, length, inverse,
                     torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

// Largest divisor of h of at most its root.
inline int64_t divisor_near_root(int64_t h) {
  int64_t a = static_cast<int64_t>(std::sqrt(static_cast<double>(h)));
  while (h % a) --a;
  return a;
}

// Calls body(row, column, count) for blocks of `count` <= kLine rows at a column, for rows [begin, end). The
// count of a whole block is known at compile time.
template <class Body>
void for_lines(int64_t begin, int64_t end, int64_t columns, const Body& body) {
  for (; begin + kLine <= end; begin += kLine)
    for (int64_t column = 0; column < columns; ++column)
      body(begin, column, std::integral_constant<int64_t, kLine>{});
  for (int64_t column = 0; begin < end && column < columns; ++column) body(begin, column, end - begin);
}

template <class T>
void fft_of_sample(const ComplexValue<T>* z, ComplexValue<T>* out, int64_t h, bool inverse) {
  const int64_t a = h > kLongestRow && h <= kMostOnOwnThread ? divisor_near_root(h) : 1, b = h / a;
  const OwnThread own(h <= kMostOnOwnThread);
  if (a < kLine) {
    const Tensor result = fft_of_rows(z, 1, h, inverse);
    std::copy_n(data<ComplexValue<T>>(result), h, out);
    return;
  }
  const auto factors = grid_twiddles<T>(a, b);
  const T* w = factors->data();
  const T sign = inverse ? -1 : 1;
  Scratch<ComplexValue<T>> columns(h), between(h);

  for_lines(0, b, a, [&](int64_t n2, int64_t n1, auto count) {
    for (int64_t i = 0; i < count; ++i) columns[(n2 + i) * a + n1] = z[n1 * b + n2 + i];
  });
  const Tensor of_columns = fft_of_rows(columns.data(), b, a, inverse);
  const auto* y = data<const ComplexValue<T>>(of_columns);
  for_lines(0, b, a, [&](int64_t n2, int64_t k1, auto count) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = (n2 + i) * a + k1;
      const T c = w[2 * place], s = sign * w[2 * place + 1];
      between[k1 * b + n2 + i] = {y[place].re * c - y[place].im * s, y[place].re * s + y[place].im * c};
    }
  });
  const Tensor of_rows = fft_of_rows(between.data(), a, b, inverse);
  const auto* result = data<const ComplexValue<T>>(of_rows);
  for_lines(0, a, b, [&](int64_t k1, int64_t k2, auto count) {
    for (int64_t i = 0; i < count; ++i) out[k2 * a + k1 + i] = result[(k1 + i) * b + k2];
  });
}

}  // namespace noisetilt
