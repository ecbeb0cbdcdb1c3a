// l2norm and l2norm_add_relu, forward and backward, in both memory formats. Templates over kMaps
// serve both operators: it is 1 for l2norm, and 2 with add and ReLU.
//
// Every pixel needs its channels twice: for the norm (backward: for a dot product) and then for the
// result. A block reads a few pixels with all their channels, and then reads them again from L1 or
// L2, so that each map is read from memory once. Nothing is kept in registers between the two
// passes; a version that did so spilled registers (benchmarks/NOTES.md, "first CUDA kernels").
//
// NCHW: a block handles 32 pixels. Lane i of every warp has pixel i, and the 16 warps share the
//   channels, so that a warp reads 32 consecutive numbers of a channel. Vector loads are impossible
//   because the channels start at any address if the number of pixels is odd. The norms are summed
//   over the warps in shared memory.
// Channels-last: a warp handles one pixel, whose channels are contiguous, with loads of 16 bytes if
//   the number of channels allows it. For the second part of the backward pass, a thread handles a
//   few channels of 32 pixels instead, so that it can sum the gradients of their scales.
//
// The gradient of a scale is a sum over all pixels. Each block sums its pixels into its own row of
// the workspace, and a second kernel sums the at most 512 rows. The sizes alone determine which
// block handles which pixels, so the results are the same in every run.
//
// Memory: only the backward pass needs a workspace, of 512 numbers per channel and map. Expected to
// be bound by memory in channels-last, and by the second read from L2 in NCHW (predictions, same
// place).
#include <type_traits>

#include "../ops.h"
#include "runtime.h"

namespace mdssd {
namespace {

constexpr int kLanes = kWarpSize;
constexpr int kWarps = 16, kThreads = kWarps * kLanes;
constexpr int kMostRows = 512;  // rows of the workspace, and blocks of a backward kernel

struct Shape {
  int64_t images, channels, pixels;  // pixels per image

  MDSSD_INLINE int64_t all_pixels() const { return images * pixels; }
};

template <class S, int kMaps>
struct Forward {
  const S* maps[kMaps];
  const Wide<S>* scales[kMaps];
  Wide<S>* rnorms[kMaps];
  S* y;
  Wide<S> eps;
};

template <class S, int kMaps>
struct Backward {
  const S* grad;
  const S* y;  // used with two maps only
  const S* maps[kMaps];
  const Wide<S>* scales[kMaps];
  const Wide<S>* rnorms[kMaps];
  S* grad_maps[kMaps];
  Wide<S>* parts;  // [blocks, kMaps, channels]

  // Returns the gradient with respect to the sum of the maps, which is the input of the ReLU.
  __device__ __forceinline__ Wide<S> incoming(int64_t i) const {
    if constexpr (kMaps == 2)
      if (!(widen(y[i]) > Wide<S>(0))) return Wide<S>(0);
    return widen(grad[i]);
  }
};

// kVector numbers that one instruction loads or stores.
template <class S, int kVector>
struct alignas(kVector * sizeof(S)) Vector {
  S at[kVector];
};

template <class S, int kMaps>
__device__ __forceinline__ S combine(const Wide<S> (&normed)[kMaps]) {
  if constexpr (kMaps == 1) {
    return narrow<S>(normed[0]);
  } else {
    const Wide<S> sum = normed[0] + normed[1];
    return narrow<S>(sum < Wide<S>(0) ? Wide<S>(0) : sum);  // a NaN stays
  }
}

// --- NCHW --------------------------------------------------------------------------------------

// The pixel of a lane, counted over all images, and the index of its channel 0.
struct Pixel {
  int64_t pixel, first;
  bool valid;

  __device__ Pixel(const Shape& shape, int64_t at) : pixel(at), valid(at < shape.all_pixels()) {
    if (!valid) pixel = 0;
    // A 64-bit division is ten times slower than a 32-bit one.
    const int64_t image = shape.all_pixels() <= 0xffffffffll
                              ? int64_t(uint32_t(pixel) / uint32_t(shape.pixels))
                              : pixel / shape.pixels;
    first = image * (shape.channels - 1) * shape.pixels + pixel;
  }
};

// Sums over the warps of a block, lane by lane, in a fixed order.
template <class T, int kMaps>
__device__ __forceinline__ void sum_over_warps(T (&sums)[kMaps], T (&shared)[kMaps][kWarps][kLanes]) {
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  __syncthreads();  // the previous sums have been read
  for (int m = 0; m < kMaps; ++m) shared[m][warp][lane] = sums[m];
  __syncthreads();
  for (int m = 0; m < kMaps; ++m) {
    sums[m] = 0;
    for (int w = 0; w < kWarps; ++w) sums[m] += shared[m][w][lane];
  }
}

// A block handles 32 pixels.
template <class S, int kMaps>
__global__ void __launch_bounds__(kThreads, 2) forward_nchw_kernel(Forward<S, kMaps> p, Shape shape) {
  using T = Wide<S>;
  __shared__ T shared[kMaps][kWarps][kLanes];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const Pixel at(shape, int64_t(blockIdx.x) * kLanes + lane);
  const int64_t end = at.valid ? shape.channels : 0;
  T rnorms[kMaps] = {};
#pragma unroll 8
  for (int64_t c = warp; c < end; c += kWarps)
    for (int m = 0; m < kMaps; ++m) {
      const T x = widen(p.maps[m][at.first + c * shape.pixels]);
      rnorms[m] += x * x;
    }
  sum_over_warps(rnorms, shared);
  for (int m = 0; m < kMaps; ++m) {
    rnorms[m] = rsqrt(rnorms[m] + p.eps);
    if (warp == 0 && at.valid) p.rnorms[m][at.pixel] = rnorms[m];
  }
#pragma unroll 8
  for (int64_t c = warp; c < end; c += kWarps) {
    const int64_t i = at.first + c * shape.pixels;
    T normed[kMaps];
    for (int m = 0; m < kMaps; ++m) normed[m] = widen(p.maps[m][i]) * rnorms[m] * p.scales[m][c];
    p.y[i] = combine<S, kMaps>(normed);
  }
}

// A block handles 32 pixels at a time. Only one warp of the block has a given channel, so it can
// add to the channel's place in the block's row of sums without an atomic.
template <class S, int kMaps>
__global__ void __launch_bounds__(kThreads, 1)
    backward_nchw_kernel(Backward<S, kMaps> p, Shape shape) {
  using T = Wide<S>;
  __shared__ T shared[kMaps][kWarps][kLanes];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  T* const parts = p.parts + int64_t(blockIdx.x) * kMaps * shape.channels;
  for (int64_t tile = blockIdx.x; tile * kLanes < shape.all_pixels(); tile += gridDim.x) {
    const Pixel at(shape, tile * kLanes + lane);
    const int64_t end = at.valid ? shape.channels : 0;
    T dots[kMaps] = {}, r[kMaps];
#pragma unroll 4
    for (int64_t c = warp; c < end; c += kWarps) {
      const int64_t i = at.first + c * shape.pixels;
      const T g = p.incoming(i);
      for (int m = 0; m < kMaps; ++m) dots[m] += g * p.scales[m][c] * widen(p.maps[m][i]);
    }
    sum_over_warps(dots, shared);
    for (int m = 0; m < kMaps; ++m) {
      r[m] = at.valid ? p.rnorms[m][at.pixel] : T(0);
      dots[m] *= r[m] * r[m];
    }
#pragma unroll 2
    for (int64_t c = warp; c < shape.channels; c += kWarps) {  // all lanes, because of warp_sum
      const int64_t i = at.first + c * shape.pixels;
      const T g = at.valid ? p.incoming(i) : T(0);
      for (int m = 0; m < kMaps; ++m) {
        const T x = at.valid ? widen(p.maps[m][i]) : T(0);
        if (at.valid)
          p.grad_maps[m][i] = narrow<S>(r[m] * (g * p.scales[m][c] - x * dots[m]));
        const T sum = warp_sum(g * x * r[m]);
        T& part = parts[m * shape.channels + c];
        if (lane == 0) part = tile == blockIdx.x ? sum : part + sum;
      }
    }
  }
}

// --- channels-last -----------------------------------------------------------------------------

// A warp handles one pixel and loads kVector channels at a time.
template <class S, int kMaps, int kVector>
__global__ void __launch_bounds__(kThreads, 2) forward_nhwc_kernel(Forward<S, kMaps> p, Shape shape) {
  using T = Wide<S>;
  using V = Vector<S, kVector>;
  const int lane = threadIdx.x % kLanes;
  const int64_t pixel = int64_t(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (pixel >= shape.all_pixels()) return;  // the whole warp returns
  const int64_t first = pixel * shape.channels;
  T rnorms[kMaps] = {};
#pragma unroll 4
  for (int64_t c = lane * kVector; c < shape.channels; c += kLanes * kVector)
    for (int m = 0; m < kMaps; ++m) {
      const V x = *reinterpret_cast<const V*>(p.maps[m] + first + c);
      for (int k = 0; k < kVector; ++k) rnorms[m] += widen(x.at[k]) * widen(x.at[k]);
    }
  for (int m = 0; m < kMaps; ++m) {
    rnorms[m] = rsqrt(warp_sum(rnorms[m]) + p.eps);
    if (lane == 0) p.rnorms[m][pixel] = rnorms[m];
  }
#pragma unroll 2
  for (int64_t c = lane * kVector; c < shape.channels; c += kLanes * kVector) {
    V x[kMaps], y;
    for (int m = 0; m < kMaps; ++m) x[m] = *reinterpret_cast<const V*>(p.maps[m] + first + c);
    for (int k = 0; k < kVector; ++k) {
      T normed[kMaps];
      for (int m = 0; m < kMaps; ++m)
        normed[m] = widen(x[m].at[k]) * rnorms[m] * p.scales[m][c + k];
      y.at[k] = combine<S, kMaps>(normed);
    }
    *reinterpret_cast<V*>(p.y + first + c) = y;
  }
}

// Loads the incoming gradient of kVector channels.
template <class S, int kMaps, int kVector>
__device__ __forceinline__ void load_incoming(const Backward<S, kMaps>& p, int64_t i,
                                              Wide<S> (&g)[kVector]) {
  using V = Vector<S, kVector>;
  const V grad = *reinterpret_cast<const V*>(p.grad + i);
  for (int k = 0; k < kVector; ++k) g[k] = widen(grad.at[k]);
  if constexpr (kMaps == 2) {
    const V y = *reinterpret_cast<const V*>(p.y + i);
    for (int k = 0; k < kVector; ++k) g[k] = widen(y.at[k]) > Wide<S>(0) ? g[k] : Wide<S>(0);
  }
}

// A block handles 32 pixels at a time. First, each warp computes the dot products of one pixel
// after another. Then, a thread handles kVector channels. If there are more threads than such
// vectors, the threads form `groups` groups, each handles every `groups`-th pixel, and their sums
// are added in shared memory.
template <class S, int kMaps, int kVector>
__global__ void __launch_bounds__(kThreads, 1)
    backward_nhwc_kernel(Backward<S, kMaps> p, Shape shape) {
  using T = Wide<S>;
  using V = Vector<S, kVector>;
  __shared__ T r[kMaps][kLanes], dots[kMaps][kLanes];
  __shared__ T group_sums[kMaps][kVector][kThreads];
  const int thread = threadIdx.x, lane = thread % kLanes, warp = thread / kLanes;
  const int vectors = int(shape.channels / kVector);
  const int groups = vectors < kThreads ? kThreads / vectors : 1;
  const int group = thread / vectors;
  T* const parts = p.parts + int64_t(blockIdx.x) * kMaps * shape.channels;
  for (int64_t tile = blockIdx.x; tile * kLanes < shape.all_pixels(); tile += gridDim.x) {
    const int64_t left = shape.all_pixels() - tile * kLanes;
    const int here = left < kLanes ? int(left) : kLanes;
    const auto add_part = [&](int m, int64_t c, T sum) {
      T& part = parts[m * shape.channels + c];
      part = tile == blockIdx.x ? sum : part + sum;
    };
    __syncthreads();  // the previous tile is finished
    for (int i = warp; i < here; i += kWarps) {
      const int64_t pixel = tile * kLanes + i, first = pixel * shape.channels;
      T sums[kMaps] = {};
      for (int64_t c = lane * kVector; c < shape.channels; c += kLanes * kVector) {
        T g[kVector];
        load_incoming<S, kMaps, kVector>(p, first + c, g);
        for (int m = 0; m < kMaps; ++m) {
          const V x = *reinterpret_cast<const V*>(p.maps[m] + first + c);
          for (int k = 0; k < kVector; ++k) sums[m] += g[k] * p.scales[m][c + k] * widen(x.at[k]);
        }
      }
      for (int m = 0; m < kMaps; ++m) {
        const T rnorm = p.rnorms[m][pixel], dot = warp_sum(sums[m]) * rnorm * rnorm;
        if (lane == 0) {
          r[m][i] = rnorm;
          dots[m][i] = dot;
        }
      }
    }
    __syncthreads();
    for (int v = groups > 1 ? thread % vectors : thread; v < vectors && group < groups;
         v += kThreads) {
      const int64_t c = int64_t(v) * kVector;
      T sums[kMaps][kVector] = {};
#pragma unroll 2
      for (int i = group; i < here; i += groups) {
        const int64_t at = (tile * kLanes + i) * shape.channels + c;
        T g[kVector];
        load_incoming<S, kMaps, kVector>(p, at, g);
        for (int m = 0; m < kMaps; ++m) {
          const V x = *reinterpret_cast<const V*>(p.maps[m] + at);
          V out;
          for (int k = 0; k < kVector; ++k) {
            const T value = widen(x.at[k]);
            out.at[k] = narrow<S>(r[m][i] * (g[k] * p.scales[m][c + k] - value * dots[m][i]));
            sums[m][k] += g[k] * value * r[m][i];
          }
          *reinterpret_cast<V*>(p.grad_maps[m] + at) = out;
        }
      }
      for (int m = 0; m < kMaps; ++m)
        for (int k = 0; k < kVector; ++k) {
          if (groups == 1)
            add_part(m, c + k, sums[m][k]);
          else
            group_sums[m][k][thread] = sums[m][k];
        }
    }
    if (groups == 1) continue;
    __syncthreads();
    if (thread < vectors)
      for (int m = 0; m < kMaps; ++m)
        for (int k = 0; k < kVector; ++k) {
          T sum = 0;
          for (int other = 0; other < groups; ++other)
            sum += group_sums[m][k][other * vectors + thread];
          add_part(m, int64_t(thread) * kVector + k, sum);
        }
  }
}

// --- both --------------------------------------------------------------------------------------

// A warp sums one column of the workspace; each lane adds every 32nd row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_parts_kernel(const T* __restrict__ parts, int rows, int64_t channels, int64_t width,
                     T* __restrict__ grad_scale_a, T* __restrict__ grad_scale_b) {
  const int lane = threadIdx.x % kLanes;
  const int64_t i = int64_t(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (i >= width) return;  // the whole warp returns
  T sum = 0;
  for (int row = lane; row < rows; row += kLanes) sum += parts[row * width + i];
  sum = warp_sum(sum);
  if (lane == 0) (i < channels ? grad_scale_a[i] : grad_scale_b[i - channels]) = sum;
}

// Calls body(std::integral_constant<int, kVector>{}) with vectors of 16 bytes if the number of
// channels is a multiple of their size, and else with single numbers.
template <class S, class Body>
void with_vector(int64_t channels, Body body) {
  constexpr int kVector = 16 / sizeof(S);
  if (channels % kVector == 0)
    body(std::integral_constant<int, kVector>{});
  else
    body(std::integral_constant<int, 1>{});
}

template <class S, int kMaps>
void forward(const char* op, const Forward<S, kMaps>& p, const Shape& shape, bool channels_last,
             Stream stream) {
  if (shape.all_pixels() * shape.channels == 0) return;
  if (!channels_last)
    return launch(op, forward_nchw_kernel<S, kMaps>, grid_size(shape.all_pixels(), kLanes),
                  kThreads, stream, p, shape);
  with_vector<S>(shape.channels, [&](auto vector) {
    launch(op, forward_nhwc_kernel<S, kMaps, vector.value>, grid_size(shape.all_pixels(), kWarps),
           kThreads, stream, p, shape);
  });
}

template <class S, int kMaps>
void backward(const char* op, Backward<S, kMaps> p, const Shape& shape, bool channels_last,
              void* grad_scale_a, void* grad_scale_b, void* workspace, Stream stream) {
  using T = Wide<S>;
  if (shape.all_pixels() * shape.channels == 0) return;
  const int64_t width = kMaps * shape.channels;
  p.parts = Workspace(workspace).take<T>(kMostRows * width);
  const unsigned rows = grid_size(shape.all_pixels(), kLanes, kMostRows);
  if (channels_last)
    with_vector<S>(shape.channels, [&](auto vector) {
      launch(op, backward_nhwc_kernel<S, kMaps, vector.value>, rows, kThreads, stream, p, shape);
    });
  else
    launch(op, backward_nchw_kernel<S, kMaps>, rows, kThreads, stream, p, shape);
  launch(op, sum_parts_kernel<T>, grid_size(width, kWarps), kThreads, stream, p.parts, int(rows),
         shape.channels, width, static_cast<T*>(grad_scale_a), static_cast<T*>(grad_scale_b));
}

}  // namespace

int64_t l2norm_workspace(int64_t maps, int64_t channels, DType dtype) {
  Workspace measure(nullptr);
  with_wide(dtype, [&](auto storage) {
    measure.take<typename decltype(storage)::type>(kMostRows * maps * channels);
  });
  return measure.bytes();
}

void l2norm_cuda(const void* x, const void* scale, int64_t images, int64_t channels, int64_t pixels,
                 bool channels_last, double eps, void* y, void* rnorm, DType dtype, Stream stream) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    const Forward<S, 1> p = {{static_cast<const S*>(x)},
                             {static_cast<const T*>(scale)},
                             {static_cast<T*>(rnorm)},
                             static_cast<S*>(y),
                             T(eps)};
    forward("l2norm", p, Shape{images, channels, pixels}, channels_last, stream);
  });
}

void l2norm_backward_cuda(const void* grad, const void* x, const void* scale, const void* rnorm,
                          int64_t images, int64_t channels, int64_t pixels, bool channels_last,
                          void* grad_x, void* grad_scale, void* workspace, DType dtype,
                          Stream stream) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    const Backward<S, 1> p = {static_cast<const S*>(grad),
                              nullptr,
                              {static_cast<const S*>(x)},
                              {static_cast<const T*>(scale)},
                              {static_cast<const T*>(rnorm)},
                              {static_cast<S*>(grad_x)},
                              nullptr};
    backward("l2norm_backward", p, Shape{images, channels, pixels}, channels_last, grad_scale,
             nullptr, workspace, stream);
  });
}

void l2norm_add_relu_cuda(const void* a, const void* b, const void* scale_a, const void* scale_b,
                          int64_t images, int64_t channels, int64_t pixels, bool channels_last,
                          double eps, void* y, void* rnorm_a, void* rnorm_b, DType dtype,
                          Stream stream) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    const Forward<S, 2> p = {{static_cast<const S*>(a), static_cast<const S*>(b)},
                             {static_cast<const T*>(scale_a), static_cast<const T*>(scale_b)},
                             {static_cast<T*>(rnorm_a), static_cast<T*>(rnorm_b)},
                             static_cast<S*>(y),
                             T(eps)};
    forward("l2norm_add_relu", p, Shape{images, channels, pixels}, channels_last, stream);
  });
}

void l2norm_add_relu_backward_cuda(const void* grad, const void* y, const void* a, const void* b,
                                   const void* scale_a, const void* scale_b, const void* rnorm_a,
                                   const void* rnorm_b, int64_t images, int64_t channels,
                                   int64_t pixels, bool channels_last, void* grad_a, void* grad_b,
                                   void* grad_scale_a, void* grad_scale_b, void* workspace,
                                   DType dtype, Stream stream) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    const Backward<S, 2> p = {static_cast<const S*>(grad),
                              static_cast<const S*>(y),
                              {static_cast<const S*>(a), static_cast<const S*>(b)},
                              {static_cast<const T*>(scale_a), static_cast<const T*>(scale_b)},
                              {static_cast<const T*>(rnorm_a), static_cast<const T*>(rnorm_b)},
                              {static_cast<S*>(grad_a), static_cast<S*>(grad_b)},
                              nullptr};
    backward("l2norm_add_relu_backward", p, Shape{images, channels, pixels}, channels_last,
             grad_scale_a, grad_scale_b, workspace, stream);
  });
}

}  // namespace mdssd
