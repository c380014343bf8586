// Stand-in for barrier.so and radix_sort.so: the sort runs on the CPU, and a barrier does nothing.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

extern "C" int noisetilt_sort(int sort, void* memory, size_t* bytes, const void* keys, void* sorted_keys,
                              const int* places, int* sorted_places, int columns, int length, void* stream) {
  (void)sort, (void)stream;
  *bytes = 1;
  if (memory == nullptr) return 0;
  const auto* in = static_cast<const float*>(keys);
  std::vector<int> order(length);
  for (int column = 0; column < columns; ++column) {
    const int begin = column * length;
    for (int k = 0; k < length; ++k) order[k] = begin + k;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return in[a] < in[b]; });
    for (int k = 0; k < length; ++k) {
      static_cast<float*>(sorted_keys)[begin + k] = in[order[k]];
      sorted_places[begin + k] = places[order[k]];
    }
  }
  return 0;
}

extern "C" int noisetilt_clusters_of_16() { return 8; }

extern "C" int noisetilt_barriers(int, int, int, uint32_t*, void*) { return 0; }

extern "C" int noisetilt_exchanges(int, int, int, uint32_t*, uint32_t*, uint32_t*, void*) { return 0; }
