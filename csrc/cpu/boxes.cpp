// box_iou, encode_boxes, decode_boxes and their gradients.
//
// box_iou converts one set of boxes to columns (box_columns.h); a task computes 16 rows of the
// result in vector loops. For encoding and decoding, a task handles up to 4096 boxes.
#include <cmath>
#include <vector>

#include "../box_math.h"
#include "box_columns.h"
#include "parallel.h"
#include "vector_math.h"

namespace mdssd {
namespace {

constexpr int64_t kRows = 4096;  // boxes that a task encodes or decodes

template <class S, class T>
MDSSD_SIMD void iou_row(Box<T> a, const T* x1, const T* y1, const T* x2, const T* y2,
                        const T* area_b, int64_t m, S* out) {
  const T area_a = area(a);
  for (int64_t j = 0; j < m; ++j)
    out[j] = narrow<S>(iou(a, area_a, Box<T>{x1[j], y1[j], x2[j], y2[j]}, area_b[j]));
}

// Returns the gradient of iou(mine, other) with respect to `mine`.
template <class T>
Box<T> iou_gradient(Box<T> mine, Box<T> other) {
  const T area_mine = area(mine), area_other = area(other);
  const T quotient = iou(mine, area_mine, other, area_other);
  if (!(quotient > T(0))) return {0, 0, 0, 0};
  const T width = std::min(mine.x2, other.x2) - std::max(mine.x1, other.x1);
  const T height = std::min(mine.y2, other.y2) - std::max(mine.y1, other.y1);
  const T total = area_mine + area_other - width * height;
  const T d_width = (T(1) + quotient) / total * height;
  const T d_height = (T(1) + quotient) / total * width;
  const T d_area = -quotient / total;
  const T own_width = mine.x2 - mine.x1, own_height = mine.y2 - mine.y1;
  // The share of the first box in an edge of the intersection: 1 if it sets the edge, 0.5 if both
  // do.
  const auto won = [](T a, T b) { return a > b ? T(1) : a == b ? T(0.5) : T(0); };
  return {-d_width * won(mine.x1, other.x1) - d_area * own_height,
          -d_height * won(mine.y1, other.y1) - d_area * own_width,
          d_width * won(other.x2, mine.x2) + d_area * own_height,
          d_height * won(other.y2, mine.y2) + d_area * own_width};
}

// grad_mine[i] = sum over j of grad[i * row_step + j * column_step] * d iou(mine[i], other[j]).
template <class S>
void iou_gradients(const S* grad, int64_t row_step, int64_t column_step, const S* mine, int64_t n,
                   const S* other, int64_t m, S* grad_mine, int threads) {
  using T = Wide<S>;
  parallel_ranges(threads, n, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T sum[4] = {};
      for (int64_t j = 0; j < m; ++j) {
        const T weight = widen(grad[i * row_step + j * column_step]);
        const Box<T> part = iou_gradient(load_box(mine, i), load_box(other, j));
        const T parts[4] = {part.x1, part.y1, part.x2, part.y2};
        for (int k = 0; k < 4; ++k) sum[k] += parts[k] == T(0) ? T(0) : weight * parts[k];
      }
      for (int k = 0; k < 4; ++k) grad_mine[4 * i + k] = narrow<S>(sum[k]);
    }
  });
}

template <class T>
CentreBox<T> prior_at(const T* priors, int64_t i) {
  return {priors[4 * i], priors[4 * i + 1], priors[4 * i + 2], priors[4 * i + 3]};
}

template <class S, class T>
MDSSD_SIMD void encode_rows(const S* boxes, const T* priors, int64_t n, T v0, T v1, S* loc) {
  for (int64_t i = 0; i < n; ++i) {
    const Offsets<T> o = encode(load_box(boxes, i), prior_at(priors, i), v0, v1,
                                [](T x) { return std::log(x); });
    store4<S>(loc + 4 * i, o.x, o.y, o.w, o.h);
  }
}

template <class S, class T>
MDSSD_SIMD void decode_rows(const S* loc, const T* priors, int64_t n, T v0, T v1, S* boxes) {
  for (int64_t i = 0; i < n; ++i) {
    const Offsets<T> o = {widen(loc[4 * i]), widen(loc[4 * i + 1]), widen(loc[4 * i + 2]),
                          widen(loc[4 * i + 3])};
    const Box<T> b = decode(o, prior_at(priors, i), v0, v1, VectorExp{});
    store4<S>(boxes + 4 * i, b.x1, b.y1, b.x2, b.y2);
  }
}

template <class S, class T>
MDSSD_SIMD void encode_gradients(const S* grad, const S* boxes, const T* priors, int64_t n, T v0,
                                 T v1, S* out) {
  for (int64_t i = 0; i < n; ++i) {
    const Box<T> b = load_box(boxes, i), g = load_box(grad, i);
    const CentreBox<T> p = prior_at(priors, i);
    const T d_cx = g.x1 / (p.w * v0) * T(0.5), d_cy = g.y1 / (p.h * v0) * T(0.5);
    const T d_w = g.x2 / ((b.x2 - b.x1) * v1), d_h = g.y2 / ((b.y2 - b.y1) * v1);
    store4<S>(out + 4 * i, d_cx - d_w, d_cy - d_h, d_cx + d_w, d_cy + d_h);
  }
}

template <class S, class T>
MDSSD_SIMD void decode_gradients(const S* grad, const S* loc, const T* priors, int64_t n, T v0,
                                 T v1, S* out) {
  for (int64_t i = 0; i < n; ++i) {
    const Box<T> g = load_box(grad, i);
    const CentreBox<T> p = prior_at(priors, i);
    const T half_w = p.w * vector_exp(widen(loc[4 * i + 2]) * v1) * T(0.5);
    const T half_h = p.h * vector_exp(widen(loc[4 * i + 3]) * v1) * T(0.5);
    store4<S>(out + 4 * i, (g.x1 + g.x2) * v0 * p.w, (g.y1 + g.y2) * v0 * p.h,
              (g.x2 - g.x1) * half_w * v1, (g.y2 - g.y1) * half_h * v1);
  }
}

// Calls body(first row, rows, first prior) on pieces whose rows belong to consecutive priors.
template <class Body>
void for_coded_rows(int64_t rows, int64_t num_priors, int threads, const Body& body) {
  if (rows == 0) return;
  const int64_t pieces = (num_priors + kRows - 1) / kRows;
  parallel_for(threads, rows / num_priors * pieces, [&](int64_t task) {
    const int64_t prior = task % pieces * kRows;
    body(task / pieces * num_priors + prior, std::min(kRows, num_priors - prior), prior);
  });
}

}  // namespace

void box_iou_cpu(const void* a, int64_t n, const void* b, int64_t m, void* iou_out, DType dtype,
                 int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    const BoxColumns<T> columns(static_cast<const S*>(b), m);
    parallel_ranges(threads, n, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        iou_row<S, T>(load_box(static_cast<const S*>(a), i), columns.x1(), columns.y1(),
                      columns.x2(), columns.y2(), columns.area(), m,
                      static_cast<S*>(iou_out) + i * m);
    });
  });
}

void box_iou_backward_cpu(const void* grad, const void* a, int64_t n, const void* b, int64_t m,
                          void* grad_a, void* grad_b, DType dtype, int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    const auto* g = static_cast<const S*>(grad);
    const auto* pa = static_cast<const S*>(a);
    const auto* pb = static_cast<const S*>(b);
    iou_gradients(g, m, 1, pa, n, pb, m, static_cast<S*>(grad_a), threads);
    iou_gradients(g, 1, m, pb, m, pa, n, static_cast<S*>(grad_b), threads);
  });
}

void encode_boxes_cpu(const void* boxes, const void* priors, int64_t rows, int64_t num_priors,
                      const BoxCodingSettings& settings, void* loc, DType dtype, int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    for_coded_rows(rows, num_priors, threads, [&](int64_t row, int64_t n, int64_t prior) {
      encode_rows<S, T>(static_cast<const S*>(boxes) + 4 * row,
                        static_cast<const T*>(priors) + 4 * prior, n, T(settings.v0),
                        T(settings.v1), static_cast<S*>(loc) + 4 * row);
    });
  });
}

void encode_boxes_backward_cpu(const void* grad, const void* boxes, const void* priors,
                               int64_t rows, int64_t num_priors, const BoxCodingSettings& settings,
                               void* grad_boxes, DType dtype, int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    for_coded_rows(rows, num_priors, threads, [&](int64_t row, int64_t n, int64_t prior) {
      encode_gradients<S, T>(static_cast<const S*>(grad) + 4 * row,
                             static_cast<const S*>(boxes) + 4 * row,
                             static_cast<const T*>(priors) + 4 * prior, n, T(settings.v0),
                             T(settings.v1), static_cast<S*>(grad_boxes) + 4 * row);
    });
  });
}

void decode_boxes_cpu(const void* loc, const void* priors, int64_t rows, int64_t num_priors,
                      const BoxCodingSettings& settings, void* boxes, DType dtype, int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    for_coded_rows(rows, num_priors, threads, [&](int64_t row, int64_t n, int64_t prior) {
      decode_rows<S, T>(static_cast<const S*>(loc) + 4 * row,
                        static_cast<const T*>(priors) + 4 * prior, n, T(settings.v0),
                        T(settings.v1), static_cast<S*>(boxes) + 4 * row);
    });
  });
}

void decode_boxes_backward_cpu(const void* grad, const void* loc, const void* priors, int64_t rows,
                               int64_t num_priors, const BoxCodingSettings& settings,
                               void* grad_loc, DType dtype, int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    for_coded_rows(rows, num_priors, threads, [&](int64_t row, int64_t n, int64_t prior) {
      decode_gradients<S, T>(static_cast<const S*>(grad) + 4 * row,
                             static_cast<const S*>(loc) + 4 * row,
                             static_cast<const T*>(priors) + 4 * prior, n, T(settings.v0),
                             T(settings.v1), static_cast<S*>(grad_loc) + 4 * row);
    });
  });
}

}  // namespace mdssd
