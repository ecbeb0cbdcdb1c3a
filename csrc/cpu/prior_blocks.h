// Priors in blocks of 256, for the operators that compare them with boxes: match_priors,
// encode_targets and the marking of priors to be ignored.
//
// A block has 8 groups of 32 priors and the bounds of each. Priors are sorted by rows and columns of
// their feature map, so most boxes miss most groups.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>

#include "../box_math.h"
#include "box_columns.h"
#include "parallel.h"
#include "types.h"
#include "vector_math.h"

namespace mdssd {

constexpr int kGroup = 32;
constexpr int kGroups = 8;
constexpr int kBlock = kGroup * kGroups;

// Computes the minimum and the maximum of a group, ignoring NaNs.
template <class T>
MDSSD_INLINE void range(const T* x, T& least, T& most) {
  T low[kEight], high[kEight];
  for (int i = 0; i < kEight; ++i) {
    low[i] = std::numeric_limits<T>::infinity();
    high[i] = -std::numeric_limits<T>::infinity();
  }
  for (int i = 0; i < kGroup; i += kEight)
    for (int lane = 0; lane < kEight; ++lane) {
      low[lane] = x[i + lane] < low[lane] ? x[i + lane] : low[lane];
      high[lane] = x[i + lane] > high[lane] ? x[i + lane] : high[lane];
    }
  for (int half = kEight / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) {
      low[i] = low[i + half] < low[i] ? low[i + half] : low[i];
      high[i] = high[i + half] > high[i] ? high[i + half] : high[i];
    }
  least = low[0];
  most = high[0];
}

// The corners of up to kBlock priors and, for each group, their bounds, the other ends of the ranges
// of their corners and the range of their areas. All these ignore priors with a NaN, which overlap
// nothing.
template <class T>
struct PriorBlock {
  T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
  T low_x[kGroups], low_y[kGroups], high_x[kGroups], high_y[kGroups];
  T high_x1[kGroups], high_y1[kGroups], low_x2[kGroups], low_y2[kGroups];
  T least_area[kGroups], most_area[kGroups];
  Box<T> bounds;

  MDSSD_INLINE Box<T> box(int i) const { return {x1[i], y1[i], x2[i], y2[i]}; }
};

// Lanes past the n priors repeat the last prior, which does not change the bounds and loses every
// tie against the original.
template <class T>
MDSSD_SIMD void load_block(const T* priors, bool corners, int n, PriorBlock<T>& block) {
  const auto set = [&](int i, int row) __attribute__((always_inline)) {
    const Box<T> p = load_box(priors, row);
    const Box<T> b = corners ? p : to_corners(CentreBox<T>{p.x1, p.y1, p.x2, p.y2});
    block.x1[i] = b.x1;
    block.y1[i] = b.y1;
    block.x2[i] = b.x2;
    block.y2[i] = b.y2;
    block.area[i] = area(b);
  };
  for (int i = 0; i < n; ++i) set(i, i);
  for (int i = n; i < kBlock; ++i) set(i, n - 1);
  for (int g = 0; g < kGroups; ++g) {
    const int first = g * kGroup;
    range(block.x1 + first, block.low_x[g], block.high_x1[g]);
    range(block.y1 + first, block.low_y[g], block.high_y1[g]);
    range(block.x2 + first, block.low_x2[g], block.high_x[g]);
    range(block.y2 + first, block.low_y2[g], block.high_y[g]);
    range(block.area + first, block.least_area[g], block.most_area[g]);
  }
  Box<T>& all = block.bounds;
  all = {block.low_x[0], block.low_y[0], block.high_x[0], block.high_y[0]};
  for (int g = 1; g < kGroups; ++g)
    all = {smaller(all.x1, block.low_x[g]), smaller(all.y1, block.low_y[g]),
           larger(all.x2, block.high_x[g]), larger(all.y2, block.high_y[g])};
}

// Whether the intersection of a box with some prior of the block may be above 0.
template <class T>
MDSSD_INLINE bool meets(Box<T> box, const PriorBlock<T>& block) {
  return (box.x1 < block.bounds.x2) & (box.x2 > block.bounds.x1) & (box.y1 < block.bounds.y2) &
         (box.y2 > block.bounds.y1);
}

template <class T>
class Priors {
 public:
  Priors(const T* rows, bool corners, int64_t num_priors, int threads)
      : num_priors_(num_priors), blocks_(new PriorBlock<T>[blocks()]) {
    parallel_ranges(threads, blocks(), 16, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        load_block<T>(rows + 4 * block * kBlock, corners, size(block), blocks_[block]);
    });
  }

  int64_t blocks() const { return (num_priors_ + kBlock - 1) / kBlock; }
  int size(int64_t block) const {
    return int(std::min<int64_t>(kBlock, num_priors_ - block * kBlock));
  }
  const PriorBlock<T>& operator[](int64_t block) const { return blocks_[block]; }

 private:
  int64_t num_priors_;
  std::unique_ptr<PriorBlock<T>[]> blocks_;
};

}  // namespace mdssd
