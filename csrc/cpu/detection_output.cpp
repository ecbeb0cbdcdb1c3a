// detection_output: softmax, threshold, best top_k per class, decode, NMS, best max_detections.
//
// 1. A task takes one image and a range of priors, reads each row of logits once and keeps at most
//    2 * top_k candidates per class: a full list drops its lower half and raises its threshold, so
//    that an untrained network, where every score passes, costs little more than a trained one.
// 2. A task takes one class of one image: merges the ranges, decodes, suppresses.
// 3. A task takes one image: the best of all classes.
// Memory is O(images x classes x top_k), whatever the number of priors.
#include <cmath>

#include "../ops.h"
#include "candidates.h"
#include "parallel.h"
#include "vector_math.h"

namespace mdssd {
namespace {

// Largest foreground logit of a row.
template <class S>
MDSSD_INLINE Wide<S> best_foreground(const S* row, int64_t classes) {
  return lane_max<Wide<S>>(classes - 1, -std::numeric_limits<Wide<S>>::infinity(),
                           [=](int64_t c) { return widen(row[c + 1]); });
}

// Finds the first row from `begin` on that can have a score above the threshold. A score is at most
// exp(its logit - the background's), which needs no exponential to be compared.
template <class S>
MDSSD_SIMD int64_t next_row(const S* logits, int64_t begin, int64_t end, int64_t classes,
                            Wide<S> log_threshold) {
  for (int64_t row = begin; row < end; ++row) {
    const S* x = logits + row * classes;
    if (!(best_foreground(x, classes) - widen(x[0]) < log_threshold)) return row;
  }
  return end;
}

template <class S>
MDSSD_SIMD void softmax_row(const S* x, int64_t classes, Wide<S>* scores) {
  using T = Wide<S>;
  const T background = widen(x[0]), foreground = best_foreground(x, classes);
  const T top = background > foreground ? background : foreground;
  for (int64_t c = 0; c < classes; ++c) scores[c] = vector_exp(widen(x[c]) - top);
  const T sum = lane_sum<T>(classes, [=](int64_t c) { return scores[c]; });
  for (int64_t c = 0; c < classes; ++c) scores[c] /= sum;
}

// The candidates of every class in one range of priors of one image.
template <class T>
class Collector {
 public:
  void start(int64_t classes, T score_threshold, int64_t top_k) {
    top_k_ = top_k;
    lists_.resize(classes);
    limits_.assign(classes, score_threshold);
    limits_[0] = std::numeric_limits<T>::infinity();  // background
  }

  // Priors come in rising order, so one that equals the limit of a full list ranks behind it.
  void add(const T* scores, int32_t prior) {
    for (size_t c = 1; c < limits_.size(); ++c)
      if (scores[c] > limits_[c]) push(c, {scores[c], prior});
  }

  const std::vector<Candidate<T>>& list(int64_t c) const { return lists_[c]; }

 private:
  void push(size_t c, Candidate<T> candidate) {
    auto& list = lists_[c];
    list.push_back(candidate);
    if (int64_t(list.size()) < 2 * top_k_) return;
    keep_best(list, top_k_);
    limits_[c] = std::min_element(list.begin(), list.end(), [](auto& a, auto& b) {
                   return a.score < b.score;
                 })->score;
  }

  int64_t top_k_ = 0;
  std::vector<std::vector<Candidate<T>>> lists_;
  std::vector<T> limits_;
};

template <class T>
struct Detection {
  Candidate<T> candidate;
  int64_t label;
  Box<T> box;
};

template <class S>
void detection_output(const S* loc, const S* logits, const Wide<S>* priors, int64_t images,
                      int64_t count, int64_t classes, Wide<S> score_threshold,
                      Wide<S> nms_threshold, int64_t top_k, int64_t max_detections, Wide<S> v0,
                      Wide<S> v1, Wide<S>* boxes, Wide<S>* scores, int64_t* labels, int64_t* found,
                      int threads) {
  using T = Wide<S>;
  check_index("detection_output", count);
  if (images == 0 || count == 0) return;
  top_k = std::min(top_k, count);  // so that 2 * top_k does not overflow

  // The margin covers the rounding of softmax; rows let through in error fail the exact test.
  const T log_threshold = std::log(score_threshold) - T(1e-3);
  const int64_t splits = std::min((2 * threads + images - 1) / images, (count + 1023) / 1024);
  std::vector<Collector<T>> collectors(images * splits);
  parallel_for(threads, images * splits, [&](int64_t task) {
    const int64_t image = task / splits, split = task % splits;
    const S* image_logits = logits + image * count * classes;
    const int64_t end = (split + 1) * count / splits;
    std::vector<T> row_scores(classes);
    Collector<T>& collector = collectors[task];
    collector.start(classes, score_threshold, top_k);
    for (int64_t row = split * count / splits;
         (row = next_row(image_logits, row, end, classes, log_threshold)) < end; ++row) {
      softmax_row(image_logits + row * classes, classes, row_scores.data());
      collector.add(row_scores.data(), int32_t(row));
    }
  });

  const int64_t foreground = classes - 1;
  std::vector<std::vector<Detection<T>>> kept(images * foreground);
  parallel_for(threads, images * foreground, [&](int64_t task) {
    const int64_t image = task / foreground, label = task % foreground + 1;
    std::vector<Candidate<T>> candidates;
    for (int64_t split = 0; split < splits; ++split) {
      const auto& list = collectors[image * splits + split].list(label);
      candidates.insert(candidates.end(), list.begin(), list.end());
    }
    keep_best(candidates, top_k);
    std::sort(candidates.begin(), candidates.end(), before<T>);
    BoxColumns<T> columns(int64_t(candidates.size()));
    for (size_t i = 0; i < candidates.size(); ++i) {
      const int64_t prior = candidates[i].index;
      const S* o = loc + (image * count + prior) * 4;
      const T* p = priors + 4 * prior;
      columns.set(i, decode(Offsets<T>{widen(o[0]), widen(o[1]), widen(o[2]), widen(o[3])},
                            CentreBox<T>{p[0], p[1], p[2], p[3]}, v0, v1, VectorExp{}));
    }
    // More than max_detections of one class can never all be among the best of the image.
    for (int32_t position :
         greedy(columns, int64_t(candidates.size()), nms_threshold, max_detections))
      kept[task].push_back({candidates[position], label, columns.box(position)});
  });

  parallel_for(threads, images, [&](int64_t image) {
    std::vector<Detection<T>> all;
    for (int64_t c = 0; c < foreground; ++c) {
      const auto& list = kept[image * foreground + c];
      all.insert(all.end(), list.begin(), list.end());
    }
    const int64_t n = std::min<int64_t>(int64_t(all.size()), max_detections);
    std::partial_sort(all.begin(), all.begin() + n, all.end(),
                      [](const Detection<T>& a, const Detection<T>& b) {
                        if (before(a.candidate, b.candidate)) return true;
                        if (before(b.candidate, a.candidate)) return false;
                        return a.label < b.label;
                      });
    for (int64_t i = 0; i < n; ++i) {
      const int64_t row = image * max_detections + i;
      store4<T>(boxes + 4 * row, all[i].box.x1, all[i].box.y1, all[i].box.x2, all[i].box.y2);
      scores[row] = all[i].candidate.score;
      labels[row] = all[i].label;
    }
    found[image] = n;
  });
}

}  // namespace

void detection_output_cpu(const void* loc, const void* logits, const void* priors, int64_t images,
                          int64_t count, int64_t classes, double score_threshold,
                          double nms_threshold, int64_t top_k, int64_t max_detections, double v0,
                          double v1, void* boxes, void* scores, int64_t* labels, int64_t* found,
                          DType dtype, int threads) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    detection_output(static_cast<const S*>(loc), static_cast<const S*>(logits),
                     static_cast<const T*>(priors), images, count, classes, T(score_threshold),
                     T(nms_threshold), top_k, max_detections, T(v0), T(v1),
                     static_cast<T*>(boxes), static_cast<T*>(scores), labels, found, threads);
  });
}

}  // namespace mdssd
