// A fixed number of boxes with one array per coordinate, so that a vector loop compares one box
// with all of them.
#pragma once

#include <cstdint>

#include "../box_math.h"
#include "types.h"

namespace mdssd {

// Unset lanes hold an empty box, whose IoU with any other box is 0.
template <class T, int kSize>
struct BoxBlock {
  T x1[kSize] = {}, y1[kSize] = {}, x2[kSize] = {}, y2[kSize] = {}, area[kSize] = {};

  void set(int lane, Box<T> b) {
    x1[lane] = b.x1;
    y1[lane] = b.y1;
    x2[lane] = b.x2;
    y2[lane] = b.y2;
    area[lane] = mdssd::area(b);
  }
  MDSSD_INLINE Box<T> box(int lane) const { return {x1[lane], y1[lane], x2[lane], y2[lane]}; }
};

// Sets bit i if flag(i). The table replaces a shift by a different amount per lane, for which SSE2
// has no instruction, so that the loop is vectorised everywhere.
template <class Flag>
MDSSD_INLINE uint32_t mask_of_32(Flag flag) {
  static constexpr uint32_t kBits[32] = {
      1u << 0,  1u << 1,  1u << 2,  1u << 3,  1u << 4,  1u << 5,  1u << 6,  1u << 7,
      1u << 8,  1u << 9,  1u << 10, 1u << 11, 1u << 12, 1u << 13, 1u << 14, 1u << 15,
      1u << 16, 1u << 17, 1u << 18, 1u << 19, 1u << 20, 1u << 21, 1u << 22, 1u << 23,
      1u << 24, 1u << 25, 1u << 26, 1u << 27, 1u << 28, 1u << 29, 1u << 30, 1u << 31};
  uint32_t mask = 0;
  for (int i = 0; i < 32; ++i) mask |= flag(i) ? kBits[i] : 0u;
  return mask;
}

// Returns a mask of the boxes in the block whose IoU with `box` is above the threshold.
template <class T, class Metric>
MDSSD_INLINE uint32_t overlapping(Box<T> box, T box_area, const BoxBlock<T, 32>& block, T threshold,
                                  Metric metric) {
  return mask_of_32(
      [&](int i) { return iou(box, box_area, block.box(i), block.area[i], metric) > threshold; });
}

// Returns whether any box of the block has an IoU with `box` above the threshold.
template <class T, int kSize, class Metric>
MDSSD_INLINE bool any_overlapping(Box<T> box, T box_area, const BoxBlock<T, kSize>& block,
                                  T threshold, Metric metric) {
  int any = 0;
  for (int i = 0; i < kSize; ++i)
    any |= iou(box, box_area, block.box(i), block.area[i], metric) > threshold;
  return any != 0;
}

}  // namespace mdssd
