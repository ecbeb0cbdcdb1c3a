// What every kernel file includes: CUDA, or under g++ its stand-in; launches; small device functions.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "../simt/simt.h"
#endif

#include <cstdint>
#include <stdexcept>
#include <string>

#include "../box_math.h"
#include "../storage.h"

namespace mdssd {

constexpr int kWarpSize = 32;  // of every GPU so far; CUDA's warpSize is no constant
constexpr unsigned kAllLanes = 0xffffffffu;

// Kernels and memory operations launched by this process.
inline int64_t& launch_count() {
  static int64_t count = 0;
  return count;
}

#ifdef __CUDACC__
inline void check_cuda(const char* op, cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(op) + ": CUDA: " + cudaGetErrorString(status));
}
#endif

// Launches kernel(arguments...), whose parameters the arguments convert to. Nothing to do, as of an
// empty tensor, launches nothing.
template <class... Parameters, class... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), dim3 blocks, dim3 threads, Stream stream,
            Arguments... arguments) {
  if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0) return;
  ++launch_count();
#ifdef __CUDACC__
  kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(Parameters(arguments)...);
  check_cuda(op, cudaGetLastError());
#else
  (void)stream;
  simt::launch(op, blocks, threads, [&] { kernel(Parameters(arguments)...); });
#endif
}

inline void zero(const char* op, void* memory, int64_t bytes, Stream stream) {
  if (bytes == 0) return;
  ++launch_count();
#ifdef __CUDACC__
  check_cuda(op, cudaMemsetAsync(memory, 0, size_t(bytes), static_cast<cudaStream_t>(stream)));
#else
  (void)op, (void)stream;
  std::memset(memory, 0, size_t(bytes));
#endif
}

// Blocks for n items; a kernel whose grid may be cut short strides over the rest.
inline unsigned grid_size(int64_t n, int64_t per_block, int64_t most = 0x7fffffff) {
  const int64_t blocks = (n + per_block - 1) / per_block;
  return unsigned(blocks < most ? blocks : most);
}

// Hands out the arrays of a workspace; with no memory it measures one.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    T* array = memory_ ? reinterpret_cast<T*>(memory_ + bytes_) : nullptr;
    bytes_ += (count * int64_t(sizeof(T)) + 255) / 256 * 256;
    return array;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

// Four neighbours in memory, moved as one: a box, or a quarter of 16 numbers. Python sees to it that
// arrays start at a multiple of 16 bytes.
template <class S>
struct alignas(4 * sizeof(S) > 16 ? 16 : 4 * sizeof(S)) Four {
  S x, y, z, w;
};

template <class S>
MDSSD_INLINE Box<Wide<S>> load_box(const S* rows, int64_t i) {
  const Four<S> f = reinterpret_cast<const Four<S>*>(rows)[i];
  return {widen(f.x), widen(f.y), widen(f.z), widen(f.w)};
}

template <class S>
MDSSD_INLINE void store_four(S* rows, int64_t i, Wide<S> a, Wide<S> b, Wide<S> c, Wide<S> d) {
  reinterpret_cast<Four<S>*>(rows)[i] = {narrow<S>(a), narrow<S>(b), narrow<S>(c), narrow<S>(d)};
}

// exp and log as the compiler's library has them: the arguments of box_math.h's functions.
struct Exp {
  template <class T>
  MDSSD_INLINE T operator()(T x) const {
    return exp(x);
  }
};
struct Log {
  template <class T>
  MDSSD_INLINE T operator()(T x) const {
    return log(x);
  }
};

// e^x of a term of a sum whose largest term is 1. One instruction of the special function unit, two
// units in the last place; an error that grows with -x does so on terms that have no weight.
__device__ __forceinline__ float exp_of_term(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
  return y;
#else
  return exp(x);
#endif
}
__device__ __forceinline__ double exp_of_term(double x) { return exp(x); }

// Sum over the lanes of a warp, on every lane, in one fixed order.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

template <class T>
__device__ __forceinline__ T warp_max(T value) {
  for (int step = 16; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
}

// Sum over a block of up to 32 whole warps, on every thread, in one fixed order. `scratch` holds one
// T per warp; the next use of it needs a barrier in between, which the first line is.
template <class T>
__device__ T block_sum(T value, T* scratch) {
  const int thread = int(threadIdx.x), warps = int(blockDim.x) / kWarpSize;
  value = warp_sum(value);
  __syncthreads();
  if (thread % kWarpSize == 0) scratch[thread / kWarpSize] = value;
  __syncthreads();
  const int lane = thread % kWarpSize;
  return warp_sum(lane < warps ? scratch[lane] : T(0));
}

}  // namespace mdssd
