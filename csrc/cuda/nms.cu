// nms and batched_nms. The caller passes the order of the boxes by falling score.
//
// gather_kernel copies the boxes into this order. Then the host goes through them in chunks of 2048
// and launches three kernels for each chunk:
//   mask_kernel   compares all pairs of the chunk and stores, as bits, which box suppresses which.
//                 A block compares 64 boxes with 64 others.
//   scan_kernel   finds the kept boxes of the chunk. This is the serial part, so it is a single
//                 block that works on bits only, 64 boxes at a time.
//   apply_kernel  lets the kept boxes, and only these, suppress boxes of later chunks.
// The number of launches depends only on the number of boxes, and nothing is copied to the host, so
// nms_cuda does not synchronise and a CUDA graph can capture it.
//
// Memory: the mask has at most 512 KiB (2048 rows of 2048 bits). The rest is proportional to the
// number of boxes; there is no matrix of all pairs.
#include <limits>

#include "../ops.h"
#include "runtime.h"

namespace mdssd {
namespace {

using Word = unsigned long long;

constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
constexpr int kGroup = 64;                // boxes per word
constexpr int kGroups = kWarpSize;        // words per row of the mask, one per lane of the scan
constexpr int kChunk = kGroup * kGroups;  // 2048

MDSSD_INLINE int64_t padded_to_groups(int64_t num_boxes) {
  return (num_boxes + kGroup - 1) / kGroup * kGroup;
}

// The arrays of the workspace. The first three cover all boxes, sorted by score; the others cover
// one chunk.
template <class T>
struct Arrays {
  T* boxes;
  int64_t* categories;
  unsigned* removed;  // a bit per box, set if it is suppressed, and padded with ones to a group
  // [kChunk][kGroups]. Bit k of word g: box k of group g suppresses the box of this row.
  Word* mask;
  Word* kept;         // [kGroups]

  Arrays(Workspace& workspace, int64_t num_boxes) {
    const int64_t padded = padded_to_groups(num_boxes);
    boxes = workspace.take<T>(4 * num_boxes);
    categories = workspace.take<int64_t>(num_boxes);
    removed = workspace.take<unsigned>(padded / kWarpSize);
    mask = workspace.take<Word>((padded < kChunk ? padded : kChunk) * kGroups);
    kept = workspace.take<Word>(kGroups);
  }
};

template <class T, class Metric>
struct Suppression {
  T threshold;
  Metric metric;
  bool by_category;

  __device__ bool operator()(Box<T> a, T area_a, int64_t category_a, Box<T> b, T area_b,
                             int64_t category_b) const {
    return (!by_category || category_a == category_b) &&
           overlap(a, area_a, b, area_b, threshold, metric);
  }
};

// A thread copies one box to its position in the order and initialises the results.
template <class S>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const S* __restrict__ boxes, const int64_t* __restrict__ order,
                  const int64_t* __restrict__ idxs, int64_t num_boxes, Wide<S>* sorted,
                  int64_t* categories, unsigned* removed, int64_t* keep, int64_t* kept) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i == 0) *kept = 0;
  if (i % kWarpSize == 0 && i < padded_to_groups(num_boxes))
    removed[i / kWarpSize] = i + kWarpSize <= num_boxes ? 0u
                             : i < num_boxes            ? kAllLanes << (num_boxes - i)
                                                        : kAllLanes;
  if (i >= num_boxes) return;
  const int64_t from = order[i];
  const Box<Wide<S>> b = load_box(boxes, from);
  store_four(sorted, i, b.x1, b.y1, b.x2, b.y2);
  if (idxs) categories[i] = idxs[from];
  keep[i] = 0;
}

// Returns a word in which all bits below `bit` are set.
__device__ __forceinline__ Word before(int bit) { return (Word(1) << bit) - 1; }

// A block compares a group of rows with an earlier group of columns, or with itself. Four threads
// share a row. Each handles every fourth column, so that they read from different banks.
constexpr int kParts = kThreads / kGroup;
template <class T, class Metric>
__global__ void __launch_bounds__(kThreads)
    mask_kernel(const T* __restrict__ boxes, const int64_t* __restrict__ categories, int64_t first,
                int64_t num_boxes, const Suppression<T, Metric> suppresses, Word* mask) {
  const int row_group = blockIdx.y, column_group = blockIdx.x;
  if (column_group > row_group) return;
  __shared__ Four<T> columns[kGroup];
  __shared__ T areas[kGroup];
  __shared__ int64_t column_categories[kGroup];
  const int thread = threadIdx.x;
  if (thread < kGroup) {
    const int64_t i = first + column_group * kGroup + thread;
    const Box<T> b = i < num_boxes ? load_box(boxes, i) : Box<T>{0, 0, 0, 0};
    store_four(&columns[0].x, thread, b.x1, b.y1, b.x2, b.y2);
    areas[thread] = area(b);
    if (suppresses.by_category) column_categories[thread] = i < num_boxes ? categories[i] : 0;
  }
  __syncthreads();
  const int row = row_group * kGroup + thread / kParts, part = thread % kParts;
  const int64_t i = first + row;
  const Box<T> mine = i < num_boxes ? load_box(boxes, i) : Box<T>{0, 0, 0, 0};
  const T own_area = area(mine);
  const int64_t category = suppresses.by_category && i < num_boxes ? categories[i] : 0;
  Word word = 0;
#pragma unroll 4
  for (int k = part; k < kGroup; k += kParts) {
    const Box<T> box = load_box(&columns[0].x, k);
    const int64_t other = suppresses.by_category ? column_categories[k] : 0;
    word |= Word(suppresses(mine, own_area, category, box, areas[k], other)) << k;
  }
  for (int step = 1; step < kParts; step *= 2) word |= __shfl_xor_sync(kAllLanes, word, step);
  if (part == 0) mask[row * kGroups + column_group] = word;
}

// Builds a word from two bits of each lane: bit `lane` and bit 32 + `lane`.
__device__ __forceinline__ Word gather_bits(bool low, bool high) {
  return __ballot_sync(kAllLanes, low) | Word(__ballot_sync(kAllLanes, high)) << 32;
}

// Greedy suppression within a group; returns the kept boxes. Each lane has two boxes, and `low` and
// `high` are the earlier boxes that suppress them. In each round, a box that no undecided box
// suppresses is kept, and the boxes that it suppresses are removed. The first undecided box is
// always kept, so the loop ends; usually most boxes are decided in the first round.
__device__ __forceinline__ Word greedy(Word undecided, unsigned low, Word high) {
  const int lane = threadIdx.x % kWarpSize;
  Word kept = 0;
  while (undecided != 0) {
    const bool low_open = unsigned(undecided) >> lane & 1;
    const bool high_open = unsigned(undecided >> 32) >> lane & 1;
    const bool low_kept = low_open && !(low & unsigned(undecided));
    const bool high_kept = high_open && !(high & undecided);
    kept |= gather_bits(low_kept, high_kept);
    undecided = gather_bits(low_open && !low_kept && !(low & unsigned(kept)),
                            high_open && !high_kept && !(high & kept));
  }
  return kept;
}

// A single block goes through the groups. Lane g of every warp holds the kept boxes of group g. For
// each group, a warp checks for kRows rows whether a kept box of an earlier group suppresses them.
// Then every warp resolves the group itself, which saves a barrier. The addresses of the loads do
// not depend on the results, so the rows of the next group are loaded in the meantime.
constexpr int kRows = kGroup / kWarps;
struct GroupRows {
  Word rows[kRows];  // word `lane` of the warp's rows, for earlier groups
  unsigned low;      // earlier boxes of the same group that suppress box `lane`
  Word high;         // the same for box lane + 32

  __device__ __forceinline__ void load(const Word* mask, int group) {
    const int lane = threadIdx.x % kWarpSize, warp = threadIdx.x / kWarpSize;
    const Word* const base = mask + group * kGroup * kGroups;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      rows[r] = lane < group ? base[(warp * kRows + r) * kGroups + lane] : 0;
    low = unsigned(base[lane * kGroups + group] & before(lane));
    high = base[(lane + 32) * kGroups + group] & before(lane + 32);
  }
};

__global__ void __launch_bounds__(kThreads)
    scan_kernel(const Word* __restrict__ mask, const unsigned* __restrict__ removed, int groups,
                const int64_t* __restrict__ order, Word* kept_words, int64_t* keep,
                int64_t* kept_count) {
  __shared__ Word suppressed[2][kWarps];  // for even and odd groups, so that one barrier suffices
  const int thread = threadIdx.x, lane = thread % kWarpSize, warp = thread / kWarpSize;
  const int64_t base = *kept_count;  // boxes kept in earlier chunks
  Word gone = ~Word(0), kept = 0;
  if (lane < groups) gone = removed[2 * lane] | Word(removed[2 * lane + 1]) << 32;

  GroupRows next;
  next.load(mask, 0);
  for (int group = 0; group < groups; ++group) {
    const GroupRows now = next;
    if (group + 1 < groups) next.load(mask, group + 1);
    Word mine = 0;
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      mine |= Word(__any_sync(kAllLanes, (now.rows[r] & kept) != 0) != 0) << r;
    if (lane == 0) suppressed[group % 2][warp] = mine << (warp * kRows);
    __syncthreads();
    Word out = __shfl_sync(kAllLanes, gone, group);
    for (int w = 0; w < kWarps; ++w) out |= suppressed[group % 2][w];
    const Word found = greedy(~out, now.low, now.high);
    if (lane == group) kept = found;
  }

  int end = __popcll(kept);  // becomes the number of kept boxes up to this lane's group
  for (int step = 1; step < kWarpSize; step *= 2) {
    const int other = __shfl_up_sync(kAllLanes, end, step);
    if (lane >= step) end += other;
  }
  for (int i = thread; i < kChunk; i += kThreads) {
    const Word word = __shfl_sync(kAllLanes, kept, i / kGroup);
    const int word_end = __shfl_sync(kAllLanes, end, i / kGroup);
    // The position is counted from the end of the group: word_end minus the kept boxes from here
    // on.
    const Word from_here = word >> (i % kGroup);
    if (from_here & 1) keep[base + word_end - __popcll(from_here)] = order[i];
  }
  if (warp == 0) kept_words[lane] = kept;
  // All threads have read kept_count before the barriers above.
  if (thread == kWarpSize - 1) *kept_count = base + end;
}

// A block compares the kept boxes of one group of the chunk with kThreads later boxes.
template <class T, class Metric>
__global__ void __launch_bounds__(kThreads)
    apply_kernel(const T* __restrict__ boxes, const int64_t* __restrict__ categories, int64_t first,
                 int64_t num_boxes, const Suppression<T, Metric> suppresses,
                 const Word* __restrict__ kept_words, unsigned* removed) {
  __shared__ Four<T> kept[kGroup];
  __shared__ T areas[kGroup];
  __shared__ int64_t kept_categories[kGroup];
  const int thread = threadIdx.x;
  const Word word = kept_words[blockIdx.y];
  if (thread < kGroup && (word >> thread & 1)) {
    const int64_t i = first + int64_t(blockIdx.y) * kGroup + thread;
    const int slot = __popcll(word & before(thread));
    const Box<T> b = load_box(boxes, i);
    store_four(&kept[0].x, slot, b.x1, b.y1, b.x2, b.y2);
    areas[slot] = area(b);
    if (suppresses.by_category) kept_categories[slot] = categories[i];
  }
  __syncthreads();
  const int64_t i = first + kChunk + int64_t(blockIdx.x) * kThreads + thread;
  const Box<T> mine = i < num_boxes ? load_box(boxes, i) : Box<T>{0, 0, 0, 0};
  const T own_area = area(mine);
  const int64_t category = suppresses.by_category && i < num_boxes ? categories[i] : 0;
  const int n = __popcll(word);
  bool hit = false;
  for (int k = 0; k < n; ++k) {
    const Box<T> box = load_box(&kept[0].x, k);
    const int64_t other = suppresses.by_category ? kept_categories[k] : 0;
    hit |= suppresses(box, areas[k], other, mine, own_area, category);
  }
  const unsigned hits = __ballot_sync(kAllLanes, hit);
  if (hits != 0 && thread % kWarpSize == 0) atomicOr(&removed[i / kWarpSize], hits);
}

template <class S, class Metric>
void nms(const char* op, const void* boxes, const int64_t* order, const int64_t* idxs,
         int64_t num_boxes, double iou_threshold, Metric metric, int64_t* keep, int64_t* kept,
         void* workspace, Stream stream) {
  using T = Wide<S>;
  if (num_boxes > std::numeric_limits<int>::max())
    throw std::length_error(std::string(op) + ": more than 2^31 - 1 boxes");
  Workspace memory(workspace);
  const Arrays<T> arrays(memory, num_boxes);
  const Suppression<T, Metric> suppresses = {T(iou_threshold), metric, idxs != nullptr};
  // The + 1 launches a block for an empty input too, which sets `kept` to 0.
  launch(op, gather_kernel<S>, grid_size(padded_to_groups(num_boxes) + 1, kThreads), kThreads,
         stream, static_cast<const S*>(boxes), order, idxs, num_boxes, arrays.boxes,
         arrays.categories, arrays.removed, keep, kept);
  for (int64_t first = 0; first < num_boxes; first += kChunk) {
    const unsigned groups = grid_size(num_boxes - first, kGroup, kGroups);
    launch(op, mask_kernel<T, Metric>, dim3(groups, groups), kThreads, stream, arrays.boxes,
           arrays.categories, first, num_boxes, suppresses, arrays.mask);
    launch(op, scan_kernel, 1, kThreads, stream, arrays.mask, arrays.removed + first / kWarpSize,
           int(groups), order + first, arrays.kept, keep, kept);
    const int64_t later = num_boxes - first - kChunk;
    if (later > 0)
      launch(op, apply_kernel<T, Metric>, dim3(grid_size(later, kThreads), kGroups), kThreads, stream,
             arrays.boxes, arrays.categories, first, num_boxes, suppresses, arrays.kept,
             arrays.removed);
  }
}

}  // namespace

int64_t nms_workspace(int64_t num_boxes, DType dtype) {
  Workspace measure(nullptr);
  with_wide(dtype, [&](auto storage) {
    const Arrays<typename decltype(storage)::type> arrays(measure, num_boxes);
  });
  return measure.bytes();
}

void nms_cuda(const void* boxes, const int64_t* order, const int64_t* idxs, int64_t num_boxes,
              const NmsSettings& settings, int64_t* keep, int64_t* kept, void* workspace,
              DType dtype, Stream stream) {
  with_storage(dtype, [&](auto storage) {
    using S = typename decltype(storage)::type;
    with_metric_of_kernel<Wide<S>>(settings, [&](auto metric) {
      nms<S>("nms", boxes, order, idxs, num_boxes, settings.iou_threshold, metric, keep, kept,
             workspace, stream);
    });
  });
}

}  // namespace mdssd
