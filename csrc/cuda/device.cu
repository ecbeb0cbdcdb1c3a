#include "cuda/device.h"

#include <cuda_runtime.h>

namespace {

// Shows that code of this build runs on the device.
__global__ void answer_kernel(int* out) { *out = 1; }

}  // namespace

int cuda_runtime_version() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return version;
}

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    cudaGetLastError();  // clears the error, which the next caller would otherwise receive
    return 0;
  }
  return count;
}

std::string cuda_device_fault(int device) {
  int previous = 0;
  cudaError_t status = cudaGetDevice(&previous);
  if (status == cudaSuccess) status = cudaSetDevice(device);
  int* out = nullptr;
  int answer = 0;
  if (status == cudaSuccess) status = cudaMalloc(&out, sizeof(int));
  if (status == cudaSuccess) {
    answer_kernel<<<1, 1>>>(out);
    status = cudaGetLastError();
  }
  if (status == cudaSuccess) {
    status = cudaMemcpy(&answer, out, sizeof(int), cudaMemcpyDeviceToHost);
  }
  cudaFree(out);
  cudaSetDevice(previous);
  cudaGetLastError();
  if (status != cudaSuccess) return cudaGetErrorString(status);
  return answer == 1 ? "" : "a kernel left no result";
}
