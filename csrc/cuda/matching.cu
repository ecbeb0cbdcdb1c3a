// match_priors and encode_targets.
//
// A thread owns a prior, and keeps its best ground truth in registers while all boxes of the image
// pass over it: no matrix of priors x boxes. The other direction, the best prior of each box, is a
// maximum over all threads: of a warp by one instruction, of a block in shared memory, of the grid
// by an atomic on a number that packs the IoU and the prior, so that no order of blocks can change
// it. As a box's best prior is known only after all blocks, a second kernel forces these.
//
// Most pairs do not overlap. Priors come in the order of rows and columns, so the 32 of a warp lie
// close together: each lane tests another box against the bounds of them all, and only the boxes
// that meet the bounds are computed, by all lanes. What is skipped has an IoU of 0, which could
// change nothing.
#include <limits>

#include "../ops.h"
#include "runtime.h"

namespace mdssd {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
constexpr int kTile = 128;    // boxes in shared memory at a time
constexpr int kImages = 512;  // of one launch; their offsets must fit into 4 KB of parameters

// A group of images and where their boxes begin. It travels in the kernel's parameters, which are
// copied at the launch: no transfer, nothing to wait for, and a graph can replay it.
struct Images {
  int64_t first;
  int begin[kImages + 1];
};

// The best prior of a box: IoU's bits above, which order as the IoU does since it is not negative;
// below, the prior's complement, so that of equal IoUs the lower prior is the maximum. 0: none.
using Packed = unsigned long long;

__device__ __forceinline__ Packed pack(unsigned iou_bits, unsigned prior) {
  return Packed(iou_bits) << 32 | ~prior;
}

__device__ __forceinline__ unsigned prior_of(Packed best) {
  return best == 0 ? 0u : ~unsigned(best);  // who overlaps nothing takes prior 0
}

// The largest of a warp's numbers, on every lane.
__device__ __forceinline__ int warp_largest(int value) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kAllLanes, value);
#else
  return warp_max(value);
#endif
}

// The same of floats without NaN, which order as integers once the bits below a sign are turned
// over.
__device__ __forceinline__ int ordered(int bits) { return bits ^ (bits >> 31 & 0x7fffffff); }
__device__ __forceinline__ float warp_largest(float value) {
  return bit_cast<float>(ordered(warp_largest(ordered(bit_cast<int>(value)))));
}

constexpr float kInf = std::numeric_limits<float>::infinity();

// A box that overlaps none and widens no bounds.
__device__ __forceinline__ Box<float> nowhere() {
  return {kInf, kInf, -kInf, -kInf};
}

__device__ __forceinline__ CentreBox<float> load_prior(const float* priors, int64_t i) {
  const Box<float> p = load_box(priors, i);
  return {p.x1, p.y1, p.x2, p.y2};
}

// What becomes of a match: the two operators. `truth` counts over the whole batch, -1: background;
// `begin` is the first box of the image.
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

// One block takes kThreads priors of the image blockIdx.y, one per thread.
template <class S, class Write, class Eps>
__global__ void __launch_bounds__(kThreads)
    match_kernel(const Images images, const S* __restrict__ gt, const float* __restrict__ priors,
                 bool corners, unsigned num_priors, float threshold, Eps eps, Packed* best_priors,
                 const Write write) {
  __shared__ Four<float> truths[kTile];
  __shared__ float areas[kTile];
  __shared__ Packed tops[kWarps][kTile];  // the best prior of each box among those of a warp
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
  const unsigned prior = blockIdx.x * kThreads + thread;

  Box<float> mine = nowhere();
  if (prior < num_priors)
    mine = corners ? load_box(priors, prior) : to_corners(load_prior(priors, prior));
  const float own_area = area(mine);
  if (own_area != own_area) mine = nowhere();  // a NaN would spoil the bounds; its IoUs are 0
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
    __syncthreads();  // also: the tops of the tile before have been read
    for (int start = 0; start < n; start += kWarpSize) {
      bool meets = false;
      if (start + lane < n) {
        const Box<float> b = load_box(&truths[0].x, start + lane);
        meets = b.x1 < bounds.x2 && b.x2 > bounds.x1 && b.y1 < bounds.y2 && b.y2 > bounds.y1;
      }
      // Lane k keeps the warp's best prior of box start + k.
      int top_bits = 0, top_lane = 0;
      for (unsigned hits = __ballot_sync(kAllLanes, meets); hits != 0; hits &= hits - 1) {
        const int k = __ffs(int(hits)) - 1;
        const Box<float> truth = load_box(&truths[0].x, start + k);
        const float value = iou(truth, areas[start + k], mine, own_area, eps);
        if (value > best) {  // strictly: ties stay with the lower index
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
      // What is read may be old, but only too low: then the atomic decides.
      if (top > best_priors[first + thread]) atomicMax(&best_priors[first + thread], top);
    }
  }
  if (prior >= num_priors) return;
  const int truth = begin < end && best >= threshold ? best_truth : -1;
  write.best((images.first + blockIdx.y) * int64_t(num_priors) + prior, prior, truth, begin, best);
}

// One block takes an image, and gives each box its best prior. Of several boxes with one prior the
// last gets it: within a round, of one box per thread, by looking for a later one; then the rounds
// overwrite one another in their order.
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

// float64 has no kernel here: Python hands it to the reference.
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
    const MatchPriorsSettings by = {settings.iou_threshold, settings.iou_eps, false};
    match<S>("encode_targets", gt, offsets, images, priors, num_priors, by, workspace, write,
             stream);
  });
}

}  // namespace mdssd
