// How blocks walk over the rows of logits, [rows, classes]. kLanes lanes of a warp have a row, each
// takes every kLanes-th class, and shuffles add up what they find:
//    1 lane   for up to 32 classes,
//    4 lanes  for up to 128,
//   32 lanes  for any number.
// Below 32 lanes a block first stages its rows, one run of memory, in shared memory by loads of 16
// bytes: such rows are short and start anywhere, so that loads of single numbers would waste most
// of each transaction. As few lanes as there is room for, since a shuffle costs as much as a class:
// a row of 81 classes takes a quarter of the instructions on 4 lanes that it takes on 32.
//
// The interface: on the host, with_row_lanes picks kLanes and row_blocks says how many blocks of
// kRowThreads to launch; in the kernel, for_each_row calls back with each Row.
// The same row gives the same bits in every kernel, and equal rows give equal bits.
#pragma once

#include <type_traits>

#include "runtime.h"

namespace mdssd {
namespace {  // a __shared__ variable belongs to the kernels of one file

constexpr int kRowThreads = 128;
constexpr int kRowBlocks = 8;  // at once on a multiprocessor: leaves a thread 64 registers
constexpr int kMostClassesPerLane = 32;  // of staged rows

// A row that belongs to kLanes neighbouring lanes, which get the same results. All lanes of a warp
// call a function together.
template <class S, int kLanes>
struct Row {
  using T = Wide<S>;
  const S* x;
  int classes;
  int64_t row;
  bool in_range;  // beyond the last row, lanes take part with another row's numbers

  __device__ int64_t index() const { return row; }
  __device__ bool valid() const { return in_range; }
  __device__ static int lane() { return int(threadIdx.x) % kLanes; }
  __device__ T value(int c) const { return widen(x[c]); }
  // A maximum passes over NaNs, but may be one where some are; sum_of_exp then is NaN either way.
  __device__ T max() const { return max_from(0); }
  __device__ T foreground_max() const { return max_from(1); }
  // Of exp(x - top): terms of at most 1.
  __device__ T sum_of_exp(T top) const {
    T sum = 0;
    for (int c = lane(); c < classes; c += kLanes) sum += exp_of_term(value(c) - top);
    for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    return sum;
  }

 private:
  __device__ T max_from(int first) const {
    T best = value(first);
    for (int c = first + lane(); c < classes; c += kLanes) best = larger(value(c), best);
    for (int step = kLanes / 2; step > 0; step /= 2)
      best = larger(__shfl_xor_sync(kAllLanes, best, step), best);
    return best;
  }
};

// Calls visit(Row<S, kLanes>) for every row; all lanes of a warp call together.
template <class S, int kLanes, class Visit>
__device__ void for_each_row(const S* logits, int64_t rows, int classes, const Visit& visit) {
  constexpr int kRows = kRowThreads / kLanes;  // of a block at a time
  const int mine = int(threadIdx.x) / kLanes;
  for (int64_t first = int64_t(blockIdx.x) * kRows; first < rows;
       first += int64_t(gridDim.x) * kRows) {
    const int here = int(rows - first < kRows ? rows - first : kRows);
    // A multiple of 32 numbers from the first: of 16 bytes, if rows are staged.
    const S* const start = logits + first * classes;
    if constexpr (kLanes < kWarpSize) {
      constexpr int kLoads = 4;  // of a thread, in flight at once
      __shared__ uint4 staged[kRowThreads * kMostClassesPerLane * sizeof(S) / sizeof(uint4)];
      const int thread = int(threadIdx.x), numbers = here * classes;
      const int wide = numbers * int(sizeof(S)) / int(sizeof(uint4));
      __syncthreads();  // the rows before are done with
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
      const int rest = wide * int(sizeof(uint4) / sizeof(S)) + thread;  // less than 16 bytes
      if (rest < numbers) reinterpret_cast<S*>(staged)[rest] = start[rest];
      __syncthreads();
      const bool in_range = mine < here;
      visit(Row<S, kLanes>{reinterpret_cast<const S*>(staged) + (in_range ? mine : 0) * classes,
                           classes, first + mine, in_range});
    } else if (mine < here) {  // the whole warp
      visit(Row<S, kLanes>{start + int64_t(mine) * classes, classes, first + mine, true});
    }
  }
}

// Calls body(std::integral_constant<int, kLanes>{}) with the kLanes for rows of so many classes.
template <class Body>
void with_row_lanes(int64_t classes, Body body) {
  if (classes <= kMostClassesPerLane)
    body(std::integral_constant<int, 1>{});
  else if (classes <= 4 * kMostClassesPerLane)
    body(std::integral_constant<int, 4>{});
  else
    body(std::integral_constant<int, kWarpSize>{});
}

// Blocks for for_each_row. A block strides over rows, so that kernels with nothing to do end fast.
template <int kLanes>
unsigned row_blocks(int64_t rows) {
  constexpr int kMost = 2048;  // as many as run at once on the largest GPUs, about
  return grid_size(rows, kRowThreads / kLanes, kMost);
}

}  // namespace
}  // namespace mdssd
