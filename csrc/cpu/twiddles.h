// Twiddle factors exp(-2 pi i k / size), interleaved, computed in double and rounded once. The tables of the
// last sizes are kept, up to 16 MB for each function and type. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace noisetilt {

// A table, kept as long as this exists. The variants of the kernels use it, so no function of the standard
// library may be called inline here: the linker would keep one variant's copy for all code.
template <class T>
class Twiddles {
 public:
  explicit Twiddles(std::shared_ptr<const std::vector<T>> table);
  ~Twiddles();
  Twiddles(const Twiddles&) = delete;
  Twiddles& operator=(const Twiddles&) = delete;

  const T* data() const { return data_; }

 private:
  std::shared_ptr<const std::vector<T>> table_;
  const T* data_;
};

// Of the real FFT of half length: k = 0 .. size/4.
template <class T>
Twiddles<T> twiddles(int64_t size);

// Of a FFT of a b values in two steps: k = row column, for b rows and a columns; size = a b.
template <class T>
Twiddles<T> grid_twiddles(int64_t a, int64_t b);

}  // namespace noisetilt
