// nms and batched_nms: suppress each category separately; a task handles one category. If few boxes
// are kept, they are looked up, and only they are sorted by score. Otherwise all are sorted first.
#include <numeric>
#include <utility>

#include "../ops.h"
#include "candidates.h"
#include "parallel.h"
#include "selection.h"
#include "suppression.h"

namespace mdssd {
namespace {

// Starting threads takes longer than fewer boxes, if they are sorted or only looked up.
constexpr int64_t kParallelSortedFrom = 2048, kParallelFrom = 16384;

// Marks the boxes that are kept: flags[ranks[i]] for box i of a category.
struct MarkKept {
  static constexpr bool kAll = false, kTakes = false;
  const int32_t* ranks;
  char* flags;

  void keep(size_t i) { flags[ranks[i]] = 1; }
  void take(size_t) {}
  void done(size_t) {}
};

// Sorts all boxes by score before it suppresses any.
template <class T, class Metric>
int64_t nms_sorted(const T* boxes, const T* scores, const int64_t* idxs, int64_t num_boxes,
                   T threshold, Metric metric, int64_t* keep, int threads) {
  const std::vector<int32_t> order = sorted(scores, num_boxes);
  const Grouped groups = grouped(order, {idxs});
  std::vector<char> kept(num_boxes);  // by rank
  if (num_boxes < kParallelSortedFrom) threads = 1;
  parallel_for(threads, int64_t(groups.starts.size()) - 1, [&](int64_t category) {
    const int64_t begin = groups.starts[category], end = groups.starts[category + 1];
    std::vector<Box<T>> own(end - begin);
    for (int64_t i = begin; i < end; ++i)
      own[i - begin] = load_box(boxes, order[groups.ranks[i]]);
    MarkKept mark = {groups.ranks.data() + begin, kept.data()};
    suppress(own.data(), own.size(), threshold, metric, mark);
  });

  int64_t found = 0;
  for (int64_t rank = 0; rank < num_boxes; ++rank)
    if (kept[rank]) keep[found++] = order[rank];
  return found;
}

// Looks up the best boxes of one category; see select_boxes. Returns those that are kept by falling
// score. `rest` receives the boxes that are yet to be suppressed.
template <class T, class Metric>
std::vector<int32_t> look_up(const T* boxes, const T* scores, const int32_t* indices, size_t count,
                             T threshold, Metric metric, std::vector<int32_t>& rest) {
  Unsorted<T> unsorted(count);
  for (size_t i = 0; i < count; ++i)
    unsorted.set(i, load_box(boxes, indices[i]), scores[indices[i]]);
  std::vector<int32_t> kept(count);
  kept.resize(select_boxes(unsorted, count, threshold, metric, kept.data()));
  for (int32_t& place : kept) place = indices[place];
  for (size_t block = 0; block < unsorted.blocks.size(); ++block)
    for (uint32_t alive = unsorted.blocks[block].alive; alive; alive &= alive - 1)
      rest.push_back(indices[32 * block + __builtin_ctz(alive)]);
  return kept;
}

// Returns the boxes of each category by rising index.
inline Grouped by_category(const int64_t* idxs, int64_t num_boxes) {
  const auto ends = std::minmax_element(idxs, idxs + num_boxes);
  const int64_t lowest = *ends.first;
  const uint64_t range = uint64_t(*ends.second) - uint64_t(lowest);
  Grouped result;
  result.ranks.resize(num_boxes);
  if (range > uint64_t(num_boxes)) {
    std::iota(result.ranks.begin(), result.ranks.end(), 0);
    return grouped(result.ranks, {idxs});
  }
  std::vector<int32_t> places(range + 1);
  for (int64_t i = 0; i < num_boxes; ++i) ++places[idxs[i] - lowest];
  int32_t sum = 0;
  for (int32_t& place : places) {
    if (place > 0) result.starts.push_back(sum);
    sum += std::exchange(place, sum);
  }
  result.starts.push_back(num_boxes);
  for (int64_t i = 0; i < num_boxes; ++i) result.ranks[places[idxs[i] - lowest]++] = int32_t(i);
  return result;
}

template <class T, class Metric>
int64_t nms(const T* boxes, const T* scores, const int64_t* idxs, int64_t num_boxes, T threshold,
            Metric metric, int64_t* keep, int threads) {
  check_index("nms", num_boxes);
  if (num_boxes == 0) return 0;
  // The first category shows whether to look boxes up or to sort them.
  std::vector<int32_t> first, rest;
  for (int64_t i = 0; i < num_boxes && first.size() < kSpatialFrom; ++i)
    if (!idxs || idxs[i] == idxs[0]) first.push_back(int32_t(i));
  std::vector<int32_t> found;
  if (first.size() < kSpatialFrom)
    found = look_up(boxes, scores, first.data(), first.size(), threshold, metric, rest);
  if (first.size() == kSpatialFrom || !rest.empty())
    return nms_sorted(boxes, scores, idxs, num_boxes, threshold, metric, keep, threads);
  if (int64_t(first.size()) == num_boxes) {
    std::copy(found.begin(), found.end(), keep);
    return int64_t(found.size());
  }

  const Grouped groups = by_category(idxs, num_boxes);
  std::vector<char> kept(num_boxes);
  if (num_boxes < kParallelFrom) threads = 1;
  parallel_for(threads, int64_t(groups.starts.size()) - 1, [&](int64_t category) {
    const int64_t begin = groups.starts[category], end = groups.starts[category + 1];
    std::vector<int32_t> left;
    for (int32_t i : look_up(boxes, scores, &groups.ranks[begin], size_t(end - begin), threshold,
                             metric, left))
      kept[i] = 1;
    if (left.empty()) return;
    std::vector<Keyed<KeyOf<T>>> items;
    for (int32_t i : left) items.push_back({falling_key(scores[i]), i});
    radix_sort(items);
    std::vector<Box<T>> own;
    for (size_t i = 0; i < left.size(); ++i)
      own.push_back(load_box(boxes, left[i] = items[i].index));
    MarkKept mark = {left.data(), kept.data()};
    suppress(own.data(), own.size(), threshold, metric, mark);
  });

  std::vector<Keyed<KeyOf<T>>> items;
  for (int64_t i = 0; i < num_boxes; ++i)
    if (kept[i]) items.push_back({falling_key(scores[i]), int32_t(i)});
  radix_sort(items);
  for (size_t i = 0; i < items.size(); ++i) keep[i] = items[i].index;
  return int64_t(items.size());
}

}  // namespace

int64_t nms_cpu(const void* boxes, const void* scores, const int64_t* idxs, int64_t num_boxes,
                const NmsSettings& settings, int64_t* keep, DType dtype, int threads) {
  int64_t kept = 0;
  with_wide(dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    with_metric<T>(settings, [&](auto metric) {
      kept = nms(static_cast<const T*>(boxes), static_cast<const T*>(scores), idxs, num_boxes,
                 T(settings.iou_threshold), metric, keep, threads);
    });
  });
  return kept;
}

}  // namespace mdssd
