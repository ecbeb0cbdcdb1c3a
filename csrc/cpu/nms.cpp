// nms and batched_nms: sort by category and score, then suppress each category separately; a task
// handles one category.
//
// The boxes of a category are stored in blocks of 32. Each kept box removes the boxes that it
// overlaps, one block at a time, with one vector loop and a bit mask per block. For 1024 boxes or
// more, the boxes are sorted along a space-filling curve, so that neighbours share a block. Blocks,
// and groups of 32 blocks, whose bounds do not meet the kept box are skipped: boxes that do not
// overlap have an IoU of 0, which is above no threshold.
#include <algorithm>
#include <limits>

#include "../ops.h"
#include "box_block.h"
#include "box_columns.h"
#include "candidates.h"
#include "parallel.h"
#include "radix_sort.h"

namespace mdssd {
namespace {

constexpr int64_t kSpatialFrom = 1024;  // for fewer boxes, sorting along a curve does not pay off

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

template <class T>
struct Blocks {
  explicit Blocks(int64_t count) : boxes((count + 31) / 32), alive(boxes.size(), 0) {}

  void set(int64_t place, Box<T> box) {
    boxes[place / 32].set(int(place % 32), box);
    alive[place / 32] |= 1u << (place % 32);
  }

  std::vector<BoxBlock<T, 32>> boxes;
  std::vector<uint32_t> alive;  // bits of the boxes that are neither kept nor removed yet
};

// Returns the position of each box along a space-filling curve (Morton's).
template <class T>
std::vector<int32_t> places_on_curve(const std::vector<Box<T>>& boxes) {
  Bounds<T> all;
  for (const Box<T>& b : boxes)
    if (solid(b)) all.include(0, b);
  const T scale_x = T(256) / (all.x2[0] - all.x1[0]), scale_y = T(256) / (all.y2[0] - all.y1[0]);
  const auto cell = [](T x) { return x >= 0 && x < 256 ? uint32_t(x) : 0u; };  // 0 for NaN
  const auto spread = [](uint32_t x) {  // inserts a zero before each of 8 bits
    x = (x | x << 4) & 0x0f0fu;
    x = (x | x << 2) & 0x3333u;
    return (x | x << 1) & 0x5555u;
  };
  std::vector<Keyed<uint32_t>> items(boxes.size());
  for (size_t i = 0; i < boxes.size(); ++i) {
    const Box<T>& b = boxes[i];
    const uint32_t x = cell(((b.x1 + b.x2) * T(0.5) - all.x1[0]) * scale_x);
    const uint32_t y = cell(((b.y1 + b.y2) * T(0.5) - all.y1[0]) * scale_y);
    items[i] = {spread(x) | spread(y) << 1, int32_t(i)};
  }
  radix_sort(items);
  std::vector<int32_t> places(boxes.size());
  for (size_t place = 0; place < items.size(); ++place) places[items[place].index] = int32_t(place);
  return places;
}

// Takes boxes sorted by falling score and calls keep(i) for each box that is kept.
template <class T, class Eps, class Keep>
MDSSD_INLINE void suppress_in_order(const std::vector<Box<T>>& boxes, T threshold, Eps eps, Keep keep) {
  Blocks<T> blocks(int64_t(boxes.size()));
  for (size_t i = 0; i < boxes.size(); ++i) blocks.set(int64_t(i), boxes[i]);
  for (size_t i = 0; i < boxes.size(); ++i) {
    const size_t own = i / 32;
    if (!(blocks.alive[own] >> (i % 32) & 1u)) continue;
    keep(i);
    // Earlier boxes of the same block are no longer alive, so the whole block can be compared.
    blocks.alive[own] &= ~(1u << (i % 32));
    const T size = area(boxes[i]);
    for (size_t block = own; block < blocks.boxes.size(); ++block)
      if (blocks.alive[block])
        blocks.alive[block] &= ~overlapping(boxes[i], size, blocks.boxes[block], threshold, eps);
  }
}

template <class T, class Eps, class Keep>
MDSSD_INLINE void suppress_in_space(const std::vector<Box<T>>& boxes, T threshold, Eps eps, Keep keep) {
  const std::vector<int32_t> places = places_on_curve(boxes);
  Blocks<T> blocks(int64_t(boxes.size()));
  std::vector<Bounds<T>> groups((blocks.boxes.size() + 31) / 32);  // bounds of 32 blocks each
  std::vector<Bounds<T>> all((groups.size() + 31) / 32);           // bounds of 32 groups each
  for (size_t i = 0; i < boxes.size(); ++i) {
    const int32_t place = places[i];
    blocks.set(place, boxes[i]);
    if (!solid(boxes[i])) continue;
    groups[place >> 10].include(place >> 5 & 31, boxes[i]);
    all[place >> 15].include(place >> 10 & 31, boxes[i]);
  }
  for (size_t i = 0; i < boxes.size(); ++i) {
    const int32_t own = places[i] / 32;
    if (!(blocks.alive[own] >> (places[i] % 32) & 1u)) continue;
    keep(i);
    blocks.alive[own] &= ~(1u << (places[i] % 32));
    if (!solid(boxes[i])) continue;
    const T size = area(boxes[i]);
    for (size_t a = 0; a < all.size(); ++a)
      for (uint32_t met = all[a].meeting(boxes[i]); met; met &= met - 1) {
        const size_t group = 32 * a + __builtin_ctz(met);
        for (uint32_t hit = groups[group].meeting(boxes[i]); hit; hit &= hit - 1) {
          const int within = __builtin_ctz(hit);
          const size_t block = 32 * group + within;
          blocks.alive[block] &= ~overlapping(boxes[i], size, blocks.boxes[block], threshold, eps);
          if (!blocks.alive[block]) groups[group].clear(within);
        }
      }
  }
}

// Takes boxes sorted by falling score and sets kept[ranks[i].index] for each box i that is kept.
template <class T, class Eps>
MDSSD_SIMD void suppress(const std::vector<Box<T>>& boxes, T threshold, Eps eps,
                         const Keyed<uint64_t>* ranks, char* kept) {
  const auto keep = [=](size_t i) { kept[ranks[i].index] = 1; };
  if (int64_t(boxes.size()) < kSpatialFrom)
    suppress_in_order(boxes, threshold, eps, keep);
  else
    suppress_in_space(boxes, threshold, eps, keep);
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

template <class T, class Eps>
int64_t nms(const T* boxes, const T* scores, const int64_t* idxs, int64_t num_boxes, T threshold,
            Eps eps, int64_t* keep, int threads) {
  check_index("nms", num_boxes);
  if (num_boxes == 0) return 0;
  const std::vector<int32_t> order = sorted(scores, num_boxes);

  // Ranks in `order`, sorted by category and, within a category, by falling score.
  std::vector<Keyed<uint64_t>> ranks(num_boxes);
  const int64_t lowest = idxs ? *std::min_element(idxs, idxs + num_boxes) : 0;
  for (int64_t rank = 0; rank < num_boxes; ++rank)
    ranks[rank] = {idxs ? uint64_t(idxs[order[rank]]) - uint64_t(lowest) : 0, int32_t(rank)};
  if (idxs) radix_sort(ranks);
  std::vector<int64_t> starts;  // where each category starts in `ranks`, and the end
  for (int64_t i = 0; i < num_boxes; ++i)
    if (i == 0 || ranks[i].key != ranks[i - 1].key) starts.push_back(i);
  starts.push_back(num_boxes);

  std::vector<char> kept(num_boxes);  // by rank
  parallel_for(threads, int64_t(starts.size()) - 1, [&](int64_t category) {
    const int64_t begin = starts[category], end = starts[category + 1];
    std::vector<Box<T>> own(end - begin);
    for (int64_t i = begin; i < end; ++i)
      own[i - begin] = load_box(boxes, order[ranks[i].index]);
    suppress(own, threshold, eps, ranks.data() + begin, kept.data());
  });

  int64_t found = 0;
  for (int64_t rank = 0; rank < num_boxes; ++rank)
    if (kept[rank]) keep[found++] = order[rank];
  return found;
}

}  // namespace

int64_t nms_cpu(const void* boxes, const void* scores, const int64_t* idxs, int64_t num_boxes,
                const NmsSettings& settings, int64_t* keep, DType dtype, int threads) {
  int64_t kept = 0;
  with_wide(dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    with_eps<T>(settings.iou_eps, [&](auto eps) {
      kept = nms(static_cast<const T*>(boxes), static_cast<const T*>(scores), idxs, num_boxes,
                 T(settings.iou_threshold), eps, keep, threads);
    });
  });
  return kept;
}

}  // namespace mdssd
