// Scored candidates and the order in which they rank.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

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

// Ranks NaN first, then higher scores, then lower indices. There are no ties.
template <class T>
MDSSD_INLINE bool before(const Candidate<T>& a, const Candidate<T>& b) {
  if (a.score != b.score) {
    const bool a_nan = a.score != a.score, b_nan = b.score != b.score;
    if (!a_nan && !b_nan) return a.score > b.score;
    if (a_nan != b_nan) return a_nan;
  }
  return a.index < b.index;
}

// Keeps the best `count` items, those that come first, in no particular order.
template <class Item, class Before>
void keep_best(std::vector<Item>& items, int64_t count, const Before& comes_before) {
  if (int64_t(items.size()) <= count) return;
  std::nth_element(items.begin(), items.begin() + count, items.end(), comes_before);
  items.resize(count);
}
template <class T>
void keep_best(std::vector<Candidate<T>>& candidates, int64_t count) {
  keep_best(candidates, count, before<T>);
}

template <class T>
T lowest_score(const std::vector<Candidate<T>>& candidates) {
  return std::min_element(candidates.begin(), candidates.end(),
                          [](const auto& a, const auto& b) { return a.score < b.score; })
      ->score;
}

}  // namespace mdssd
