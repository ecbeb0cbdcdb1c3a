// Work on the lanes of a warp, and numbers of every type as the 64 bits of a register.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "program.h"

namespace ptx {

template <class Function>
void for_lanes(u32 mask, const Function& function) {
  if (mask == kAllLanes)
    for (int lane = 0; lane < kLanes; ++lane) function(lane);
  else
    for (; mask; mask &= mask - 1) function(__builtin_ctz(mask));
}

template <class T>
T from_bits(u64 bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <class T>
u64 to_bits(T value) {
  u64 bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T, class Function>
void map(u64* to, const u64* a, u32 mask, const Function& function) {
  for_lanes(mask, [&](int l) { to[l] = to_bits(function(from_bits<T>(a[l]))); });
}

template <class T, class Function>
void map(u64* to, const u64* a, const u64* b, u32 mask, const Function& function) {
  for_lanes(mask,
            [&](int l) { to[l] = to_bits(function(from_bits<T>(a[l]), from_bits<T>(b[l]))); });
}

// A NaN that arithmetic produces is the one of the GPU. Float64 keeps the bits of its operand.
inline float canonical(float x) { return x != x ? from_bits<float>(0x7fffffff) : x; }
inline double canonical(double x) { return x; }

// Replaces a subnormal number by zero of its sign.
inline float flushed(float x) {
  const u32 bits = u32(to_bits(x));
  return (bits & 0x7f800000) == 0 ? from_bits<float>(bits & 0x80000000u) : x;
}
inline double flushed(double x) { return x; }

inline float half_to_float(u16 x) { return _cvtsh_ss(x); }
inline u16 float_to_half(float x) { return x != x ? u16(0x7fff) : u16(_cvtss_sh(x, 0)); }
inline float bfloat_to_float(u16 x) { return from_bits<float>(u64(x) << 16); }
inline u16 float_to_bfloat(float x) {
  if (x != x) return 0x7fff;
  const u32 bits = u32(to_bits(x));
  return u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline float widen(Type type, u64 x) {
  const bool half = type == Type::kF16 || type == Type::kF16x2;
  return half ? half_to_float(u16(x)) : bfloat_to_float(u16(x));
}

}  // namespace ptx
