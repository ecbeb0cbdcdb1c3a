// Instructions that need no other lane and no memory.
#include "compute.h"

#include "machine.h"

namespace ptx {
namespace {

bool is_pair(Type type) { return type == Type::kF16x2 || type == Type::kBF16x2; }

// A predicate of an operand, by lane.
bool truth(const Operand& operand, const u64* bits, int lane) {
  return ((bits[lane] & 1) != 0) != operand.negate;
}

// setp p|q: q is the opposite, or, of pairs of numbers, the result of their upper halves.
void compare_lanes(Warp& warp, const Instruction& i, u32 mask) {
  const u64 *a = warp.source(i.operands[1]), *b = warp.source(i.operands[2]);
  const u64* also = i.combine == Combine::kNone ? nullptr : warp.source(i.operands[3]);
  const auto with = [&](bool result, int l) {
    if (!also) return result;
    const bool p = truth(i.operands[3], also, l);
    if (i.combine == Combine::kAnd) return result && p;
    return i.combine == Combine::kOr ? result || p : result != p;
  };
  u64 first[kLanes], second[kLanes];
  for_lanes(mask, [&](int l) {
    const bool result = compare(i, a[l], b[l]);
    first[l] = with(result, l);
    second[l] = with(is_pair(i.type) ? compare(i, a[l] >> 16, b[l] >> 16) : !result, l);
  });
  for (auto [reg, result] : {std::pair(i.operands[0].reg, first), {i.operands[0].second, second}}) {
    if (reg < 0) continue;
    u64* to = warp.reg(reg);
    for_lanes(mask, [&, result = result](int l) { to[l] = result[l]; });
  }
}

void compute_predicate(Warp& warp, const Instruction& i, u64* to, u32 mask) {
  const u64* a = warp.source(i.operands[1]);
  const u64* b = i.operands.size() > 2 ? warp.source(i.operands[2]) : a;
  const Operand& last = i.operands.back();
  for_lanes(mask, [&](int l) {
    const bool x = truth(i.operands[1], a, l), y = truth(last, b, l);
    to[l] = i.op == Op::kAnd   ? x && y
            : i.op == Op::kOr  ? x || y
            : i.op == Op::kXor ? x != y
            : i.op == Op::kNot ? !x
                               : (fault(i.text), false);
  });
}

// Numbers of 16 bits, one or two in a register: computed as float32, then rounded.
void compute_halves(const Instruction& i, u64* to, const u64* a, const u64* b, const u64* c,
                    u32 mask) {
  const bool bfloat = i.type == Type::kBF16 || i.type == Type::kBF16x2;
  u64 result[kLanes] = {};
  for (int shift = 0; shift <= (is_pair(i.type) ? 16 : 0); shift += 16) {
    u64 x[kLanes], y[kLanes], z[kLanes], wide[kLanes];
    for_lanes(mask, [&](int l) {
      x[l] = to_bits(widen(i.type, a[l] >> shift));
      y[l] = b ? to_bits(widen(i.type, b[l] >> shift)) : 0;
      z[l] = c ? to_bits(widen(i.type, c[l] >> shift)) : 0;
    });
    compute_float<float>(i, wide, x, b ? y : nullptr, c ? z : nullptr, mask);
    for_lanes(mask, [&](int l) {
      const float value = from_bits<float>(wide[l]);
      result[l] |= u64(bfloat ? float_to_bfloat(value) : float_to_half(value)) << shift;
    });
  }
  for_lanes(mask, [&](int l) { to[l] = result[l]; });
}

void convert_lanes(const Instruction& i, u64* to, const u64* a, const u64* b, u32 mask) {
  if (!is_pair(i.type)) return for_lanes(mask, [&](int l) { to[l] = convert(i, a[l]); });
  for_lanes(mask, [&](int l) {
    const float upper = from_bits<float>(a[l]), lower = from_bits<float>(b[l]);
    to[l] = i.type == Type::kF16x2 ? u32(float_to_half(upper)) << 16 | float_to_half(lower)
                                   : u32(float_to_bfloat(upper)) << 16 | float_to_bfloat(lower);
  });
}

// mov {a, b}, x
void unpack(Warp& warp, const std::vector<Operand>& parts, const u64* from, int bits, u32 mask) {
  const int each = bits / int(parts.size());
  u64 value[kLanes];
  for_lanes(mask, [&](int l) { value[l] = from[l]; });
  for (size_t part = 0; part < parts.size(); ++part) {
    if (parts[part].reg < 0) continue;
    u64* to = warp.reg(parts[part].reg);
    for_lanes(mask,
              [&](int l) { to[l] = value[l] >> (int(part) * each) & (~u64(0) >> (64 - each)); });
  }
}

// mov x, {a, b}
void pack(Warp& warp, u64* to, const std::vector<Operand>& parts, int bits, u32 mask) {
  const int each = bits / int(parts.size());
  u64 value[kLanes] = {};
  for (size_t part = 0; part < parts.size(); ++part) {
    const u64* from = warp.source(parts[part]);
    for_lanes(mask, [&](int l) {
      value[l] |= (from[l] & (~u64(0) >> (64 - each))) << (int(part) * each);
    });
  }
  for_lanes(mask, [&](int l) { to[l] = value[l]; });
}

}  // namespace

void move(Warp& warp, const Instruction& i, u32 mask) {
  const Operand &target = i.operands[0], &from = i.operands[1];
  const int bits = 8 * size_of(i.type);
  if (!target.parts.empty()) return unpack(warp, target.parts, warp.source(from), bits, mask);
  u64* to = warp.reg(target.reg);
  if (!from.parts.empty()) return pack(warp, to, from.parts, bits, mask);
  const u64* value = warp.source(from);
  if (i.type == Type::kPredicate)
    return for_lanes(mask, [&](int l) { to[l] = truth(from, value, l); });
  const u64 keep = ~u64(0) >> (64 - bits);
  for_lanes(mask, [&](int l) { to[l] = (value[l] + u64(from.offset)) & keep; });
}

void compute(Warp& warp, const Instruction& i, u32 mask) {
  if (i.op == Op::kCompare) return compare_lanes(warp, i, mask);
  const auto operand = [&](size_t n) {
    return i.operands.size() > n ? warp.source(i.operands[n]) : nullptr;
  };
  u64* to = warp.reg(i.operands[0].reg);
  const u64 *a = operand(1), *b = operand(2), *c = operand(3);
  if (i.op == Op::kSelect)
    return for_lanes(mask, [&](int l) { to[l] = truth(i.operands[3], c, l) ? a[l] : b[l]; });
  if (i.op == Op::kConvert) return convert_lanes(i, to, a, b, mask);
  if (i.op == Op::kConvertAddress) {
    const u64 window = i.space == Space::kShared ? kSharedWindow : 0;
    return for_lanes(mask, [&](int l) { to[l] = i.to_space ? a[l] - window : a[l] + window; });
  }
  if (compute_bits(i, to, a, b, c, operand(4), mask)) return;
  if (i.type == Type::kPredicate) return compute_predicate(warp, i, to, mask);
  if (i.type == Type::kF32) return compute_float<float>(i, to, a, b, c, mask);
  if (i.type == Type::kF64) return compute_float<double>(i, to, a, b, c, mask);
  if (is_float(i.type) || is_pair(i.type)) return compute_halves(i, to, a, b, c, mask);
  compute_integer(i, to, a, b, c, mask);
}

}  // namespace ptx
