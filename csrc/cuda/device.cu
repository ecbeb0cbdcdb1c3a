#include "cuda/device.h"

#include <cuda_runtime.h>

#include <stdexcept>

namespace {

// Shows that code of this build runs on the device.
__global__ void answer_kernel(int* out) { *out = 1; }

// Returns "12.4" for 12040.
std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

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

void cuda_use_device(int device) {
  const cudaError_t status = cudaSetDevice(device);
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

std::string cuda_build_fault(int device) {
  int runtime = 0, driver = 0;
  cudaRuntimeGetVersion(&runtime);
  cudaDriverGetVersion(&driver);
  if (driver == 0) return "there is no NVIDIA driver";
  if (driver / 1000 < runtime / 1000) {
    return "the driver supports CUDA up to " + version_text(driver) +
           ", and the kernels were built with CUDA " + version_text(runtime);
  }
  int previous = 0;
  cudaError_t status = cudaGetDevice(&previous);
  if (status == cudaSuccess) status = cudaSetDevice(device);
  cudaFuncAttributes attributes;
  if (status == cudaSuccess) status = cudaFuncGetAttributes(&attributes, answer_kernel);
  cudaSetDevice(previous);
  cudaGetLastError();  // clears the error, which the next caller would otherwise receive
  return status == cudaSuccess ? "" : cudaGetErrorString(status);
}

std::string cuda_device_fault(int device) {
  const std::string fault = cuda_build_fault(device);
  if (!fault.empty()) return fault;
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
