// box_loss and its gradient. Only the labels are read whole; offsets and priors are read, decoded
// and compared at the positives. Backward fills the gradients with zeros first.
#include "../loss_math.h"
#include "../ops.h"
#include "group_sums.h"
#include "streaming.h"
#include "vector_math.h"

namespace mdssd {
namespace {

// The arguments of both passes.
template <class S>
struct Priors {
  using T = Wide<S>;
  const S* loc;
  const T *loc_targets, *priors;
  int64_t num_priors;
  BoxLossNumbers<T> numbers;

  BoxLoss<T> operator()(int64_t row) const {
    const S* const o = loc + 4 * row;
    const T* const t = loc_targets + 4 * row;
    const T* const p = priors + 4 * (row % num_priors);
    return box_loss(Offsets<T>{widen(o[0]), widen(o[1]), widen(o[2]), widen(o[3])},
                    Offsets<T>{t[0], t[1], t[2], t[3]}, p[2], p[3], numbers, VectorExp{});
  }
};

// Calls visit(row) for each positive in [begin, end). Positives are few, so eight labels are tested
// at once: the highest bit of minus a label is set if the label is positive (or the lowest of all).
template <class Visit>
void for_each_positive(const int64_t* labels, int64_t begin, int64_t end, const Visit& visit) {
  constexpr int64_t kTested = 8;
  for (int64_t first = begin; first < end; first += kTested) {
    const int64_t last = std::min(end, first + kTested);
    uint64_t signs = 0;
    if (last - first == kTested)
      for (int64_t k = 0; k < kTested; ++k) signs |= -uint64_t(labels[first + k]);
    else
      signs = ~uint64_t(0);
    if (signs >> 63 == 0) continue;
    for (int64_t row = first; row < last; ++row)
      if (labels[row] > 0) visit(row);
  }
}

template <class S>
Priors<S> make_priors(const void* loc, const void* loc_targets, const void* priors,
                      int64_t num_priors, const BoxLossSettings& settings) {
  using T = Wide<S>;
  return {static_cast<const S*>(loc), static_cast<const T*>(loc_targets),
          static_cast<const T*>(priors), num_priors, BoxLossNumbers<T>(settings)};
}

}  // namespace

void box_loss_cpu(const void* loc, const void* loc_targets, const int64_t* labels,
                  const void* priors, int64_t groups, int64_t group_rows, int64_t num_priors,
                  const BoxLossSettings& settings, void* loss, int64_t* normaliser, DType dtype,
                  int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    const Priors<S> of = make_priors<S>(loc, loc_targets, priors, num_priors, settings);
    const auto piece = [&](int64_t begin, int64_t end) {
      GroupSum sum;
      for_each_positive(labels, begin, end, [&](int64_t row) {
        sum.loss += of(row).loss;
        ++sum.positives;
      });
      return sum;
    };
    sum_groups(threads, groups, group_rows, settings.normalise, static_cast<Wide<S>*>(loss),
               normaliser, piece);
  });
}

void box_loss_backward_cpu(const void* grad_loss, const void* loc, const void* loc_targets,
                           const int64_t* labels, const void* priors, int64_t groups,
                           int64_t group_rows, int64_t num_priors, const BoxLossSettings& settings,
                           void* grad_loc, DType dtype, int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    const Priors<S> of = make_priors<S>(loc, loc_targets, priors, num_priors, settings);
    S* const out = static_cast<S*>(grad_loc);
    const int64_t row_size = 4 * sizeof(S), total = groups * group_rows * row_size;
    for_each_piece(threads, groups, group_rows,
                   [&](int64_t, int64_t group, int64_t begin, int64_t end) {
                     fill_zeros(out + 4 * begin, (end - begin) * row_size, total);
                     const T scale = static_cast<const T*>(grad_loss)[group];
                     for_each_positive(labels, begin, end, [&](int64_t row) {
                       const Offsets<T> slope = of(row).slope;
                       S* const at = out + 4 * row;
                       at[0] = narrow<S>(slope.x * scale);
                       at[1] = narrow<S>(slope.y * scale);
                       at[2] = narrow<S>(slope.w * scale);
                       at[3] = narrow<S>(slope.h * scale);
                     });
                   });
  });
}

}  // namespace mdssd
