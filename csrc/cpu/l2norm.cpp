// l2norm and l2norm_add_relu, forward and backward, in both memory formats. Templates over kMaps
// serve both operators: it is 1 for l2norm, and 2 with add and ReLU.
//
// Every pixel needs its channels twice: for the norm (backward: for a dot product) and for the
// result. A task handles a tile of pixels of one image with all their channels, small enough for
// the second pass to find it in cache. The forward pass in NCHW is different: a task handles 32
// channels with all their pixels, because long rows are faster than a tile's short ones (see
// forward_nchw).
#include <cmath>
#include <memory>
#include <vector>

#include "../ops.h"
#include "parallel.h"
#include "vector_math.h"

namespace mdssd {
namespace {

constexpr int64_t kTile = 1024;  // maximum of Shape::tile

struct Shape {
  int64_t images, channels, pixels;
  bool channels_last;

  // Pixels per tile. A tile has at most 1 MiB of float32 per map, and there are about eight tiles
  // or more if there are enough pixels, so that the threads share the work evenly. Within these
  // limits tiles are as large as possible, because long rows cost less per element.
  int64_t tile() const {
    const int64_t even = std::max<int64_t>(64, (images * pixels / 8 + 15) / 16 * 16);
    const int64_t most = 262144 / std::max<int64_t>(1, channels);
    return std::max<int64_t>(16, std::min({kTile, most, even}));
  }
  int64_t tiles() const { return (pixels + tile() - 1) / tile(); }
};

template <class S, int kMaps>
struct Forward {
  const S* maps[kMaps];
  const Wide<S>* scales[kMaps];
  Wide<S>* rnorms[kMaps];
  S* y;
};

template <class S, int kMaps>
struct Backward {
  const S* grad;
  const S* y;  // used with two maps only, but never null
  const S* maps[kMaps];
  const Wide<S>* scales[kMaps];
  const Wide<S>* rnorms[kMaps];
  S* grad_maps[kMaps];
  Wide<S>* grad_scales[kMaps];
};

template <class T>
MDSSD_INLINE T relu(T x) {
  return x < T(0) ? T(0) : x;  // a NaN stays
}

// Returns the gradient with respect to the input of the ReLU or, with one map, the incoming
// gradient.
template <int kMaps, class S>
MDSSD_INLINE Wide<S> gradient_at(const S* grad, const S* y, int64_t i) {
  const Wide<S> g = widen(grad[i]);
  if constexpr (kMaps == 1) return g;
  return widen(y[i]) > Wide<S>(0) ? g : Wide<S>(0);
}

// The following functions are single loops over the pixels of a row in NCHW. __restrict saves a
// check at the start of each row whether the arrays overlap, which costs as much as a short row.
template <class S>
MDSSD_INLINE void add_squares(const S* __restrict x, int64_t n, Wide<S>* __restrict sums) {
  for (int64_t i = 0; i < n; ++i) sums[i] += widen(x[i]) * widen(x[i]);
}

// Same for four rows that are `step` elements apart, in the order of the rows.
template <class S>
MDSSD_INLINE void add_four_squares(const S* __restrict x, int64_t step, int64_t n,
                                   Wide<S>* __restrict sums) {
  for (int64_t i = 0; i < n; ++i) {
    const Wide<S> a = widen(x[i]), b = widen(x[i + step]), c = widen(x[i + 2 * step]),
                  d = widen(x[i + 3 * step]);
    sums[i] = sums[i] + a * a + b * b + c * c + d * d;
  }
}

template <class S>
MDSSD_INLINE void normalise_row(const S* __restrict x, const Wide<S>* __restrict rnorm,
                                Wide<S> scale, int64_t n, S* __restrict y) {
  for (int64_t i = 0; i < n; ++i) y[i] = narrow<S>(widen(x[i]) * rnorm[i] * scale);
}

template <class S>
MDSSD_INLINE void fuse_row(const S* __restrict a, const S* __restrict b,
                           const Wide<S>* __restrict rnorm_a, const Wide<S>* __restrict rnorm_b,
                           Wide<S> scale_a, Wide<S> scale_b, int64_t n, S* __restrict y) {
  for (int64_t i = 0; i < n; ++i)
    y[i] = narrow<S>(relu(widen(a[i]) * rnorm_a[i] * scale_a + widen(b[i]) * rnorm_b[i] * scale_b));
}

// Sums the squares of several channels of an image, each a row of `pixels`.
template <class S>
MDSSD_SIMD void sum_squares(const S* x, int64_t channels, int64_t pixels, Wide<S>* sums) {
  std::fill_n(sums, pixels, Wide<S>(0));
  int64_t c = 0;
  for (; c + 4 <= channels; c += 4) add_four_squares(x + c * pixels, pixels, pixels, sums);
  for (; c < channels; ++c) add_squares(x + c * pixels, pixels, sums);
}

// Computes the reciprocal norms of n pixels from the sums of `parts` groups of channels, which are
// `step` elements apart.
template <class T>
MDSSD_SIMD void reciprocal_norms(const T* __restrict sums, int64_t parts, int64_t step, int64_t n,
                                 T eps, T* __restrict rnorm) {
  std::fill_n(rnorm, n, T(0));
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t i = 0; i < n; ++i) rnorm[i] += sums[part * step + i];
  for (int64_t i = 0; i < n; ++i) rnorm[i] = T(1) / std::sqrt(rnorm[i] + eps);
}

// Writes channels [begin, end) of an image. `first` is the image's first element in the maps and
// `pixel` its first pixel in the rnorms.
template <class S, int kMaps>
MDSSD_SIMD void write_channels(const Forward<S, kMaps>& p, int64_t first, int64_t pixel,
                               int64_t begin, int64_t end, int64_t pixels) {
  for (int64_t c = begin; c < end; ++c) {
    const int64_t row = first + c * pixels;
    if constexpr (kMaps == 1)
      normalise_row(p.maps[0] + row, p.rnorms[0] + pixel, p.scales[0][c], pixels, p.y + row);
    else
      fuse_row(p.maps[0] + row, p.maps[1] + row, p.rnorms[0] + pixel, p.rnorms[1] + pixel,
               p.scales[0][c], p.scales[1][c], pixels, p.y + row);
  }
}

// Reads whole rows, which the processor prefetches. On one thread, tiles with short rows took 1.3
// to 2.3 times as long, although their second pass finds more in the nearest caches
// (benchmarks/NOTES.md, "The second time"). Each sum covers kPart channels, and the sums are added
// in a fixed order, so the result does not depend on the number of threads.
template <class S, int kMaps>
void forward_nchw(const Forward<S, kMaps>& p, const Shape& shape, Wide<S> eps, int threads) {
  constexpr int64_t kPart = 32;
  const int64_t parts = (shape.channels + kPart - 1) / kPart;
  const int64_t size = shape.channels * shape.pixels;
  // The number of images at a time: few enough for the second pass to find them in the last cache.
  const int64_t most = std::max<int64_t>(1, (int64_t{8} << 20) / (kMaps * size * sizeof(S) + 1));
  const int64_t group = std::min(shape.images, most), step = group * shape.pixels;
  const std::unique_ptr<Wide<S>[]> sums(new Wide<S>[kMaps * parts * step]);
  for (int64_t image = 0; image < shape.images; image += group) {
    const int64_t images = std::min(group, shape.images - image);
    const auto for_parts = [&](const auto& body) {  // body(image of the group, part, begin, end)
      parallel_for(threads, images * parts, [&](int64_t task) {
        const int64_t part = task % parts, begin = part * kPart;
        body(task / parts, part, begin, std::min(shape.channels, begin + kPart));
      });
    };
    for_parts([&](int64_t i, int64_t part, int64_t begin, int64_t end) {
      for (int m = 0; m < kMaps; ++m)
        sum_squares(p.maps[m] + (image + i) * size + begin * shape.pixels, end - begin,
                    shape.pixels, sums.get() + (m * parts + part) * step + i * shape.pixels);
    });
    parallel_ranges(threads, images * shape.pixels, 1024, [&](int64_t begin, int64_t end) {
      for (int m = 0; m < kMaps; ++m)
        reciprocal_norms(sums.get() + m * parts * step + begin, parts, step, end - begin, eps,
                         p.rnorms[m] + image * shape.pixels + begin);
    });
    for_parts([&](int64_t i, int64_t, int64_t begin, int64_t end) {
      write_channels(p, (image + i) * size, (image + i) * shape.pixels, begin, end, shape.pixels);
    });
  }
}

// `first` is the tile's first element in the maps, `pixel` its first pixel in the rnorms, n its
// number of pixels.
template <class S, int kMaps>
MDSSD_SIMD void forward_nhwc(const Forward<S, kMaps>& p, int64_t first, int64_t pixel, int64_t n,
                             int64_t channels, Wide<S> eps) {
  using T = Wide<S>;
  for (int64_t i = 0; i < n; ++i) {
    const int64_t row = first + i * channels;
    T rnorm[kMaps];
    for (int m = 0; m < kMaps; ++m) {
      const S* x = p.maps[m] + row;
      const T sum = lane_sum<T>(channels, [=](int64_t c) { return widen(x[c]) * widen(x[c]); });
      rnorm[m] = T(1) / std::sqrt(sum + eps);
      p.rnorms[m][pixel + i] = rnorm[m];
    }
    for (int64_t c = 0; c < channels; ++c) {
      T sum = widen(p.maps[0][row + c]) * rnorm[0] * p.scales[0][c];
      if constexpr (kMaps == 2)
        sum = relu(sum + widen(p.maps[1][row + c]) * rnorm[1] * p.scales[1][c]);
      p.y[row + c] = narrow<S>(sum);
    }
  }
}

// Backward: d x = r (g s - x r^2 <g s, x>), and d s is the sum of g x r, to which each tile
// contributes. Without __restrict none of these loops would be vectorised.
template <int kMaps, class S>
MDSSD_INLINE void gradient_row(const S* __restrict grad, const S* __restrict y, int64_t n,
                               Wide<S>* __restrict g) {
  for (int64_t i = 0; i < n; ++i) g[i] = gradient_at<kMaps>(grad, y, i);
}

// Adds a channel to the dot products of n pixels, and returns its part of d s.
template <class S>
MDSSD_INLINE Wide<S> add_to_dots(const Wide<S>* __restrict g, const S* __restrict x,
                                 const Wide<S>* __restrict rnorm, Wide<S> scale, int64_t n,
                                 Wide<S>* __restrict dots) {
  for (int64_t i = 0; i < n; ++i) dots[i] += g[i] * scale * widen(x[i]);
  return lane_sum<Wide<S>>(n, [=](int64_t i) { return g[i] * widen(x[i]) * rnorm[i]; });
}

// `dots` must already be multiplied by r^2.
template <class S>
MDSSD_INLINE void write_gradient_row(const Wide<S>* __restrict g, const S* __restrict x,
                                     const Wide<S>* __restrict rnorm,
                                     const Wide<S>* __restrict dots, Wide<S> scale, int64_t n,
                                     S* __restrict grad_x) {
  for (int64_t i = 0; i < n; ++i)
    grad_x[i] = narrow<S>(rnorm[i] * (g[i] * scale - widen(x[i]) * dots[i]));
}

template <class S, int kMaps>
MDSSD_SIMD void backward_nchw(const Backward<S, kMaps>& p, int64_t first, int64_t pixel, int64_t n,
                              int64_t channels, int64_t pixels, Wide<S>* const* scale_parts) {
  using T = Wide<S>;
  T dots[kMaps][kTile], g[kTile];
  for (int m = 0; m < kMaps; ++m) std::fill_n(dots[m], n, T(0));
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t row = first + c * pixels;
    gradient_row<kMaps>(p.grad + row, p.y + row, n, g);
    for (int m = 0; m < kMaps; ++m)
      scale_parts[m][c] = add_to_dots(g, p.maps[m] + row, p.rnorms[m] + pixel, p.scales[m][c], n,
                                      dots[m]);
  }
  for (int m = 0; m < kMaps; ++m)
    for (int64_t i = 0; i < n; ++i) {
      const T r = p.rnorms[m][pixel + i];
      dots[m][i] *= r * r;
    }
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t row = first + c * pixels;
    gradient_row<kMaps>(p.grad + row, p.y + row, n, g);
    for (int m = 0; m < kMaps; ++m)
      write_gradient_row(g, p.maps[m] + row, p.rnorms[m] + pixel, dots[m], p.scales[m][c], n,
                         p.grad_maps[m] + row);
  }
}

// Writes d x for all channels of one pixel, and adds to d s.
template <int kMaps, class S>
MDSSD_INLINE void backward_pixel(const S* __restrict grad, const S* __restrict y,
                                 const S* __restrict x, const Wide<S>* __restrict scales,
                                 Wide<S> rnorm, int64_t channels, S* __restrict grad_x,
                                 Wide<S>* __restrict grad_scales) {
  const Wide<S> dot = rnorm * rnorm * lane_sum<Wide<S>>(channels, [=](int64_t c) {
    return gradient_at<kMaps>(grad, y, c) * scales[c] * widen(x[c]);
  });
  for (int64_t c = 0; c < channels; ++c) {
    const Wide<S> g = gradient_at<kMaps>(grad, y, c), value = widen(x[c]);
    grad_x[c] = narrow<S>(rnorm * (g * scales[c] - value * dot));
    grad_scales[c] += g * value * rnorm;
  }
}

template <class S, int kMaps>
MDSSD_SIMD void backward_nhwc(const Backward<S, kMaps>& p, int64_t first, int64_t pixel, int64_t n,
                              int64_t channels, Wide<S>* const* scale_parts) {
  for (int m = 0; m < kMaps; ++m) std::fill_n(scale_parts[m], channels, Wide<S>(0));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t row = first + i * channels;
    for (int m = 0; m < kMaps; ++m)
      backward_pixel<kMaps>(p.grad + row, p.y + row, p.maps[m] + row, p.scales[m],
                            p.rnorms[m][pixel + i], channels, p.grad_maps[m] + row,
                            scale_parts[m]);
  }
}

// Calls body(task, first element, first pixel, pixels of the tile) for every tile of the batch.
template <class Body>
void for_tiles(const Shape& shape, int threads, const Body& body) {
  parallel_for(threads, shape.images * shape.tiles(), [&](int64_t task) {
    const int64_t image = task / shape.tiles(), start = task % shape.tiles() * shape.tile();
    const int64_t first = image * shape.channels * shape.pixels +
                          start * (shape.channels_last ? shape.channels : 1);
    body(task, first, image * shape.pixels + start,
         std::min(shape.tile(), shape.pixels - start));
  });
}

template <class S, int kMaps>
void forward(const Forward<S, kMaps>& p, const Shape& shape, Wide<S> eps, int threads) {
  if (!shape.channels_last) return forward_nchw(p, shape, eps, threads);
  for_tiles(shape, threads, [&](int64_t, int64_t first, int64_t pixel, int64_t n) {
    forward_nhwc(p, first, pixel, n, shape.channels, eps);
  });
}

template <class S, int kMaps>
void backward(const Backward<S, kMaps>& p, const Shape& shape, int threads) {
  using T = Wide<S>;
  const int64_t tasks = shape.images * shape.tiles();
  std::vector<T> parts(tasks * kMaps * shape.channels);
  for_tiles(shape, threads, [&](int64_t task, int64_t first, int64_t pixel, int64_t n) {
    T* scale_parts[kMaps];
    for (int m = 0; m < kMaps; ++m)
      scale_parts[m] = parts.data() + (task * kMaps + m) * shape.channels;
    shape.channels_last
        ? backward_nhwc<S, kMaps>(p, first, pixel, n, shape.channels, scale_parts)
        : backward_nchw<S, kMaps>(p, first, pixel, n, shape.channels, shape.pixels, scale_parts);
  });
  // Adds in the order of the tiles, whichever threads computed them.
  for (int m = 0; m < kMaps; ++m) {
    std::fill_n(p.grad_scales[m], shape.channels, T(0));
    for (int64_t task = 0; task < tasks; ++task)
      for (int64_t c = 0; c < shape.channels; ++c)
        p.grad_scales[m][c] += parts[(task * kMaps + m) * shape.channels + c];
  }
}

}  // namespace

void l2norm_cpu(const void* x, const void* scale, int64_t images, int64_t channels, int64_t pixels,
                bool channels_last, double eps, void* y, void* rnorm, DType dtype, int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    forward<S, 1>({{static_cast<const S*>(x)},
                   {static_cast<const T*>(scale)},
                   {static_cast<T*>(rnorm)},
                   static_cast<S*>(y)},
                  {images, channels, pixels, channels_last}, T(eps), threads);
  });
}

void l2norm_backward_cpu(const void* grad, const void* x, const void* scale, const void* rnorm,
                         int64_t images, int64_t channels, int64_t pixels, bool channels_last,
                         void* grad_x, void* grad_scale, DType dtype, int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    backward<S, 1>({static_cast<const S*>(grad),
                    static_cast<const S*>(grad),
                    {static_cast<const S*>(x)},
                    {static_cast<const T*>(scale)},
                    {static_cast<const T*>(rnorm)},
                    {static_cast<S*>(grad_x)},
                    {static_cast<T*>(grad_scale)}},
                   {images, channels, pixels, channels_last}, threads);
  });
}

void l2norm_add_relu_cpu(const void* a, const void* b, const void* scale_a, const void* scale_b,
                         int64_t images, int64_t channels, int64_t pixels, bool channels_last,
                         double eps, void* y, void* rnorm_a, void* rnorm_b, DType dtype,
                         int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    forward<S, 2>({{static_cast<const S*>(a), static_cast<const S*>(b)},
                   {static_cast<const T*>(scale_a), static_cast<const T*>(scale_b)},
                   {static_cast<T*>(rnorm_a), static_cast<T*>(rnorm_b)},
                   static_cast<S*>(y)},
                  {images, channels, pixels, channels_last}, T(eps), threads);
  });
}

void l2norm_add_relu_backward_cpu(const void* grad, const void* y, const void* a, const void* b,
                                  const void* scale_a, const void* scale_b, const void* rnorm_a,
                                  const void* rnorm_b, int64_t images, int64_t channels,
                                  int64_t pixels, bool channels_last, void* grad_a, void* grad_b,
                                  void* grad_scale_a, void* grad_scale_b, DType dtype,
                                  int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    backward<S, 2>({static_cast<const S*>(grad),
                    static_cast<const S*>(y),
                    {static_cast<const S*>(a), static_cast<const S*>(b)},
                    {static_cast<const T*>(scale_a), static_cast<const T*>(scale_b)},
                    {static_cast<const T*>(rnorm_a), static_cast<const T*>(rnorm_b)},
                    {static_cast<S*>(grad_a), static_cast<S*>(grad_b)},
                    {static_cast<T*>(grad_scale_a), static_cast<T*>(grad_scale_b)}},
                   {images, channels, pixels, channels_last}, threads);
  });
}

}  // namespace mdssd
