// Soft-NMS of the boxes of one class, for soft_nms and detection_output.
//
// The boxes are stored in blocks of 32, with the integer that ranks each score (soft_nms_math.h) and
// the largest one of each block. The best box is found among the largest of the blocks. It then
// lowers the scores of the boxes that it overlaps, block by block: a vector loop computes the IoUs,
// and only if one is large enough a second one computes scores and the largest of the block. For
// kSoftSpatialFrom boxes or more, the boxes are sorted along a space-filling curve, and blocks whose
// bounds do not meet the chosen box are skipped.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "../soft_nms_math.h"
#include "suppression.h"

namespace mdssd {

constexpr size_t kSoftSpatialFrom = 128;  // for fewer boxes, sorting along a curve does not pay off

template <class T>
struct SoftSettings {
  bool gaussian;
  Decay<T> decay;
  T least;       // a box is chosen as long as its score is not below this
  int64_t most;  // boxes of the result
};

template <class T>
class SoftBlocks {
 public:
  using Key = ScoreKey<T>;

  explicit SoftBlocks(size_t num_boxes)
      : boxes_((num_boxes + 31) / 32), keys_(32 * boxes_.size(), Key(kNoKey)),
        owners_(keys_.size(), 0), tops_((boxes_.size() + 31) / 32 * 32, Key(kNoKey)) {}

  void set(int64_t place, Box<T> box, Key key, int32_t owner) {
    boxes_[place / 32].set(int(place % 32), box);
    keys_[place] = key;
    owners_[place] = owner;
    tops_[place / 32] = std::max(tops_[place / 32], key);
  }

  // Returns the place of the best box, the one of the lowest owner if there are several, or -1 if
  // no box is left.
  MDSSD_INLINE int64_t best() const {
    Key top = kNoKey;
    for (size_t i = 0; i < tops_.size(); ++i) top = tops_[i] > top ? tops_[i] : top;
    int64_t place = -1;
    if (top == Key(kNoKey)) return place;
    for (size_t block = 0; block < boxes_.size(); ++block) {
      if (tops_[block] != top) continue;
      const Key* const keys = &keys_[32 * block];
      for (uint32_t equal = mask_of_32([=](int i) { return keys[i] == top; }); equal;
           equal &= equal - 1) {
        const int64_t other = int64_t(32 * block) + __builtin_ctz(equal);
        if (place < 0 || owners_[other] < owners_[place]) place = other;
      }
    }
    return place;
  }

  MDSSD_INLINE void remove(int64_t place) {
    keys_[place] = kNoKey;
    renew_top(size_t(place / 32));
  }

  template <bool kGaussian, class Metric>
  MDSSD_INLINE void soften(size_t block, Box<T> box, T size, const SoftSettings<T>& settings,
                           Metric metric) {
    if (tops_[block] == Key(kNoKey)) return;
    const BoxBlock<T, 32>& own = boxes_[block];
    const T from = settings.decay.from(kGaussian), least = settings.least;
    const Decay<T> decay = settings.decay;
    T overlaps[32];
    int any = 0;
    for (int i = 0; i < 32; ++i) {
      overlaps[i] = iou(box, size, own.box(i), own.area[i], metric);
      any |= overlaps[i] > from;
    }
    if (!any) return;
    Key* const keys = &keys_[32 * block];
    Key top = kNoKey;
    for (int i = 0; i < 32; ++i) {
      const Key key = keys[i];
      const Key softened = live_key(score_of<T>(key) * decay.factor(kGaussian, overlaps[i]), least);
      keys[i] = key == Key(kNoKey) ? key : softened;
      top = keys[i] > top ? keys[i] : top;
    }
    tops_[block] = top;
  }

  size_t size() const { return boxes_.size(); }
  Key key(int64_t place) const { return keys_[place]; }
  int32_t owner(int64_t place) const { return owners_[place]; }
  Box<T> box(int64_t place) const { return boxes_[place / 32].box(int(place % 32)); }

 private:
  MDSSD_INLINE void renew_top(size_t block) {
    Key top = kNoKey;
    for (int i = 0; i < 32; ++i) top = keys_[32 * block + i] > top ? keys_[32 * block + i] : top;
    tops_[block] = top;
  }

  std::vector<BoxBlock<T, 32>> boxes_;
  std::vector<Key> keys_;
  std::vector<int32_t> owners_;  // which box is at a place
  std::vector<Key> tops_;
};

// Calls chosen(i, score) for the boxes in the order in which they are chosen: by falling score, of
// equal ones the first. It ends early if `settings.most` boxes have scores above all that are left.
template <bool kGaussian, class T, class Metric, class Chosen>
MDSSD_INLINE void soften_all(const Box<T>* boxes, const T* scores, size_t num_boxes,
                             const SoftSettings<T>& settings, Metric metric,
                             const Chosen& chosen) {
  const bool in_space = num_boxes >= kSoftSpatialFrom;
  const std::vector<int32_t> places =
      in_space ? places_on_curve(boxes, num_boxes) : std::vector<int32_t>();
  SoftBlocks<T> blocks(num_boxes);
  Nested<T> bounds(in_space ? blocks.size() : 0);
  for (size_t i = 0; i < num_boxes; ++i) {
    const int64_t place = in_space ? places[i] : int64_t(i);
    blocks.set(place, boxes[i], live_key(scores[i], settings.least), int32_t(i));
    if (in_space) bounds.include(place / 32, boxes[i]);
  }
  ScoreKey<T> lowest = 0;  // of the `most` boxes chosen first
  int64_t found = 0;
  for (int64_t place; (place = blocks.best()) >= 0;) {
    const ScoreKey<T> key = blocks.key(place);
    if (found >= settings.most && key < lowest) break;
    if (++found == settings.most) lowest = key;
    chosen(size_t(blocks.owner(place)), score_of<T>(key));
    blocks.remove(place);
    const Box<T> box = blocks.box(place);
    if (!solid(box)) continue;  // its IoU with every box is 0
    const T size = area(box);
    const auto visit = [&](size_t block) {
      blocks.template soften<kGaussian>(block, box, size, settings, metric);
    };
    if (in_space)
      bounds.for_each_meeting(box, visit);
    else
      for (size_t block = 0; block < blocks.size(); ++block) visit(block);
  }
}

template <class T, class Metric, class Chosen>
MDSSD_SIMD void soften(const Box<T>* boxes, const T* scores, size_t num_boxes,
                       const SoftSettings<T>& settings, Metric metric, const Chosen& chosen) {
  if (settings.gaussian)
    soften_all<true>(boxes, scores, num_boxes, settings, metric, chosen);
  else
    soften_all<false>(boxes, scores, num_boxes, settings, metric, chosen);
}

}  // namespace mdssd
