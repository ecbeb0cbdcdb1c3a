// Lanes that wait for each other.
#include <set>

#include "machine.h"

namespace ptx {
namespace {

// The masks of a *.sync instruction, one per lane: its last operand, or the whole warp.
const u64* members_of(Warp& warp, const Instruction& i) {
  static const std::vector<u64> whole(kLanes, kAllLanes);
  if (i.op == Op::kStoreMatrix || i.op == Op::kLoadMatrix) return whole.data();
  return warp.source(i.operands.back());
}

}  // namespace

void Machine::arrive_at_barrier(Warp& warp, int at, u32 mask) {
  for_lanes(mask, [&](int l) {
    warp.wait[size_t(l)] = Warp::kAtBarrier;
    warp.waits_at[size_t(l)] = at;
  });
  warp.block->arrived += __builtin_popcount(mask);
  release_barrier(*warp.block);
}

// Lets the threads of a block pass its barrier if all of those that have not ended are there.
void Machine::release_barrier(Block& block) {
  if (block.arrived == 0 || block.arrived + block.ended < block.threads) return;
  int at = -1;
  for (const Warp& warp : block.warps)
    for (size_t lane = 0; lane < kLanes; ++lane) {
      if (warp.wait[lane] != Warp::kAtBarrier) continue;
      if (at >= 0 && warp.waits_at[lane] != at)
        fault("threads wait at different barriers" + where(warp, warp.waits_at[lane], int(lane)));
      at = warp.waits_at[lane];
    }
  if (block.ended)
    fault("not all threads of the block reach the barrier: some have ended" +
          where(block.warps[0], at, 0));
  ++block.barriers;
  ++kernel_.counts.barriers;
  block.arrived = 0;
  for (Warp& warp : block.warps) {
    u32 mask = 0;
    for (size_t lane = 0; lane < kLanes; ++lane)
      if (warp.wait[lane] == Warp::kAtBarrier) {
        warp.wait[lane] = Warp::kRuns;
        mask |= 1u << lane;
      }
    add_fragment(warp, at + 1, mask);
  }
}

// Runs a *.sync instruction if all lanes of the masks are here. Otherwise these lanes wait, and the
// answer is false.
bool Machine::synchronise(Warp& warp, const Instruction& i, int at, u32 rest, u32 mask) {
  const u64* members = members_of(warp, i);
  bool all = rest == 0 && mask == ~warp.ended;
  if (all) for_lanes(mask, [&](int l) { all &= u32(members[l]) == mask; });
  if (all) {
    exchange(warp, i, at, mask);
    return true;
  }
  put_back(warp, at + 1, rest);
  std::set<u32> masks;
  for_lanes(mask, [&](int l) {
    const u32 member = u32(members[l]);
    if (!(member >> l & 1))
      fault("the mask does not include the calling lane" + where(warp, at, l));
    warp.wait[size_t(l)] = Warp::kAtSync;
    warp.waits_at[size_t(l)] = at;
    warp.waits_for[size_t(l)] = member;
    masks.insert(member);
  });
  for (u32 member : masks) release_sync(warp, at, member);
  return false;
}

// Runs the *.sync instruction for these lanes if all of them wait there with this mask.
void Machine::release_sync(Warp& warp, int at, u32 members) {
  u32 here = 0;
  for (size_t lane = 0; lane < kLanes; ++lane)
    if (warp.wait[lane] == Warp::kAtSync && warp.waits_at[lane] == at &&
        warp.waits_for[lane] == members)
      here |= 1u << lane;
  if (!here || (members & ~warp.ended & ~here)) return;
  if (members & warp.ended)
    fault("the mask names a lane that has ended or does not exist" +
          where(warp, at, __builtin_ctz(here)));
  for_lanes(here, [&](int l) { warp.wait[size_t(l)] = Warp::kRuns; });
  exchange(warp, kernel_.code[size_t(at)], at, here);
  add_fragment(warp, at + 1, here);
}

void Machine::end_lanes(Warp& warp, u32 mask) {
  warp.ended |= mask;
  warp.block->ended += __builtin_popcount(mask);
  std::set<std::pair<int, u32>> waits;  // that may now be seen to be in vain
  for (size_t lane = 0; lane < kLanes; ++lane)
    if (warp.wait[lane] == Warp::kAtSync) waits.insert({warp.waits_at[lane], warp.waits_for[lane]});
  for (const auto& [at, members] : waits) release_sync(warp, at, members);
  release_barrier(*warp.block);
}

}  // namespace ptx
