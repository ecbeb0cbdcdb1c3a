// detection_output: scores, threshold, best top_k per class, decoding, NMS, best max_detections.
//
// 1. A task handles every sixteenth prior of one image. If many scores of a class are above the
//    threshold, as in an untrained network, it estimates a higher limit that top_k scores reach.
// 2. A task handles a range of priors of one image. It reads each row of logits once and collects
//    at most 2 * top_k candidates per class: a full list drops its lower half and raises its limit.
//    If the estimate leaves a class too few candidates, the image is collected again without it.
// 3. A task handles one image. It goes through the candidates of all classes by falling score,
//    decodes each and compares it with the kept boxes of its class, until max_detections are found.
//    Candidates with lower scores are never decoded.
//    With soft-NMS it softens the candidates class by class instead: soft_detection.h.
// Memory is O(images x classes x top_k) and does not depend on the number of priors.
//
// If the candidates of all classes are counted together (top_k_per_level, class_agnostic), steps 1
// and 2 differ: joint_candidates.h has them.
#include <cmath>
#include <type_traits>

#include "../ops.h"
#include "box_block.h"
#include "box_columns.h"
#include "candidates.h"
#include "joint_candidates.h"
#include "parallel.h"
#include "radix_sort.h"
#include "soft_detection.h"
#include "vector_math.h"

namespace mdssd {
namespace {

// Starting threads takes longer than reading fewer logits of a single image.
constexpr int64_t kParallelFrom = 1 << 17;
constexpr int64_t kStride = 16;  // the estimate of the limits uses every kStride-th prior

// Finds the first row in [begin, rows) with a score above the threshold. Returns `rows` if there is
// none.
template <class T>
MDSSD_SIMD int64_t next_scored_row(const T* scores, int64_t begin, int64_t rows, int64_t classes,
                                   int64_t first_class, T threshold) {
  for (int64_t row = begin; row < rows; ++row) {
    int found = 0;
    for (int64_t c = first_class; c < classes; ++c) found |= scores[row * classes + c] > threshold;
    if (found) return row;
  }
  return rows;
}

template <class T>
MDSSD_SIMD uint32_t over_bounds(const T* weights, const T* bounds, T sum) {
  return mask_of_32([=](int i) { return weights[i] >= bounds[i] * sum; });
}

// Collects the candidates of every class in a range of priors of one image.
template <class T>
class Collector {
 public:
  // Keeps the best `top_k` scores above `limits` of each class, and fewer than `top_k` others.
  Collector(std::vector<T> limits, int64_t top_k, const Call& call)
      : softmax_(call.settings.softmax), sigmoid_(call.settings.sigmoid), top_k_(top_k),
        lists_(limits.size()), limits_(std::move(limits)) {
    constexpr T infinity = std::numeric_limits<T>::infinity();
    room_ = int64_t(limits_.size() + kEight - 1) / kEight * kEight;
    bounds_.assign((limits_.size() + 31) / 32 * 32, infinity);
    rows_.assign(kRows * room_, -infinity);
    weights_.resize(kRows * room_ + 32);
    for (size_t c = size_t(call.first_class()); c < limits_.size(); ++c) set_bound(c);
  }

  // Priors must come in rising order, so that a score equal to the limit of a full list ranks lower
  // than those in the list.
  void add(const T* row, int32_t prior) {
    std::copy(row, row + limits_.size(), &rows_[waiting_ * room_]);
    priors_[waiting_++] = prior;
    if (waiting_ == kRows) finish();
  }

  // Must be called after the last `add`: rows are processed in groups of kRows.
  void finish() {
    T sums[kRows];
    if (softmax_) {
      softmax_weights(rows_.data(), waiting_, room_, weights_.data(), sums);
    } else if (sigmoid_) {
      sigmoid_all(rows_.data(), waiting_ * room_, weights_.data());
      std::fill_n(sums, waiting_, T(1));
    } else {  // -1 never passes; it replaces values that are not scores
      for (int64_t i = 0; i < waiting_ * room_; ++i) weights_[i] = rows_[i] <= 1 ? rows_[i] : T(-1);
      std::fill_n(sums, waiting_, T(1));
    }
    for (int64_t row = 0; row < waiting_; ++row)
      take(&weights_[row * room_], sums[row], priors_[row]);
    waiting_ = 0;
  }

  std::vector<Candidate<T>>& list(int64_t c) { return lists_[c]; }

 private:
  static constexpr int64_t kRows = 16;

  // `weights` may contain anything past the classes, because the bounds there are infinite.
  void take(const T* weights, T sum, int32_t prior) {
    for (size_t c = 0; c < bounds_.size(); c += 32)
      for (uint32_t over = over_bounds(weights + c, &bounds_[c], sum); over; over &= over - 1) {
        const size_t label = c + __builtin_ctz(over);
        const T score = weights[label] / sum;
        if (score > limits_[label]) push(label, {score, prior});
      }
  }

  // The bound is slightly below the limit because a product and a quotient round differently.
  void set_bound(size_t c) { bounds_[c] = limits_[c] * T(1 - 1e-6); }

  void push(size_t c, Candidate<T> candidate) {
    auto& list = lists_[c];
    list.push_back(candidate);
    if (int64_t(list.size()) < 2 * top_k_) return;
    keep_best(list, top_k_);
    limits_[c] = lowest_score(list);
    set_bound(c);
  }

  bool softmax_, sigmoid_;  // if neither is set, rows are scores
  int64_t top_k_;
  std::vector<std::vector<Candidate<T>>> lists_;
  std::vector<T> limits_, bounds_;  // bounds of the background and of the padding are infinite
  int64_t room_, waiting_ = 0;      // values in a padded row; rows that are not processed yet
  std::vector<T> rows_, weights_;
  int32_t priors_[kRows];
};

// Adds the rows of one image from `begin` to `end`, or every stride-th of them.
template <class S>
void collect(Collector<Wide<S>>& collector, const S* logits, int64_t begin, int64_t end,
             int64_t stride, const Call& call) {
  using T = Wide<S>;
  const T limit = raw_limit(T(call.settings.score_threshold), call.settings);
  for_each_wide(logits, begin, end, stride, call, [&](const T* x, int64_t first, int64_t rows) {
    const auto next = [&](int64_t row) {
      if (!call.settings.softmax)
        return next_scored_row(x, row, rows, call.classes, call.first_class(), limit);
      return call.settings.background ? next_row(x, row, rows, call.classes, limit) : row;
    };
    for (int64_t row = 0; (row = next(row)) < rows; ++row)
      collector.add(x + row * call.classes, int32_t(first + row));
  });
  collector.finish();
}

// Estimates from a sample of the priors, for each class, a limit that at least top_k scores exceed.
// A wrong estimate is practically impossible except for an input constructed to mislead.
template <class S>
std::vector<Wide<S>> sample_limits(const S* logits, const Call& call) {
  using T = Wide<S>;
  std::vector<T> limits(call.classes, T(call.settings.score_threshold));
  if (call.num_priors < 8 * call.settings.top_k) return limits;
  // The expected number of the best top_k in the sample, plus five standard deviations.
  const double share = double(call.settings.top_k) / kStride;
  const int64_t rank = int64_t(share + 5 * std::sqrt(share)) + 10;
  Collector<T> collector(limits, rank, call);
  collect(collector, logits, 0, call.num_priors, kStride, call);
  for (int64_t c = call.first_class(); c < call.classes; ++c) {
    auto& list = collector.list(c);
    if (int64_t(list.size()) < rank) continue;
    keep_best(list, rank);
    limits[c] = std::nextafter(lowest_score(list), T(0));  // the lowest score itself exceeds it
  }
  return limits;
}

template <class T>
void sort_scored(Scored<T>* scored, int64_t count) {
  std::vector<Scored<T>> copy(scored, scored + count);
  std::vector<Keyed<decltype(falling_key(T()))>> items(count);
  for (int64_t i = 0; i < count; ++i)
    items[i] = {falling_key(copy[i].candidate.score), int32_t(i)};
  radix_sort(items);
  for (int64_t i = 0; i < count; ++i) scored[i] = copy[items[i].index];
  for (int64_t begin = 0, end; begin < count; begin = end) {
    for (end = begin + 1; end < count && items[end].key == items[begin].key;) ++end;
    if (end - begin > 1) std::sort(scored + begin, scored + end, ranks_before<T>);
  }
}

// The boxes of a class that NMS has kept in one image.
template <class T>
struct Kept {
  static constexpr int kSize = 8;
  int64_t seen = 0, count = 0;
  bool empty = false;  // whether a box of zero area is among them
  std::vector<BoxBlock<T, kSize>> blocks;

  void add(Box<T> box) {
    empty |= area(box) == 0;
    if (count % kSize == 0) blocks.emplace_back();
    blocks.back().set(int(count++ % kSize), box);
  }
};

template <class T, int kSize, class Metric>
MDSSD_SIMD bool suppressed(Box<T> box, const BoxBlock<T, kSize>* blocks, size_t count,
                           T threshold, Metric metric) {
  const T size = area(box);
  for (size_t i = 0; i < count; ++i)
    if (any_overlapping(box, size, blocks[i], threshold, metric)) return true;
  return false;
}

// Writes the detections of one image, given its candidates, and their number.
template <class S>
void detect(std::vector<Scored<Wide<S>>>& scored, const S* loc, const Wide<S>* priors,
            const Call& call, Wide<S>* boxes, Wide<S>* scores, int64_t* labels, int64_t* count) {
  using T = Wide<S>;
  const DetectionOutputSettings& settings = call.settings;
  const Decoding<T> decoding = make_decoding<T>(settings);
  const int64_t all = int64_t(scored.size());
  std::vector<Kept<T>> kept(settings.class_agnostic ? 1 : call.foreground());
  int64_t found = 0;
  const int64_t most = settings.per_class ? all : settings.max_detections;
  // Candidates are sorted chunk by chunk. The first chunk usually suffices.
  const int64_t chunk = std::max<int64_t>(4096, 4 * std::min(settings.max_detections, all));
  for (int64_t begin = 0; begin < all && found < most; begin += chunk) {
    const int64_t end = std::min(all, begin + chunk);
    if (end < all)
      std::nth_element(scored.begin() + begin, scored.begin() + end, scored.end(),
                       ranks_before<T>);
    sort_scored(scored.data() + begin, end - begin);
    for (int64_t i = begin; i < end && found < most; ++i) {
      const Scored<T>& s = scored[i];
      Kept<T>& own = kept[settings.class_agnostic ? 0 : s.label - 1];
      if (own.seen++ >= settings.top_k || own.count >= settings.max_detections) continue;
      const int64_t prior = s.candidate.index;
      const S* o = loc + prior * 4;
      const T* p = priors + 4 * prior;
      const Box<T> box = decode(Offsets<T>{widen(o[0]), widen(o[1]), widen(o[2]), widen(o[3])},
                                CentreBox<T>{p[0], p[1], p[2], p[3]}, VectorExp{}, decoding);
      if (has_nan(box)) continue;
      if (!settings.keep_empty && own.empty && area(box) == 0) continue;
      bool gone = false;
      with_metric<T>(settings, [&](auto metric) {
        gone = suppressed(box, own.blocks.data(), own.blocks.size(), T(settings.nms_threshold),
                          metric);
      });
      if (gone) continue;
      const int64_t row =
          settings.per_class ? (s.label - 1) * settings.max_detections + own.count : found;
      own.add(box);
      store4<T>(boxes + 4 * row, box.x1, box.y1, box.x2, box.y2);
      scores[row] = s.candidate.score;
      labels[row] = s.label;
      ++found;
    }
  }
  count[0] = found;
  if (settings.per_class)
    for (int64_t c = 0; c < call.foreground(); ++c) count[c] = kept[c].count;
}

// Finds the candidates of all classes, each counted for its own, and calls found(image, scored) for
// each image.
template <class S, class Found>
void find_candidates(const S* logits, const Call& call, int threads, const Found& found) {
  using T = Wide<S>;
  const int64_t images = call.images, num_priors = call.num_priors, classes = call.classes;
  const T score_threshold = T(call.settings.score_threshold);
  const int64_t splits = std::min((2 * threads + images - 1) / images, (num_priors + 1023) / 1024);
  std::vector<std::vector<T>> limits(images);
  std::vector<std::vector<Collector<T>>> collectors(images);
  const auto total = [&](int64_t image, int64_t c) {
    size_t sum = 0;
    for (auto& collector : collectors[image]) sum += collector.list(c).size();
    return int64_t(sum);
  };
  std::vector<int64_t> pending(images);
  for (int64_t image = 0; image < images; ++image) pending[image] = image;
  parallel_for(threads, images, [&](int64_t image) {
    limits[image] = sample_limits(logits + image * num_priors * classes, call);
  });
  while (!pending.empty()) {
    for (int64_t image : pending)
      collectors[image].assign(splits, Collector<T>(limits[image], call.settings.top_k, call));
    parallel_for(threads, int64_t(pending.size()) * splits, [&](int64_t task) {
      const int64_t image = pending[task / splits], split = task % splits;
      collect(collectors[image][split], logits + image * num_priors * classes,
              split * num_priors / splits, (split + 1) * num_priors / splits, 1, call);
    });
    // If a limit was too high, a class has too few candidates. Repeat these images without limits.
    std::vector<int64_t> again;
    for (int64_t image : pending) {
      bool enough = true;
      for (int64_t c = call.first_class(); c < classes; ++c)
        enough &= limits[image][c] == score_threshold || total(image, c) >= call.settings.top_k;
      if (enough) continue;
      limits[image].assign(classes, score_threshold);
      again.push_back(image);
    }
    pending.swap(again);
  }

  parallel_for(threads, images, [&](int64_t image) {
    std::vector<Scored<T>> scored;
    int64_t candidates = 0;
    for (int64_t c = call.first_class(); c < classes; ++c) candidates += total(image, c);
    scored.reserve(candidates);
    for (auto& collector : collectors[image])
      for (int64_t c = call.first_class(); c < classes; ++c)
        for (const auto& candidate : collector.list(c))
          scored.push_back({candidate, call.label(c)});
    found(image, scored);
  });
}

template <class S>
void detection_output(const S* loc, const S* logits, const Wide<S>* priors, Call call,
                      Wide<S>* boxes, Wide<S>* scores, int64_t* labels, int64_t* count,
                      int threads) {
  check_index("detection_output", call.num_priors);
  if (call.images == 0 || call.num_priors == 0) return;
  if (call.images == 1 && call.num_priors * call.classes < kParallelFrom) threads = 1;
  const auto found = [&](int64_t image, std::vector<Scored<Wide<S>>>& scored) {
    const int64_t first = image * (call.settings.per_class ? call.foreground() : 1);
    const int64_t row = first * call.settings.max_detections;
    const auto run = call.settings.suppression ? detect_softly<S> : detect<S>;
    run(scored, loc + image * call.num_priors * 4, priors, call, boxes + 4 * row, scores + row,
        labels + row, count + first);
  };
  if (call.settings.class_agnostic || call.settings.top_k_per_level) {
    find_joint_candidates(logits, call, threads, found);
  } else {
    // So that 2 * top_k does not overflow.
    call.settings.top_k = std::min(call.settings.top_k, call.num_priors);
    find_candidates(logits, call, threads, found);
  }
}

}  // namespace

void detection_output_cpu(const void* loc, const void* logits, const void* priors, int64_t images,
                          int64_t num_priors, int64_t classes,
                          const DetectionOutputSettings& settings, void* boxes, void* scores,
                          int64_t* labels, int64_t* count, DType dtype, int threads) {
  const Call call = {images, num_priors, classes, settings};
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    detection_output(static_cast<const S*>(loc), static_cast<const S*>(logits),
                     static_cast<const T*>(priors), call, static_cast<T*>(boxes),
                     static_cast<T*>(scores), labels, count, threads);
  });
}

}  // namespace mdssd
