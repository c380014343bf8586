// Test of csrc/cpu without PyTorch, for the sanitizers. Runs every kernel of every variant on awkward sizes
// and values, compares the 2OS projection with its definition, and expects the same bits with 1, 2 and 7
// threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cpu/grid_twiddles.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace noisetilt {

static int threads = 1;

int num_threads() { return threads; }

}  // namespace noisetilt

using namespace noisetilt;

static int variant_under_test = 0;

template <class T>
static const Kernels<T>& tested() {
  return kernels<T>(variant_under_test);
}

static int failures = 0;

static void expect(bool condition, const char* what, int64_t a = 0, int64_t b = 0) {
  if (condition) return;
  ++failures;
  std::fprintf(stderr, "FAILED: %s (%lld, %lld)\n", what, static_cast<long long>(a),
               static_cast<long long>(b));
}

template <class T>
static bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] != a[i] && b[i] != b[i]) continue;
    if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0) return false;
  }
  return a.size() == b.size();
}

enum class Input { normal, few, special, sorted, outlier };

template <class T>
static std::vector<T> make_input(int64_t size, Input kind, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  std::vector<T> x(size);
  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const T special[] = {infinity,
                       -infinity,
                       nan,
                       -nan,
                       T(0),
                       T(-0.0),
                       std::numeric_limits<T>::denorm_min(),
                       std::numeric_limits<T>::max(),
                       std::numeric_limits<T>::lowest(),
                       T(1)};
  for (T& v : x) {
    v = static_cast<T>(normal(random));
    if (kind == Input::few) v = std::round(v);
    if (kind == Input::special && random() % 2) v = special[random() % 10];
    if (kind == Input::outlier && random() % 100 == 0) v *= T(1e6);
  }
  if (kind == Input::sorted) std::sort(x.begin(), x.end());
  return x;
}

// Table around the normal order statistics, tight enough that some values are clipped.
template <class T>
struct OwnedTable {
  std::vector<T> lower, upper;
  OwnedTable(int64_t M, int64_t D, bool monotone) : lower(M * D), upper(M * D) {
    for (int64_t r = 0; r < M; ++r) {
      for (int64_t j = 0; j < D; ++j) {
        const double q = (static_cast<double>(r) + 0.5) / static_cast<double>(M),
                     p = std::pow(q, 1.0 / (1.0 + j));
        const double centre = std::log(p / (1 - p) + 1e-9) / 1.7;
        const double wobble = monotone ? 0 : 0.5 * std::sin(static_cast<double>(7 * r + j));
        lower[r * D + j] = static_cast<T>(centre + wobble - 0.3);
        upper[r * D + j] = static_cast<T>(centre + wobble + 0.3);
      }
    }
  }
  // Leaves only the lower bounds of the larger half of column 0.
  void loosen(int64_t M, int64_t D) {
    for (int64_t i = 0; i < M * D; ++i) {
      if (i % D > 0 || i / D < M / 2) lower[i] = -std::numeric_limits<T>::infinity();
      upper[i] = std::numeric_limits<T>::infinity();
    }
  }
  Table<T> view(int64_t M, int64_t D, bool monotone) const {
    return {lower.data(), upper.data(), M, D, D, 1, monotone};
  }
};

// Definition of the 2OS projection: two stable sorts, a clip, and back to the original places.
template <class T>
static std::vector<T> project_by_sorting(const std::vector<T>& x, const OwnedTable<T>& table, int64_t M,
                                         int64_t D) {
  auto before = [](T a, T b) { return a == a && (b != b || a < b); };
  std::vector<int64_t> place(M * D);
  for (int64_t m = 0; m < M; ++m) {
    auto first = place.begin() + m * D;
    std::iota(first, first + D, m * D);
    std::stable_sort(first, first + D, [&](int64_t a, int64_t b) { return before(x[a], x[b]); });
  }
  std::vector<T> result = x;
  for (int64_t j = 0; j < D; ++j) {
    std::vector<int64_t> column(M);
    for (int64_t m = 0; m < M; ++m) column[m] = place[m * D + j];
    std::stable_sort(column.begin(), column.end(), [&](int64_t a, int64_t b) { return before(x[a], x[b]); });
    for (int64_t r = 0; r < M; ++r) {
      const T low = table.lower[r * D + j], high = table.upper[r * D + j];
      T& v = result[column[r]];
      v = v < low ? low : v > high ? high : v;
    }
  }
  return result;
}

// Result of the same call in the portable variant, which is tested first.
template <class T>
static const std::vector<T>& by_portable_variant(const std::vector<T>& result) {
  static std::vector<std::vector<T>> results;
  static int variant = -1;
  static size_t next = 0;
  if (variant != variant_under_test) next = 0;
  variant = variant_under_test;
  if (variant == 0) results.push_back(result);
  return results[next++];
}

// Result of the kernel. Expects the same bits for every number of threads.
template <class T>
static std::vector<T> on_all_threads(const char* what, size_t size,
                                     const std::function<void(std::vector<T>&)>& kernel) {
  std::vector<T> first;
  for (int count : {1, 2, 7}) {
    threads = count;
    std::vector<T> result(size);
    kernel(result);
    if (count == 1) first = result;
    expect(same_bits(first, result), what, count);
  }
  expect(same_bits(by_portable_variant(first), first), what, variant_under_test);
  return first;
}

template <class T>
static void test_order_stats() {
  const int64_t sizes[][2] = {{1, 1},    {1, 40},  {7, 1},     {3, 2},    {9, 4},     {64, 4},
                              {100, 3},  {257, 8}, {33, 5},    {1000, 4}, {1023, 16}, {2048, 2},
                              {4096, 4}, {2, 700}, {20000, 1}, {5001, 16}};
  for (const auto& size : sizes) {
    const int64_t M = size[0], D = size[1];
    for (const auto& [monotone, half_a_column] : {std::pair(true, false), {false, false}, {true, true}}) {
      OwnedTable<T> owned(M, D, monotone);
      if (half_a_column) owned.loosen(M, D);
      Table<T> table = owned.view(M, D, false);
      expect(tested<T>().check_table(table) == TableFault::none, "check_table accepts", M, D);
      expect(table.monotone || !monotone || M == 1, "check_table: monotone", M, D);
      for (Input kind : {Input::normal, Input::few, Input::special, Input::sorted, Input::outlier}) {
        const std::vector<T> x = make_input<T>(M * D, kind, static_cast<uint32_t>(M + D));
        const auto result = on_all_threads<T>("2OS over threads", x.size(), [&](std::vector<T>& out) {
          out = x;
          tested<T>().project_2os(out.data(), 1, table);
        });
        expect(same_bits(result, project_by_sorting(x, owned, M, D)), "2OS is the sorted projection", M, D);
      }
    }
  }
  OwnedTable<T> faulty(10, 4, true);
  faulty.upper[13] = faulty.lower[13] - 1;
  Table<T> crossed = faulty.view(10, 4, false);
  expect(tested<T>().check_table(crossed) == TableFault::crossed, "check_table finds a crossing");
  faulty.upper[13] = std::numeric_limits<T>::quiet_NaN();
  expect(tested<T>().check_table(crossed) == TableFault::nan, "check_table finds NaN");
}

template <class T>
static void test_whitening() {
  const Shape shapes[] = {{2, 8, 8}, {3, 12, 20}, {1, 1, 640}, {4, 10, 14}, {1, 64, 36}};
  const Tile tiles[] = {{4, 4}, {2, 5}, {1, 2}, {12, 4}, {5, 7}, {1, 64}, {64, 2}};
  for (const Shape& shape : shapes) {
    for (const Tile& tile : tiles) {
      if (shape.height % tile.height || shape.width % tile.width) continue;
      const int64_t P = shape.size() / tile.size(), N = shape.size();
      const OwnedTable<T> values(N / 2, 2, true), stats(P, 1, true);
      const Table<T> value_table = values.view(N / 2, 2, true);
      const Table<T> stat_tables[1][2] = {{stats.view(P, 1, true), stats.view(P, 1, true)}};
      const TileProjection<T> tile_projection{{0, 0, shape.height, shape.width, tile}, stat_tables, 1};
      const Projection<T> projection{shape, &value_table, 1, &tile_projection, 1};
      const Mixing mixing[] = {{tile, 3}, {{shape.height, shape.width}, 2}};
      for (Input kind : {Input::normal, Input::few, Input::special}) {
        for (int64_t batch : {1, 3, 8}) {
          const std::vector<T> x = make_input<T>(batch * N, kind, 5);
          on_all_threads<T>("project over threads", x.size(), [&](std::vector<T>& out) {
            out = x;
            tested<T>().project(out.data(), batch, projection);
          });
          on_all_threads<T>("project_mixing_domains over threads", x.size(), [&](std::vector<T>& out) {
            tested<T>().finite_or_nan(x.data(), out.data(), batch, N);
            if (tile.size() % 2 == 0)
              tested<T>().project_mixing_domains(out.data(), batch, projection, mixing, 2);
          });
        }
      }
    }
  }
}

template <class T>
static double distance(const std::vector<T>& a, const std::vector<T>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i)
    sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
  return std::sqrt(sum / static_cast<double>(a.size()));
}

// Factors in the order of twiddle_factors in python_ref/fourier.py.
template <class T>
class FftFactors {
 public:
  explicit FftFactors(int64_t size) {
    if (has_defined_fft(size)) {
      for (int64_t left = size / 2; left > 4; left /= 4)
        for (int64_t i = 1; i < 4; ++i)
          for (int64_t p = 0; p < left / 4; ++p) add(i * p, left);
    }
    for (int64_t k = 0; k <= size / 4; ++k) add(k, size);
    expect(static_cast<int64_t>(re_.size()) == num_twiddles(size), "number of factors", size);
  }
  Twiddles<T> twiddles() const { return {re_.data(), im_.data()}; }

 private:
  void add(int64_t k, int64_t size) {
    const double angle = -2 * 3.14159265358979323846 * static_cast<double>(k) / static_cast<double>(size);
    re_.push_back(static_cast<T>(std::cos(angle)));
    im_.push_back(static_cast<T>(std::sin(angle)));
  }
  std::vector<T> re_, im_;
};

template <class T>
static void test_transforms() {
  const double tolerance = sizeof(T) == 4 ? 2e-6 : 1e-14;
  const Shape shape{3, 16, 24};
  for (const Tile& tile : {Tile{16, 24}, Tile{4, 8}, Tile{2, 3}, Tile{16, 1}, Tile{1, 2}, Tile{8, 8}}) {
    for (int64_t steps : {0, 1, 5, 6, 7}) {
      const std::vector<T> x = make_input<T>(2 * shape.size(), Input::normal, 3);
      const auto y = on_all_threads<T>("butterfly over threads", x.size(), [&](std::vector<T>& out) {
        out = x;
        tested<T>().butterfly(out.data(), out.data(), 2, shape, tile, steps, false);
      });
      std::vector<T> back = y;
      tested<T>().butterfly(back.data(), back.data(), 2, shape, tile, steps, true);
      expect(distance(x, back) < tolerance, "butterfly and back", tile.size(), steps);
    }
  }
  for (int64_t size : {1, 2, 4, 8, 16, 32, 64, 2048}) {
    std::vector<T> x = make_input<T>(3 * size, Input::normal, 4), y = x;
    tested<T>().hadamard_transform(y.data(), y.data(), 3, size, T(1));
    tested<T>().hadamard_transform(y.data(), y.data(), 3, size, T(1) / static_cast<T>(size));
    expect(distance(x, y) < tolerance, "Hadamard twice", size);
  }
  for (int64_t size : {2, 4, 6, 10, 64, 66, 1000, 4096, 65536}) {
    const std::vector<T> x = make_input<T>(2 * size, Input::normal, 6);
    std::vector<T> z(x.size()), back(x.size());
    const FftFactors<T> factors(size);
    if (has_defined_fft(size)) {
      z = on_all_threads<T>("compact Fourier over threads", x.size(), [&](std::vector<T>& out) {
        tested<T>().compact_fourier(x.data(), out.data(), 2, size, factors.twiddles(), false);
      });
      tested<T>().compact_fourier(z.data(), back.data(), 2, size, factors.twiddles(), true);
    } else {
      tested<T>().compact_fourier_pack(x.data(), z.data(), 2, size, factors.twiddles());
      tested<T>().compact_fourier_unpack(z.data(), back.data(), 2, size, factors.twiddles());
      for (T& value : back) value *= static_cast<T>(size) / 2;  // the FFTs between are not scaled
    }
    expect(distance(x, back) < tolerance, "compact Fourier and back", size);
  }
}

template <class T>
static void test_wgnc() {
  for (int64_t size : {64, 1024, 65536}) {
    const std::vector<T> x = make_input<T>(2 * size, Input::normal, 10);
    const FftFactors<T> factors(size);
    const auto y = on_all_threads<T>("WGNC of samples over threads", x.size(), [&](std::vector<T>& out) {
      tested<T>().project_wgnc(x.data(), out.data(), 2, size, factors.twiddles(), 16);
    });
    double energy = 0;
    for (T value : y) energy += static_cast<double>(value) * static_cast<double>(value);
    expect(std::abs(energy / static_cast<double>(2 * size) - 1) < 1e-5, "WGNC: energy of samples", size);
  }
  for (int64_t block : {2, 3, 5, 16, 40}) {
    for (Input kind : {Input::normal, Input::few}) {
      const int64_t blocks = 13;
      const std::vector<T> x = make_input<T>(2 * block * blocks, kind, 8);
      const auto y = on_all_threads<T>("WGNC over threads", x.size(), [&](std::vector<T>& out) {
        out = x;
        tested<T>().project_wgnc_blocks(out.data(), out.data(), blocks, block);
      });
      for (int64_t p = 0; p < blocks; ++p) {
        double l1 = 0, l2 = 0;
        for (int64_t j = p * block; j < (p + 1) * block; ++j) {
          const double r = std::hypot(static_cast<double>(y[2 * j]), static_cast<double>(y[2 * j + 1]));
          l1 += r;
          l2 += r * r;
        }
        const double size = static_cast<double>(block);
        expect(std::abs(l1 / (std::sqrt(3.141592653589793) / 2 * size) - 1) < 1e-5, "WGNC: l1 norm", block,
               p);
        expect(std::abs(l2 / size - 1) < 1e-5, "WGNC: l2 norm", block, p);
      }
    }
    std::vector<T> special = make_input<T>(2 * block * 9, Input::special, 9);
    tested<T>().project_wgnc_blocks(special.data(), special.data(), 9, block);
    std::vector<T> spectrum = make_input<T>(2 * 2 * block * 6, Input::normal, 10);
    const FftFactors<T> factors(2 * block * 6);
    tested<T>().wgnc_between_ffts(spectrum.data(), 2, 2 * block * 6, factors.twiddles(), block);
  }
}

// Every index is in one range, whoever runs the loop, and whatever runs beside it.
static void test_loops() {
  threads = 7;
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int caller = 0; caller < 5; ++caller) {
    callers.emplace_back([&] {
      for (int64_t count : {0, 1, 15, 16, 17, 100, 1000, 12345}) {
        for (int64_t grain : {1, 7, 64, 5000}) {
          std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
          parallel_for(count, grain, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
          });
          for (auto& times : seen) wrong += times != 1;
        }
      }
    });
  }
  for (auto& thread : callers) thread.join();
  expect(wrong == 0, "a loop takes every index once", wrong);

  std::atomic<int> inner{0};
  parallel_for(100, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      parallel_for(10, 1, [&](int64_t first, int64_t last) { inner += static_cast<int>(last - first); });
  });
  expect(inner == 1000, "a loop in a loop", inner);

  for (int64_t thrown : {0, 57, 99}) {
    bool caught = false;
    try {
      parallel_for(100, 1, [&](int64_t begin, int64_t end) {
        if (begin <= thrown && thrown < end) throw std::runtime_error("from the loop");
      });
    } catch (const std::runtime_error&) {
      caught = true;
    }
    expect(caught, "the caller gets the exception of a loop", thrown);
  }
}

static void test_grid_twiddles() {
  const auto first = grid_twiddles<float>(8, 8), large = grid_twiddles<float>(1 << 11, 1 << 11);
  expect(first == grid_twiddles<float>(8, 8), "factors are kept");
  expect(large != grid_twiddles<float>(1 << 11, 1 << 11), "a table above the limit is not kept");
  for (int64_t size = 1000; size < 1010; ++size) grid_twiddles<float>(500, size);
  expect(first != grid_twiddles<float>(8, 8), "factors of old sizes are deleted");
  expect((*first)[0] == 1 && (*first)[2 * 8 * 4 + 2 * 8 - 2] != 1, "factors in use stay");
}

template <class T>
static void test_completeness() {
  Kernels<T> kernels = tested<T>();
  void (*members[sizeof kernels / sizeof(void (*)())])();
  std::memcpy(members, &kernels, sizeof kernels);
  for (auto member : members) expect(member != nullptr, "every kernel is set");
}

template <class T>
static void test_all() {
  test_completeness<T>();
  test_order_stats<T>();
  test_whitening<T>();
  test_transforms<T>();
  test_wgnc<T>();
}

int main() {
  test_loops();
  test_grid_twiddles();
  for (; variant_under_test < num_variants(); ++variant_under_test) {
    test_all<float>();
    test_all<double>();
    std::printf("%s kernels: %d failures\n", variant_name(variant_under_test), failures);
  }
  return failures != 0;
}
