// Radix selection: the largest keys of a set without sorting it, a digit at a time from the top.
// Count how many keys have each value of the digit; the cell of the value that holds the key of the
// wanted rank is searched on, by its next digit. Counts do not depend on the order of the threads.
#pragma once

#include "runtime.h"

namespace mdssd {

constexpr int kDigitBits = 11, kBins = 1 << kDigitBits;

struct Cell {
  unsigned bin;    // value of the digit
  unsigned above;  // keys with a larger digit
  unsigned size;   // keys with this one
};

// Shared memory of find_cell.
template <int kThreads>
struct CellSearch {
  unsigned warp_totals[kThreads / kWarpSize];
  Cell cell;
};

// The cell that holds the key of rank `need`, counted from 1 at the largest. All threads of the block
// call it; `bins` hold at least `need` keys.
template <int kThreads>
__device__ Cell find_cell(const unsigned* bins, unsigned need, CellSearch<kThreads>& shared) {
  constexpr int kEach = kBins / kThreads;  // thread 0 has the largest digits
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
  if (above < need && need <= up_to_mine) {  // one thread of the block
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (above < need && need <= above + counts[i])
        shared.cell = {unsigned(first - i), above, counts[i]};
      above += counts[i];
    }
  }
  __syncthreads();
  const Cell cell = shared.cell;
  __syncthreads();  // before the next search
  return cell;
}

// A lower bound that lets in at least `need` and at most `most` of the keys that for_each(visit)
// visits: `total` of them, no two equal, of `bits` bits. `bins` are kBins of shared memory. All
// threads of the block call it, and each visits a part.
template <int kThreads, class Key, class ForEach>
__device__ Key find_bound(unsigned total, unsigned need, unsigned most, int bits,
                          const ForEach& for_each, unsigned* bins, CellSearch<kThreads>& search) {
  Key prefix = 0;  // the digits settled: those from bit `shift` up
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
