// The meaning of every instruction (PTX ISA, chapter "Instruction Set"): functions of a warp, an instruction
// and a mask of lanes. assembly.cpp chooses among them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <type_traits>

#include "machine.h"

namespace ptx {

template <class T>
constexpr bool is_float = std::is_floating_point_v<T>;
template <class T>
constexpr int bits_of = static_cast<int>(sizeof(T)) * 8;

// ---- reading and writing registers ----
//
// A result is undefined, in each lane, if an operand is. Compilers compute with undefined values in lanes
// whose results nobody uses. It is a fault if such a value is stored, is an address, or decides what a warp
// does.

template <class T>
const T* get(Warp& warp, const Operand& operand, uint32_t mask) {
  warp.defined &= warp.written[operand.index] | ~mask;
  return warp.values<T>(operand);
}

inline uint32_t get_predicate(Warp& warp, const Operand& operand, uint32_t mask) {
  warp.defined &= warp.written[operand.index] | ~mask;
  return warp.predicate(operand);
}

// Operand that must be defined.
template <class T>
const T* get_defined(Warp& warp, const Operand& operand, uint32_t mask) {
  warp.check_written(operand, mask);
  return warp.values<T>(operand);
}

inline void mark_written(Warp& warp, const Operand& operand, uint32_t mask) {
  uint32_t& written = warp.written[operand.index];
  written = (written & ~mask) | (warp.defined & mask);
}

template <class Body>
void each_lane(uint32_t mask, const Body& body) {
  for (; mask; mask &= mask - 1) body(static_cast<unsigned>(__builtin_ctz(mask)));
}

// Writes of(lane) for every lane in the mask.
template <class T, class Of>
void set(Warp& warp, const Operand& operand, uint32_t mask, const Of& of) {
  T* to = warp.values<T>(operand);
  if (mask == kAllLanes) {
    T results[kLanes];
    for (unsigned lane = 0; lane < kLanes; ++lane) results[lane] = of(lane);
    std::memcpy(to, results, sizeof results);
  } else {
    each_lane(mask, [&](unsigned lane) { to[lane] = of(lane); });
  }
  mark_written(warp, operand, mask);
}

inline void set_predicate(Warp& warp, const Operand& operand, uint32_t mask, uint32_t value) {
  uint32_t& old = *warp.values<uint32_t>(operand);
  old = (old & ~mask) | (value & mask);
  mark_written(warp, operand, mask);
}

template <class Of>
uint32_t mask_of(const Of& of) {
  uint32_t result = 0;
  for (unsigned lane = 0; lane < kLanes; ++lane) result |= uint32_t{of(lane)} << lane;
  return result;
}

// Value of a register that may be wider than S.
template <class S>
S narrow(const void* values, unsigned bits, unsigned lane) {
  if (bits == bits_of<S>) return static_cast<const S*>(values)[lane];
  if constexpr (std::is_integral_v<S>) {
    if (bits == 16) return static_cast<S>(static_cast<const uint16_t*>(values)[lane]);
    if (bits == 32) return static_cast<S>(static_cast<const uint32_t*>(values)[lane]);
    return static_cast<S>(static_cast<const uint64_t*>(values)[lane]);
  }
  throw std::domain_error("a register has another size than its instruction");
}

// Writes values into a register that may be wider than D. Signed ones are extended by their sign.
template <class D, class Of>
void set_wide(Warp& warp, const Operand& operand, uint32_t mask, const Of& of) {
  using Extended16 = std::conditional_t<std::is_signed_v<D>, int16_t, uint16_t>;
  using Extended32 = std::conditional_t<std::is_signed_v<D>, int32_t, uint32_t>;
  using Extended64 = std::conditional_t<std::is_signed_v<D>, int64_t, uint64_t>;
  if (operand.bits == bits_of<D>) {
    set<D>(warp, operand, mask, of);
  } else if constexpr (std::is_integral_v<D>) {
    if (operand.bits == 16)
      set<Extended16>(warp, operand, mask, of);
    else if (operand.bits == 32)
      set<Extended32>(warp, operand, mask, of);
    else
      set<Extended64>(warp, operand, mask, of);
  }
}

// ---- arithmetic ----

// Result of one lane from its operands.
struct Add {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a + b);
  }
};
struct Sub {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a - b);
  }
};
struct Mul {
  template <class T>
  static T of(T a, T b) {
    if constexpr (sizeof(T) == 2)
      return static_cast<T>(static_cast<uint32_t>(a) * static_cast<uint32_t>(b));
    else
      return a * b;
  }
};
struct MulHigh {
  template <class T>
  static T of(T a, T b) {
    using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
    return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b) >> bits_of<T>);
  }
};
// A NaN loses, and -0 is less than +0.
struct Min {
  template <class T>
  static T of(T a, T b) {
    if constexpr (is_float<T>) {
      if (a != a) return b != b ? std::numeric_limits<T>::quiet_NaN() : b;
      if (b != b) return a;
      if (a == b) return std::signbit(a) ? a : b;
    }
    return b < a ? b : a;
  }
};
struct Max {
  template <class T>
  static T of(T a, T b) {
    if constexpr (is_float<T>) {
      if (a != a) return b != b ? std::numeric_limits<T>::quiet_NaN() : b;
      if (b != b) return a;
      if (a == b) return std::signbit(a) ? b : a;
    }
    return a < b ? b : a;
  }
};
struct And {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a & b);
  }
};
struct Or {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a | b);
  }
};
struct Xor {
  template <class T>
  static T of(T a, T b) {
    return static_cast<T>(a ^ b);
  }
};
struct Div {
  template <class T>
  static T of(T a, T b) {
    if constexpr (is_float<T>) {
      return a / b;
    } else {
      if (b == 0) throw std::domain_error("division by zero");
      if (std::is_signed_v<T> && b == static_cast<T>(-1)) return static_cast<T>(0 - a);
      return static_cast<T>(a / b);
    }
  }
};
struct Rem {
  template <class T>
  static T of(T a, T b) {
    if (b == 0) throw std::domain_error("division by zero");
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};
struct CopySign {
  template <class T>
  static T of(T a, T b) {
    return std::copysign(b, a);
  }
};
struct Not {
  template <class T>
  static T of(T a) {
    return static_cast<T>(~a);
  }
};
struct Neg {
  template <class T>
  static T of(T a) {
    return static_cast<T>(-a);
  }
};
struct Abs {
  template <class T>
  static T of(T a) {
    if constexpr (is_float<T>)
      return std::fabs(a);
    else
      return static_cast<T>(a < 0 ? 0 - a : a);
  }
};
struct Sqrt {
  template <class T>
  static T of(T a) {
    return std::sqrt(a);
  }
};
struct Reverse {
  template <class T>
  static T of(T a) {
    T result = 0;
    for (int k = 0; k < bits_of<T>; ++k) result |= (a >> k & 1) << (bits_of<T> - 1 - k);
    return result;
  }
};
struct PopCount {
  template <class T>
  static uint32_t of(T a) {
    return static_cast<uint32_t>(__builtin_popcountll(a));
  }
};
struct LeadingZeros {
  template <class T>
  static uint32_t of(T a) {
    return a ? static_cast<uint32_t>(__builtin_clzll(a) - (64 - bits_of<T>)) : bits_of<T>;
  }
};

template <class F, class T>
void unary(Warp& warp, const Instruction& i, uint32_t mask) {
  const T* a = get<T>(warp, i.operands[1], mask);
  using Result = decltype(F::of(T{}));
  set<Result>(warp, i.operands[0], mask, [=](unsigned lane) { return F::of(a[lane]); });
}

template <class F, class T>
void binary(Warp& warp, const Instruction& i, uint32_t mask) {
  const T *a = get<T>(warp, i.operands[1], mask), *b = get<T>(warp, i.operands[2], mask);
  if constexpr ((std::is_same_v<F, Div> || std::is_same_v<F, Rem>) && !is_float<T>) {
    // only these lanes have a divisor
    T* to = warp.values<T>(i.operands[0]);
    each_lane(mask & warp.defined, [&](unsigned lane) { to[lane] = F::of(a[lane], b[lane]); });
    mark_written(warp, i.operands[0], mask);
  } else {
    set<T>(warp, i.operands[0], mask, [=](unsigned lane) { return F::of(a[lane], b[lane]); });
  }
}

template <class F>
void predicate_binary(Warp& warp, const Instruction& i, uint32_t mask) {
  const uint32_t a = get_predicate(warp, i.operands[1], mask), b = get_predicate(warp, i.operands[2], mask);
  set_predicate(warp, i.operands[0], mask, F::of(a, b));
}

inline void predicate_not(Warp& warp, const Instruction& i, uint32_t mask) {
  set_predicate(warp, i.operands[0], mask, ~get_predicate(warp, i.operands[1], mask));
}

inline void add_halves(Warp& warp, const Instruction& i, uint32_t mask) {
  const auto *a = get<uint32_t>(warp, i.operands[1], mask), *b = get<uint32_t>(warp, i.operands[2], mask);
  set<uint32_t>(warp, i.operands[0], mask, [=](unsigned lane) {
    return ((a[lane] + b[lane]) & 0xffff) | ((a[lane] >> 16) + (b[lane] >> 16)) << 16;
  });
}

template <class T>
using Wide = std::conditional_t<std::is_signed_v<T>, std::conditional_t<sizeof(T) == 2, int32_t, int64_t>,
                                std::conditional_t<sizeof(T) == 2, uint32_t, uint64_t>>;

template <class T>
void mul_wide(Warp& warp, const Instruction& i, uint32_t mask) {
  const T *a = get<T>(warp, i.operands[1], mask), *b = get<T>(warp, i.operands[2], mask);
  set<Wide<T>>(warp, i.operands[0], mask, [=](unsigned lane) { return Wide<T>{a[lane]} * Wide<T>{b[lane]}; });
}

template <class T>
void mad_wide(Warp& warp, const Instruction& i, uint32_t mask) {
  const T *a = get<T>(warp, i.operands[1], mask), *b = get<T>(warp, i.operands[2], mask);
  const auto* c = get<Wide<T>>(warp, i.operands[3], mask);
  set<Wide<T>>(warp, i.operands[0], mask,
               [=](unsigned lane) { return Wide<T>{a[lane]} * Wide<T>{b[lane]} + c[lane]; });
}

template <class F, class T>
void mad(Warp& warp, const Instruction& i, uint32_t mask) {
  const T *a = get<T>(warp, i.operands[1], mask), *b = get<T>(warp, i.operands[2], mask);
  const T* c = get<T>(warp, i.operands[3], mask);
  set<T>(warp, i.operands[0], mask,
         [=](unsigned lane) { return static_cast<T>(F::of(a[lane], b[lane]) + c[lane]); });
}

template <class T>
void fma(Warp& warp, const Instruction& i, uint32_t mask) {
  const T *a = get<T>(warp, i.operands[1], mask), *b = get<T>(warp, i.operands[2], mask);
  const T* c = get<T>(warp, i.operands[3], mask);
  set<T>(warp, i.operands[0], mask, [=](unsigned lane) { return std::fma(a[lane], b[lane], c[lane]); });
}

// ---- bits ----

template <class T>
void shift_left(Warp& warp, const Instruction& i, uint32_t mask) {
  const T* a = get<T>(warp, i.operands[1], mask);
  const auto* n = get<uint32_t>(warp, i.operands[2], mask);
  set<T>(warp, i.operands[0], mask, [=](unsigned lane) {
    return static_cast<T>(n[lane] < bits_of<T> ? uint64_t{a[lane]} << n[lane] : 0);
  });
}

template <class T>
void shift_right(Warp& warp, const Instruction& i, uint32_t mask) {
  const T* a = get<T>(warp, i.operands[1], mask);
  const auto* n = get<uint32_t>(warp, i.operands[2], mask);
  set<T>(warp, i.operands[0], mask, [=](unsigned lane) {
    const T beyond = std::is_signed_v<T> ? static_cast<T>(a[lane] >> (bits_of<T> - 1)) : T{0};
    return n[lane] < bits_of<T> ? static_cast<T>(a[lane] >> n[lane]) : beyond;
  });
}

// 64 bits hi:lo, shifted; the upper (left) or lower (right) word of it.
template <bool kLeft>
void funnel_shift(Warp& warp, const Instruction& i, uint32_t mask) {
  const auto *low = get<uint32_t>(warp, i.operands[1], mask),
             *high = get<uint32_t>(warp, i.operands[2], mask);
  const auto* amount = get<uint32_t>(warp, i.operands[3], mask);
  const bool clamp = i.how;
  set<uint32_t>(warp, i.operands[0], mask, [=](unsigned lane) {
    const uint32_t n = clamp ? std::min(amount[lane], 32u) : amount[lane] & 31;
    const uint64_t both = uint64_t{high[lane]} << 32 | low[lane];
    return static_cast<uint32_t>(kLeft ? both << n >> 32 : both >> n);
  });
}

template <class T>
void bit_field_extract(Warp& warp, const Instruction& i, uint32_t mask) {
  const T* a = get<T>(warp, i.operands[1], mask);
  const auto *begin = get<uint32_t>(warp, i.operands[2], mask),
             *count = get<uint32_t>(warp, i.operands[3], mask);
  set<T>(warp, i.operands[0], mask, [=](unsigned lane) {
    const unsigned first = begin[lane] & 255, length = count[lane] & 255;
    const auto bit = [&](unsigned k) { return static_cast<T>(a[lane] >> k & 1); };
    const unsigned last = std::min(first + length, static_cast<unsigned>(bits_of<T>)) - 1;
    const T fill = std::is_signed_v<T> && length > 0 ? bit(std::min(last, bits_of<T> - 1u)) : T{0};
    T result = 0;
    for (unsigned k = 0; k < bits_of<T>; ++k) {
      const bool inside = k < length && first + k < bits_of<T>;
      result = static_cast<T>(result | static_cast<T>(inside ? bit(first + k) : fill) << k);
    }
    return result;
  });
}

template <class T>
void bit_field_insert(Warp& warp, const Instruction& i, uint32_t mask) {
  const T *a = get<T>(warp, i.operands[1], mask), *b = get<T>(warp, i.operands[2], mask);
  const auto *begin = get<uint32_t>(warp, i.operands[3], mask),
             *count = get<uint32_t>(warp, i.operands[4], mask);
  set<T>(warp, i.operands[0], mask, [=](unsigned lane) {
    T result = b[lane];
    const unsigned first = begin[lane] & 255, length = count[lane] & 255;
    for (unsigned k = 0; k < length && first + k < bits_of<T>; ++k)
      result = (result & ~(T{1} << (first + k))) | (a[lane] >> k & 1) << (first + k);
    return result;
  });
}

inline void permute_bytes(Warp& warp, const Instruction& i, uint32_t mask) {
  const auto *a = get<uint32_t>(warp, i.operands[1], mask), *b = get<uint32_t>(warp, i.operands[2], mask);
  const auto* selection = get<uint32_t>(warp, i.operands[3], mask);
  set<uint32_t>(warp, i.operands[0], mask, [=](unsigned lane) {
    const uint64_t bytes = uint64_t{b[lane]} << 32 | a[lane];
    uint32_t result = 0;
    for (unsigned k = 0; k < 4; ++k) {
      const uint32_t choice = selection[lane] >> 4 * k & 15;
      uint32_t byte = bytes >> 8 * (choice & 7) & 255;
      if (choice & 8) byte = byte & 128 ? 255 : 0;
      result |= byte << 8 * k;
    }
    return result;
  });
}

inline void lookup_3(Warp& warp, const Instruction& i, uint32_t mask) {
  const auto *a = get<uint32_t>(warp, i.operands[1], mask), *b = get<uint32_t>(warp, i.operands[2], mask);
  const auto *c = get<uint32_t>(warp, i.operands[3], mask), *table = get<uint32_t>(warp, i.operands[4], mask);
  set<uint32_t>(warp, i.operands[0], mask, [=](unsigned lane) {
    uint32_t result = 0;
    for (unsigned k = 0; k < 8; ++k)
      if (table[lane] >> k & 1)
        result |= (k & 4 ? a[lane] : ~a[lane]) & (k & 2 ? b[lane] : ~b[lane]) & (k & 1 ? c[lane] : ~c[lane]);
    return result;
  });
}

// ---- comparison and selection ----

inline constexpr const char* kComparisons[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge", "equ", "neu", "ltu",
                                               "leu", "gtu", "geu", "num", "nan", "lo", "ls",  "hi",  "hs"};
enum Combination { kAlone = 0, kAnd = 32, kOr = 64, kXor = 96 };

template <class T>
void set_comparison(Warp& warp, const Instruction& i, uint32_t mask) {
  const T* a = get<T>(warp, i.operands[i.num_operands > 3 && i.operands[1].bits == 1 ? 2 : 1], mask);
  const T* b = get<T>(warp, i.operands[2], mask);
  const auto of = [&](const auto& compare) {
    return mask_of([&](unsigned lane) { return compare(a[lane], b[lane]); });
  };
  const auto unordered = [](T x, T y) { return x != x || y != y; };
  uint32_t result = 0;
  switch (i.how & 31) {
    case 0:
      result = of([](T x, T y) { return x == y; });
      break;
    case 1:
      result = of([&](T x, T y) { return x != y && !unordered(x, y); });
      break;
    case 2:
    case 14:
      result = of([](T x, T y) { return x < y; });
      break;
    case 3:
    case 15:
      result = of([](T x, T y) { return x <= y; });
      break;
    case 4:
    case 16:
      result = of([](T x, T y) { return x > y; });
      break;
    case 5:
    case 17:
      result = of([](T x, T y) { return x >= y; });
      break;
    case 6:
      result = of([&](T x, T y) { return x == y || unordered(x, y); });
      break;
    case 7:
      result = of([](T x, T y) { return x != y; });
      break;
    case 8:
      result = of([](T x, T y) { return !(x >= y); });
      break;
    case 9:
      result = of([](T x, T y) { return !(x > y); });
      break;
    case 10:
      result = of([](T x, T y) { return !(x <= y); });
      break;
    case 11:
      result = of([](T x, T y) { return !(x < y); });
      break;
    case 12:
      result = of([&](T x, T y) { return !unordered(x, y); });
      break;
    case 13:
      result = of([&](T x, T y) { return unordered(x, y); });
      break;
  }
  if (const int combination = i.how & ~31) {
    const uint32_t other = get_predicate(warp, i.operands[3], mask);
    result = combination == kAnd ? result & other : combination == kOr ? result | other : result ^ other;
  }
  set_predicate(warp, i.operands[0], mask, result);
}

template <class T>
void select(Warp& warp, const Instruction& i, uint32_t mask) {
  const uint32_t chosen = get_predicate(warp, i.operands[3], mask);
  const T *a = get<T>(warp, i.operands[1], mask & chosen), *b = get<T>(warp, i.operands[2], mask & ~chosen);
  set<T>(warp, i.operands[0], mask, [=](unsigned lane) { return chosen >> lane & 1 ? a[lane] : b[lane]; });
}

// ---- moves and conversions ----

template <class T>
void move(Warp& warp, const Instruction& i, uint32_t mask) {
  const T* a = get<T>(warp, i.operands[1], mask);
  set<T>(warp, i.operands[0], mask, [=](unsigned lane) { return a[lane]; });
}

inline void move_predicate(Warp& warp, const Instruction& i, uint32_t mask) {
  set_predicate(warp, i.operands[0], mask, get_predicate(warp, i.operands[1], mask));
}

template <class Whole, class Part>
void pack(Warp& warp, const Instruction& i, uint32_t mask) {
  constexpr unsigned parts = sizeof(Whole) / sizeof(Part);
  const Part* from[parts];
  for (unsigned k = 0; k < parts; ++k) from[k] = get<Part>(warp, i.operands[k + 1], mask);
  set<Whole>(warp, i.operands[0], mask, [&](unsigned lane) {
    Whole whole = 0;
    for (unsigned k = 0; k < parts; ++k) whole |= static_cast<Whole>(from[k][lane]) << k * bits_of<Part>;
    return whole;
  });
}

template <class Whole, class Part>
void unpack(Warp& warp, const Instruction& i, uint32_t mask) {
  constexpr unsigned parts = sizeof(Whole) / sizeof(Part);
  Whole whole[kLanes];
  std::memcpy(whole, get<Whole>(warp, i.operands[parts], mask), sizeof whole);
  for (unsigned k = 0; k < parts; ++k)
    set<Part>(warp, i.operands[k], mask,
              [&](unsigned lane) { return static_cast<Part>(whole[lane] >> k * bits_of<Part>); });
}

// To and from generic addresses. how: 1 if to a window; offset: the window
inline void convert_address(Warp& warp, const Instruction& i, uint32_t mask) {
  const auto* a = get<uint64_t>(warp, i.operands[1], mask);
  const auto window = static_cast<uint64_t>(i.offset);
  if (!i.how && window)
    each_lane(mask & warp.defined, [&](unsigned lane) {
      if (a[lane] >> 56 != window >> 56) warp.fail("the generic address is not in this state space");
    });
  set<uint64_t>(warp, i.operands[0], mask,
                [=](unsigned lane) { return i.how ? a[lane] + window : a[lane] - window; });
}

// Address in shared memory of the block whose rank is given. how: 1 for generic addresses
template <class T>
void map_address(Warp& warp, const Instruction& i, uint32_t mask) {
  const T* a = get<T>(warp, i.operands[1], mask);
  const auto* rank = get<uint32_t>(warp, i.operands[2], mask);
  each_lane(mask & warp.defined, [&](unsigned lane) {
    if (i.how && uint64_t{a[lane]} >> 56 != kSharedWindow >> 56)
      warp.fail("the generic address is not in shared memory");
    if (rank[lane] >= warp.block->cluster->blocks.size())
      warp.fail("rank " + std::to_string(rank[lane]) + " in a cluster of " +
                std::to_string(warp.block->cluster->blocks.size()) + " blocks");
  });
  set<T>(warp, i.operands[0], mask, [=](unsigned lane) {
    const T old = a[lane] & static_cast<T>(uint64_t{0xff} << kRankShift);
    return static_cast<T>(a[lane] - old + (static_cast<T>(rank[lane] + 1) << kRankShift));
  });
}

// The upper 16 bits of a float.
struct BFloat16 {
  BFloat16() = default;
  explicit BFloat16(float x) {
    uint32_t word;
    std::memcpy(&word, &x, sizeof word);
    bits = x != x ? 0x7fff : static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
  uint16_t bits;
};

enum Rounding { kNone, kNearest, kZero, kDown, kUp, kIntegral = 8 };

template <class T>
T round_to_integer(T x, int rounding) {
  switch (rounding & 7) {
    case kNearest:
      return std::nearbyint(x);
    case kZero:
      return std::trunc(x);
    case kDown:
      return std::floor(x);
    default:
      return std::ceil(x);
  }
}

template <class D, class S>
D converted(S x, int rounding) {
  if constexpr (is_float<S> && std::is_integral_v<D>) {
    if (x != x)
      return sizeof(S) < 8 && sizeof(D) < 8 ? D{0} : static_cast<D>(uint64_t{1} << (bits_of<D> - 1));
    const S whole = round_to_integer(x, rounding);
    if (whole < static_cast<S>(std::numeric_limits<D>::min())) return std::numeric_limits<D>::min();
    if (whole >= std::ldexp(S{1}, bits_of<D> - std::is_signed_v<D>)) return std::numeric_limits<D>::max();
    return static_cast<D>(whole);
  } else if constexpr (is_float<S> && is_float<D>) {
    return static_cast<D>(rounding & kIntegral ? round_to_integer(x, rounding) : x);
  } else {
    return static_cast<D>(x);
  }
}

template <class D, class S>
void convert(Warp& warp, const Instruction& i, uint32_t mask) {
  const void* from = get<unsigned char>(warp, i.operands[1], mask);
  const unsigned bits = i.operands[1].bits;
  const int rounding = i.how;
  set_wide<D>(warp, i.operands[0], mask,
              [=](unsigned lane) { return converted<D>(narrow<S>(from, bits, lane), rounding); });
}

// ---- memory ----

// Where the lanes of an access find their bytes.
struct Places {
  uint64_t addresses[kLanes];  // in shared memory from its begin, in global memory those of this process
  unsigned char* at[kLanes];
  Block* owner[kLanes];                         // block that has the shared memory
  uint32_t global = 0, shared = 0, remote = 0;  // lanes; remote: in shared memory of another block
};

enum class Access { read, write, atomic };

// True if no barrier of the cluster orders the last accesses to a byte, at least one of them by another
// block, before those of a block now. `owner`: block that has the byte.
inline bool is_unordered_in_cluster(uint16_t who, uint32_t epoch, const Block& block, const Block& owner) {
  if (who == Block::kSeveral) return epoch >= owner.cluster_epoch;
  const uint32_t rank = who & Block::kSeveralOfBlock ? who - Block::kSeveralOfBlock : who / kLanes;
  if (rank == block.rank) return epoch == block.epoch;
  const auto& blocks = block.cluster->blocks;  // an earlier launch may have had larger clusters
  return rank < blocks.size() && epoch >= blocks[rank]->cluster_epoch;
}

// Adds a warp of the block to the last accessors of a byte, which no barrier orders before it.
inline void join(const Block& block, const Block& owner, uint16_t& who, uint32_t& epoch) {
  const auto several_of_mine = static_cast<uint16_t>(Block::kSeveralOfBlock + block.rank);
  const bool of_mine = who / kLanes == block.rank || who == several_of_mine;
  who = of_mine ? several_of_mine : Block::kSeveral;
  epoch = of_mine ? block.epoch : owner.epoch;
}

// kAlone: each block is a cluster of its own.
template <bool kAlone>
void check_race(Warp& warp, const Places& places, uint32_t mask, size_t size, Access access,
                const unsigned char* stored) {
  Block& block = *warp.block;
  const auto me = static_cast<uint16_t>((kAlone ? 0 : block.rank * kLanes) + warp.number);
  each_lane(mask & (places.shared | places.remote), [&](unsigned lane) {
    // Threads may store the same value.
    const bool same =
        access == Access::write && std::memcmp(stored + lane * size, places.at[lane], size) == 0;
    const Block& owner = kAlone ? block : *places.owner[lane];
    const auto is_unordered = [&](uint16_t who, uint32_t epoch) {
      return kAlone ? epoch == block.epoch : is_unordered_in_cluster(who, epoch, block, owner);
    };
    const auto note = [&](bool others, uint16_t& who, uint32_t& epoch) {
      if (others && !kAlone) return join(block, owner, who, epoch);
      who = others ? Block::kSeveralOfBlock : me;
      epoch = block.epoch;
    };
    for (size_t k = 0; k < size; ++k) {
      const uint64_t offset = places.addresses[lane] - kSharedBase + k;
      Block::Shadow& shadow = owner.shadows.data()[offset];
      const bool written = is_unordered(shadow.writer, shadow.write_epoch),
                 read = is_unordered(shadow.reader, shadow.read_epoch);
      const bool written_by_other = written && shadow.writer != me,
                 read_by_other = read && shadow.reader != me;
      const bool only_atomic = access == Access::atomic && written && shadow.only_atomic;
      const char* other = written_by_other && !only_atomic && !same          ? "written"
                          : access != Access::read && read_by_other && !same ? "read"
                                                                             : nullptr;
      if (other)
        warp.fail("a race: another warp has " + std::string(other) + " byte " + std::to_string(offset) +
                  " of shared memory" + (&owner == &block ? "" : " of block " + std::to_string(owner.index)) +
                  " since the last barrier");
      if (access == Access::read) {
        note(read_by_other, shadow.reader, shadow.read_epoch);
      } else {
        shadow.only_atomic = access == Access::atomic && (!written || shadow.only_atomic);
        note(written_by_other, shadow.writer, shadow.write_epoch);
      }
    }
  });
}

// Block of the cluster that an address of shared memory belongs to.
inline Block& block_at(Warp& warp, unsigned lane, uint64_t address) {
  if (address >> kRankShift == 0) return *warp.block;
  const uint64_t rank = (address >> kRankShift) - 1;
  const auto& blocks = warp.block->cluster->blocks;
  if (rank >= blocks.size())
    warp.fail("lane " + std::to_string(lane) + " leaves the shared memory of the cluster");
  if (!blocks[rank]->live)
    warp.fail("lane " + std::to_string(lane) + " accesses shared memory of block " +
              std::to_string(blocks[rank]->index) + ", which has ended");
  return *blocks[rank];
}

// Checks an access of `size` bytes a lane, finds its bytes, and counts it.
inline void locate(Warp& warp, const Instruction& i, uint32_t mask, size_t size, Access access,
                   Places& places, const unsigned char* stored = nullptr) {
  Machine& machine = *warp.block->machine;
  const Operand& base = i.operands[i.num_operands - 1u];
  warp.check_written(base, mask);
  uint64_t* addresses = places.addresses;
  if (base.bits == 64) {
    const auto* values = warp.values<uint64_t>(base);
    for (unsigned lane = 0; lane < kLanes; ++lane)
      addresses[lane] = values[lane] + static_cast<uint64_t>(i.offset);
  } else {
    const auto* values = warp.values<uint32_t>(base);
    for (unsigned lane = 0; lane < kLanes; ++lane)
      addresses[lane] = uint32_t(values[lane] + static_cast<uint32_t>(i.offset));
  }
  uint32_t local = 0;
  const uint64_t shared_end = kSharedBase + machine.shared_bytes;
  uint64_t least = ~uint64_t{0}, most = 0;
  each_lane(mask, [&](unsigned lane) {
    uint64_t& address = addresses[lane];
    Space space = i.space;
    if (space == Space::generic) {
      const uint64_t window = address >> 56 << 56;
      space = window == kSharedWindow      ? Space::cluster
              : window == kThreadWindow    ? Space::thread
              : window == kParameterWindow ? Space::parameters
                                           : Space::global;
      if (space != Space::global) address -= window;
    }
    if (address % size)
      warp.fail("an address of lane " + std::to_string(lane) + " is not a multiple of " +
                std::to_string(size));
    Block* owner = warp.block;
    if (space == Space::cluster) {
      owner = &block_at(warp, lane, address);
      address &= (uint64_t{1} << kRankShift) - 1;
    }
    switch (space) {
      case Space::shared:
      case Space::cluster:
        if (address < kSharedBase || address > shared_end || size > shared_end - address)
          warp.fail("lane " + std::to_string(lane) + " leaves shared memory: byte " +
                    std::to_string(static_cast<int64_t>(address - kSharedBase)) + " of " +
                    std::to_string(machine.shared_bytes));
        (owner == warp.block ? places.shared : places.remote) |= 1u << lane;
        places.owner[lane] = owner;
        places.at[lane] = owner->shared.data() + (address - kSharedBase);
        break;
      case Space::thread:
        if (address > machine.kernel->thread_bytes || size > machine.kernel->thread_bytes - address)
          warp.fail("outside of local memory");
        if (address < machine.kernel->local_bytes) local |= 1u << lane;
        places.at[lane] = warp.thread_memory + lane * machine.kernel->thread_bytes + address;
        break;
      case Space::parameters:
        if (access != Access::read) warp.fail("parameters are read-only");
        if (address > machine.kernel->parameter_bytes || size > machine.kernel->parameter_bytes - address)
          warp.fail("outside of the parameters");
        places.at[lane] = const_cast<unsigned char*>(machine.parameters) + address;
        break;
      default:
        places.global |= 1u << lane;
        places.at[lane] = reinterpret_cast<unsigned char*>(address);
        least = std::min(least, address);
        most = std::max(most, address);
    }
  });
  if (places.global) {
    const bool write = access != Access::read;
    if (!machine.memory.holds(least, most - least + size, write))
      each_lane(places.global, [&](unsigned lane) {
        if (!machine.memory.holds(addresses[lane], size, write))
          warp.fail("lane " + std::to_string(lane) +
                    " accesses memory that does not belong to the launch, or is read-only");
      });
  }
  if ((places.shared || places.remote) && machine.check_races)
    (machine.blocks_per_cluster == 1 ? check_race<true> : check_race<false>)(warp, places, mask, size, access,
                                                                             stored);
  if (machine.counting) {
    if (places.global) machine.count_global(addresses, places.global, size, access != Access::read);
    if (places.shared) machine.count_shared(addresses, places.shared, size);
    if (places.remote) machine.counters.cluster_requests += 1;
    if (local) machine.counters.local_requests += 1;
  }
}

// Tells the machine what a warp has read that may be waiting for it to change.
inline void poll(Warp& warp, uint64_t found) {
  found = (found ^ warp.pc) * 0x9e3779b97f4a7c15 | 1;
  warp.polled = found == warp.last_poll;
  if (!warp.polled) warp.block->machine->progress = true;
  warp.last_poll = found;
}

inline void changed(Warp& warp) {
  warp.block->machine->progress = true;
  warp.last_poll = 0;
}

inline void before_strong_access(Warp& warp, const Instruction& i, const Places& places, uint32_t mask,
                                 size_t size) {
  Block& block = *warp.block;
  const bool releases = i.order == Order::release || i.order == Order::acq_rel;
  if (!i.block_scope && releases) {
    ++block.releases;
    if (block.machine->stale) block.view.publish(block, warp.number);
  }
  if (block.machine->stale)
    each_lane(mask & places.global, [&](unsigned lane) { block.view.pass(places.at[lane], size); });
}

inline void after_strong_access(Warp& warp, const Instruction& i) {
  const bool acquires = i.order == Order::acquire || i.order == Order::acq_rel;
  if (warp.block->machine->stale && acquires && !i.block_scope) warp.block->view.forget();
}

template <class T>
void load(Warp& warp, const Instruction& i, uint32_t mask) {
  Places places;
  Block& block = *warp.block;
  const size_t size = sizeof(T) * i.vector;
  locate(warp, i, mask, size, Access::read, places);
  alignas(16) unsigned char bytes[kLanes][32];
  const bool strong = i.order > Order::constant;
  if (strong) before_strong_access(warp, i, places, mask, size);
  each_lane(mask, [&](unsigned lane) {
    if (block.machine->stale && !strong && places.global >> lane & 1)
      block.view.read(places.at[lane], size, bytes[lane]);
    else
      std::memcpy(bytes[lane], places.at[lane], size);
  });
  for (unsigned k = 0; k < i.vector; ++k)
    set_wide<T>(warp, i.operands[k], mask, [&](unsigned lane) {
      T value;
      std::memcpy(&value, bytes[lane] + k * sizeof(T), sizeof value);
      return value;
    });
  if (strong) {
    after_strong_access(warp, i);
    uint64_t found = 0;
    each_lane(mask, [&](unsigned lane) {
      uint64_t word = 0;
      std::memcpy(&word, bytes[lane], std::min<size_t>(size, 8));
      found = (found + word + lane) * 0xbf58476d1ce4e5b9;
    });
    poll(warp, found);
  }
}

template <class T>
void store(Warp& warp, const Instruction& i, uint32_t mask) {
  Places places;
  Block& block = *warp.block;
  const size_t size = sizeof(T) * i.vector;
  alignas(16) unsigned char bytes[kLanes * 32];
  for (unsigned k = 0; k < i.vector; ++k) {
    const void* from = get_defined<unsigned char>(warp, i.operands[k], mask);
    each_lane(mask, [&](unsigned lane) {
      const T value = narrow<T>(from, i.operands[k].bits, lane);
      std::memcpy(bytes + lane * size + k * sizeof(T), &value, sizeof value);
    });
  }
  locate(warp, i, mask, size, Access::write, places, bytes);
  const bool strong = i.order > Order::constant;
  if (strong) before_strong_access(warp, i, places, mask, size);
  each_lane(mask, [&](unsigned lane) {
    if (block.machine->stale && !strong && places.global >> lane & 1)
      block.view.write(block.epoch, warp.number, places.at[lane], size, bytes + lane * size);
    else
      std::memcpy(places.at[lane], bytes + lane * size, size);
  });
  changed(warp);
}

inline constexpr const char* kAtomics[] = {"add", "min",  "max", "and", "or",
                                           "xor", "exch", "cas", "inc", "dec"};

template <class T>
T updated(int how, T old, T value, T other) {
  if constexpr (!is_float<T>) {
    switch (how) {
      case 3:
        return old & value;
      case 4:
        return old | value;
      case 5:
        return old ^ value;
      case 7:
        return old == value ? other : old;
      case 8:
        return old >= value ? 0 : old + 1;
      case 9:
        return old == 0 || old > value ? value : old - 1;
    }
  }
  switch (how) {
    case 0:
      return old + value;
    case 1:
      return Min::of(old, value);
    case 2:
      return Max::of(old, value);
    default:
      return value;
  }
}

// how: number of the operation, + 16 if the old value is wanted
template <class T>
void atomic(Warp& warp, const Instruction& i, uint32_t mask) {
  Places places;
  Machine& machine = *warp.block->machine;
  locate(warp, i, mask, sizeof(T), Access::atomic, places);
  before_strong_access(warp, i, places, mask, sizeof(T));
  const bool wanted = i.how & 16;
  const int how = i.how & 15;
  const unsigned first = wanted ? 1 : 0;
  const T* value = get_defined<T>(warp, i.operands[first], mask);
  const T* other = how == 7 ? get_defined<T>(warp, i.operands[first + 1], mask) : value;
  T olds[kLanes] = {};
  bool any = false;
  uint64_t found = 0;
  each_lane(mask, [&](unsigned lane) {
    T old;
    std::memcpy(&old, places.at[lane], sizeof old);
    const T next = updated(how, old, value[lane], other[lane]);
    std::memcpy(places.at[lane], &next, sizeof next);
    olds[lane] = old;
    any |= std::memcmp(&old, &next, sizeof old) != 0;
    uint64_t word = 0;
    std::memcpy(&word, &old, sizeof old);
    found = (found + word + lane) * 0xbf58476d1ce4e5b9;
    if (!machine.counting) return;
    if (places.global >> lane & 1) {
      ++machine.counters.global_atomics;
      ++machine.atomics[places.addresses[lane]];
    } else {
      ++(places.remote >> lane & 1 ? machine.counters.cluster_atomics : machine.counters.shared_atomics);
    }
  });
  if (wanted) set<T>(warp, i.operands[0], mask, [&](unsigned lane) { return olds[lane]; });
  after_strong_access(warp, i);
  if (any)
    changed(warp);
  else
    poll(warp, found);
}

inline void fence(Warp& warp, const Instruction& i, uint32_t) {
  Block& block = *warp.block;
  if (i.block_scope) return;
  ++block.releases;
  if (!block.machine->stale) return;
  block.view.publish(block, warp.number);
  block.view.forget();
}

inline void nothing(Warp&, const Instruction&, uint32_t) {}

inline void trap(Warp& warp, const Instruction&, uint32_t) { warp.fail("the program stops itself"); }

// ---- collective operations ----

enum Shuffle { kShuffleUp, kShuffleDown, kButterfly, kIndex };

inline void shuffle(Warp& warp, const Instruction& i, uint32_t mask) {
  const bool has_predicate = i.operands[1].bits == 1;
  const unsigned first = has_predicate ? 2 : 1;
  uint32_t a[kLanes];
  std::memcpy(a, warp.values<uint32_t>(i.operands[first]), sizeof a);
  const auto *b = get_defined<uint32_t>(warp, i.operands[first + 1], mask),
             *c = get_defined<uint32_t>(warp, i.operands[first + 2], mask);
  const uint32_t written = warp.written[i.operands[first].index];
  uint32_t inside = 0, defined = 0, result[kLanes];
  each_lane(mask, [&](unsigned lane) {
    const int me = static_cast<int>(lane), distance = static_cast<int>(b[lane] & 31);
    const int clamp = static_cast<int>(c[lane] & 31), segments = static_cast<int>(c[lane] >> 8 & 31);
    const int most = (me & segments) | (clamp & ~segments), least = me & segments;
    int from = me;
    bool valid = false;
    switch (i.how) {
      case kShuffleUp:
        from = me - distance;
        valid = from >= most;
        break;
      case kShuffleDown:
        from = me + distance;
        valid = from <= most;
        break;
      case kButterfly:
        from = me ^ distance;
        valid = from <= most;
        break;
      default:
        from = least | (distance & ~segments);
        valid = from <= most;
    }
    if (!valid) from = me;
    if (!(mask >> from & 1))
      warp.fail("a lane reads from lane " + std::to_string(from) + ", which takes no part");
    result[lane] = a[from];
    defined |= (written >> from & 1) << lane;
    inside |= uint32_t{valid} << lane;
  });
  if (has_predicate) set_predicate(warp, i.operands[1], mask, inside);
  warp.defined = defined;
  set<uint32_t>(warp, i.operands[0], mask, [&](unsigned lane) { return result[lane]; });
}

enum Vote { kAll, kAny, kUniform, kBallot };

inline void vote(Warp& warp, const Instruction& i, uint32_t mask) {
  warp.check_written(i.operands[1], mask);
  const uint32_t set_lanes = warp.predicate(i.operands[1]) & mask;
  const bool all = set_lanes == mask, any = set_lanes != 0;
  switch (i.how) {
    case kBallot:
      return set<uint32_t>(warp, i.operands[0], mask, [=](unsigned) { return set_lanes; });
    case kAll:
      return set_predicate(warp, i.operands[0], mask, all ? kAllLanes : 0);
    case kAny:
      return set_predicate(warp, i.operands[0], mask, any ? kAllLanes : 0);
    default:
      return set_predicate(warp, i.operands[0], mask, all || !any ? kAllLanes : 0);
  }
}

template <class T>
void match_any(Warp& warp, const Instruction& i, uint32_t mask) {
  T a[kLanes];
  std::memcpy(a, get_defined<T>(warp, i.operands[1], mask), sizeof a);
  set<uint32_t>(warp, i.operands[0], mask, [&](unsigned lane) {
    uint32_t same = 0;
    each_lane(mask, [&](unsigned other) { same |= uint32_t{a[other] == a[lane]} << other; });
    return same;
  });
}

template <class F, class T>
void reduce(Warp& warp, const Instruction& i, uint32_t mask) {
  const T* a = get_defined<T>(warp, i.operands[1], mask);
  bool first = true;
  T result{};
  each_lane(mask, [&](unsigned lane) {
    result = first ? a[lane] : F::of(result, a[lane]);
    first = false;
  });
  set<T>(warp, i.operands[0], mask, [=](unsigned) { return result; });
}

// Matrices of 8 rows of 16 bytes. Lanes 8k .. 8k + 7 have the addresses of the rows of matrix k. Lane l holds
// two neighbouring halves: of row l / 4, or, transposed, of column l / 4.
template <bool kStore>
void matrix(Warp& warp, const Instruction& i, uint32_t mask) {
  if (mask != kAllLanes) warp.fail("a part of the warp is missing");
  const unsigned count = i.vector;
  const bool transposed = i.how;
  Places places;
  unsigned char stored[kLanes][16] = {};
  if (kStore)
    for (unsigned k = 0; k < count; ++k) {
      const auto* from = get_defined<uint32_t>(warp, i.operands[k], mask);
      for (unsigned lane = 0; lane < kLanes; ++lane)
        for (unsigned half = 0; half < 2; ++half) {
          unsigned row = lane / 4, column = lane % 4 * 2 + half;
          if (transposed) std::swap(row, column);
          const auto value = static_cast<uint16_t>(from[lane] >> 16 * half);
          std::memcpy(stored[8 * k + row] + 2 * column, &value, 2);
        }
    }
  const uint32_t rows = count == 4 ? kAllLanes : (1u << 8 * count) - 1;
  locate(warp, i, rows, 16, kStore ? Access::write : Access::read, places, stored[0]);
  if (kStore) {
    each_lane(rows, [&](unsigned lane) { std::memcpy(places.at[lane], stored[lane], 16); });
    return changed(warp);
  }
  for (unsigned k = 0; k < count; ++k)
    set<uint32_t>(warp, i.operands[k], mask, [&](unsigned lane) {
      uint32_t both = 0;
      for (unsigned half = 0; half < 2; ++half) {
        unsigned row = lane / 4, column = lane % 4 * 2 + half;
        if (transposed) std::swap(row, column);
        uint16_t value;
        std::memcpy(&value, places.at[8 * k + row] + 2 * column, 2);
        both |= uint32_t{value} << 16 * half;
      }
      return both;
    });
}

}  // namespace ptx
