#include "grid_twiddles.h"

#include <cmath>
#include <list>
#include <mutex>
#include <utility>

namespace noisetilt {
namespace {

constexpr size_t kMostBytes = 16 << 20;  // of the tables of one type that are kept

template <class T>
void append(std::vector<T>& factors, int64_t k, int64_t size) {
  const double angle = -2 * 3.14159265358979323846 * static_cast<double>(k) / static_cast<double>(size);
  factors.push_back(static_cast<T>(std::cos(angle)));
  factors.push_back(static_cast<T>(std::sin(angle)));
}

template <class T>
using TablePointer = std::shared_ptr<const std::vector<T>>;

// Tables by a and b, the last used first.
template <class T>
class LastUsed {
 public:
  using Key = std::pair<int64_t, int64_t>;

  template <class Compute>
  TablePointer<T> get(Key key, const Compute& compute) {
    if (TablePointer<T> factors = find(key)) return factors;
    auto factors = std::make_shared<std::vector<T>>();
    compute(*factors);
    if (factors->size() * sizeof(T) <= kMostBytes) keep(key, factors);
    return factors;
  }

 private:
  TablePointer<T> find(Key key) {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto it = kept_.begin(); it != kept_.end(); ++it) {
      if (it->first != key) continue;
      kept_.splice(kept_.begin(), kept_, it);
      return it->second;
    }
    return nullptr;
  }

  void keep(Key key, TablePointer<T> factors) {
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_.emplace_front(key, std::move(factors));
    size_t bytes = 0;
    for (auto it = kept_.begin(); it != kept_.end();) {
      bytes += it->second->size() * sizeof(T);
      it = bytes > kMostBytes ? kept_.erase(it) : std::next(it);
    }
  }

  std::mutex mutex_;
  std::list<std::pair<Key, TablePointer<T>>> kept_;
};

}  // namespace

template <class T>
TablePointer<T> grid_twiddles(int64_t a, int64_t b) {
  static auto* kept = new LastUsed<T>();  // never destroyed: threads may outlive main
  return kept->get({a, b}, [&](std::vector<T>& factors) {
    factors.reserve(static_cast<size_t>(a * b) * 2);
    for (int64_t row = 0; row < b; ++row)
      for (int64_t column = 0; column < a; ++column) append(factors, row * column, a * b);
  });
}

template TablePointer<float> grid_twiddles<float>(int64_t, int64_t);
template TablePointer<double> grid_twiddles<double>(int64_t, int64_t);

}  // namespace noisetilt
