// Vectors of the variant's width, with the vector extensions of g++ and clang: one source for SSE2, AVX2,
// AVX-512 and NEON. For kernel files only; everything is in the variant's namespace.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace noisetilt::NOISETILT_VARIANT {

#if defined(__AVX512VL__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class E>
struct VectorOf {
  typedef E type __attribute__((vector_size(kVectorBytes)));
};
template <class E>
using Vector = typename VectorOf<E>::type;
template <class E>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(E));

// Signed integer of the same size as T.
template <class T>
struct IntegerOf;
template <>
struct IntegerOf<float> {
  using type = int32_t;
};
template <>
struct IntegerOf<double> {
  using type = int64_t;
};
template <class T>
using Integer = typename IntegerOf<T>::type;

template <class E>
inline Vector<E> load(const E* p) {
  Vector<E> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class E>
inline void store(E* p, Vector<E> v) {
  std::memcpy(p, &v, sizeof v);
}

template <class E>
inline Vector<E> broadcast(E x) {
  return Vector<E>{} + x;
}

// Integer type of lane numbers in a shuffle of vectors of E.
template <class E>
using LaneNumber = std::conditional_t<sizeof(E) == 4, int32_t, int64_t>;

#if defined(__clang__)
#define NOISETILT_SHUFFLE(a, b, lane_type, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define NOISETILT_SHUFFLE(a, b, lane_type, ...) __builtin_shuffle(a, b, Vector<lane_type>{__VA_ARGS__})
#endif

template <class E>
struct Pair {
  Vector<E> first, second;
};

template <class E, int... I>
inline Pair<E> unzip(Vector<E> a, Vector<E> b, std::integer_sequence<int, I...>) {
  return {NOISETILT_SHUFFLE(a, b, LaneNumber<E>, (2 * I)...),
          NOISETILT_SHUFFLE(a, b, LaneNumber<E>, (2 * I + 1)...)};
}

// Even and odd elements of the concatenation of a and b.
template <class E>
inline Pair<E> unzip(Vector<E> a, Vector<E> b) {
  return unzip<E>(a, b, std::make_integer_sequence<int, kLanes<E>>{});
}

template <class E, int... I>
inline Pair<E> zip(Vector<E> a, Vector<E> b, std::integer_sequence<int, I...>) {
  constexpr int n = kLanes<E>;
  return {NOISETILT_SHUFFLE(a, b, LaneNumber<E>, (I / 2 + I % 2 * n)...),
          NOISETILT_SHUFFLE(a, b, LaneNumber<E>, (n / 2 + I / 2 + I % 2 * n)...)};
}

// Interleaved elements of a and b: a0 b0 a1 b1 ...
template <class E>
inline Pair<E> zip(Vector<E> a, Vector<E> b) {
  return zip<E>(a, b, std::make_integer_sequence<int, kLanes<E>>{});
}

// Interleaves kCount vectors, a power of two: lane l of vector e goes to place kCount * l + e.
template <class E, int kCount>
inline void interleave(Vector<E>* v) {
#pragma GCC unroll 4
  for (int round = 1; round < kCount; round *= 2) {
    Vector<E> next[kCount];
#pragma GCC unroll 8
    for (int e = 0; e < kCount / 2; ++e) {
      const auto [low, high] = zip<E>(v[e], v[e + kCount / 2]);
      next[2 * e] = low;
      next[2 * e + 1] = high;
    }
#pragma GCC unroll 16
    for (int e = 0; e < kCount; ++e) v[e] = next[e];
  }
}

template <int kDistance, class E, int... I>
inline Vector<E> exchange_lanes(Vector<E> v, std::integer_sequence<int, I...>) {
  return NOISETILT_SHUFFLE(v, v, LaneNumber<E>, (I ^ kDistance)...);
}
// v with its lanes permuted: lane i of the result is lane i ^ kDistance of v.
template <int kDistance, class E>
inline Vector<E> exchange_lanes(Vector<E> v) {
  return exchange_lanes<kDistance, E>(v, std::make_integer_sequence<int, kLanes<E>>{});
}

template <class E, int... I>
inline Vector<E> reverse_lanes(Vector<E> v, std::integer_sequence<int, I...>) {
  return NOISETILT_SHUFFLE(v, v, LaneNumber<E>, (kLanes<E> - 1 - I)...);
}
template <class E>
inline Vector<E> reverse_lanes(Vector<E> v) {
  return reverse_lanes<E>(v, std::make_integer_sequence<int, kLanes<E>>{});
}

template <int kBit, class E, int... I>
constexpr Vector<E> select_lanes(E set, E clear, std::integer_sequence<int, I...>) {
  return Vector<E>{(I & kBit ? set : clear)...};
}
// Vector with `set` in each lane i that has i & kBit, and `clear` in the others.
template <int kBit, class E>
constexpr Vector<E> select_lanes(E set, E clear) {
  return select_lanes<kBit, E>(set, clear, std::make_integer_sequence<int, kLanes<E>>{});
}

// Returns true if any lane is not zero.
template <class E>
inline bool any_lane(Vector<E> v) {
  E any = 0;
  for (int i = 0; i < kLanes<E>; ++i) any |= v[i];
  return any != 0;
}

}  // namespace noisetilt::NOISETILT_VARIANT
