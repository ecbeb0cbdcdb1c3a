// The decay of scores in soft-NMS, shared by all native backends.
//
// Like box_math.h, this is written in the order of operations of the PyTorch reference and compiled
// without fused multiply-add. The exponential is such a sequence too, and not that of a math
// library, so that decayed scores agree with the reference to the last bit.
#pragma once

#include <cstdint>

#include "inline.h"
#include "storage.h"

namespace mdssd {

// The constants of exp_of_minus. `kHigh` + `kLow` is ln 2; n * kHigh is exact.
template <class T>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  using Bits = int32_t;
  static constexpr float kLargest = 87.0f;  // e^-87 is above the smallest normal number
  static constexpr float kLog2e = 1.44269504f, kRound = 12582912.0f;  // 1.5 * 2^23
  static constexpr float kHigh = 0.693359375f, kLow = -2.12194440e-4f;
  static constexpr int kMantissaBits = 23, kBias = 127, kTerms = 7;
};
template <>
struct ExpConstants<double> {
  using Bits = int64_t;
  static constexpr double kLargest = 708.0;
  static constexpr double kLog2e = 1.4426950408889634, kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr double kHigh = 0.693145751953125, kLow = 1.42860682030941723212e-6;
  static constexpr int kMantissaBits = 52, kBias = 1023, kTerms = 13;
};

// Returns e^-x for x >= 0, within 2 units in the last place and at most 1. It is 0 for an x above
// kLargest. x is n ln 2 - r for an integer n, and e^r is a sum of Taylor's series.
template <class T>
MDSSD_INLINE T exp_of_minus(T x) {
  using C = ExpConstants<T>;
  using Bits = typename C::Bits;
  const T bounded = x < C::kLargest ? x : C::kLargest;
  const T shifted = bounded * C::kLog2e + C::kRound;  // adding kRound rounds to an integer
  const T n = shifted - C::kRound;
  const T r = (n * C::kHigh - bounded) + n * C::kLow;
  constexpr double kFactors[] = {1.0 / 6227020800.0, 1.0 / 479001600.0, 1.0 / 39916800.0,
                                 1.0 / 3628800.0,    1.0 / 362880.0,    1.0 / 40320.0,
                                 1.0 / 5040.0,       1.0 / 720.0,       1.0 / 120.0,
                                 1.0 / 24.0,         1.0 / 6.0,         0.5,
                                 1.0,                1.0};  // 1 / 13!, 1 / 12!, ..., 1 / 0!
  T sum = T(kFactors[13 - C::kTerms]);
#ifdef __CUDA_ARCH__
#pragma unroll
#endif
  for (int i = 14 - C::kTerms; i < 14; ++i) sum = sum * r + T(kFactors[i]);
  const Bits exponent = bit_cast<Bits>(shifted) - bit_cast<Bits>(C::kRound);
  const T scale = bit_cast<T>(Bits(C::kBias - exponent) << C::kMantissaBits);  // 2^-n
  return x <= C::kLargest ? sum * scale : T(0);
}

// What a score is multiplied by when a box of a higher score is chosen that it overlaps by `iou`.
template <class T>
struct Decay {
  T threshold;      // linear: no decay up to this IoU
  T inverse_sigma;  // gaussian: 1 / sigma

  // The IoU above which a score changes.
  MDSSD_INLINE T from(bool gaussian) const { return gaussian ? T(0) : threshold; }
  MDSSD_INLINE T factor(bool gaussian, T iou) const {
    if (gaussian) return exp_of_minus(iou * iou * inverse_sigma);
    return iou > threshold ? T(1) - iou : T(1);
  }
};

// A score as an integer that ranks as scores do: NaN above all, and none below 0. All NaNs have the
// same key, and 0 and -0 have.
template <class T>
using ScoreKey = typename ExpConstants<T>::Bits;

template <class T>
MDSSD_INLINE ScoreKey<T> score_key(T score) {
  using Key = ScoreKey<T>;
  constexpr Key kNaN = sizeof(T) == 4 ? Key(0x7fc00000) : Key(0x7ff8000000000000);
  return score != score ? kNaN : bit_cast<Key>(score + T(0));
}
template <class T>
MDSSD_INLINE T score_of(ScoreKey<T> key) {
  return bit_cast<T>(key);
}

constexpr int kNoKey = -1;  // of a box that has been chosen, or whose score is too low

// Returns the key of a score, or kNoKey if it is below the least score, which is not negative.
template <class T>
MDSSD_INLINE ScoreKey<T> live_key(T score, T least) {
  return score < least ? ScoreKey<T>(kNoKey) : score_key(score);
}

}  // namespace mdssd
