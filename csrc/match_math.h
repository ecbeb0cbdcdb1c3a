// What the native backends of match_priors share: its metrics, and its thresholds in their terms.
#pragma once

#include <cmath>
#include <cstdint>

#include "box_math.h"
#include "storage.h"

namespace mdssd {

template <class T>
struct BitsOf {
  using type = int32_t;
  using Unsigned = uint32_t;
  static constexpr Unsigned kInf = 0x7f800000;
};
template <>
struct BitsOf<double> {
  using type = int64_t;
  using Unsigned = uint64_t;
  static constexpr Unsigned kInf = 0x7ff0000000000000;
};
template <class T>
using Bits = typename BitsOf<T>::type;

// The normalised Wasserstein distance, as the `metric` of the functions below. Its overlap is
// exp(-sqrt(sum / 2) / constant), where `sum` is that of the squared differences of the corners.
// Backends compare sums, which are alike to the last bit, unlike roots and exponentials.
template <class T>
struct Nwd {
  T constant;
};

template <class T>
MDSSD_INLINE T mirrored(T x) {
  using U = typename BitsOf<T>::Unsigned;
  return bit_cast<T>(U(BitsOf<T>::kInf - bit_cast<U>(x)));
}

// Maps a sum from 0 to infinity to a number that orders the other way round: it has the bits of
// infinity minus the bits of the sum. So, like an IoU, it is not negative, is higher for a larger
// overlap, and is 0 for none. A NaN becomes 0, too.
template <class T>
MDSSD_INLINE T closeness(T sum) {
  return sum == sum ? mirrored(sum) : T(0);
}
template <class T>
MDSSD_INLINE T sum_of_squares(T x1, T y1, T x2, T y2) {
  return (x1 * x1 + y1 * y1) + (x2 * x2 + y2 * y2);
}

// Returns the number by which pairs are ranked and compared with the thresholds: the IoU, or the
// closeness of the corners.
template <class T, class Eps>
MDSSD_INLINE T match_rank(Box<T> a, T area_a, Box<T> b, T area_b, Eps eps) {
  return iou(a, area_a, b, area_b, eps);
}
template <class T>
MDSSD_INLINE T match_rank(Box<T> a, T, Box<T> b, T, Nwd<T>) {
  return closeness(sum_of_squares(a.x1 - b.x1, a.y1 - b.y1, a.x2 - b.x2, a.y2 - b.y2));
}

// Returns the overlap that a rank stands for.
template <class T, class Eps, class Exp>
MDSSD_INLINE T overlap_of(T rank, Eps, Exp) {
  return rank;
}
template <class T, class Exp>
MDSSD_INLINE T overlap_of(T rank, Nwd<T> metric, Exp exp) {
  using std::sqrt;
  return exp(-sqrt(mirrored(rank) * T(0.5)) / metric.constant);
}

// The thresholds as ranks. A prior is ignored if its best rank is at least `low` but below `high`.
template <class T>
struct MatchLimits {
  T high, low;
};

// mdssd/ops/reference/matching.py (nwd_limit) does the same.
template <class T>
T threshold_rank(double overlap, const std::optional<double>& constant) {
  if (!constant) return T(overlap);
  if (overlap == 0) return T(0);
  const double distance = *constant * std::log(overlap);
  return closeness(T(2 * distance * distance));
}

template <class T>
MatchLimits<T> match_limits(const MatchPriorsSettings& by) {
  return {threshold_rank<T>(by.iou_threshold, by.nwd_constant),
          threshold_rank<T>(by.low_threshold.value_or(by.iou_threshold), by.nwd_constant)};
}

inline MatchPriorsSettings match_settings(const EncodeTargetsSettings& by) {
  return {by.iou_threshold, by.iou_eps, false, by.low_threshold, by.force, by.top_k, by.nwd_constant};
}

template <class T, class Body>
void with_match_metric(const MatchPriorsSettings& by, Body body) {
  if (by.nwd_constant)
    body(Nwd<T>{T(*by.nwd_constant)});
  else
    with_eps<T>(by.iou_eps, body);
}

}  // namespace mdssd
