// Which accesses to memory are ordered. Two accesses by different threads are a race if one of them
// writes, not both are atomic or volatile, and no barrier of the block or __syncwarp of the warp
// lies between them.
#pragma once

#include <memory>
#include <unordered_map>

#include "program.h"

namespace ptx {

enum class Access : u8 { kRead, kWrite, kAtomic };

// How an access is made. `strong` ones, which are volatile or atomic, are no race among themselves.
// Those that are `narrow` are strong for the threads of their block only.
struct Strength {
  bool strong, narrow;
};

// A thread at a moment.
struct Moment {
  s32 block;
  u32 barriers, syncs;  // that the block and the warp have passed
  s16 warp, lane;
  const u32* seen;  // of each lane, the number of the last __syncwarp that reached this thread
};

// The accesses of one kind to a byte since the last one that all others were ordered before.
class History {
 public:
  // Whether all of them come before an access at this moment.
  bool before(const Moment& now) const;
  void add(const Moment& now, Strength strength);
  void clear() { any_ = false; }
  bool only_strong() const { return !plain_; }
  // Whether all of them and this access are strong for each other.
  bool strong_for(const Moment& now, Strength strength) const;
  bool any() const { return any_; }

 private:
  Moment last_;
  u32 lanes_ = 0, syncs_ = 0;  // of the last warp: the lanes, and the latest of their accesses
  // Whether more than one block, or warp of the block, has accessed it.
  bool any_ = false, blocks_ = false, warps_ = false, plain_ = false, narrow_ = false;
};

// What is known of a byte.
struct Shadow {
  History reads, writes;
  bool written = false, read_only = false;
};

// The shadows of global memory, made when they are first needed.
class ShadowMemory {
 public:
  Shadow& at(u64 address);

 private:
  static constexpr u64 kPage = 1024;
  std::unordered_map<u64, std::unique_ptr<Shadow[]>> pages_;
  u64 last_number_ = ~u64(0);
  Shadow* last_ = nullptr;
};

// Records an access to a byte. Returns an error message, which is empty if the access is ordered
// with the earlier ones. `doubtful` is set if it is only a plain read of a byte that other threads
// change by atomics.
const char* check(Shadow& shadow, const Moment& now, Access access, Strength strength,
                  bool read_only, bool& doubtful);

}  // namespace ptx
