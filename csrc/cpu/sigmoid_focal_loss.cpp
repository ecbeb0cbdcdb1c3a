// sigmoid_focal_loss and its gradient.
//
// Both passes read the logits once, in tiles that stay in the first cache, and compute all entries
// of a tile in one loop, as if no prior were positive or left out. These priors are few: the
// forward pass takes their entries out beforehand, and the backward pass writes them again.
#include <atomic>
#include <limits>
#include <type_traits>
#include <vector>

#include "../loss_math.h"
#include "../ops.h"
#include "group_sums.h"
#include "streaming.h"
#include "vector_math.h"

namespace mdssd {
namespace {

constexpr int64_t kTile = 2048;  // logits computed together

struct ExpNegative {
  template <class T>
  MDSSD_INLINE T operator()(T x) const {
    return vector_exp_negative(x);
  }
};

// The arguments of both passes.
template <class S>
struct Rows {
  using T = Wide<S>;
  const S* logits;
  const int64_t* labels;
  int64_t classes;
  T positive_weight, negative_weight, gamma;

  int64_t tile_rows() const { return std::max<int64_t>(1, kTile / classes); }
};

// Returns the sum of the losses of rows [begin, end), at most one tile, for which `tile` has room.
template <Power kPower, class S>
MDSSD_SIMD double tile_loss(const Rows<S>& rows, int64_t begin, int64_t end,
                            Wide<S>* __restrict tile) {
  using T = Wide<S>;
  constexpr T kNothing = std::numeric_limits<T>::infinity();  // its loss is 0
  const int64_t classes = rows.classes, numbers = (end - begin) * classes;
  const S* const x = rows.logits + begin * classes;
  const T gamma = rows.gamma;
  for (int64_t i = 0; i < numbers; ++i) tile[i] = -widen(x[i]);
  double positives = 0;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t label = rows.labels[row];
    if (label == 0) continue;
    T* const own = tile + (row - begin) * classes;
    if (label < 0) {
      std::fill_n(own, classes, kNothing);
    } else {
      positives += focal(-own[label - 1], kPower, gamma, ExpNegative{});
      own[label - 1] = kNothing;
    }
  }
  const T negatives = lane_sum<T>(
      numbers, [=](int64_t i) { return focal(tile[i], kPower, gamma, ExpNegative{}); });
  return positives * double(rows.positive_weight) + double(negatives) * rows.negative_weight;
}

// Computes the gradients of rows [begin, end), of at most one tile.
template <Power kPower, class S>
MDSSD_SIMD void tile_gradient(const Rows<S>& rows, int64_t begin, int64_t end, Wide<S> grad,
                              S* __restrict tile) {
  using T = Wide<S>;
  const int64_t classes = rows.classes, numbers = (end - begin) * classes;
  const S* const x = rows.logits + begin * classes;
  const T gamma = rows.gamma, scale = grad * rows.negative_weight;
  for (int64_t i = 0; i < numbers; ++i)
    tile[i] = narrow<S>(focal_slope(-widen(x[i]), kPower, gamma, ExpNegative{}) * scale);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t label = rows.labels[row], first = (row - begin) * classes;
    if (label == 0) continue;
    if (label < 0) {
      std::fill_n(tile + first, classes, narrow<S>(T(0)));
    } else {
      const int64_t own = first + label - 1;
      tile[own] = narrow<S>(-focal_slope(widen(x[own]), kPower, gamma, ExpNegative{}) *
                            (grad * rows.positive_weight));
    }
  }
}

template <class Body>
void with_power(double gamma, Body body) {
  switch (power_of(gamma)) {
    case Power::kZero:
      return body(std::integral_constant<Power, Power::kZero>{});
    case Power::kOne:
      return body(std::integral_constant<Power, Power::kOne>{});
    case Power::kTwo:
      return body(std::integral_constant<Power, Power::kTwo>{});
    case Power::kOther:
      return body(std::integral_constant<Power, Power::kOther>{});
  }
}

template <class S>
Rows<S> make_rows(const void* logits, const int64_t* labels, int64_t classes,
                  const SigmoidFocalLossSettings& settings) {
  using T = Wide<S>;
  return {static_cast<const S*>(logits), labels, classes, T(settings.positive_weight),
          T(settings.negative_weight), T(settings.gamma)};
}

}  // namespace

bool sigmoid_focal_loss_cpu(const void* logits, const int64_t* labels, int64_t groups,
                            int64_t group_rows, int64_t classes,
                            const SigmoidFocalLossSettings& settings, void* loss,
                            int64_t* normaliser, DType dtype, int threads) {
  std::atomic<bool> labels_fit{true};
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    const Rows<S> rows = make_rows<S>(logits, labels, classes, settings);
    with_power(settings.gamma, [&](auto power) {
      const auto piece = [&](int64_t begin, int64_t end) {
        GroupSum sum;
        uint64_t signs = 0;  // the highest bit is set if a label is below -1 or above the classes
        for (int64_t row = begin; row < end; ++row) {
          signs |= (uint64_t(labels[row]) + 1) | (uint64_t(classes) - uint64_t(labels[row]));
          sum.positives += labels[row] > 0;
        }
        if (signs >> 63) {
          labels_fit = false;
          return sum;
        }
        std::vector<T> tile(rows.tile_rows() * classes);
        for (int64_t row = begin; row < end; row += rows.tile_rows())
          sum.loss += tile_loss<decltype(power)::value>(
              rows, row, std::min(end, row + rows.tile_rows()), tile.data());
        return sum;
      };
      sum_groups(threads, groups, group_rows, settings.normalise, static_cast<T*>(loss),
                 normaliser, piece);
    });
  });
  return labels_fit;
}

void sigmoid_focal_loss_backward_cpu(const void* grad_loss, const void* logits,
                                     const int64_t* labels, int64_t groups, int64_t group_rows,
                                     int64_t classes, const SigmoidFocalLossSettings& settings,
                                     void* grad_logits, DType dtype, int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    const Rows<S> rows = make_rows<S>(logits, labels, classes, settings);
    S* const out = static_cast<S*>(grad_logits);
    const int64_t row_size = classes * sizeof(S), total = groups * group_rows * row_size;
    with_power(settings.gamma, [&](auto power) {
      for_each_piece(threads, groups, group_rows,
                     [&](int64_t, int64_t group, int64_t begin, int64_t end) {
                       std::vector<S> tile(rows.tile_rows() * classes);
                       for (int64_t row = begin; row < end; row += rows.tile_rows()) {
                         const int64_t next = std::min(end, row + rows.tile_rows());
                         tile_gradient<decltype(power)::value>(
                             rows, row, next, static_cast<const T*>(grad_loss)[group],
                             tile.data());
                         stream_copy(out + row * classes, tile.data(), (next - row) * row_size,
                                     total);
                       }
                       finish_streaming();
                     });
    });
  });
}

}  // namespace mdssd
