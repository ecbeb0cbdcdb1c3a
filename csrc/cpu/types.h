// Storage types, and MDSSD_SIMD for functions that are compiled for several instruction sets.
#pragma once

#include "../storage.h"

// GCC compiles one clone of the function per level of x86-64, and glibc's indirect functions choose
// one when the module is loaded. GCC 11 does not accept the levels' names here.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#if __GNUC__ >= 12
#define MDSSD_SIMD __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define MDSSD_SIMD __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define MDSSD_SIMD
#endif
