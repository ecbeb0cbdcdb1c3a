// Iterates over the rows of logits, [rows, classes]. A row is processed by kLanes neighbouring
// lanes of a warp: each handles every kLanes-th class, and shuffles combine their results. The
// number of classes determines kLanes:
//    1 lane   for up to 32 classes,
//    4 lanes  for up to 128,
//   32 lanes  for any number.
// With fewer than 32 lanes, a block first copies its rows, which are contiguous, to shared memory
// with loads of 16 bytes. Such rows are short and start at any address, so loading them number by
// number would waste most of each memory transaction. kLanes is as small as shared memory allows,
// because a shuffle costs as much as a class: a row of 81 classes takes a quarter of the
// instructions on 4 lanes that it takes on 32.
//
// On the host, with_row_lanes chooses kLanes and row_blocks returns the number of blocks, each of
// kRowThreads threads. In the kernel, for_each_row calls a function with each Row. For a given
// kLanes, the results for a row depend on its values only, to the bit.
#pragma once

#include <type_traits>

#include "runtime.h"

namespace mdssd {
namespace {  // simt.h requires internal linkage for __shared__ variables

constexpr int kRowThreads = 128;
constexpr int kRowBlocks = 8;  // resident per multiprocessor, which leaves 64 registers per thread
constexpr int kMostClassesPerLane = 32;  // limits the shared memory for staged rows

// A row that is processed by kLanes neighbouring lanes. Its functions return the same result to
// each of them, and all lanes of a warp must call them together.
template <class S, int kLanes>
struct Row {
  using T = Wide<S>;
  const S* x;
  int classes;
  int64_t row;
  bool in_range;  // lanes past the last row take part with the numbers of another row

  __device__ int64_t index() const { return row; }
  __device__ bool valid() const { return in_range; }
  __device__ static int lane() { return int(threadIdx.x) % kLanes; }
  __device__ T value(int c) const { return widen(x[c]); }
  // It is unspecified whether a NaN becomes the maximum. sum_of_exp is NaN in either case.
  __device__ T max() const { return max_from(0); }
  __device__ T max_from(int first) const {
    T best = value(first);
    for (int c = first + lane(); c < classes; c += kLanes) best = larger(value(c), best);
    for (int step = kLanes / 2; step > 0; step /= 2)
      best = larger(__shfl_xor_sync(kAllLanes, best, step), best);
    return best;
  }
  // Returns the sum of exp(x - top). `top` must be the maximum, so that no term exceeds 1.
  __device__ T sum_of_exp(T top) const {
    T sum = 0;
    for (int c = lane(); c < classes; c += kLanes) sum += exp_of_term(value(c) - top);
    for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    return sum;
  }
};

// Calls visit(Row<S, kLanes>) for every row. All lanes of a warp call `visit` together.
template <class S, int kLanes, class Visit>
__device__ void for_each_row(const S* logits, int64_t rows, int classes, const Visit& visit) {
  constexpr int kRows = kRowThreads / kLanes;  // rows that a block processes at a time
  const int mine = int(threadIdx.x) / kLanes;
  for (int64_t first = int64_t(blockIdx.x) * kRows; first < rows;
       first += int64_t(gridDim.x) * kRows) {
    const int here = int(rows - first < kRows ? rows - first : kRows);
    // `first` is a multiple of 32 if rows are staged, so this address is a multiple of 16 bytes.
    const S* const start = logits + first * classes;
    if constexpr (kLanes < kWarpSize) {
      constexpr int kLoads = 4;  // loads that a thread keeps in flight
      __shared__ uint4 staged[kRowThreads * kMostClassesPerLane * sizeof(S) / sizeof(uint4)];
      const int thread = int(threadIdx.x), numbers = here * classes;
      const int wide = numbers * int(sizeof(S)) / int(sizeof(uint4));
      __syncthreads();  // the previous rows are no longer needed
      for (int base = thread; base < wide; base += kLoads * kRowThreads) {
        uint4 loaded[kLoads];
#pragma unroll
        for (int k = 0; k < kLoads; ++k)
          if (base + k * kRowThreads < wide)
            loaded[k] = reinterpret_cast<const uint4*>(start)[base + k * kRowThreads];
#pragma unroll
        for (int k = 0; k < kLoads; ++k)
          if (base + k * kRowThreads < wide) staged[base + k * kRowThreads] = loaded[k];
      }
      const int rest = wide * int(sizeof(uint4) / sizeof(S)) + thread;  // the last few bytes
      if (rest < numbers) reinterpret_cast<S*>(staged)[rest] = start[rest];
      __syncthreads();
      const bool in_range = mine < here;
      visit(Row<S, kLanes>{reinterpret_cast<const S*>(staged) + (in_range ? mine : 0) * classes,
                           classes, first + (in_range ? mine : 0), in_range});
    } else if (mine < here) {  // the same for the whole warp
      visit(Row<S, kLanes>{start + int64_t(mine) * classes, classes, first + mine, true});
    }
  }
}

// Calls body(std::integral_constant<int, kLanes>{}) with the kLanes for rows of `classes` classes.
template <class Body>
void with_row_lanes(int64_t classes, Body body) {
  if (classes <= kMostClassesPerLane)
    body(std::integral_constant<int, 1>{});
  else if (classes <= 4 * kMostClassesPerLane)
    body(std::integral_constant<int, 4>{});
  else
    body(std::integral_constant<int, kWarpSize>{});
}

// Returns the number of blocks for for_each_row. The grid is limited and its blocks loop over rows,
// which saves starting many blocks that find nothing to do.
template <int kLanes>
unsigned row_blocks(int64_t rows) {
  constexpr int kMost = 2048;  // about as many as the largest GPUs run at once
  return grid_size(rows, kRowThreads / kLanes, kMost);
}

}  // namespace
}  // namespace mdssd
