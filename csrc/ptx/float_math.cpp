// Floating-point arithmetic, with the rounding that the instruction names.
#include <cfenv>

#include "compute.h"
#include "settings.h"

namespace ptx {
namespace {

// Rounds as an instruction says while it exists.
class Rounding {
 public:
  explicit Rounding(int mode) : old_(mode ? std::fegetround() : 0) {
    if (mode) std::fesetround(mode);
    changed_ = mode != 0;
  }
  ~Rounding() {
    if (changed_) std::fesetround(old_);
  }

 private:
  int old_;
  bool changed_;
};

// Moves the result of an approximate instruction by up to settings().ulps, by its bits alone.
float approximated(float x) {
  const int noise = settings().noise, ulps = settings().ulps;
  if (!noise || !std::isfinite(x) || x == 0) return x;
  const u32 bits = u32(to_bits(x)), hash = (bits * 2654435761u ^ u32(noise) * 40503u) >> 13;
  return from_bits<float>(u32(s32(bits) + s32(hash % u32(2 * ulps + 1)) - ulps));
}
double approximated(double x) { return x; }

template <class T>
T smaller(T a, T b) {
  if (a != a || b != b) return a != a ? b : a;
  if (a == b) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}

template <class T>
T larger(T a, T b) {
  if (a != a || b != b) return a != a ? b : a;
  if (a == b) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}

// Functions of one operand. PTX gives those that are approximate an error, not a value; here the
// value is the nearest one. For a few operands it gives the value: 2 to the power of 0 is 1.
template <class T>
T of_one(const Instruction& i, T x) {
  switch (i.op) {
    case Op::kNeg: return -x;
    case Op::kAbs: return std::fabs(x);
    case Op::kRoot: return std::sqrt(x);
    case Op::kReciprocal:
      if (sizeof(T) == 8 && i.approximate)  // has the upper half of the bits
        return from_bits<T>(to_bits(1 / double(x)) & ~u64(0xffffffff));
      return i.approximate ? approximated(T(1) / x) : T(1) / x;
    case Op::kReciprocalRoot: return approximated(T(1 / std::sqrt((long double)(x))));
    case Op::kExp2: return x == 0 ? T(1) : approximated(T(std::exp2(double(x))));
    case Op::kLog2: return approximated(T(std::log2(double(x))));
    case Op::kSine: return approximated(T(std::sin(double(x))));
    case Op::kCosine: return approximated(T(std::cos(double(x))));
    default: fault(i.text);
  }
}

// volatile keeps the compiler from computing before the rounding is set.
template <class T>
T of_two(const Instruction& i, T x, T y) {
  volatile T result = 0;
  switch (i.op) {
    case Op::kAdd: return result = x + y;
    case Op::kSub: return result = x - y;
    case Op::kMul: return result = x * y;
    case Op::kDiv: result = x / y; return i.approximate ? approximated(T(result)) : T(result);
    case Op::kMin:
    case Op::kMax:
      if (i.keep_nan && (x != x || y != y)) return T(NAN);
      return i.op == Op::kMin ? smaller(x, y) : larger(x, y);
    case Op::kCopySign: return std::copysign(y, x);
    default: fault(i.text);
  }
}

}  // namespace

template <class T>
void compute_float(const Instruction& i, u64* to, const u64* a, const u64* b, const u64* c,
                   u32 mask) {
  const auto in = [&](T x) { return i.flush ? flushed(x) : x; };
  const auto out = [&](T x) {
    if (i.flush) x = flushed(x);
    if (i.saturate) x = x > T(0) ? (x < T(1) ? x : T(1)) : T(0);
    return canonical(x);
  };
  const Rounding rounding(i.rounding);
  if (!b) {
    map<T>(to, a, mask, [&](T x) { return out(of_one(i, in(x))); });
  } else if (i.op == Op::kFma || i.op == Op::kMad) {
    for_lanes(mask, [&](int l) {
      const T x = from_bits<T>(a[l]), y = from_bits<T>(b[l]), z = from_bits<T>(c[l]);
      volatile T result = std::fma(in(x), in(y), in(z));
      to[l] = to_bits(out(result));
    });
  } else {
    map<T>(to, a, b, mask, [&](T x, T y) { return out(of_two(i, in(x), in(y))); });
  }
}

template void compute_float<float>(const Instruction&, u64*, const u64*, const u64*, const u64*,
                                   u32);
template void compute_float<double>(const Instruction&, u64*, const u64*, const u64*, const u64*,
                                    u32);

}  // namespace ptx
