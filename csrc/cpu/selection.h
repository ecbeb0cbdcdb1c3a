// Greedy suppression of a few hundred boxes in any order.
//
// Sorting the boxes takes longer than suppressing them if few are kept. So the best box is looked up
// instead, in the same pass that removes the boxes that the one before overlaps.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <vector>

#include "box_block.h"
#include "radix_sort.h"

namespace mdssd {

template <class T>
struct Unsorted {
  using Key = KeyOf<T>;
  static constexpr Key kGone = std::numeric_limits<Key>::max();  // the key of no score

  explicit Unsorted(size_t count) : boxes((count + 31) / 32), blocks(boxes.size()) {
    for (auto& block : blocks) block.keys.fill(kGone);
  }

  // Of equal scores, the lowest position comes first.
  void set(size_t place, Box<T> box, T score) {
    boxes[place / 32].set(int(place % 32), box);
    blocks[place / 32].keys[place % 32] = falling_key(score);
  }

  struct Keys {
    std::array<Key, 32> keys;  // of the boxes' scores; kGone if the box is kept or removed
    Key lowest = kGone;
    uint32_t alive = 0;  // bits of the boxes that are neither kept nor removed yet
  };
  std::vector<BoxBlock<T, 32>> boxes;
  std::vector<Keys> blocks;
};

// Keeps the best box and removes those that it overlaps, again and again. Stops when no box is left,
// or when few boxes are removed each time, so that sorting the others takes less time. Writes the
// positions of the kept boxes and returns their number.
template <class T, class Metric>
MDSSD_SIMD size_t select_boxes(Unsorted<T>& from, size_t num_boxes, T threshold, Metric metric,
                               int32_t* kept) {
  using Key = KeyOf<T>;
  constexpr Key kGone = Unsorted<T>::kGone;
  const size_t count = from.blocks.size();
  for (auto& state : from.blocks) {
    state.alive = mask_of_32([&](int i) { return state.keys[i] != kGone; });
    for (int i = 0; i < 32; ++i) state.lowest = std::min(state.lowest, state.keys[i]);
  }
  size_t found = 0;
  // A lookup takes time in proportion to num_boxes, and sorting to the boxes that it would save.
  for (size_t gone = 0; gone < num_boxes && (found < 3 || 40 * gone >= found * num_boxes);) {
    size_t own = 0;
    for (size_t block = 1; block < count; ++block)
      if (from.blocks[block].lowest < from.blocks[own].lowest) own = block;
    Key* const own_keys = from.blocks[own].keys.data();
    const Key best = from.blocks[own].lowest;
    const int lane = __builtin_ctz(mask_of_32([=](int i) { return own_keys[i] == best; }));
    kept[found++] = int32_t(32 * own) + lane;
    const Box<T> box = from.boxes[own].box(lane);
    const T size = from.boxes[own].area[lane];
    for (size_t block = 0; block < count; ++block) {
      auto& state = from.blocks[block];
      if (!state.alive) continue;
      uint32_t hit = overlapping(box, size, from.boxes[block], threshold, metric);
      if (block == own) hit |= 1u << lane;
      hit &= state.alive;
      if (!hit) continue;
      state.alive &= ~hit;
      gone += size_t(__builtin_popcount(hit));
      Key* const keys = state.keys.data();
      Key lowest = kGone;
      for (int i = 0; i < 32; ++i) {
        const Key key = keys[i] | (Key(0) - Key(hit >> i & 1));
        keys[i] = key;
        lowest = key < lowest ? key : lowest;
      }
      state.lowest = lowest;
    }
  }
  return found;
}

}  // namespace mdssd
