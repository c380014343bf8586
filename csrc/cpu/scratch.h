// Uninitialised working memory of one call. malloc keeps freed blocks of these sizes at hand, so a repeated
// call finds its memory mapped.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace noisetilt::NOISETILT_VARIANT {

template <class E>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(static_cast<E*>(std::malloc(sizeof(E) * static_cast<size_t>(count ? count : 1)))) {
    if (!data_) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  E* data() { return data_; }
  E& operator[](int64_t i) { return data_[i]; }

 private:
  E* data_;
};

}  // namespace noisetilt::NOISETILT_VARIANT
