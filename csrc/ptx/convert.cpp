// Conversions between types, and comparisons.
#include <algorithm>
#include <cfenv>

#include "compute.h"

namespace ptx {
namespace {

// Rounds by a mode, 0 being to nearest.
template <class T, class Function>
T rounded(int mode, const Function& function) {
  const int old = std::fegetround();
  std::fesetround(mode);
  volatile T result = function();
  std::fesetround(old);
  return result;
}

u64 narrowed(Type to, float x) {
  if (to == Type::kF16) return float_to_half(x);
  return to == Type::kBF16 ? u64(float_to_bfloat(x)) : to_bits(canonical(x));
}

// The largest and smallest integers of a type, as those of 64 bits.
u64 most(Type type) { return ~u64(0) >> (64 - 8 * size_of(type) + is_signed(type)); }
s64 least(Type type) { return is_signed(type) ? -s64(most(type)) - 1 : 0; }

u64 from_integer(const Instruction& i, u64 bits) {
  const int unused = 64 - 8 * size_of(i.from);
  const bool negative = is_signed(i.from) && s64(bits << unused) < 0;
  const u64 value = negative ? u64(s64(bits << unused) >> unused) : bits << unused >> unused;
  if (is_float(i.type)) {
    volatile u64 input = value;
    if (i.type == Type::kF64)
      return to_bits(rounded<double>(
          i.rounding, [&] { return negative ? double(s64(input)) : double(u64(input)); }));
    return narrowed(i.type, rounded<float>(i.rounding, [&] {
                      return negative ? float(s64(input)) : float(u64(input));
                    }));
  }
  if (!i.saturate) return value;
  if (negative) return u64(std::max(s64(value), least(i.type)));
  return std::min(value, most(i.type));
}

u64 to_integer(Type type, double x) {
  if (x != x) return size_of(type) == 8 ? u64(1) << 63 : 0;
  const double end = std::ldexp(1.0, 8 * size_of(type) - is_signed(type));
  if (x >= end) return most(type);
  if (is_signed(type)) return u64(x < -end ? least(type) : s64(x));
  return x <= 0 ? 0 : u64(x);
}

template <class T>
bool holds(Comparison comparison, T x, T y) {
  const bool nan = x != x || y != y;
  switch (comparison) {
    case Comparison::kEqual: return x == y;
    case Comparison::kNotEqual: return !nan && x != y;
    case Comparison::kLess: return x < y;
    case Comparison::kLessEqual: return x <= y;
    case Comparison::kGreater: return x > y;
    case Comparison::kGreaterEqual: return x >= y;
    case Comparison::kEqualOrNan: return nan || x == y;
    case Comparison::kNotEqualOrNan: return nan || x != y;
    case Comparison::kLessOrNan: return nan || x < y;
    case Comparison::kLessEqualOrNan: return nan || x <= y;
    case Comparison::kGreaterOrNan: return nan || x > y;
    case Comparison::kGreaterEqualOrNan: return nan || x >= y;
    case Comparison::kNumbers: return !nan;
    case Comparison::kNan: return nan;
  }
  return false;
}

}  // namespace

u64 convert(const Instruction& i, u64 bits) {
  if (!is_float(i.from)) return from_integer(i, bits);
  double value = i.from == Type::kF64 ? from_bits<double>(bits)
                 : i.from != Type::kF32
                     ? double(widen(i.from, bits))
                     : double(i.flush ? flushed(from_bits<float>(bits)) : from_bits<float>(bits));
  if (!is_float(i.type))
    return to_integer(i.type, rounded<double>(i.rounding, [&] { return std::nearbyint(value); }));
  if (i.to_integer) value = rounded<double>(i.rounding, [&] { return std::nearbyint(value); });
  if (i.saturate) value = value > 0 ? std::min(value, 1.0) : 0;
  if (i.type == Type::kF64) return to_bits(value);
  volatile double input = value;
  const float narrow =
      rounded<float>(i.to_integer ? FE_TONEAREST : i.rounding, [&] { return float(input); });
  return narrowed(i.type, i.flush ? flushed(narrow) : narrow);
}

bool compare(const Instruction& i, u64 a, u64 b) {
  if (i.type == Type::kF64) return holds(i.comparison, from_bits<double>(a), from_bits<double>(b));
  if (i.type == Type::kF32) {
    const float x = from_bits<float>(a), y = from_bits<float>(b);
    return holds(i.comparison, i.flush ? flushed(x) : x, i.flush ? flushed(y) : y);
  }
  if (size_of(i.type) <= 4 &&
      (is_float(i.type) || i.type == Type::kF16x2 || i.type == Type::kBF16x2))
    return holds(i.comparison, widen(i.type, a), widen(i.type, b));
  bool result = false;
  const bool known = with_integer(i.type, [&](auto zero) {
    using T = decltype(zero);
    result = holds(i.comparison, from_bits<T>(a), from_bits<T>(b));
  });
  if (!known) fault("the type of " + i.text);
  return result;
}

}  // namespace ptx
