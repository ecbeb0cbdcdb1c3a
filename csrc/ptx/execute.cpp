// Runs the instructions of a fragment.
#include <algorithm>
#include <limits>

#include "machine.h"

namespace ptx {

void Machine::add_fragment(Warp& warp, int at, u32 mask) {
  if (!mask) return;
  for (Fragment& fragment : warp.fragments)
    if (fragment.at == at) {
      fragment.mask |= mask;
      return;
    }
  warp.fragments.push_back({at, mask});
}

// With a seed, lanes that could meet others here may stay apart.
void Machine::put_back(Warp& warp, int at, u32 mask) {
  if (settings().seed && mask && random(2) && warp.fragments.size() < 12)
    warp.fragments.push_back({at, mask});
  else
    add_fragment(warp, at, mask);
}

// Takes a fragment out of its warp and runs it until its lanes part, wait or end, or for `limit`
// instructions.
void Machine::run_fragment(Warp& warp, size_t which, int limit) {
  const bool in_order = settings().seed == 0;
  Fragment fragment = warp.fragments[which];
  warp.fragments.erase(warp.fragments.begin() + s64(which));
  if (!in_order && random(8) == 0) {  // splits it
    const u32 part = fragment.mask & u32(random_());
    if (part && part != fragment.mask) {
      warp.fragments.push_back({fragment.at, fragment.mask & ~part});
      fragment.mask = part;
    }
  }
  int meeting = std::numeric_limits<int>::max();  // where other lanes are
  if (in_order)
    for (const Fragment& other : warp.fragments)
      if (other.at > fragment.at) meeting = std::min(meeting, other.at);
  while (true) {
    const Instruction& i = kernel_.code[size_t(fragment.at)];
    u32 mask = fragment.mask;
    if (instructions_++ == settings().limit)
      fault("an endless loop" + where(warp, fragment.at, __builtin_ctz(fragment.mask)));
    ++kernel_.counts.warp_instructions;
    ++kernel_.counts.by_class[size_t(i.kind)];
    ++kernel_.executed[size_t(fragment.at)];
    if (i.guard >= 0) {
      const u64* guard = warp.reg(i.guard);
      u32 on = 0;
      for_lanes(mask, [&](int l) { on |= u32(((guard[l] & 1) != 0) != i.guard_negated) << l; });
      mask = on;
    }
    kernel_.counts.thread_instructions += u64(__builtin_popcount(mask));
    if (!execute(warp, i, fragment, mask)) return;
    const bool jumped = i.op == Op::kBranch && !warp.fragments.empty();
    if (--limit <= 0 || fragment.at >= meeting || (in_order && jumped)) {
      put_back(warp, fragment.at, fragment.mask);
      return;
    }
  }
}

void Machine::branch(Warp& warp, const Instruction& i, Fragment& fragment, u32 mask,
                     bool& goes_on) {
  const u32 rest = fragment.mask & ~mask;
  goes_on = !rest || !mask;
  if (goes_on) {
    fragment.at = rest ? fragment.at + 1 : i.target;
  } else {
    put_back(warp, i.target, mask);
    put_back(warp, fragment.at + 1, rest);
  }
}

// Runs one instruction for the lanes of `mask`, those whose guard is true. Returns whether the
// fragment has a next instruction to run.
bool Machine::execute(Warp& warp, const Instruction& i, Fragment& fragment, u32 mask) {
  const u32 rest = fragment.mask & ~mask;
  bool goes_on = true;
  switch (i.op) {
    case Op::kBranch: branch(warp, i, fragment, mask, goes_on); return goes_on;
    case Op::kReturn:
      put_back(warp, fragment.at + 1, rest);
      if (mask) end_lanes(warp, mask);
      return false;
    case Op::kBarrier:
      if (i.modifier == "red" || i.modifier == "arrive" || i.operands.size() > 1) fault(i.text);
      put_back(warp, fragment.at + 1, rest);
      if (mask) arrive_at_barrier(warp, fragment.at, mask);
      return false;
    case Op::kShuffle:
    case Op::kVote:
    case Op::kMatch:
    case Op::kReduceWarp:
    case Op::kSyncWarp:
    case Op::kStoreMatrix:
    case Op::kLoadMatrix:
      if (!synchronise(warp, i, fragment.at, rest, mask)) return false;
      break;
    case Op::kActiveMask:
      for_lanes(mask, [&](int l) { warp.reg(i.operands[0].reg)[l] = mask; });
      break;
    case Op::kLoad:
    case Op::kStore:
      if (mask) memory(warp, i, fragment.at, mask);
      break;
    case Op::kAtomic:
    case Op::kReduction:
      if (mask) atomic(warp, i, fragment.at, mask);
      break;
    case Op::kFence: break;
    case Op::kTrap:
      if (mask) fault("a trap" + where(warp, fragment.at, __builtin_ctz(mask)));
      break;
    case Op::kMove:
      if (mask) move(warp, i, mask);
      break;
    default:
      if (mask) compute(warp, i, mask);
  }
  ++fragment.at;
  return true;
}

}  // namespace ptx
