// nms and batched_nms: sort by category and score, suppress each category by itself.
#include "../ops.h"
#include "candidates.h"
#include "parallel.h"

namespace mdssd {
namespace {

template <class T>
int64_t nms(const T* boxes, const T* scores, const int64_t* idxs, int64_t count, T threshold,
            int64_t* keep, int threads) {
  check_index("nms", count);
  std::vector<Candidate<T>> order(count);
  for (int64_t i = 0; i < count; ++i) order[i] = {scores[i], int32_t(i)};
  const auto category = [&](const Candidate<T>& c) { return idxs ? idxs[c.index] : int64_t(0); };
  std::sort(order.begin(), order.end(), [&](const Candidate<T>& a, const Candidate<T>& b) {
    return category(a) != category(b) ? category(a) < category(b) : before(a, b);
  });

  std::vector<int64_t> starts;  // of each category in `order`, and the end
  for (int64_t i = 0; i < count; ++i)
    if (i == 0 || category(order[i]) != category(order[i - 1])) starts.push_back(i);
  starts.push_back(count);
  std::vector<std::vector<int32_t>> kept(starts.size() - 1);
  parallel_for(threads, int64_t(kept.size()), [&](int64_t group) {
    const int64_t begin = starts[group], n = starts[group + 1] - begin;
    BoxColumns<T> columns(n);
    for (int64_t i = 0; i < n; ++i) columns.set(i, load_box(boxes, order[begin + i].index));
    kept[group] = greedy(columns, n, threshold, n);
  });

  std::vector<Candidate<T>> result;
  for (size_t group = 0; group < kept.size(); ++group)
    for (int32_t position : kept[group]) result.push_back(order[starts[group] + position]);
  if (kept.size() > 1) std::sort(result.begin(), result.end(), before<T>);
  for (size_t i = 0; i < result.size(); ++i) keep[i] = result[i].index;
  return int64_t(result.size());
}

}  // namespace

int64_t nms_cpu(const void* boxes, const void* scores, const int64_t* idxs, int64_t count,
                double iou_threshold, int64_t* keep, DType dtype, int threads) {
  int64_t kept = 0;
  with_wide(dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    kept = nms(static_cast<const T*>(boxes), static_cast<const T*>(scores), idxs, count,
               T(iou_threshold), keep, threads);
  });
  return kept;
}

}  // namespace mdssd
