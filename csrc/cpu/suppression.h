// Greedy suppression of boxes by falling score, for nms and merge_boxes.
//
// The boxes are stored in blocks of 32. Each kept box removes the boxes that it overlaps, one block
// at a time, with one vector loop and a bit mask per block. For 512 boxes or more, the boxes are
// sorted along a space-filling curve, so that neighbours share a block. Blocks, and groups of 32
// blocks, whose bounds do not meet the kept box are skipped: boxes that do not overlap have an IoU,
// or IoS, of 0 and a DIoU of at most 0, which is above no threshold.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <vector>

#include "box_block.h"
#include "box_columns.h"
#include "radix_sort.h"

namespace mdssd {

constexpr size_t kSpatialFrom = 512;  // for fewer boxes, sorting along a curve does not pay off

// Returns whether the box can have an IoU above 0: its sides are positive and its area is finite.
template <class T>
bool solid(Box<T> b) {
  const T size = area(b);
  return b.x1 < b.x2 && b.y1 < b.y2 && size > 0 && size < std::numeric_limits<T>::infinity();
}

// Bounds of 32 blocks or 32 groups. Initially they are empty and meet no box.
template <class T>
struct Bounds {
  T x1[32], y1[32], x2[32], y2[32];

  Bounds() {
    for (int i = 0; i < 32; ++i) clear(i);
  }
  void clear(int i) {
    x1[i] = y1[i] = std::numeric_limits<T>::infinity();
    x2[i] = y2[i] = -std::numeric_limits<T>::infinity();
  }
  void include(int i, Box<T> b) {
    x1[i] = std::min(x1[i], b.x1);
    y1[i] = std::min(y1[i], b.y1);
    x2[i] = std::max(x2[i], b.x2);
    y2[i] = std::max(y2[i], b.y2);
  }
  MDSSD_INLINE uint32_t meeting(Box<T> b) const {
    return mask_of_32([&](int i) {
      return (b.x1 < x2[i]) & (x1[i] < b.x2) & (b.y1 < y2[i]) & (y1[i] < b.y2);
    });
  }
};

// The bounds of blocks of 32 boxes, in groups of 32 blocks, and the bounds of these groups.
template <class T>
class Nested {
 public:
  explicit Nested(size_t num_blocks)
      : groups_((num_blocks + 31) / 32), all_((groups_.size() + 31) / 32) {}

  void include(int64_t block, Box<T> box) {
    if (!solid(box)) return;
    groups_[block >> 5].include(block & 31, box);
    all_[block >> 10].include(block >> 5 & 31, box);
  }
  void clear(size_t block) { groups_[block >> 5].clear(block & 31); }

  // Calls visit(block) for each block whose bounds meet the box.
  template <class Visit>
  MDSSD_INLINE void for_each_meeting(Box<T> box, const Visit& visit) const {
    for (size_t a = 0; a < all_.size(); ++a)
      for (uint32_t met = all_[a].meeting(box); met; met &= met - 1) {
        const size_t group = 32 * a + __builtin_ctz(met);
        for (uint32_t hit = groups_[group].meeting(box); hit; hit &= hit - 1)
          visit(32 * group + __builtin_ctz(hit));
      }
  }

 private:
  std::vector<Bounds<T>> groups_, all_;
};

template <class T>
struct Blocks {
  explicit Blocks(size_t count) : boxes((count + 31) / 32), alive(boxes.size(), 0) {}

  void set(int64_t place, Box<T> box) {
    boxes[place / 32].set(int(place % 32), box);
    alive[place / 32] |= 1u << (place % 32);
  }

  std::vector<BoxBlock<T, 32>> boxes;
  std::vector<uint32_t> alive;  // bits of the boxes that are neither kept nor removed yet
};

// Returns the position of each box in a grid, whose cells are ordered along a space-filling curve
// (Morton's). The boxes of a cell keep their order.
template <class T>
MDSSD_INLINE std::vector<int32_t> places_on_curve(const Box<T>* boxes, size_t num_boxes) {
  Bounds<T> all;
  for (size_t i = 0; i < num_boxes; ++i)
    if (solid(boxes[i])) all.include(0, boxes[i]);
  int bits = 4;  // of a cell's row and of its column
  while (bits < 8 && size_t(8) << (2 * bits) < num_boxes) ++bits;
  const T side = T(1 << bits);
  const T scale_x = side / (all.x2[0] - all.x1[0]), scale_y = side / (all.y2[0] - all.y1[0]);
  const auto limited = [=](T x) { return x >= 0 && x < side ? uint32_t(x) : 0u; };  // 0 for NaN
  const auto spread = [](uint32_t x) {  // inserts a zero before each of 8 bits
    x = (x | x << 4) & 0x0f0fu;
    x = (x | x << 2) & 0x3333u;
    return (x | x << 1) & 0x5555u;
  };
  std::vector<int32_t> places(num_boxes), ends((size_t(1) << (2 * bits)) + 1);
  for (size_t i = 0; i < num_boxes; ++i) {
    const Box<T>& b = boxes[i];
    const uint32_t x = limited(((b.x1 + b.x2) * T(0.5) - all.x1[0]) * scale_x);
    const uint32_t y = limited(((b.y1 + b.y2) * T(0.5) - all.y1[0]) * scale_y);
    places[i] = int32_t(spread(x) | spread(y) << 1);
  }
  for (int32_t cell : places) ++ends[cell + 1];
  for (size_t cell = 1; cell < ends.size(); ++cell) ends[cell] += ends[cell - 1];
  for (int32_t& place : places) place = ends[place]++;
  return places;
}

// The visitors below have these members:
//   kAll     whether boxes that are removed already remove others too;
//   kTakes   whether take and done are called;
//   keep(i)  for a box that no earlier box has removed;
//   take(j)  for each box that box i removes, in the order of the boxes in memory;
//   done(i)  after the last of them.
// Boxes come by falling score, and a box removes only later ones. The loop ends when all
// boxes are kept or removed.
template <class T, class Metric, class Visitor>
MDSSD_INLINE void suppress_in_order(const Box<T>* boxes, size_t num_boxes, T threshold,
                                    Metric metric, Visitor& visitor) {
  Blocks<T> blocks(num_boxes);
  for (size_t i = 0; i < num_boxes; ++i) blocks.set(int64_t(i), boxes[i]);
  size_t left = num_boxes;
  for (size_t i = 0; i < num_boxes && left > 0; ++i) {
    const size_t own = i / 32;
    if (blocks.alive[own] >> (i % 32) & 1u) {
      visitor.keep(i);
      --left;
    } else if (!Visitor::kAll) {
      continue;
    }
    // Earlier boxes of the same block are no longer alive, so the whole block can be compared.
    blocks.alive[own] &= ~(1u << (i % 32));
    const T size = area(boxes[i]);
    for (size_t block = own; block < blocks.boxes.size(); ++block) {
      if (!blocks.alive[block]) continue;
      uint32_t hit = overlapping(boxes[i], size, blocks.boxes[block], threshold, metric);
      hit &= blocks.alive[block];
      blocks.alive[block] &= ~hit;
      left -= size_t(__builtin_popcount(hit));
      if (Visitor::kTakes)
        for (; hit; hit &= hit - 1) visitor.take(32 * block + __builtin_ctz(hit));
    }
    if (Visitor::kTakes) visitor.done(i);
  }
}

template <class T, class Metric, class Visitor>
MDSSD_INLINE void suppress_in_space(const Box<T>* boxes, size_t num_boxes, T threshold,
                                    Metric metric, Visitor& visitor) {
  const std::vector<int32_t> places = places_on_curve(boxes, num_boxes);
  std::vector<int32_t> at_place(Visitor::kTakes ? num_boxes : 0);
  if (Visitor::kTakes)
    for (size_t i = 0; i < num_boxes; ++i) at_place[places[i]] = int32_t(i);
  Blocks<T> blocks(num_boxes);
  Nested<T> bounds(blocks.boxes.size());
  for (size_t i = 0; i < num_boxes; ++i) {
    blocks.set(places[i], boxes[i]);
    bounds.include(places[i] / 32, boxes[i]);
  }
  size_t left = num_boxes;
  for (size_t i = 0; i < num_boxes && left > 0; ++i) {
    const int32_t own = places[i] / 32;
    if (blocks.alive[own] >> (places[i] % 32) & 1u) {
      visitor.keep(i);
      --left;
    } else if (!Visitor::kAll) {
      continue;
    }
    blocks.alive[own] &= ~(1u << (places[i] % 32));
    if (!solid(boxes[i])) continue;
    const T size = area(boxes[i]);
    bounds.for_each_meeting(boxes[i], [&](size_t block) {
      uint32_t hit = overlapping(boxes[i], size, blocks.boxes[block], threshold, metric);
      hit &= blocks.alive[block];
      blocks.alive[block] &= ~hit;
      left -= size_t(__builtin_popcount(hit));
      if (Visitor::kTakes)
        for (; hit; hit &= hit - 1) visitor.take(at_place[32 * block + __builtin_ctz(hit)]);
      if (!blocks.alive[block]) bounds.clear(block);
    });
    if (Visitor::kTakes) visitor.done(i);
  }
}

template <class T, class Metric, class Visitor>
MDSSD_SIMD void suppress(const Box<T>* boxes, size_t num_boxes, T threshold, Metric metric,
                         Visitor& visitor) {
  if (num_boxes < kSpatialFrom)
    suppress_in_order(boxes, num_boxes, threshold, metric, visitor);
  else
    suppress_in_space(boxes, num_boxes, threshold, metric, visitor);
}

// Returns the indices of the scores in falling order.
template <class T>
std::vector<int32_t> sorted(const T* scores, int64_t num_boxes) {
  std::vector<Keyed<decltype(falling_key(T()))>> items(num_boxes);
  for (int64_t i = 0; i < num_boxes; ++i) items[i] = {falling_key(scores[i]), int32_t(i)};
  radix_sort(items);
  std::vector<int32_t> order(num_boxes);
  for (int64_t i = 0; i < num_boxes; ++i) order[i] = items[i].index;
  return order;
}

// The positions in `order` (ranks), sorted by category and, within a category, by rank.
struct Grouped {
  std::vector<int32_t> ranks;
  std::vector<int64_t> starts;  // where each category starts in `ranks`, and the end
};

// Sorts by the last key, then by the one before it, and so on. A key is an array over the boxes, or
// null, in which all are equal.
inline Grouped grouped(const std::vector<int32_t>& order,
                       std::initializer_list<const int64_t*> keys) {
  const int64_t num_boxes = int64_t(order.size());
  std::vector<Keyed<uint64_t>> items(num_boxes);
  for (int64_t rank = 0; rank < num_boxes; ++rank) items[rank] = {0, int32_t(rank)};
  for (const int64_t* key : keys) {
    if (!key) continue;
    const int64_t lowest = *std::min_element(key, key + num_boxes);
    for (auto& item : items) item.key = uint64_t(key[order[item.index]]) - uint64_t(lowest);
    radix_sort(items);
  }
  Grouped result;
  result.ranks.resize(num_boxes);
  for (int64_t i = 0; i < num_boxes; ++i) result.ranks[i] = items[i].index;
  for (int64_t i = 0; i < num_boxes; ++i) {
    bool starts = i == 0;
    for (const int64_t* key : keys)
      if (i > 0 && key) starts |= key[order[items[i].index]] != key[order[items[i - 1].index]];
    if (starts) result.starts.push_back(i);
  }
  result.starts.push_back(num_boxes);
  return result;
}

}  // namespace mdssd
