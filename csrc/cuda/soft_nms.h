// Soft-NMS by a block, for soft_nms and detection_output.
//
// In each step the block chooses the box of the highest score, and every thread lowers the scores of
// its own boxes by their IoUs with that box and finds the best of them, for the next step. The
// warps leave their best ones in shared memory, twice so that a step needs a single barrier, and
// every thread reads all of them. Up to kThreads * kHeld boxes stay in registers.
#pragma once

#include "../soft_nms_math.h"
#include "runtime.h"

namespace mdssd {
namespace {  // simt.h requires internal linkage for __shared__ variables

// The overlap of two boxes, chosen at run time so that a kernel is compiled once for all.
template <class T>
struct AnyMetric {
  bool ios;
  T eps;
};
template <class T>
MDSSD_INLINE T divisor(T area_a, T area_b, T intersection, AnyMetric<T> by) {
  if (by.ios) return mdssd::divisor(area_a, area_b, intersection, Smaller<T>{by.eps});
  return mdssd::divisor(area_a, area_b, intersection, by.eps);
}

template <class T>
struct Softening {
  Decay<T> decay;
  bool gaussian;
  T least;   // a box is chosen as long as its score is not below this
  int most;  // it ends if this many boxes have scores above all that are left
};

// A box by its score and, for equal scores, by its index, of which the lower ranks first.
template <class T>
struct Ranked {
  ScoreKey<T> key;
  unsigned index;

  __device__ bool before(Ranked other) const {
    return key > other.key || (key == other.key && index < other.index);
  }
};

template <class T>
struct Best {
  Ranked<T> ranked;
  Box<T> box;
};

constexpr int kHeld = 4;  // boxes of a thread that stay in registers

// Calls chosen(count, ranked) in thread 0 for each chosen box; `count` is that of those before it.
// for_each_own(visit) must call visit(box, area, key, index) for all boxes of this thread, whose
// indices differ, and keep the changes of `key`. All threads of the block call it.
template <int kThreads, class T, class Metric, class ForEachOwn, class Chosen>
__device__ __forceinline__ void soften_in_steps(Best<T> (&bests)[2][kThreads / kWarpSize],
                                                const Softening<T>& by, Metric metric,
                                                const ForEachOwn& for_each_own,
                                                const Chosen& chosen) {
  const int lane = int(threadIdx.x) % kWarpSize, warp = int(threadIdx.x) / kWarpSize;
  const T from = by.decay.from(by.gaussian);
  Best<T> last = {{kNoKey, 0}, {0, 0, 0, 0}};  // the box chosen in the step before
  ScoreKey<T> lowest = 0;                      // of the `most` boxes chosen first
  for (int step = 0;; ++step) {
    const T size = area(last.box);
    Best<T> own = {{kNoKey, 0xffffffffu}, {0, 0, 0, 0}};
    for_each_own([&](Box<T> box, T box_area, ScoreKey<T>& key, unsigned index) {
      if (key == ScoreKey<T>(kNoKey)) return;
      if (step > 0) {
        const T overlap = iou(last.box, size, box, box_area, metric);
        if (index == last.ranked.index)
          key = kNoKey;
        else if (overlap > from)
          key = live_key(score_of<T>(key) * by.decay.factor(by.gaussian, overlap), by.least);
      }
      const Ranked<T> ranked = {key, index};
      if (ranked.before(own.ranked)) own = {ranked, box};
    });
    Ranked<T> best = own.ranked;
    for (int bits = kWarpSize / 2; bits > 0; bits /= 2) {
      const Ranked<T> other = {__shfl_xor_sync(kAllLanes, best.key, bits),
                               __shfl_xor_sync(kAllLanes, best.index, bits)};
      if (other.before(best)) best = other;
    }
    Best<T>* const found = bests[step % 2];
    const bool none = best.key == ScoreKey<T>(kNoKey);
    if (none ? lane == 0 : own.ranked.index == best.index && own.ranked.key == best.key)
      found[warp] = own;
    __syncthreads();
    int winner = 0;
    Ranked<T> top = found[0].ranked;
    for (int w = 1; w < kThreads / kWarpSize; ++w) {
      const Ranked<T> other = found[w].ranked;
      if (!other.before(top)) continue;
      top = other;
      winner = w;
    }
    if (top.key == ScoreKey<T>(kNoKey) || (step >= by.most && top.key < lowest)) return;
    if (step + 1 == by.most) lowest = top.key;
    if (threadIdx.x == 0) chosen(step, top);
    last = {top, found[winner].box};
  }
}

// Runs soft-NMS on n boxes: box_at(i) and index_at(i) return the box and the index of number i, and
// keys[i] is its key. `keys` is overwritten.
template <int kThreads, class T, class Metric, class BoxAt, class IndexAt, class Chosen>
__device__ __forceinline__ void soften(Best<T> (&bests)[2][kThreads / kWarpSize], ScoreKey<T>* keys,
                                       int n, const Softening<T>& by, Metric metric,
                                       const BoxAt& box_at, const IndexAt& index_at,
                                       const Chosen& chosen) {
  const int thread = int(threadIdx.x);
  if (n <= kThreads * kHeld) {
    Box<T> boxes[kHeld];
    T areas[kHeld];
    ScoreKey<T> held[kHeld];
    unsigned indices[kHeld];
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const int i = thread + h * kThreads;
      boxes[h] = i < n ? box_at(i) : Box<T>{0, 0, 0, 0};
      areas[h] = area(boxes[h]);
      held[h] = i < n ? keys[i] : ScoreKey<T>(kNoKey);
      indices[h] = i < n ? index_at(i) : 0;
    }
    soften_in_steps<kThreads>(
        bests, by, metric,
        [&](const auto& visit) {
#pragma unroll
          for (int h = 0; h < kHeld; ++h) visit(boxes[h], areas[h], held[h], indices[h]);
        },
        chosen);
  } else {
    soften_in_steps<kThreads>(
        bests, by, metric,
        [&](const auto& visit) {
          for (int i = thread; i < n; i += kThreads) {
            ScoreKey<T> key = keys[i];
            if (key == ScoreKey<T>(kNoKey)) continue;
            const Box<T> box = box_at(i);
            visit(box, area(box), key, index_at(i));
            keys[i] = key;
          }
        },
        chosen);
  }
}

}  // namespace
}  // namespace mdssd
