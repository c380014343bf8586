// The kernels of one variant, collected from its files.

#include "kernels.h"

namespace noisetilt::NOISETILT_VARIANT {

// Each function sets the members that its file implements: add_wgnc_kernels is in wgnc.cpp.
template <class T>
void add_fourier_kernels(Kernels<T>& kernels);
template <class T>
void add_order_stats_kernels(Kernels<T>& kernels);
template <class T>
void add_transforms_kernels(Kernels<T>& kernels);
template <class T>
void add_wgnc_kernels(Kernels<T>& kernels);
template <class T>
void add_whitening_kernels(Kernels<T>& kernels);

template <class T>
const Kernels<T>& kernels_of_variant() {
  static const Kernels<T> collected = [] {
    Kernels<T> kernels{};
    add_fourier_kernels(kernels);
    add_order_stats_kernels(kernels);
    add_transforms_kernels(kernels);
    add_wgnc_kernels(kernels);
    add_whitening_kernels(kernels);
    return kernels;
  }();
  return collected;
}
template const Kernels<float>& kernels_of_variant<float>();
template const Kernels<double>& kernels_of_variant<double>();

}  // namespace noisetilt::NOISETILT_VARIANT
