// Arithmetic by type. `b` and `c` are null where an instruction has no such operand.
#pragma once

#include "lanes.h"

namespace ptx {

template <class T>
void compute_float(const Instruction& i, u64* to, const u64* a, const u64* b, const u64* c,
                   u32 mask);
void compute_integer(const Instruction& i, u64* to, const u64* a, const u64* b, const u64* c,
                     u32 mask);
// Counts, moves and permutes bits. Returns whether the instruction is one of these. `d` is the
// fourth source.
bool compute_bits(const Instruction& i, u64* to, const u64* a, const u64* b, const u64* c,
                  const u64* d, u32 mask);
// cvt of one number.
u64 convert(const Instruction& i, u64 bits);
bool compare(const Instruction& i, u64 a, u64 b);

// Calls the function with a value of the C++ type of an integer type. Returns whether it is one.
template <class Function>
bool with_integer(Type type, const Function& function) {
  switch (type) {
    case Type::kU8:
    case Type::kB8: function(u8{}); return true;
    case Type::kS8: function(s8{}); return true;
    case Type::kU16:
    case Type::kB16: function(u16{}); return true;
    case Type::kS16: function(s16{}); return true;
    case Type::kU32:
    case Type::kB32: function(u32{}); return true;
    case Type::kS32: function(s32{}); return true;
    case Type::kU64:
    case Type::kB64: function(u64{}); return true;
    case Type::kS64: function(s64{}); return true;
    default: return false;
  }
}

}  // namespace ptx
