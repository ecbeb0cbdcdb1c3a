// Kernels with deliberate faults. The tests check that simt.h reports each of them.
#include <pybind11/pybind11.h>

#include "../cuda/runtime.h"

namespace py = pybind11;

namespace mdssd {
namespace {

constexpr int kThreads = 64;

// A correct kernel: every thread reads the number of the next one.
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

// A function that returns its result through memory, because it is too long for g++ to inline it.
template <int kTurns>
__device__ Four<int> four_of(int i, const int* numbers) {
  Four<int> four = {i, i, i, i};
  for (int k = 0; k < kTurns; ++k) {
    const int next = numbers[(i + k) % kThreads];
    four = {four.y + next, four.z ^ next, four.w - next, four.x * next};
    four = next % 3 == 0 ? Four<int>{four.w, four.z, four.y, four.x} : four;
    four = next % 5 == 0 ? Four<int>{four.z, four.x, four.w, four.y} : four;
    if (next % 7 == 0) four.x += numbers[(i + 2 * k) % kThreads];
    if (next % 11 == 0) four.y -= numbers[(i + 3 * k) % kThreads];
  }
  return four;
}

// The other threads read what it has returned.
__global__ void missing_barrier_after_result_kernel(int* out) {
  __shared__ Four<int> fours[kThreads];
  fours[threadIdx.x] = four_of<9>(int(threadIdx.x), out);
  const int sum = fours[(threadIdx.x + 1) % kThreads].x;
  __syncthreads();
  fours[threadIdx.x] = four_of<9>(sum & (kThreads - 1), out);
  __syncthreads();
  out[threadIdx.x] = fours[threadIdx.x].x;
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

// Same as a template, whose shared memory GCC puts elsewhere than that of functions.
template <class T>
__global__ void uninitialised_template_kernel(int* out) {
  __shared__ T numbers[kThreads];
  if (threadIdx.x != 7) numbers[threadIdx.x] = 0;
  __syncthreads();
  out[threadIdx.x] = int(numbers[threadIdx.x]);
}

// One block reads what the other has written to its own shared memory.
__global__ void left_by_a_block_kernel(int* out) {
  __shared__ int numbers[kThreads];
  if (blockIdx.x == 0) numbers[threadIdx.x] = 1;
  __syncthreads();
  if (blockIdx.x == 1) out[threadIdx.x] = numbers[threadIdx.x];
}

// A warp ahead of the others overwrites what they have not read. No result shows it while all warps
// advance at the same pace.
__global__ void overtaking_kernel(int* out) {
  __shared__ int numbers[2];
  for (int turn = 0; turn < 3; ++turn) {
    if (threadIdx.x % kWarpSize == 0) numbers[threadIdx.x / kWarpSize] = turn;
    __syncthreads();
    out[threadIdx.x] += numbers[1 - threadIdx.x / kWarpSize];
  }
}

// Never ends, because one thread is overtaken by the write that it should wait for.
__global__ void endless_kernel(int* out) {
  __shared__ int waiting;
  if (threadIdx.x == 0) waiting = 1;
  __syncthreads();
  if (threadIdx.x == 0) waiting = 2;
  const int seen = waiting;
  while (threadIdx.x >= kWarpSize && __any_sync(kAllLanes, seen != 3)) continue;
  out[threadIdx.x] = seen;
}

// The lanes of a warp exchange numbers through shared memory. The vote between orders no memory.
__global__ void missing_syncwarp_kernel(int* out) {
  __shared__ int numbers[kThreads];
  numbers[threadIdx.x] = int(threadIdx.x);
  __any_sync(kAllLanes, 1);
  out[threadIdx.x] = numbers[threadIdx.x ^ 1];
}

// The one that is right. The first half of each warp waits for itself, then all lanes do.
__global__ void syncwarp_kernel(int* out) {
  __shared__ int numbers[kThreads];
  const int lane = int(threadIdx.x) % kWarpSize;
  numbers[threadIdx.x] = int(threadIdx.x);
  if (lane < 16) __syncwarp(0xffffu);
  const int near = lane < 16 ? numbers[threadIdx.x ^ 1] : 0;
  __syncwarp();
  out[threadIdx.x] = lane < 16 ? near : numbers[threadIdx.x ^ 16];
}

// Only half of the lanes wait for one another.
__global__ void syncwarp_of_half_kernel(int* out) {
  __shared__ int numbers[kThreads];
  const int lane = int(threadIdx.x) % kWarpSize;
  numbers[threadIdx.x] = int(threadIdx.x);
  if (lane < 16) __syncwarp(0xffffu);
  out[threadIdx.x] = numbers[threadIdx.x ^ 16];
}

// Two blocks count threads, with an atomic, and without.
__global__ void atomic_kernel(int* out) { atomicAdd(out, 1); }
__global__ void missing_atomic_kernel(int* out) { *out += 1; }

// A plain read of what other blocks change by atomics; volatile makes it one that may be old.
__global__ void read_beside_atomic_kernel(int* out) {
  if (*out < 1000) atomicAdd(out, 1);
}
__global__ void volatile_beside_atomic_kernel(int* out) {
  if (*static_cast<volatile int*>(out) < 1000) atomicAdd(out, 1);
}

// Neighbouring bytes are no race.
__global__ void bytes_kernel(int* out) {
  reinterpret_cast<char*>(out)[threadIdx.x + kThreads * blockIdx.x] = char(threadIdx.x);
}

// All threads of the first block write beyond the 64 numbers.
__global__ void write_outside_kernel(int* out) { out[threadIdx.x + kThreads] = 1; }
__global__ void read_outside_kernel(int* out) { out[threadIdx.x] = out[int(threadIdx.x) - 1]; }

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
  // `bytes` is the size of `out`, or 0 to allow any address.
  const auto add = [&](const char* name, void (*kernel)(int*), unsigned blocks = 1) {
    faults[name] = py::cpp_function(
        [=](uintptr_t out, size_t bytes) {
          auto* const numbers = reinterpret_cast<int*>(out);
          std::vector<simt::Array> arrays;
          if (bytes != 0) arrays.push_back({numbers, bytes});
          const simt::Call call(arrays);
          mdssd::launch(name, kernel, blocks, mdssd::kThreads, nullptr, numbers);
        },
        py::arg("out"), py::arg("bytes") = 0);
  };
  faults["write_between"] = py::cpp_function([](uintptr_t out, size_t bytes) {
    const simt::Call call({{reinterpret_cast<int*>(out), bytes}});
    mdssd::Workspace memory(reinterpret_cast<int*>(out));
    int* const numbers = memory.take<int>(mdssd::kThreads);
    memory.take<int>(mdssd::kThreads);
    mdssd::launch("write_between", mdssd::write_outside_kernel, 1, mdssd::kThreads, nullptr,
                  numbers);
  });
#define MDSSD_FAULT(name, ...) add(#name, mdssd::name##_kernel, ##__VA_ARGS__)
  MDSSD_FAULT(rotate);
  MDSSD_FAULT(missing_barrier);
  MDSSD_FAULT(missing_barrier_after_result);
  MDSSD_FAULT(partial_barrier);
  MDSSD_FAULT(two_barriers);
  MDSSD_FAULT(mask_too_wide);
  MDSSD_FAULT(mask_without_caller);
  MDSSD_FAULT(masks_differ);
  MDSSD_FAULT(shuffle_outside_mask);
  MDSSD_FAULT(uninitialised_shared);
  add("uninitialised_template", mdssd::uninitialised_template_kernel<int64_t>);
  MDSSD_FAULT(left_by_a_block, 2);
  MDSSD_FAULT(overtaking);
  MDSSD_FAULT(endless);
  MDSSD_FAULT(missing_syncwarp);
  MDSSD_FAULT(syncwarp);
  MDSSD_FAULT(syncwarp_of_half);
  MDSSD_FAULT(atomic, 2);
  MDSSD_FAULT(missing_atomic, 2);
  MDSSD_FAULT(read_beside_atomic, 2);
  MDSSD_FAULT(volatile_beside_atomic, 2);
  MDSSD_FAULT(bytes, 2);
  MDSSD_FAULT(write_outside);
  MDSSD_FAULT(read_outside);
  MDSSD_FAULT(shared_overflow);
  MDSSD_FAULT(misaligned);
#undef MDSSD_FAULT
  module.attr("faults") = faults;
}
