// Storage types, conversions between them and the type used for computation, and the selection of a
// template by dtype, on the host and on the device.
//
// The device converts with single instructions. The host uses integer arithmetic without branches,
// which compilers vectorise for any instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#include "inline.h"
#include "ops.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace mdssd {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class S>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <class S>
using Wide = typename WideOf<S>::type;

template <class To, class From>
MDSSD_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

MDSSD_INLINE float widen(float x) { return x; }
MDSSD_INLINE double widen(double x) { return x; }
MDSSD_INLINE float widen(BFloat16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }
MDSSD_INLINE float widen(Half x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13, sign = (x.bits & 0x8000u) << 16;
  // Multiplying by 2^112 changes the exponent's bias from 15 to 127, also for subnormals.
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;  // infinity, or a NaN with its mantissa
  return bit_cast<float>((magnitude >= 0x0f800000u ? special : finite) | sign);
#endif
}

template <class S>
MDSSD_INLINE S narrow(Wide<S> x) {
  return x;
}
template <>
MDSSD_INLINE BFloat16 narrow<BFloat16>(float x) {
#ifdef __CUDA_ARCH__
  // Up to CUDA 12.1, __bfloat16_as_ushort exists from sm_80 on only.
  return {static_cast<__nv_bfloat16_raw>(__float2bfloat16_rn(x)).x};
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest even
  return {uint16_t((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded)};
#endif
}
template <>
MDSSD_INLINE Half narrow<Half>(float x) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(x))};
#else
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t magnitude = bits & 0x7fffffffu, sign = (bits >> 16) & 0x8000u;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14, adding 0.5 shifts the mantissa into place and rounds it.
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  return {uint16_t((magnitude >= 0x47800000u ? special : finite) | sign)};
#endif
}

template <class S>
struct Storage {
  using type = S;
};

// Calls body(Storage<S>{}) with the S that `dtype` names.
template <class Body>
void with_storage(DType dtype, Body body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(Storage<float>{});
    case DType::kFloat16:
      return body(Storage<Half>{});
    case DType::kBFloat16:
      return body(Storage<BFloat16>{});
    case DType::kFloat64:
      return body(Storage<double>{});
  }
}

// Same, for operators whose inputs are stored in the type of the computation.
template <class Body>
void with_wide(DType dtype, Body body) {
  dtype == DType::kFloat64 ? body(Storage<double>{}) : body(Storage<float>{});
}

}  // namespace mdssd
