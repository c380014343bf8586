#include "twiddles.h"

#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

namespace noisetilt {

template <class T>
const T* twiddles(int64_t size) {
  static std::mutex mutex;
  static auto* kept = new std::map<int64_t, std::vector<T>>();  // never destroyed: threads may outlive main
  const std::lock_guard<std::mutex> lock(mutex);
  std::vector<T>& factors = (*kept)[size];
  if (factors.empty()) {
    const double pi = 3.14159265358979323846;
    for (int64_t k = 0; k <= size / 4; ++k) {
      const double angle = -2 * pi * static_cast<double>(k) / static_cast<double>(size);
      factors.push_back(static_cast<T>(std::cos(angle)));
      factors.push_back(static_cast<T>(std::sin(angle)));
    }
  }
  return factors.data();
}

template const float* twiddles<float>(int64_t);
template const double* twiddles<double>(int64_t);

}  // namespace noisetilt
