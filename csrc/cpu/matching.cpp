// match_priors, encode_targets and ignore_priors.
//
// A task handles one image and a range of priors, in blocks of 256. All ground truths of the image
// are compared with a block while its best ranks stay in L1. A rank (match_math.h) is the IoU, or
// the closeness of the corners: higher is better and 0 is no overlap. A ground truth is compared only
// with the groups of a block that its bounds let it reach. encode_targets also skips groups in which
// no rank can reach the threshold or the ground truth's best so far.
//
// Results of a block are computed in L1 and then written by non-temporal stores if they are large.
#include <limits>
#include <stdexcept>
#include <vector>

#include "../match_math.h"
#include "prior_blocks.h"
#include "streaming.h"

namespace mdssd {
namespace {

// A rank is never negative, so its bits order like integers. Compilers vectorise a maximum of
// integers, but not one of floats, because of NaN.

template <class T>
struct BestGroup {  // the group with the best prior of a ground truth
  T rank = 0;
  int64_t group = 0;
};

template <class T>
struct BestTruth {  // the best ground truth of each prior of a block
  T rank[kBlock];
  Bits<T> index[kBlock];
  T worst[kGroups];  // with Nwd: the lowest rank of each group
};

// A prior and the ground truth, counted in its image, that takes it.
struct Claim {
  int64_t prior, truth;
};

// Margins that make the bound on a group's IoUs hold in spite of rounding, for ground truths with
// an area of at least kLeastArea; smaller areas lose digits to underflow.
constexpr double kSpare = 1.001, kSpareIou = 1e-30, kLeastArea = 1e-12;

constexpr uint32_t kGroupBits[kGroups] = {1, 2, 4, 8, 16, 32, 64, 128};

// Sets bit g if a prior of group g may have a rank with the ground truth of at least `own`, or of at
// least `floor` that also beats the worst of the group's best.
template <class T, class Eps>
MDSSD_INLINE uint32_t groups_met(Box<T> truth, T truth_area, T floor, T own, const T*,
                                 const PriorBlock<T>& block, Eps) {
  const T least = truth_area < T(kLeastArea) ? T(0) : smaller(floor, own);
  uint32_t mask = 0;
  for (int g = 0; g < kGroups; ++g) {
    const T width = smaller(block.high_x[g], truth.x2) - larger(block.low_x[g], truth.x1);
    const T height = smaller(block.high_y[g], truth.y2) - larger(block.low_y[g], truth.y1);
    // Bounds the IoU, which increases with the intersection and decreases with the prior's area.
    const T intersection = smaller(width * height, block.most_area[g]);
    const T both = truth_area + larger(block.least_area[g], intersection) - intersection;
    const bool low = intersection / both * T(kSpare) + T(kSpareIou) < least;  // false for NaN
    mask |= (width > T(0)) & (height > T(0)) & !low ? kGroupBits[g] : 0;
  }
  return mask;
}

// Returns how far x is from a range.
template <class T>
MDSSD_INLINE T outside(T x, T low, T high) {
  return larger(larger(low - x, x - high), T(0));
}

// The bound needs no margins: rounding keeps the order of differences, of squares and of sums.
template <class T>
MDSSD_INLINE uint32_t groups_met(Box<T> truth, T, T floor, T own, const T* worst,
                                 const PriorBlock<T>& block, Nwd<T>) {
  uint32_t mask = 0;
  for (int g = 0; g < kGroups; ++g) {
    const T bound = closeness(sum_of_squares(outside(truth.x1, block.low_x[g], block.high_x1[g]),
                                             outside(truth.y1, block.low_y[g], block.high_y1[g]),
                                             outside(truth.x2, block.low_x2[g], block.high_x[g]),
                                             outside(truth.y2, block.low_y2[g], block.high_y[g])));
    mask |= bound < smaller(own, larger(floor, worst[g])) ? 0 : kGroupBits[g];
  }
  return mask;
}

template <class T, class Eps>
MDSSD_INLINE bool may_match(Box<T> truth, const PriorBlock<T>& block, Eps) {
  return meets(truth, block);
}
template <class T>
MDSSD_INLINE bool may_match(Box<T>, const PriorBlock<T>&, Nwd<T>) {
  return true;
}

template <class Metric>
constexpr bool kIsNwd = false;
template <class T>
constexpr bool kIsNwd<Nwd<T>> = true;

template <class T, class Metric>
MDSSD_INLINE void group_ranks(Box<T> truth, T truth_area, const PriorBlock<T>& block, int first,
                              Metric metric, T* ranks) {
  for (int i = 0; i < kGroup; ++i)
    ranks[i] = match_rank(truth, truth_area, block.box(first + i), block.area[first + i], metric);
}

// Compares a ground truth with a group, updates `best` and returns the ground truth's best rank.
// Uses explicit vectors because GCC compiles a loop with selections to masked stores, which are
// slow.
template <class T, class Metric>
MDSSD_INLINE T pass_group(Box<T> truth, T truth_area, Bits<T> index, const PriorBlock<T>& block,
                          int group, Metric metric, BestTruth<T>& best) {
  const int first = group * kGroup;
  T ranks[kGroup];
  group_ranks(truth, truth_area, block, first, metric, ranks);
  Eight<Bits<T>> top = {};
  [[maybe_unused]] Eight<T> worst = std::numeric_limits<T>::infinity() - Eight<T>{};
  const Eight<Bits<T>> truths = index - Eight<Bits<T>>{};
  for (int i = 0; i < kGroup; i += kEight) {
    Eight<T> value, best_value;
    Eight<Bits<T>> bits, best_index;
    load<T>(value, ranks + i);
    load<T>(best_value, best.rank + first + i);
    load<Bits<T>>(best_index, best.index + first + i);
    std::memcpy(&bits, &value, sizeof(bits));
    const auto better = value > best_value;  // on a tie, the lower index stays
    best_value = better ? value : best_value;
    best_index = better ? truths : best_index;
    top = bits > top ? bits : top;
    if constexpr (kIsNwd<Metric>) worst = best_value < worst ? best_value : worst;
    std::memcpy(best.rank + first + i, &best_value, sizeof(best_value));
    std::memcpy(best.index + first + i, &best_index, sizeof(best_index));
  }
  if constexpr (kIsNwd<Metric>) best.worst[group] = -largest<T>(-worst);
  return bit_cast<T>(largest<Bits<T>>(top));
}

// Matches a block, whose first prior is `first`, with the ground truths of an image. Blocks must
// come in falling order: the coarse feature maps at the end are quickly done, and their ranks allow
// to skip groups of the fine maps. Without `all`, ranks below the threshold may be missing from
// `best`, unless they are the best of a ground truth. Returns false, and leaves `best` unset, if no
// rank is above 0 and the threshold cannot be reached.
template <class T, class Metric>
MDSSD_SIMD bool match_block(const PriorBlock<T>& block, int64_t first, const T* truths,
                            int64_t truth_count, T threshold, Metric metric, bool all,
                            BestTruth<T>& best, BestGroup<T>* best_groups) {
  const auto clear = [&]() __attribute__((always_inline)) {
    for (int i = 0; i < kBlock; ++i) best.rank[i] = 0;
    for (int i = 0; i < kBlock; ++i) best.index[i] = 0;
    for (int g = 0; g < kGroups; ++g) best.worst[g] = 0;
  };
  // With a threshold of 0, a rank of 0 is a match.
  bool any = truth_count > 0 && (kIsNwd<Metric> || threshold <= T(0));
  if (any) clear();
  for (int64_t k = 0; k < truth_count; ++k) {
    const Box<T> truth = load_box(truths, k);
    if (!may_match(truth, block, metric)) continue;  // all ranks are 0 and change nothing
    const T truth_area = area(truth);
    BestGroup<T> own = best_groups[k];
    uint32_t met = groups_met(truth, truth_area, all ? T(0) : threshold, own.rank, best.worst,
                              block, metric);
    if (met != 0 && !any) {
      any = true;
      clear();
    }
    while (met != 0) {
      const int group = 31 - __builtin_clz(met);
      met -= 1u << group;
      const T top = pass_group(truth, truth_area, Bits<T>(k), block, group, metric, best);
      // On a tie, this group wins, because it comes before the previous best one.
      const bool better = top > T(0) && top >= own.rank;
      own.rank = better ? top : own.rank;
      own.group = better ? first / kGroup + group : own.group;
    }
    best_groups[k] = own;
  }
  return any;
}

// Returns the first prior of a group, counted in its block, that has the ground truth's best rank.
template <class T, class Metric>
MDSSD_SIMD int best_lane(const PriorBlock<T>& block, int first, Box<T> truth, Metric metric,
                         T best) {
  T ranks[kGroup];
  group_ranks(truth, area(truth), block, first, metric, ranks);
  int lane = 0;
  while (lane < kGroup - 1 && ranks[lane] != best) ++lane;
  return first + lane;
}

template <class T, class Metric>
int64_t best_prior(const Priors<T>& priors, Box<T> truth, Metric metric, BestGroup<T> best) {
  const int64_t block = best.group / kGroups;
  const int first = int(best.group % kGroups) * kGroup;
  return block * kBlock + best_lane(priors[block], first, truth, metric, best.rank);
}

// --- force: low_quality --------------------------------------------------------------------------

// Sets the lanes of a block whose rank with some ground truth is the highest of that one; returns
// whether there are any. Ranks of 0 do not count.
template <class T, class Metric>
MDSSD_SIMD bool find_highest(const PriorBlock<T>& block, const T* truths, int64_t truth_count,
                             const BestGroup<T>* highest, Metric metric, bool* lanes) {
  const T worst[kGroups] = {};
  bool any = false;
  for (int i = 0; i < kBlock; ++i) lanes[i] = false;
  for (int64_t k = 0; k < truth_count; ++k) {
    const Box<T> truth = load_box(truths, k);
    const T top = highest[k].rank;
    if (!(top > T(0)) || !may_match(truth, block, metric)) continue;
    const T truth_area = area(truth);
    for (uint32_t met = groups_met(truth, truth_area, top, top, worst, block, metric); met != 0;
         met &= met - 1) {
      const int first = __builtin_ctz(met) * kGroup;
      T ranks[kGroup];
      group_ranks(truth, truth_area, block, first, metric, ranks);
      for (int i = 0; i < kGroup; ++i) {
        lanes[first + i] |= ranks[i] == top;
        any |= ranks[i] == top;
      }
    }
  }
  return any;
}

// Gives the priors that find_highest finds in a range of blocks their own best ground truth. A
// ground truth whose highest rank is 0 has it with every prior.
template <class T, class Metric, class Take>
void restore(const Priors<T>& priors, int64_t begin, int64_t end, const T* truths,
             int64_t truth_count, const BestGroup<T>* highest, Metric metric, const Take& take) {
  bool every = false;
  for (int64_t k = 0; k < truth_count; ++k) every |= highest[k].rank == T(0);
  std::vector<BestGroup<T>> unused(truth_count, {std::numeric_limits<T>::infinity(), 0});
  std::vector<Claim> claims;
  BestTruth<T> best;
  bool lanes[kBlock];
  for (int64_t block = begin; block < end; ++block) {
    const bool any = find_highest<T>(priors[block], truths, truth_count, highest, metric, lanes);
    if (!any && !every) continue;
    const int64_t first = block * kBlock;
    match_block<T>(priors[block], first, truths, truth_count, T(0), metric, true, best,
                   unused.data());
    claims.clear();
    for (int i = 0; i < priors.size(block); ++i)
      if (every || lanes[i]) claims.push_back({first + i, int64_t(best.index[i])});
    take(claims);
  }
}

// --- top_k ---------------------------------------------------------------------------------------

template <class T>
struct Near {
  T rank;
  int64_t prior;
  bool operator<(const Near& other) const {  // comes first in the order of its ground truth
    return rank != other.rank ? rank > other.rank : prior < other.prior;
  }
};

// Updates the heap of the top_k priors with the highest ranks above 0, the last of them in front.
template <class T, class Metric>
MDSSD_SIMD void add_nearest(const PriorBlock<T>& block, int64_t first, int n, Box<T> truth,
                            Metric metric, size_t top_k, std::vector<Near<T>>& nearest) {
  if (!may_match(truth, block, metric)) return;
  const T worst[kGroups] = {};
  const T truth_area = area(truth);
  T least = nearest.size() == top_k ? nearest.front().rank : T(0);
  for (uint32_t met = groups_met(truth, truth_area, least, least, worst, block, metric); met != 0;
       met &= met - 1) {
    const int start = __builtin_ctz(met) * kGroup;
    T ranks[kGroup];
    group_ranks(truth, truth_area, block, start, metric, ranks);
    for (int i = 0; i < std::min(kGroup, n - start); ++i) {
      if (!(ranks[i] > T(0)) || ranks[i] < least) continue;
      nearest.push_back({ranks[i], first + start + i});
      std::push_heap(nearest.begin(), nearest.end());
      if (nearest.size() <= top_k) continue;
      std::pop_heap(nearest.begin(), nearest.end());
      nearest.pop_back();
      least = nearest.front().rank;
    }
  }
}

// Returns the priors [truth_count, top_k] that each ground truth takes, the best first, then -1.
template <class T, class Metric>
std::vector<int64_t> nearest_priors(const Priors<T>& priors, const T* truths, int64_t truth_count,
                                    int64_t top_k, Metric metric, int threads) {
  std::vector<int64_t> taken(truth_count * top_k, -1);
  parallel_ranges(threads, truth_count, 4, [&](int64_t begin, int64_t end) {
    std::vector<Near<T>> nearest;
    for (int64_t k = begin; k < end; ++k) {
      nearest.clear();
      for (int64_t block = priors.blocks(); block-- > 0;)
        add_nearest<T>(priors[block], block * kBlock, priors.size(block), load_box(truths, k),
                       metric, top_k, nearest);
      std::sort_heap(nearest.begin(), nearest.end());
      taken[k * top_k] = 0;  // unless another prior overlaps
      for (size_t i = 0; i < nearest.size(); ++i) taken[k * top_k + i] = nearest[i].prior;
    }
  });
  return taken;
}

// --- the whole batch -----------------------------------------------------------------------------

// Matches the whole batch; `all` is that of match_block. Calls block_done(image, first prior, n,
// any, best) for each block of n priors, where `any` and `best` are the results of match_block.
// Then calls take(image, claims): of two claims to a prior, the later one counts.
template <class T, class Metric, class BlockDone, class Take>
void match_batch(const T* truths, const int64_t* offsets, int64_t images, const T* prior_rows,
                 int64_t num_priors, const MatchPriorsSettings& by, Metric metric, bool all,
                 int threads, const BlockDone& block_done, const Take& take) {
  if (images == 0 || num_priors == 0) return;
  const int64_t truth_count = offsets[images];
  if (truth_count > std::numeric_limits<int32_t>::max())
    throw std::length_error("match_priors: more than 2^31 - 1 boxes");
  const auto force = Force(by.force);
  const int64_t top_k = force == Force::kBestPrior ? std::min(by.top_k, num_priors) : 1;
  const Priors<T> priors(prior_rows, by.corners, num_priors, threads);
  // Each split of an image needs its own row of best groups, so images are split only if there are
  // too few to occupy all threads.
  const int64_t splits = std::min<int64_t>(priors.blocks(), (2 * threads + images - 1) / images);
  const auto begin_of = [&](int64_t split) { return split * priors.blocks() / splits; };
  BestGroup<T> start;  // if no best prior is wanted, groups are not compared to find one
  if (force == Force::kNone || top_k > 1) start.rank = std::numeric_limits<T>::infinity();
  std::vector<BestGroup<T>> best_groups(splits * truth_count, start);
  parallel_for(threads, images * splits, [&](int64_t task) {
    const int64_t image = task / splits, split = task % splits;
    const int64_t begin = offsets[image], truths_here = offsets[image + 1] - begin;
    BestTruth<T> best;
    for (int64_t block = begin_of(split + 1); block-- > begin_of(split);) {
      const int64_t first = block * kBlock;
      const bool any = match_block<T>(priors[block], first, truths + 4 * begin, truths_here,
                                      match_limits<T>(by).low, metric, all, best,
                                      best_groups.data() + split * truth_count + begin);
      block_done(image, first, priors.size(block), any, best);
    }
    finish_streaming();
  });
  if (force == Force::kNone) return;
  std::vector<int64_t> nearest;
  if (top_k > 1) nearest = nearest_priors<T>(priors, truths, truth_count, top_k, metric, threads);
  parallel_for(threads, images, [&](int64_t image) {
    const int64_t begin = offsets[image], truths_here = offsets[image + 1] - begin;
    std::vector<Claim> claims;
    for (int64_t rank = top_k; top_k > 1 && rank-- > 0;)
      for (int64_t k = 0; k < truths_here; ++k)
        if (const int64_t prior = nearest[(begin + k) * top_k + rank]; prior >= 0)
          claims.push_back({prior, k});
    for (int64_t k = 0; top_k == 1 && k < truths_here; ++k) {
      BestGroup<T>& best = best_groups[begin + k];
      for (int64_t split = 1; split < splits; ++split) {
        const BestGroup<T>& other = best_groups[split * truth_count + begin + k];
        if (other.rank > best.rank) best = other;
      }
      if (force == Force::kBestPrior)
        claims.push_back({best_prior(priors, load_box(truths, begin + k), metric, best), k});
    }
    take(image, claims);
  });
  if (force != Force::kLowQuality) return;
  parallel_for(threads, images * splits, [&](int64_t task) {
    const int64_t image = task / splits, split = task % splits, begin = offsets[image];
    restore<T>(priors, begin_of(split), begin_of(split + 1), truths + 4 * begin,
               offsets[image + 1] - begin, best_groups.data() + begin, metric,
               [&](const std::vector<Claim>& claims) { take(image, claims); });
  });
}

template <class T, class Metric>
MDSSD_SIMD void choose(const BestTruth<T>& best, MatchLimits<T> limits, Metric metric,
                       int64_t* index, float* overlap) {
  for (int i = 0; i < kBlock; ++i) {
    const int64_t other = best.rank[i] >= limits.low ? -2 : -1;
    index[i] = best.rank[i] >= limits.high ? best.index[i] : other;
    overlap[i] = float(overlap_of(best.rank[i], metric, VectorExp{}));
  }
}

// Up to kBlock pairs of a box and a prior to encode, with one array per coordinate.
template <class T>
struct Pairs {
  T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], cx[kBlock], cy[kBlock], w[kBlock], h[kBlock];
  int64_t row[kBlock];
  int count = 0;

  MDSSD_INLINE void add(int64_t to, Box<T> b, const T* prior) {
    x1[count] = b.x1;
    y1[count] = b.y1;
    x2[count] = b.x2;
    y2[count] = b.y2;
    cx[count] = prior[0];
    cy[count] = prior[1];
    w[count] = prior[2];
    h[count] = prior[3];
    row[count++] = to;
  }
};

// Writes the offsets of each pair to its row of `loc` and removes all pairs.
template <class T>
MDSSD_SIMD void encode_pairs(Pairs<T>& pairs, T v0, T v1, T* loc) {
  for (int i = 0; i < pairs.count; ++i) {
    const Offsets<T> o = encode(
        Box<T>{pairs.x1[i], pairs.y1[i], pairs.x2[i], pairs.y2[i]},
        CentreBox<T>{pairs.cx[i], pairs.cy[i], pairs.w[i], pairs.h[i]}, v0, v1, VectorLog{});
    pairs.x1[i] = o.x;
    pairs.y1[i] = o.y;
    pairs.x2[i] = o.w;
    pairs.y2[i] = o.h;
  }
  for (int i = 0; i < pairs.count; ++i)
    store4<T>(loc + 4 * pairs.row[i], pairs.x1[i], pairs.y1[i], pairs.x2[i], pairs.y2[i]);
  pairs.count = 0;
}

}  // namespace

void match_priors_cpu(const void* gt, const int64_t* offsets, int64_t images, const void* priors,
                      int64_t num_priors, const MatchPriorsSettings& settings, int64_t* index,
                      float* iou, DType dtype, int threads) {
  with_wide(dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    const int64_t rows = images * num_priors;
    const MatchLimits<T> limits = match_limits<T>(settings);
    const auto take = [&](int64_t image, const std::vector<Claim>& claims) {
      for (const Claim& claim : claims) index[image * num_priors + claim.prior] = claim.truth;
    };
    with_match_metric<T>(settings, [&](auto metric) {
      const auto block_done = [&](int64_t image, int64_t first, int n, bool any,
                                  const BestTruth<T>& best) {
        const int64_t row = image * num_priors + first;
        if (!any) {
          stream_fill(index + row, 0xff, n * sizeof(int64_t), rows * sizeof(int64_t));
          stream_fill(iou + row, 0, n * sizeof(float), rows * sizeof(float));
          return;
        }
        int64_t chosen[kBlock];
        float overlaps[kBlock];
        choose(best, limits, metric, chosen, overlaps);
        stream_copy(index + row, chosen, n * sizeof(int64_t), rows * sizeof(int64_t));
        stream_copy(iou + row, overlaps, n * sizeof(float), rows * sizeof(float));
      };
      match_batch(static_cast<const T*>(gt), offsets, images, static_cast<const T*>(priors),
                  num_priors, settings, metric, true, threads, block_done, take);
    });
  });
}

void encode_targets_cpu(const void* gt, const int64_t* gt_labels, const int64_t* offsets,
                        int64_t images, const void* priors, int64_t num_priors,
                        const EncodeTargetsSettings& settings, void* loc, int64_t* labels,
                        DType dtype, int threads) {
  with_wide(dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    const auto* truths = static_cast<const T*>(gt);
    const auto* prior_rows = static_cast<const T*>(priors);
    auto* offsets_out = static_cast<T*>(loc);
    const int64_t label_size = sizeof(int64_t), loc_size = 4 * sizeof(T);
    const int64_t rows = images * num_priors;
    const MatchPriorsSettings by = match_settings(settings);
    const MatchLimits<T> limits = match_limits<T>(by);
    const auto block_done = [&](int64_t image, int64_t first, int n, bool any,
                                const BestTruth<T>& best) {
      const int64_t row = image * num_priors + first;
      Pairs<T> pairs;
      int matched[kBlock];
      int matches = 0;
      for (int i = 0; any && i < n; ++i) {
        matched[matches] = i;
        matches += best.rank[i] >= limits.low;
      }
      if (matches == 0) {
        stream_fill(offsets_out + 4 * row, 0, n * loc_size, rows * loc_size);
        stream_fill(labels + row, 0, n * label_size, rows * label_size);
        return;
      }
      T block_loc[4 * kBlock] = {};
      int64_t block_labels[kBlock] = {};
      for (int m = 0; m < matches; ++m) {
        const int i = matched[m];
        if (best.rank[i] < limits.high) {
          block_labels[i] = -1;
          continue;
        }
        const int64_t truth = offsets[image] + best.index[i];
        pairs.add(i, load_box(truths, truth), prior_rows + 4 * (first + i));
        block_labels[i] = gt_labels[truth];
      }
      encode_pairs(pairs, T(settings.v0), T(settings.v1), block_loc);
      stream_copy(offsets_out + 4 * row, block_loc, n * loc_size, rows * loc_size);
      stream_copy(labels + row, block_labels, n * label_size, rows * label_size);
    };
    const auto take = [&](int64_t image, const std::vector<Claim>& claims) {
      Pairs<T> pairs;
      T* const image_loc = offsets_out + 4 * image * num_priors;
      for (const Claim& claim : claims) {
        const int64_t truth = offsets[image] + claim.truth;
        pairs.add(claim.prior, load_box(truths, truth), prior_rows + 4 * claim.prior);
        labels[image * num_priors + claim.prior] = gt_labels[truth];
        if (pairs.count == kBlock) encode_pairs(pairs, T(settings.v0), T(settings.v1), image_loc);
      }
      encode_pairs(pairs, T(settings.v0), T(settings.v1), image_loc);
    };
    with_match_metric<T>(by, [&](auto metric) {
      match_batch(truths, offsets, images, prior_rows, num_priors, by, metric, false, threads,
                  block_done, take);
    });
  });
}

namespace {

// Sets the lanes whose prior lies in the box with at least the share `threshold` of its area.
template <class T>
MDSSD_SIMD void cover(const PriorBlock<T>& block, Box<T> box, T threshold, Bits<T>* covered) {
  for (int i = 0; i < kBlock; ++i) {
    const T intersection = areas(box, T(0), block.box(i), T(0), NoEps{}).intersection;
    const T share = intersection / block.area[i];
    covered[i] |= Bits<T>((intersection > T(0)) & (share >= threshold));
  }
}

}  // namespace

void ignore_priors_cpu(const int64_t* marks, const void* ignored, const int64_t* offsets,
                       int64_t images, const void* priors, int64_t num_priors,
                       const IgnorePriorsSettings& settings, int64_t* result, DType dtype,
                       int threads) {
  if (images == 0 || num_priors == 0) return;
  with_wide(dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    const auto* boxes = static_cast<const T*>(ignored);
    const Priors<T> rows(static_cast<const T*>(priors), settings.corners, num_priors, threads);
    parallel_ranges(threads, images * rows.blocks(), 16, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / rows.blocks(), block = task % rows.blocks();
        const int64_t row = image * num_priors + block * kBlock;
        Bits<T> covered[kBlock] = {};
        for (int64_t k = offsets[image]; k < offsets[image + 1]; ++k)
          if (const Box<T> box = load_box(boxes, k); meets(box, rows[block]))
            cover<T>(rows[block], box, T(settings.threshold), covered);
        for (int i = 0; i < rows.size(block); ++i) {
          const bool ignore = covered[i] != 0 && marks[row + i] == settings.background;
          result[row + i] = ignore ? settings.background - 1 : marks[row + i];
        }
      }
    });
  });
}

}  // namespace mdssd
