// Tells Python how this module was built and which CUDA devices it can use, for `mdssd info`.
#include "build_info.h"

#include <pybind11/pybind11.h>

#include <string>

#ifdef MDSSD_WITH_CUDA
#include "cuda/device.h"
#endif

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["compiler"] = MDSSD_COMPILER;
  info["build_type"] = MDSSD_BUILD_TYPE;
#ifdef MDSSD_WITH_CUDA
  info["cuda"] = true;
  info["cuda_runtime"] = cuda_runtime_version();
#else
  info["cuda"] = false;
  info["cuda_runtime"] = 0;
#endif
  info["cuda_off_reason"] = MDSSD_CUDA_OFF_REASON;
  info["nvcc"] = MDSSD_NVCC_VERSION;
  const std::string archs = MDSSD_CUDA_ARCHS;
  info["cuda_archs"] = archs.empty() ? py::list() : py::list(py::str(archs).attr("split")(";"));
  return info;
}

}  // namespace

void bind_build_info(py::module_& module) {
  module.def("build_info", &build_info);
#ifdef MDSSD_WITH_CUDA
  module.def("cuda_device_count", &cuda_device_count,
             py::call_guard<py::gil_scoped_release>());
  module.def("cuda_use_device", &cuda_use_device, py::arg("device"));
  module.def("cuda_build_fault", &cuda_build_fault, py::arg("device"),
             py::call_guard<py::gil_scoped_release>());
  module.def("cuda_device_fault", &cuda_device_fault, py::arg("device"),
             py::call_guard<py::gil_scoped_release>());
#else
  module.def("cuda_device_count", [] { return 0; });
  module.def("cuda_device_fault", [](int) { return std::string("built without CUDA"); },
             py::arg("device"));
#endif
}
