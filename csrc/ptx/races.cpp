#include "races.h"

namespace ptx {

bool History::before(const Moment& now) const {
  if (!any_) return true;
  if (blocks_ || last_.block != now.block) return false;
  if (last_.barriers != now.barriers) return true;
  if (warps_ || last_.warp != now.warp) return false;
  for (u32 others = lanes_ & ~(1u << now.lane); others; others &= others - 1)
    if (now.seen[__builtin_ctz(others)] <= syncs_) return false;
  return true;
}

bool History::strong_for(const Moment& now, Strength strength) const {
  const bool other_blocks = blocks_ || last_.block != now.block;
  return strength.strong && !plain_ && !(other_blocks && (narrow_ || strength.narrow));
}

void History::add(const Moment& now, Strength strength) {
  if (!any_) {
    blocks_ = warps_ = plain_ = narrow_ = false;
    lanes_ = 0;
  } else if (last_.block != now.block) {
    blocks_ = true;
  } else if (last_.barriers != now.barriers) {
    // Of one block: the earlier ones come before all that follows.
    warps_ = false;
    lanes_ = 0;
    if (!blocks_) plain_ = narrow_ = false;
  } else if (last_.warp != now.warp) {
    warps_ = true;
  } else if (before(now)) {
    lanes_ = 0;
  }
  any_ = true;
  plain_ |= !strength.strong;
  narrow_ |= strength.narrow;
  lanes_ |= 1u << now.lane;
  syncs_ = now.syncs;
  last_ = now;
}

Shadow& ShadowMemory::at(u64 address) {
  const u64 number = address / kPage;
  if (number != last_number_) {
    std::unique_ptr<Shadow[]>& page = pages_[number];
    if (!page) page.reset(new Shadow[kPage]);
    last_number_ = number;
    last_ = page.get();
  }
  return last_[address % kPage];
}

const char* check(Shadow& shadow, const Moment& now, Access access, Strength strength,
                  bool read_only, bool& doubtful) {
  const char* wrong = "";
  const bool writes = access != Access::kRead;
  strength.strong |= access == Access::kAtomic;
  if (!shadow.writes.before(now) && !shadow.writes.strong_for(now, strength)) {
    wrong = writes ? "a race: two threads write" : "a race: a read of what another thread writes";
    doubtful = !writes && shadow.writes.only_strong();
  }
  if (writes) {
    if (!shadow.reads.before(now) && !shadow.reads.strong_for(now, strength)) {
      wrong = "a race: a write of what another thread reads";
      doubtful = access == Access::kAtomic;
    }
    if (shadow.read_only) wrong = "a write of what the launch reads as constant (ld.global.nc)";
    // All that was ordered before this write is ordered before what is ordered after it.
    if (!*wrong && !strength.strong) shadow.writes.clear();
    if (!*wrong) shadow.reads.clear();
    shadow.writes.add(now, strength);
    shadow.written = true;
  } else {
    if (read_only && shadow.writes.any())
      wrong = "a read as constant (ld.global.nc) of what the launch writes";
    shadow.read_only |= read_only;
    shadow.reads.add(now, strength);
  }
  return wrong;
}

}  // namespace ptx
