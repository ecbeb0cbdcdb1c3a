// match_priors, encode_targets and ignore_priors.
//
// match_kernel: each thread owns one prior of one image. The block loads the image's ground truths
// into shared memory, 128 at a time, and each thread compares them with its prior and keeps the
// best one in registers. There is no matrix of priors x ground truths in memory.
//
// The best prior of each ground truth is a maximum over all threads: over a warp by one
// instruction, over the block in shared memory, and over the grid by one atomicMax per ground truth
// and block, on a 64-bit number that packs the IoU and the prior. The order of the blocks cannot
// change a maximum, so the result is deterministic. These priors are known only after all blocks
// have finished, so force_kernel, with one block per image, writes them afterwards. With top_k,
// claim_kernel first finds the others: a block has one ground truth and finds one prior after the
// other. With Force::kLowQuality, match_kernel runs a second time instead, now that the highest
// rank of each ground truth is known.
//
// Below, a rank (match_math.h) is the IoU, or the closeness of the corners: higher is better, and 0
// is no overlap.
//
// Most pairs do not overlap. Priors are sorted by rows and columns of their feature map, so the 32
// priors of a warp lie close together. For 32 ground truths at a time, each lane tests one of them
// against the common bounds of the warp's priors, and all lanes compute IoUs only for those that
// pass. A skipped pair has an IoU of 0, which cannot change the result. With Nwd, all pass.
//
// Memory: 8 bytes per ground truth and, with top_k, per prior that it takes. With 50 ground truths per image, the kernels are expected to be
// bound by instructions (a prediction, benchmarks/NOTES.md, "first CUDA kernels").
#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../match_math.h"
#include "../ops.h"
#include "runtime.h"

namespace mdssd {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
constexpr int kTile = 128;    // ground truths in shared memory at a time
constexpr int kImages = 512;  // images per launch; their offsets must fit into 4 KB of parameters

// A group of images and the index of each image's first ground truth. The host passes it as a
// kernel parameter, which the launch copies: this needs no transfer, does not wait for the device,
// and works in a CUDA graph.
struct Images {
  int64_t first;
  int begin[kImages + 1];
};

// A prior of a ground truth. The upper half has the bits of the rank, which order like the rank
// itself because it is not negative. The lower half has the complement of the prior, so that the
// lower prior wins if ranks are equal. 0 means that no prior overlaps.
using Packed = unsigned long long;

__device__ __forceinline__ Packed pack(unsigned rank_bits, unsigned prior) {
  return Packed(rank_bits) << 32 | ~prior;
}

__device__ __forceinline__ unsigned prior_of(Packed best) {
  return best == 0 ? 0u : ~unsigned(best);  // a ground truth without overlap takes prior 0
}

// Returns the largest value of the warp to every lane.
__device__ __forceinline__ int warp_largest(int value) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kAllLanes, value);
#else
  return warp_max(value);
#endif
}

// Maps the bits of floats, without NaN, to integers that order like the floats: if the sign is set,
// the other bits are inverted.
__device__ __forceinline__ int ordered(int bits) { return bits ^ (bits >> 31 & 0x7fffffff); }
__device__ __forceinline__ float warp_largest(float value) {
  return bit_cast<float>(ordered(warp_largest(ordered(bit_cast<int>(value)))));
}

constexpr float kInf = std::numeric_limits<float>::infinity();

// Returns a box that overlaps no other box and does not widen bounds.
__device__ __forceinline__ Box<float> nowhere() {
  return {kInf, kInf, -kInf, -kInf};
}

__device__ __forceinline__ CentreBox<float> load_prior(const float* priors, int64_t i) {
  const Box<float> p = load_box(priors, i);
  return {p.x1, p.y1, p.x2, p.y2};
}

__device__ __forceinline__ Box<float> prior_corners(const float* priors, bool corners, int64_t i) {
  return corners ? load_box(priors, i) : to_corners(load_prior(priors, i));
}

// Whether the rank of a box with some prior within the bounds may be above 0.
template <class Metric>
__device__ __forceinline__ bool may_match(Box<float> b, Box<float> bounds, Metric) {
  return b.x1 < bounds.x2 && b.x2 > bounds.x1 && b.y1 < bounds.y2 && b.y2 > bounds.y1;
}
__device__ __forceinline__ bool may_match(Box<float>, Box<float>, Nwd<float>) { return true; }

// The two operators differ in what they write for a match. `truth` is an index into the batch's
// ground truths, -1 for background or -2 for ignored. `begin` is the first index of the image.
struct WriteMatch {
  int64_t* index;
  float* iou;

  __device__ void best(int64_t row, int64_t, int truth, int begin, float overlap) const {
    index[row] = truth < 0 ? truth : truth - begin;
    iou[row] = overlap;
  }
  __device__ void forced(int64_t row, int64_t, int truth, int begin) const {
    index[row] = truth - begin;
  }
};

template <class S>
struct WriteTargets {
  const S* gt;
  const int64_t* gt_labels;
  const float* priors;
  float v0, v1;
  S* loc;
  int64_t* labels;

  __device__ void best(int64_t row, int64_t prior, int truth, int begin, float) const {
    if (truth >= 0) return forced(row, prior, truth, begin);
    store_four(loc, row, 0, 0, 0, 0);
    labels[row] = truth + 1;
  }
  __device__ void forced(int64_t row, int64_t prior, int truth, int) const {
    const Offsets<float> o = encode(load_box(gt, truth), load_prior(priors, prior), v0, v1, Log{});
    store_four(loc, row, o.x, o.y, o.w, o.h);
    labels[row] = gt_labels[truth];
  }
};

// A block handles kThreads priors of the image blockIdx.y, one per thread. With kRestore, the best
// priors are known, and each prior with the highest rank of some ground truth takes its own best
// one. A ground truth whose highest rank is 0 has it with every prior.
template <class S, class Write, class Metric, bool kRestore>
__global__ void __launch_bounds__(kThreads)
    match_kernel(const Images images, const S* __restrict__ gt, const float* __restrict__ priors,
                 bool corners, unsigned num_priors, MatchLimits<float> limits, Metric metric,
                 Packed* best_priors, const Write write) {
  __shared__ Four<float> truths[kTile];
  __shared__ float areas[kTile];
  // Per warp, the best prior of each ground truth. With kRestore the first row has that of all.
  __shared__ Packed tops[kRestore ? 1 : kWarps][kTile];
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
  const unsigned prior = blockIdx.x * kThreads + thread;

  Box<float> mine = nowhere();
  if (prior < num_priors) mine = prior_corners(priors, corners, prior);
  const float own_area = area(mine);
  if (own_area != own_area) mine = nowhere();  // a NaN has ranks of 0 and must not reach the bounds
  const Box<float> bounds = {-warp_largest(-mine.x1), -warp_largest(-mine.y1),
                             warp_largest(mine.x2), warp_largest(mine.y2)};

  const int begin = images.begin[blockIdx.y], end = images.begin[blockIdx.y + 1];
  float best = 0;
  int best_truth = begin;
  bool restored = false;
  for (int first = begin; first < end; first += kTile) {
    const int n = min(kTile, end - first);
    if (thread < n) {
      const Box<float> b = load_box(gt, first + thread);
      truths[thread] = {b.x1, b.y1, b.x2, b.y2};
      areas[thread] = area(b);
      if (kRestore) tops[0][thread] = best_priors[first + thread];
    }
    __syncthreads();  // the new tile is loaded, and `tops` of the previous one has been read
    for (int start = 0; start < n; start += kWarpSize) {
      bool meets = false;
      if (start + lane < n) {
        const Box<float> b = load_box(&truths[0].x, start + lane);
        meets = may_match(b, bounds, metric);
      }
      if (kRestore && __any_sync(kAllLanes, start + lane < n && tops[0][start + lane] == 0))
        restored = true;
      // Lane k keeps the warp's best prior of ground truth start + k.
      int top_bits = 0, top_lane = 0;
      for (unsigned hits = __ballot_sync(kAllLanes, meets); hits != 0; hits &= hits - 1) {
        const int k = __ffs(int(hits)) - 1;
        const Box<float> truth = load_box(&truths[0].x, start + k);
        const float value = match_rank(truth, areas[start + k], mine, own_area, metric);
        if (value > best) {  // on a tie, the lower index stays
          best = value;
          best_truth = first + start + k;
        }
        const int bits = bit_cast<int>(value);
        if (kRestore) {
          restored |= bits > 0 && unsigned(bits) == unsigned(tops[0][start + k] >> 32);
          continue;
        }
        const int warp_bits = warp_largest(bits);
        const unsigned winners = __ballot_sync(kAllLanes, bits == warp_bits);
        if (lane == k) {
          top_bits = warp_bits;
          top_lane = __ffs(int(winners)) - 1;
        }
      }
      if (!kRestore && start + lane < n)
        tops[warp][start + lane] =
            top_bits == 0 ? 0 : pack(top_bits, prior - lane + top_lane);
    }
    __syncthreads();
    if (!kRestore && thread < n) {
      Packed top = 0;
      for (int w = 0; w < kWarps; ++w) top = max(top, tops[w][thread]);
      // This read only saves atomics. It may return an old value, which can only be too low.
      Packed* const known = &best_priors[first + thread];
      if (top > *static_cast<volatile Packed*>(known)) atomicMax(known, top);
    }
  }
  if (prior >= num_priors) return;
  const int64_t row = (images.first + blockIdx.y) * int64_t(num_priors) + prior;
  if (kRestore) {
    if (restored) write.forced(row, prior, best_truth, begin);
    return;
  }
  const int other = begin < end && best >= limits.low ? -2 : -1;
  const int truth = begin < end && best >= limits.high ? best_truth : other;
  write.best(row, prior, truth, begin, overlap_of(best, metric, Exp{}));
}

// A block handles one ground truth of the batch and finds the top_k priors that it takes, the best
// first. Each round finds the largest number below that of the round before.
template <class Metric>
__global__ void __launch_bounds__(kThreads)
    claim_kernel(const float* __restrict__ gt, const float* __restrict__ priors, bool corners,
                 int64_t num_priors, Metric metric, int64_t top_k,
                 const Packed* __restrict__ best_priors, Packed* __restrict__ claims) {
  __shared__ Packed tops[kWarps];
  const int thread = threadIdx.x;
  const Box<float> truth = load_box(gt, blockIdx.x);
  const float truth_area = area(truth);
  Packed last = best_priors[blockIdx.x];
  for (int64_t rank = 0; rank < top_k; ++rank) {
    if (thread == 0) claims[blockIdx.x * top_k + rank] = last;
    if (last == 0) continue;  // no other prior overlaps
    Packed next = 0;
#pragma unroll 1
    for (int64_t i = thread; i < num_priors; i += kThreads) {
      const Box<float> b = prior_corners(priors, corners, i);
      const float value = match_rank(truth, truth_area, b, area(b), metric);
      const Packed packed = value > 0 ? pack(bit_cast<unsigned>(value), unsigned(i)) : 0;
      if (packed < last && packed > next) next = packed;
    }
    next = warp_max(next);
    if (thread % kWarpSize == 0) tops[thread / kWarpSize] = next;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) next = max(next, tops[w]);
    __syncthreads();
    last = next;
  }
}


// A block handles one image and assigns to each ground truth the top_k priors that it takes. If
// several ground truths take a prior, the one that has it first in its order gets it, and the last
// of several such. So claims are written from the last rank to the first. In each round, a thread
// has one claim and leaves the prior to a later one of the same round; later rounds overwrite
// earlier ones.
template <class Write>
__global__ void __launch_bounds__(kThreads)
    force_kernel(const Images images, const Packed* __restrict__ claims, int64_t top_k,
                 int64_t num_priors, const Write write) {
  constexpr unsigned kNone = 0xffffffff;
  __shared__ unsigned priors[kThreads];
  const int thread = threadIdx.x;
  const int begin = images.begin[blockIdx.x], truths = images.begin[blockIdx.x + 1] - begin;
  const int64_t all = truths * top_k;
  for (int64_t first = 0; first < all; first += kThreads) {
    const int n = int(min(int64_t(kThreads), all - first));
    unsigned prior = kNone;
    int truth = begin;
    if (thread < n) {
      const int64_t rank = top_k - 1 - (first + thread) / truths;
      truth += int((first + thread) % truths);
      const Packed claim = claims[truth * top_k + rank];
      if (rank == 0 || claim != 0) prior = prior_of(claim);
    }
    priors[thread] = prior;
    __syncthreads();
    bool last = prior != kNone;
    for (int k = 0; k < n; ++k)
      if (k > thread && priors[k] == prior) last = false;
    if (last)
      write.forced((images.first + blockIdx.x) * num_priors + prior, prior, truth, begin);
    __syncthreads();
  }
}

// A thread handles one prior of the image blockIdx.y.
__global__ void __launch_bounds__(kThreads)
    ignore_kernel(const Images images, const int64_t* __restrict__ marks,
                  const float* __restrict__ ignored, const float* __restrict__ priors, bool corners,
                  int64_t num_priors, float threshold, int64_t background,
                  int64_t* __restrict__ result) {
  const int64_t prior = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (prior >= num_priors) return;
  const Box<float> mine = prior_corners(priors, corners, prior);
  const float own_area = area(mine);
  bool covered = false;
#pragma unroll 1
  for (int k = images.begin[blockIdx.y]; k < images.begin[blockIdx.y + 1] && !covered; ++k) {
    const Box<float> box = load_box(ignored, k);
    const float intersection = areas(box, 0.0f, mine, 0.0f, NoEps{}).intersection;
    covered = intersection > 0 && intersection / own_area >= threshold && !has_nan(box);
  }
  const int64_t row = (images.first + blockIdx.y) * num_priors + prior;
  const int64_t mark = marks[row];
  result[row] = covered && mark == background ? background - 1 : mark;
}

struct MatchMemory {
  Packed* best_priors;
  Packed* claims;  // of top_k priors; with one, it is the best
};
MatchMemory memory_of(Workspace& workspace, int64_t num_truths, int64_t top_k) {
  Packed* const best_priors = workspace.take<Packed>(num_truths);
  return {best_priors, top_k > 1 ? workspace.take<Packed>(num_truths * top_k) : best_priors};
}

constexpr int64_t kMost = std::numeric_limits<int>::max() - kThreads;

void check_sizes(const char* op, int64_t num_boxes, int64_t num_priors) {
  if (num_boxes > kMost || num_priors > kMost)
    throw std::length_error(std::string(op) + ": more than 2^31 - 257 boxes or priors");
}

// Calls body(group, size) for groups of the batch's images.
template <class Body>
void for_groups(const int64_t* offsets, int64_t images, const Body& body) {
  for (int64_t first = 0; first < images; first += kImages) {
    Images group = {};
    group.first = first;
    const auto size = unsigned(images - first < kImages ? images - first : kImages);
    for (unsigned i = 0; i <= size; ++i) group.begin[i] = int(offsets[first + i]);
    body(group, size);
  }
}

// Runs match_kernel on a group, or restores priors. Not every S has every metric: see match.
template <class S, class Write, class Metric, bool kRestore = false>
void match_group(const char* op, const Images& group, unsigned size, const void* gt,
                 const void* priors, int64_t num_priors, const MatchPriorsSettings& by,
                 Metric metric, Packed* best_priors, const Write& write, Stream stream) {
  launch(op, match_kernel<S, Write, Metric, kRestore>,
         dim3(grid_size(num_priors, kThreads), size), kThreads, stream, group,
         static_cast<const S*>(gt), static_cast<const float*>(priors), by.corners, num_priors,
         match_limits<float>(by), metric, best_priors, write);
}

// Calls body(metric) with the IoU, whose epsilon may be 0, or Nwd.
template <class Body>
void with_nwd(const MatchPriorsSettings& by, Body body) {
  if (by.nwd_constant)
    body(Nwd<float>{float(*by.nwd_constant)});
  else
    body(float(by.iou_eps));
}

// With Nwd, top_k and kLowQuality, S is float: Python widens the boxes. This saves kernels.
template <class S, class Write>
void match(const char* op, const void* gt, const int64_t* offsets, int64_t images,
           const void* priors, int64_t num_priors, const MatchPriorsSettings& by, void* workspace,
           const Write& write, Stream stream) {
  if (images == 0 || num_priors == 0) return;
  const int64_t num_truths = offsets[images];
  check_sizes(op, num_truths, num_priors);
  const int64_t top_k = std::min(by.top_k, num_priors);
  const Force force = Force(by.force);
  Workspace workspace_left(workspace);
  const MatchMemory memory = memory_of(workspace_left, num_truths, top_k);
  Packed* const best_priors = memory.best_priors;
  const auto group_with = [&](const Images& group, unsigned size, auto metric) {
    match_group<S>(op, group, size, gt, priors, num_priors, by, metric, best_priors, write, stream);
  };
  zero(op, best_priors, num_truths * int64_t(sizeof(Packed)), stream);
  for_groups(offsets, images, [&](const Images& group, unsigned size) {
    if (!by.nwd_constant)
      with_eps<float>(by.iou_eps, [&](auto eps) { group_with(group, size, eps); });
    if constexpr (std::is_same_v<S, float>) {
      if (by.nwd_constant) group_with(group, size, Nwd<float>{float(*by.nwd_constant)});
      if (force == Force::kLowQuality)
        with_nwd(by, [&](auto metric) {
          match_group<S, Write, decltype(metric), true>(op, group, size, gt, priors, num_priors, by,
                                                        metric, best_priors, write, stream);
        });
    }
    if (force == Force::kBestPrior && top_k == 1)
      launch(op, force_kernel<Write>, size, kThreads, stream, group, best_priors, top_k, num_priors,
             write);
  });
  if constexpr (std::is_same_v<S, float>) {
    if (top_k == 1 || num_truths == 0) return;
    with_nwd(by, [&](auto metric) {
      launch(op, claim_kernel<decltype(metric)>, grid_size(num_truths, 1), kThreads, stream,
             static_cast<const float*>(gt), static_cast<const float*>(priors), by.corners,
             num_priors, metric, top_k, best_priors, memory.claims);
    });
    for_groups(offsets, images, [&](const Images& group, unsigned size) {
      launch(op, force_kernel<Write>, size, kThreads, stream, group, memory.claims, top_k,
             num_priors, write);
    });
  }
}

// There is no kernel for float64; Python calls the reference instead.
template <class Body>
void with_float_storage(DType dtype, Body body) {
  if (dtype == DType::kFloat16) return body(Storage<Half>{});
  if (dtype == DType::kBFloat16) return body(Storage<BFloat16>{});
  body(Storage<float>{});
}

}  // namespace

int64_t match_priors_workspace(int64_t num_truths, int64_t top_k) {
  Workspace measure(nullptr);
  memory_of(measure, num_truths, top_k);
  return measure.bytes();
}

void match_priors_cuda(const void* gt, const int64_t* offsets, int64_t images, const void* priors,
                       int64_t num_priors, const MatchPriorsSettings& settings, int64_t* index,
                       float* iou, void* workspace, DType dtype, Stream stream) {
  with_float_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    match<S>("match_priors", gt, offsets, images, priors, num_priors, settings, workspace,
             WriteMatch{index, iou}, stream);
  });
}

void encode_targets_cuda(const void* gt, const int64_t* gt_labels, const int64_t* offsets,
                         int64_t images, const void* priors, int64_t num_priors,
                         const EncodeTargetsSettings& settings, void* loc, int64_t* labels,
                         void* workspace, DType dtype, Stream stream) {
  with_float_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    const WriteTargets<S> write = {static_cast<const S*>(gt),
                                   gt_labels,
                                   static_cast<const float*>(priors),
                                   float(settings.v0),
                                   float(settings.v1),
                                   static_cast<S*>(loc),
                                   labels};
    match<S>("encode_targets", gt, offsets, images, priors, num_priors, match_settings(settings),
             workspace, write, stream);
  });
}

void ignore_priors_cuda(const int64_t* marks, const void* ignored, const int64_t* offsets,
                        int64_t images, const void* priors, int64_t num_priors,
                        const IgnorePriorsSettings& settings, int64_t* result, Stream stream) {
  if (images == 0 || num_priors == 0) return;
  const char* const op = settings.background == 0 ? "encode_targets" : "match_priors";
  check_sizes(op, offsets[images], num_priors);
  for_groups(offsets, images, [&](const Images& group, unsigned size) {
    launch(op, ignore_kernel, dim3(grid_size(num_priors, kThreads), size), kThreads, stream, group,
           marks, static_cast<const float*>(ignored), static_cast<const float*>(priors),
           settings.corners, num_priors, float(settings.threshold), settings.background, result);
  });
}

}  // namespace mdssd
