// nms and batched_nms: sort by category and score, then suppress each category separately; a task
// handles one category.
#include "../ops.h"
#include "candidates.h"
#include "parallel.h"
#include "suppression.h"

namespace mdssd {
namespace {

// Marks the boxes that are kept: flags[ranks[i]] for box i of a category.
struct MarkKept {
  static constexpr bool kAll = false, kTakes = false;
  const int32_t* ranks;
  char* flags;

  void keep(size_t i) { flags[ranks[i]] = 1; }
  void take(size_t) {}
  void done(size_t) {}
};

template <class T, class Metric>
int64_t nms(const T* boxes, const T* scores, const int64_t* idxs, int64_t num_boxes, T threshold,
            Metric metric, int64_t* keep, int threads) {
  check_index("nms", num_boxes);
  if (num_boxes == 0) return 0;
  const std::vector<int32_t> order = sorted(scores, num_boxes);
  const Grouped groups = grouped(order, {idxs});

  std::vector<char> kept(num_boxes);  // by rank
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

}  // namespace

int64_t nms_cpu(const void* boxes, const void* scores, const int64_t* idxs, int64_t num_boxes,
                const NmsSettings& settings, int64_t* keep, DType dtype, int threads) {
  int64_t kept = 0;
  with_wide(dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    with_metric<T>(settings.ios, settings.iou_eps, [&](auto metric) {
      kept = nms(static_cast<const T*>(boxes), static_cast<const T*>(scores), idxs, num_boxes,
                 T(settings.iou_threshold), metric, keep, threads);
    });
  });
  return kept;
}

}  // namespace mdssd
