#include "twiddles.h"

#include <cmath>
#include <list>
#include <mutex>

namespace noisetilt {
namespace {

constexpr size_t kMostBytes = 16 << 20;  // of the tables that are kept

template <class T>
std::shared_ptr<const std::vector<T>> compute(int64_t size) {
  auto factors = std::make_shared<std::vector<T>>();
  factors->reserve(static_cast<size_t>(size / 4 + 1) * 2);
  const double pi = 3.14159265358979323846;
  for (int64_t k = 0; k <= size / 4; ++k) {
    const double angle = -2 * pi * static_cast<double>(k) / static_cast<double>(size);
    factors->push_back(static_cast<T>(std::cos(angle)));
    factors->push_back(static_cast<T>(std::sin(angle)));
  }
  return factors;
}

}  // namespace

template <class T>
std::shared_ptr<const std::vector<T>> twiddles(int64_t size) {
  struct Kept {
    int64_t size;
    std::shared_ptr<const std::vector<T>> factors;
  };
  static std::mutex mutex;
  static auto* kept = new std::list<Kept>();  // last used first; never destroyed: threads may outlive main
  const std::lock_guard<std::mutex> lock(mutex);
  for (auto it = kept->begin(); it != kept->end(); ++it) {
    if (it->size != size) continue;
    kept->splice(kept->begin(), *kept, it);
    return it->factors;
  }
  kept->push_front({size, compute<T>(size)});
  size_t bytes = 0;
  for (auto it = kept->begin(); it != kept->end();) {
    bytes += it->factors->size() * sizeof(T);
    it = bytes > kMostBytes && it != kept->begin() ? kept->erase(it) : std::next(it);
  }
  return kept->front().factors;
}

template std::shared_ptr<const std::vector<float>> twiddles<float>(int64_t);
template std::shared_ptr<const std::vector<double>> twiddles<double>(int64_t);

}  // namespace noisetilt
