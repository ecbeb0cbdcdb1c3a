// Queries the CUDA runtime and the devices of this machine.
#pragma once

#include <string>

// Returns the version of the linked CUDA runtime as 1000 * major + 10 * minor.
int cuda_runtime_version();

// Returns the number of devices that the driver reports, or 0 without a driver.
int cuda_device_count();

// Makes the device the calling thread's current one for this module's kernels. PyTorch does the same
// for its own CUDA runtime, but before CUDA 12 that takes effect only when PyTorch next calls it.
void cuda_use_device(int device);

// Returns why this build's kernels cannot run on the device, or an empty string: a driver that is
// older than the CUDA runtime linked in, or no code for the device's architecture. Launches nothing.
std::string cuda_build_fault(int device);

// Runs a kernel on the device. Returns an empty string on success and the CUDA error otherwise, for
// example if this build contains no code for the device's architecture.
std::string cuda_device_fault(int device);
