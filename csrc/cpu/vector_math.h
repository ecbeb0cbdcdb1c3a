// exp, sums and maxima in a form that compilers turn into vector code without -ffast-math.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "types.h"

namespace mdssd {

// e^x for float: range reduction by ln 2 and a polynomial of degree 6 (coefficients of Cephes'
// expf). Within 2 units in the last place of the true value; below -87.33 it gives 0, without
// subnormals; NaN stays NaN.
MDSSD_INLINE float vector_exp(float x) {
  const float low = -87.33f, high = 88.7228f;
  const float clamped = x < low ? low : x > high ? high : x;
  const float shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23 rounds to an integer
  const float n = shifted - 12582912.0f;
  const float r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors, as n = 128 has no float of its own.
  const int32_t exponent = bit_cast<int32_t>(shifted) - bit_cast<int32_t>(12582912.0f);
  const int32_t half = exponent >> 1;
  const float scale_a = bit_cast<float>((half + 127) << 23);
  const float scale_b = bit_cast<float>((exponent - half + 127) << 23);
  const float y = p * scale_a * scale_b;
  const float bounded = x < low ? 0.0f : x > high ? std::numeric_limits<float>::infinity() : y;
  return x != x ? x : bounded;
}
MDSSD_INLINE double vector_exp(double x) { return std::exp(x); }

struct VectorExp {
  template <class T>
  MDSSD_INLINE T operator()(T x) const {
    return vector_exp(x);
  }
};

constexpr int kLanes = 16;

// Sum of term(i), i in [0, n), in a fixed order: sixteen running sums, then those from the left.
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

// Maximum of term(i), i in [0, n), and `start`; a NaN may or may not take part.
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
