// What lanes do together: shuffles, votes, reductions and the movement of small matrices.
#include <algorithm>

#include "machine.h"

namespace ptx {
namespace {

// What any of these lanes has done, or has seen before, all of them have seen from here on.
void pass_sync(Warp& warp, u32 mask) {
  std::array<u32, kLanes> seen{};
  ++warp.syncs;
  for_lanes(mask, [&](int l) {
    const auto& of_lane = warp.seen[size_t(l)];
    for (size_t k = 0; k < kLanes; ++k) seen[k] = std::max(seen[k], of_lane[k]);
  });
  for_lanes(mask, [&](int l) { seen[size_t(l)] = warp.syncs; });
  for_lanes(mask, [&](int l) { warp.seen[size_t(l)] = seen; });
}

u32 votes(const Operand& operand, const u64* a, u32 mask) {
  u32 yes = 0;
  for_lanes(mask, [&](int l) { yes |= u32(((a[l] & 1) != 0) != operand.negate) << l; });
  return yes;
}

u64 vote(const Instruction& i, u32 yes, u32 mask) {
  if (i.modifier == "ballot") return yes;
  if (i.modifier == "any") return yes != 0;
  if (i.modifier == "all") return yes == mask;
  return yes == 0 || yes == mask;  // uni
}

u32 reduced(const Instruction& i, const u64* a, u32 mask) {
  u32 result = u32(a[__builtin_ctz(mask)]);
  for_lanes(mask & (mask - 1), [&](int l) { result = u32(combined(i, result, a[l], 0)); });
  return result;
}

}  // namespace

// Each lane reads the value of another one.
void Machine::shuffle(Warp& warp, const Instruction& i, int at, u32 mask) {
  const u64* value = warp.source(i.operands[1]);
  const u64* step = warp.source(i.operands[2]);
  const u64* clamp = warp.source(i.operands[3]);
  u64 result[kLanes];
  bool inside[kLanes];
  for_lanes(mask, [&](int l) {
    const int by = int(step[l] & 31), end = int(clamp[l] & 31), segment = int(clamp[l] >> 8 & 31);
    const int first = l & segment, last = first | (end & ~segment);
    int from = first | (by & ~segment);
    if (i.modifier == "up") from = l - by;
    if (i.modifier == "down") from = l + by;
    if (i.modifier == "bfly") from = l ^ by;
    inside[l] = i.modifier == "up" ? from >= last : from <= last;
    if (!inside[l]) from = l;
    if (!(mask >> from & 1))
      fault("a shuffle reads from a lane outside its mask" + where(warp, at, l));
    result[l] = u32(value[from]);
  });
  u64* to = warp.reg(i.operands[0].reg);
  for_lanes(mask, [&](int l) { to[l] = result[l]; });
  if (i.operands[0].second < 0) return;
  u64* predicate = warp.reg(i.operands[0].second);
  for_lanes(mask, [&](int l) { predicate[l] = inside[l]; });
}

// Loads or stores matrices of 8 x 8 numbers of 16 bits. Lane 8 m + r has the address of row r of
// matrix m, and each lane holds two neighbours of a row.
void Machine::matrix(Warp& warp, const Instruction& i, int at, u32 mask) {
  if (mask != kAllLanes) fault("part of a warp moves a matrix" + where(warp, at, 0));
  const bool store = i.op == Op::kStoreMatrix;
  const bool transposed = i.modifier.find("trans") != std::string::npos;
  const Operand &place = i.operands[store ? 0 : 1], &values = i.operands[store ? 1 : 0];
  const size_t matrices = std::max<size_t>(1, values.parts.size());
  const u64* base = place.reg >= 0 ? warp.reg(place.reg) : nullptr;
  u64 addresses[kLanes], loaded[4][kLanes] = {};
  for_lanes(mask, [&](int l) { addresses[l] = (base ? base[l] : 0) + u64(place.offset); });
  const auto part = [&](size_t m) { return values.parts.empty() ? values : values.parts[m]; };
  for (size_t m = 0; m < matrices; ++m)
    for (int r = 0; r < 8; ++r) {
      const int owner = 8 * int(m) + r;
      u8* row =
          address(warp, i, at, owner, addresses[owner], 16, store ? Access::kWrite : Access::kRead);
      for (int c = 0; c < 8; ++c) {
        const int lane = (transposed ? c : r) * 4 + (transposed ? r : c) / 2;
        const int shift = 16 * ((transposed ? r : c) & 1);
        u16 number = store ? u16(warp.source(part(m))[lane] >> shift) : u16(0);
        if (store)
          std::memcpy(row + 2 * c, &number, 2);
        else
          std::memcpy(&number, row + 2 * c, 2);
        loaded[m][lane] |= u64(number) << shift;
      }
    }
  kernel_.counts.wavefronts += matrices;
  for (size_t m = 0; !store && m < matrices; ++m)
    std::copy(loaded[m], loaded[m] + kLanes, warp.reg(part(m).reg));
}

void Machine::exchange(Warp& warp, const Instruction& i, int at, u32 mask) {
  if (i.op == Op::kSyncWarp) return pass_sync(warp, mask);
  if (i.op == Op::kShuffle) return shuffle(warp, i, at, mask);
  if (i.op == Op::kStoreMatrix || i.op == Op::kLoadMatrix) return matrix(warp, i, at, mask);
  const u64* a = warp.source(i.operands[1]);
  u64 result[kLanes];
  if (i.op == Op::kMatch) {
    if (i.modifier != "any") fault(i.text);
    const u64 bits = size_of(i.type) == 8 ? ~u64(0) : kAllLanes;
    for_lanes(mask, [&](int l) {
      result[l] = 0;
      for_lanes(mask, [&](int k) { result[l] |= u64((a[k] & bits) == (a[l] & bits)) << k; });
    });
  } else {
    const bool is_vote = i.op == Op::kVote;
    const u64 same = is_vote ? vote(i, votes(i.operands[1], a, mask), mask) : reduced(i, a, mask);
    for_lanes(mask, [&](int l) { result[l] = same; });
  }
  u64* to = warp.reg(i.operands[0].reg);
  for_lanes(mask, [&](int l) { to[l] = result[l]; });
}

}  // namespace ptx
