// Integer arithmetic.
#include <algorithm>

#include "compute.h"

namespace ptx {
namespace {

template <class T>
void multiply(const Instruction& i, u64* to, const u64* a, const u64* b, const u64* add, u32 mask) {
  using U = std::make_unsigned_t<T>;
  using Long = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  const auto product = [&](int l) { return Long(from_bits<T>(a[l])) * Long(from_bits<T>(b[l])); };
  if (i.wide)
    for_lanes(mask, [&](int l) {
      const u64 sum = u64(product(l)) + (add ? add[l] : 0);
      to[l] = sizeof(T) == 2 ? u32(sum) : sum;
    });
  else if (i.high)
    for_lanes(mask, [&](int l) {
      const U upper = U(product(l) >> (8 * sizeof(T)));
      to[l] = to_bits(U(upper + (add ? from_bits<U>(add[l]) : U(0))));
    });
  else
    for_lanes(mask, [&](int l) {
      to[l] = to_bits(U(u64(from_bits<U>(a[l])) * u64(from_bits<U>(b[l])) +
                        (add ? from_bits<U>(add[l]) : U(0))));
    });
}

template <class T>
T quotient(T x, T y) {
  using U = std::make_unsigned_t<T>;
  if (y == 0) return T(-1);
  return std::is_signed_v<T> && y == T(-1) ? T(U(0) - U(x)) : T(x / y);
}

template <class T>
T remainder(T x, T y) {
  if (y == 0) return x;
  return std::is_signed_v<T> && y == T(-1) ? T(0) : T(x % y);
}

template <class T>
T shifted_right(T x, u32 by) {
  const T rest = x < 0 ? T(-1) : T(0);
  return by >= 8 * sizeof(T) ? rest : T(x >> by);
}

template <class T>
void compute_as(const Instruction& i, u64* to, const u64* a, const u64* b, const u64* c, u32 mask) {
  using U = std::make_unsigned_t<T>;
  switch (i.op) {
    case Op::kAdd: return map<U>(to, a, b, mask, [](U x, U y) { return U(x + y); });
    case Op::kSub: return map<U>(to, a, b, mask, [](U x, U y) { return U(x - y); });
    case Op::kMul:
    case Op::kMad: return multiply<T>(i, to, a, b, i.op == Op::kMad ? c : nullptr, mask);
    case Op::kDiv: return map<T>(to, a, b, mask, quotient<T>);
    case Op::kRem: return map<T>(to, a, b, mask, remainder<T>);
    case Op::kMin: return map<T>(to, a, b, mask, [](T x, T y) { return std::min(x, y); });
    case Op::kMax: return map<T>(to, a, b, mask, [](T x, T y) { return std::max(x, y); });
    case Op::kNeg: return map<U>(to, a, mask, [](U x) { return U(0 - x); });
    case Op::kAbs: return map<T>(to, a, mask, [](T x) { return T(x < 0 ? U(0) - U(x) : U(x)); });
    case Op::kNot: return map<U>(to, a, mask, [](U x) { return U(~x); });
    case Op::kAnd: return map<U>(to, a, b, mask, [](U x, U y) { return U(x & y); });
    case Op::kOr: return map<U>(to, a, b, mask, [](U x, U y) { return U(x | y); });
    case Op::kXor: return map<U>(to, a, b, mask, [](U x, U y) { return U(x ^ y); });
    case Op::kShl:
      return for_lanes(mask, [&](int l) {
        const u32 by = u32(b[l]);
        to[l] = by >= 8 * sizeof(T) ? 0 : to_bits(U(u64(from_bits<U>(a[l])) << by));
      });
    case Op::kShr:
      return for_lanes(
          mask, [&](int l) { to[l] = to_bits(shifted_right(from_bits<T>(a[l]), u32(b[l]))); });
    default: fault(i.text);
  }
}

}  // namespace

void compute_integer(const Instruction& i, u64* to, const u64* a, const u64* b, const u64* c,
                     u32 mask) {
  const bool known =
      with_integer(i.type, [&](auto zero) { compute_as<decltype(zero)>(i, to, a, b, c, mask); });
  if (!known) fault("the type of " + i.text);
}

}  // namespace ptx
