// Soft-NMS of the candidates of one image, for detection_output.
//
// The best top_k candidates of each class, or of all together, are decoded and softened
// (soft_nms.h); the boxes that are chosen have lowered scores, and the best of all classes remain.
#pragma once

#include "joint_candidates.h"
#include "soft_nms.h"

namespace mdssd {
namespace {

template <class T>
struct Softened {
  Scored<T> scored;
  Box<T> box;
};

template <class T>
bool softened_before(const Softened<T>& a, const Softened<T>& b) {
  return ranks_before(a.scored, b.scored);
}

// Keeps the best `count` items, sorted.
template <class T>
void sort_best(std::vector<Softened<T>>& items, int64_t count) {
  keep_best(items, count, softened_before<T>);
  std::sort(items.begin(), items.end(), softened_before<T>);
}

template <class T>
SoftSettings<T> soft_settings(const DetectionOutputSettings& settings) {
  const auto kind = SuppressionKind(settings.suppression);
  const T infinity = std::numeric_limits<T>::infinity();
  return {kind == SuppressionKind::kSoftGaussian,
          {T(settings.nms_threshold), T(1 / settings.soft_sigma)},
          std::nextafter(T(settings.score_threshold), infinity),
          settings.max_detections};
}

// Softens the candidates of one class, which are sorted by rank. Those without area are as good as
// one another, and with `keep_empty` unset only the first of them takes part.
template <class S>
std::vector<Softened<Wide<S>>> soften_class(std::vector<Scored<Wide<S>>>& scored, const S* loc,
                                            const Wide<S>* priors, const Call& call) {
  using T = Wide<S>;
  const DetectionOutputSettings& settings = call.settings;
  const Decoding<T> decoding = make_decoding<T>(settings);
  std::vector<Softened<T>> items;
  bool empty = false;
  for (const Scored<T>& s : scored) {
    const int64_t prior = s.candidate.index;
    const S* o = loc + prior * 4;
    const T* p = priors + 4 * prior;
    const Box<T> box = decode(Offsets<T>{widen(o[0]), widen(o[1]), widen(o[2]), widen(o[3])},
                              CentreBox<T>{p[0], p[1], p[2], p[3]}, VectorExp{}, decoding);
    if (has_nan(box)) continue;
    const bool is_empty = area(box) == 0;
    if (!settings.keep_empty && empty && is_empty) continue;
    empty |= is_empty;
    items.push_back({s, box});
  }
  // Of equal scores the lower prior and class comes first.
  std::sort(items.begin(), items.end(), [](const Softened<T>& a, const Softened<T>& b) {
    const Candidate<T>&x = a.scored.candidate, &y = b.scored.candidate;
    return x.index != y.index ? x.index < y.index : a.scored.label < b.scored.label;
  });
  std::vector<Box<T>> boxes;
  std::vector<T> scores;
  for (const Softened<T>& item : items) {
    boxes.push_back(item.box);
    scores.push_back(item.scored.candidate.score);
  }
  std::vector<Softened<T>> chosen;
  const auto run = [&](auto metric) {
    soften(boxes.data(), scores.data(), boxes.size(), soft_settings<T>(settings), metric,
           [&](size_t i, T score) {
             chosen.push_back(items[i]);
             chosen.back().scored.candidate.score = score;
           });
  };
  if (settings.ios)
    run(Smaller<T>{T(settings.iou_eps)});
  else
    with_eps<T>(settings.iou_eps, run);
  return chosen;
}

// Writes the detections of one image, given its candidates, and their number.
template <class S>
void detect_softly(std::vector<Scored<Wide<S>>>& scored, const S* loc, const Wide<S>* priors,
                   const Call& call, Wide<S>* boxes, Wide<S>* scores, int64_t* labels,
                   int64_t* count) {
  using T = Wide<S>;
  const DetectionOutputSettings& settings = call.settings;
  std::vector<std::vector<Scored<T>>> classes(settings.class_agnostic ? 1 : call.foreground());
  for (const Scored<T>& s : scored)
    classes[settings.class_agnostic ? 0 : s.label - 1].push_back(s);
  const auto write = [&](std::vector<Softened<T>>& items, int64_t list) {
    sort_best(items, settings.max_detections);
    for (size_t i = 0; i < items.size(); ++i) {
      const int64_t row = list * settings.max_detections + int64_t(i);
      const Box<T> box = items[i].box;
      store4<T>(boxes + 4 * row, box.x1, box.y1, box.x2, box.y2);
      scores[row] = items[i].scored.candidate.score;
      labels[row] = items[i].scored.label;
    }
    count[list] = int64_t(items.size());
  };
  std::vector<Softened<T>> all;
  for (size_t c = 0; c < classes.size(); ++c) {
    keep_best(classes[c], settings.top_k, ranks_before<T>);
    std::sort(classes[c].begin(), classes[c].end(), ranks_before<T>);
    std::vector<Softened<T>> chosen = soften_class(classes[c], loc, priors, call);
    if (settings.per_class)
      write(chosen, int64_t(c));
    else
      all.insert(all.end(), chosen.begin(), chosen.end());
  }
  if (!settings.per_class) write(all, 0);
}

}  // namespace
}  // namespace mdssd
