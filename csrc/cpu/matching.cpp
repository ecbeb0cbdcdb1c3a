// match_priors and encode_targets.
//
// A task handles one image and a range of priors, in blocks of 256. All ground truths of the image
// are compared with a block while its best IoUs stay in L1. A block has 8 groups of 32 priors, and
// a ground truth is compared only with the groups whose bounds it meets: priors are sorted by rows
// and columns of their feature map, so most ground truths miss most groups. encode_targets also
// skips groups in which no IoU can reach the threshold or the ground truth's best so far.
//
// Results of a block are computed in L1 and then written by non-temporal stores if they are large.
#include <limits>
#include <memory>
#include <stdexcept>
#include <vector>

#include "../box_math.h"
#include "box_columns.h"
#include "parallel.h"
#include "streaming.h"
#include "types.h"
#include "vector_math.h"

namespace mdssd {
namespace {

constexpr int kGroup = 32;
constexpr int kGroups = 8;
constexpr int kBlock = kGroup * kGroups;

// An IoU is never negative, so its bits order like integers. Compilers vectorise a maximum of
// integers, but not one of floats, because of NaN.
template <class T>
struct BitsOf {
  using type = int32_t;
};
template <>
struct BitsOf<double> {
  using type = int64_t;
};
template <class T>
using Bits = typename BitsOf<T>::type;

template <class T>
struct BestGroup {  // the group with the best prior of a ground truth
  T iou = 0;
  int64_t group = 0;
};

template <class T>
struct BestTruth {  // the best ground truth of each prior of a block
  T iou[kBlock];
  Bits<T> index[kBlock];
};

// Computes the minimum and the maximum of a group, ignoring NaNs.
template <class T>
MDSSD_INLINE void range(const T* x, T& least, T& most) {
  T low[kEight], high[kEight];
  for (int i = 0; i < kEight; ++i) {
    low[i] = std::numeric_limits<T>::infinity();
    high[i] = -std::numeric_limits<T>::infinity();
  }
  for (int i = 0; i < kGroup; i += kEight)
    for (int lane = 0; lane < kEight; ++lane) {
      low[lane] = x[i + lane] < low[lane] ? x[i + lane] : low[lane];
      high[lane] = x[i + lane] > high[lane] ? x[i + lane] : high[lane];
    }
  for (int half = kEight / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) {
      low[i] = low[i + half] < low[i] ? low[i + half] : low[i];
      high[i] = high[i + half] > high[i] ? high[i + half] : high[i];
    }
  least = low[0];
  most = high[0];
}

// The corners of up to kBlock priors and, for each group, their bounds and the range of their
// areas. Bounds and ranges ignore priors with a NaN, which overlap nothing.
template <class T>
struct PriorBlock {
  T x1[kBlock], y1[kBlock], x2[kBlock], y2[kBlock], area[kBlock];
  T low_x[kGroups], low_y[kGroups], high_x[kGroups], high_y[kGroups];
  T least_area[kGroups], most_area[kGroups];
  Box<T> bounds;

  MDSSD_INLINE Box<T> box(int i) const { return {x1[i], y1[i], x2[i], y2[i]}; }
};

// Lanes past the n priors repeat the last prior, which does not change the bounds and loses every
// tie against the original.
template <class T>
MDSSD_SIMD void load_block(const T* priors, bool corners, int n, PriorBlock<T>& block) {
  const auto set = [&](int i, int row) __attribute__((always_inline)) {
    const Box<T> p = load_box(priors, row);
    const Box<T> b = corners ? p : to_corners(CentreBox<T>{p.x1, p.y1, p.x2, p.y2});
    block.x1[i] = b.x1;
    block.y1[i] = b.y1;
    block.x2[i] = b.x2;
    block.y2[i] = b.y2;
    block.area[i] = area(b);
  };
  for (int i = 0; i < n; ++i) set(i, i);
  for (int i = n; i < kBlock; ++i) set(i, n - 1);
  T unused;
  for (int g = 0; g < kGroups; ++g) {
    const int first = g * kGroup;
    range(block.x1 + first, block.low_x[g], unused);
    range(block.y1 + first, block.low_y[g], unused);
    range(block.x2 + first, unused, block.high_x[g]);
    range(block.y2 + first, unused, block.high_y[g]);
    range(block.area + first, block.least_area[g], block.most_area[g]);
  }
  Box<T>& all = block.bounds;
  all = {block.low_x[0], block.low_y[0], block.high_x[0], block.high_y[0]};
  for (int g = 1; g < kGroups; ++g)
    all = {smaller(all.x1, block.low_x[g]), smaller(all.y1, block.low_y[g]),
           larger(all.x2, block.high_x[g]), larger(all.y2, block.high_y[g])};
}

// Margins that make the bound on a group's IoUs hold in spite of rounding, for ground truths with
// an area of at least kLeastArea; smaller areas lose digits to underflow.
constexpr double kSpare = 1.001, kSpareIou = 1e-30, kLeastArea = 1e-12;

// Sets bit g if a prior of group g may have an IoU of at least `floor` with the ground truth.
template <class T>
MDSSD_INLINE uint32_t groups_met(Box<T> truth, T truth_area, T floor, const PriorBlock<T>& block) {
  static constexpr uint32_t kBits[kGroups] = {1, 2, 4, 8, 16, 32, 64, 128};
  uint32_t mask = 0;
  for (int g = 0; g < kGroups; ++g) {
    const T width = smaller(block.high_x[g], truth.x2) - larger(block.low_x[g], truth.x1);
    const T height = smaller(block.high_y[g], truth.y2) - larger(block.low_y[g], truth.y1);
    // Bounds the IoU, which increases with the intersection and decreases with the prior's area.
    const T intersection = smaller(width * height, block.most_area[g]);
    const T both = truth_area + larger(block.least_area[g], intersection) - intersection;
    const bool low = intersection / both * T(kSpare) + T(kSpareIou) < floor;  // false for NaN
    mask |= (width > T(0)) & (height > T(0)) & !low ? kBits[g] : 0;
  }
  return mask;
}

template <class T, class Eps>
MDSSD_INLINE void group_ious(Box<T> truth, T truth_area, const PriorBlock<T>& block, int first,
                             Eps eps, T* ious) {
  for (int i = 0; i < kGroup; ++i)
    ious[i] = iou(truth, truth_area, block.box(first + i), block.area[first + i], eps);
}

// Compares a ground truth with a group, updates `best` and returns the ground truth's best IoU.
// Uses explicit vectors because GCC compiles a loop with selections to masked stores, which are
// slow.
template <class T, class Eps>
MDSSD_INLINE T pass_group(Box<T> truth, T truth_area, Bits<T> index, const PriorBlock<T>& block,
                          int first, Eps eps, BestTruth<T>& best) {
  T ious[kGroup];
  group_ious(truth, truth_area, block, first, eps, ious);
  Eight<Bits<T>> top = {};
  const Eight<Bits<T>> truths = index - Eight<Bits<T>>{};
  for (int i = 0; i < kGroup; i += kEight) {
    Eight<T> value, best_value;
    Eight<Bits<T>> bits, best_index;
    load<T>(value, ious + i);
    load<T>(best_value, best.iou + first + i);
    load<Bits<T>>(best_index, best.index + first + i);
    std::memcpy(&bits, &value, sizeof(bits));
    const auto better = value > best_value;  // on a tie, the lower index stays
    best_value = better ? value : best_value;
    best_index = better ? truths : best_index;
    top = bits > top ? bits : top;
    std::memcpy(best.iou + first + i, &best_value, sizeof(best_value));
    std::memcpy(best.index + first + i, &best_index, sizeof(best_index));
  }
  return bit_cast<T>(largest<Bits<T>>(top));
}

// Matches a block, whose first prior is `first`, with the ground truths of an image. Blocks must
// come in falling order: the coarse feature maps at the end are quickly done, and their IoUs allow
// to skip groups of the fine maps. Without `all`, IoUs below the threshold may be missing from
// `best`, unless they are the best of a ground truth. Returns false, and leaves `best` unset, if no
// IoU is above 0 and the threshold cannot be reached.
template <class T, class Eps>
MDSSD_SIMD bool match_block(const PriorBlock<T>& block, int64_t first, const T* truths,
                            int64_t truth_count, T iou_threshold, Eps eps, bool all,
                            BestTruth<T>& best, BestGroup<T>* best_groups) {
  const auto clear = [&]() __attribute__((always_inline)) {
    for (int i = 0; i < kBlock; ++i) best.iou[i] = 0;
    for (int i = 0; i < kBlock; ++i) best.index[i] = 0;
  };
  bool any = truth_count > 0 && iou_threshold <= T(0);  // then an IoU of 0 is a match
  if (any) clear();
  for (int64_t k = 0; k < truth_count; ++k) {
    const Box<T> truth = load_box(truths, k);
    const bool overlaps = (truth.x1 < block.bounds.x2) & (truth.x2 > block.bounds.x1) &
                          (truth.y1 < block.bounds.y2) & (truth.y2 > block.bounds.y1);
    if (!overlaps) continue;  // all IoUs are 0 and change nothing
    const T truth_area = area(truth);
    BestGroup<T> own = best_groups[k];
    const T floor = all || truth_area < T(kLeastArea)
                        ? T(0)
                        : smaller(iou_threshold, own.iou);
    uint32_t met = groups_met(truth, truth_area, floor, block);
    if (met != 0 && !any) {
      any = true;
      clear();
    }
    while (met != 0) {
      const int group = 31 - __builtin_clz(met);
      met -= 1u << group;
      const int start = group * kGroup;
      const T top = pass_group(truth, truth_area, Bits<T>(k), block, start, eps, best);
      // On a tie, this group wins, because it comes before the previous best one.
      const bool better = top > T(0) && top >= own.iou;
      own.iou = better ? top : own.iou;
      own.group = better ? first / kGroup + group : own.group;
    }
    best_groups[k] = own;
  }
  return any;
}

// Returns the first prior of a group, counted in its block, that has the ground truth's best IoU.
template <class T, class Eps>
MDSSD_SIMD int best_lane(const PriorBlock<T>& block, int first, Box<T> truth, Eps eps, T best) {
  T ious[kGroup];
  group_ious(truth, area(truth), block, first, eps, ious);
  int lane = 0;
  while (lane < kGroup - 1 && ious[lane] != best) ++lane;
  return first + lane;
}

template <class T>
class Priors {
 public:
  Priors(const T* rows, bool corners, int64_t num_priors, int threads)
      : num_priors_(num_priors), blocks_(new PriorBlock<T>[blocks()]) {
    parallel_ranges(threads, blocks(), 16, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block)
        load_block<T>(rows + 4 * block * kBlock, corners, size(block), blocks_[block]);
    });
  }

  int64_t blocks() const { return (num_priors_ + kBlock - 1) / kBlock; }
  int size(int64_t block) const {
    return int(std::min<int64_t>(kBlock, num_priors_ - block * kBlock));
  }
  const PriorBlock<T>& operator[](int64_t block) const { return blocks_[block]; }

  template <class Eps>
  int64_t best_prior(Box<T> truth, Eps eps, BestGroup<T> best) const {
    const int64_t block = best.group / kGroups;
    const int first = int(best.group % kGroups) * kGroup;
    return block * kBlock + best_lane(blocks_[block], first, truth, eps, best.iou);
  }

 private:
  int64_t num_priors_;
  std::unique_ptr<PriorBlock<T>[]> blocks_;
};

// Matches the whole batch; `all` is that of match_block. Calls block_done(image, first prior, n,
// any, best) for each block of n priors, where `any` and `best` are the results of match_block.
// Then calls force(image, the best prior of each of its ground truths).
template <class T, class Eps, class BlockDone, class Force>
void match_batch(const T* truths, const int64_t* offsets, int64_t images, const T* prior_rows,
                 bool corners, int64_t num_priors, T iou_threshold, Eps eps, bool all, int threads,
                 const BlockDone& block_done, const Force& force) {
  if (images == 0 || num_priors == 0) return;
  const int64_t truth_count = offsets[images];
  if (truth_count > std::numeric_limits<int32_t>::max())
    throw std::length_error("match_priors: more than 2^31 - 1 boxes");
  const Priors<T> priors(prior_rows, corners, num_priors, threads);
  // Each split of an image needs its own row of best groups, so images are split only if there are
  // too few to occupy all threads.
  const int64_t splits = std::min<int64_t>(priors.blocks(), (2 * threads + images - 1) / images);
  std::vector<BestGroup<T>> best_groups(splits * truth_count);
  parallel_for(threads, images * splits, [&](int64_t task) {
    const int64_t image = task / splits, split = task % splits;
    const int64_t begin = offsets[image], truths_here = offsets[image + 1] - begin;
    BestTruth<T> best;
    for (int64_t block = (split + 1) * priors.blocks() / splits;
         block-- > split * priors.blocks() / splits;) {
      const int64_t first = block * kBlock;
      const bool any = match_block<T>(priors[block], first, truths + 4 * begin, truths_here,
                                      iou_threshold, eps, all, best,
                                      best_groups.data() + split * truth_count + begin);
      block_done(image, first, priors.size(block), any, best);
    }
    finish_streaming();
  });
  parallel_for(threads, images, [&](int64_t image) {
    std::vector<int64_t> best_priors;
    for (int64_t k = offsets[image]; k < offsets[image + 1]; ++k) {
      BestGroup<T> best = best_groups[k];
      for (int64_t split = 1; split < splits; ++split) {
        const BestGroup<T>& other = best_groups[split * truth_count + k];
        if (other.iou > best.iou) best = other;
      }
      best_priors.push_back(priors.best_prior(load_box(truths, k), eps, best));
    }
    force(image, best_priors);
  });
}

template <class T>
MDSSD_SIMD void choose(const BestTruth<T>& best, T iou_threshold, int64_t* index, float* iou) {
  for (int i = 0; i < kBlock; ++i) {
    index[i] = best.iou[i] >= iou_threshold ? best.index[i] : -1;
    iou[i] = float(best.iou[i]);
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
    const auto block_done = [&](int64_t image, int64_t first, int n, bool any,
                                const BestTruth<T>& best) {
      const int64_t row = image * num_priors + first;
      if (!any) {
        stream_fill(index + row, 0xff, n * sizeof(int64_t), rows * sizeof(int64_t));
        stream_fill(iou + row, 0, n * sizeof(float), rows * sizeof(float));
        return;
      }
      int64_t chosen[kBlock];
      float ious[kBlock];
      choose(best, T(settings.iou_threshold), chosen, ious);
      stream_copy(index + row, chosen, n * sizeof(int64_t), rows * sizeof(int64_t));
      stream_copy(iou + row, ious, n * sizeof(float), rows * sizeof(float));
    };
    const auto force = [&](int64_t image, const std::vector<int64_t>& best_priors) {
      for (size_t k = 0; k < best_priors.size(); ++k)
        index[image * num_priors + best_priors[k]] = int64_t(k);
    };
    with_eps<T>(settings.iou_eps, [&](auto eps) {
      match_batch(static_cast<const T*>(gt), offsets, images, static_cast<const T*>(priors),
                  settings.corners, num_priors, T(settings.iou_threshold), eps, true, threads,
                  block_done, force);
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
    const auto block_done = [&](int64_t image, int64_t first, int n, bool any,
                                const BestTruth<T>& best) {
      const int64_t row = image * num_priors + first;
      Pairs<T> pairs;
      int matched[kBlock];
      int matches = 0;
      for (int i = 0; any && i < n; ++i) {
        matched[matches] = i;
        matches += best.iou[i] >= T(settings.iou_threshold);
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
        const int64_t truth = offsets[image] + best.index[i];
        pairs.add(i, load_box(truths, truth), prior_rows + 4 * (first + i));
        block_labels[i] = gt_labels[truth];
      }
      encode_pairs(pairs, T(settings.v0), T(settings.v1), block_loc);
      stream_copy(offsets_out + 4 * row, block_loc, n * loc_size, rows * loc_size);
      stream_copy(labels + row, block_labels, n * label_size, rows * label_size);
    };
    const auto force = [&](int64_t image, const std::vector<int64_t>& best_priors) {
      Pairs<T> pairs;
      T* const image_loc = offsets_out + 4 * image * num_priors;
      for (int64_t k = offsets[image]; k < offsets[image + 1]; ++k) {
        const int64_t prior = best_priors[k - offsets[image]];
        pairs.add(prior, load_box(truths, k), prior_rows + 4 * prior);
        labels[image * num_priors + prior] = gt_labels[k];
        if (pairs.count == kBlock) encode_pairs(pairs, T(settings.v0), T(settings.v1), image_loc);
      }
      encode_pairs(pairs, T(settings.v0), T(settings.v1), image_loc);
    };
    with_eps<T>(settings.iou_eps, [&](auto eps) {
      match_batch(truths, offsets, images, prior_rows, false, num_priors, T(settings.iou_threshold),
                  eps, false, threads, block_done, force);
    });
  });
}

}  // namespace mdssd
