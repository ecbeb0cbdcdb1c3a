// The kernel of soft_nms. mdssd/ops/_softening.py sorts the boxes by label before it and by their
// lowered scores after it.
//
// A block handles one label (soft_nms.h). The boxes of a label are chosen one after the other, and
// that takes a barrier for each; nothing waits for the device. Memory is proportional to the number
// of boxes.
#include <algorithm>
#include <cmath>
#include <limits>

#include "../ops.h"
#include "soft_nms.h"

namespace mdssd {
namespace {

constexpr int kThreads = 256;

// Returns the position after the last box of the label that begins at `begin`.
__device__ int64_t end_of(const int64_t* starts, int64_t begin, int64_t num_boxes) {
  int64_t low = begin + 1, high = num_boxes;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (starts[middle] == begin)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Blocks at positions where no label begins end at once.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    soft_nms_kernel(const T* __restrict__ boxes, const T* __restrict__ scores,
                    const int64_t* __restrict__ starts, int64_t num_boxes, Softening<T> by,
                    ScoreKey<T>* keys, T* softened) {
  const int64_t begin = blockIdx.x;
  if (starts && starts[begin] != begin) return;
  __shared__ Best<T> bests[2][kThreads / kWarpSize];
  const int n = int((starts ? end_of(starts, begin, num_boxes) : num_boxes) - begin);
  for (int i = int(threadIdx.x); i < n; i += kThreads) {
    keys[begin + i] = live_key(scores[begin + i], by.least);
    softened[begin + i] = T(-INFINITY);
  }
  soften<kThreads>(
      bests, keys + begin, n, by, NoEps{}, [&](int i) { return load_box(boxes, begin + i); },
      [](int i) { return unsigned(i); },
      [&](int, Ranked<T> ranked) { softened[begin + ranked.index] = score_of<T>(ranked.key); });
}

}  // namespace

void soft_nms_cuda(const void* boxes, const void* scores, const int64_t* starts, int64_t num_boxes,
                   const SoftNmsSettings& settings, void* keys, void* softened, DType dtype,
                   Stream stream) {
  constexpr int64_t most = std::numeric_limits<int>::max();
  if (num_boxes > most) throw std::length_error("soft_nms: more than 2^31 - 1 boxes");
  with_wide(dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    const Softening<T> by = {{T(settings.iou_threshold), T(1 / settings.sigma)},
                             settings.gaussian,
                             T(settings.score_threshold),
                             int(std::min(settings.max_detections.value_or(most), most))};
    launch("soft_nms", soft_nms_kernel<T>, starts ? grid_size(num_boxes, 1) : num_boxes > 0,
           kThreads, stream, static_cast<const T*>(boxes), static_cast<const T*>(scores), starts,
           num_boxes, by, static_cast<ScoreKey<T>*>(keys), static_cast<T*>(softened));
  });
}

}  // namespace mdssd
