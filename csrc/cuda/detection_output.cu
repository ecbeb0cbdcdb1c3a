// detection_output: softmax, threshold, best top_k per class, decode, NMS, best max_detections.
//
// What passes the threshold is a few priors in a trained network and all of them in an untrained
// one. Every (image, class) has a list of kCapacity places:
//   1. append_kernel reads the logits once, puts what passes into the lists, and counts it in
//      histograms. A list that overflows is done again; in a trained network none does, and steps 2
//      and 3 end at once.
//   2. select_kernel and, where one histogram does not settle it, histogram_kernel find a lower
//      bound that lets through at least top_k and at most kCapacity candidates: a radix selection.
//   3. collect_kernel reads the logits again and fills those lists.
//   4. nms_kernel, a block per (image, class): sort, decode, suppress.
//   5. best_kernel, a block per image: the best of all classes.
// A candidate is one integer: the bits of its score, which order as the scores do, then the prior,
// turned so that the lower one is the larger number. No two are equal, so that a radix selection
// always comes to an end, ties are settled, and the order in which the blocks ran leaves no trace.
// Memory is O(images x classes), whatever the number of priors.
#include <type_traits>

#include "../ops.h"
#include "radix.h"
#include "rows.h"
#include "runtime.h"

namespace mdssd {
namespace {

using Key = unsigned long long;

constexpr int kCapacity = 2048;  // candidates of one class that are sorted
constexpr int kMostKept = 1024;  // largest top_k and max_detections
// A cell of this many low bits, and what lies above it, fit into a list.
constexpr int kCellBits = 10;
static_assert((1 << kCellBits) + kMostKept <= kCapacity);

// How a candidate is packed. A score lies above the threshold and is at most 1.
struct Packing {
  float threshold;
  float log_threshold;
  unsigned lowest;  // bits of the lowest score above the threshold
  int index_bits;
  int bits;  // of a key

  __device__ Key pack(float score, unsigned prior) const {
    return Key(__float_as_uint(score) - lowest) << index_bits | (index_mask() - prior);
  }
  __device__ unsigned score_bits(Key key) const { return unsigned(key >> index_bits) + lowest; }
  __device__ unsigned prior(Key key) const { return unsigned(index_mask() - (key & index_mask())); }
  __device__ Key index_mask() const { return (Key(1) << index_bits) - 1; }
};

struct Sizes {
  int64_t images, count, classes;
  int top_k, max_detections;

  MDSSD_INLINE int64_t lists() const { return images * (classes - 1); }
};

// The selection of one list's lower bound. Digits of the key are settled from the top.
struct Cut {
  Key prefix;      // the digits settled
  unsigned above;  // candidates above the prefix's cell
  unsigned state;
};
enum : unsigned { kFits, kOpen, kSettled };

struct Lists {
  Key* candidates;      // [lists, kCapacity]
  unsigned* size;       // [lists]; beyond kCapacity: overflown
  unsigned* histogram;  // [lists, kBins]
  Cut* cuts;            // [lists]
  // [levels]: flags[0], a list overflowed; flags[l], one is open before digit l.
  unsigned* flags;
};

// Calls visit(lanes, list, key) for every score above the threshold; `lanes` are those of the warp
// that call at the same time.
template <class S, int kLanes, class Visit>
__device__ void for_each_candidate(const S* logits, const Sizes& sizes, const Packing& packing,
                                   const Visit& visit) {
  const int classes = int(sizes.classes);
  for_each_row<S, kLanes>(logits, sizes.images * sizes.count, classes, [&](const auto& row) {
    // A score is at most exp(its logit - the background's), which needs no exponential to be
    // compared; rows let through in error fail the exact test.
    const float background = row.value(0), foreground = row.foreground_max();
    const bool active = row.valid() && !(foreground - background < packing.log_threshold);
    if (!__any_sync(kAllLanes, active)) return;
    const float top = background > foreground ? background : foreground;
    const float sum = row.sum_of_exp(top);
    // Python refuses 2^32 rows: a division of 64 bits takes ten times as long as one of 32.
    const unsigned image = unsigned(row.index()) / unsigned(sizes.count);
    const unsigned prior = unsigned(row.index()) - image * unsigned(sizes.count);
    row.for_each_class([&](int c, float x) {
      const float score = exp(x - top) / sum;
      const bool passes = active && c > 0 && score > packing.threshold;
      const unsigned lanes = __ballot_sync(kAllLanes, passes);
      if (passes) visit(lanes, int64_t(image) * (classes - 1) + c - 1, packing.pack(score, prior));
    });
  });
}

// Puts a key into its list, as far as there is room. Lanes with one list share an atomic.
__device__ __forceinline__ void append(unsigned lanes, int64_t list, Key key, const Lists& lists) {
  const unsigned peers = __match_any_sync(lanes, (long long)(list));
  const int lane = threadIdx.x % kWarpSize, leader = __ffs(int(peers)) - 1;
  unsigned first = 0;
  // An overflown list grows no more: a stale size costs an atomic, no more.
  if (lane == leader) {
    first = *static_cast<volatile unsigned*>(lists.size + list);
    if (first <= kCapacity) first = atomicAdd(lists.size + list, unsigned(__popc(peers)));
  }
  first = __shfl_sync(peers, first, leader);
  const unsigned place = first + __popc(peers & ((1u << lane) - 1));
  if (place < kCapacity)
    lists.candidates[list * kCapacity + place] = key;
  else
    lists.flags[0] = 1;
}

template <class S, int kLanes>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    append_kernel(const S* __restrict__ logits, Sizes sizes, Packing packing, int shift,
                  Lists lists) {
  for_each_candidate<S, kLanes>(logits, sizes, packing,
                                [&](unsigned lanes, int64_t list, Key key) {
                                  append(lanes, list, key, lists);
                                  atomicAdd(lists.histogram + list * kBins + (key >> shift), 1u);
                                });
}

// Counts the next digit of the candidates in the open cells.
template <class S, int kLanes>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    histogram_kernel(const S* __restrict__ logits, Sizes sizes, Packing packing, int level,
                     int shift, Lists lists) {
  if (lists.flags[level] == 0) return;
  for_each_candidate<S, kLanes>(
      logits, sizes, packing, [&](unsigned, int64_t list, Key key) {
        const Cut& cut = lists.cuts[list];
        if (cut.state == kOpen && key >> shift >> kDigitBits == cut.prefix)
          atomicAdd(lists.histogram + list * kBins + ((key >> shift) & (kBins - 1)), 1u);
      });
}

// A block per list settles a digit: of the candidate of rank top_k, which the lower bound lets in.
constexpr int kSelectThreads = 256;
__global__ void __launch_bounds__(kSelectThreads, 4)
    select_kernel(Sizes sizes, int level, int shift, Lists lists) {
  if (lists.flags[level] == 0) return;
  __shared__ CellSearch<kSelectThreads> search;
  const int64_t list = blockIdx.x;
  Cut cut = {0, 0, kOpen};
  if (level == 0) {
    if (lists.size[list] <= kCapacity) {
      if (threadIdx.x == 0) lists.cuts[list].state = kFits;
      return;
    }
  } else {
    cut = lists.cuts[list];
    if (cut.state != kOpen) return;
  }
  unsigned* const bins = lists.histogram + list * kBins;
  const Cell cell = find_cell(bins, unsigned(sizes.top_k) - cut.above, search);
  for (int i = threadIdx.x; i < kBins; i += kSelectThreads) bins[i] = 0;  // for the next digit
  if (threadIdx.x != 0) return;
  cut.prefix = cut.prefix << kDigitBits | cell.bin;
  cut.above += cell.above;
  cut.state = cut.above + cell.size <= kCapacity ? kSettled : kOpen;
  if (cut.state == kOpen)
    lists.flags[level + 1] = 1;
  else
    cut.prefix <<= shift;  // from here on it is the lower bound
  lists.cuts[list] = cut;
  lists.size[list] = 0;
}

template <class S, int kLanes>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    collect_kernel(const S* __restrict__ logits, Sizes sizes, Packing packing, Lists lists) {
  if (lists.flags[0] == 0) return;
  for_each_candidate<S, kLanes>(logits, sizes, packing,
                                [&](unsigned lanes, int64_t list, Key key) {
                                  const Cut& cut = lists.cuts[list];
                                  const bool wanted = cut.state == kSettled && key >= cut.prefix;
                                  const unsigned all = __ballot_sync(lanes, wanted);
                                  if (wanted) append(all, list, key, lists);
                                });
}

// Sorts n keys, at most kCapacity, in falling order, by the whole block: a bitonic network.
__device__ void sort_falling(Key* keys, int n) {
  int padded = 2;
  while (padded < n) padded *= 2;
  for (int i = n + int(threadIdx.x); i < padded; i += int(blockDim.x)) keys[i] = 0;
  for (int size = 2; size <= padded; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int pair = int(threadIdx.x); pair < padded / 2; pair += int(blockDim.x)) {
        const int low = 2 * pair - (pair & (step - 1)), high = low + step;
        const Key a = keys[low], b = keys[high];
        if ((a < b) == ((low & size) == 0)) {
          keys[low] = b;
          keys[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

template <class S>
__device__ Box<float> decode_prior(const S* loc, const float* priors, int64_t row, int64_t prior,
                                   float v0, float v1) {
  const Box<float> o = load_box(loc, row), p = load_box(priors, prior);
  return decode(Offsets<float>{o.x1, o.y1, o.x2, o.y2}, CentreBox<float>{p.x1, p.y1, p.x2, p.y2},
                v0, v1, Exp{});
}

// A detection as one integer, for the order over all classes: score, lower prior, lower class.
MDSSD_INLINE Key pack_detection(unsigned score_bits, unsigned prior, unsigned label,
                                int64_t classes) {
  return Key(score_bits) << 32 | (0xffffffffu - (prior * unsigned(classes) + label));
}

// Kept detections: [lists, max_detections] of pack_detection, and how many.
struct Kept {
  Key* keys;
  unsigned* size;
};

// A block per (image, class). Suppression goes by tiles of 32 boxes: the pairs within a tile in
// parallel, then their order of precedence, which every thread works out for itself, then the
// tile's kept boxes against all later boxes. After max_detections boxes it ends: more of one class
// can never be among the best of the image.
constexpr int kNmsThreads = 256;
template <class S>
__global__ void __launch_bounds__(kNmsThreads, 4)
    nms_kernel(const S* __restrict__ loc, const float* __restrict__ priors, Sizes sizes,
               Packing packing, float threshold, float v0, float v1, Lists lists, Kept kept) {
  __shared__ Key keys[kCapacity];
  __shared__ Box<float> boxes[kMostKept];
  __shared__ unsigned removed[kMostKept / kWarpSize];  // a bit per box
  __shared__ unsigned overlaps[kWarpSize];             // of a tile: bit j of [i], i suppresses j
  const int64_t list = blockIdx.x, image = list / (sizes.classes - 1);
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
  const int found = int(lists.size[list]);
  if (found == 0) {
    if (thread == 0) kept.size[list] = 0;
    return;
  }
  for (int i = thread; i < found; i += kNmsThreads) keys[i] = lists.candidates[list * kCapacity + i];
  sort_falling(keys, found);

  const int n = found < sizes.top_k ? found : sizes.top_k;
  for (int i = thread; i < n; i += kNmsThreads) {
    const int64_t prior = packing.prior(keys[i]);
    boxes[i] = decode_prior(loc, priors, image * sizes.count + prior, prior, v0, v1);
  }
  if (thread < kMostKept / kWarpSize) removed[thread] = 0;
  __syncthreads();

  int total = 0;
  for (int first = 0; first < n && total < sizes.max_detections; first += kWarpSize) {
    const int j = first + lane;
    for (int i = warp; i < kWarpSize; i += kNmsThreads / kWarpSize) {
      bool over = false;
      if (i < lane && j < n) {
        const Box<float> a = boxes[first + i], b = boxes[j];
        over = iou(a, area(a), b, area(b)) > threshold;
      }
      const unsigned row = __ballot_sync(kAllLanes, over);
      if (lane == 0) overlaps[i] = row;
    }
    __syncthreads();
    unsigned alive = ~removed[first / kWarpSize];
    if (n - first < kWarpSize) alive &= (1u << (n - first)) - 1;
    for (int i = 0; i < kWarpSize; ++i)
      if (alive >> i & 1u) alive &= ~overlaps[i];
    const int place = total + __popc(alive & ((1u << lane) - 1));
    if (warp == 0 && (alive >> lane & 1u) && place < sizes.max_detections) {
      const Key key = keys[j];
      const unsigned label = unsigned(list - image * (sizes.classes - 1)) + 1;
      kept.keys[list * sizes.max_detections + place] =
          pack_detection(packing.score_bits(key), packing.prior(key), label, sizes.classes);
    }
    total += __popc(alive);
    // Each warp takes 32 later boxes, one word of `removed`, at a time.
    for (int base = first + (1 + warp) * kWarpSize; base < n; base += kNmsThreads) {
      const int later = base + lane;
      bool over = false;
      if (later < n) {
        const Box<float> b = boxes[later];
        const float area_b = area(b);
        for (unsigned left = alive; left && !over; left &= left - 1) {
          const Box<float> a = boxes[first + __ffs(int(left)) - 1];
          over = iou(a, area(a), b, area_b) > threshold;
        }
      }
      const unsigned word = __ballot_sync(kAllLanes, over);
      if (lane == 0) removed[base / kWarpSize] |= word;
    }
    __syncthreads();
  }
  if (thread == 0)
    kept.size[list] = unsigned(total < sizes.max_detections ? total : sizes.max_detections);
}

// A block per image: the best of what the classes kept, by a radix selection as above, but in shared
// memory and on the order over all classes.
constexpr int kBestThreads = 512;
template <class S>
__global__ void __launch_bounds__(kBestThreads, 2)
    best_kernel(const S* __restrict__ loc, const float* __restrict__ priors, Sizes sizes, float v0,
                float v1, Kept kept, float* __restrict__ boxes, float* __restrict__ scores,
                int64_t* __restrict__ labels, int64_t* __restrict__ found) {
  __shared__ Key keys[kCapacity];
  __shared__ unsigned histogram[kBins];
  __shared__ CellSearch<kBestThreads> search;
  __shared__ unsigned sums[kBestThreads / kWarpSize];
  __shared__ unsigned gathered;
  const int64_t image = blockIdx.x, foreground = sizes.classes - 1;
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
  constexpr int kWarps = kBestThreads / kWarpSize;
  const auto for_each_kept = [&](auto visit) {  // a warp per class
    for (int64_t list = image * foreground + warp; list < (image + 1) * foreground; list += kWarps) {
      const int size = int(kept.size[list]);
      for (int i = lane; i < size; i += kWarpSize) visit(kept.keys[list * sizes.max_detections + i]);
    }
  };

  unsigned mine = 0;
  for (int64_t list = image * foreground + thread; list < (image + 1) * foreground;
       list += kBestThreads)
    mine += kept.size[list];
  const unsigned total = block_sum(mine, sums);
  Key lowest = 0;
  if (total > kCapacity) {
    Key prefix = 0;
    unsigned above = 0, cell = total;
    int shift = 62;  // a score is at most 1: the two upper bits are 0
    while (above + cell > kCapacity) {
      shift -= kDigitBits;
      for (int i = thread; i < kBins; i += kBestThreads) histogram[i] = 0;
      __syncthreads();
      for_each_kept([&](Key key) {
        if (key >> shift >> kDigitBits == prefix)
          atomicAdd(histogram + ((key >> shift) & (kBins - 1)), 1u);
      });
      __syncthreads();
      const Cell next = find_cell(histogram, unsigned(sizes.max_detections) - above, search);
      prefix = prefix << kDigitBits | next.bin;
      above += next.above;
      cell = next.size;
    }
    lowest = prefix << shift;
  }
  if (thread == 0) gathered = 0;
  __syncthreads();
  for_each_kept([&](Key key) {
    if (key >= lowest) keys[atomicAdd(&gathered, 1u)] = key;
  });
  __syncthreads();
  const int candidates = int(gathered);
  sort_falling(keys, candidates);

  const int n = candidates < sizes.max_detections ? candidates : sizes.max_detections;
  for (int i = thread; i < sizes.max_detections; i += kBestThreads) {
    const int64_t row = image * sizes.max_detections + i;
    Box<float> box = {0, 0, 0, 0};
    float score = 0;
    int64_t label = 0;
    if (i < n) {
      const unsigned low = 0xffffffffu - unsigned(keys[i]);
      const int64_t prior = low / unsigned(sizes.classes);
      box = decode_prior(loc, priors, image * sizes.count + prior, prior, v0, v1);
      score = __uint_as_float(unsigned(keys[i] >> 32));
      label = low - prior * sizes.classes;
    }
    store_four(boxes, row, box.x1, box.y1, box.x2, box.y2);
    scores[row] = score;
    labels[row] = label;
  }
  if (thread == 0) found[image] = n;
}

int bit_length(uint64_t x) {
  int bits = 0;
  for (; x; x >>= 1) ++bits;
  return bits;
}

Packing make_packing(float threshold, int64_t count) {
  const unsigned one = bit_cast<unsigned>(1.0f), at = bit_cast<unsigned>(threshold);
  const int score_bits = bit_length(one - at), index_bits = bit_length(uint64_t(count - 1));
  // The margin covers the rounding of softmax.
  return {threshold, std::log(threshold) - 1e-3f, at + 1, index_bits, score_bits + index_bits};
}

// Digits until a cell fits into a list.
int count_levels(const Packing& packing) {
  const int bits = packing.bits - kCellBits;
  return bits > kDigitBits ? (bits + kDigitBits - 1) / kDigitBits : 1;
}

int shift_after(const Packing& packing, int level) {
  const int shift = packing.bits - (level + 1) * kDigitBits;
  return shift > 0 ? shift : 0;
}

struct Memory {
  Lists lists;
  Kept kept;
  int64_t zeros, bytes;  // the part that starts as zeros comes first

  Memory(void* workspace, const Sizes& sizes, int levels) {
    Workspace memory(workspace);
    const int64_t n = sizes.lists();
    lists.flags = memory.take<unsigned>(levels + 1);
    lists.size = memory.take<unsigned>(n);
    lists.histogram = memory.take<unsigned>(n * kBins);
    zeros = memory.bytes();
    lists.cuts = memory.take<Cut>(n);
    lists.candidates = memory.take<Key>(n * kCapacity);
    kept.keys = memory.take<Key>(n * sizes.max_detections);
    kept.size = memory.take<unsigned>(n);
    bytes = memory.bytes();
  }
};

template <class S, int kLanes>
void find_candidates(const S* logits, const Sizes& sizes, const Packing& packing, int levels,
                     const Lists& lists, Stream stream) {
  const char* op = "detection_output";
  const unsigned blocks = row_blocks<kLanes>(sizes.images * sizes.count);
  const unsigned each = grid_size(sizes.lists(), 1);
  launch(op, append_kernel<S, kLanes>, blocks, kRowThreads, stream, logits, sizes, packing,
         shift_after(packing, 0), lists);
  launch(op, select_kernel, each, kSelectThreads, stream, sizes, 0, shift_after(packing, 0), lists);
  for (int level = 1; level < levels; ++level) {
    const int shift = shift_after(packing, level);
    launch(op, histogram_kernel<S, kLanes>, blocks, kRowThreads, stream, logits, sizes, packing,
           level, shift, lists);
    launch(op, select_kernel, each, kSelectThreads, stream, sizes, level, shift, lists);
  }
  launch(op, collect_kernel<S, kLanes>, blocks, kRowThreads, stream, logits, sizes, packing, lists);
}

}  // namespace

int64_t detection_output_workspace(int64_t images, int64_t count, int64_t classes,
                                   double score_threshold, int64_t top_k, int64_t max_detections) {
  const Packing packing = make_packing(float(score_threshold), count);
  const Sizes sizes{images, count, classes, int(top_k), int(max_detections)};
  return Memory(nullptr, sizes, count_levels(packing)).bytes;
}

void detection_output_cuda(const void* loc, const void* logits, const void* priors, int64_t images,
                           int64_t count, int64_t classes, double score_threshold,
                           double nms_threshold, int64_t top_k, int64_t max_detections, double v0,
                           double v1, void* boxes, void* scores, int64_t* labels, int64_t* found,
                           void* workspace, DType dtype, Stream stream) {
  const char* op = "detection_output";
  const Packing packing = make_packing(float(score_threshold), count);
  const Sizes sizes{images, count, classes, int(top_k), int(max_detections)};
  const int levels = count_levels(packing);
  const Memory memory(workspace, sizes, levels);
  zero(op, workspace, memory.zeros, stream);
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    if constexpr (!std::is_same_v<S, double>) {  // Python hands float64 to the reference
      const auto* rows = static_cast<const S*>(logits);
      const auto* offsets = static_cast<const S*>(loc);
      const auto* prior_rows = static_cast<const float*>(priors);
      with_row_lanes(classes, [&](auto lanes) {
        find_candidates<S, lanes>(rows, sizes, packing, levels, memory.lists, stream);
      });
      launch(op, nms_kernel<S>, grid_size(sizes.lists(), 1), kNmsThreads, stream, offsets,
             prior_rows, sizes, packing, nms_threshold, v0, v1, memory.lists, memory.kept);
      launch(op, best_kernel<S>, grid_size(images, 1), kBestThreads, stream, offsets, prior_rows,
             sizes, v0, v1, memory.kept, static_cast<float*>(boxes), static_cast<float*>(scores),
             labels, found);
    }
  });
}

}  // namespace mdssd
