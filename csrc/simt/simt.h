// The part of CUDA that csrc/cuda uses, implemented for g++, so that tests can run the kernels on a
// CPU.
//
// Every CUDA thread is a fiber. A fiber runs until it reaches a barrier or a warp intrinsic that
// other threads have not reached yet; then another lane of its warp runs, and another warp when all
// lanes wait. Only one fiber runs at a time, so atomics are plain code. A seed shuffles the order of
// blocks, warps and lanes, and how far a warp runs before another does, which changes any result
// that depends on them.
//
// A launch throws std::runtime_error with the block, thread and line if
//   - a thread ends or waits elsewhere while others wait at a __syncthreads,
//   - the mask of a warp intrinsic omits the caller, or names a lane that does not arrive with the
//     same mask because it has ended, waits elsewhere or does not exist,
//   - a shuffle reads from a lane outside its mask.
// Shared memory is filled with a pattern before each block, so that reading uninitialised values
// shows in the results.
//
// With SIMT_CHECKED, g++ calls a hook before every access to memory (-fsanitize=thread, linked
// without its runtime; simt.cpp has the hooks). A launch then also throws if
//   - an access lies outside the arrays that the operator was given, or between those of a workspace,
//   - two accesses are a data race (races.h): it names both lines and runs to its end before that.
// Under a seed, lanes are switched at accesses too, not only where they wait.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "calls.h"

#define __global__ static
#ifdef SIMT_CHECKED
// g++ calls no hook where a function stores its result directly into an array, so all are inlined.
#define __device__ __attribute__((always_inline))
#else
#define __device__
#endif
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict
// All shared memory of the module lies in one section (shared.ld), which simt.cpp fills before each
// block. For this, kernels must be in mdssd's unnamed namespace.
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// These belong to the fiber that is running.
extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

enum class Exchange { kSync, kShuffle, kBallot, kMatch, kMax };

// Runs call(body) once for each thread of the grid.
void launch(const char* name, dim3 grid, dim3 block, void (*call)(const void*), const void* body);

template <class Body>
void launch(const char* name, dim3 grid, dim3 block, const Body& body) {
  launch(
      name, grid, block, [](const void* it) { (*static_cast<const Body*>(it))(); }, &body);
}

void barrier(const char* file, int line);
// The primitive behind all warp intrinsics. kSync returns nothing of use, kShuffle the value of
// lane `source`, kBallot the lanes whose value is not 0, kMatch the lanes with the caller's value,
// and kMax the largest value.
uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, int source, const char* file,
                  int line);
int lane();

// With seed 0, threads and blocks run in the order of their indices; any other seed determines a
// shuffled order.
void set_shuffle(uint64_t seed);

#ifdef SIMT_CHECKED
// Until the call ends, its launches may access `array`, but not the bytes after it.
void forbid(Array array, size_t bytes_after);
void before_atomic(const void* address, size_t bytes);
#else
inline void before_atomic(const void*, size_t) {}
#endif

// The access of an atomic, which has no hook of its own.
template <class T, class Change>
__attribute__((noinline, no_sanitize("thread"))) T replace(T* address, Change change) {
  const T old = *address;
  *address = change(old);
  return old;
}

template <class T>
uint64_t to_word(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  return word;
}

template <class T>
T from_word(uint64_t word) {
  T value;
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

template <class T>
T shuffle(unsigned mask, T value, int source, const char* file, int line) {
  return from_word<T>(exchange(Exchange::kShuffle, mask, to_word(value), source, file, line));
}

}  // namespace simt

#define SIMT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(SIMT_HERE) { simt::barrier(file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_HERE) {
  simt::exchange(simt::Exchange::kSync, mask, 0, 0, file, line);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SIMT_HERE) {
  return unsigned(simt::exchange(simt::Exchange::kBallot, mask, predicate != 0, 0, file, line));
}
inline int __any_sync(unsigned mask, int predicate, SIMT_HERE) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, SIMT_HERE) {
  return __ballot_sync(mask, predicate, file, line) == mask;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, SIMT_HERE) {
  const uint64_t word = simt::to_word(value);
  return unsigned(simt::exchange(simt::Exchange::kMatch, mask, word, 0, file, line));
}
inline int __reduce_max_sync(unsigned mask, int value, SIMT_HERE) {
  // The offset makes all values positive, so that they compare correctly as unsigned numbers.
  const uint64_t moved = uint64_t(int64_t(value) + (int64_t(1) << 32));
  return int(int64_t(simt::exchange(simt::Exchange::kMax, mask, moved, 0, file, line)) -
             (int64_t(1) << 32));
}
// A segment has `width` lanes. A lane whose source is outside its segment keeps its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIMT_HERE) {
  const int first = simt::lane() & ~(width - 1);
  return simt::shuffle(mask, value, first + (source & (width - 1)), file, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_HERE) {
  const int lane = simt::lane(), first = lane & ~(width - 1);
  const int source = lane - int(delta);
  return simt::shuffle(mask, value, source < first ? lane : source, file, line);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIMT_HERE) {
  const int lane = simt::lane(), end = (lane & ~(width - 1)) + width;
  const int source = lane + int(delta);
  return simt::shuffle(mask, value, source < end ? source : lane, file, line);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, SIMT_HERE) {
  const int lane = simt::lane(), end = (lane & ~(width - 1)) + width;
  const int source = lane ^ bits;
  return simt::shuffle(mask, value, source < end ? source : lane, file, line);
}
#undef SIMT_HERE

template <class T>
struct Same {  // converts the value of an atomic to the type at its address
  using type = T;
};
template <class T>
__forceinline__ T atomicAdd(T* address, typename Same<T>::type value) {
  simt::before_atomic(address, sizeof(T));
  return simt::replace(address, [=](T old) { return T(old + value); });
}
template <class T>
__forceinline__ T atomicMax(T* address, typename Same<T>::type value) {
  simt::before_atomic(address, sizeof(T));
  return simt::replace(address, [=](T old) { return old < value ? value : old; });
}
template <class T>
__forceinline__ T atomicOr(T* address, typename Same<T>::type value) {
  simt::before_atomic(address, sizeof(T));
  return simt::replace(address, [=](T old) { return T(old | value); });
}
inline void __threadfence() {}

template <class T>
T __ldg(const T* address) {
  return *address;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) {
  return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
inline unsigned __float_as_uint(float x) { return simt::from_word<unsigned>(simt::to_word(x)); }
inline float __uint_as_float(unsigned x) { return simt::from_word<float>(x); }

using std::exp;
using std::fabs;
using std::floor;
using std::log;
using std::sqrt;
inline float rsqrt(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }

template <class T>
T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
T max(T a, T b) {
  return a < b ? b : a;
}
