// What both ways of detection_output on a GPU share: scores above the threshold, keys that order
// them, sorting, decoding and greedy suppression.
#pragma once

#include "../ops.h"
#include "rows.h"
#include "runtime.h"

namespace mdssd {

// The way for limits above those of detection_output.cu and for lists of candidates of all classes.
int64_t detection_output_wide_workspace(int64_t images, int64_t num_priors, int64_t classes,
                                        const DetectionOutputSettings& settings);
void detection_output_wide(const void* loc, const void* logits, const void* priors, int64_t images,
                           int64_t num_priors, int64_t classes,
                           const DetectionOutputSettings& settings, void* boxes, void* scores,
                           int64_t* labels, int64_t* count, void* workspace, DType dtype,
                           Stream stream);

namespace {

using Key = unsigned long long;

// A margin for rounding when scores are compared by their logarithms or logits.
constexpr float kLogMargin = 1e-3f;

// How to pack a candidate. Its score is above the threshold and at most 1.
struct Packing {
  bool softmax, sigmoid;  // if neither, the logits are scores and all "log" values plain scores
  float threshold;
  float log_threshold;
  unsigned lowest;  // bits of the lowest score above the threshold
  int index_bits;   // bits of an index: of a prior, or of a prior and a class
  int bits;         // bits of a key

  MDSSD_INLINE float limit(float score) const {
    if (softmax) return log(score) - kLogMargin;
    const float below = score * (1 - 1e-6f);
    return sigmoid ? log(below) - log(1 - below) - kLogMargin : score;
  }
  __device__ Key pack(float score, unsigned index) const {
    return Key(__float_as_uint(score) - lowest) << index_bits | (index_mask() - index);
  }
  __device__ unsigned score_bits(Key key) const { return unsigned(key >> index_bits) + lowest; }
  __device__ unsigned index(Key key) const { return unsigned(index_mask() - (key & index_mask())); }
  __device__ Key index_mask() const { return (Key(1) << index_bits) - 1; }
};

struct Shape {
  int64_t images, num_priors, classes;  // classes: columns of the logits
  bool background;                      // column 0 is not a class that can be detected

  MDSSD_INLINE int64_t foreground() const { return classes - background; }
};

// Calls visit(lanes, list, prior, score) for every score of a row that is above the threshold and,
// apart from rounding, whose "log" value is above log_limit(list). The list is that of the image and
// class, of foreground() per image. `lanes` are the lanes of the warp that call `visit` at the same
// time. All lanes of a warp must call this function.
template <class S, int kLanes, class LogLimit, class Visit>
__device__ void for_each_candidate(const Row<S, kLanes>& row, const Shape& sizes,
                                   const Packing& packing, const LogLimit& log_limit,
                                   const Visit& visit) {
  const int classes = int(sizes.classes), first_class = sizes.background;
  // A score is at most exp(logit - background logit), and comparing this bound with the threshold
  // needs no exponential. The exact test below rejects rows that pass by mistake.
  const bool bounded = packing.softmax && sizes.background;
  const float background = bounded ? row.value(0) : 0, foreground = row.max_from(first_class);
  const bool any = packing.softmax && !bounded;  // without a background there is no such bound
  const bool active =
      row.valid() && (any || !(foreground - background < packing.log_threshold));
  if (!__any_sync(kAllLanes, active)) return;
  const float top = bounded && background > foreground ? background : foreground;
  float sum = 1, below = 0;
  if (packing.softmax) {
    sum = row.sum_of_exp(top);
    const float log_sum = top + log(sum);
    below = log_sum - fabs(log_sum) * 3e-7f;  // a lower bound in spite of rounding
  }
  // Python rejects 2^32 rows or more, so 32 bits suffice. A 64-bit division is ten times slower.
  const unsigned image = unsigned(row.index()) / unsigned(sizes.num_priors);
  const unsigned prior = unsigned(row.index()) - image * unsigned(sizes.num_priors);
  // Column c has list first_list + c.
  const int64_t first_list = int64_t(image) * sizes.foreground() - first_class;
  // Even if all classes pass the threshold, only a few per cent reach their limit. A first loop
  // marks these with a bit each; the second loop runs once per bit and computes the exact score,
  // with an exponential and a division.
  for (int start = 0; start < classes; start += kWarpSize * kLanes) {  // uniform over the warp
    const int first = start + row.lane();
    unsigned near = 0;
    const int own = (classes - first + kLanes - 1) / kLanes;
    const int turns = own < kWarpSize ? own : kWarpSize;
    for (int k = first < first_class; k < turns; ++k) {
      const int c = first + k * kLanes;
      near |= unsigned(!(row.value(c) - below < log_limit(first_list + c))) << k;
    }
    if (!active) near = 0;
    while (__any_sync(kAllLanes, near != 0)) {
      const int c = near ? first + (__ffs(int(near)) - 1) * kLanes : 0;
      const float x = row.value(c);
      const float score = packing.softmax   ? exp(x - top) / sum
                          : packing.sigmoid ? 1 / (1 + exp(-x))
                                            : x;
      const bool passes = near != 0 && score > packing.threshold && score <= 1;
      const unsigned lanes = __ballot_sync(kAllLanes, passes);
      if (passes) visit(lanes, first_list + c, prior, score);
      near &= near - 1;
    }
  }
}

// Sorts n keys in falling order by a bitonic network. There must be room for a power of two of keys.
// All threads of the block call it.
__device__ void sort_falling(Key* keys, int n) {
  int padded = 2;
  while (padded < n) padded *= 2;
  for (int i = n + int(threadIdx.x); i < padded; i += int(blockDim.x)) keys[i] = 0;
  for (int size = 2; size <= padded; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int pair = int(threadIdx.x); pair < padded / 2; pair += int(blockDim.x)) {
        const int low = 2 * pair - (pair & (step - 1)), high = low + step;
        const Key a = keys[low], b = keys[high];
        if ((a < b) == ((low & size) == 0)) {
          keys[low] = b;
          keys[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

template <class S>
__device__ Box<float> decode_prior(const S* loc, const float* priors, int64_t row, int64_t prior,
                                   const Decoding<float>& by) {
  const Box<float> o = load_box(loc, row), p = load_box(priors, prior);
  return decode(Offsets<float>{o.x1, o.y1, o.x2, o.y2}, CentreBox<float>{p.x1, p.y1, p.x2, p.y2},
                Exp{}, by);
}

template <class Metric, bool kKeepEmpty>
struct Suppression {
  float threshold;
  Metric metric;

  __device__ bool operator()(Box<float> a, Box<float> b) const {
    const float area_a = area(a), area_b = area(b);
    return overlap(a, area_a, b, area_b, threshold, metric) ||
           (!kKeepEmpty && area_a == 0 && area_b == 0);
  }
};

// Calls `body` with the Suppression for these settings.
template <class Body>
void with_suppression(const DetectionOutputSettings& settings, Body body) {
  const float threshold = float(settings.nms_threshold);
  with_metric_of_kernel<float>(settings, [&](auto metric) {
    if (settings.keep_empty)
      body(Suppression<decltype(metric), true>{threshold, metric});
    else
      body(Suppression<decltype(metric), false>{threshold, metric});
  });
}

// Greedy suppression within a tile; returns the kept boxes. `before` are the earlier boxes that
// suppress this lane's box. In each round, a box that no undecided box suppresses is kept, and the
// boxes that it suppresses are removed. The first undecided box is always kept, so the loop ends;
// usually most boxes are decided in the first round.
__device__ __forceinline__ unsigned greedy(unsigned undecided, unsigned before) {
  const int lane = threadIdx.x % kWarpSize;
  unsigned kept = 0;
  while (undecided != 0) {
    const bool open = undecided >> lane & 1u, keep = open && !(before & undecided);
    kept |= __ballot_sync(kAllLanes, keep);
    undecided = __ballot_sync(kAllLanes, open && !keep && !(before & kept));
  }
  return kept;
}

// Runs greedy suppression on n boxes of falling score, of which a bit of `removed` excludes some, in
// tiles of 32: the warps compare all pairs of the tile in parallel, every warp finds the kept boxes of
// the tile itself, and then the kept boxes are compared with all later boxes. Calls keep(place, i)
// for each of the first `most` kept boxes. Returns how many are kept, or a number above `most`.
// `before` is shared memory. All threads of the block call it.
template <int kThreads, class Suppresses, class Keep>
__device__ __forceinline__ int suppress_in_tiles(const Box<float>* boxes, unsigned* removed,
                                                 unsigned (&before)[kWarpSize], int n, int most,
                                                 const Suppresses& suppresses, const Keep& keep) {
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
  int total = 0;
  for (int first = 0; first < n && total < most; first += kWarpSize) {
    for (int j = warp; j < kWarpSize && first + j < n; j += kThreads / kWarpSize) {
      const bool over = lane < j && suppresses(boxes[first + lane], boxes[first + j]);
      const unsigned word = __ballot_sync(kAllLanes, over);
      if (lane == 0) before[j] = word;
    }
    __syncthreads();
    unsigned alive = ~removed[first / kWarpSize];
    if (n - first < kWarpSize) alive &= (1u << (n - first)) - 1;
    alive = greedy(alive, first + lane < n ? before[lane] : 0);
    const int place = total + __popc(alive & ((1u << lane) - 1));
    if (warp == 0 && (alive >> lane & 1u) && place < most) keep(place, first + lane);
    total += __popc(alive);
    // A warp handles 32 later boxes, which are one word of `removed`, at a time.
    for (int base = first + (1 + warp) * kWarpSize; base < n; base += kThreads) {
      const int later = base + lane;
      bool over = false;
      if (later < n) {
        const Box<float> b = boxes[later];
        for (unsigned left = alive; left && !over; left &= left - 1) {
          over = suppresses(boxes[first + __ffs(int(left)) - 1], b);
        }
      }
      const unsigned word = __ballot_sync(kAllLanes, over);
      if (lane == 0) removed[base / kWarpSize] |= word;
    }
    __syncthreads();
  }
  return total;
}

inline int bit_length(uint64_t x) {
  int bits = 0;
  for (; x; x >>= 1) ++bits;
  return bits;
}

// `indices` is the number of different indices.
inline Packing make_packing(const DetectionOutputSettings& settings, uint64_t indices) {
  const float threshold = float(settings.score_threshold);
  const unsigned one = bit_cast<unsigned>(1.0f), at = bit_cast<unsigned>(threshold);
  const int score_bits = bit_length(one - at), index_bits = bit_length(indices - 1);
  Packing packing = {settings.softmax, settings.sigmoid, threshold,
                     0,                at + 1,           index_bits,
                     score_bits + index_bits};
  packing.log_threshold = packing.limit(threshold);
  return packing;
}

}  // namespace
}  // namespace mdssd
