// Scored candidates, their one order, and greedy suppression.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "box_columns.h"
#include "types.h"

namespace mdssd {

template <class T>
struct Candidate {
  T score;
  int32_t index;
};

inline void check_index(const char* op, int64_t count) {
  if (count > std::numeric_limits<int32_t>::max())
    throw std::length_error(std::string(op) + ": more than 2^31 - 1 boxes in one image");
}

// Higher score first, NaN before all, then the lower index: an order without ties.
template <class T>
MDSSD_INLINE bool before(const Candidate<T>& a, const Candidate<T>& b) {
  if (a.score != b.score) {
    const bool a_nan = a.score != a.score, b_nan = b.score != b.score;
    if (!a_nan && !b_nan) return a.score > b.score;
    if (a_nan != b_nan) return a_nan;
  }
  return a.index < b.index;
}

// Leaves the best `count` in front, in no order, and drops the rest.
template <class T>
void keep_best(std::vector<Candidate<T>>& candidates, int64_t count) {
  if (int64_t(candidates.size()) <= count) return;
  std::nth_element(candidates.begin(), candidates.begin() + count, candidates.end(), before<T>);
  candidates.resize(count);
}

// Marks the boxes in [begin, n) whose IoU with `kept` is above the threshold.
template <class T, class Flag>
MDSSD_SIMD void suppress(Box<T> kept, const T* x1, const T* y1, const T* x2, const T* y2,
                         const T* areas, int64_t begin, int64_t n, T threshold, Flag* suppressed) {
  const T kept_area = area(kept);
  for (int64_t j = begin; j < n; ++j)
    suppressed[j] |=
        Flag(iou(kept, kept_area, Box<T>{x1[j], y1[j], x2[j], y2[j]}, areas[j]) > threshold);
}

// Greedy suppression of n boxes in order of falling score: positions kept, at most `limit`.
template <class T>
std::vector<int32_t> greedy(const BoxColumns<T>& boxes, int64_t n, T threshold, int64_t limit) {
  // As wide as T, so that one vector register holds as many flags as boxes.
  using Flag = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  std::vector<Flag> suppressed(n);
  std::vector<int32_t> kept;
  for (int64_t i = 0; i < n && int64_t(kept.size()) < limit; ++i) {
    if (suppressed[i]) continue;
    kept.push_back(int32_t(i));
    suppress<T, Flag>(boxes.box(i), boxes.x1(), boxes.y1(), boxes.x2(), boxes.y2(), boxes.area(),
                      i + 1, n, threshold, suppressed.data());
  }
  return kept;
}

}  // namespace mdssd
