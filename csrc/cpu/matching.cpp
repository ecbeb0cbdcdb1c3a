// match_priors and encode_targets.
//
// One task takes one image and a range of priors, block by block. A block's best IoUs stay in L1
// while all boxes of the image pass over it, and a box that misses the block's bounds is skipped:
// priors come in the order of rows and columns, so most boxes miss most blocks.
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "../box_math.h"
#include "box_columns.h"
#include "parallel.h"
#include "streaming.h"
#include "types.h"

namespace mdssd {
namespace {

constexpr int64_t kBlock = 256;

// An IoU is never negative, so its bits order as integers do; a maximum of integers becomes vector
// code where one of floats, with its NaNs, does not.
template <class T>
struct BitsOf {
  using type = int32_t;
};
template <>
struct BitsOf<double> {
  using type = int64_t;
};

template <class T>
struct BestPrior {  // of one ground truth
  T iou = 0;
  int64_t prior = 0;
};

template <class T>
struct BestTruth {  // of each prior of a block
  T iou[kBlock];
  typename BitsOf<T>::type index[kBlock];
};

// Lets one ground truth pass over a block of n priors; returns its best IoU as bits.
template <class T, class Eps>
MDSSD_SIMD typename BitsOf<T>::type pass_block(Box<T> truth, typename BitsOf<T>::type index,
                                               const T* x1, const T* y1, const T* x2, const T* y2,
                                               const T* areas, int64_t n, Eps eps,
                                               BestTruth<T>& best,
                                               typename BitsOf<T>::type* bits) {
  using Bits = typename BitsOf<T>::type;
  const T truth_area = area(truth);
  for (int64_t i = 0; i < n; ++i) {
    const T value = iou(truth, truth_area, Box<T>{x1[i], y1[i], x2[i], y2[i]}, areas[i], eps);
    const bool better = value > best.iou[i];  // strictly: ties stay with the lower index
    best.iou[i] = better ? value : best.iou[i];
    best.index[i] = better ? index : best.index[i];
    bits[i] = bit_cast<Bits>(value);
  }
  Bits top = 0;
  for (int64_t i = 0; i < n; ++i) top = bits[i] > top ? bits[i] : top;
  return top;
}

template <class T>
class Priors {
 public:
  Priors(const T* priors, int64_t count, bool corners) : count_(count), columns_(count) {
    for (int64_t i = 0; i < count; ++i) {
      const Box<T> p = load_box(priors, i);
      columns_.set(i, corners ? p : to_corners(CentreBox<T>{p.x1, p.y1, p.x2, p.y2}));
    }
    const T inf = std::numeric_limits<T>::infinity();
    for (int64_t block = 0; block < blocks(); ++block) {
      Box<T> bounds{inf, inf, -inf, -inf};
      for (int64_t i = block * kBlock; i < block * kBlock + size(block); ++i) {
        const Box<T> b = columns_.box(i);  // a NaN is passed over; such a prior overlaps nothing
        bounds = {std::min(bounds.x1, b.x1), std::min(bounds.y1, b.y1), std::max(bounds.x2, b.x2),
                  std::max(bounds.y2, b.y2)};
      }
      bounds_.push_back(bounds);
    }
  }

  int64_t blocks() const { return (count_ + kBlock - 1) / kBlock; }
  int64_t size(int64_t block) const { return std::min(kBlock, count_ - block * kBlock); }

  // Matches a block to the image's ground truths and updates the best prior of each. Returns
  // whether any of them can overlap a prior of the block.
  template <class Eps>
  bool match(int64_t block, const T* truths, int64_t truth_count, Eps eps, BestTruth<T>& best,
             BestPrior<T>* best_priors) const {
    using Bits = typename BitsOf<T>::type;
    const int64_t first = block * kBlock, n = size(block);
    const Box<T> bounds = bounds_[block];
    Bits bits[kBlock];
    bool any = false;
    std::fill_n(best.iou, n, T(0));
    std::fill_n(best.index, n, Bits(0));
    for (int64_t k = 0; k < truth_count; ++k) {
      const Box<T> truth = load_box(truths, k);
      const bool overlaps = truth.x1 < bounds.x2 && truth.x2 > bounds.x1 &&
                            truth.y1 < bounds.y2 && truth.y2 > bounds.y1;
      if (!overlaps) continue;  // every IoU is 0 and changes nothing
      any = true;
      const Bits top = pass_block<T>(truth, Bits(k), columns_.x1() + first, columns_.y1() + first,
                                     columns_.x2() + first, columns_.y2() + first,
                                     columns_.area() + first, n, eps, best, bits);
      if (bit_cast<T>(top) > best_priors[k].iou)
        best_priors[k] = {bit_cast<T>(top), first + (std::find(bits, bits + n, top) - bits)};
    }
    return any;
  }

 private:
  int64_t count_;
  BoxColumns<T> columns_;
  std::vector<Box<T>> bounds_;
};

// Matches the whole batch. Calls block_done(image, first prior, n, any, best) for each block, on
// several threads, then forced(image, ground truth, prior) on one, the later ground truth last.
// Where `any` is false no prior of the block has a match by threshold, and all IoUs are 0.
template <class T, class Eps, class BlockDone, class Forced>
void match_batch(const T* truths, const int64_t* offsets, int64_t images, const T* prior_rows,
                 bool corners, int64_t count, T iou_threshold, Eps eps, int threads,
                 const BlockDone& block_done, const Forced& forced) {
  if (images == 0 || count == 0) return;
  const int64_t truth_count = offsets[images];
  if (truth_count > std::numeric_limits<int32_t>::max())
    throw std::length_error("match_priors: more than 2^31 - 1 boxes");
  const Priors<T> priors(prior_rows, count, corners);
  // Splitting an image costs another row of best priors, so it is split only to occupy all threads.
  const int64_t splits = std::min<int64_t>(priors.blocks(), (2 * threads + images - 1) / images);
  std::vector<BestPrior<T>> best_priors(splits * truth_count);
  parallel_for(threads, images * splits, [&](int64_t task) {
    const int64_t image = task / splits, split = task % splits;
    const int64_t begin = offsets[image], truths_here = offsets[image + 1] - begin;
    BestTruth<T> best;
    for (int64_t block = split * priors.blocks() / splits;
         block < (split + 1) * priors.blocks() / splits; ++block) {
      const bool overlapped = priors.match(block, truths + 4 * begin, truths_here, eps, best,
                                           best_priors.data() + split * truth_count + begin);
      // An IoU of 0 is a match where the threshold is 0.
      const bool any = truths_here > 0 && (overlapped || iou_threshold <= T(0));
      block_done(image, block * kBlock, priors.size(block), any, best);
    }
  });
  for (int64_t image = 0; image < images; ++image)
    for (int64_t k = offsets[image]; k < offsets[image + 1]; ++k) {
      BestPrior<T> best = best_priors[k];
      for (int64_t split = 1; split < splits; ++split) {
        const BestPrior<T>& other = best_priors[split * truth_count + k];
        if (other.iou > best.iou) best = other;
      }
      forced(image, k, best.prior);
    }
}

}  // namespace

void match_priors_cpu(const void* gt, const int64_t* offsets, int64_t images, const void* priors,
                      bool corners, int64_t count, double iou_threshold, double iou_eps,
                      int64_t* index, float* iou, DType dtype, int threads) {
  with_wide(dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    const auto block_done = [&](int64_t image, int64_t first, int64_t n, bool any,
                                const BestTruth<T>& best) {
      for (int64_t i = 0; i < n; ++i) {
        index[image * count + first + i] =
            any && best.iou[i] >= T(iou_threshold) ? best.index[i] : -1;
        iou[image * count + first + i] = float(best.iou[i]);
      }
    };
    const auto forced = [&](int64_t image, int64_t truth, int64_t prior) {
      index[image * count + prior] = truth - offsets[image];
    };
    with_eps<T>(iou_eps, [&](auto eps) {
      match_batch(static_cast<const T*>(gt), offsets, images, static_cast<const T*>(priors),
                  corners, count, T(iou_threshold), eps, threads, block_done, forced);
    });
  });
}

void encode_targets_cpu(const void* gt, const int64_t* gt_labels, const int64_t* offsets,
                        int64_t images, const void* priors, int64_t count, double iou_threshold,
                        double iou_eps, double v0, double v1, void* loc, int64_t* labels,
                        DType dtype, int threads) {
  with_wide(dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    const auto* truths = static_cast<const T*>(gt);
    const auto* prior_rows = static_cast<const T*>(priors);
    const auto assign = [&](int64_t row, int64_t prior, int64_t truth) {
      const T* p = prior_rows + 4 * prior;
      const Offsets<T> o = encode(load_box(truths, truth), CentreBox<T>{p[0], p[1], p[2], p[3]},
                                  T(v0), T(v1), [](T x) { return std::log(x); });
      store4<T>(static_cast<T*>(loc) + 4 * row, o.x, o.y, o.w, o.h);
      labels[row] = gt_labels[truth];
    };
    const auto block_done = [&](int64_t image, int64_t first, int64_t n, bool any,
                                const BestTruth<T>& best) {
      const int64_t row = image * count + first;
      const int64_t loc_size = 4 * sizeof(T), label_size = sizeof(int64_t);
      const int64_t rows = images * count;
      fill_zeros(static_cast<T*>(loc) + 4 * row, n * loc_size, rows * loc_size);
      fill_zeros(labels + row, n * label_size, rows * label_size);
      if (!any) return;
      for (int64_t i = 0; i < n; ++i)
        if (best.iou[i] >= T(iou_threshold))
          assign(row + i, first + i, offsets[image] + best.index[i]);
    };
    const auto forced = [&](int64_t image, int64_t truth, int64_t prior) {
      assign(image * count + prior, prior, truth);
    };
    with_eps<T>(iou_eps, [&](auto eps) {
      match_batch(truths, offsets, images, prior_rows, false, count, T(iou_threshold), eps, threads,
                  block_done, forced);
    });
  });
}

}  // namespace mdssd
