// Box arithmetic shared by all native backends, on the host and on the device.
//
// Each operation is written in the order in which the PyTorch reference does it, and the backends
// are compiled without fused multiply-add, so IoUs agree with the reference to the last bit. The
// comments say which side of a comparison a NaN falls on.
#pragma once

#include <limits>

#include "inline.h"
#include "ops.h"

namespace mdssd {

template <class T>
struct Box {  // two corners
  T x1, y1, x2, y2;
};

template <class T>
struct CentreBox {  // a prior: centre and size
  T cx, cy, w, h;
};

template <class T>
struct Offsets {  // a box encoded relative to a prior
  T x, y, w, h;
};

// Both return b if a is NaN. If b is NaN, the host returns b and the device, which has a single
// instruction for this, returns a. The IoU does not depend on it: a box with a NaN has a NaN area.
template <class T>
MDSSD_INLINE T larger(T a, T b) {
#ifdef __CUDA_ARCH__
  return max(a, b);
#else
  return a > b ? a : b;
#endif
}

template <class T>
MDSSD_INLINE T smaller(T a, T b) {
#ifdef __CUDA_ARCH__
  return min(a, b);
#else
  return a < b ? a : b;
#endif
}

template <class T>
MDSSD_INLINE T area(Box<T> b) {
  return (b.x2 - b.x1) * (b.y2 - b.y1);
}

template <class T>
MDSSD_INLINE bool has_nan(Box<T> b) {
  return (b.x1 != b.x1) | (b.y1 != b.y1) | (b.x2 != b.x2) | (b.y2 != b.y2);
}

template <class T>
MDSSD_INLINE Box<T> to_corners(CentreBox<T> p) {
  const T half_w = p.w * T(0.5), half_h = p.h * T(0.5);
  return {p.cx - half_w, p.cy - half_h, p.cx + half_w, p.cy + half_h};
}

template <class T>
struct Areas {  // of the intersection of two boxes and of what it is divided by
  T intersection, whole;
};

// How the overlap of two boxes is measured. The functions below take one of these as `metric`:
//   a number    the IoU; the number (an epsilon) is added to the area of the union before dividing
//   NoEps       the IoU without an epsilon; the addition compiles to nothing
//   Smaller     the IoS: the intersection divided by the area of the smaller box plus an epsilon
//   Distance    the DIoU: the IoU, with an epsilon, minus the squared distance of the centres
//               divided by the squared diagonal of the smallest box around both
//   UnionEps    the IoU with an epsilon or, if `distance` is set, the DIoU
struct NoEps {};
template <class T>
MDSSD_INLINE T operator+(T both, NoEps) {
  return both;
}

template <class T>
struct Smaller {
  T eps;
};

template <class T>
struct Distance {
  T eps;
};

template <class T>
struct UnionEps {
  T eps;
  bool distance;
};

template <class T, class Body>
void with_eps(double eps, Body body) {
  if (eps == 0)
    body(NoEps{});
  else
    body(T(eps));
}

// Calls `body` with the metric of NmsSettings or DetectionOutputSettings.
template <class T, class Settings, class Body>
void with_metric(const Settings& settings, Body body) {
  if (settings.ios)
    body(Smaller<T>{T(settings.iou_eps)});
  else if (settings.diou)
    body(Distance<T>{T(settings.iou_eps)});
  else
    with_eps<T>(settings.iou_eps, body);
}
// The same for kernels of a GPU, which take long to compile. Two metrics share one; the kernels of
// the IoU without an epsilon are those that have to be fast.
template <class T, class Settings, class Body>
void with_metric_of_kernel(const Settings& settings, Body body) {
  if (settings.ios)
    body(Smaller<T>{T(settings.iou_eps)});
  else if (settings.diou || settings.iou_eps != 0)
    body(UnionEps<T>{T(settings.iou_eps), settings.diou});
  else
    body(NoEps{});
}
template <class T, class Body>
void with_iou_or_ios(bool ios, Body body) {
  if (ios)
    body(Smaller<T>{T(0)});
  else
    body(NoEps{});
}

template <class T, class Eps>
MDSSD_INLINE T divisor(T area_a, T area_b, T intersection, Eps eps) {
  return area_a + area_b - intersection + eps;
}

// The smaller area. But if the sum of the areas is infinite or NaN, that sum is returned, so that the
// IoS of such boxes is 0 like their IoU, even if the smaller of them has a finite area.
template <class T>
MDSSD_INLINE T divisor(T area_a, T area_b, T, Smaller<T> by) {
  const T least = (area_a < area_b ? area_a : area_b) + by.eps, sum = area_a + area_b;
  return sum - sum == T(0) ? least : sum;
}

template <class T>
MDSSD_INLINE T divisor(T area_a, T area_b, T intersection, Distance<T> by) {
  return divisor(area_a, area_b, intersection, by.eps);
}
template <class T>
MDSSD_INLINE T divisor(T area_a, T area_b, T intersection, UnionEps<T> by) {
  return divisor(area_a, area_b, intersection, by.eps);
}

template <class T, class Metric>
MDSSD_INLINE Areas<T> areas(Box<T> a, T area_a, Box<T> b, T area_b, Metric metric) {
  const T width = larger(smaller(a.x2, b.x2) - larger(a.x1, b.x1), T(0));
  const T height = larger(smaller(a.y2, b.y2) - larger(a.y1, b.y1), T(0));
  const T intersection = width * height;
  return {intersection, divisor(area_a, area_b, intersection, metric)};
}

// Returns the squared distance of the centres, divided by the squared diagonal of the smallest box
// around both. The differences of the corners are added, rather than the centres subtracted, so that
// a shift of both boxes changes little. It is not negative. It is NaN for two equal points, of which
// no other has an IoU above 0, and if both squares overflow.
template <class T>
MDSSD_INLINE T squared_distance(Box<T> a, Box<T> b) {
  const T dx = ((a.x1 - b.x1) + (a.x2 - b.x2)) * T(0.5);
  const T dy = ((a.y1 - b.y1) + (a.y2 - b.y2)) * T(0.5);
  const T width = larger(a.x2, b.x2) - smaller(a.x1, b.x1);
  const T height = larger(a.y2, b.y2) - smaller(a.y1, b.y1);
  return (dx * dx + dy * dy) / (width * width + height * height);
}

// Returns the overlap of two boxes, given the quotient of their areas.
template <class T, class Metric>
MDSSD_INLINE T finished(T quotient, Box<T>, Box<T>, Metric) {
  return quotient;
}
template <class T>
MDSSD_INLINE T finished(T quotient, Box<T> a, Box<T> b, Distance<T>) {
  return quotient - squared_distance(a, b);
}
template <class T>
MDSSD_INLINE T finished(T quotient, Box<T> a, Box<T> b, UnionEps<T> by) {
  return by.distance ? quotient - squared_distance(a, b) : quotient;
}

// Returns the IoU, or the overlap that the metric names. It is 0 if the boxes do not overlap, if one
// is degenerate, and if one contains a NaN. In that last case its area is NaN, hence the quotient
// too, and larger(NaN, 0) is 0. In these cases the DIoU is NaN or not above 0.
template <class T, class Metric = NoEps>
MDSSD_INLINE T iou(Box<T> a, T area_a, Box<T> b, T area_b, Metric metric = {}) {
  const Areas<T> of = areas(a, area_a, b, area_b, metric);
  return finished(larger(of.intersection / of.whole, T(0)), a, b, metric);
}

// Returns exactly iou(a, b) > threshold, but divides only if the IoU is not clearly below it. The
// DIoU is at most the IoU.
template <class T, class Metric>
MDSSD_INLINE bool overlap(Box<T> a, T area_a, Box<T> b, T area_b, T threshold, Metric metric) {
  const Areas<T> of = areas(a, area_a, b, area_b, metric);
  if (of.intersection < threshold * of.whole * T(0.999)) return false;
  return finished(larger(of.intersection / of.whole, T(0)), a, b, metric) > threshold;
}

// The smallest box around two that have no NaN.
template <class T>
MDSSD_INLINE Box<T> around(Box<T> a, Box<T> b) {
  return {smaller(a.x1, b.x1), smaller(a.y1, b.y1), larger(a.x2, b.x2), larger(a.y2, b.y2)};
}

// A sum of boxes, weighted by their scores, of which merge_boxes makes a fused box.
template <class T>
struct WeightedSum {
  T x1 = 0, y1 = 0, x2 = 0, y2 = 0, score = 0;
  int64_t count = 0;

  MDSSD_INLINE void add(Box<T> b, T s) {
    x1 += s * b.x1;
    y1 += s * b.y1;
    x2 += s * b.x2;
    y2 += s * b.y2;
    score += s;
    ++count;
  }
  // Returns the mean, or `otherwise` if it is that of a single box or if there is none.
  MDSSD_INLINE Box<T> mean(Box<T> otherwise) const {
    if (count < 2 || !(score > 0)) return otherwise;
    return {x1 / score, y1 / score, x2 / score, y2 / score};
  }
  MDSSD_INLINE T mean_score(int64_t models) const {
    return score / T(count) * T(count < models ? count : models) / T(models);
  }
};

// `log` and `exp` are arguments because each backend has its own.
template <class T, class Log>
MDSSD_INLINE Offsets<T> encode(Box<T> b, CentreBox<T> p, T v0, T v1, Log log) {
  return {((b.x1 + b.x2) * T(0.5) - p.cx) / (p.w * v0), ((b.y1 + b.y2) * T(0.5) - p.cy) / (p.h * v0),
          log((b.x2 - b.x1) / p.w) / v1, log((b.y2 - b.y1) / p.h) / v1};
}

template <class T, class Exp>
MDSSD_INLINE Box<T> decode(Offsets<T> o, CentreBox<T> p, T v0, T v1, Exp exp) {
  const T half_w = p.w * exp(o.w * v1) * T(0.5), half_h = p.h * exp(o.h * v1) * T(0.5);
  const T cx = p.cx + o.x * v0 * p.w, cy = p.cy + o.y * v0 * p.h;
  return {cx - half_w, cy - half_h, cx + half_w, cy + half_h};
}

// The settings with which detection_output decodes: the variances, the limit of
// log(size / prior's size) and the limits of the corners. A limit that is not set is infinite and
// changes nothing. A NaN stays a NaN.
template <class T>
struct Decoding {
  T v0, v1, max_log_scale, low, width, height;
};

template <class T>
Decoding<T> make_decoding(const DetectionOutputSettings& settings) {
  constexpr double infinity = std::numeric_limits<double>::infinity();
  return {T(settings.v0),
          T(settings.v1),
          T(settings.max_log_scale.value_or(infinity)),
          T(settings.clip_width ? 0 : -infinity),
          T(settings.clip_width.value_or(infinity)),
          T(settings.clip_height.value_or(infinity))};
}

template <class T>
MDSSD_INLINE T clamp(T x, T low, T high) {
  return x < low ? low : x > high ? high : x;
}

template <class T, class Exp>
MDSSD_INLINE Box<T> decode(Offsets<T> o, CentreBox<T> p, Exp exp, Decoding<T> to) {
  const auto limited_exp = [=](T x) { return exp(x > to.max_log_scale ? to.max_log_scale : x); };
  const Box<T> b = decode(o, p, to.v0, to.v1, limited_exp);
  return {clamp(b.x1, to.low, to.width), clamp(b.y1, to.low, to.height),
          clamp(b.x2, to.low, to.width), clamp(b.y2, to.low, to.height)};
}

}  // namespace mdssd
