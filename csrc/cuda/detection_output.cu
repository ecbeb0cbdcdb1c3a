// detection_output: scores, threshold, best top_k per class, decoding, NMS, best max_detections.
//
// In a trained network a few priors pass the score threshold, in an untrained one all of them. To
// be fast for both, every (image, class) has a list of at most 2048 candidates, and a bound decides
// what enters the list:
//   1. sample_kernel computes the scores of one prior in 24 and appends those above the threshold.
//   2. bound_kernel, a block per list, estimates from the sample a bound that about 905 of all
//      priors reach (for top_k = 400), or no bound if few pass, and empties the list.
//   3. append_kernel reads all logits once and appends the candidates that reach the bound. rows.h
//      describes how lanes share a row.
//   4. select_kernel, a block per list, returns at once unless the list overflowed or has fewer
//      than top_k candidates because of the bound. The sample misleads two or three lists
//      in a million; such a list is filled by a radix selection over the logits.
//   5. nms_kernel, a block per list, sorts the list, decodes its boxes and suppresses.
//   6. best_kernel, a block per image, selects and sorts the best boxes of all classes.
// With the memset of the list sizes, these are at most seven launches for any input.
//
// A candidate is a single integer: the bits of its score, which order like the scores, followed by
// the complement of its prior, so that the lower prior is the larger number. All candidates of a
// list are distinct, so there are no ties, a bound can separate equal scores, and the result
// depends neither on the order in which blocks run nor on the sample: with any bound, the list ends
// up with the best top_k.
//
// Larger limits than kMostKept, lists of candidates of all classes, and soft-NMS take the way of
// detection_output_wide.cu instead.
//
// Memory is O(images x classes) and does not depend on the number of priors. Predicted times
// (benchmarks/NOTES.md, "first CUDA kernels"): bound by the launches and by NMS for one image, and
// by append_kernel for a batch.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "../ops.h"
#include "detection_parts.h"
#include "radix.h"

namespace mdssd {
namespace {

constexpr int kCapacity = 2048;  // candidates in a list
constexpr int kMostKept = 1024;  // largest top_k and max_detections
static_assert(kMostKept < kCapacity);

// One prior in kSampled is sampled. For top_k = 400, the bound should admit 905 candidates, the
// geometric mean of 400 and kCapacity; 905 / 24 = 38 of them are in the sample. A list gets too few
// or too many candidates only if the estimate is off by a factor of 2.26, which is five standard
// deviations of its logarithm, 1 / sqrt(38).
constexpr int kSampled = 24, kMostSampled = 4096;

struct Sizes : Shape {
  int top_k, max_detections;
  int sample;  // sampled priors per image; 0 if a list has room for all priors
  int rank;    // rank in the sample of the candidate that becomes the bound

  MDSSD_INLINE int64_t lists() const { return images * foreground(); }
};

// The lists of candidates, one for each (image, class except the background).
struct Lists {
  Key* candidates;    // [lists, places]
  int places;         // the larger of kCapacity and the size of the sample
  unsigned* size;     // [lists]; above kCapacity if the list overflowed
  Key* bounds;        // [lists]: the lowest candidate to append, or 0 for all
  float* log_limits;  // [lists]: slightly below the logarithm of the bound's score

  __device__ Key* of(int64_t list) const { return candidates + list * places; }
};

// Appends a key to its list if there is room. Lanes with the same list share one atomic.
__device__ __forceinline__ void append(unsigned lanes, int64_t list, Key key, const Lists& lists) {
  const unsigned peers = __match_any_sync(lanes, (long long)(list));
  const int lane = threadIdx.x % kWarpSize, leader = __ffs(int(peers)) - 1;
  unsigned first = 0;
  // An overflowed list needs no more atomics. A stale size costs at most one more.
  if (lane == leader) {
    first = *static_cast<volatile unsigned*>(lists.size + list);
    if (first <= unsigned(lists.places))
      first = atomicAdd(lists.size + list, unsigned(__popc(peers)));
  }
  first = __shfl_sync(peers, first, leader);
  const unsigned place = first + __popc(peers & ((1u << lane) - 1));
  if (place < unsigned(lists.places)) lists.of(list)[place] = key;
}

// Returns the i-th sampled prior of an image: a pseudo-random one from the i-th part of all priors.
// Equal steps would not do, because the shapes of the priors repeat with a fixed period.
__device__ __forceinline__ unsigned sampled_prior(unsigned i, const Sizes& sizes) {
  const unsigned first = unsigned(i * sizes.num_priors / sizes.sample);
  const unsigned end = unsigned((i + 1) * sizes.num_priors / sizes.sample);
  return first + (i * 2654435761u >> 8) % (end - first);  // 2^32 divided by the golden ratio
}

template <class S, int kLanes>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    sample_kernel(const S* __restrict__ logits, Sizes sizes, Packing packing, Lists lists) {
  const int64_t samples = sizes.images * sizes.sample;
  const int64_t i = (int64_t(blockIdx.x) * kRowThreads + threadIdx.x) / kLanes;
  const bool in_range = i < samples;
  const unsigned image = in_range ? unsigned(i / sizes.sample) : 0;
  const unsigned number = in_range ? unsigned(i % sizes.sample) : 0;
  const int64_t index = image * sizes.num_priors + sampled_prior(number, sizes);
  const Row<S, kLanes> row{logits + index * sizes.classes, int(sizes.classes), index, in_range};
  for_each_candidate(
      row, sizes, packing, [&](int64_t) { return packing.log_threshold; },
      [&](unsigned lanes, int64_t list, unsigned prior, float score) {
        append(lanes, list, packing.pack(score, prior), lists);
      });
}

// A block handles one list: it finds the bound by a radix selection (radix.h) among the sampled
// candidates.
constexpr int kBoundThreads = 256;
__global__ void __launch_bounds__(kBoundThreads, 4)
    bound_kernel(Sizes sizes, Packing packing, Lists lists) {
  __shared__ unsigned bins[kBins];
  __shared__ CellSearch<kBoundThreads> search;
  const int64_t list = blockIdx.x;
  const unsigned size = lists.size[list], rank = unsigned(sizes.rank);
  Key bound = 0;
  if (size > rank) {
    const Key* const keys = lists.of(list);
    bound = find_bound<kBoundThreads, Key>(
        size, rank, rank + rank / 4, packing.bits,
        [&](auto visit) {
          for (unsigned i = threadIdx.x; i < size; i += kBoundThreads) visit(keys[i]);
        },
        bins, search);
  }
  __syncthreads();  // all threads have read the size
  if (threadIdx.x != 0) return;
  lists.size[list] = 0;
  lists.bounds[list] = bound;
  lists.log_limits[list] = bound == 0 ? packing.log_threshold
                                      : packing.limit(__uint_as_float(packing.score_bits(bound)));
}

template <class S, int kLanes>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    append_kernel(const S* __restrict__ logits, Sizes sizes, Packing packing, Lists lists) {
  for_each_row<S, kLanes>(
      logits, sizes.images * sizes.num_priors, int(sizes.classes), [&](const auto& row) {
        for_each_candidate(
            row, sizes, packing, [&](int64_t list) { return lists.log_limits[list]; },
            [&](unsigned lanes, int64_t list, unsigned prior, float score) {
              const Key key = packing.pack(score, prior);
              const bool wanted = key >= lists.bounds[list];
              const unsigned all = __ballot_sync(lanes, wanted);
              if (wanted) append(all, list, key, lists);
            });
      });
}

// A block handles one list. The rare list that it has to fill costs several times as much as
// append_kernel for the whole image, because the block computes the softmax of every row for a
// single class.
constexpr int kSelectThreads = 256;
template <class S, int kLanes>
__global__ void __launch_bounds__(kSelectThreads, 4)
    select_kernel(const S* __restrict__ logits, Sizes sizes, Packing packing, Lists lists) {
  const int64_t list = blockIdx.x;
  const unsigned top_k = unsigned(sizes.top_k), appended = lists.size[list];
  if (appended <= kCapacity && (lists.bounds[list] == 0 || appended >= top_k)) return;
  __shared__ unsigned bins[kBins];
  __shared__ CellSearch<kSelectThreads> search;
  __shared__ unsigned gathered;
  const int64_t image = list / sizes.foreground();
  const auto for_each_key = [&](auto visit) {
    constexpr int kRows = kSelectThreads / kLanes;
    const int mine = int(threadIdx.x) / kLanes;
    for (int64_t first = 0; first < sizes.num_priors; first += kRows) {
      const bool in_range = first + mine < sizes.num_priors;
      const int64_t index = image * sizes.num_priors + (in_range ? first + mine : 0);
      const Row<S, kLanes> row{logits + index * sizes.classes, int(sizes.classes), index, in_range};
      for_each_candidate(
          row, sizes, packing,
          [&](int64_t other) { return other == list ? packing.log_threshold : INFINITY; },
          [&](unsigned, int64_t other, unsigned prior, float score) {
            if (other == list) visit(packing.pack(score, prior));
          });
    }
  };
  const auto count_to_zero = [&] {
    __syncthreads();
    if (threadIdx.x == 0) gathered = 0;
    __syncthreads();
  };

  count_to_zero();
  for_each_key([&](Key) { atomicAdd(&gathered, 1u); });
  __syncthreads();
  const unsigned total = gathered;
  const Key lowest = find_bound<kSelectThreads, Key>(total, top_k, kCapacity, packing.bits,
                                                     for_each_key, bins, search);
  count_to_zero();
  for_each_key([&](Key key) {
    if (key >= lowest) lists.of(list)[atomicAdd(&gathered, 1u)] = key;
  });
  __syncthreads();
  if (threadIdx.x == 0) lists.size[list] = gathered;
}

// Packs a detection into an integer that orders detections of all classes by higher score, then
// lower prior, then lower class.
MDSSD_INLINE Key pack_detection(unsigned score_bits, unsigned prior, unsigned label,
                                int64_t classes) {
  return Key(score_bits) << 32 | (0xffffffffu - (prior * unsigned(classes) + label - 1));
}

// The detections that NMS keeps: keys of pack_detection [lists, max_detections] and their number
// [lists].
struct Kept {
  Key* keys;
  unsigned* size;
};

// A block handles one list. It stops after max_detections boxes, because more boxes of a class
// cannot be among the best of the image.
constexpr int kNmsThreads = 256;
template <class S, class Suppresses>
__global__ void __launch_bounds__(kNmsThreads, 4)
    nms_kernel(const S* __restrict__ loc, const float* __restrict__ priors, Sizes sizes,
               Packing packing, Suppresses suppresses, Decoding<float> decoding, Lists lists,
               Kept kept) {
  __shared__ Key keys[kCapacity];
  __shared__ Box<float> boxes[kMostKept];
  __shared__ unsigned removed[kMostKept / kWarpSize];  // a bit per box
  __shared__ unsigned before[kWarpSize];               // bit i of before[j]: i suppresses j
  const int64_t list = blockIdx.x, image = list / sizes.foreground();
  const int thread = threadIdx.x;
  const int found = int(lists.size[list]);
  if (found == 0) {
    if (thread == 0) kept.size[list] = 0;
    return;
  }
  for (int i = thread; i < found; i += kNmsThreads) keys[i] = lists.of(list)[i];
  if (thread < kMostKept / kWarpSize) removed[thread] = 0;
  sort_falling(keys, found);

  const int n = found < sizes.top_k ? found : sizes.top_k;
  for (int i = thread; i < n; i += kNmsThreads) {
    const int64_t prior = packing.index(keys[i]);
    boxes[i] = decode_prior(loc, priors, image * sizes.num_priors + prior, prior, decoding);
    if (has_nan(boxes[i])) atomicOr(&removed[i / kWarpSize], 1u << (i % kWarpSize));
  }
  __syncthreads();

  const int total = suppress_in_tiles<kNmsThreads>(
      boxes, removed, before, n, sizes.max_detections, suppresses, [&](int place, int i) {
        const unsigned label = unsigned(list - image * sizes.foreground()) + 1;
        kept.keys[list * sizes.max_detections + place] = pack_detection(
            packing.score_bits(keys[i]), packing.index(keys[i]), label, sizes.classes);
      });
  if (thread == 0)
    kept.size[list] = unsigned(total < sizes.max_detections ? total : sizes.max_detections);
}

// A block handles one image. It selects the best detections of all classes by a radix selection
// over the keys of pack_detection, sorts them and writes them with their boxes. With `per_class`, a
// block handles one list instead.
constexpr int kBestThreads = 512;
template <class S>
__global__ void __launch_bounds__(kBestThreads, 2)
    best_kernel(const S* __restrict__ loc, const float* __restrict__ priors, Sizes sizes,
                bool per_class, Decoding<float> decoding, Kept kept, float* __restrict__ boxes,
                float* __restrict__ scores, int64_t* __restrict__ labels,
                int64_t* __restrict__ count) {
  __shared__ Key keys[kCapacity];
  __shared__ unsigned histogram[kBins];
  __shared__ CellSearch<kBestThreads> search;
  __shared__ unsigned sums[kBestThreads / kWarpSize];
  __shared__ unsigned gathered;
  const int64_t lists = per_class ? 1 : sizes.foreground(), first_list = blockIdx.x * lists;
  const int64_t image = first_list / sizes.foreground();
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
  constexpr int kWarps = kBestThreads / kWarpSize;
  const auto for_each_kept = [&](auto visit) {  // a warp handles one class
    for (int64_t list = first_list + warp; list < first_list + lists; list += kWarps) {
      const int size = int(kept.size[list]);
      for (int i = lane; i < size; i += kWarpSize) visit(kept.keys[list * sizes.max_detections + i]);
    }
  };

  unsigned mine = 0;
  for (int64_t list = first_list + thread; list < first_list + lists; list += kBestThreads)
    mine += kept.size[list];
  const unsigned total = block_sum(mine, sums);
  // A key has 62 bits: scores are at most 1, so the two highest bits are 0.
  const Key lowest = find_bound<kBestThreads, Key>(total, unsigned(sizes.max_detections), kCapacity,
                                                   62, for_each_kept, histogram, search);
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
    const int64_t row = int64_t(blockIdx.x) * sizes.max_detections + i;
    Box<float> box = {0, 0, 0, 0};
    float score = 0;
    int64_t label = 0;
    if (i < n) {
      const unsigned low = 0xffffffffu - unsigned(keys[i]);
      const int64_t prior = low / unsigned(sizes.classes);
      box = decode_prior(loc, priors, image * sizes.num_priors + prior, prior, decoding);
      score = __uint_as_float(unsigned(keys[i] >> 32));
      label = low - prior * sizes.classes + 1;
    }
    store_four(boxes, row, box.x1, box.y1, box.x2, box.y2);
    scores[row] = score;
    labels[row] = label;
  }
  if (thread == 0) count[blockIdx.x] = n;
}

Sizes make_sizes(int64_t images, int64_t num_priors, int64_t classes,
                 const DetectionOutputSettings& settings) {
  const int top_k = int(std::min(settings.top_k, num_priors));
  Sizes sizes{{images, num_priors, classes, settings.background},
              top_k,
              int(settings.max_detections),
              0,
              0};
  if (num_priors > kCapacity) {
    sizes.sample = int(std::min<int64_t>((num_priors + kSampled - 1) / kSampled, kMostSampled));
    const double wanted = std::sqrt(double(top_k) * kCapacity);
    sizes.rank = int(std::ceil(wanted * sizes.sample / double(num_priors)));
  }
  return sizes;
}

struct Memory {
  Lists lists;
  Kept kept;
  int64_t zeros, bytes;  // the first `zeros` bytes must be zeroed

  Memory(void* workspace, const Sizes& sizes) {
    Workspace memory(workspace);
    const int64_t n = sizes.lists();
    lists.places = std::max(kCapacity, sizes.sample);
    lists.size = memory.take<unsigned>(n);
    zeros = memory.bytes();
    lists.bounds = memory.take<Key>(n);
    lists.log_limits = memory.take<float>(n);
    lists.candidates = memory.take<Key>(n * lists.places);
    kept.keys = memory.take<Key>(n * sizes.max_detections);
    kept.size = memory.take<unsigned>(n);
    bytes = memory.bytes();
  }
};

template <class S, int kLanes>
void find_candidates(const S* logits, const Sizes& sizes, const Packing& packing,
                     const Lists& lists, Stream stream) {
  const char* op = "detection_output";
  const unsigned each = grid_size(sizes.lists(), 1);
  launch(op, sample_kernel<S, kLanes>, grid_size(sizes.images * sizes.sample, kRowThreads / kLanes),
         kRowThreads, stream, logits, sizes, packing, lists);
  launch(op, bound_kernel, each, kBoundThreads, stream, sizes, packing, lists);
  launch(op, append_kernel<S, kLanes>, row_blocks<kLanes>(sizes.images * sizes.num_priors),
         kRowThreads, stream, logits, sizes, packing, lists);
  launch(op, select_kernel<S, kLanes>, each, kSelectThreads, stream, logits, sizes, packing, lists);
}

bool is_wide(int64_t num_priors, const DetectionOutputSettings& settings) {
  return settings.class_agnostic || settings.top_k_per_level || settings.suppression ||
         std::min(settings.top_k, num_priors) > kMostKept || settings.max_detections > kMostKept;
}

}  // namespace

int64_t detection_output_workspace(int64_t images, int64_t num_priors, int64_t classes,
                                   const DetectionOutputSettings& settings) {
  if (is_wide(num_priors, settings))
    return detection_output_wide_workspace(images, num_priors, classes, settings);
  return Memory(nullptr, make_sizes(images, num_priors, classes, settings)).bytes;
}

void detection_output_cuda(const void* loc, const void* logits, const void* priors, int64_t images,
                           int64_t num_priors, int64_t classes,
                           const DetectionOutputSettings& settings, void* boxes, void* scores,
                           int64_t* labels, int64_t* count, void* workspace, DType dtype,
                           Stream stream) {
  if (is_wide(num_priors, settings)) {
    detection_output_wide(loc, logits, priors, images, num_priors, classes, settings, boxes, scores,
                          labels, count, workspace, dtype, stream);
    return;
  }
  const char* op = "detection_output";
  const Packing packing = make_packing(settings, uint64_t(num_priors));
  const Decoding<float> decoding = make_decoding<float>(settings);
  const Sizes sizes = make_sizes(images, num_priors, classes, settings);
  const Memory memory(workspace, sizes);
  zero(op, workspace, memory.zeros, stream);
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    if constexpr (!std::is_same_v<S, double>) {  // Python calls the reference for float64
      const auto* rows = static_cast<const S*>(logits);
      const auto* offsets = static_cast<const S*>(loc);
      const auto* prior_rows = static_cast<const float*>(priors);
      with_row_lanes(classes, [&](auto lanes) {
        find_candidates<S, lanes>(rows, sizes, packing, memory.lists, stream);
      });
      with_suppression(settings, [&](auto suppresses) {
        launch(op, nms_kernel<S, decltype(suppresses)>, grid_size(sizes.lists(), 1), kNmsThreads,
               stream, offsets, prior_rows, sizes, packing, suppresses, decoding, memory.lists,
               memory.kept);
      });
      const int64_t results = settings.per_class ? sizes.lists() : images;
      launch(op, best_kernel<S>, grid_size(results, 1), kBestThreads, stream, offsets, prior_rows,
             sizes, settings.per_class, decoding, memory.kept, static_cast<float*>(boxes),
             static_cast<float*>(scores), labels, count);
    }
  });
}

}  // namespace mdssd
