// How blocks walk over the rows of logits, [rows, classes], in one of two ways:
//   tiled, for up to kMostTiledClasses: a block stages kRowThreads rows, one run of memory, in shared
//     memory by loads of 16 bytes; then a thread has a row to itself. Rows of few classes are short
//     and start anywhere, so that loads of single numbers would waste most of each transaction.
//   by warps, for any number of classes: a warp has a row, its lanes take every 32nd class.
// Either way the same row gives the same bits in every kernel.
#pragma once

#include "runtime.h"

namespace mdssd {
namespace {  // a __shared__ variable belongs to the kernels of one file

constexpr int kRowThreads = 128;
constexpr int kRowBlocks = 8;  // at once on a multiprocessor: leaves a thread 64 registers
constexpr int kMostTiledClasses = 32;

// A row that belongs to one thread.
template <class S>
struct ThreadRow {
  const S* x;
  int classes;
  int64_t row;
  bool in_range;  // beyond the last row, threads take part with another row's numbers

  __device__ int64_t index() const { return row; }
  __device__ bool valid() const { return in_range; }
  __device__ float value(int c) const { return widen(x[c]); }
  // A NaN is passed over.
  __device__ float foreground_max() const {
    float best = value(1);
    for (int c = 2; c < classes; ++c) best = value(c) > best ? value(c) : best;
    return best;
  }
  __device__ float sum_of_exp(float top) const {
    float sum = 0;
    for (int c = 0; c < classes; ++c) sum += exp(value(c) - top);
    return sum;
  }
  // All lanes of the warp call together: visit(class, logit).
  template <class Visit>
  __device__ void for_each_class(const Visit& visit) const {
    for (int c = 0; c < classes; ++c) visit(c, value(c));
  }
};

// A row that belongs to a warp: all lanes get the same results.
template <class S>
struct WarpRow {
  const S* x;
  int classes;
  int64_t row;

  __device__ int64_t index() const { return row; }
  __device__ bool valid() const { return true; }
  __device__ float value(int c) const { return widen(x[c]); }
  __device__ float foreground_max() const {
    float best = value(1);
    for (int c = 1 + int(threadIdx.x) % kWarpSize; c < classes; c += kWarpSize)
      best = value(c) > best ? value(c) : best;
    return warp_max(best);
  }
  __device__ float sum_of_exp(float top) const {
    float sum = 0;
    for (int c = int(threadIdx.x) % kWarpSize; c < classes; c += kWarpSize) sum += exp(value(c) - top);
    return warp_sum(sum);
  }
  // Lanes without a class of their own call with one that no score comes from.
  template <class Visit>
  __device__ void for_each_class(const Visit& visit) const {
    for (int c = int(threadIdx.x) % kWarpSize; c - int(threadIdx.x) % kWarpSize < classes;
         c += kWarpSize)
      visit(c, c < classes ? value(c) : -INFINITY);
  }
};

// Calls visit(row) with a ThreadRow or a WarpRow; whole warps call together.
template <class S, bool kTiled, class Visit>
__device__ void for_each_row(const S* logits, int64_t rows, int classes, const Visit& visit) {
  if constexpr (kTiled) {
    __shared__ uint4 staged[kRowThreads * kMostTiledClasses * sizeof(S) / sizeof(uint4)];
    const S* const tile = reinterpret_cast<const S*>(staged);
    for (int64_t first = int64_t(blockIdx.x) * kRowThreads; first < rows;
         first += int64_t(gridDim.x) * kRowThreads) {
      const int here = int(rows - first < kRowThreads ? rows - first : kRowThreads);
      // The start is a multiple of kRowThreads numbers, and so of 16 bytes.
      const S* const start = logits + first * classes;
      const int numbers = here * classes, wide = numbers * int(sizeof(S)) / int(sizeof(uint4));
      __syncthreads();
      for (int i = threadIdx.x; i < wide; i += kRowThreads)
        staged[i] = reinterpret_cast<const uint4*>(start)[i];
      for (int i = wide * int(sizeof(uint4) / sizeof(S)) + int(threadIdx.x); i < numbers;
           i += kRowThreads)
        reinterpret_cast<S*>(staged)[i] = start[i];
      __syncthreads();
      const int thread = int(threadIdx.x);
      const bool in_range = thread < here;
      visit(ThreadRow<S>{tile + (in_range ? thread : 0) * classes, classes, first + thread,
                         in_range});
    }
  } else {
    constexpr int kWarps = kRowThreads / kWarpSize;
    for (int64_t row = int64_t(blockIdx.x) * kWarps + threadIdx.x / kWarpSize; row < rows;
         row += int64_t(gridDim.x) * kWarps)
      visit(WarpRow<S>{logits + row * classes, classes, row});
  }
}

// Blocks for for_each_row. A block strides over rows, so that kernels with nothing to do end fast.
template <bool kTiled>
unsigned row_blocks(int64_t rows) {
  constexpr int kMost = 4096;  // several blocks for each multiprocessor of any GPU
  return grid_size(rows, kTiled ? kRowThreads : kRowThreads / kWarpSize, kMost);
}

}  // namespace
}  // namespace mdssd
