// The functions of the CUDA runtime that nvcc's host code and csrc/cuda call. The memory of the
// device is that of the host, and a launch has ended when it returns.
#include <cstdlib>

#include "interface.h"

namespace {

struct Dim {
  unsigned x, y, z;
};
struct Configuration {
  Dim grid, block;
  size_t shared;
  void* stream;
};

constexpr int kNoKernel = 98, kIllegalAddress = 700, kLaunchFailed = 719;  // cudaError_t

thread_local Configuration configuration;
thread_local int last_error = 0;
thread_local std::string last_message;

// The name of each kernel by the address of its host function.
std::map<const void*, std::string>& host_functions() {
  static std::map<const void*, std::string> functions;
  return functions;
}

int fail(int error, const std::string& message) {
  last_message = message;
  return last_error = error;
}

}  // namespace

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*,
                            void*, void*, int*) {
  host_functions()[host] = name;
}

unsigned __cudaPushCallConfiguration(Dim grid, Dim block, size_t shared, void* stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}
int __cudaPopCallConfiguration(Dim* grid, Dim* block, size_t* shared, void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<void**>(stream) = configuration.stream;
  return 0;
}

int __cudaGetKernel(void** kernel, const void* host) {
  *kernel = const_cast<void*>(host);
  return 0;
}
int __cudaLaunchKernel(void* kernel, Dim grid, Dim block, void** arguments, size_t shared, void*) {
  const auto name = host_functions().find(kernel);
  if (name == host_functions().end()) return fail(kNoKernel, "a kernel that is not registered");
  const std::string wrong = ptx::launch(name->second, &grid.x, &block.x, arguments, shared);
  return wrong.empty() ? 0 : fail(kLaunchFailed, wrong);
}
int cudaLaunchKernel(const void* host, Dim grid, Dim block, void** arguments, size_t shared,
                     void* stream) {
  return __cudaLaunchKernel(const_cast<void*>(host), grid, block, arguments, shared, stream);
}

int cudaGetLastError() {
  const int error = last_error;
  last_error = 0;
  return error;
}
const char* cudaGetErrorString(int error) { return error ? last_message.c_str() : "no error"; }

int cudaGetDevice(int* device) {
  *device = 0;
  return 0;
}
int cudaSetDevice(int) { return 0; }
int cudaGetDeviceCount(int* count) {
  *count = 1;
  return 0;
}
int cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return 0;
}
int cudaDriverGetVersion(int* version) { return cudaRuntimeGetVersion(version); }
int cudaFuncGetAttributes(void*, const void* host) {
  return host_functions().count(host) ? 0 : fail(kNoKernel, "a kernel that is not registered");
}

int cudaMalloc(void** memory, size_t bytes) { return posix_memalign(memory, 256, bytes + !bytes); }
int cudaFree(void* memory) {
  std::free(memory);
  return 0;
}
int cudaMemcpy(void* to, const void* from, size_t bytes, int) {
  std::memcpy(to, from, bytes);
  return 0;
}
int cudaMemsetAsync(void* memory, int value, size_t bytes, void*) {
  if (bytes && !ptx::in_an_array(reinterpret_cast<ptx::u64>(memory), bytes))
    return fail(kIllegalAddress, "cudaMemsetAsync: memory outside all arrays");
  std::memset(memory, value, bytes);
  return 0;
}

}  // extern "C"
