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

constexpr int64_t kParallelFrom = 512;  // starting threads takes longer than fewer boxes

constexpr size_t kFusedSpatialFrom = 1024;  // as kSpatialFrom, for wbf

// The boxes of one group, and its results: entry i for the merged box whose first box is i.
template <class T>
struct Group {
  size_t num_boxes;
  const Box<T>* boxes;
  const int32_t* indices;  // of the boxes among all
  char* is_first;
  Box<T>* merged;
  T* scores;  // at the start those of the boxes
};

template <class T, class Metric, bool kTransitive>
struct Absorb {
  static constexpr bool kAll = kTransitive, kTakes = true;
  T threshold;
  Metric metric;
  const Group<T>& group;
  std::vector<int32_t> owner, taken;
  size_t count = 0;  // of those taken

  void keep(size_t i) {
    owner[i] = int32_t(i);
    group.is_first[i] = 1;
  }
  void take(size_t j) { taken[count++] = int32_t(j); }
  // Boxes that one box takes are merged by index with nmm, and by falling score otherwise.
  void done(size_t i) {
    if (count == 0) return;
    const auto before = [this](int32_t a, int32_t b) {
      return kTransitive ? group.indices[a] < group.indices[b] : a < b;
    };
    const auto end = taken.begin() + count;
    if (!std::is_sorted(taken.begin(), end, before)) std::sort(taken.begin(), end, before);
    const int32_t own = owner[i];
    Box<T> box = group.merged[own];
    T size = area(box);
    for (size_t k = 0; k < count; ++k) {
      const int32_t j = taken[k];
      owner[j] = own;
      const Box<T> other = group.boxes[j];
      const bool inside = (box.x1 <= other.x1) & (box.y1 <= other.y1) & (other.x2 <= box.x2) &
                          (other.y2 <= box.y2);
      if (inside || !overlap(box, size, other, area(other), threshold, metric)) continue;
      box = around(box, other);
      size = area(box);
    }
    group.merged[own] = box;
    count = 0;
  }
};

template <class T>
struct MarkFirst {
  static constexpr bool kAll = false, kTakes = false;
  char* is_first;

  void keep(size_t i) { is_first[i] = 1; }
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
MDSSD_SIMD void fuse(const Group<T>& group, T threshold, Metric metric, int64_t models) {
  const size_t num_boxes = group.num_boxes;
  const Box<T>* boxes = group.boxes;
  const bool in_space = num_boxes >= kFusedSpatialFrom;
  std::vector<int32_t> places =
      in_space ? places_on_curve(boxes, num_boxes) : std::vector<int32_t>(num_boxes);
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
      group.is_first[i] = 1;
      if (!in_space) places[i] = int32_t(started);
      firsts[places[i]] = own;
      ++started;
    }
    sums[own].add(boxes[i], group.scores[i]);
    group.merged[own] = sums[own].mean(group.merged[own]);
    blocks[places[own] / 32].set(places[own] % 32, group.merged[own]);
    if (in_space) bounds.include(places[own] / 32, group.merged[own]);
  }
  for (size_t i = 0; i < num_boxes; ++i)
    if (group.is_first[i]) group.scores[i] = sums[i].mean_score(models);
}

// Sorts by rising key(value) and leaves equal ones in their order.
template <class Key>
void sort_stably(std::vector<int32_t>& values, const Key& key) {
  std::vector<Keyed<uint64_t>> items(values.size());
  for (size_t i = 0; i < values.size(); ++i) items[i] = {key(values[i]), values[i]};
  radix_sort(items);
  for (size_t i = 0; i < values.size(); ++i) values[i] = items[i].index;
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

template <class T>
void merge_group(const MergeBoxesSettings& settings, const Group<T>& group) {
  const T threshold = T(settings.threshold);
  with_iou_or_ios<T>(settings.ios, [&](auto metric) {
    using Metric = decltype(metric);
    const auto run = [&](auto visitor) {
      suppress(group.boxes, group.num_boxes, threshold, metric, visitor);
    };
    const auto absorb = [&](auto transitive) {
      const std::vector<int32_t> none(group.num_boxes);
      run(Absorb<T, Metric, decltype(transitive)::value>{threshold, metric, group, none, none});
    };
    switch (MergeMethod(settings.method)) {
      case MergeMethod::kNms:
        return run(MarkFirst<T>{group.is_first});
      case MergeMethod::kGreedyNmm:
        return absorb(std::false_type{});
      case MergeMethod::kNmm:
        return absorb(std::true_type{});
      case MergeMethod::kWbf:
        return fuse(group, threshold, metric, settings.models);
    }
  });
}

template <class T>
int64_t merge(const Call<T>& call, T* merged_boxes, T* merged_scores, int64_t* index,
              int threads) {
  check_index("merge_boxes", call.num_boxes);
  if (call.num_boxes == 0) return 0;
  const std::vector<int32_t> order = sorted(call.scores, call.num_boxes);
  const Grouped groups = grouped(order, {call.labels, call.images});

  // By group and rank, as groups.ranks.
  std::vector<int32_t> indices(call.num_boxes);
  std::vector<Box<T>> boxes(call.num_boxes), merged(call.num_boxes);
  std::vector<T> scores(call.num_boxes);
  std::vector<char> is_first(call.num_boxes);
  std::vector<int32_t> at(call.num_boxes, -1);  // where the first box of that rank is, or -1
  if (call.num_boxes < kParallelFrom) threads = 1;
  parallel_for(threads, int64_t(groups.starts.size()) - 1, [&](int64_t number) {
    const int64_t begin = groups.starts[number], end = groups.starts[number + 1];
    for (int64_t i = begin; i < end; ++i) {
      indices[i] = order[groups.ranks[i]];
      boxes[i] = merged[i] = load_box(call.boxes, indices[i]);
      scores[i] = call.scores[indices[i]];
    }
    merge_group(call.settings, Group<T>{size_t(end - begin), &boxes[begin], &indices[begin],
                                        &is_first[begin], &merged[begin], &scores[begin]});
    for (int64_t i = begin; i < end; ++i)
      if (is_first[i]) at[groups.ranks[i]] = int32_t(i);
  });

  std::vector<int32_t> rows;  // where the first boxes are, by rank
  for (int32_t i : at)
    if (i >= 0) rows.push_back(i);
  if (MergeMethod(call.settings.method) == MergeMethod::kWbf)
    sort_stably(rows, [&](int32_t i) { return uint64_t(falling_key(scores[i])); });
  if (call.images) {
    const int64_t lowest = *std::min_element(call.images, call.images + call.num_boxes);
    sort_stably(rows,
                [&](int32_t i) { return uint64_t(call.images[indices[i]]) - uint64_t(lowest); });
  }
  for (size_t row = 0; row < rows.size(); ++row) {
    const Box<T> b = merged[rows[row]];
    store4<T>(merged_boxes + 4 * row, b.x1, b.y1, b.x2, b.y2);
    merged_scores[row] = scores[rows[row]];
    index[row] = indices[rows[row]];
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
