// The box maths of every native backend, on host and device.
//
// Each operation rounds as PyTorch's does: compiled without fused multiply-add, IoUs agree with the
// reference to the last bit. Comparisons are written so that a NaN lands on the stated side.
#pragma once

#include "inline.h"

namespace mdssd {

template <class T>
struct Box {  // corners
  T x1, y1, x2, y2;
};

template <class T>
struct CentreBox {  // a prior: centre and size
  T cx, cy, w, h;
};

template <class T>
struct Offsets {  // a box coded against a prior
  T x, y, w, h;
};

// The larger and the smaller of two; b where a is a NaN. On the device that is one instruction. It
// takes a where b is a NaN, as the host does not; for an IoU either will do: its area is NaN too.
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
MDSSD_INLINE Box<T> to_corners(CentreBox<T> p) {
  const T half_w = p.w * T(0.5), half_h = p.h * T(0.5);
  return {p.cx - half_w, p.cy - half_h, p.cx + half_w, p.cy + half_h};
}

template <class T>
struct Areas {  // of two boxes
  T intersection, both;
};

template <class T>
MDSSD_INLINE Areas<T> areas(Box<T> a, T area_a, Box<T> b, T area_b) {
  const T width = larger(smaller(a.x2, b.x2) - larger(a.x1, b.x1), T(0));
  const T height = larger(smaller(a.y2, b.y2) - larger(a.y1, b.y1), T(0));
  const T intersection = width * height;
  return {intersection, area_a + area_b - intersection};
}

// 0 where the boxes do not overlap, where one is degenerate, and where one holds a NaN: its area is
// then NaN, so the quotient is, and compares false.
template <class T>
MDSSD_INLINE T iou(Box<T> a, T area_a, Box<T> b, T area_b) {
  const Areas<T> of = areas(a, area_a, b, area_b);
  return larger(of.intersection / of.both, T(0));
}

// iou(a, b) > threshold, to the bit, without a division where the IoU is clearly below.
template <class T>
MDSSD_INLINE bool overlap(Box<T> a, T area_a, Box<T> b, T area_b, T threshold) {
  const Areas<T> of = areas(a, area_a, b, area_b);
  if (of.intersection < threshold * of.both * T(0.999)) return false;
  return larger(of.intersection / of.both, T(0)) > threshold;
}

// `log` and `exp` are arguments, so that each backend brings its own.
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

}  // namespace mdssd
