// Functions that are part of their caller: on the host, and under nvcc on the device too.
#pragma once

#ifdef __CUDACC__
#define MDSSD_INLINE __host__ __device__ __forceinline__
#else
#define MDSSD_INLINE inline __attribute__((always_inline))
#endif
