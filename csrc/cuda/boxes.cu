// box_iou, encode_boxes, decode_boxes and their gradients.
//
// These operators do little arithmetic and are expected to be bound by memory. A thread loads and
// stores whole boxes, 16 bytes each in float32; neighbouring threads handle neighbouring boxes, and
// everything else happens in registers. There is no workspace. Only the gradient of box_iou needs
// sums: a warp sums a row of the incoming gradient, and a block sums 32 columns.
#include "../ops.h"
#include "runtime.h"

namespace mdssd {
namespace {

constexpr int kThreads = 256;
constexpr int kPairsPerThread = 4;
constexpr int kGradientBlocks = 2;  // resident per multiprocessor; leaves 128 registers per thread

// A thread computes kPairsPerThread pairs that are kThreads apart, so that each store of a warp is
// contiguous.
template <class S>
__global__ void __launch_bounds__(kThreads)
    box_iou_kernel(const S* __restrict__ a, const S* __restrict__ b, int64_t pairs, int64_t m,
                   S* __restrict__ out) {
  const int64_t first = int64_t(blockIdx.x) * (kThreads * kPairsPerThread) + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kPairsPerThread; ++k) {
    const int64_t pair = first + k * kThreads;
    if (pair >= pairs) return;
    // A 64-bit division is ten times slower than a 32-bit one.
    const int64_t i = pairs <= 0xffffffffll ? int64_t(uint32_t(pair) / uint32_t(m)) : pair / m;
    const Box<Wide<S>> p = load_box(a, i), q = load_box(b, pair - i * m);
    out[pair] = narrow<S>(iou(p, area(p), q, area(q)));
  }
}

// Returns the share of `mine` in an edge of the intersection: 1 if it sets the edge, 0.5 if both
// do.
template <class T>
MDSSD_INLINE T won(T mine, T other) {
  return mine > other ? T(1) : mine == other ? T(0.5) : T(0);
}

// Returns the gradient of iou(mine, other) with respect to `mine`, times `weight`.
template <class T>
__device__ __forceinline__ Box<T> iou_gradient(T weight, Box<T> mine, Box<T> other) {
  const T width = smaller(mine.x2, other.x2) - larger(mine.x1, other.x1);
  const T height = smaller(mine.y2, other.y2) - larger(mine.y1, other.y1);
  const T intersection = width * height;
  const T total = area(mine) + area(other) - intersection;
  const T quotient = intersection / total;
  // Without overlap the gradient is 0. The test also fails for a NaN and for an infinite side.
  if (!(width > T(0) && height > T(0) && quotient > T(0))) return {0, 0, 0, 0};
  // iou = I / (A + B - I)
  const T per_total = weight / total;
  const T d_intersection = per_total + per_total * quotient, d_area = -per_total * quotient;
  const T d_width = d_intersection * height, d_height = d_intersection * width;
  const T own_width = mine.x2 - mine.x1, own_height = mine.y2 - mine.y1;
  return {-d_width * won(mine.x1, other.x1) - d_area * own_height,
          -d_height * won(mine.y1, other.y1) - d_area * own_width,
          d_width * won(other.x2, mine.x2) + d_area * own_height,
          d_height * won(other.y2, mine.y2) + d_area * own_width};
}

template <class T>
MDSSD_INLINE Box<T> add(Box<T> a, Box<T> b) {
  return {a.x1 + b.x1, a.y1 + b.y1, a.x2 + b.x2, a.y2 + b.y2};
}

// A warp computes the gradient of one box of `a`, whose row of `grad` is contiguous.
template <class S>
__global__ void __launch_bounds__(kThreads, kGradientBlocks)
    box_iou_backward_rows_kernel(const S* __restrict__ grad, const S* __restrict__ a, int64_t n,
                                 const S* __restrict__ b, int64_t m, S* __restrict__ grad_a) {
  using T = Wide<S>;
  const int lane = threadIdx.x % kWarpSize;
  const int64_t i = int64_t(blockIdx.x) * (kThreads / kWarpSize) + threadIdx.x / kWarpSize;
  if (i >= n) return;  // the whole warp returns
  const Box<T> mine = load_box(a, i);
  Box<T> sum = {0, 0, 0, 0};
  for (int64_t j = lane; j < m; j += kWarpSize)
    sum = add(sum, iou_gradient(widen(grad[i * m + j]), mine, load_box(b, j)));
  sum = {warp_sum(sum.x1), warp_sum(sum.y1), warp_sum(sum.x2), warp_sum(sum.y2)};
  if (lane == 0) store_four(grad_a, i, sum.x1, sum.y1, sum.x2, sum.y2);
}

// A block computes the gradients of 32 boxes of `b`. Each lane has a box, and each of the 16 warps
// handles every 16th row of `grad`, so that it reads 32 consecutive numbers. Then the first warp
// sums the results of all warps.
constexpr int kColumns = 32, kRowGroups = 16;
template <class S>
__global__ void __launch_bounds__(kColumns* kRowGroups, kGradientBlocks / 2)
    box_iou_backward_columns_kernel(const S* __restrict__ grad, const S* __restrict__ a, int64_t n,
                                    const S* __restrict__ b, int64_t m, S* __restrict__ grad_b) {
  using T = Wide<S>;
  __shared__ Box<T> sums[kRowGroups][kColumns];
  const int lane = threadIdx.x % kColumns, group = threadIdx.x / kColumns;
  const int64_t j = int64_t(blockIdx.x) * kColumns + lane;
  Box<T> sum = {0, 0, 0, 0};
  if (j < m) {
    const Box<T> mine = load_box(b, j);
    for (int64_t i = group; i < n; i += kRowGroups)
      sum = add(sum, iou_gradient(widen(grad[i * m + j]), mine, load_box(a, i)));
  }
  sums[group][lane] = sum;
  __syncthreads();
  if (group != 0 || j >= m) return;
  for (int other = 1; other < kRowGroups; ++other) sum = add(sum, sums[other][lane]);
  store_four(grad_b, j, sum.x1, sum.y1, sum.x2, sum.y2);
}

// The four functions of a row, an incoming gradient and a prior that coding_kernel applies.
struct Encode {
  template <class T>
  __device__ Box<T> operator()(Box<T> b, Box<T>, CentreBox<T> p, T v0, T v1) const {
    const Offsets<T> o = encode(b, p, v0, v1, Log{});
    return {o.x, o.y, o.w, o.h};
  }
};

struct Decode {
  template <class T>
  __device__ Box<T> operator()(Box<T> o, Box<T>, CentreBox<T> p, T v0, T v1) const {
    return decode(Offsets<T>{o.x1, o.y1, o.x2, o.y2}, p, v0, v1, Exp{});
  }
};

struct EncodeGradient {
  template <class T>
  __device__ Box<T> operator()(Box<T> b, Box<T> g, CentreBox<T> p, T v0, T v1) const {
    const T d_cx = g.x1 / (p.w * v0) * T(0.5), d_cy = g.y1 / (p.h * v0) * T(0.5);
    const T d_w = g.x2 / ((b.x2 - b.x1) * v1), d_h = g.y2 / ((b.y2 - b.y1) * v1);
    return {d_cx - d_w, d_cy - d_h, d_cx + d_w, d_cy + d_h};
  }
};

struct DecodeGradient {
  template <class T>
  __device__ Box<T> operator()(Box<T> o, Box<T> g, CentreBox<T> p, T v0, T v1) const {
    const T half_w = p.w * exp(o.x2 * v1) * T(0.5), half_h = p.h * exp(o.y2 * v1) * T(0.5);
    return {(g.x1 + g.x2) * v0 * p.w, (g.y1 + g.y2) * v0 * p.h, (g.x2 - g.x1) * half_w * v1,
            (g.y2 - g.y1) * half_h * v1};
  }
};

// A thread handles one prior and every gridDim.y-th row that belongs to it, so that it reads the
// prior once. `grad` is null for Encode and Decode.
template <class S, class Row>
__global__ void __launch_bounds__(kThreads)
    coding_kernel(const S* __restrict__ rows, const S* __restrict__ grad,
                  const Wide<S>* __restrict__ priors, int64_t repeats, int64_t num_priors,
                  Wide<S> v0, Wide<S> v1, S* __restrict__ out) {
  using T = Wide<S>;
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= num_priors) return;
  const Box<T> p = load_box(priors, i);
  const CentreBox<T> prior = {p.x1, p.y1, p.x2, p.y2};
  for (int64_t repeat = blockIdx.y; repeat < repeats; repeat += gridDim.y) {
    const int64_t row = repeat * num_priors + i;
    const Box<T> incoming = grad ? load_box(grad, row) : Box<T>{0, 0, 0, 0};
    const Box<T> result = Row{}(load_box(rows, row), incoming, prior, v0, v1);
    store_four(out, row, result.x1, result.y1, result.x2, result.y2);
  }
}

template <class Row>
void code(const char* op, const void* rows, const void* grad, const void* priors, int64_t row_count,
          int64_t num_priors, const BoxCodingSettings& settings, void* out, DType dtype,
          Stream stream) {
  if (row_count == 0) return;
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    const int64_t repeats = row_count / num_priors;
    const dim3 grid(grid_size(num_priors, kThreads), grid_size(repeats, 1, 65535));
    launch(op, coding_kernel<S, Row>, grid, kThreads, stream, static_cast<const S*>(rows),
           static_cast<const S*>(grad), static_cast<const Wide<S>*>(priors), repeats, num_priors,
           settings.v0, settings.v1, static_cast<S*>(out));
  });
}

}  // namespace

void box_iou_cuda(const void* a, int64_t n, const void* b, int64_t m, void* iou, DType dtype,
                  Stream stream) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    launch("box_iou", box_iou_kernel<S>, grid_size(n * m, kThreads * kPairsPerThread), kThreads,
           stream, static_cast<const S*>(a), static_cast<const S*>(b), n * m, m,
           static_cast<S*>(iou));
  });
}

void box_iou_backward_cuda(const void* grad, const void* a, int64_t n, const void* b, int64_t m,
                           void* grad_a, void* grad_b, DType dtype, Stream stream) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    const auto* g = static_cast<const S*>(grad);
    const auto* pa = static_cast<const S*>(a);
    const auto* pb = static_cast<const S*>(b);
    launch("box_iou_backward", box_iou_backward_rows_kernel<S>,
           grid_size(n, kThreads / kWarpSize), kThreads, stream, g, pa, n, pb, m,
           static_cast<S*>(grad_a));
    launch("box_iou_backward", box_iou_backward_columns_kernel<S>, grid_size(m, kColumns),
           kColumns * kRowGroups, stream, g, pa, n, pb, m, static_cast<S*>(grad_b));
  });
}

void encode_boxes_cuda(const void* boxes, const void* priors, int64_t rows, int64_t num_priors,
                       const BoxCodingSettings& settings, void* loc, DType dtype, Stream stream) {
  code<Encode>("encode_boxes", boxes, nullptr, priors, rows, num_priors, settings, loc, dtype,
               stream);
}

void encode_boxes_backward_cuda(const void* grad, const void* boxes, const void* priors,
                                int64_t rows, int64_t num_priors, const BoxCodingSettings& settings,
                                void* grad_boxes, DType dtype, Stream stream) {
  code<EncodeGradient>("encode_boxes_backward", boxes, grad, priors, rows, num_priors, settings,
                       grad_boxes, dtype, stream);
}

void decode_boxes_cuda(const void* loc, const void* priors, int64_t rows, int64_t num_priors,
                       const BoxCodingSettings& settings, void* boxes, DType dtype, Stream stream) {
  code<Decode>("decode_boxes", loc, nullptr, priors, rows, num_priors, settings, boxes, dtype,
               stream);
}

void decode_boxes_backward_cuda(const void* grad, const void* loc, const void* priors, int64_t rows,
                                int64_t num_priors, const BoxCodingSettings& settings,
                                void* grad_loc, DType dtype, Stream stream) {
  code<DecodeGradient>("decode_boxes_backward", loc, grad, priors, rows, num_priors, settings,
                       grad_loc, dtype, stream);
}

}  // namespace mdssd
