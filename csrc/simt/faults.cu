// Kernels with deliberate faults. The tests check that simt.h reports each of them.
#include <pybind11/pybind11.h>

#include "../cuda/runtime.h"

namespace py = pybind11;

namespace mdssd {
namespace {

constexpr int kThreads = 64;

// The one correct kernel: every thread reads the number of the next one.
__global__ void rotate_kernel(int* out) {
  __shared__ int numbers[kThreads];
  numbers[threadIdx.x] = int(threadIdx.x);
  __syncthreads();
  out[threadIdx.x] = numbers[(threadIdx.x + 1) % kThreads];
}

// Same, without the barrier.
__global__ void missing_barrier_kernel(int* out) {
  __shared__ int numbers[kThreads];
  numbers[threadIdx.x] = int(threadIdx.x);
  out[threadIdx.x] = numbers[(threadIdx.x + 1) % kThreads];
}

// Half of the block never reaches the barrier.
__global__ void partial_barrier_kernel(int* out) {
  if (threadIdx.x < kThreads / 2) __syncthreads();
  out[threadIdx.x] = int(threadIdx.x);
}

// Each half of the block waits at a different barrier.
__global__ void two_barriers_kernel(int* out) {
  if (threadIdx.x < kThreads / 2)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = int(threadIdx.x);
}

// Half of the lanes vote with a mask that names all lanes.
__global__ void mask_too_wide_kernel(int* out) {
  if (threadIdx.x % kWarpSize < 16) out[threadIdx.x] = __any_sync(kAllLanes, 1);
}

__global__ void mask_without_caller_kernel(int* out) {
  out[threadIdx.x] = __any_sync(0xffffu, 1);
}

// All lanes vote, but their masks differ.
__global__ void masks_differ_kernel(int* out) {
  out[threadIdx.x] = __any_sync(threadIdx.x % kWarpSize < 16 ? kAllLanes : 0xffff0000u, 1);
}

__global__ void shuffle_outside_mask_kernel(int* out) {
  if (threadIdx.x % kWarpSize < 16) out[threadIdx.x] = __shfl_sync(0xffffu, int(threadIdx.x), 20);
}

__global__ void uninitialised_shared_kernel(int* out) {
  __shared__ int numbers[kThreads];
  if (threadIdx.x != 7) numbers[threadIdx.x] = 0;
  __syncthreads();
  out[threadIdx.x] = numbers[threadIdx.x];
}

// For AddressSanitizer: writes one element past the end of the array. The volatile pointer keeps
// the compiler from seeing it.
__global__ void shared_overflow_kernel(int* out) {
  __shared__ int numbers[kThreads];
  numbers[threadIdx.x] = 0;
  __syncthreads();
  int* volatile scratch = numbers;
  if (threadIdx.x == 0) scratch[out[0]] = 1;
  out[threadIdx.x] = numbers[threadIdx.x];
}

// For UndefinedBehaviorSanitizer: the address is four bytes off the alignment of Four.
__global__ void misaligned_kernel(int* out) {
  reinterpret_cast<Four<float>*>(out + 1)[threadIdx.x / 8] = {0, 0, 0, 0};
}

}  // namespace
}  // namespace mdssd

void bind_faults(py::module_& module) {
  py::dict faults;
#define MDSSD_FAULT(name)                                                                     \
  faults[#name] = py::cpp_function([](uintptr_t out) {                                        \
    mdssd::launch(#name, mdssd::name##_kernel, 1, mdssd::kThreads, nullptr,                   \
                  reinterpret_cast<int*>(out));                                               \
  })
  MDSSD_FAULT(rotate);
  MDSSD_FAULT(missing_barrier);
  MDSSD_FAULT(partial_barrier);
  MDSSD_FAULT(two_barriers);
  MDSSD_FAULT(mask_too_wide);
  MDSSD_FAULT(mask_without_caller);
  MDSSD_FAULT(masks_differ);
  MDSSD_FAULT(shuffle_outside_mask);
  MDSSD_FAULT(uninitialised_shared);
  MDSSD_FAULT(shared_overflow);
  MDSSD_FAULT(misaligned);
#undef MDSSD_FAULT
  module.attr("faults") = faults;
}
