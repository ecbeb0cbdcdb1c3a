// Radix selection: finds the largest keys of a set without sorting it.
//
// The block counts how many keys have each value of the most significant digit (a histogram in
// shared memory), finds the value ("cell") that contains the key of the wanted rank, and continues
// with the next digit of the keys in that cell only. Counts do not depend on the order in which
// threads run, so the result is deterministic. Each digit costs one pass over the keys.
#pragma once

#include "runtime.h"

namespace mdssd {

constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;

struct Cell {
  unsigned bin;    // value of the digit
  unsigned above;  // number of keys with a larger digit
  unsigned size;   // number of keys with this digit
};

// The shared memory that find_cell needs.
template <int kThreads>
struct CellSearch {
  unsigned warp_totals[kThreads / kWarpSize];
  Cell cell;
};

// Returns the cell that contains the key of rank `need`, where the largest key has rank 1. `bins`
// must count at least `need` keys. All threads of the block must call it.
template <int kThreads>
__device__ Cell find_cell(const unsigned* bins, unsigned need, CellSearch<kThreads>& shared) {
  constexpr int kEach = kBins / kThreads;  // bins per thread; thread 0 has the largest digits
  const int thread = int(threadIdx.x), lane = thread % kWarpSize, warp = thread / kWarpSize;
  const int first = kBins - 1 - thread * kEach;
  unsigned counts[kEach], total = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    counts[i] = bins[first - i];
    total += counts[i];
  }
  unsigned up_to_mine = total;
  for (int step = 1; step < kWarpSize; step *= 2) {
    const unsigned before = __shfl_up_sync(kAllLanes, up_to_mine, step);
    if (lane >= step) up_to_mine += before;
  }
  if (lane == kWarpSize - 1) shared.warp_totals[warp] = up_to_mine;
  __syncthreads();
  for (int w = 0; w < warp; ++w) up_to_mine += shared.warp_totals[w];
  unsigned above = up_to_mine - total;
  if (above < need && need <= up_to_mine) {  // true for exactly one thread of the block
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (above < need && need <= above + counts[i])
        shared.cell = {unsigned(first - i), above, counts[i]};
      above += counts[i];
    }
  }
  __syncthreads();
  // The next search may overwrite `shared`: its first barrier comes after all reads of this `cell`,
  // and the barrier above after all reads of these `warp_totals`.
  return shared.cell;
}

// Returns a bound such that at least `need` and at most `most` keys are greater than or equal to it
// (all `total` keys if they are at most `most`). for_each(visit) must call visit(key) for every
// key, spread over the threads of the block. Keys are distinct and have `bits` bits. `bins` is
// shared memory for kBins counters. All threads of the block must call this function.
template <int kThreads, class Key, class ForEach>
__device__ Key find_bound(unsigned total, unsigned need, unsigned most, int bits,
                          const ForEach& for_each, unsigned* bins, CellSearch<kThreads>& search) {
  Key prefix = 0;  // the digits found so far: the bits of the bound from `shift` up
  unsigned above = 0, cell = total;
  int shift = bits;
  while (above + cell > most) {
    const int width = shift < kDigitBits ? shift : kDigitBits;
    shift -= width;
    for (int i = int(threadIdx.x); i < kBins; i += kThreads) bins[i] = 0;
    __syncthreads();
    for_each([&](Key key) {
      if (key >> shift >> width == prefix)
        atomicAdd(bins + unsigned((key >> shift) & ((Key(1) << width) - 1)), 1u);
    });
    __syncthreads();
    const Cell next = find_cell(bins, need - above, search);
    prefix = prefix << width | next.bin;
    above += next.above;
    cell = next.size;
  }
  return shift < bits ? prefix << shift : 0;
}

}  // namespace mdssd
