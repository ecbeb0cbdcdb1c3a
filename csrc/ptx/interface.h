// What runs a kernel by its name.
#pragma once

#include "machine.h"

namespace ptx {

// The kernels of the files *.ptx beside this module, and those that were added.
Kernels& kernels();

// Runs a kernel. Returns an error message, which is empty if the launch succeeded.
std::string launch(const std::string& name, const u32* grid, const u32* block, void** arguments,
                   size_t dynamic);

}  // namespace ptx
