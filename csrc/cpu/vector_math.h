// exp, log, sums and maxima in a form that compilers vectorise without -ffast-math.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "types.h"

namespace mdssd {

// e^x for float, by range reduction with ln 2 and a polynomial of degree 6 (coefficients of Cephes'
// expf). e^x is `mantissa` times 2^n, where n is the integer in the low bits of `shifted`.
struct Exponential {
  float shifted, mantissa;
};
MDSSD_INLINE Exponential split_exp(float x) {
  const float shifted = x * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return {shifted, p * (r * r) + r + 1.0f};
}

constexpr float kLowestExponent = -87.33f;

// Returns e^x within 2 units in the last place. Results for x < -87.33, which would be subnormal,
// are 0. NaN stays NaN.
MDSSD_INLINE float vector_exp(float x) {
  const float low = kLowestExponent, high = 89.0f;  // the product below overflows for e^89
  const float above = low > x ? low : x;
  const Exponential e = split_exp(high < above ? high : above);
  // 2^n is split into two factors because 2^128 is not a float.
  const int32_t exponent = bit_cast<int32_t>(e.shifted) - bit_cast<int32_t>(12582912.0f);
  const int32_t half = exponent >> 1;
  const float scale_a = bit_cast<float>(uint32_t(half + 127) << 23);
  const float scale_b = bit_cast<float>(uint32_t(exponent - half + 127) << 23);
  const float y = e.mantissa * scale_a * scale_b;
  return bit_cast<float>(bit_cast<int32_t>(y) & -int32_t(!(x < low)));
}
MDSSD_INLINE double vector_exp(double x) { return std::exp(x); }

// Same, but x must be in [-87.33, 87] or NaN.
MDSSD_INLINE float vector_exp_within(float x) {
  const Exponential e = split_exp(x);
  // The shift drops all bits but n and moves it to the exponent's place.
  return e.mantissa * bit_cast<float>((bit_cast<uint32_t>(e.shifted) << 23) + 0x3f800000u);
}
MDSSD_INLINE double vector_exp_within(double x) { return std::exp(x); }

// Same, but x must be at most 0 or NaN, as in a softmax. Takes a third fewer instructions.
MDSSD_INLINE float vector_exp_negative(float x) {
  const float y = vector_exp_within(x < kLowestExponent ? kLowestExponent : x);
  return x < kLowestExponent ? 0.0f : y;
}
MDSSD_INLINE double vector_exp_negative(double x) { return std::exp(x); }

// Returns ln x within 2 units in the last place, from the exponent and a polynomial of degree 9 on
// [sqrt(1/2), sqrt(2)) (coefficients of Cephes' logf). Returns -inf at 0 and NaN below.
MDSSD_INLINE float vector_log(float x) {
  const bool tiny = x < 1.17549435e-38f;  // subnormals are scaled to get an exponent
  const float scaled = tiny ? x * 8388608.0f : x;
  const uint32_t bits = bit_cast<uint32_t>(scaled);
  const int32_t exponent = int32_t(bits - bit_cast<uint32_t>(0.707106781f)) >> 23;
  const float n = float(exponent - (tiny ? 23 : 0));
  const float r = bit_cast<float>(bits - (uint32_t(exponent) << 23)) - 1.0f;
  const float square = r * r;
  float p = 7.0376836292e-2f;
  p = p * r - 1.1514610310e-1f;
  p = p * r + 1.1676998740e-1f;
  p = p * r - 1.2420140846e-1f;
  p = p * r + 1.4249322787e-1f;
  p = p * r - 1.6668057665e-1f;
  p = p * r + 2.0000714765e-1f;
  p = p * r - 2.4999993993e-1f;
  p = p * r + 3.3333331174e-1f;
  const float y = (r + (p * r * square + n * -2.12194440e-4f - 0.5f * square)) + n * 0.693359375f;
  const float inf = std::numeric_limits<float>::infinity();
  const float bounded = x == inf ? inf : y;
  const float positive = x > 0.0f ? bounded : std::numeric_limits<float>::quiet_NaN();
  return x == 0.0f ? -inf : positive;
}
MDSSD_INLINE double vector_log(double x) { return std::log(x); }

struct VectorExp {
  template <class T>
  MDSSD_INLINE T operator()(T x) const {
    return vector_exp(x);
  }
};

struct VectorLog {
  template <class T>
  MDSSD_INLINE T operator()(T x) const {
    return vector_log(x);
  }
};

// A vector of eight values, by an extension of GCC and Clang. It is used for loops that they do not
// vectorise themselves. Comparisons and ?: work lane by lane.
constexpr int kEight = 8;
template <class T>
struct EightOf {
  typedef T type __attribute__((vector_size(kEight * sizeof(T))));
};
template <class T>
using Eight = typename EightOf<T>::type;

template <class T>
MDSSD_INLINE void load(Eight<T>& v, const T* from) {
  std::memcpy(&v, from, sizeof(v));
}

template <class T>
MDSSD_INLINE T largest(const Eight<T>& v) {
  T lanes[kEight];
  std::memcpy(lanes, &v, sizeof(v));
  for (int half = kEight / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i)
      lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  return lanes[0];
}

// Computes eight running maxima of n >= 8 values. Some of the last values may be read twice. It is
// unspecified whether a NaN becomes a maximum.
template <class T>
MDSSD_INLINE void running_max(const T* x, int64_t n, Eight<T>& best) {
  load(best, x);
  for (int64_t i = kEight; i < n; i += kEight) {
    Eight<T> next;
    load(next, x + (i + kEight < n ? i : n - kEight));
    best = next > best ? next : best;
  }
}

constexpr int kLanes = 16;

// Returns the sum of term(i) for i in [0, n) in a fixed order: it keeps sixteen running sums and
// then adds those from left to right.
template <class T, class Term>
MDSSD_INLINE T lane_sum(int64_t n, Term term) {
  T lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  for (int lane = 0; i < n; ++i, ++lane) lanes[lane] += term(i);
  T sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
  return sum;
}

// Returns the maximum of `start` and term(i) for i in [0, n). It is unspecified whether a NaN
// becomes the maximum.
template <class T, class Term>
MDSSD_INLINE T lane_max(int64_t n, T start, Term term) {
  constexpr int kWidth = 8;
  T lanes[kWidth];
  for (int lane = 0; lane < kWidth; ++lane) lanes[lane] = start;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth)
    for (int lane = 0; lane < kWidth; ++lane) {
      const T value = term(i + lane);
      lanes[lane] = value > lanes[lane] ? value : lanes[lane];
    }
  for (int lane = 0; i < n; ++i, ++lane) {
    const T value = term(i);
    lanes[lane] = value > lanes[lane] ? value : lanes[lane];
  }
  T best = lanes[0];
  for (int lane = 1; lane < kWidth; ++lane) best = lanes[lane] > best ? lanes[lane] : best;
  return best;
}

}  // namespace mdssd
