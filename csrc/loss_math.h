// The terms of sigmoid_focal_loss and of box_loss and their slopes, shared by the native backends.
#pragma once

#include <cfloat>
#include <cmath>

#include "box_math.h"

namespace mdssd {

// --- sigmoid_focal_loss --------------------------------------------------------------------------

// What a focal loss needs of the logistic function. z is the logit of what is true: the logit where
// the class is the prior's, and minus the logit elsewhere.
template <class T>
struct Logistic {
  T right, wrong;  // the probability of what is true, and 1 minus it
  T minus_log_right, minus_log_wrong;
};

template <class T>
struct LogOfSum {
  T inverse, log;  // 1 / (1 + e), log(1 + e)
};

MDSSD_INLINE LogOfSum<double> log_of_one_plus(double e) { return {1 / (1 + e), std::log1p(e)}; }

// For e in [0, 1], within a few units in the last place, however small e is. With w = e / (2 + e),
// log(1 + e) is 2 atanh(w): a polynomial (fitted at Chebyshev's points) instead of a logarithm. One
// division serves both results.
MDSSD_INLINE LogOfSum<float> log_of_one_plus(float e) {
  const float one = 1.0f + e, two = 2.0f + e, inverse = 1.0f / (one * two);
  const float w = e * one * inverse, square = w * w;
  float p = 0.1408732831f;
  p = p * square + 0.1398070902f;
  p = p * square + 0.2001242638f;
  p = p * square + 0.3333315849f;
  return {two * inverse, 2.0f * (w + w * (p * square))};
}

// `exp` is only called with numbers of at most 0 and with NaN.
template <class T, class Exp>
MDSSD_INLINE Logistic<T> logistic(T z, Exp exp) {
  const bool negative = z < T(0);
  const T size = negative ? -z : z, e = exp(-size);
  const LogOfSum<T> of = log_of_one_plus(e);
  const T small = e * of.inverse;
  return {negative ? small : of.inverse, negative ? of.inverse : small,
          (negative ? size : T(0)) + of.log, (negative ? T(0) : size) + of.log};
}

// The exponent gamma of the focal loss, for which a power may be a product.
enum class Power : int { kZero, kOne, kTwo, kOther };

inline Power power_of(double gamma) {
  if (gamma == 0) return Power::kZero;
  if (gamma == 1) return Power::kOne;
  return gamma == 2 ? Power::kTwo : Power::kOther;
}

// Returns wrong^gamma.
template <class T, class Exp>
MDSSD_INLINE T modulation(Logistic<T> of, Power power, T gamma, Exp exp) {
  if (power == Power::kTwo) return of.wrong * of.wrong;
  if (power == Power::kOne) return of.wrong;
  if (power == Power::kZero) return T(1);
  return exp(-gamma * of.minus_log_wrong);
}

template <class T, class Exp>
MDSSD_INLINE T focal(T z, Power power, T gamma, Exp exp) {
  const Logistic<T> of = logistic(z, exp);
  return modulation(of, power, gamma, exp) * of.minus_log_right;
}

// Returns minus the derivative of focal by z. It is finite: where minus_log_right is infinite, its
// product with `right`, which is 0, counts as 0.
template <class T, class Exp>
MDSSD_INLINE T focal_slope(T z, Power power, T gamma, Exp exp) {
  constexpr T kMost = static_cast<T>(sizeof(T) == sizeof(float) ? double{FLT_MAX} : DBL_MAX);
  const Logistic<T> of = logistic(z, exp);
  const T bounded = of.minus_log_right > kMost ? kMost : of.minus_log_right;
  return modulation(of, power, gamma, exp) * (gamma * (of.right * bounded) + of.wrong);
}

// --- box_loss ------------------------------------------------------------------------------------

// The order is that of KINDS in mdssd/ops/_settings.py.
enum class BoxLossKind : int { kGiou, kDiou, kCiou, kNwd };

template <class T>
struct BoxLossNumbers {  // BoxLossSettings in the type of the computation
  BoxLossKind kind;
  T v0, v1, nwd_constant, eps;

  explicit BoxLossNumbers(const BoxLossSettings& settings)
      : kind(BoxLossKind(settings.kind)),
        v0(T(settings.v0)),
        v1(T(settings.v1)),
        nwd_constant(T(settings.nwd_constant)),
        eps(T(settings.eps)) {}
};

template <class T>
struct BoxLoss {
  T loss;
  Offsets<T> slope;  // by the offsets
};

// A length that depends on one side of the predicted box, and its derivatives by the centre of that
// side and by the logarithm of its size.
template <class T>
struct Length {
  T value, by_centre, by_log;
};

// 1 if a > b, 0 if a < b and 1/2 if they are equal: the derivative of max(a, b) by a. So the slope
// of a loss is 0 where the boxes are equal.
template <class T>
MDSSD_INLINE T share(T a, T b) {
  return a > b ? T(1) : a < b ? T(0) : T(0.5);
}

template <class T>
MDSSD_INLINE Length<T> common(T low, T high, T its_low, T its_high, T half) {
  const T by_low = -share(low, its_low), by_high = share(its_high, high);
  return {smaller(high, its_high) - larger(low, its_low), by_low + by_high,
          (by_high - by_low) * half};
}

template <class T>
MDSSD_INLINE Length<T> hull(T low, T high, T its_low, T its_high, T half) {
  const T by_low = -share(its_low, low), by_high = share(high, its_high);
  return {larger(high, its_high) - smaller(low, its_low), by_low + by_high,
          (by_high - by_low) * half};
}

// The box that offsets encode, relative to the prior's centre. A loss does not depend on where the
// prior is, and without its position small boxes keep more digits.
template <class T, class Exp>
MDSSD_INLINE CentreBox<T> decode_here(Offsets<T> o, T width, T height, T v0, T v1, Exp exp) {
  return {o.x * v0 * width, o.y * v0 * height, width * exp(o.w * v1), height * exp(o.h * v1)};
}

template <class T>
MDSSD_INLINE bool finite(CentreBox<T> b) {
  return (b.cx - b.cx == 0) & (b.cy - b.cy == 0) & (b.w - b.w == 0) & (b.h - b.h == 0);
}

// 1 - exp(-distance / constant), where the distance is Wasserstein's of two normal distributions.
template <class T, class Exp>
MDSSD_INLINE BoxLoss<T> nwd_loss(CentreBox<T> a, CentreBox<T> b, T constant, Exp exp) {
  const T dx = a.cx - b.cx, dy = a.cy - b.cy;
  const T dw = (a.w - b.w) * T(0.5), dh = (a.h - b.h) * T(0.5);
  const T distance = std::sqrt(dx * dx + dy * dy + dw * dw + dh * dh);
  const T similarity = exp(-distance / constant);
  const T scale = distance > 0 ? similarity / (constant * distance) : T(0);
  return {T(1) - similarity,
          {scale * dx, scale * dy, scale * dw * (a.w * T(0.5)), scale * dh * (a.h * T(0.5))}};
}

// GIoU, DIoU or CIoU. `slope` is by the centre and the logarithms of the sizes.
template <class T>
MDSSD_INLINE BoxLoss<T> iou_loss(CentreBox<T> a, CentreBox<T> b, BoxLossKind kind, T eps) {
  const T half_w = a.w * T(0.5), half_h = a.h * T(0.5);
  const T its_half_w = b.w * T(0.5), its_half_h = b.h * T(0.5);
  const T x1 = a.cx - half_w, x2 = a.cx + half_w, y1 = a.cy - half_h, y2 = a.cy + half_h;
  const T u1 = b.cx - its_half_w, u2 = b.cx + its_half_w;
  const T v1 = b.cy - its_half_h, v2 = b.cy + its_half_h;
  const Length<T> w = common(x1, x2, u1, u2, half_w), h = common(y1, y2, v1, v2, half_h);
  const Length<T> hull_w = hull(x1, x2, u1, u2, half_w), hull_h = hull(y1, y2, v1, v2, half_h);

  const bool overlap = (w.value > 0) & (h.value > 0);
  const T inside = overlap ? w.value * h.value : T(0);
  const T area = a.w * a.h, both = area + b.w * b.h - inside;
  const T iou = inside / (both + eps);
  // The derivatives of `inside`, `both` and the IoU, by the four numbers of the box.
  const T ix = overlap ? w.by_centre * h.value : T(0), iy = overlap ? h.by_centre * w.value : T(0);
  const T iw = overlap ? w.by_log * h.value : T(0), ih = overlap ? h.by_log * w.value : T(0);
  const auto by = [=](T d_inside, T d_both) { return (d_inside - iou * d_both) / (both + eps); };
  const Offsets<T> d_iou = {by(ix, -ix), by(iy, -iy), by(iw, area - iw), by(ih, area - ih)};

  if (kind == BoxLossKind::kGiou) {
    const T around = hull_w.value * hull_h.value, empty = (around - both) / (around + eps);
    const auto slope = [=](T d, T d_around, T d_both) {
      return (d_around - d_both - empty * d_around) / (around + eps) - d;
    };
    return {T(1) - iou + empty,
            {slope(d_iou.x, hull_w.by_centre * hull_h.value, -ix),
             slope(d_iou.y, hull_h.by_centre * hull_w.value, -iy),
             slope(d_iou.w, hull_w.by_log * hull_h.value, area - iw),
             slope(d_iou.h, hull_h.by_log * hull_w.value, area - ih)}};
  }
  const T dx = a.cx - b.cx, dy = a.cy - b.cy;
  const T diagonal = hull_w.value * hull_w.value + hull_h.value * hull_h.value + eps;
  const T apart = (dx * dx + dy * dy) / diagonal;
  const auto slope = [=](T d, T step, T size, T d_size) {
    return T(2) * (step - apart * (size * d_size)) / diagonal - d;
  };
  BoxLoss<T> result = {T(1) - iou + apart,
                       {slope(d_iou.x, dx, hull_w.value, hull_w.by_centre),
                        slope(d_iou.y, dy, hull_h.value, hull_h.by_centre),
                        slope(d_iou.w, T(0), hull_w.value, hull_w.by_log),
                        slope(d_iou.h, T(0), hull_h.value, hull_h.by_log)}};
  if (kind == BoxLossKind::kDiou) return result;
  // The difference of the two angles, atan(width / height), in one step.
  constexpr T kScale = T(0.40528473456935109);  // 4 / pi^2
  const T angle = std::atan2(b.w * a.h - a.w * b.h, b.h * a.h + b.w * a.w);
  const T v = kScale * angle * angle, alpha = v / (T(1) - iou + v + eps);
  const T least = smaller(a.w, a.h), most = larger(a.w, a.h);
  const T ratio = most > 0 ? least / most : T(0);  // no square of a small size, which may be 0
  const T turn = T(2) * kScale * alpha * angle * (ratio / (T(1) + ratio * ratio));
  result.loss += alpha * v;
  result.slope.w -= turn;
  result.slope.h += turn;
  return result;
}

// The loss of one positive prior, of this width and height, and its slope by the predicted offsets.
// Both are NaN if one of the boxes is not finite.
template <class T, class Exp>
MDSSD_INLINE BoxLoss<T> box_loss(Offsets<T> o, Offsets<T> target, T width, T height,
                                 const BoxLossNumbers<T>& s, Exp exp) {
  const CentreBox<T> a = decode_here(o, width, height, s.v0, s.v1, exp);
  const CentreBox<T> b = decode_here(target, width, height, s.v0, s.v1, exp);
  constexpr T kNan = NAN;
  if (!(finite(a) & finite(b))) return {kNan, {kNan, kNan, kNan, kNan}};
  const BoxLoss<T> of = s.kind == BoxLossKind::kNwd ? nwd_loss(a, b, s.nwd_constant, exp)
                                                    : iou_loss(a, b, s.kind, s.eps);
  return {of.loss,
          {of.slope.x * (s.v0 * width), of.slope.y * (s.v0 * height), of.slope.w * s.v1,
           of.slope.h * s.v1}};
}

}  // namespace mdssd
