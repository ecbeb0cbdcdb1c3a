// soft_nms: sort by label, soften the scores of each label's boxes (soft_nms.h), sort by score. A
// task handles one label. Memory is proportional to the number of boxes.
#include "soft_nms.h"

#include "../ops.h"
#include "candidates.h"
#include "parallel.h"

namespace mdssd {
namespace {

template <class T>
int64_t soft_nms(const T* boxes, const T* scores, const int64_t* labels, int64_t num_boxes,
                 const SoftNmsSettings& given, int64_t* keep, T* kept_scores, int threads) {
  check_index("soft_nms", num_boxes);
  if (num_boxes == 0) return 0;
  const int64_t most = std::min(given.max_detections.value_or(num_boxes), num_boxes);
  const SoftSettings<T> settings = {given.gaussian,
                                    {T(given.iou_threshold), T(1 / given.sigma)},
                                    T(given.score_threshold), most};
  std::vector<int32_t> order(num_boxes);
  for (int64_t i = 0; i < num_boxes; ++i) order[i] = int32_t(i);
  const Grouped groups = grouped(order, {labels});

  std::vector<T> softened(num_boxes);
  std::vector<char> is_kept(num_boxes);
  parallel_for(threads, int64_t(groups.starts.size()) - 1, [&](int64_t label) {
    const int64_t begin = groups.starts[label], end = groups.starts[label + 1];
    const int32_t* const indices = &groups.ranks[begin];
    std::vector<Box<T>> own(end - begin);
    std::vector<T> own_scores(end - begin);
    for (int64_t i = 0; i < end - begin; ++i) {
      own[i] = load_box(boxes, indices[i]);
      own_scores[i] = scores[indices[i]];
    }
    soften(own.data(), own_scores.data(), own.size(), settings, NoEps{}, [&](size_t i, T score) {
      softened[indices[i]] = score;
      is_kept[indices[i]] = 1;
    });
  });

  std::vector<Keyed<decltype(falling_key(T()))>> items;
  for (int64_t i = 0; i < num_boxes; ++i)
    if (is_kept[i]) items.push_back({falling_key(softened[i]), int32_t(i)});
  if (items.empty()) return 0;
  radix_sort(items);
  const int64_t count = std::min(int64_t(items.size()), most);
  for (int64_t row = 0; row < count; ++row) {
    keep[row] = items[row].index;
    kept_scores[row] = softened[items[row].index];
  }
  return count;
}

}  // namespace

int64_t soft_nms_cpu(const void* boxes, const void* scores, const int64_t* labels,
                     int64_t num_boxes, const SoftNmsSettings& settings, int64_t* keep,
                     void* kept_scores, DType dtype, int threads) {
  int64_t count = 0;
  with_wide(dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    count = soft_nms(static_cast<const T*>(boxes), static_cast<const T*>(scores), labels,
                     num_boxes, settings, keep, static_cast<T*>(kept_scores), threads);
  });
  return count;
}

}  // namespace mdssd
