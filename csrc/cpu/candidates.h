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

// Keeps the best `count` candidates, in no particular order.
template <class T>
void keep_best(std::vector<Candidate<T>>& candidates, int64_t count) {
  if (int64_t(candidates.size()) <= count) return;
  std::nth_element(candidates.begin(), candidates.begin() + count, candidates.end(), before<T>);
  candidates.resize(count);
}

template <class T>
T lowest_score(const std::vector<Candidate<T>>& candidates) {
  return std::min_element(candidates.begin(), candidates.end(),
                          [](const auto& a, const auto& b) { return a.score < b.score; })
      ->score;
}

}  // namespace mdssd
