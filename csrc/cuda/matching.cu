// match_priors and encode_targets.
//
// match_kernel: each thread owns one prior of one image. The block loads the image's ground truths
// into shared memory, 128 at a time, and each thread compares them with its prior and keeps the
// best one in registers. There is no matrix of priors x ground truths in memory.
//
// The best prior of each ground truth is a maximum over all threads: over a warp by one
// instruction, over the block in shared memory, and over the grid by one atomicMax per ground truth
// and block, on a 64-bit number that packs the IoU and the prior. The order of the blocks cannot
// change a maximum, so the result is deterministic. These priors are known only after all blocks
// have finished, so force_kernel, with one block per image, writes them afterwards.
//
// Most pairs do not overlap. Priors are sorted by rows and columns of their feature map, so the 32
// priors of a warp lie close together. For 32 ground truths at a time, each lane tests one of them
// against the common bounds of the warp's priors, and all lanes compute IoUs only for those that
// pass. A skipped pair has an IoU of 0, which cannot change the result.
//
// Memory: 8 bytes per ground truth. With 50 ground truths per image, the kernels are expected to be
// bound by instructions (a prediction, benchmarks/NOTES.md, "first CUDA kernels").
#include <limits>

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

// The best prior of a ground truth. The upper half has the bits of the IoU, which order like the
// IoU itself because it is not negative. The lower half has the complement of the prior, so that
// the lower prior wins if IoUs are equal. 0 means that no prior overlaps.
using Packed = unsigned long long;

__device__ __forceinline__ Packed pack(unsigned iou_bits, unsigned prior) {
  return Packed(iou_bits) << 32 | ~prior;
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

// The two operators differ in what they write for a match. `truth` is an index into the batch's
// ground truths, or -1 for background. `begin` is the first index of the image.
struct WriteMatch {
  int64_t* index;
  float* iou;

  __device__ void best(int64_t row, int64_t, int truth, int begin, float best_iou) const {
    index[row] = truth < 0 ? -1 : truth - begin;
    iou[row] = best_iou;
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
    labels[row] = 0;
  }
  __device__ void forced(int64_t row, int64_t prior, int truth, int) const {
    const Offsets<float> o = encode(load_box(gt, truth), load_prior(priors, prior), v0, v1, Log{});
    store_four(loc, row, o.x, o.y, o.w, o.h);
    labels[row] = gt_labels[truth];
  }
};

// A block handles kThreads priors of the image blockIdx.y, one per thread.
template <class S, class Write, class Eps>
__global__ void __launch_bounds__(kThreads)
    match_kernel(const Images images, const S* __restrict__ gt, const float* __restrict__ priors,
                 bool corners, unsigned num_priors, float threshold, Eps eps, Packed* best_priors,
                 const Write write) {
  __shared__ Four<float> truths[kTile];
  __shared__ float areas[kTile];
  __shared__ Packed tops[kWarps][kTile];  // per warp, the best prior of each ground truth
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
  const unsigned prior = blockIdx.x * kThreads + thread;

  Box<float> mine = nowhere();
  if (prior < num_priors)
    mine = corners ? load_box(priors, prior) : to_corners(load_prior(priors, prior));
  const float own_area = area(mine);
  if (own_area != own_area) mine = nowhere();  // a NaN has IoUs of 0 and must not reach the bounds
  const Box<float> bounds = {-warp_largest(-mine.x1), -warp_largest(-mine.y1),
                             warp_largest(mine.x2), warp_largest(mine.y2)};

  const int begin = images.begin[blockIdx.y], end = images.begin[blockIdx.y + 1];
  float best = 0;
  int best_truth = begin;
  for (int first = begin; first < end; first += kTile) {
    const int n = min(kTile, end - first);
    if (thread < n) {
      const Box<float> b = load_box(gt, first + thread);
      truths[thread] = {b.x1, b.y1, b.x2, b.y2};
      areas[thread] = area(b);
    }
    __syncthreads();  // the new tile is loaded, and `tops` of the previous one has been read
    for (int start = 0; start < n; start += kWarpSize) {
      bool meets = false;
      if (start + lane < n) {
        const Box<float> b = load_box(&truths[0].x, start + lane);
        meets = b.x1 < bounds.x2 && b.x2 > bounds.x1 && b.y1 < bounds.y2 && b.y2 > bounds.y1;
      }
      // Lane k keeps the warp's best prior of ground truth start + k.
      int top_bits = 0, top_lane = 0;
      for (unsigned hits = __ballot_sync(kAllLanes, meets); hits != 0; hits &= hits - 1) {
        const int k = __ffs(int(hits)) - 1;
        const Box<float> truth = load_box(&truths[0].x, start + k);
        const float value = iou(truth, areas[start + k], mine, own_area, eps);
        if (value > best) {  // on a tie, the lower index stays
          best = value;
          best_truth = first + start + k;
        }
        const int bits = bit_cast<int>(value), warp_bits = warp_largest(bits);
        const unsigned winners = __ballot_sync(kAllLanes, bits == warp_bits);
        if (lane == k) {
          top_bits = warp_bits;
          top_lane = __ffs(int(winners)) - 1;
        }
      }
      if (start + lane < n)
        tops[warp][start + lane] =
            top_bits == 0 ? 0 : pack(top_bits, prior - lane + top_lane);
    }
    __syncthreads();
    if (thread < n) {
      Packed top = 0;
      for (int w = 0; w < kWarps; ++w) top = max(top, tops[w][thread]);
      // This read only saves atomics. It may return an old value, which can only be too low.
      Packed* const known = &best_priors[first + thread];
      if (top > *static_cast<volatile Packed*>(known)) atomicMax(known, top);
    }
  }
  if (prior >= num_priors) return;
  const int truth = begin < end && best >= threshold ? best_truth : -1;
  write.best((images.first + blockIdx.y) * int64_t(num_priors) + prior, prior, truth, begin, best);
}

// A block handles one image and assigns to each ground truth its best prior. If several ground
// truths share a best prior, the last one gets it. In each round, a thread has one ground truth and
// leaves the prior to a later one of the same round; later rounds overwrite earlier ones.
template <class Write>
__global__ void __launch_bounds__(kThreads)
    force_kernel(const Images images, const Packed* __restrict__ best_priors, int64_t num_priors,
                 const Write write) {
  __shared__ unsigned priors[kThreads];
  const int thread = threadIdx.x;
  const int begin = images.begin[blockIdx.x], end = images.begin[blockIdx.x + 1];
  for (int first = begin; first < end; first += kThreads) {
    const int n = min(kThreads, end - first);
    const unsigned prior = thread < n ? prior_of(best_priors[first + thread]) : 0u;
    priors[thread] = prior;
    __syncthreads();
    bool last = thread < n;
    for (int k = 0; k < n; ++k)
      if (k > thread && priors[k] == prior) last = false;
    if (last)
      write.forced((images.first + blockIdx.x) * num_priors + prior, prior, first + thread, begin);
    __syncthreads();
  }
}

Packed* best_priors_of(Workspace& workspace, int64_t num_truths) {
  return workspace.take<Packed>(num_truths);
}

template <class S, class Write>
void match(const char* op, const void* gt, const int64_t* offsets, int64_t images,
           const void* priors, int64_t num_priors, const MatchPriorsSettings& settings,
           void* workspace, const Write& write, Stream stream) {
  if (images == 0 || num_priors == 0) return;
  const int64_t num_truths = offsets[images];
  constexpr int64_t kMost = std::numeric_limits<int>::max() - kThreads;
  if (num_truths > kMost || num_priors > kMost)
    throw std::length_error(std::string(op) + ": more than 2^31 - 257 boxes or priors");
  Workspace memory(workspace);
  Packed* const best_priors = best_priors_of(memory, num_truths);
  zero(op, best_priors, num_truths * int64_t(sizeof(Packed)), stream);
  for (int64_t first = 0; first < images; first += kImages) {
    Images group = {};
    group.first = first;
    const auto size = unsigned(images - first < kImages ? images - first : kImages);
    for (unsigned i = 0; i <= size; ++i) group.begin[i] = int(offsets[first + i]);
    with_eps<float>(settings.iou_eps, [&](auto eps) {
      launch(op, match_kernel<S, Write, decltype(eps)>, dim3(grid_size(num_priors, kThreads), size),
             kThreads, stream, group, static_cast<const S*>(gt), static_cast<const float*>(priors),
             settings.corners, num_priors, settings.iou_threshold, eps, best_priors, write);
    });
    launch(op, force_kernel<Write>, size, kThreads, stream, group, best_priors, num_priors, write);
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

int64_t match_priors_workspace(int64_t num_truths) {
  Workspace measure(nullptr);
  best_priors_of(measure, num_truths);
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

}  // namespace mdssd
