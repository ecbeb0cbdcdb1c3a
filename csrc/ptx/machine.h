// A grid that is being run.
//
// The lanes of a warp that are at one instruction are a fragment. A fragment runs until its lanes
// part, wait or end. The instructions named *.sync wait for the lanes of their mask.
#pragma once

#include <random>
#include <unordered_map>

#include "lanes.h"
#include "races.h"
#include "settings.h"

namespace ptx {

// Generic addresses from here on are in shared memory.
constexpr u64 kSharedWindow = 0x7e00000000000000ull;

struct Block;

struct Fragment {
  int at;  // the number of an instruction
  u32 mask;
};

struct Warp {
  enum Wait : u8 { kRuns, kAtBarrier, kAtSync };

  Block* block = nullptr;
  int index = 0;
  u32 ended = 0;  // lanes that have ended or do not exist
  std::vector<u64> registers;
  std::vector<Fragment> fragments;
  std::array<Wait, kLanes> wait{};
  std::array<int, kLanes> waits_at{};
  std::array<u32, kLanes> waits_for{};                 // the mask
  u32 syncs = 0;                                       // how many bar.warp.sync have been passed
  std::array<std::array<u32, kLanes>, kLanes> seen{};  // by lane: Moment::seen

  u64* reg(int number) { return registers.data() + size_t(number) * kLanes; }
  const u64* source(const Operand& operand) {
    return operand.reg >= 0 ? reg(operand.reg) : operand.immediate.data();
  }
};

struct Block {
  std::array<u32, 3> id{};
  u64 number = 0;
  u32 barriers = 0;  // how many have been passed
  int threads = 0, arrived = 0, ended = 0;
  std::vector<u8> shared, local;
  std::vector<Shadow> shadow;  // of shared memory, if races are looked for
  std::vector<Warp> warps;
};

// Arithmetic, moves and conversions: everything that needs no other lane and no memory.
void compute(Warp& warp, const Instruction& i, u32 mask);
void move(Warp& warp, const Instruction& i, u32 mask);

// The value of an atomic instruction.
u64 combined(const Instruction& i, u64 old, u64 value, u64 other);

class Machine {
 public:
  Machine(Kernel& kernel, const u32* grid, const u32* block, void** arguments, size_t dynamic);
  void run();

 private:
  // machine.cpp
  std::string where(const Warp& warp, int at, int lane) const;
  void start(Block& block, u64 number);
  u64 special(const std::string& name, const Block& block, u32 thread) const;
  void in_order();
  void interleaved(u64 blocks);
  bool step(Block& block);
  [[noreturn]] void stuck(const Block& block) const;
  u32 random(u32 below) { return u32(random_() % below); }

  // execute.cpp
  void run_fragment(Warp& warp, size_t which, int limit);
  bool execute(Warp& warp, const Instruction& i, Fragment& fragment, u32 mask);
  void branch(Warp& warp, const Instruction& i, Fragment& fragment, u32 mask, bool& goes_on);
  void put_back(Warp& warp, int at, u32 mask);
  static void add_fragment(Warp& warp, int at, u32 mask);

  // synchronise.cpp
  void arrive_at_barrier(Warp& warp, int at, u32 mask);
  void release_barrier(Block& block);
  bool synchronise(Warp& warp, const Instruction& i, int at, u32 rest, u32 mask);
  void release_sync(Warp& warp, int at, u32 members);
  void end_lanes(Warp& warp, u32 mask);

  // warp_operations.cpp
  void exchange(Warp& warp, const Instruction& i, int at, u32 mask);
  void shuffle(Warp& warp, const Instruction& i, int at, u32 mask);
  void matrix(Warp& warp, const Instruction& i, int at, u32 mask);

  // access.cpp
  u8* address(Warp& warp, const Instruction& i, int at, int lane, u64 address, int bytes,
              Access access);
  void memory(Warp& warp, const Instruction& i, int at, u32 mask);
  void atomic(Warp& warp, const Instruction& i, int at, u32 mask);
  void track(Warp& warp, const Instruction& i, int at, int lane, Shadow& shadow, Access access);
  void count_requests(const Instruction& i, const u64* addresses, u32 mask, int bytes);

  Kernel& kernel_;
  std::array<u32, 3> grid_, dim_;
  int shared_bytes_;
  u64 instructions_ = 0;
  std::vector<u8> parameters_;
  std::mt19937_64 random_;
  ShadowMemory global_shadow_;
};

}  // namespace ptx
