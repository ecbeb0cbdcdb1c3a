// Starts the blocks of a grid and chooses who runs next.
#include "machine.h"

#include <algorithm>
#include <numeric>

namespace ptx {
namespace {

constexpr size_t kBlocksAtOnce = 4;  // that a seed interleaves
constexpr u8 kUnwritten = 0xff;      // of shared memory: NaN, or -1

}  // namespace

Machine::Machine(Kernel& kernel, const u32* grid, const u32* block, void** arguments,
                 size_t dynamic)
    : kernel_(kernel),
      grid_{grid[0], grid[1], grid[2]},
      dim_{block[0], block[1], block[2]},
      shared_bytes_(kernel.shared_bytes + int(dynamic)),
      parameters_(size_t(kernel.parameter_bytes)),
      random_(settings().seed) {
  if (u64(block[0]) * block[1] * block[2] > 1024) fault("more than 1024 threads in a block");
  if (grid[0] > 0x7fffffff || grid[1] > 65535 || grid[2] > 65535) fault("the grid is too large");
  if (!dynamic && shared_bytes_ > 48 * 1024) fault("more than 48 KB of static shared memory");
  for (size_t p = 0; p < kernel.parameters.size(); ++p) {
    const Parameter& parameter = kernel.parameters[p];
    std::memcpy(parameters_.data() + parameter.offset, arguments[p], size_t(parameter.size));
  }
}

std::string Machine::where(const Warp& warp, int at, int lane) const {
  const auto& id = warp.block->id;
  std::string text = " (" + kernel_.title + ", block ";
  text += std::to_string(id[0]) + "," + std::to_string(id[1]) + "," + std::to_string(id[2]);
  text += ", thread " + std::to_string(warp.index * kLanes + lane) + ": ";
  return text + kernel_.code[size_t(at)].text + ")";
}

u64 Machine::special(const std::string& name, const Block& block, u32 thread) const {
  const u32 lane = thread % kLanes;
  const int axis = name.back() - 'x';
  if (name == "%tid.x") return thread % dim_[0];
  if (name == "%tid.y") return thread / dim_[0] % dim_[1];
  if (name == "%tid.z") return thread / dim_[0] / dim_[1];
  if (name.compare(0, 7, "%ctaid.") == 0) return block.id[size_t(axis)];
  if (name.compare(0, 6, "%ntid.") == 0) return dim_[size_t(axis)];
  if (name.compare(0, 8, "%nctaid.") == 0) return grid_[size_t(axis)];
  if (name == "%laneid") return lane;
  if (name == "%envreg0") return settings().environment;
  if (name == "%warpid") return thread / kLanes;
  if (name == "%lanemask_lt") return (1u << lane) - 1;
  if (name == "%lanemask_le") return u32((2ull << lane) - 1);
  if (name == "%lanemask_gt") return u32(~((2ull << lane) - 1));
  if (name == "%lanemask_ge") return u32(~((1ull << lane) - 1));
  if (name == "%lanemask_eq") return 1u << lane;
  const u32 owner = thread < u32(block.threads) ? thread : 0;  // of %local
  return reinterpret_cast<u64>(block.local.data()) + size_t(owner) * size_t(kernel_.local_bytes);
}

void Machine::start(Block& block, u64 number) {
  block.number = number;
  block.id = {u32(number % grid_[0]), u32(number / grid_[0] % grid_[1]),
              u32(number / grid_[0] / grid_[1])};
  block.threads = int(dim_[0] * dim_[1] * dim_[2]);
  block.shared.assign(size_t(shared_bytes_), kUnwritten);
  if (settings().seed)
    for (u8& byte : block.shared) byte = u8(random_());
  if (settings().races) block.shadow.assign(size_t(shared_bytes_), Shadow{});
  block.local.assign(size_t(kernel_.local_bytes) * size_t(block.threads) + 16, kUnwritten);
  block.warps.assign(size_t((block.threads + kLanes - 1) / kLanes), Warp{});
  for (int w = 0; w < int(block.warps.size()); ++w) {
    Warp& warp = block.warps[size_t(w)];
    warp.block = &block;
    warp.index = w;
    const int lanes = std::min(kLanes, block.threads - kLanes * w);
    const u32 exist = lanes == kLanes ? kAllLanes : (1u << lanes) - 1;
    warp.ended = ~exist;
    warp.registers.assign(size_t(kernel_.registers) * kLanes, 0xcccccccccccccccc);
    for (const auto& [name, reg] : kernel_.specials)
      for (int lane = 0; lane < kLanes; ++lane)
        warp.reg(reg)[lane] = special(name, block, u32(w * kLanes + lane));
    warp.fragments.push_back({0, exist});
  }
  kernel_.counts.warps += block.warps.size();
  ++kernel_.counts.blocks;
}

// Runs every warp until all its lanes wait or have ended. Returns whether any lane ran.
bool Machine::step(Block& block) {
  bool any = false;
  for (Warp& warp : block.warps)
    while (!warp.fragments.empty()) {
      any = true;
      // The fragment that is furthest behind, so that the others wait for it where they meet.
      size_t first = 0;
      for (size_t f = 1; f < warp.fragments.size(); ++f)
        if (warp.fragments[f].at < warp.fragments[first].at) first = f;
      run_fragment(warp, first, 1 << 30);
    }
  return any;
}

void Machine::stuck(const Block& block) const {
  for (const Warp& warp : block.warps)
    for (int lane = 0; lane < kLanes; ++lane)
      if (warp.wait[size_t(lane)] == Warp::kAtSync)
        fault("the mask names a lane that does not arrive" +
              where(warp, warp.waits_at[size_t(lane)], lane));
  for (const Warp& warp : block.warps)
    for (int lane = 0; lane < kLanes; ++lane)
      if (warp.wait[size_t(lane)] == Warp::kAtBarrier)
        fault("not all threads of the block reach the barrier" +
              where(warp, warp.waits_at[size_t(lane)], lane));
  fault("nothing can run (" + kernel_.title + ")");
}

void Machine::in_order() {
  const u64 blocks = u64(grid_[0]) * grid_[1] * grid_[2];
  for (u64 number = 0; number < blocks; ++number) {
    Block block;
    start(block, number);
    while (block.ended < block.threads)
      if (!step(block)) stuck(block);
  }
}

void Machine::interleaved(u64 blocks) {
  std::vector<u64> order(blocks);
  std::iota(order.begin(), order.end(), u64(0));
  std::shuffle(order.begin(), order.end(), random_);
  std::vector<std::unique_ptr<Block>> live;
  std::vector<int> ready;
  for (u64 next = 0; next < blocks || !live.empty();) {
    while (live.size() < kBlocksAtOnce && next < blocks) {
      live.push_back(std::make_unique<Block>());
      start(*live.back(), order[next++]);
    }
    const size_t chosen = random(u32(live.size()));
    Block& block = *live[chosen];
    ready.clear();
    for (const Warp& warp : block.warps)
      if (!warp.fragments.empty()) ready.push_back(warp.index);
    if (ready.empty()) {
      if (block.ended < block.threads) stuck(block);
      live.erase(live.begin() + s64(chosen));
      continue;
    }
    Warp& warp = block.warps[size_t(ready[random(u32(ready.size()))])];
    run_fragment(warp, random(u32(warp.fragments.size())), 1 + int(random(64)));
  }
}

void Machine::run() {
  ++kernel_.counts.launches;
  if (settings().seed)
    interleaved(u64(grid_[0]) * grid_[1] * grid_[2]);
  else
    in_order();
}

}  // namespace ptx
