// Sums over groups of rows. A group is an image, or the whole batch. Each group has the same number
// of blocks, each of which stores its sum at its own place; finish_groups_kernel adds those of a
// group in a fixed order, so the results are the same in every run.
#pragma once

#include "runtime.h"

namespace mdssd {
namespace {  // simt.h requires internal linkage for __shared__ variables

constexpr int kSumThreads = 256;
constexpr int64_t kMostBlocks = 2048;  // about as many as the largest GPUs run at once

struct GroupSum {
  double loss;
  int64_t positives;
};

// Returns the number of blocks of each group, of which each gets at least `per_block` of n items.
inline unsigned blocks_per_group(int64_t groups, int64_t n, int64_t per_block) {
  const int64_t most = groups < kMostBlocks ? kMostBlocks / (groups < 1 ? 1 : groups) : 1;
  const unsigned blocks = grid_size(n, per_block, most);
  return blocks < 1 ? 1 : blocks;
}

// All threads of a block call this with their shares.
__device__ void store_group_sum(double loss, int64_t positives, GroupSum* sums) {
  __shared__ double losses[kSumThreads / kWarpSize];
  __shared__ int64_t counts[kSumThreads / kWarpSize];
  loss = block_sum(loss, losses);
  positives = block_sum(positives, counts);
  if (threadIdx.x == 0) sums[blockIdx.x] = {loss, positives};
}

// A block handles one group.
template <class T>
__global__ void __launch_bounds__(kSumThreads)
    finish_groups_kernel(const GroupSum* __restrict__ sums, unsigned per_group, bool normalise,
                  T* __restrict__ loss, int64_t* __restrict__ normaliser) {
  __shared__ double losses[kSumThreads / kWarpSize];
  __shared__ int64_t counts[kSumThreads / kWarpSize];
  double total = 0;
  int64_t positives = 0;
  sums += int64_t(blockIdx.x) * per_group;
  for (unsigned i = threadIdx.x; i < per_group; i += kSumThreads) {
    total += sums[i].loss;
    positives += sums[i].positives;
  }
  total = block_sum(total, losses);
  positives = block_sum(positives, counts);
  if (threadIdx.x != 0) return;
  if (positives < 1 || !normalise) positives = 1;
  loss[blockIdx.x] = T(total / double(positives));
  normaliser[blockIdx.x] = positives;
}

template <class T>
void finish_groups(const char* op, const GroupSum* sums, int64_t groups, unsigned per_group,
                   bool normalise, void* loss, int64_t* normaliser, Stream stream) {
  launch(op, finish_groups_kernel<T>, unsigned(groups), kSumThreads, stream, sums, per_group, normalise,
         static_cast<T*>(loss), normaliser);
}

inline GroupSum* take_sums(Workspace& memory, int64_t groups) {
  return memory.take<GroupSum>(groups > kMostBlocks ? groups : kMostBlocks);
}

}  // namespace
}  // namespace mdssd
