// Loads, stores and atomics: checks of their addresses, and counts of memory requests.
#include <algorithm>
#include <cstdio>

#include "machine.h"

namespace ptx {
namespace {

constexpr u64 kSector = 32;  // the unit of bytes that global memory moves

template <class T>
T combine(const Instruction& i, T old, T value, T other) {
  if (i.modifier == "add") return T(old + value);
  if (i.modifier == "max") return std::max(old, value);
  if (i.modifier == "min") return std::min(old, value);
  if (i.modifier == "exch") return value;
  if (i.modifier == "cas") return old == value ? other : old;
  if constexpr (std::is_integral_v<T>) {
    if (i.modifier == "or") return old | value;
    if (i.modifier == "and") return old & value;
    if (i.modifier == "xor") return old ^ value;
  }
  fault(i.text);
}

template <class T>
u64 combine_bits(const Instruction& i, u64 old, u64 value, u64 other) {
  return to_bits(combine(i, from_bits<T>(old), from_bits<T>(value), from_bits<T>(other)));
}

// How often shared memory must be read for these lanes: the most distinct words of one bank, for
// each group of lanes that moves 128 bytes.
u64 count_wavefronts(const u64* addresses, u32 mask, int bytes) {
  u64 wavefronts = 0;
  const int groups = std::max(1, bytes / 4), lanes = kLanes / groups;
  for (int group = 0; group < groups; ++group) {
    std::array<std::array<u32, kLanes>, kLanes> words;
    std::array<int, kLanes> count{};
    int most = 0;
    for (int l = group * lanes; l < (group + 1) * lanes; ++l) {
      if (!(mask >> l & 1)) continue;
      for (int byte = 0; byte < bytes; byte += 4) {
        const u32 word = u32(addresses[l] + u64(byte)) / 4;
        auto& bank = words[word % kLanes];
        int& n = count[word % kLanes];
        if (std::find(bank.begin(), bank.begin() + n, word) != bank.begin() + n) continue;
        bank[size_t(n++)] = word;
        most = std::max(most, n);
      }
    }
    wavefronts += u64(most);
  }
  return wavefronts;
}

}  // namespace

u64 combined(const Instruction& i, u64 old, u64 value, u64 other) {
  switch (i.type) {
    case Type::kU32:
    case Type::kB32: return combine_bits<u32>(i, old, value, other);
    case Type::kS32: return combine_bits<s32>(i, old, value, other);
    case Type::kU64:
    case Type::kB64: return combine_bits<u64>(i, old, value, other);
    case Type::kS64: return combine_bits<s64>(i, old, value, other);
    case Type::kF32: return combine_bits<float>(i, old, value, other);
    case Type::kF64: return combine_bits<double>(i, old, value, other);
    default: fault(i.text);
  }
}

void Machine::track(Warp& warp, const Instruction& i, int at, int lane, Shadow& shadow,
                    Access access) {
  const Moment now = {
      s32(warp.block->number),       warp.block->barriers, warp.syncs, s16(warp.index), s16(lane),
      warp.seen[size_t(lane)].data()};
  bool doubtful = false;
  const char* wrong = check(shadow, now, access, {i.strong, i.narrow}, i.read_only, doubtful);
  if (!*wrong) return;
  if (!doubtful) fault(wrong + where(warp, at, lane));
  ++notes()[std::string(wrong) + " (" + kernel_.title + ": " + i.text + ")"];
}

// Returns where the memory is that an instruction accesses. Throws Fault if it may not.
u8* Machine::address(Warp& warp, const Instruction& i, int at, int lane, u64 address, int bytes,
                     Access access) {
  if (address % u64(bytes)) fault("a misaligned address" + where(warp, at, lane));
  const bool window = i.space == Space::kGeneric && address >= kSharedWindow;
  if (i.space == Space::kShared || window) {
    const size_t offset = u32(window ? address - kSharedWindow : address);
    if (offset + size_t(bytes) > warp.block->shared.size())
      fault("an address outside shared memory" + where(warp, at, lane));
    for (size_t b = offset; settings().races && b < offset + size_t(bytes); ++b) {
      Shadow& shadow = warp.block->shadow[b];
      if (access != Access::kWrite && !shadow.written)
        fault("a read of shared memory that nobody wrote" + where(warp, at, lane));
      track(warp, i, at, lane, shadow, access);
    }
    return warp.block->shared.data() + offset;
  }
  if (i.space == Space::kParameter) {
    if (address + u64(bytes) > parameters_.size())
      fault("an address outside the parameters" + where(warp, at, lane));
    return parameters_.data() + address;
  }
  u8* memory = reinterpret_cast<u8*>(address);
  if (i.space == Space::kLocal || i.space == Space::kConstant) return memory;
  if (!in_an_array(address, u64(bytes)))
    fault("an address outside all arrays" + where(warp, at, lane));
  for (u64 b = address; settings().races && b < address + u64(bytes); ++b)
    track(warp, i, at, lane, global_shadow_.at(b), access);
  return memory;
}

// Counts the sectors of global memory and the wavefronts of shared memory of a request.
void Machine::count_requests(const Instruction& i, const u64* addresses, u32 mask, int bytes) {
  if (i.space == Space::kParameter || i.space == Space::kLocal || i.space == Space::kConstant)
    return;
  if (i.space == Space::kShared) {
    kernel_.counts.wavefronts += count_wavefronts(addresses, mask, bytes);
    return;
  }
  std::array<u64, kLanes> seen;
  auto end = seen.begin();
  for_lanes(mask, [&](int l) {
    const u64 sector = addresses[l] / kSector;
    if (std::find(seen.begin(), end, sector) == end) *end++ = sector;
  });
  Counts& counts = kernel_.counts;
  (i.op == Op::kLoad ? counts.sectors_loaded : counts.sectors_stored) += u64(end - seen.begin());
}

void Machine::memory(Warp& warp, const Instruction& i, int at, u32 mask) {
  const bool load = i.op == Op::kLoad;
  const Operand &place = i.operands[load ? 1 : 0], &values = i.operands[load ? 0 : 1];
  const u64* base = place.reg >= 0 ? warp.reg(place.reg) : nullptr;
  const int each = size_of(i.type), bytes = each * i.vector;
  u64 addresses[kLanes] = {};
  u8* memory[kLanes];
  for_lanes(mask, [&](int l) { addresses[l] = (base ? base[l] : 0) + u64(place.offset); });
  count_requests(i, addresses, mask, bytes);
  const Access access = load ? Access::kRead : Access::kWrite;
  for_lanes(mask, [&](int l) { memory[l] = address(warp, i, at, l, addresses[l], bytes, access); });
  for (int e = 0; e < i.vector; ++e) {
    const Operand& value = values.parts.empty() ? values : values.parts[size_t(e)];
    if (!load) {
      const u64* from = warp.source(value);
      for_lanes(mask, [&](int l) { std::memcpy(memory[l] + e * each, &from[l], size_t(each)); });
    } else if (value.reg >= 0) {
      u64* to = warp.reg(value.reg);
      for_lanes(mask, [&](int l) {
        u64 bits = 0;
        std::memcpy(&bits, memory[l] + e * each, size_t(each));
        if (is_signed(i.type)) bits = u64(s64(bits << (64 - 8 * each)) >> (64 - 8 * each));
        to[l] = bits;
      });
    }
  }
}

// One lane after the other, in an order that the seed determines.
void Machine::atomic(Warp& warp, const Instruction& i, int at, u32 mask) {
  const size_t first = i.op == Op::kAtomic ? 1 : 0;
  const Operand& place = i.operands[first];
  const u64* base = place.reg >= 0 ? warp.reg(place.reg) : nullptr;
  const u64* value = warp.source(i.operands[first + 1]);
  const u64* other = i.operands.size() > first + 2 ? warp.source(i.operands[first + 2]) : value;
  const int bytes = size_of(i.type);
  u64 addresses[kLanes] = {}, olds[kLanes];
  int order[kLanes], count = 0;
  for_lanes(mask, [&](int l) {
    addresses[l] = (base ? base[l] : 0) + u64(place.offset);
    order[count++] = l;
  });
  if (settings().seed) std::shuffle(order, order + count, random_);
  count_requests(i, addresses, mask, bytes);
  for (int n = 0; n < count; ++n) {
    const int l = order[n];
    u8* memory = address(warp, i, at, l, addresses[l], bytes, Access::kAtomic);
    olds[l] = 0;
    std::memcpy(&olds[l], memory, size_t(bytes));
    const u64 now = combined(i, olds[l], value[l], other[l]);
    std::memcpy(memory, &now, size_t(bytes));
  }
  if (i.op != Op::kAtomic || i.operands[0].reg < 0) return;
  u64* to = warp.reg(i.operands[0].reg);
  for_lanes(mask, [&](int l) { to[l] = olds[l]; });
}

}  // namespace ptx
