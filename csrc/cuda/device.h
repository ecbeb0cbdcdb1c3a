// What the CUDA side says of itself and of this machine's devices.
#pragma once

#include <string>

// Version of the CUDA runtime linked in: 1000 * major + 10 * minor.
int cuda_runtime_version();

// Devices that the driver offers; 0 without a driver.
int cuda_device_count();

// Runs one kernel on the device. Empty where that works, else the CUDA error: a device of an
// architecture that this build does not hold is found here.
std::string cuda_device_fault(int device);
