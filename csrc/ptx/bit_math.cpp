// Instructions on bits.
#include <algorithm>

#include "compute.h"

namespace ptx {
namespace {

u64 cut(Type type, u64 x) { return size_of(type) == 8 ? x : u32(x); }

u64 leading_zeros(Type type, u64 x) {
  x = cut(type, x);
  const int bits = 8 * size_of(type);
  return u64(x ? __builtin_clzll(x) - (64 - bits) : bits);
}

u64 reversed(Type type, u64 x) {
  u64 result = 0;
  for (int n = 0, bits = 8 * size_of(type); n < bits; ++n) result |= (x >> n & 1) << (bits - 1 - n);
  return result;
}

// The place of the highest bit that is not the sign.
u64 find_bit(const Instruction& i, u64 x) {
  const int bits = 8 * size_of(i.type);
  x = cut(i.type, x);
  if (is_signed(i.type) && x >> (bits - 1) & 1) x = cut(i.type, ~x);
  if (x == 0) return 0xffffffffu;
  const int place = 63 - __builtin_clzll(x);
  return u64(i.shift_amount ? bits - 1 - place : place);
}

u64 insert_bits(Type type, u64 field, u64 into, u64 position, u64 length) {
  const u64 first = position & 0xff,
            end = std::min<u64>(first + (length & 0xff), 8u * size_of(type));
  for (u64 n = first; n < end; ++n)
    into = (into & ~(u64(1) << n)) | (field >> (n - first) & 1) << n;
  return into;
}

u64 extract_bits(Type type, u64 x, u64 position, u64 length) {
  const u64 bits = u64(8 * size_of(type)), first = position & 0xff, count = length & 0xff;
  x = cut(type, x);
  u64 sign = 0, result = 0;
  if (is_signed(type) && count) sign = x >> std::min(first + count - 1, bits - 1) & 1;
  for (u64 n = 0; n < bits; ++n)
    result |= (n < count && first + n < bits ? x >> (first + n) & 1 : sign) << n;
  return result;
}

// Chooses four of eight bytes; a choice of 8 or more repeats the sign of a byte.
u64 permuted(u64 a, u64 b, u64 choice) {
  const u64 both = u64(u32(a)) | u64(u32(b)) << 32;
  u64 result = 0;
  for (int n = 0; n < 4; ++n) {
    const u64 which = choice >> (4 * n) & 15;
    u64 byte = both >> (8 * (which & 7)) & 255;
    if (which & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << (8 * n);
  }
  return result;
}

// Any function of three bits: a table of eight.
u64 logic(u64 a, u64 b, u64 c, u64 table) {
  u64 result = 0;
  for (int n = 0; n < 32; ++n) {
    const u64 row = (a >> n & 1) << 2 | (b >> n & 1) << 1 | (c >> n & 1);
    result |= (table >> row & 1) << n;
  }
  return result;
}

u64 funnel_shift(const Instruction& i, u64 a, u64 b, u64 c) {
  const u64 both = u64(u32(a)) | u64(u32(b)) << 32;
  const u32 by = i.wrap ? u32(c) & 31 : std::min(u32(c), 32u);
  return u32(i.right ? both >> by : by == 0 ? both >> 32 : both >> (32 - by));
}

}  // namespace

bool compute_bits(const Instruction& i, u64* to, const u64* a, const u64* b, const u64* c,
                  const u64* d, u32 mask) {
  const auto each = [&](const auto& function) {
    for_lanes(mask, [&](int l) { to[l] = function(l); });
    return true;
  };
  switch (i.op) {
    case Op::kPopulation:
      return each([&](int l) { return u64(__builtin_popcountll(cut(i.type, a[l]))); });
    case Op::kLeadingZeros: return each([&](int l) { return leading_zeros(i.type, a[l]); });
    case Op::kReverse: return each([&](int l) { return reversed(i.type, a[l]); });
    case Op::kFindBit: return each([&](int l) { return find_bit(i, a[l]); });
    case Op::kInsertBits:
      return each([&](int l) { return insert_bits(i.type, a[l], b[l], c[l], d[l]); });
    case Op::kExtractBits:
      return each([&](int l) { return extract_bits(i.type, a[l], b[l], c[l]); });
    case Op::kPermute:
      if (!i.modifier.empty()) fault(i.text);
      return each([&](int l) { return permuted(a[l], b[l], c[l]); });
    case Op::kLogic3: return each([&](int l) { return logic(a[l], b[l], c[l], d[l]); });
    case Op::kFunnelShift: return each([&](int l) { return funnel_shift(i, a[l], b[l], c[l]); });
    default: return false;
  }
}

}  // namespace ptx
