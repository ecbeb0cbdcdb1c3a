// What detection_output needs of the logits, and its candidates where all classes count together.
//
// A level, or without levels the image, has one list of at most 2 * `most` candidates of all classes.
// A full list drops its lower half and raises its limit. The sigmoid rises with the logit, so the
// limit becomes one of the logits, and a logit below it costs a comparison, without an exponential.
#pragma once

#include <cmath>
#include <type_traits>

#include "../ops.h"
#include "box_block.h"
#include "candidates.h"
#include "parallel.h"
#include "vector_math.h"

namespace mdssd {
namespace {

struct Call {
  int64_t images, num_priors, classes;  // classes: columns of the logits
  DetectionOutputSettings settings;

  int64_t first_class() const { return settings.background ? 1 : 0; }  // its column
  int64_t foreground() const { return classes - first_class(); }
  int32_t label(int64_t column) const { return int32_t(column - first_class() + 1); }
};

template <class T>
struct Scored {
  Candidate<T> candidate;
  int32_t label;
};

// Ranks by higher score, then lower prior, then lower class.
template <class T>
bool ranks_before(const Scored<T>& a, const Scored<T>& b) {
  if (before(a.candidate, b.candidate)) return true;
  if (before(b.candidate, a.candidate)) return false;
  return a.label < b.label;
}

// Finds the first row in [begin, rows) that can have a score above the threshold. A score is at
// most exp(logit - background logit), and comparing this bound with the threshold needs no
// exponential. Rows with a NaN may be found or not; they have no scores.
template <class T>
MDSSD_SIMD int64_t next_row(const T* logits, int64_t begin, int64_t rows, int64_t classes,
                            T log_threshold) {
  for (int64_t row = begin; row < rows; ++row) {
    const T* x = logits + row * classes;
    if (classes <= kEight) {
      bool found = false;
      for (int64_t c = 1; c < classes; ++c) found |= x[c] - x[0] >= log_threshold;
      if (found) return row;
    } else {
      Eight<T> best;
      running_max(x + 1, classes - 1, best);
      const auto reached = best - x[0] >= log_threshold;
      uint64_t words[sizeof(reached) / 8], any = 0;
      std::memcpy(words, &reached, sizeof(reached));
      for (uint64_t word : words) any |= word;
      if (any) return row;
    }
  }
  return rows;
}

// Computes the numerators and denominators of the softmax of several rows. A row is padded with
// -inf to `room` values, a multiple of eight. Rows are processed together because a single row is a
// long chain of dependent instructions.
template <class T>
MDSSD_SIMD void softmax_weights(const T* __restrict x, int64_t rows, int64_t room,
                                T* __restrict weights, T* __restrict sums) {
  for (int64_t row = 0; row < rows; ++row, x += room, weights += room) {
    Eight<T> best, next, sum = {};
    running_max(x, room, best);
    const T top = largest<T>(best);
    for (int64_t c = 0; c < room; ++c) weights[c] = vector_exp(x[c] - top);
    for (int64_t c = 0; c < room; c += kEight) {
      load(next, weights + c);
      sum += next;
    }
    sums[row] = 0;
    for (int lane = 0; lane < kEight; ++lane) sums[row] += sum[lane];
  }
}

template <class T>
MDSSD_INLINE T sigmoid(T x) {
  return 1 / (1 + vector_exp(-x));
}

template <class T>
MDSSD_SIMD void sigmoid_all(const T* __restrict x, int64_t count, T* __restrict scores) {
  for (int64_t i = 0; i < count; ++i) scores[i] = sigmoid(x[i]);
}

// Returns what a number must be above to have, apart from rounding, a score above `limit`: a logit
// minus that of the background with softmax, a logit with sigmoid, or else the score. The margins
// cover rounding; an exact test of the score rejects what passes by mistake.
template <class T>
T raw_limit(T limit, const DetectionOutputSettings& settings) {
  if (settings.softmax) return std::log(limit) - T(1e-3);
  if (!settings.sigmoid) return limit;
  const double below = double(limit) * (1 - 1e-6);
  return T(std::log(below) - std::log1p(-below)) - T(1e-3);
}

template <class S>
MDSSD_SIMD void widen_all(const S* __restrict x, int64_t count, Wide<S>* __restrict wide) {
  for (int64_t i = 0; i < count; ++i) wide[i] = widen(x[i]);
}

// Calls visit(x, first, rows) for the rows of one image from `begin` to `end`, several at a time, or
// for every stride-th of them: x are the numbers of `rows` rows from `first` on.
template <class S, class Visit>
void for_each_wide(const S* logits, int64_t begin, int64_t end, int64_t stride, const Call& call,
                   const Visit& visit) {
  using T = Wide<S>;
  constexpr bool same = std::is_same<S, T>::value;
  // Half-precision rows are converted a few at a time, so that they stay in L1.
  const int64_t most = stride > 1 ? 1 : same ? end - begin : 4096 / call.classes + 1;
  std::vector<T> wide(same ? 0 : most * call.classes);
  for (int64_t first = begin, rows; first < end; first += rows * stride) {
    rows = std::min(most, end - first);
    const S* stored = logits + first * call.classes;
    const T* x = wide.data();
    if constexpr (same)
      x = stored;
    else
      widen_all(stored, rows * call.classes, wide.data());
    visit(x, first, rows);
  }
}

// The best `most` candidates of a part of a level, and fewer than `most` others.
template <class T>
class JointList {
 public:
  JointList(int64_t most, const Call& call)
      : most_(most), call_(call), limit_(T(call.settings.score_threshold)) {
    bound_ = raw_limit(limit_, call.settings);
  }

  // Candidates must come by rising prior and then by rising column, so that a score equal to the
  // limit of a full list ranks lower than those in the list.
  void add(T score, int64_t prior, int64_t column) {
    if (!(score > limit_ && score <= 1) || column < call_.first_class()) return;
    scored.push_back({{score, int32_t(prior)}, call_.label(column)});
    if (int64_t(scored.size()) < 2 * most_) return;
    keep_best(scored, most_, ranks_before<T>);
    for (const Scored<T>& s : scored)
      if (&s == &scored[0] || s.candidate.score < limit_) limit_ = s.candidate.score;
    bound_ = raw_limit(limit_, call_.settings);
  }
  T limit() const { return limit_; }
  T bound() const { return bound_; }  // numbers up to this (see raw_limit) need not be added

  std::vector<Scored<T>> scored;

 private:
  int64_t most_;
  const Call& call_;
  T limit_, bound_;
};

constexpr int64_t kScanned = 32;

// Finds the first block, of kScanned numbers from `begin` on, with one above the bound, and sets a
// bit for each of these in `over`. Returns `count` if there is none.
template <class T>
MDSSD_SIMD int64_t next_block(const T* x, int64_t begin, int64_t count, T bound, uint32_t* over) {
  for (; begin + kScanned <= count; begin += kScanned) {
    const T* const block = x + begin;
    int found = 0;
    for (int64_t i = 0; i < kScanned; ++i) found |= block[i] > bound;
    if (!found) continue;
    *over = mask_of_32([=](int i) { return block[i] > bound; });
    return begin;
  }
  *over = 0;
  for (int64_t i = begin; i < count; ++i) *over |= uint32_t(x[i] > bound) << (i - begin);
  return *over ? begin : count;
}

template <class S>
void collect_joint(JointList<Wide<S>>& list, const S* logits, int64_t begin, int64_t end,
                   const Call& call) {
  using T = Wide<S>;
  const int64_t classes = call.classes, room = (classes + kEight - 1) / kEight * kEight;
  const bool softmax = call.settings.softmax, sigmoids = call.settings.sigmoid;
  std::vector<T> row(softmax ? room : 0, -std::numeric_limits<T>::infinity()), weights(row);
  for_each_wide(logits, begin, end, 1, call, [&](const T* x, int64_t first, int64_t rows) {
    uint32_t over = 0;
    for (int64_t base = 0; !softmax; base += kScanned) {
      base = next_block(x, base, rows * classes, list.bound(), &over);
      if (base >= rows * classes) break;
      for (; over; over &= over - 1) {
        const int64_t place = base + __builtin_ctz(over);
        list.add(sigmoids ? sigmoid(x[place]) : x[place], first + place / classes, place % classes);
      }
    }
    for (int64_t r = 0; softmax && r < rows; ++r) {
      if (call.settings.background) r = next_row(x, r, rows, classes, list.bound());
      if (r >= rows) break;
      std::copy(x + r * classes, x + (r + 1) * classes, row.data());
      T sum;
      softmax_weights(row.data(), 1, room, weights.data(), &sum);
      for (int64_t c = 0; c < classes; ++c) list.add(weights[c] / sum, first + r, c);
    }
  });
}

// Finds the candidates and calls found(image, scored) for each image.
template <class S, class Found>
void find_joint_candidates(const S* logits, const Call& call, int threads, const Found& found) {
  struct Part {
    int64_t image, begin, end, most;
    bool last;  // of its level
  };
  using T = Wide<S>;
  const DetectionOutputSettings& settings = call.settings;
  const std::vector<int64_t> sizes = settings.level_sizes(call.num_priors);
  const int64_t each = std::max<int64_t>(1024, call.images * call.num_priors / (4 * threads) + 1);
  std::vector<Part> parts;
  for (int64_t image = 0; image < call.images; ++image) {
    int64_t begin = 0;
    for (int64_t size : sizes) {
      const int64_t most =
          std::min(settings.top_k_per_level.value_or(settings.top_k), size * call.foreground());
      const int64_t end = begin + size;
      for (; begin < end; begin = parts.back().end)
        parts.push_back({image, begin, std::min(begin + each, end), most, begin + each >= end});
    }
  }
  std::vector<JointList<T>> lists;
  for (const Part& part : parts) lists.emplace_back(part.most, call);
  parallel_for(threads, int64_t(parts.size()), [&](int64_t i) {
    collect_joint(lists[i], logits + parts[i].image * call.num_priors * call.classes,
                  parts[i].begin, parts[i].end, call);
  });
  parallel_for(threads, call.images, [&](int64_t image) {
    std::vector<Scored<T>> scored, level;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (parts[i].image != image) continue;
      level.insert(level.end(), lists[i].scored.begin(), lists[i].scored.end());
      if (!parts[i].last) continue;
      keep_best(level, parts[i].most, ranks_before<T>);
      scored.insert(scored.end(), level.begin(), level.end());
      level.clear();
    }
    found(image, scored);
  });
}

}  // namespace
}  // namespace mdssd
