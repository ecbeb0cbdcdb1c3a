// Included by every kernel file: CUDA, or simt.h when g++ compiles the kernels for the CPU;
// functions for launches and workspaces; and small device functions.
#pragma once

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "../simt/simt.h"
#endif

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../box_math.h"
#include "../storage.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace mdssd {

constexpr int kWarpSize = 32;  // CUDA's warpSize is not a constant expression
constexpr unsigned kAllLanes = 0xffffffffu;

// The number of kernels and memory operations that this process has launched, from all threads.
inline std::atomic<int64_t>& launch_count() {
  static std::atomic<int64_t> count{0};
  return count;
}

#ifdef __CUDACC__
inline void check_cuda(const char* op, cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(op) + ": CUDA: " + cudaGetErrorString(status));
}
#endif

// Launches kernel(arguments...) after converting the arguments to the kernel's parameters. Does
// nothing if the grid is empty, as it is for empty tensors.
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
#ifdef __SANITIZE_ADDRESS__
  // Several arrays of a workspace are zeroed at once, with the guards between them (see Workspace).
  char* const first = static_cast<char*>(memory);
  for (int64_t i = 0; i < bytes; ++i)
    if (!__asan_address_is_poisoned(first + i)) first[i] = 0;
#else
  std::memset(memory, 0, size_t(bytes));
#endif
#endif
}

// Returns the number of blocks for n items, at most `most`. A kernel whose grid may be limited must
// loop over the remaining items.
inline unsigned grid_size(int64_t n, int64_t per_block, int64_t most = 0x7fffffff) {
  const int64_t blocks = (n + per_block - 1) / per_block;
  return unsigned(blocks < most ? blocks : most);
}

// Allocates arrays from a workspace, each at a multiple of 256 bytes. Without memory, it only
// measures the size that a workspace needs.
//
// At least kGuard unused bytes follow each array, so that a read beyond its end finds memory that
// was never written, which compute-sanitizer's initcheck reports, instead of the next array. On the
// CPU, AddressSanitizer reports reads and writes there, and so does the checked build.
class Workspace {
 public:
  explicit Workspace(void* memory) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    T* array = memory_ ? reinterpret_cast<T*>(memory_ + bytes_) : nullptr;
    const int64_t used = count * int64_t(sizeof(T)), taken = (used + kGuard + 255) / 256 * 256;
#ifdef __SANITIZE_ADDRESS__
    if (memory_) {
      ASAN_UNPOISON_MEMORY_REGION(memory_ + bytes_, size_t(used));
      ASAN_POISON_MEMORY_REGION(memory_ + bytes_ + used, size_t(taken - used));
    }
#endif
#ifdef SIMT_CHECKED
    if (memory_) simt::forbid({memory_ + bytes_, size_t(used)}, size_t(taken - used));
#endif
    bytes_ += taken;
    return array;
  }
  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kGuard = 128;

  char* memory_;
  int64_t bytes_ = 0;
};

// Four consecutive numbers, loaded and stored by one instruction (two for double). Python ensures
// that arrays start at a multiple of 16 bytes.
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

// The math library's exp and log, as arguments for the functions of box_math.h.
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

// Returns e^x for x <= 0, for a sum whose largest term is 1. It takes a single instruction of the
// special function unit. Its relative error grows with -x, but terms with a large error are too
// small to matter in the sum.
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

// Returns the sum over the lanes of a warp to every lane. The order of the additions is fixed.
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

// Returns the sum over a block of up to 32 full warps to every thread. The order of the additions
// is fixed. `scratch` has one T per warp. The first barrier allows consecutive calls to share it.
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
