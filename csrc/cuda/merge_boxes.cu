// The kernels of merge_boxes. mdssd/ops/_merging.py calls them, and sorts and gathers in between.
// Boxes are sorted by image, label and falling score, so "earlier" means a higher score.
//
//   parents_kernel  decides which boxes belong together, for greedy_nmm and nmm. Each box joins the
//                   first earlier box of its group that overlaps it. In nmm that may be any box, in
//                   greedy_nmm only one that NMS (nms.cu) keeps. No box waits for the decision about
//                   another, so each has a thread of its own.
//   members_kernel  computes the merged boxes. The members of a merged box have an order: the box
//                   starts as the first of them, and each later one enlarges it if the two overlap
//                   at that moment. A warp tests 32 members against the current box at once, takes
//                   the first that enlarges it, and tests those after it again. So the number of
//                   steps is the number of times that the box is enlarged, not that of its members.
//   fused_kernel    is the whole of wbf. Each box is compared with the fused boxes that exist so
//                   far and then changes one of them, so the boxes of an image and label come one
//                   after the other. A block handles such a group, and its threads divide the fused
//                   boxes among them. Each box takes two barriers.
//
// Memory is proportional to the number of boxes. Nothing waits for the device.
#include <limits>

#include "../ops.h"
#include "runtime.h"

namespace mdssd {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
constexpr int kCandidates = 32;  // between two looks whether a warp has found everything

// A thread handles one box. All lanes of a warp load the same candidate, which is one transaction.
// Positions are below 2^31.
template <class T, class Metric>
__global__ void __launch_bounds__(kThreads, 4)
    parents_kernel(const T* __restrict__ boxes, const int64_t* __restrict__ candidates,
                   const int64_t* __restrict__ begin, const int64_t* __restrict__ end,
                   int num_boxes, T threshold, Metric metric, int64_t* __restrict__ parents) {
  const int i = int(blockIdx.x) * kThreads + int(threadIdx.x), first = i - i % kWarpSize;
  if (first >= num_boxes) return;  // the whole warp
  const int last = num_boxes - first > kWarpSize ? first + kWarpSize - 1 : num_boxes - 1;
  const bool in_range = i < num_boxes;
  const Box<T> mine = load_box(boxes, in_range ? i : first);
  const T own_area = area(mine);
  const int from = in_range ? int(begin[i]) : 0, to = in_range ? int(end[i]) : 0;
  const int all = int(end[last]);
  int parent = i;
  bool open = from < to;
  for (int k = int(begin[first]); k < all;) {
    if (!__any_sync(kAllLanes, open)) break;
    for (const int stop = all - k > kCandidates ? k + kCandidates : all; k < stop; ++k) {
      const int candidate = candidates ? int(candidates[k]) : k;
      const Box<T> box = load_box(boxes, candidate);
      if (open && from <= k && k < to &&
          overlap(box, area(box), mine, own_area, threshold, metric)) {
        parent = candidate;
        open = false;
      }
    }
  }
  if (in_range) parents[i] = parent;
}

template <class T>
__device__ bool inside(Box<T> a, Box<T> b) {
  return b.x1 <= a.x1 && b.y1 <= a.y1 && a.x2 <= b.x2 && a.y2 <= b.y2;
}

template <class T>
__device__ Box<T> shuffled(Box<T> b, int lane) {
  return {__shfl_sync(kAllLanes, b.x1, lane), __shfl_sync(kAllLanes, b.y1, lane),
          __shfl_sync(kAllLanes, b.x2, lane), __shfl_sync(kAllLanes, b.y2, lane)};
}

// A warp looks at 32 entries of `members` and makes the merged boxes that begin there, one after
// the other.
template <class T, class Metric>
__global__ void __launch_bounds__(kThreads)
    members_kernel(const T* __restrict__ boxes, const int64_t* __restrict__ members,
                   const int64_t* __restrict__ end, int64_t num_boxes, T threshold, Metric metric,
                   T* __restrict__ merged) {
  const int lane = int(threadIdx.x) % kWarpSize;
  const int64_t entry = int64_t(blockIdx.x) * kThreads + threadIdx.x, base = entry - lane;
  const bool begins = entry < num_boxes && (entry == 0 || end[entry - 1] == entry);
  for (unsigned left = __ballot_sync(kAllLanes, begins); left != 0; left &= left - 1) {
    const int64_t begin = base + __ffs(int(left)) - 1, stop = end[begin];
    const int64_t first = members[begin];
    Box<T> box = load_box(boxes, first);
    for (int64_t from = begin + 1; from < stop; from += kWarpSize) {
      const bool in_range = from + lane < stop;
      const Box<T> member = load_box(boxes, in_range ? members[from + lane] : first);
      const T size = area(member);
      int next = 0;  // the first lane whose member has not had its turn
      while (true) {
        const bool grows = in_range && lane >= next && !inside(member, box) &&
                           overlap(box, area(box), member, size, threshold, metric);
        const unsigned lanes = __ballot_sync(kAllLanes, grows);
        if (lanes == 0) break;
        const int turn = __ffs(int(lanes)) - 1;
        box = around(box, shuffled(member, turn));
        next = turn + 1;
      }
    }
    if (lane == 0) store_four(merged, first, box.x1, box.y1, box.x2, box.y2);
  }
}

// The fused boxes of a group that begins at position p are entries p, p + 1, ... of the arrays.
template <class T>
struct Fused {
  T* boxes;
  WeightedSum<T>* sums;
  int64_t* firsts;  // the position of the first box

  Fused(Workspace& workspace, int64_t num_boxes) {
    boxes = workspace.take<T>(4 * num_boxes);
    sums = workspace.take<WeightedSum<T>>(num_boxes);
    firsts = workspace.take<int64_t>(num_boxes);
  }
};

constexpr int kNone = std::numeric_limits<int>::max();

template <class T>
struct Best {
  T overlap;
  int fused;  // its number in the group

  __device__ void take(Best other) {
    if (other.overlap > overlap || (other.overlap == overlap && other.fused < fused)) *this = other;
  }
};

// A block handles one group. Blocks at positions where no group begins end at once.
template <class T, class Metric>
__global__ void __launch_bounds__(kThreads)
    fused_kernel(const T* __restrict__ boxes, const T* __restrict__ scores,
                 const int64_t* __restrict__ starts, int64_t num_boxes, T threshold, Metric metric,
                 int64_t models, Fused<T> fused, T* __restrict__ fused_boxes,
                 T* __restrict__ fused_scores, bool* __restrict__ is_first) {
  const int64_t begin = blockIdx.x;
  if (starts[begin] != begin) return;
  __shared__ Best<T> found[kWarps];
  const int thread = int(threadIdx.x), lane = thread % kWarpSize, warp = thread / kWarpSize;
  int count = 0;
  int64_t i = begin;
  for (; i < num_boxes && starts[i] == begin; ++i) {
    const Box<T> box = load_box(boxes, i);
    const T size = area(box);
    Best<T> best = {threshold, kNone};
    for (int k = thread; k < count; k += kThreads) {
      const Box<T> other = load_box(fused.boxes, begin + k);
      const T value = iou(box, size, other, area(other), metric);
      if (value > threshold) best.take({value, k});
    }
    for (int step = kWarpSize / 2; step > 0; step /= 2)
      best.take({__shfl_xor_sync(kAllLanes, best.overlap, step),
                 __shfl_xor_sync(kAllLanes, best.fused, step)});
    if (lane == 0) found[warp] = best;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) best.take(found[w]);
    const bool starts_one = best.fused == kNone;
    if (thread == 0) {
      const int64_t own = begin + (starts_one ? count : best.fused);
      WeightedSum<T> sum;
      Box<T> mean = box;
      if (starts_one) {
        fused.firsts[own] = i;
      } else {
        sum = fused.sums[own];
        mean = load_box(fused.boxes, own);
      }
      sum.add(box, scores[i]);
      mean = sum.mean(mean);
      fused.sums[own] = sum;
      store_four(fused.boxes, own, mean.x1, mean.y1, mean.x2, mean.y2);
      is_first[i] = starts_one;
    }
    count += starts_one;
    __syncthreads();  // before the next box is compared, and `found` written
  }
  for (int k = thread; k < count; k += kThreads) {
    const int64_t at = fused.firsts[begin + k];
    const Box<T> mean = load_box(fused.boxes, begin + k);
    store_four(fused_boxes, at, mean.x1, mean.y1, mean.x2, mean.y2);
    fused_scores[at] = fused.sums[begin + k].mean_score(models);
  }
}

void check_count(int64_t num_boxes) {
  if (num_boxes > std::numeric_limits<int>::max())
    throw std::length_error("merge_boxes: more than 2^31 - 1 boxes");
}

}  // namespace

void merge_parents_cuda(const void* boxes, const int64_t* candidates, const int64_t* begin,
                        const int64_t* end, int64_t num_boxes, const MergeBoxesSettings& settings,
                        int64_t* parents, DType dtype, Stream stream) {
  check_count(num_boxes);
  with_wide(dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    with_iou_or_ios<T>(settings.ios, [&](auto metric) {
      launch("merge_boxes", parents_kernel<T, decltype(metric)>, grid_size(num_boxes, kThreads),
             kThreads, stream, static_cast<const T*>(boxes), candidates, begin, end,
             int(num_boxes), T(settings.threshold), metric, parents);
    });
  });
}

void merge_members_cuda(const void* boxes, const int64_t* members, const int64_t* end,
                        int64_t num_boxes, const MergeBoxesSettings& settings, void* merged,
                        DType dtype, Stream stream) {
  check_count(num_boxes);
  with_wide(dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    with_iou_or_ios<T>(settings.ios, [&](auto metric) {
      launch("merge_boxes", members_kernel<T, decltype(metric)>, grid_size(num_boxes, kThreads),
             kThreads, stream, static_cast<const T*>(boxes), members, end, num_boxes,
             T(settings.threshold), metric, static_cast<T*>(merged));
    });
  });
}

int64_t merge_fused_workspace(int64_t num_boxes, DType dtype) {
  Workspace measure(nullptr);
  with_wide(dtype, [&](auto storage) {
    const Fused<typename decltype(storage)::type> fused(measure, num_boxes);
  });
  return measure.bytes();
}

void merge_fused_cuda(const void* boxes, const void* scores, const int64_t* starts,
                      int64_t num_boxes, const MergeBoxesSettings& settings, void* fused,
                      void* fused_scores, bool* is_first, void* workspace, DType dtype,
                      Stream stream) {
  check_count(num_boxes);
  with_wide(dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    Workspace memory(workspace);
    const Fused<T> arrays(memory, num_boxes);
    with_iou_or_ios<T>(settings.ios, [&](auto metric) {
      launch("merge_boxes", fused_kernel<T, decltype(metric)>, grid_size(num_boxes, 1), kThreads,
             stream, static_cast<const T*>(boxes), static_cast<const T*>(scores), starts,
             num_boxes, T(settings.threshold), metric, settings.models, arrays,
             static_cast<T*>(fused), static_cast<T*>(fused_scores), is_first);
    });
  });
}

}  // namespace mdssd
