// The meaning of every instruction (PTX ISA, chapter "Instruction Set"), and the assembly of a kernel.
//
// Only instructions with defined rounding are known: no .ftz, .approx or .full, and no addition or
// multiplication without a rounding, which ptxas may fuse.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <type_traits>

#include "machine.h"

namespace ptx {
namespace {

template <class T>
using Unsigned =
    std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
template <class T>
constexpr bool is_float = std::is_floating_point_v<T>;
template <class T>
constexpr int bits_of = static_cast<int>(sizeof(T)) * 8;

template <class D, class S>
D as(S value) {
  static_assert(sizeof(D) == sizeof(S));
  D result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

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

uint32_t get_predicate(Warp& warp, const Operand& operand, uint32_t mask) {
  warp.defined &= warp.written[operand.index] | ~mask;
  return warp.predicate(operand);
}

// Operand that must be defined.
template <class T>
const T* get_defined(Warp& warp, const Operand& operand, uint32_t mask) {
  warp.check_written(operand, mask);
  return warp.values<T>(operand);
}

void mark_written(Warp& warp, const Operand& operand, uint32_t mask) {
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

void set_predicate(Warp& warp, const Operand& operand, uint32_t mask, uint32_t value) {
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

// Result of one lane from its operands. `check` is called with the warp before a division.
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

void predicate_not(Warp& warp, const Instruction& i, uint32_t mask) {
  set_predicate(warp, i.operands[0], mask, ~get_predicate(warp, i.operands[1], mask));
}

template <class T>
void add_halves(Warp& warp, const Instruction& i, uint32_t mask) {
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

void permute_bytes(Warp& warp, const Instruction& i, uint32_t mask) {
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

void lookup_3(Warp& warp, const Instruction& i, uint32_t mask) {
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

const char* const kComparisons[] = {"eq",  "ne",  "lt",  "le",  "gt",  "ge", "equ", "neu", "ltu",
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

void move_predicate(Warp& warp, const Instruction& i, uint32_t mask) {
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
void convert_address(Warp& warp, const Instruction& i, uint32_t mask) {
  const auto* a = get<uint64_t>(warp, i.operands[1], mask);
  const auto window = static_cast<uint64_t>(i.offset);
  if (!i.how && window)
    each_lane(mask, [&](unsigned lane) {
      if (a[lane] >> 56 != window >> 56) warp.fail("the generic address is not in this state space");
    });
  set<uint64_t>(warp, i.operands[0], mask,
                [=](unsigned lane) { return i.how ? a[lane] + window : a[lane] - window; });
}

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
  uint32_t global = 0, shared = 0;  // lanes
};

enum class Access { read, write, atomic };

void check_race(Warp& warp, const Places& places, uint32_t mask, size_t size, size_t item, Access access,
                const unsigned char* stored) {
  Block& block = *warp.block;
  const auto me = static_cast<uint16_t>(warp.number);
  constexpr uint16_t kAtomic = 0x8000;
  const size_t unit = std::min<size_t>(item, 4);
  each_lane(mask & places.shared, [&](unsigned lane) {
    for (size_t k = 0; k < size; k += unit) {
      const uint64_t offset = places.addresses[lane] - kSharedBase + k;
      Block::Shadow& shadow = block.shadows.data()[offset];
      const bool written = shadow.write_epoch == block.epoch, read = shadow.read_epoch == block.epoch;
      const bool by_other = written && (shadow.writer & ~kAtomic) != me;
      const bool only_atomic = access == Access::atomic && shadow.writer & kAtomic;
      // Threads may store the same value.
      const bool same =
          access == Access::write && std::memcmp(stored + lane * size + k, places.at[lane] + k, unit) == 0;
      if (by_other && !only_atomic && !same)
        warp.fail("a race: warp " + std::to_string(shadow.writer & ~kAtomic) + " has written byte " +
                  std::to_string(offset) + " of shared memory since the last barrier");
      if (access != Access::read && read && shadow.reader != me && !same)
        warp.fail("a race: another warp has read byte " + std::to_string(offset) +
                  " of shared memory since the last barrier");
      if (access == Access::read) {
        shadow.reader = read && shadow.reader != me ? Block::kSeveral : me;
        shadow.read_epoch = block.epoch;
      } else {
        const bool others = access == Access::atomic && by_other;
        shadow.writer =
            others ? Block::kSeveral : static_cast<uint16_t>(me | (access == Access::atomic ? kAtomic : 0));
        shadow.write_epoch = block.epoch;
      }
    }
  });
}

// Checks an access of `size` bytes a lane, finds its bytes, and counts it.
void locate(Warp& warp, const Instruction& i, uint32_t mask, size_t size, Access access, Places& places,
            const unsigned char* stored = nullptr) {
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
      space = window == kSharedWindow      ? Space::shared
              : window == kThreadWindow    ? Space::thread
              : window == kParameterWindow ? Space::parameters
                                           : Space::global;
      if (space != Space::global) address -= window;
    }
    if (address % size)
      warp.fail("an address of lane " + std::to_string(lane) + " is not a multiple of " +
                std::to_string(size));
    switch (space) {
      case Space::shared:
        if (address < kSharedBase || address > shared_end || size > shared_end - address)
          warp.fail("lane " + std::to_string(lane) + " leaves shared memory: byte " +
                    std::to_string(static_cast<int64_t>(address - kSharedBase)) + " of " +
                    std::to_string(machine.shared_bytes));
        places.shared |= 1u << lane;
        places.at[lane] = warp.block->shared.data() + (address - kSharedBase);
        break;
      case Space::thread:
        if (address > machine.kernel->thread_bytes || size > machine.kernel->thread_bytes - address)
          warp.fail("outside of local memory");
        local |= 1u << lane;
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
  if (places.shared && machine.check_races) check_race(warp, places, mask, size, i.item, access, stored);
  if (machine.counting) {
    if (places.global) machine.count_global(addresses, places.global, size, access != Access::read);
    if (places.shared) machine.count_shared(addresses, places.shared, size);
    if (local) machine.counters.local_requests += 1;
  }
}

// Tells the machine what a warp has read that may be waiting for it to change.
void poll(Warp& warp, uint64_t found) {
  found = (found ^ warp.pc) * 0x9e3779b97f4a7c15 | 1;
  warp.polled = found == warp.last_poll;
  if (!warp.polled) warp.block->machine->progress = true;
  warp.last_poll = found;
}

void changed(Warp& warp) {
  warp.block->machine->progress = true;
  warp.last_poll = 0;
}

void before_strong_access(Warp& warp, const Instruction& i, const Places& places, uint32_t mask,
                          size_t size) {
  Block& block = *warp.block;
  const bool releases = i.order == Order::release || i.order == Order::acq_rel;
  if (!i.block_scope && releases) {
    ++block.grid_barriers;
    if (block.machine->stale) block.view.publish(block, warp.number);
  }
  if (block.machine->stale)
    each_lane(mask & places.global, [&](unsigned lane) { block.view.pass(places.at[lane], size); });
}

void after_strong_access(Warp& warp, const Instruction& i) {
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

const char* const kAtomics[] = {"add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec"};

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
      ++machine.counters.shared_atomics;
    }
  });
  if (wanted) set<T>(warp, i.operands[0], mask, [&](unsigned lane) { return olds[lane]; });
  after_strong_access(warp, i);
  if (any)
    changed(warp);
  else
    poll(warp, found);
}

void fence(Warp& warp, const Instruction& i, uint32_t) {
  Block& block = *warp.block;
  if (i.block_scope) return;
  ++block.grid_barriers;
  if (!block.machine->stale) return;
  block.view.publish(block, warp.number);
  block.view.forget();
}

void nothing(Warp&, const Instruction&, uint32_t) {}

void trap(Warp& warp, const Instruction&, uint32_t) { warp.fail("the program stops itself"); }

// ---- collective operations ----

enum Shuffle { kShuffleUp = 2, kShuffleDown = 4, kButterfly = 6, kIndex = 8 };

void shuffle(Warp& warp, const Instruction& i, uint32_t mask) {
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
    switch (i.how & ~1) {
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

enum Vote { kAll = 2, kAny = 4, kUniform = 6, kBallot = 8 };

void vote(Warp& warp, const Instruction& i, uint32_t mask) {
  warp.check_written(i.operands[1], mask);
  const uint32_t set_lanes = warp.predicate(i.operands[1]) & mask;
  const bool all = set_lanes == mask, any = set_lanes != 0;
  switch (i.how & ~1) {
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
  const bool transposed = i.how & 2;
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

// ---- choice of a function by type ----

struct Type {
  char kind = 0;  // u, s, b, f; p: predicate; x: two halves
  int bits = 0;
};

Type type_of(const std::string& word) {
  if (word == "pred") return {'p', 1};
  if (word == "s16x2" || word == "u16x2") return {'x', 32};
  if (word.size() < 2 || !std::strchr("usbf", word[0])) return {};
  const int bits = std::atoi(word.c_str() + 1);
  if (word != std::string(1, word[0]) + std::to_string(bits)) return {};
  return {word[0], bits};
}

// Calls choose(T{}) with the type that stands for `type`.
template <class Choose>
Run by_type(Type type, const Choose& choose) {
  const bool is_signed = type.kind == 's';
  if (type.kind == 'f')
    return type.bits == 32 ? choose(float{}) : type.bits == 64 ? choose(double{}) : nullptr;
  if (type.kind != 'u' && type.kind != 'b' && type.kind != 's') return nullptr;
  switch (type.bits) {
    case 8:
      return is_signed ? choose(int8_t{}) : choose(uint8_t{});
    case 16:
      return is_signed ? choose(int16_t{}) : choose(uint16_t{});
    case 32:
      return is_signed ? choose(int32_t{}) : choose(uint32_t{});
    case 64:
      return is_signed ? choose(int64_t{}) : choose(uint64_t{});
    default:
      return nullptr;
  }
}

enum Kinds { kIntegers = 1, kFloats = 2, kUnsignedOnly = 4, kWords = 8 };

template <class T>
constexpr bool admits(int kinds) {
  if (sizeof(T) == 1) return false;
  if (is_float<T>) return kinds & kFloats;
  if (!(kinds & kIntegers)) return false;
  if ((kinds & kUnsignedOnly) && std::is_signed_v<T>) return false;
  return !(kinds & kWords) || sizeof(T) >= 4;
}

template <class F, int kKinds>
Run binary_of(Type type) {
  return by_type(type, [](auto zero) -> Run {
    using T = decltype(zero);
    if constexpr (admits<T>(kKinds)) return &binary<F, T>;
    return nullptr;
  });
}

template <class F, int kKinds>
Run unary_of(Type type) {
  return by_type(type, [](auto zero) -> Run {
    using T = decltype(zero);
    if constexpr (admits<T>(kKinds)) return &unary<F, T>;
    return nullptr;
  });
}

#define BY_TYPE(function, kinds)                           \
  [](Type type) {                                          \
    return by_type(type, [](auto zero) -> Run {            \
      using T = decltype(zero);                            \
      if constexpr (admits<T>(kinds)) return &function<T>; \
      return nullptr;                                      \
    });                                                    \
  }

// ---- assembly ----

bool contains(const std::vector<std::string>& words, const char* word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

class Assembler {
 public:
  Assembler(const Module& module, const std::string& name)
      : module_(module), kernel_(std::make_unique<Kernel>()) {
    kernel_->name = name;
    const Function& entry = function(name);
    if (!entry.is_entry) throw Fault(name + " is no kernel");
    for (const Variable& shared : module.shared)
      if (shared.size) place_shared(shared);
    for (const Variable& parameter : entry.parameters) {
      const size_t at = aligned(kernel_->parameter_bytes, parameter.alignment);
      kernel_->parameters.push_back({at, parameter.size});
      kernel_->parameter_bytes = at + parameter.size;
      symbols_[name + "/" + parameter.name] = {Space::parameters, at};
    }
    const auto limit = [&](const char* directive, int64_t otherwise) {
      const auto found = entry.limits.find(directive);
      return found == entry.limits.end() ? otherwise : found->second;
    };
    kernel_->max_threads = limit(".maxntid", limit(".reqntid", 1024));
    kernel_->min_blocks = limit(".minnctapersm", 1);
    need(name);
    for (size_t k = 0; k < needed_.size(); ++k) place_variables(function(needed_[k]));
    // The dynamic shared memory lies behind the static one.
    kernel_->static_shared_bytes = aligned(kernel_->static_shared_bytes, 16);
    for (const Variable& shared : module.shared)
      if (!shared.size)
        symbols_["/" + shared.name] = {Space::shared, kSharedBase + kernel_->static_shared_bytes};
    for (const std::string& needed : needed_) assemble(function(needed));
    for (const auto& [instruction, callee] : calls_) kernel_->code[instruction].target = begins_.at(callee);
  }

  std::unique_ptr<Kernel> take() { return std::move(kernel_); }

 private:
  static size_t aligned(size_t size, size_t alignment) {
    return (size + alignment - 1) / alignment * alignment;
  }

  const Function& function(const std::string& name) const {
    const auto found = module_.functions.find(name);
    if (found == module_.functions.end()) throw Fault("the PTX has no function " + name);
    return found->second;
  }

  void need(const std::string& name) {
    if (std::find(needed_.begin(), needed_.end(), name) != needed_.end()) return;
    needed_.push_back(name);
    for (const Statement& statement : function(name).statements)
      if (statement.opcode.rfind("call", 0) == 0)
        for (const Text& operand : statement.operands)
          if (operand.kind == Text::name) need(operand.word);
  }

  void place_shared(const Variable& variable) {
    const size_t at = aligned(kernel_->static_shared_bytes, variable.alignment);
    symbols_["/" + variable.name] = {Space::shared, kSharedBase + at};
    kernel_->static_shared_bytes = at + variable.size;
  }

  void place_variables(const Function& function) {
    for (const Variable& shared : function.shared) place_shared(shared);
    const auto place = [&](const Variable& variable) {
      const size_t at = aligned(kernel_->thread_bytes, variable.alignment);
      symbols_[function.name + "/" + variable.name] = {Space::thread, at};
      kernel_->thread_bytes = at + variable.size;
    };
    for (const Variable& variable : function.locals) {
      place(variable);
      kernel_->local_bytes += variable.size;
    }
    for (const Variable& variable : function.call_parameters) place(variable);
    if (!function.is_entry)
      for (const auto* list : {&function.parameters, &function.results})
        for (const Variable& variable : *list) place(variable);
    kernel_->thread_bytes = aligned(kernel_->thread_bytes, 16);
  }

  // ---- operands ----

  [[noreturn]] void fail(const std::string& why) const {
    throw Fault(readable(kernel_->name) + ", line " + std::to_string(statement_->line) +
                " of the PTX: " + statement_->source + ": " + why);
  }

  Operand new_register(int bits) {
    Operand result;
    result.bits = static_cast<uint8_t>(bits);
    result.at = static_cast<uint32_t>(kernel_->register_bytes);
    result.index = kernel_->num_registers++;
    kernel_->register_bytes += bits == 1 ? 32 : static_cast<size_t>(bits) / 8 * kLanes;
    return result;
  }

  int declared_bits(const std::string& name) const {
    for (const Register& declared : function_->registers) {
      if (declared.count < 0) {
        if (declared.prefix == name) return declared.bits;
      } else if (name.rfind(declared.prefix, 0) == 0 && name.size() > declared.prefix.size() &&
                 name.find_first_not_of("0123456789", declared.prefix.size()) == std::string::npos &&
                 std::stoi(name.substr(declared.prefix.size())) < declared.count) {
        return declared.bits;
      }
    }
    fail(name + " is not declared");
  }

  Operand register_of(const std::string& name) {
    if (name == "_") return new_register(64);
    static const std::set<std::string> specials = {
        "%tid.x",       "%tid.y",       "%tid.z",       "%ntid.x",      "%ntid.y",     "%ntid.z", "%ctaid.x",
        "%ctaid.y",     "%ctaid.z",     "%nctaid.x",    "%nctaid.y",    "%nctaid.z",   "%laneid", "%warpid",
        "%lanemask_lt", "%lanemask_le", "%lanemask_eq", "%lanemask_ge", "%lanemask_gt"};
    if (specials.count(name)) {
      auto [place, is_new] = kernel_->special.try_emplace(name);
      if (is_new) {
        place->second = new_register(32);
        place->second.index = 0;
      }
      return place->second;
    }
    const std::string key = function_->name + "/" + name;
    auto [place, is_new] = registers_.try_emplace(key);
    if (is_new) place->second = new_register(declared_bits(name));
    return place->second;
  }

  Operand constant(uint64_t value, int bits) {
    auto [place, is_new] = constants_.try_emplace({value, bits});
    if (is_new) {
      Operand& result = place->second;
      result.constant = true;
      result.bits = static_cast<uint8_t>(bits);
      auto& bytes = kernel_->constants;
      bytes.resize(aligned(bytes.size(), 32));
      result.at = static_cast<uint32_t>(bytes.size());
      const size_t size = bits == 1 ? 4 : static_cast<size_t>(bits) / 8;
      for (unsigned lane = 0; lane < (bits == 1 ? 1 : kLanes); ++lane)
        bytes.insert(bytes.end(), reinterpret_cast<unsigned char*>(&value),
                     reinterpret_cast<unsigned char*>(&value) + size);
    }
    return place->second;
  }

  // Symbol of this function or of the module, or null.
  const std::pair<Space, uint64_t>* symbol(const std::string& name) const {
    for (const std::string& key : {function_->name + "/" + name, "/" + name}) {
      const auto found = symbols_.find(key);
      if (found != symbols_.end()) return &found->second;
    }
    return nullptr;
  }

  Operand operand(const Text& text, int bits) {
    if (text.kind == Text::number || (text.kind == Text::name && text.word[0] == '-')) {
      const std::string& word = text.word;
      if (word.size() > 2 && (word[1] == 'f' || word[1] == 'F'))
        return constant(std::stoull(word.substr(2), nullptr, 16), 32);
      if (word.size() > 2 && (word[1] == 'd' || word[1] == 'D'))
        return constant(std::stoull(word.substr(2), nullptr, 16), 64);
      const bool negative = word[0] == '-';
      uint64_t value = std::stoull(word.substr(negative), nullptr, 0);
      if (negative) value = 0 - value;
      if (bits == 1) return constant(value ? kAllLanes : 0, 1);
      return constant(bits == 64 ? value : value & ((uint64_t{1} << bits) - 1), bits);
    }
    if (text.kind != Text::name) fail("an operand of this kind is unknown here");
    if (const auto* found = symbol(text.word)) return constant(found->second, bits);
    Operand result = register_of(text.word);
    result.negated = text.negated;
    return result;
  }

  // Operand that must have the given size.
  Operand exact(const Text& text, int bits) {
    const Operand result = operand(text, bits);
    if (result.bits != bits && text.word != "_")
      fail(text.word + " has " + std::to_string(result.bits) + " bits, not " + std::to_string(bits));
    return result;
  }

  void add(Instruction& i, const Operand& operand) {
    if (i.num_operands == i.operands.size()) fail("too many operands");
    i.operands[i.num_operands++] = operand;
  }

  void add_address(Instruction& i, const Text& text) {
    if (text.kind != Text::address) fail("expected an address");
    i.offset = text.offset;
    if (const auto* found = symbol(text.word)) {
      if (i.space == Space::thread && found->first == Space::parameters) i.space = Space::parameters;
      if (i.space != found->first) fail(text.word + " is in another state space");
      add(i, constant(found->second, 64));
      return;
    }
    if (text.word == "0") fail("an absolute address");
    const Operand base = register_of(text.word);
    if (base.bits < 32) fail("an address has 32 or 64 bits");
    // The parameters of a kernel and of a function are different memories.
    if (i.space == Space::thread && contains(words_, "param") && function_->is_entry)
      i.space = Space::parameters;
    add(i, base);
  }

  // ---- instructions ----

  void assemble(const Function& function) {
    function_ = &function;
    begins_[function.name] = static_cast<uint32_t>(kernel_->code.size());
    kernel_->functions.push_back(function.name);
    const size_t begin = kernel_->code.size();
    for (const Statement& statement : function.statements) {
      statement_ = &statement;
      kernel_->code.push_back(instruction());
    }
    // The end of a function is a return.
    static const Statement end{"", false, "ret", {}, 0, 0, "the end of the function"};
    statement_ = &end;
    kernel_->code.push_back(instruction());
    for (size_t k = begin; k < kernel_->code.size(); ++k) {
      Instruction& i = kernel_->code[k];
      if (i.flow != Flow::branch) continue;
      statement_ = i.statement;
      const auto label = function.labels.find(i.statement->operands.at(0).word);
      if (label == function.labels.end()) fail("there is no such label");
      i.target = static_cast<uint32_t>(begin + label->second);
    }
  }

  Instruction instruction() {
    Instruction i;
    i.statement = statement_;
    i.function = static_cast<uint32_t>(kernel_->functions.size() - 1);
    if (!statement_->guard.empty()) {
      i.guarded = true;
      i.guard = register_of(statement_->guard);
      i.guard.negated = statement_->guard_negated;
    }
    words_.clear();
    const std::string& opcode = statement_->opcode;
    for (size_t at = 0; at <= opcode.size();) {
      const size_t dot = std::min(opcode.find('.', at), opcode.size());
      words_.push_back(opcode.substr(at, dot - at));
      at = dot + 1;
    }
    decode(i);
    if (!i.run && (i.flow == Flow::next || i.flow == Flow::collective)) unknown();
    return i;
  }

  [[noreturn]] void unknown() const { fail("the opcode " + statement_->opcode + " is unknown"); }

  const std::vector<Text>& given() const { return statement_->operands; }

  // The modifiers between the name and the type must all be among these.
  void only(const std::set<std::string>& known, size_t types = 1) const {
    for (size_t k = 1; k + types < words_.size(); ++k)
      if (!known.count(words_[k])) unknown();
  }

  void require_operands(size_t count) const {
    if (given().size() != count) fail("expected " + std::to_string(count) + " operands");
  }

  void decode(Instruction& i) {
    const std::string& name = words_[0];
    const Type type = type_of(words_.back());
    if (name == "ld" || name == "ldu" || name == "st") return memory(i, type, name == "st");
    if (name == "atom" || name == "red") return atomic_operation(i, type, name == "atom");
    if (name == "mov") return move_operation(i, type);
    if (name == "cvta") return address_conversion(i);
    if (name == "cvt") return conversion(i, type);
    if (name == "setp") return comparison(i, type);
    if (name == "selp") {
      only({});
      require_operands(4);
      for (size_t k = 0; k < 3; ++k) add(i, exact(given()[k], type.bits));
      add(i, exact(given()[3], 1));
      i.run = BY_TYPE(select, kIntegers | kFloats)(type);
      return;
    }
    if (name == "bra" || name == "call" || name == "ret" || name == "exit" || name == "bar" ||
        name == "barrier" || name == "membar" || name == "fence" || name == "trap" || name == "nanosleep" ||
        name == "shfl" || name == "vote" || name == "match" || name == "redux" || name == "ldmatrix" ||
        name == "stmatrix" || name == "activemask")
      return control(i, type);
    arithmetic(i, type);
  }

  void arithmetic(Instruction& i, Type type) {
    const std::string& name = words_[0];
    const auto operands = [&](std::initializer_list<int> sizes) {
      require_operands(sizes.size());
      size_t k = 0;
      for (const int bits : sizes) add(i, exact(given()[k++], bits));
    };
    const bool is_f = type.kind == 'f';
    // Without .rn, a multiplication and an addition may be fused.
    const auto rounded = [&] {
      if (is_f && words_.size() != 3) unknown();
      only(is_f ? std::set<std::string>{"rn"} : std::set<std::string>{});
    };
    const int bits = type.bits;
    const std::string& mode = words_[1];
    if (type.kind == 'p') {
      only({});
      if (name == "not") {
        operands({1, 1});
        i.run = &predicate_not;
      } else {
        operands({1, 1, 1});
        i.run = name == "and"   ? &predicate_binary<And>
                : name == "or"  ? &predicate_binary<Or>
                : name == "xor" ? &predicate_binary<Xor>
                                : nullptr;
      }
    } else if (name == "add" && type.kind == 'x') {
      only({});
      operands({32, 32, 32});
      i.run = &add_halves<uint16_t>;
    } else if (name == "add" || name == "sub") {
      rounded();
      operands({bits, bits, bits});
      i.run = name == "add" ? binary_of<Add, kIntegers | kFloats>(type)
                            : binary_of<Sub, kIntegers | kFloats>(type);
    } else if (name == "mul" && is_f) {
      rounded();
      operands({bits, bits, bits});
      i.run = binary_of<Mul, kFloats>(type);
    } else if (name == "mul" || name == "mad") {
      only({"lo", "hi", "wide"});
      const int wide = mode == "wide" ? 2 * bits : bits;
      if (name == "mul")
        operands({wide, bits, bits});
      else
        operands({wide, bits, bits, wide});
      if (is_f) unknown();
      if (mode == "wide" && bits > 32) unknown();
      if (name == "mul")
        i.run = mode == "lo"   ? binary_of<Mul, kIntegers>(type)
                : mode == "hi" ? binary_of<MulHigh, kIntegers>(type)
                               : wide_of(type, false);
      else
        i.run = mode == "wide" ? wide_of(type, true) : mad_of(type, mode == "hi");
    } else if (name == "fma") {
      rounded();
      operands({bits, bits, bits, bits});
      i.run = BY_TYPE(fma, kFloats)(type);
    } else if (name == "div") {
      rounded();
      operands({bits, bits, bits});
      i.run = binary_of<Div, kIntegers | kFloats>(type);
    } else if (name == "sqrt") {
      rounded();
      operands({bits, bits});
      i.run = unary_of<Sqrt, kFloats>(type);
    } else if (name == "shl" || name == "shr") {
      only({});
      operands({bits, bits, 32});
      i.run = name == "shl" ? BY_TYPE(shift_left, kIntegers | kUnsignedOnly)(type)
                            : BY_TYPE(shift_right, kIntegers)(type);
    } else if (name == "shf") {
      only({"l", "r", "wrap", "clamp"});
      operands({32, 32, 32, 32});
      i.how = contains(words_, "clamp");
      i.run = mode == "l" ? &funnel_shift<true> : &funnel_shift<false>;
    } else if (name == "bfe") {
      only({});
      operands({bits, bits, 32, 32});
      i.run = BY_TYPE(bit_field_extract, kIntegers | kWords)(type);
    } else if (name == "bfi") {
      only({});
      operands({bits, bits, bits, 32, 32});
      i.run = BY_TYPE(bit_field_insert, kIntegers | kWords | kUnsignedOnly)(type);
    } else if (name == "prmt") {
      only({});
      operands({32, 32, 32, 32});
      i.run = &permute_bytes;
    } else if (name == "lop3") {
      only({});
      operands({32, 32, 32, 32, 32});
      i.run = &lookup_3;
    } else if (name == "popc" || name == "clz") {
      only({});
      operands({32, bits});
      constexpr int kinds = kIntegers | kUnsignedOnly | kWords;
      i.run = name == "popc" ? unary_of<PopCount, kinds>(type) : unary_of<LeadingZeros, kinds>(type);
    } else if (name == "not" || name == "neg" || name == "abs" || name == "brev") {
      only({});
      operands({bits, bits});
      i.run = name == "not"   ? unary_of<Not, kIntegers>(type)
              : name == "neg" ? unary_of<Neg, kIntegers | kFloats>(type)
              : name == "abs" ? unary_of<Abs, kIntegers | kFloats>(type)
                              : unary_of<Reverse, kIntegers | kUnsignedOnly | kWords>(type);
    } else {
      static const std::set<std::string> known = {"min", "max", "and", "or", "xor", "rem", "copysign"};
      if (!known.count(name)) unknown();
      only({});
      operands({bits, bits, bits});
      i.run = name == "min"        ? binary_of<Min, kIntegers | kFloats>(type)
              : name == "max"      ? binary_of<Max, kIntegers | kFloats>(type)
              : name == "and"      ? binary_of<And, kIntegers>(type)
              : name == "or"       ? binary_of<Or, kIntegers>(type)
              : name == "xor"      ? binary_of<Xor, kIntegers>(type)
              : name == "rem"      ? binary_of<Rem, kIntegers>(type)
              : name == "copysign" ? binary_of<CopySign, kFloats>(type)
                                   : nullptr;
    }
  }

  static Run wide_of(Type type, bool add) {
    return by_type(type, [add](auto zero) -> Run {
      using T = decltype(zero);
      if constexpr (admits<T>(kIntegers) && sizeof(T) <= 4) return add ? &mad_wide<T> : &mul_wide<T>;
      return nullptr;
    });
  }

  static Run mad_of(Type type, bool high) {
    return by_type(type, [high](auto zero) -> Run {
      using T = decltype(zero);
      if constexpr (admits<T>(kIntegers)) return high ? &mad<MulHigh, T> : &mad<Mul, T>;
      return nullptr;
    });
  }

  void comparison(Instruction& i, Type type) {
    int how = -1;
    for (int k = 0; k < 18; ++k)
      if (words_[1] == kComparisons[k]) how = k;
    if (how < 0 || words_.size() > 4) unknown();
    if (words_.size() == 4) {
      how |= words_[2] == "and" ? kAnd : words_[2] == "or" ? kOr : words_[2] == "xor" ? kXor : 0;
      if (how < 32) unknown();
    }
    require_operands(words_.size());
    if (!given()[0].second.empty()) unknown();
    add(i, exact(given()[0], 1));
    add(i, exact(given()[1], type.bits));
    add(i, exact(given()[2], type.bits));
    if (how >= 32) add(i, exact(given()[3], 1));
    i.how = how;
    i.run = BY_TYPE(set_comparison, kIntegers | kFloats)(type);
  }

  void move_operation(Instruction& i, Type type) {
    only({});
    require_operands(2);
    const Text &to = given()[0], &from = given()[1];
    const bool packs = from.kind == Text::vector, unpacks = to.kind == Text::vector;
    if (packs || unpacks) {
      const auto& items = packs ? from.items : to.items;
      const int part = type.bits / static_cast<int>(items.size());
      if (packs) add(i, exact(to, type.bits));
      for (const Text& item : items) add(i, exact(item, part));
      if (unpacks) add(i, exact(from, type.bits));
      i.run =
          type.bits == 64 && part == 32   ? packs ? &pack<uint64_t, uint32_t> : &unpack<uint64_t, uint32_t>
          : type.bits == 64 && part == 16 ? packs ? &pack<uint64_t, uint16_t> : &unpack<uint64_t, uint16_t>
          : type.bits == 32 && part == 16 ? packs ? &pack<uint32_t, uint16_t> : &unpack<uint32_t, uint16_t>
                                          : nullptr;
      return;
    }
    add(i, exact(to, type.bits));
    add(i, exact(from, type.bits));
    i.run =
        type.kind == 'p' ? &move_predicate : BY_TYPE(move, kIntegers | kUnsignedOnly)(Type{'b', type.bits});
  }

  void address_conversion(Instruction& i) {
    require_operands(2);
    i.how = !contains(words_, "to");
    const std::string& space = words_[i.how ? 1 : 2];
    if (space == "shared")
      i.offset = static_cast<int64_t>(kSharedWindow);
    else if (space == "local")
      i.offset = static_cast<int64_t>(kThreadWindow);
    else if (space == "param")
      i.offset = static_cast<int64_t>(kParameterWindow);
    else if (space != "global")
      unknown();
    for (size_t k = 0; k < 2; ++k) add(i, exact(given()[k], 64));
    i.run = &convert_address;
  }

  void conversion(Instruction& i, Type from) {
    require_operands(2);
    const Type to = type_of(words_[words_.size() - 2]);
    if (!to.kind || words_.size() > 4) unknown();
    const bool to_f = to.kind == 'f', from_f = from.kind == 'f';
    if (words_.size() == 4) {
      const std::map<std::string, int> roundings = {{"rn", kNearest},
                                                    {"rni", kNearest | kIntegral},
                                                    {"rzi", kZero | kIntegral},
                                                    {"rmi", kDown | kIntegral},
                                                    {"rpi", kUp | kIntegral}};
      const auto found = roundings.find(words_[1]);
      if (found == roundings.end()) unknown();
      i.how = found->second;
    }
    // A rounding must be given where there is one, and no other.
    const bool integral = i.how & kIntegral;
    const bool needs_integral = from_f && !to_f, needs_nearest = to_f && (!from_f || to.bits < from.bits);
    if (needs_integral != integral && !(from_f && to_f && to.bits == from.bits)) unknown();
    if (needs_nearest != (i.how == kNearest)) unknown();
    for (const size_t k : {0, 1}) {
      const Type type = k == 0 ? to : from;
      const Operand found = operand(given()[k], std::max(type.bits, 16));
      if (found.bits < type.bits || (type.kind == 'f' && found.bits != type.bits))
        fail("an operand has the wrong size");
      add(i, found);
    }
    i.run = by_type(to, [&](auto d) -> Run {
      using D = decltype(d);
      return by_type(from, [](auto s) -> Run {
        using S = decltype(s);
        return &convert<D, S>;
      });
    });
  }

  void order_and_space(Instruction& i, bool is_atomic) {
    static const std::set<std::string> hints = {"ca",  "cg",  "cs", "lu", "wb", "wt",  "gpu",
                                                "sys", "cta", "v2", "v4", "v8", "weak"};
    if (is_atomic) i.order = Order::relaxed;
    bool has_space = false;
    for (size_t k = 1; k + 1 < words_.size(); ++k) {
      const std::string& word = words_[k];
      const std::map<std::string, Space> spaces = {{"global", Space::global},
                                                   {"shared", Space::shared},
                                                   {"local", Space::thread},
                                                   {"param", Space::thread}};
      const std::string space = word.substr(0, word.find("::"));
      if (const auto found = spaces.find(space); found != spaces.end())
        i.space = found->second, has_space = true;
      else if (word == "relaxed" || word == "volatile" || word == "cv")
        i.order = Order::relaxed;
      else if (word == "acquire")
        i.order = Order::acquire;
      else if (word == "release")
        i.order = Order::release;
      else if (word == "acq_rel")
        i.order = Order::acq_rel;
      else if (word == "nc")
        i.order = Order::constant;
      else if (!hints.count(word) && word.rfind("L1::", 0) != 0 && word.rfind("L2::", 0) != 0 &&
               !(is_atomic &&
                 std::find(std::begin(kAtomics), std::end(kAtomics), word) != std::end(kAtomics)))
        unknown();
    }
    (void)has_space;
    i.block_scope = contains(words_, "cta") || i.space == Space::shared;
    for (const unsigned count : {2, 4, 8})
      if (contains(words_, ("v" + std::to_string(count)).c_str())) i.vector = static_cast<uint8_t>(count);
  }

  void memory(Instruction& i, Type type, bool is_store) {
    order_and_space(i, false);
    require_operands(2);
    i.item = static_cast<uint8_t>(type.bits / 8);
    const Text &value = given()[is_store ? 1 : 0], &address = given()[is_store ? 0 : 1];
    const std::vector<Text> items = value.kind == Text::vector ? value.items : std::vector<Text>{value};
    if (items.size() != i.vector || i.vector * i.item > 32) fail("the number of values does not fit");
    for (const Text& item : items) {
      const Operand found = operand(item, std::max(type.bits, 16));
      if (found.bits < type.bits) fail("a value has the wrong size");
      add(i, found);
    }
    add_address(i, address);
    // bits are moved, so floats are like unsigned integers
    const Type moved{type.kind == 's' ? 's' : 'u', type.bits};
    i.run = by_type(moved, [=](auto zero) -> Run {
      using T = decltype(zero);
      return is_store ? &store<T> : &load<T>;
    });
  }

  void atomic_operation(Instruction& i, Type type, bool wanted) {
    order_and_space(i, true);
    i.item = static_cast<uint8_t>(type.bits / 8);
    int how = -1;
    for (int k = 0; k < 10; ++k)
      if (contains(words_, kAtomics[k])) how = k;
    if (how < 0) unknown();
    const size_t values = how == 7 ? 2 : 1;
    require_operands(values + 1 + wanted);
    i.how = how | (wanted ? 16 : 0);
    size_t k = 0;
    if (wanted) add(i, exact(given()[k++], type.bits));
    const Text& address = given()[k++];
    for (size_t n = 0; n < values; ++n) add(i, exact(given()[k++], type.bits));
    add_address(i, address);
    i.run = by_type(type, [](auto zero) -> Run {
      using T = decltype(zero);
      if constexpr (sizeof(T) >= 4) return &atomic<T>;
      return nullptr;
    });
  }

  void control(Instruction& i, Type type) {
    const std::string& name = words_[0];
    if (name == "bra") {
      only({"uni"}, 0);
      require_operands(1);
      i.flow = Flow::branch;
    } else if (name == "ret" || name == "exit") {
      i.flow = name == "ret" ? Flow::leave : Flow::finish;
    } else if (name == "call") {
      call(i);
    } else if (name == "bar" && words_.at(1) == "warp") {
      require_operands(1);
      i.flow = Flow::collective;
      i.how = 1;
      add(i, exact(given()[0], 32));
      i.run = &nothing;
    } else if (name == "bar" || name == "barrier") {
      only({"sync", "cta", "aligned"}, 0);
      if (!contains(words_, "sync") || given().size() > 1 || (given().size() == 1 && given()[0].word != "0"))
        unknown();
      i.flow = Flow::barrier;
    } else if (name == "membar" || name == "fence") {
      only({"gl", "cta", "sys", "gpu", "acq_rel", "sc"}, 0);
      i.block_scope = contains(words_, "cta");
      i.run = &fence;
    } else if (name == "trap") {
      i.run = &trap;
    } else if (name == "nanosleep") {
      i.run = &nothing;
    } else if (name == "activemask") {
      unknown();
    } else {
      collective(i, type);
    }
  }

  void call(Instruction& i) {
    i.flow = Flow::call;
    std::vector<std::vector<Text>> lists;
    std::string callee;
    for (const Text& operand : given())
      if (operand.kind == Text::list)
        lists.push_back(operand.items);
      else
        callee = operand.word;
    const bool returns = given()[0].kind == Text::list;
    const Function& called = function(callee);
    const auto pass = [&](const std::vector<Text>& passed, const std::vector<Variable>& formal,
                          std::vector<Copy>& copies, bool back) {
      if (passed.size() != formal.size()) fail("the number of parameters does not fit");
      for (size_t k = 0; k < passed.size(); ++k) {
        const auto here = static_cast<uint32_t>(symbols_.at(function_->name + "/" + passed[k].word).second);
        const auto there = static_cast<uint32_t>(symbols_.at(callee + "/" + formal[k].name).second);
        copies.push_back({back ? there : here, back ? here : there, static_cast<uint32_t>(formal[k].size)});
      }
    };
    if (returns) pass(lists.at(0), called.results, i.results, true);
    if (lists.size() > returns) pass(lists[returns], called.parameters, i.arguments, false);
    calls_.push_back({kernel_->code.size(), callee});
  }

  void collective(Instruction& i, Type type) {
    const std::string& name = words_[0];
    i.flow = Flow::collective;
    if (name == "shfl") {
      only({"sync", "up", "down", "bfly", "idx"});
      require_operands(5);
      const std::string& mode = words_.at(2);
      i.how = 1 | (mode == "up"     ? kShuffleUp
                   : mode == "down" ? kShuffleDown
                   : mode == "bfly" ? kButterfly
                                    : kIndex);
      add(i, exact(given()[0], 32));
      if (!given()[0].second.empty()) add(i, register_of(given()[0].second));
      for (size_t k = 1; k < 5; ++k) add(i, exact(given()[k], 32));
      i.run = &shuffle;
    } else if (name == "vote") {
      only({"sync", "all", "any", "uni", "ballot"});
      require_operands(3);
      const std::string& mode = words_.at(2);
      i.how = 1 | (mode == "ballot" ? kBallot : mode == "all" ? kAll : mode == "any" ? kAny : kUniform);
      add(i, exact(given()[0], mode == "ballot" ? 32 : 1));
      add(i, exact(given()[1], 1));
      add(i, exact(given()[2], 32));
      i.run = &vote;
    } else if (name == "match") {
      only({"any", "sync"});
      require_operands(3);
      i.how = 1;
      add(i, exact(given()[0], 32));
      add(i, exact(given()[1], type.bits));
      add(i, exact(given()[2], 32));
      i.run = BY_TYPE(match_any, kIntegers | kUnsignedOnly | kWords)(type);
    } else if (name == "redux") {
      only({"sync", "add", "min", "max", "and", "or", "xor"});
      require_operands(3);
      i.how = 1;
      for (const Text& text : given()) add(i, exact(text, 32));
      const std::string& mode = words_.at(2);
      const bool is_signed = type.kind == 's';
      i.run = mode == "add"   ? &reduce<Add, uint32_t>
              : mode == "and" ? &reduce<And, uint32_t>
              : mode == "or"  ? &reduce<Or, uint32_t>
              : mode == "xor" ? &reduce<Xor, uint32_t>
              : mode == "min" ? is_signed ? &reduce<Min, int32_t> : &reduce<Min, uint32_t>
              : is_signed     ? &reduce<Max, int32_t>
                              : &reduce<Max, uint32_t>;
    } else {
      only({"sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "shared::cta"});
      require_operands(2);
      const bool is_store = name == "stmatrix";
      if (!contains(words_, "m8n8") || type.bits != 16) unknown();
      i.space = Space::shared;
      i.item = 16;
      i.how = contains(words_, "trans") ? 2 : 0;
      i.vector = contains(words_, "x4") ? 4 : contains(words_, "x2") ? 2 : 1;
      const Text& values = given()[is_store ? 1 : 0];
      if (values.items.size() != i.vector) fail("the number of matrices does not fit");
      for (const Text& text : values.items) add(i, exact(text, 32));
      add_address(i, given()[is_store ? 0 : 1]);
      i.run = is_store ? &matrix<true> : &matrix<false>;
    }
  }

  const Module& module_;
  std::unique_ptr<Kernel> kernel_;
  std::vector<std::string> needed_;  // functions, in the order of their code
  std::map<std::string, uint32_t> begins_;
  std::vector<std::pair<size_t, std::string>> calls_;
  std::map<std::string, std::pair<Space, uint64_t>> symbols_;  // "function/name" or "/name"
  std::map<std::string, Operand> registers_;                   // "function/name"
  std::map<std::pair<uint64_t, int>, Operand> constants_;
  const Function* function_ = nullptr;
  const Statement* statement_ = nullptr;
  std::vector<std::string> words_;  // of the opcode
};

}  // namespace

std::unique_ptr<Kernel> assemble(const Module& module, const std::string& name) {
  return Assembler(module, name).take();
}

}  // namespace ptx
