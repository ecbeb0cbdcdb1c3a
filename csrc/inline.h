// MDSSD_INLINE marks functions that are always inlined, on the host and, under nvcc, on the device.
#pragma once

#ifdef __CUDACC__
#define MDSSD_INLINE __host__ __device__ __forceinline__
#else
#define MDSSD_INLINE inline __attribute__((always_inline))
#endif
