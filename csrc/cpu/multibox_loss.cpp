// multibox_loss and its gradient.
//
// Forward: tasks of 512 priors read the logits once and compute the cross-entropy of every prior.
// Then a task per image selects the hardest background priors by counting their losses' leading
// bits, not by sorting. Half of the time goes into the exponentials (benchmarks/NOTES.md, "The
// second time"). Backward fills the gradients with zeros and then reads and writes the selected
// rows only.
#include <atomic>
#include <cmath>
#include <memory>
#include <vector>

#include "../ops.h"
#include "candidates.h"
#include "parallel.h"
#include "streaming.h"
#include "vector_math.h"

namespace mdssd {
namespace {

constexpr int64_t kRows = 512;  // priors per task and per partial sum
constexpr int kSide = 32;       // rows whose exponentials are computed together and stay in L1

template <class S>
MDSSD_INLINE Wide<S> row_max(const S* x, int64_t classes) {
  return lane_max<Wide<S>>(classes, -std::numeric_limits<Wide<S>>::infinity(),
                           [=](int64_t c) { return widen(x[c]); });
}

// Returns the logarithm of the sum of e^x over a row. It does not overflow.
template <class S>
MDSSD_INLINE Wide<S> log_sum_exp(const S* x, int64_t classes) {
  using T = Wide<S>;
  const T top = row_max(x, classes);
  return top + vector_log(lane_sum<T>(
                   classes, [=](int64_t c) { return vector_exp_negative(widen(x[c]) - top); }));
}

// Sums each of kSide rows of at least 8 classes with eight running sums. They start with the last
// classes, masked so that none is added twice.
template <class T>
MDSSD_INLINE void row_sums(const T* rows, int64_t classes, T* sums) {
  T mask[kEight];
  for (int k = 0; k < kEight; ++k) mask[k] = k < kEight - classes % kEight ? T(0) : T(1);
  for (int row = 0; row < kSide; ++row) {
    const T *x = rows + row * classes, *tail = x + classes - kEight;
    T lanes[kEight];
    for (int k = 0; k < kEight; ++k) lanes[k] = tail[k] * mask[k];
    for (int64_t c = 0; c + kEight <= classes; c += kEight)
      for (int k = 0; k < kEight; ++k) lanes[k] += x[c + k];
    for (int half = kEight / 2; half > 0; half /= 2)
      for (int k = 0; k < half; ++k) lanes[k] += lanes[k + half];
    sums[row] = lanes[0];
  }
}

// Computes losses[i] = -log softmax(row i)[labels[i]] for n rows; where the label is -1, it is of
// no use. One loop computes the exponentials of kSide rows, for any number of classes and without
// subtracting the rows' maxima. Rows whose sum is too small, too large or NaN are computed again
// with their maximum. Equal rows have equal losses, wherever they are. `powers` has room for kSide
// rows.
template <class S>
MDSSD_SIMD void cross_entropies(const S* logits, const int64_t* labels, int64_t n, int64_t classes,
                                Wide<S>* __restrict powers, Wide<S>* losses) {
  using T = Wide<S>;
  constexpr T kLowest = -87, kHighest = 80;  // beyond these, a row's sum is not trusted
  for (int64_t first = 0; first < n; first += kSide) {
    const S* rows = logits + first * classes;
    const int64_t lanes = std::min<int64_t>(kSide, n - first);
    for (int64_t i = 0; i < lanes * classes; ++i) {
      const T x = widen(rows[i]), bounded = x > kHighest ? kHighest : x;
      powers[i] = vector_exp_within(bounded < kLowest ? kLowest : bounded);
    }
    T sum[kSide] = {}, logs[kSide];  // entries past the last row are computed but not used
    if (classes >= kEight) {
      row_sums(powers, classes, sum);
    } else {
      for (int lane = 0; lane < kSide; ++lane)
        for (int64_t c = 0; c < classes; ++c) sum[lane] += powers[lane * classes + c];
    }
    for (int lane = 0; lane < kSide; ++lane) logs[lane] = vector_log(sum[lane]);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const S* x = rows + lane * classes;
      const bool trusted = sum[lane] > T(1e-30) && sum[lane] < T(1e30);
      const int64_t own = std::max<int64_t>(labels[first + lane], 0);
      losses[first + lane] = (trusted ? logs[lane] : log_sum_exp(x, classes)) - widen(x[own]);
    }
  }
}

template <class S>
MDSSD_SIMD void softmax_error(const S* x, int64_t label, int64_t classes, Wide<S> scale,
                              Wide<S>* wide, S* out) {
  using T = Wide<S>;
  const T top = row_max(x, classes);
  for (int64_t c = 0; c < classes; ++c) wide[c] = vector_exp_negative(widen(x[c]) - top);
  const T sum = lane_sum<T>(classes, [=](int64_t c) { return wide[c]; });
  for (int64_t c = 0; c < classes; ++c) wide[c] /= sum;
  wide[label] -= T(1);
  for (int64_t c = 0; c < classes; ++c) out[c] = narrow<S>(wide[c] * scale);
}

template <class T>
T smooth_l1(T difference) {
  const T size = std::abs(difference);
  return size < T(1) ? T(0.5) * difference * difference : size - T(0.5);
}

struct Sums {
  double localisation = 0, confidence = 0;
  int64_t positives = 0, background = 0;
};

// Returns a bucket from the leading bits of a loss. A larger loss is in the same bucket or a later
// one, NaN is in the last one, and 0 and -0 are in the same one.
constexpr int kBucketBits = 12;

template <class T>
MDSSD_INLINE int bucket_of(T loss) {
  using Bits = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  const Bits bits = bit_cast<Bits>(loss + T(0));
  const Bits key = bits ^ ((bits >> (8 * sizeof(T) - 1)) & std::numeric_limits<Bits>::max());
  const int bucket = int(key >> (8 * sizeof(T) - kBucketBits)) + (1 << (kBucketBits - 1));
  return loss != loss ? (1 << kBucketBits) - 1 : bucket;
}

// Selects the `negatives` background priors of an image with the largest losses, on ties the lower
// priors, and returns the sum of their losses. Only priors in the bucket that contains the last
// selected one have to be compared with each other.
template <class T>
double mine(const T* losses, const int64_t* labels, int64_t count, int64_t negatives,
            bool* selected) {
  std::vector<int32_t> counts(1 << kBucketBits);
  for (int64_t i = 0; i < count; ++i) counts[bucket_of(losses[i])] += labels[i] == 0;
  int last = (1 << kBucketBits) - 1;
  int64_t wanted = negatives;  // after the loop, the number to select from bucket `last`
  for (; counts[last] < wanted; --last) wanted -= counts[last];

  double sum = 0;
  std::vector<Candidate<T>> contenders;
  contenders.reserve(counts[last]);
  for (int64_t i = 0; i < count; ++i) {
    const int bucket = bucket_of(losses[i]);
    if (bucket < last || labels[i] != 0) continue;
    if (bucket == last) {
      contenders.push_back({losses[i], int32_t(i)});
    } else {
      selected[i] = true;
      sum += losses[i];
    }
  }
  keep_best(contenders, wanted);
  for (const Candidate<T>& candidate : contenders) {
    selected[candidate.index] = true;
    sum += candidate.score;
  }
  return sum;
}

template <class S>
bool multibox_loss(const S* loc, const S* logits, const Wide<S>* loc_targets, const int64_t* labels,
                   int64_t images, int64_t num_priors, int64_t classes,
                   const MultiboxLossSettings& settings, Wide<S>* losses, bool* selected,
                   int64_t* normaliser, int threads) {
  using T = Wide<S>;
  check_index("multibox_loss", num_priors);

  // Partial sums by image and piece. They are added in this order below.
  const int64_t pieces = (num_priors + kRows - 1) / kRows;
  std::vector<Sums> piece_sums(images * pieces);
  const std::unique_ptr<T[]> cross_entropy(new T[images * num_priors]);
  std::atomic<bool> labels_fit{true};
  parallel_for(threads, images * pieces, [&](int64_t task) {
    const int64_t first = task % pieces * kRows;
    const int64_t begin = task / pieces * num_priors + first;
    const int64_t end = begin + std::min(kRows, num_priors - first);
    uint64_t signs = 0;  // the highest bit is set if a label is below -1 or above the last class
    for (int64_t row = begin; row < end; ++row)
      signs |= (uint64_t(labels[row]) + 1) | (uint64_t(classes - 1) - uint64_t(labels[row]));
    if (signs >> 63) {
      labels_fit = false;
      return;
    }
    std::vector<T> powers(classes * kSide);
    cross_entropies(logits + begin * classes, labels + begin, end - begin, classes,
                    powers.data(), cross_entropy.get() + begin);
    Sums& sums = piece_sums[task];
    for (int64_t row = begin; row < end; ++row) {
      sums.background += labels[row] == 0;
      selected[row] = labels[row] > 0;
      if (!selected[row]) continue;
      ++sums.positives;
      sums.confidence += cross_entropy[row];
      for (int64_t k = 4 * row; k < 4 * row + 4; ++k)
        sums.localisation += smooth_l1(widen(loc[k]) - loc_targets[k]);
    }
  });
  if (!labels_fit) return false;

  std::vector<Sums> image_sums(images);
  parallel_for(threads, images, [&](int64_t image) {
    Sums& sums = image_sums[image];
    for (int64_t piece = 0; piece < pieces; ++piece) {
      const Sums& part = piece_sums[image * pieces + piece];
      sums.localisation += part.localisation;
      sums.confidence += part.confidence;
      sums.positives += part.positives;
      sums.background += part.background;
    }
    const double ratio_count = std::floor(settings.neg_pos_ratio * double(sums.positives));
    const int64_t negatives = ratio_count < double(sums.background) ? int64_t(ratio_count)
                              : sums.positives                      ? sums.background
                                                                    : 0;
    if (negatives == 0) return;
    sums.confidence += mine(cross_entropy.get() + image * num_priors, labels + image * num_priors,
                            num_priors, negatives, selected + image * num_priors);
  });

  const int64_t groups = settings.per_image ? images : 1;
  const int64_t group_images = settings.per_image ? 1 : images;
  for (int64_t group = 0; group < groups; ++group) {
    Sums total;
    for (int64_t image = group * group_images; image < (group + 1) * group_images; ++image) {
      total.localisation += image_sums[image].localisation;
      total.confidence += image_sums[image].confidence;
      total.positives += image_sums[image].positives;
    }
    normaliser[group] = std::max<int64_t>(1, total.positives);
    losses[group] = T(total.localisation / double(normaliser[group]));
    losses[groups + group] = T(total.confidence / double(normaliser[group]));
  }
  return true;
}

template <class S>
void multibox_loss_backward(const Wide<S>* grad_loc_loss, const Wide<S>* grad_conf_loss,
                            const S* loc, const S* logits, const Wide<S>* loc_targets,
                            const int64_t* labels, const bool* selected, int64_t rows,
                            int64_t group_rows, int64_t classes, S* grad_loc, S* grad_logits,
                            int threads) {
  using T = Wide<S>;
  parallel_ranges(threads, rows, kRows, [&](int64_t begin, int64_t end) {
    // All bits 0 is the number 0 in every storage type. Most rows keep it.
    const int64_t loc_size = 4 * sizeof(S), logits_size = classes * sizeof(S);
    fill_zeros(grad_loc + 4 * begin, (end - begin) * loc_size, rows * loc_size);
    fill_zeros(grad_logits + begin * classes, (end - begin) * logits_size, rows * logits_size);
    std::vector<T> wide(classes);
    for (int64_t row = begin; row < end; ++row) {
      if (!selected[row]) continue;
      const int64_t group = row / group_rows;
      softmax_error(logits + row * classes, labels[row], classes, grad_conf_loss[group],
                    wide.data(), grad_logits + row * classes);
      if (labels[row] == 0) continue;
      for (int64_t k = 4 * row; k < 4 * row + 4; ++k) {
        const T difference = widen(loc[k]) - loc_targets[k];
        const T slope = difference < T(-1) ? T(-1) : difference > T(1) ? T(1) : difference;
        grad_loc[k] = narrow<S>(slope * grad_loc_loss[group]);
      }
    }
  });
}

}  // namespace

bool multibox_loss_cpu(const void* loc, const void* logits, const void* loc_targets,
                       const int64_t* labels, int64_t images, int64_t num_priors, int64_t classes,
                       const MultiboxLossSettings& settings, void* losses, bool* selected,
                       int64_t* normaliser, DType dtype, int threads) {
  bool labels_fit = false;
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    labels_fit =
        multibox_loss(static_cast<const S*>(loc), static_cast<const S*>(logits),
                      static_cast<const T*>(loc_targets), labels, images, num_priors, classes,
                      settings, static_cast<T*>(losses), selected, normaliser, threads);
  });
  return labels_fit;
}

void multibox_loss_backward_cpu(const void* grad_loc_loss, const void* grad_conf_loss,
                                const void* loc, const void* logits, const void* loc_targets,
                                const int64_t* labels, const bool* selected, int64_t rows,
                                int64_t group_rows, int64_t classes, void* grad_loc,
                                void* grad_logits, DType dtype, int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    multibox_loss_backward(
        static_cast<const T*>(grad_loc_loss), static_cast<const T*>(grad_conf_loss),
        static_cast<const S*>(loc), static_cast<const S*>(logits),
        static_cast<const T*>(loc_targets), labels, selected, rows, group_rows, classes,
        static_cast<S*>(grad_loc), static_cast<S*>(grad_logits), threads);
  });
}

}  // namespace mdssd
