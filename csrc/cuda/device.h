// Queries the CUDA runtime and the devices of this machine.
#pragma once

#include <string>

// Returns the version of the linked CUDA runtime as 1000 * major + 10 * minor.
int cuda_runtime_version();

// Returns the number of devices that the driver reports, or 0 without a driver.
int cuda_device_count();

// Runs a kernel on the device. Returns an empty string on success and the CUDA error otherwise, for
// example if this build contains no code for the device's architecture.
std::string cuda_device_fault(int device);
