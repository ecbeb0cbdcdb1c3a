// Bilinear interpolation on the host and on the device. All arithmetic uses integers, so every
// backend returns the same bytes.
#pragma once

#include <cstdint>

#include "inline.h"

namespace mdssd {

constexpr int kFractionBits = 11;  // as in OpenCV

// A position between the pixels `index` and `index` + 1, whose weights are 2048 - fraction and
// fraction.
struct Tap {
  int64_t index;
  int fraction;
};

// Maps the centre of pixel i of a line of `to` pixels to a line of `from` pixels. Positions outside
// the outermost centres are clamped to them.
MDSSD_INLINE Tap tap(int64_t i, int64_t from, int64_t to) {
  // The last term makes the division below round to nearest.
  const int64_t numerator = ((2 * i + 1) * from - to) * (1 << kFractionBits) + to;
  if (numerator < 0) return {0, 0};
  const int64_t position = numerator / (2 * to), index = position >> kFractionBits;
  if (index >= from - 1) return {from - 1, 0};
  return {index, int(position & ((1 << kFractionBits) - 1))};
}

MDSSD_INLINE int blend(int a, int b, int fraction) {
  return a * ((1 << kFractionBits) - fraction) + b * fraction;
}

// Blends the pixels at (y, x), (y, x + 1), (y + 1, x) and (y + 1, x + 1). Halves round up.
MDSSD_INLINE uint8_t blend_four(int a, int b, int c, int d, int fraction_x, int fraction_y) {
  const int sum = blend(blend(a, b, fraction_x), blend(c, d, fraction_x), fraction_y);
  return uint8_t((sum + (1 << (2 * kFractionBits - 1))) >> (2 * kFractionBits));
}

}  // namespace mdssd
