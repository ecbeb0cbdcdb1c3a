// detection_output with larger limits than those of detection_output.cu, with lists of candidates of
// all classes, or with soft-NMS. No limit is built in, and memory is in proportion to the limits that
// are given.
//
// A list is what a number of candidates is for: a class of an image, a level of it (top_k_per_level),
// or all of it (class_agnostic). A group is what one NMS is for: a class of an image, or all of it.
//   1. scan_kernel counts the candidates of each list by the first digit of their keys, and
//      digit_kernel, a block per list, finds the digit of the last one to take. Both continue with
//      the next digit (a radix selection), until exactly the best of each list are above its bound,
//      and return at once after that.
//   2. scan_kernel collects these, per image, and counts them by group.
//   3. offset_kernel gives every group its part of the image's memory, and group_kernel moves the
//      candidates there.
//   4. suppress_kernel, a block per group, sorts, decodes and suppresses.
//      With soft-NMS it is soften_kernel, and the keys of the kept boxes have their lowered scores.
//   5. place_kernel writes the results: a kept box counts the better ones in the other groups of its
//      image by binary search, which gives its row.
//
// A key is that of detection_output.cu, but the index is that of a prior and a class. So all keys of
// a call are distinct, and the result does not depend on the order in which blocks run.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../ops.h"
#include "detection_parts.h"
#include "radix.h"
#include "soft_nms.h"

namespace mdssd {
namespace {

constexpr int kMostLevels = 32;  // Python refuses more

// How the candidates of an image are divided into lists and groups.
struct Division {
  int levels;      // 0 if each class has a list
  unsigned most;   // candidates that are taken of a list
  bool agnostic;   // whether an image is one group
  bool per_class;  // whether each group has rows of its own in the result
  unsigned ends[kMostLevels];  // the prior after the last one of each level

  MDSSD_INLINE int64_t lists(const Shape& shape) const {
    return levels ? levels : shape.foreground();
  }
  MDSSD_INLINE int64_t groups(const Shape& shape) const { return agnostic ? 1 : shape.foreground(); }
  __device__ int list(unsigned prior, int column) const {
    if (levels == 0) return column;
    int level = 0;
    for (int i = 0; i + 1 < levels; ++i) level += prior >= ends[i];
    return level;
  }
};

// The selection, an entry per list.
struct Search {
  unsigned* histogram;   // [lists, kBins]
  unsigned* settled;     // whether `bound` is final
  unsigned* unfinished;  // [digits]: whether a list needs this digit
  Key* bound;            // the digits found so far; finally the lowest key to take
  unsigned* above;       // keys above these digits
};

struct Groups {
  unsigned* found;   // [images]: candidates that are taken
  unsigned* size;    // [groups]
  unsigned* filled;  // [groups]: candidates that are in their place
  unsigned* kept;    // [groups]
  unsigned* offset;  // [groups]: the first place of the group in the memory of its image
  Key* taken;        // [images, taken_room]
  Key* keys;         // [images, room]: by group, in falling order
  Key* kept_keys;    // [images, room]: likewise, those that NMS keeps
  Box<float>* boxes;
  unsigned* removed;  // [images, room / kWarpSize]: a bit per box
  ScoreKey<float>* soft_keys;  // [images, room], with soft-NMS
  int64_t taken_room, room;
};

struct Sizes : Shape {
  int64_t top_k;  // candidates of a group that enter NMS
  int max_detections;
  int digits;
};

MDSSD_INLINE int shift_of(int digit, int bits) {
  const int shift = bits - (digit + 1) * kDigitBits;
  return shift > 0 ? shift : 0;
}

// With a digit below `digits` it counts, and otherwise it collects. Both are one kernel, so that the
// scores are the same to the bit.
template <class S, int kLanes>
__global__ void __launch_bounds__(kRowThreads, kRowBlocks)
    scan_kernel(const S* __restrict__ logits, Sizes sizes, Packing packing, Division division,
                Search search, Groups groups, int digit) {
  const bool counts = digit < sizes.digits;
  if (counts && digit > 0 && search.unfinished[digit] == 0) return;
  const int shift = shift_of(digit, packing.bits);
  const int width = digit == 0 ? packing.bits - shift : shift_of(digit - 1, packing.bits) - shift;
  const int64_t foreground = sizes.foreground();
  for_each_row<S, kLanes>(
      logits, sizes.images * sizes.num_priors, int(sizes.classes), [&](const auto& row) {
        for_each_candidate(
            row, sizes, packing, [&](int64_t) { return packing.log_threshold; },
            [&](unsigned, int64_t class_list, unsigned prior, float score) {
              const int64_t image = class_list / foreground;
              const int column = int(class_list - image * foreground);
              const Key key = packing.pack(score, prior * unsigned(foreground) + unsigned(column));
              const int64_t list = image * division.lists(sizes) + division.list(prior, column);
              if (counts) {
                if (search.settled[list] || key >> shift >> width != search.bound[list]) return;
                const unsigned bin = unsigned(key >> shift) & ((1u << width) - 1);
                atomicAdd(search.histogram + list * kBins + bin, 1u);
              } else if (key >= search.bound[list]) {
                const unsigned place = atomicAdd(groups.found + image, 1u);
                groups.taken[image * groups.taken_room + place] = key;
                atomicAdd(groups.size + (division.agnostic ? image : class_list), 1u);
              }
            });
      });
}

constexpr int kDigitThreads = 256;
__global__ void __launch_bounds__(kDigitThreads, 4)
    digit_kernel(Packing packing, unsigned most, Search search, int digit, int digits) {
  __shared__ CellSearch<kDigitThreads> shared;
  __shared__ unsigned sums[kDigitThreads / kWarpSize];
  const int64_t list = blockIdx.x;
  if ((digit > 0 && search.unfinished[digit] == 0) || search.settled[list]) return;
  unsigned* const bins = search.histogram + list * kBins;
  unsigned mine = 0;
  for (int i = threadIdx.x; i < kBins; i += kDigitThreads) mine += bins[i];
  const unsigned above = search.above[list];
  const Key digits_so_far = search.bound[list];
  // The first time, all candidates are counted. `settled` has been read before it is set.
  if (above + block_sum(mine, sums) <= most) {
    if (threadIdx.x == 0) search.settled[list] = 1;
    return;
  }
  const Cell cell = find_cell(bins, most - above, shared);
  const int shift = shift_of(digit, packing.bits);
  const int width = digit == 0 ? packing.bits - shift : shift_of(digit - 1, packing.bits) - shift;
  for (int i = threadIdx.x; i < kBins; i += kDigitThreads) bins[i] = 0;
  if (threadIdx.x != 0) return;
  const Key prefix = digits_so_far << width | cell.bin;
  const bool settles = above + cell.above + cell.size <= most;
  search.above[list] = above + cell.above;
  search.bound[list] = settles ? prefix << shift : prefix;
  search.settled[list] = settles;
  if (!settles && digit + 1 < digits) atomicOr(search.unfinished + digit + 1, 1u);
}

// A group gets a power of two of places, for sorting, and at least a word of bits; none if it is
// empty. One warp handles an image.
__global__ void __launch_bounds__(kWarpSize, 16) offset_kernel(int per_image, Groups groups) {
  const int lane = int(threadIdx.x);
  const int64_t first_group = int64_t(blockIdx.x) * per_image;
  unsigned taken = 0;
  for (int first = 0; first < per_image; first += kWarpSize) {
    const int64_t group = first_group + first + lane;
    const unsigned size = first + lane < per_image ? groups.size[group] : 0;
    unsigned room = size == 0 ? 0 : kWarpSize;
    while (room < size) room *= 2;
    unsigned end = room;
    for (int step = 1; step < kWarpSize; step *= 2) {
      const unsigned before = __shfl_up_sync(kAllLanes, end, unsigned(step));
      if (lane >= step) end += before;
    }
    if (first + lane < per_image) groups.offset[group] = taken + end - room;
    taken += __shfl_sync(kAllLanes, end, kWarpSize - 1);
  }
}

constexpr int kGroupThreads = 256;
__global__ void __launch_bounds__(kGroupThreads, 4)
    group_kernel(Sizes sizes, Packing packing, Division division, Groups groups) {
  const int64_t foreground = sizes.foreground(), per_image = division.groups(sizes);
  for (int64_t i = int64_t(blockIdx.x) * kGroupThreads + threadIdx.x;
       i < sizes.images * groups.taken_room; i += int64_t(gridDim.x) * kGroupThreads) {
    const int64_t image = i / groups.taken_room;
    if (i - image * groups.taken_room >= groups.found[image]) continue;
    const Key key = groups.taken[i];
    const int64_t group =
        image * per_image + (division.agnostic ? 0 : packing.index(key) % unsigned(foreground));
    const unsigned place = groups.offset[group] + atomicAdd(groups.filled + group, 1u);
    groups.keys[image * groups.room + place] = key;
  }
}

constexpr int kSuppressThreads = 256;
template <class S, class Suppresses>
__global__ void __launch_bounds__(kSuppressThreads, 4)
    suppress_kernel(const S* __restrict__ loc, const float* __restrict__ priors, Sizes sizes,
                    Packing packing, Division division, Suppresses suppresses,
                    Decoding<float> decoding, Groups groups) {
  __shared__ unsigned before[kWarpSize];
  const int64_t group = blockIdx.x, image = group / division.groups(sizes);
  const int thread = int(threadIdx.x), found = int(groups.size[group]);
  if (found == 0) return;  // `kept` is 0
  const int64_t first = image * groups.room + groups.offset[group];
  Key* const keys = groups.keys + first;
  Box<float>* const boxes = groups.boxes + first;
  unsigned* const removed = groups.removed + first / kWarpSize;
  const int n = found < sizes.top_k ? found : int(sizes.top_k);
  for (int i = thread; i <= n / kWarpSize && i * kWarpSize < n; i += kSuppressThreads)
    removed[i] = 0;
  sort_falling(keys, found);
  for (int i = thread; i < n; i += kSuppressThreads) {
    const int64_t prior = packing.index(keys[i]) / unsigned(sizes.foreground());
    const Box<float> box =
        decode_prior(loc, priors, image * sizes.num_priors + prior, prior, decoding);
    boxes[i] = box;
    if (has_nan(box)) atomicOr(&removed[i / kWarpSize], 1u << (i % kWarpSize));
  }
  __syncthreads();
  const int total = suppress_in_tiles<kSuppressThreads>(
      boxes, removed, before, n, sizes.max_detections, suppresses,
      [&](int place, int i) { groups.kept_keys[first + place] = keys[i]; });
  if (thread == 0)
    groups.kept[group] = unsigned(total < sizes.max_detections ? total : sizes.max_detections);
}

// As suppress_kernel. Of the boxes without area, only the first takes part unless `keep_empty`.
template <class S>
__global__ void __launch_bounds__(kSuppressThreads, 2)
    soften_kernel(const S* __restrict__ loc, const float* __restrict__ priors, Sizes sizes,
                  Packing packing, Division division, Softening<float> by,
                  AnyMetric<float> metric, bool keep_empty, Decoding<float> decoding,
                  Groups groups) {
  __shared__ Best<float> bests[2][kSuppressThreads / kWarpSize];
  __shared__ int empty;  // minus the number of the first box without area
  const int64_t group = blockIdx.x, image = group / division.groups(sizes);
  const int thread = int(threadIdx.x), found = int(groups.size[group]);
  if (found == 0) return;  // `kept` is 0
  const int64_t first = image * groups.room + groups.offset[group];
  Key *const keys = groups.keys + first, *const kept = groups.kept_keys + first;
  Box<float>* const boxes = groups.boxes + first;
  ScoreKey<float>* const soft_keys = groups.soft_keys + first;
  const int n = found < sizes.top_k ? found : int(sizes.top_k);
  if (thread == 0) empty = -n;
  sort_falling(keys, found);
  for (int i = thread; i < n; i += kSuppressThreads) {
    const int64_t prior = packing.index(keys[i]) / unsigned(sizes.foreground());
    const Box<float> box =
        decode_prior(loc, priors, image * sizes.num_priors + prior, prior, decoding);
    boxes[i] = box;
    soft_keys[i] = has_nan(box) ? kNoKey : int(packing.score_bits(keys[i]));
    if (area(box) == 0) atomicMax(&empty, -i);
  }
  __syncthreads();
  for (int i = thread; i < n && !keep_empty; i += kSuppressThreads)
    if (i != -empty && area(boxes[i]) == 0) soft_keys[i] = kNoKey;
  int total = 0;  // in thread 0
  soften<kSuppressThreads>(
      bests, soft_keys, n, by, metric, [&](int i) { return boxes[i]; },
      [&](int i) { return packing.index(keys[i]); },
      [&](int place, Ranked<float> ranked) {
        const Key key = packing.pack(score_of<float>(ranked.key), ranked.index);
        // A box of an equal score may have been chosen before one of a lower index.
        for (; place > 0 && kept[place - 1] < key; --place) kept[place] = kept[place - 1];
        kept[place] = key;
        ++total;
      });
  if (thread == 0)
    groups.kept[group] = unsigned(total < sizes.max_detections ? total : sizes.max_detections);
}

// Returns how many of the falling keys are above `key`.
__device__ unsigned count_above(const Key* keys, unsigned size, Key key) {
  unsigned low = 0, high = size;
  while (low < high) {
    const unsigned middle = low + (high - low) / 2;
    if (keys[middle] > key)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// A block handles one group. The results hold zeros.
constexpr int kPlaceThreads = 256;
template <class S>
__global__ void __launch_bounds__(kPlaceThreads, 4)
    place_kernel(const S* __restrict__ loc, const float* __restrict__ priors, Sizes sizes,
                 Packing packing, Division division, Decoding<float> decoding, Groups groups,
                 float* __restrict__ boxes, float* __restrict__ scores,
                 int64_t* __restrict__ labels, int64_t* __restrict__ count) {
  const int64_t per_image = division.groups(sizes), joined = division.per_class ? 1 : per_image;
  const int64_t group = blockIdx.x, image = group / per_image, result = group / joined;
  const int64_t first_rival = result * joined;
  const unsigned most = unsigned(sizes.max_detections), kept = groups.kept[group];
  const Key* const memory = groups.kept_keys + image * groups.room;
  for (unsigned i = threadIdx.x; i < kept; i += kPlaceThreads) {
    const Key key = memory[groups.offset[group] + i];
    unsigned above = i;
    for (int64_t rival = first_rival; rival < first_rival + joined && above < most; ++rival)
      if (rival != group)
        above += count_above(memory + groups.offset[rival], groups.kept[rival], key);
    if (above >= most) break;  // as will all later boxes of the group
    const unsigned index = packing.index(key), foreground = unsigned(sizes.foreground());
    const int64_t prior = index / foreground, row = result * most + above;
    const Box<float> box =
        decode_prior(loc, priors, image * sizes.num_priors + prior, prior, decoding);
    store_four(boxes, row, box.x1, box.y1, box.x2, box.y2);
    scores[row] = __uint_as_float(packing.score_bits(key));
    labels[row] = index % foreground + 1;
  }
  if (group != first_rival || threadIdx.x != 0) return;
  int64_t total = 0;
  for (int64_t rival = group; rival < group + joined && total < most; ++rival)
    total += groups.kept[rival];
  count[result] = total < most ? total : most;
}

Division make_division(const Shape& shape, const DetectionOutputSettings& settings) {
  const bool joint = settings.class_agnostic || settings.top_k_per_level;
  const int64_t most = settings.top_k_per_level.value_or(settings.top_k);
  Division division{};
  const std::vector<int64_t> sizes = settings.level_sizes(shape.num_priors);
  division.levels = joint ? int(sizes.size()) : 0;
  division.most = unsigned(std::min<int64_t>(most, 0xffffffff));
  division.agnostic = settings.class_agnostic;
  division.per_class = settings.per_class;
  unsigned end = 0;
  for (size_t i = 0; i < sizes.size(); ++i) division.ends[i] = end += unsigned(sizes[i]);
  return division;
}

// What a call computes with, and its memory.
struct Plan {
  Sizes sizes;
  Packing packing;
  Division division;
  Search search{};
  Groups groups{};
  int64_t lists, all_groups, zeros, bytes;  // the first `zeros` bytes must be zeroed

  Plan(void* workspace, const Shape& shape, const DetectionOutputSettings& settings)
      : packing(make_packing(settings, uint64_t(shape.num_priors * shape.foreground()))),
        division(make_division(shape, settings)) {
    const int digits = (packing.bits + kDigitBits - 1) / kDigitBits;
    sizes = {shape, settings.top_k, int(settings.max_detections), digits > 0 ? digits : 1};
    lists = shape.images * division.lists(shape);
    all_groups = shape.images * division.groups(shape);
    groups.taken_room = 0;
    for (int64_t i = 0, first = 0; i < division.lists(shape); ++i) {
      const int64_t size = division.levels ? (division.ends[i] - first) * shape.foreground()
                                           : shape.num_priors;
      groups.taken_room += std::min<int64_t>(size, division.most);
      if (division.levels) first = division.ends[i];
    }
    // A group of n candidates has fewer than 2 n places, or kWarpSize.
    const int64_t filled = std::min(division.groups(shape), groups.taken_room);
    groups.room = 2 * groups.taken_room + filled * kWarpSize;
    groups.room = (groups.room + kWarpSize - 1) / kWarpSize * kWarpSize;
    Workspace memory(workspace);
    search.histogram = memory.take<unsigned>(lists * kBins);
    search.settled = memory.take<unsigned>(lists);
    search.unfinished = memory.take<unsigned>(sizes.digits);
    search.bound = memory.take<Key>(lists);
    search.above = memory.take<unsigned>(lists);
    groups.found = memory.take<unsigned>(shape.images);
    groups.size = memory.take<unsigned>(all_groups);
    groups.filled = memory.take<unsigned>(all_groups);
    groups.kept = memory.take<unsigned>(all_groups);
    zeros = memory.bytes();
    groups.offset = memory.take<unsigned>(all_groups);
    groups.taken = memory.take<Key>(shape.images * groups.taken_room);
    groups.keys = memory.take<Key>(shape.images * groups.room);
    groups.kept_keys = memory.take<Key>(shape.images * groups.room);
    groups.boxes = memory.take<Box<float>>(shape.images * groups.room);
    groups.removed = memory.take<unsigned>(shape.images * groups.room / kWarpSize);
    groups.soft_keys =
        memory.take<ScoreKey<float>>(settings.suppression ? shape.images * groups.room : 0);
    bytes = memory.bytes();
  }
};

// Launches the kernel that suppresses the boxes of each group.
template <class S>
void suppress_groups(const S* loc, const float* priors, const Plan& plan,
                     const DetectionOutputSettings& settings, Stream stream) {
  const char* op = "detection_output";
  const unsigned groups = grid_size(plan.all_groups, 1);
  const Decoding<float> decoding = make_decoding<float>(settings);
  if (settings.suppression) {
    const Softening<float> by = {
        {float(settings.nms_threshold), float(1 / settings.soft_sigma)},
        SuppressionKind(settings.suppression) == SuppressionKind::kSoftGaussian,
        bit_cast<float>(plan.packing.lowest),
        plan.sizes.max_detections};
    const AnyMetric<float> metric = {settings.ios, float(settings.iou_eps)};
    launch(op, soften_kernel<S>, groups, kSuppressThreads, stream, loc, priors, plan.sizes,
           plan.packing, plan.division, by, metric, settings.keep_empty, decoding, plan.groups);
    return;
  }
  with_suppression(settings, [&](auto suppresses) {
    launch(op, suppress_kernel<S, decltype(suppresses)>, groups, kSuppressThreads, stream, loc,
           priors, plan.sizes, plan.packing, plan.division, suppresses, decoding, plan.groups);
  });
}

template <class S, int kLanes>
void select_best(const S* logits, const Plan& plan, Stream stream) {
  const char* op = "detection_output";
  const Sizes& sizes = plan.sizes;
  for (int digit = 0; digit <= sizes.digits; ++digit) {
    launch(op, scan_kernel<S, kLanes>, row_blocks<kLanes>(sizes.images * sizes.num_priors),
           kRowThreads, stream, logits, sizes, plan.packing, plan.division, plan.search,
           plan.groups, digit);
    if (digit < sizes.digits)
      launch(op, digit_kernel, grid_size(plan.lists, 1), kDigitThreads, stream, plan.packing,
             plan.division.most, plan.search, digit, sizes.digits);
  }
}

}  // namespace

int64_t detection_output_wide_workspace(int64_t images, int64_t num_priors, int64_t classes,
                                        const DetectionOutputSettings& settings) {
  const Shape shape{images, num_priors, classes, settings.background};
  return Plan(nullptr, shape, settings).bytes;
}

void detection_output_wide(const void* loc, const void* logits, const void* priors, int64_t images,
                           int64_t num_priors, int64_t classes,
                           const DetectionOutputSettings& settings, void* boxes, void* scores,
                           int64_t* labels, int64_t* count, void* workspace, DType dtype,
                           Stream stream) {
  const char* op = "detection_output";
  const Shape shape{images, num_priors, classes, settings.background};
  const Plan plan(workspace, shape, settings);
  const Decoding<float> decoding = make_decoding<float>(settings);
  const int64_t rows = (settings.per_class ? plan.all_groups : images) * settings.max_detections;
  zero(op, workspace, plan.zeros, stream);
  zero(op, boxes, rows * int64_t(sizeof(Box<float>)), stream);
  zero(op, scores, rows * int64_t(sizeof(float)), stream);
  zero(op, labels, rows * int64_t(sizeof(int64_t)), stream);
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    if constexpr (!std::is_same_v<S, double>) {  // Python calls the reference for float64
      const auto* offsets = static_cast<const S*>(loc);
      const auto* prior_rows = static_cast<const float*>(priors);
      with_row_lanes(classes, [&](auto lanes) {
        select_best<S, lanes>(static_cast<const S*>(logits), plan, stream);
      });
      const unsigned groups = grid_size(plan.all_groups, 1);
      launch(op, offset_kernel, grid_size(images, 1), kWarpSize, stream,
             int(plan.division.groups(shape)), plan.groups);
      launch(op, group_kernel, grid_size(images * plan.groups.taken_room, kGroupThreads, 4096),
             kGroupThreads, stream, plan.sizes, plan.packing, plan.division, plan.groups);
      suppress_groups(offsets, prior_rows, plan, settings, stream);
      launch(op, place_kernel<S>, groups, kPlaceThreads, stream, offsets, prior_rows, plan.sizes,
             plan.packing, plan.division, decoding, plan.groups, static_cast<float*>(boxes),
             static_cast<float*>(scores), labels, count);
    }
  });
}

}  // namespace mdssd
