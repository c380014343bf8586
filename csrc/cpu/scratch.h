// Uninitialised working memory of one call. Freed blocks are kept by their thread for the next call.
// Otherwise page faults would take half the time of a small projection.
#pragma once

#include <cstddef>
#include <cstdint>

namespace noisetilt {

void* take_scratch(size_t bytes);  // throws std::bad_alloc
void give_scratch(void* block, size_t bytes);

template <class E>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : bytes_(static_cast<size_t>(count) * sizeof(E)), data_(static_cast<E*>(take_scratch(bytes_))) {}
  ~Scratch() { give_scratch(data_, bytes_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  E* data() { return data_; }
  E& operator[](int64_t i) { return data_[i]; }
  const E& operator[](int64_t i) const { return data_[i]; }

 private:
  size_t bytes_;
  E* data_;
};

}  // namespace noisetilt
