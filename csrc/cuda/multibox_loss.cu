// multibox_loss and its gradient.
//
// The forward pass has three launches for any batch:
//   1. row_kernel reads the logits once and computes the cross-entropy of every prior and, per
//      block, sums of the positives' losses. rows.h describes how lanes share a row.
//   2. select_kernel, a block per image, finds the hardest background priors by a radix selection.
//   3. finish_kernel, a single block (with a normaliser per image, one per image), adds the sums.
// There are no floating-point atomics: each block stores its sums at its own place, and they are
// added in a fixed order, so the results are the same in every run.
//
// The backward pass is one launch. It writes two gradients, nearly all zeros, because only a few
// per cent of the priors are selected, and reads the logits of selected priors only.
//
// Memory: 4 bytes per prior (8 for double) and a few per block; with a normaliser per image, also
// the losses of each prior. The forward pass is expected to be bound by reading the logits and then
// by select_kernel, whose blocks are few; the backward pass by its writes (predictions:
// benchmarks/NOTES.md, "first CUDA kernels").
#include <type_traits>

#include "../ops.h"
#include "radix.h"
#include "rows.h"
#include "runtime.h"

namespace mdssd {
namespace {

// An unsigned integer that orders like a cross-entropy. NaN is the largest, and -0 equals +0. No
// number maps to 0 or 1, which mark priors that are not candidates for mining.
template <class T>
using Bits = std::conditional_t<sizeof(T) == 8, unsigned long long, unsigned>;
template <class T>
constexpr Bits<T> kSign = Bits<T>(1) << (8 * sizeof(T) - 1);
template <class T>
constexpr Bits<T> kPositive = 0;
template <class T>
constexpr Bits<T> kIgnored = 1;

template <class T>
MDSSD_INLINE Bits<T> to_ordered(T x) {
  if (x != x) return ~Bits<T>(0);
  const Bits<T> bits = bit_cast<Bits<T>>(x == T(0) ? T(0) : x);
  return bits & kSign<T> ? ~bits : bits | kSign<T>;
}

template <class T>
MDSSD_INLINE T from_ordered(Bits<T> ordered) {
  return bit_cast<T>(ordered & kSign<T> ? ordered ^ kSign<T> : ~ordered);
}

template <class T>
MDSSD_INLINE T smooth_l1(T difference) {
  const T size = fabs(difference);
  return size < T(1) ? T(0.5) * difference * difference : size - T(0.5);
}

struct PositiveSums {
  double localisation, confidence;
};

template <class T>
struct PositiveLosses {  // the losses of one prior
  T localisation, confidence;
};

struct ImageSums {
  double localisation, confidence;  // negatives; with a normaliser per image, positives too
  int64_t positives;
};

// Each lane group handles one row at a time (rows.h). A label below -1 or above the last class
// makes its row a positive with a loss of NaN, so that the caller notices.
template <class S, int kLanes>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks * sizeof(float) / sizeof(Wide<S>))
    row_kernel(const S* __restrict__ loc, const S* __restrict__ logits,
               const Wide<S>* __restrict__ loc_targets, const int64_t* __restrict__ labels,
               int64_t rows, int classes, Bits<Wide<S>>* __restrict__ ordered,
               PositiveSums* __restrict__ sums,
               PositiveLosses<Wide<S>>* __restrict__ positive_losses) {
  using T = Wide<S>;
  __shared__ double scratch[kRowThreads / kWarpSize];
  double localisation = 0, confidence = 0;
  for_each_row<S, kLanes>(logits, rows, classes, [&](const auto& row) {
    const bool writes = row.valid() && row.lane() == 0;
    const int64_t label = writes ? labels[row.index()] : 0;
    const T top = row.max(), log_sum = log(row.sum_of_exp(top));
    if (!writes) return;
    if (label == -1) {
      ordered[row.index()] = kIgnored<T>;
      return;
    }
    const bool fits = label >= 0 && label < classes;
    const T loss = fits ? log_sum + (top - row.value(int(label))) : T(NAN);
    ordered[row.index()] = label == 0 ? to_ordered(loss) : kPositive<T>;
    if (label == 0) return;
    confidence += loss;
    const Box<T> o = load_box(loc, row.index()), t = load_box(loc_targets, row.index());
    const T distance = smooth_l1(o.x1 - t.x1) + smooth_l1(o.y1 - t.y1) +
                       smooth_l1(o.x2 - t.x2) + smooth_l1(o.y2 - t.y2);
    localisation += distance;
    if (positive_losses) positive_losses[row.index()] = {distance, loss};
  });
  localisation = block_sum(localisation, scratch);
  confidence = block_sum(confidence, scratch);
  if (threadIdx.x == 0) sums[blockIdx.x] = {localisation, confidence};
}

// A block handles one image: it marks the positives and mines the negatives. With a normaliser per
// image it also sums the positives' losses, because blocks of row_kernel mix rows of several
// images.
//
// The key of a prior has its loss in the upper bits and the complement of its index in the lower
// bits, so that of equal losses the lower prior is larger. All keys are distinct, so the radix
// selection (radix.h) always ends and there are no ties. It stops as soon as a cell and everything
// above it are exactly as many as wanted: after about two digits for distinct losses. The index
// matters only for losses that are equal to the bit.
//
// Each digit reads all losses of the image, 4 bytes per prior, which stay in the cache. There is
// one block per image because several blocks would have to synchronise after every digit.
constexpr int kSelectThreads = 1024;
constexpr int kLoads = 8;  // loads in flight per thread; 32 KB per block hide the latency of L2
template <class T>
__global__ void __launch_bounds__(kSelectThreads)
    select_kernel(const Bits<T>* __restrict__ ordered, unsigned num_priors, double neg_pos_ratio,
                  const PositiveLosses<T>* __restrict__ positive_losses,
                  bool* __restrict__ selected, ImageSums* __restrict__ sums) {
  using Key = std::conditional_t<sizeof(T) == 8, unsigned __int128, unsigned long long>;
  __shared__ unsigned histogram[kBins];
  __shared__ CellSearch<kSelectThreads> search;
  __shared__ unsigned counts[kSelectThreads / kWarpSize];
  __shared__ double losses[kSelectThreads / kWarpSize];
  const unsigned thread = threadIdx.x;
  ordered += int64_t(blockIdx.x) * num_priors;
  selected += int64_t(blockIdx.x) * num_priors;

  const int index_bits = kWarpSize - __clz(int(num_priors - 1));
  const auto pack = [&](Bits<T> bits, unsigned i) {
    return Key(bits) << index_bits | (num_priors - 1 - i);
  };
  const auto for_each_prior = [&](auto visit) {
    for (unsigned first = thread; first < num_priors; first += kLoads * kSelectThreads) {
      Bits<T> bits[kLoads];
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        const unsigned i = first + k * kSelectThreads;
        bits[k] = i < num_priors ? ordered[i] : kPositive<T>;
      }
#pragma unroll
      for (int k = 0; k < kLoads; ++k) {
        const unsigned i = first + k * kSelectThreads;
        if (i < num_priors) visit(i, bits[k]);
      }
    }
  };

  // The current digit is bits [shift, end) of a key. `prefix` has the digits above it.
  int end = 8 * int(sizeof(T)) + index_bits, shift = end - kDigitBits;
  Key prefix = 0;
  const auto count_digits = [&] {  // returns how many positives this thread has seen
    unsigned positives = 0;
    for (int i = int(thread); i < kBins; i += kSelectThreads) histogram[i] = 0;
    __syncthreads();
    for_each_prior([&](unsigned i, Bits<T> bits) {
      const Key key = pack(bits, i);
      if (bits > kIgnored<T> && key >> end == prefix)
        atomicAdd(histogram + unsigned(key >> shift & ((1u << (end - shift)) - 1)), 1u);
      positives += bits == kPositive<T>;
    });
    __syncthreads();
    return positives;
  };
  const unsigned positives = block_sum(count_digits(), counts);
  unsigned background = 0;
  for (int i = int(thread); i < kBins; i += kSelectThreads) background += histogram[i];
  background = block_sum(background, counts);

  const double most = floor(neg_pos_ratio * double(positives));
  const unsigned wanted =
      positives == 0 ? 0 : most < double(background) ? unsigned(most) : background;
  Key bound = wanted == 0 ? ~Key(0) : 0;  // priors with a key of at least this are selected
  if (wanted > 0 && wanted < background) {
    unsigned above = 0;
    while (true) {
      const Cell cell = find_cell(histogram, wanted - above, search);
      prefix = prefix << (end - shift) | cell.bin;
      above += cell.above;
      if (above + cell.size == wanted) break;
      end = shift;
      shift = shift > kDigitBits ? shift - kDigitBits : 0;
      count_digits();
    }
    bound = prefix << shift;
  }

  double loss = 0, localisation = 0;
  for_each_prior([&](unsigned i, Bits<T> bits) {
    const bool negative = bits > kIgnored<T> && pack(bits, i) >= bound;
    selected[i] = negative || bits == kPositive<T>;
    if (negative) loss += from_ordered<T>(bits);
  });
  if (positive_losses) {  // a loop of its own, because the one above has no registers left
    positive_losses += int64_t(blockIdx.x) * num_priors;
    for (unsigned i = thread; i < num_priors; i += kSelectThreads) {
      if (ordered[i] != kPositive<T>) continue;
      loss += positive_losses[i].confidence;
      localisation += positive_losses[i].localisation;
    }
  }
  loss = block_sum(loss, losses);
  if (positive_losses) localisation = block_sum(localisation, losses);
  if (thread == 0) sums[blockIdx.x] = {localisation, loss, positives};
}

// A block handles one normaliser, which belongs to image_count images.
constexpr int kFinishThreads = 256;
template <class T>
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(const PositiveSums* __restrict__ blocks, int64_t block_count,
                  const ImageSums* __restrict__ images, int64_t image_count,
                  T* __restrict__ loc_loss, T* __restrict__ conf_loss,
                  int64_t* __restrict__ normaliser) {
  __shared__ double losses[kFinishThreads / kWarpSize];
  __shared__ int64_t counts[kFinishThreads / kWarpSize];
  double localisation = 0, confidence = 0;
  int64_t positives = 0;
  images += blockIdx.x * image_count;
  for (int64_t i = threadIdx.x; i < block_count; i += kFinishThreads) {
    localisation += blocks[i].localisation;
    confidence += blocks[i].confidence;
  }
  for (int64_t i = threadIdx.x; i < image_count; i += kFinishThreads) {
    localisation += images[i].localisation;
    confidence += images[i].confidence;
    positives += images[i].positives;
  }
  localisation = block_sum(localisation, losses);
  confidence = block_sum(confidence, losses);
  positives = block_sum(positives, counts);
  if (threadIdx.x != 0) return;
  if (positives < 1) positives = 1;
  loc_loss[blockIdx.x] = T(localisation / double(positives));
  conf_loss[blockIdx.x] = T(confidence / double(positives));
  normaliser[blockIdx.x] = positives;
}

template <class T>
MDSSD_INLINE T clamp_to_one(T x) {  // clamps to [-1, 1]; a NaN stays
  return x > T(1) ? T(1) : x < T(-1) ? T(-1) : x;
}

// A warp handles 32 rows. It first fills their gradients with zeros, with stores of 16 bytes per
// lane, and then computes one selected row after another. Rows that are written twice are combined
// in the cache.
constexpr int kBackwardThreads = 256;
template <class S>
__global__ void __launch_bounds__(kBackwardThreads, 4 * sizeof(float) / sizeof(Wide<S>))
    multibox_loss_backward_kernel(const Wide<S>* __restrict__ grad_loc_loss,
                                  const Wide<S>* __restrict__ grad_conf_loss,
                                  const S* __restrict__ loc, const S* __restrict__ logits,
                                  const Wide<S>* __restrict__ loc_targets,
                                  const int64_t* __restrict__ labels,
                                  const bool* __restrict__ selected,
                                  const int64_t* __restrict__ normaliser, int64_t rows,
                                  int64_t group_rows, int classes, S* __restrict__ grad_loc,
                                  S* grad_logits) {
  using T = Wide<S>;
  const int lane = threadIdx.x % kWarpSize;
  const int64_t mine = int64_t(blockIdx.x) * kBackwardThreads + threadIdx.x, first = mine - lane;
  if (first >= rows) return;  // the whole warp returns
  const bool wanted = mine < rows && selected[mine];

  // 32 rows are a multiple of 16 bytes. Only the last warp can have fewer rows.
  const int64_t numbers = (rows - first < kWarpSize ? rows - first : kWarpSize) * classes;
  const int64_t wide = numbers * int64_t(sizeof(S)) / int64_t(sizeof(uint4));
  S* const start = grad_logits + first * classes;
  for (int64_t i = lane; i < wide; i += kWarpSize)
    reinterpret_cast<uint4*>(start)[i] = make_uint4(0, 0, 0, 0);
  for (int64_t i = wide * int64_t(sizeof(uint4) / sizeof(S)) + lane; i < numbers; i += kWarpSize)
    start[i] = narrow<S>(0);

  const int64_t group = group_rows < rows && wanted ? mine / group_rows : 0;
  const T scale = T(normaliser[group]);
  const T loc_scale = grad_loc_loss[group] / scale, conf_scale = grad_conf_loss[group] / scale;
  const int64_t label = wanted ? labels[mine] : 0;
  Box<T> slope = {0, 0, 0, 0};
  if (label != 0) {
    const Box<T> o = load_box(loc, mine), t = load_box(loc_targets, mine);
    slope = {clamp_to_one(o.x1 - t.x1) * loc_scale, clamp_to_one(o.y1 - t.y1) * loc_scale,
             clamp_to_one(o.x2 - t.x2) * loc_scale, clamp_to_one(o.y2 - t.y2) * loc_scale};
  }
  if (mine < rows) store_four(grad_loc, mine, slope.x1, slope.y1, slope.x2, slope.y2);

  __syncwarp();  // the zeros must be written before the gradients that replace them
  for (unsigned left = __ballot_sync(kAllLanes, wanted); left; left &= left - 1) {
    const int source = __ffs(int(left)) - 1;
    const int64_t index = first + source, its_label = __shfl_sync(kAllLanes, label, source);
    const Row<S, kWarpSize> row{logits + index * classes, classes, index, true};
    const T top = row.max(), inverse_sum = T(1) / row.sum_of_exp(top);
    const T its_scale = __shfl_sync(kAllLanes, conf_scale, source);
    const T row_scale = its_label >= 0 && its_label < classes ? its_scale : T(NAN);
    for (int c = lane; c < classes; c += kWarpSize) {
      const T error = exp(row.value(c) - top) * inverse_sum - (c == its_label ? T(1) : T(0));
      grad_logits[index * classes + c] = narrow<S>(error * row_scale);
    }
  }
}

template <class T>
struct Memory {
  Bits<T>* ordered;
  PositiveSums* blocks;
  PositiveLosses<T>* positive_losses = nullptr;
  int64_t block_count;
  ImageSums* images;
  int64_t bytes;

  Memory(void* workspace, int64_t image_count, int64_t num_priors, int64_t classes,
         bool per_image) {
    constexpr int64_t kMost = 0x7fffffff;
    if (num_priors > kMost || classes > kMost)
      throw std::length_error("multibox_loss: more than 2^31 - 1 priors or classes");
    with_row_lanes(classes,
                   [&](auto lanes) { block_count = row_blocks<lanes>(image_count * num_priors); });
    Workspace memory(workspace);
    ordered = memory.take<Bits<T>>(image_count * num_priors);
    blocks = memory.take<PositiveSums>(block_count);
    images = memory.take<ImageSums>(image_count);
    if (per_image) positive_losses = memory.take<PositiveLosses<T>>(image_count * num_priors);
    bytes = memory.bytes();
  }
};

}  // namespace

int64_t multibox_loss_workspace(int64_t images, int64_t num_priors, int64_t classes,
                                const MultiboxLossSettings& settings, DType dtype) {
  int64_t bytes = 0;
  with_wide(dtype, [&](auto wide) {
    using T = typename decltype(wide)::type;
    bytes = Memory<T>(nullptr, images, num_priors, classes, settings.per_image).bytes;
  });
  return bytes;
}

void multibox_loss_cuda(const void* loc, const void* logits, const void* loc_targets,
                        const int64_t* labels, int64_t images, int64_t num_priors, int64_t classes,
                        const MultiboxLossSettings& settings, void* loc_loss, void* conf_loss,
                        bool* selected, int64_t* normaliser, void* workspace, DType dtype,
                        Stream stream) {
  const char* op = "multibox_loss";
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    const bool per_image = settings.per_image;
    const Memory<T> memory(workspace, images, num_priors, classes, per_image);
    with_row_lanes(classes, [&](auto lanes) {
      launch(op, row_kernel<S, lanes>, unsigned(memory.block_count), kRowThreads, stream,
             static_cast<const S*>(loc), static_cast<const S*>(logits),
             static_cast<const T*>(loc_targets), labels, images * num_priors, int(classes),
             memory.ordered, memory.blocks, memory.positive_losses);
    });
    launch(op, select_kernel<T>, unsigned(images), kSelectThreads, stream, memory.ordered,
           unsigned(num_priors), settings.neg_pos_ratio, memory.positive_losses, selected,
           memory.images);
    launch(op, finish_kernel<T>, per_image ? unsigned(images) : 1u, kFinishThreads, stream,
           memory.blocks, per_image ? 0 : memory.block_count, memory.images,
           per_image ? 1 : images, static_cast<T*>(loc_loss), static_cast<T*>(conf_loss),
           normaliser);
  });
}

void multibox_loss_backward_cuda(const void* grad_loc_loss, const void* grad_conf_loss,
                                 const void* loc, const void* logits, const void* loc_targets,
                                 const int64_t* labels, const bool* selected,
                                 const int64_t* normaliser, int64_t rows, int64_t group_rows,
                                 int64_t classes, void* grad_loc, void* grad_logits, DType dtype,
                                 Stream stream) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    using T = Wide<S>;
    launch("multibox_loss_backward", multibox_loss_backward_kernel<S>,
           grid_size(rows, kBackwardThreads), kBackwardThreads, stream,
           static_cast<const T*>(grad_loc_loss), static_cast<const T*>(grad_conf_loss),
           static_cast<const S*>(loc), static_cast<const S*>(logits),
           static_cast<const T*>(loc_targets), labels, selected, normaliser, rows, group_rows,
           int(classes), static_cast<S*>(grad_loc), static_cast<S*>(grad_logits));
  });
}

}  // namespace mdssd
