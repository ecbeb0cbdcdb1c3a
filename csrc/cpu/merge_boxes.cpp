// merge_boxes: sort by image, label and score, then merge the boxes of each image and label; a task
// handles one of these groups. The boxes of a group are called by their rank in it: 0 has the
// highest score.
//
// nms, greedy_nmm and nmm are suppressions (suppression.h). What a box removes joins the box that
// removed it, or, with nmm, the box to which that one belongs, at once: the merged box grows to
// include it if the two still overlap.
//
// wbf goes through the boxes and adds each to the fused box that it overlaps most, or starts a new
// one. The fused boxes are stored in blocks of 32, as in suppression.h: in the order in which they
// were started, or, for 1024 boxes or more, at the place of their first box on the curve. A fused
// box moves, so the bounds of its block grow.
//
// Memory is proportional to the number of boxes.
#include "../ops.h"
#include "candidates.h"
#include "parallel.h"
#include "suppression.h"

namespace mdssd {
namespace {

// The results of one group: entry i for the merged box whose first box is i.
template <class T>
struct Merged {
  std::vector<char> is_first;
  std::vector<Box<T>> boxes;
  std::vector<T> scores;
};

template <class T, class Metric, bool kTransitive>
struct Absorb {
  static constexpr bool kAll = kTransitive, kTakes = true;
  T threshold;
  Metric metric;
  const std::vector<Box<T>>& boxes;
  const int32_t* indices;  // of the boxes among all
  Merged<T>& merged;
  std::vector<int32_t> owner, taken;

  void keep(size_t i) {
    owner[i] = int32_t(i);
    merged.is_first[i] = 1;
  }
  void take(size_t j) { taken.push_back(int32_t(j)); }
  // Boxes that one box takes are merged by index with nmm, and by falling score otherwise.
  void done(size_t i) {
    if (taken.empty()) return;
    std::sort(taken.begin(), taken.end(), [this](int32_t a, int32_t b) {
      return kTransitive ? indices[a] < indices[b] : a < b;
    });
    const int32_t own = owner[i];
    Box<T> box = merged.boxes[own];
    T size = area(box);
    for (int32_t j : taken) {
      owner[j] = own;
      if (!overlap(box, size, boxes[j], area(boxes[j]), threshold, metric)) continue;
      box = around(box, boxes[j]);
      size = area(box);
    }
    merged.boxes[own] = box;
    taken.clear();
  }
};

template <class T>
struct MarkFirst {
  static constexpr bool kAll = false, kTakes = false;
  Merged<T>& merged;

  void keep(size_t i) { merged.is_first[i] = 1; }
  void take(size_t) {}
  void done(size_t) {}
};

template <class T>
struct Best {
  T overlap;
  int32_t first;  // the first box of the fused box
};

// Updates `best` by the block's boxes of higher overlap, or of an equal one and a lower `firsts`.
template <class T, class Metric>
MDSSD_INLINE void compare(Box<T> box, T box_area, const BoxBlock<T, 32>& block,
                          const int32_t* firsts, T threshold, Metric metric, Best<T>& best) {
  T overlaps[32];
  for (int i = 0; i < 32; ++i)
    overlaps[i] = iou(box, box_area, block.box(i), block.area[i], metric);
  const T least = best.overlap;
  uint32_t hit =
      mask_of_32([&](int i) { return (overlaps[i] > threshold) & (overlaps[i] >= least); });
  for (; hit; hit &= hit - 1) {
    const int i = __builtin_ctz(hit);
    if (overlaps[i] > best.overlap || (overlaps[i] == best.overlap && firsts[i] < best.first))
      best = {overlaps[i], firsts[i]};
  }
}

template <class T, class Metric>
MDSSD_SIMD void fuse(const std::vector<Box<T>>& boxes, T threshold, Metric metric, int64_t models,
                     Merged<T>& merged) {
  const size_t num_boxes = boxes.size();
  const bool in_space = num_boxes >= kSpatialFrom;
  std::vector<int32_t> places = in_space ? places_on_curve(boxes) : std::vector<int32_t>(num_boxes);
  std::vector<BoxBlock<T, 32>> blocks((num_boxes + 31) / 32);
  std::vector<int32_t> firsts(32 * blocks.size());  // the first box of the fused box at a place
  Nested<T> bounds(in_space ? blocks.size() : 0);
  std::vector<WeightedSum<T>> sums(num_boxes);
  size_t started = 0;
  for (size_t i = 0; i < num_boxes; ++i) {
    const T size = area(boxes[i]);
    Best<T> best = {threshold, std::numeric_limits<int32_t>::max()};
    const auto visit = [&](size_t block) {
      compare(boxes[i], size, blocks[block], &firsts[32 * block], threshold, metric, best);
    };
    if (in_space)
      bounds.for_each_meeting(boxes[i], visit);
    else
      for (size_t block = 0; 32 * block < started; ++block) visit(block);
    int32_t own = best.first;
    if (own == std::numeric_limits<int32_t>::max()) {
      own = int32_t(i);
      merged.is_first[i] = 1;
      if (!in_space) places[i] = int32_t(started);
      firsts[places[i]] = own;
      ++started;
    }
    sums[own].add(boxes[i], merged.scores[i]);
    merged.boxes[own] = sums[own].mean(merged.boxes[own]);
    blocks[places[own] / 32].set(places[own] % 32, merged.boxes[own]);
    if (in_space) bounds.include(places[own] / 32, merged.boxes[own]);
  }
  for (size_t i = 0; i < num_boxes; ++i)
    if (merged.is_first[i]) merged.scores[i] = sums[i].mean_score(models);
}

// Sorts by rising key(rank) and leaves equal ones in their order.
template <class Key>
void sort_stably(std::vector<int32_t>& ranks, const Key& key) {
  std::vector<Keyed<uint64_t>> items(ranks.size());
  for (size_t i = 0; i < ranks.size(); ++i) items[i] = {key(ranks[i]), ranks[i]};
  radix_sort(items);
  for (size_t i = 0; i < ranks.size(); ++i) ranks[i] = items[i].index;
}

template <class T>
struct Call {
  const T* boxes;
  const T* scores;
  const int64_t* labels;  // null if boxes of different labels are merged
  const int64_t* images;  // null if all boxes are of one image
  int64_t num_boxes;
  MergeBoxesSettings settings;
};

// Merges the boxes of one group, given by their indices in the order of their scores.
template <class T>
Merged<T> merge_group(const Call<T>& call, const std::vector<int32_t>& indices) {
  const size_t num_boxes = indices.size();
  const T threshold = T(call.settings.threshold);
  std::vector<Box<T>> boxes(num_boxes);
  Merged<T> merged;
  merged.is_first.resize(num_boxes);
  merged.scores.resize(num_boxes);
  for (size_t i = 0; i < num_boxes; ++i) {
    boxes[i] = load_box(call.boxes, indices[i]);
    merged.scores[i] = call.scores[indices[i]];
  }
  merged.boxes = boxes;
  with_metric<T>(call.settings.ios, [&](auto metric) {
    using Metric = decltype(metric);
    const auto absorb = [&](auto transitive) {
      Absorb<T, Metric, decltype(transitive)::value> visitor{
          threshold, metric, boxes, indices.data(), merged, std::vector<int32_t>(num_boxes), {}};
      suppress(boxes, threshold, metric, visitor);
    };
    switch (MergeMethod(call.settings.method)) {
      case MergeMethod::kNms: {
        MarkFirst<T> visitor{merged};
        return suppress(boxes, threshold, metric, visitor);
      }
      case MergeMethod::kGreedyNmm:
        return absorb(std::false_type{});
      case MergeMethod::kNmm:
        return absorb(std::true_type{});
      case MergeMethod::kWbf:
        return fuse(boxes, threshold, metric, call.settings.models, merged);
    }
  });
  return merged;
}

template <class T>
int64_t merge(const Call<T>& call, T* merged_boxes, T* merged_scores, int64_t* index,
              int threads) {
  check_index("merge_boxes", call.num_boxes);
  if (call.num_boxes == 0) return 0;
  const std::vector<int32_t> order = sorted(call.scores, call.num_boxes);
  const Grouped groups = grouped(order, {call.labels, call.images});

  Merged<T> all;  // entry i for the merged box whose first box has rank i in `order`
  all.is_first.resize(call.num_boxes);
  all.boxes.resize(call.num_boxes);
  all.scores.resize(call.num_boxes);
  parallel_for(threads, int64_t(groups.starts.size()) - 1, [&](int64_t group) {
    const int64_t begin = groups.starts[group], end = groups.starts[group + 1];
    std::vector<int32_t> indices(end - begin);
    for (int64_t i = begin; i < end; ++i) indices[i - begin] = order[groups.ranks[i]];
    const Merged<T> own = merge_group(call, indices);
    for (int64_t i = begin; i < end; ++i) {
      const int32_t rank = groups.ranks[i];
      all.is_first[rank] = own.is_first[i - begin];
      all.boxes[rank] = own.boxes[i - begin];
      all.scores[rank] = own.scores[i - begin];
    }
  });

  std::vector<int32_t> rows;  // ranks of the first boxes
  for (int32_t rank = 0; rank < int32_t(call.num_boxes); ++rank)
    if (all.is_first[rank]) rows.push_back(rank);
  if (MergeMethod(call.settings.method) == MergeMethod::kWbf)
    sort_stably(rows, [&](int32_t rank) { return uint64_t(falling_key(all.scores[rank])); });
  if (call.images) {
    const int64_t lowest = *std::min_element(call.images, call.images + call.num_boxes);
    sort_stably(rows, [&](int32_t rank) {
      return uint64_t(call.images[order[rank]]) - uint64_t(lowest);
    });
  }
  for (size_t row = 0; row < rows.size(); ++row) {
    const Box<T> b = all.boxes[rows[row]];
    store4<T>(merged_boxes + 4 * row, b.x1, b.y1, b.x2, b.y2);
    merged_scores[row] = all.scores[rows[row]];
    index[row] = order[rows[row]];
  }
  return int64_t(rows.size());
}

}  // namespace

int64_t merge_boxes_cpu(const void* boxes, const void* scores, const int64_t* labels,
                        const int64_t* images, int64_t num_boxes,
                        const MergeBoxesSettings& settings, void* merged_boxes,
                        void* merged_scores, int64_t* index, DType dtype, int threads) {
  int64_t count = 0;
  with_wide(dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    const Call<T> call = {static_cast<const T*>(boxes), static_cast<const T*>(scores), labels,
                          images, num_boxes, settings};
    count = merge(call, static_cast<T*>(merged_boxes), static_cast<T*>(merged_scores), index,
                  threads);
  });
  return count;
}

}  // namespace mdssd
