// The Python module mdssd._C: the entry points of ops.h, taking addresses as integers. Compiled with
// MDSSD_SIMT it is the tests' module mdssd._simt, whose CUDA entry points run on the CPU.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <type_traits>

#include "ops.h"
#if defined(MDSSD_SIMT) || defined(MDSSD_WITH_CUDA)
#include "cuda/runtime.h"
#endif

namespace py = pybind11;

#ifdef MDSSD_SIMT
void bind_faults(py::module_& module);
#else
void bind_build_info(py::module_& module);
#endif

namespace {

// Python passes an address for a pointer and a number for a DType.
template <class T>
using FromPython =
    std::conditional_t<std::is_pointer_v<T>, uintptr_t,
                       std::conditional_t<std::is_same_v<T, mdssd::DType>, int, T>>;

template <class T>
T to_native(FromPython<T> value) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(value);
  } else {
    return static_cast<T>(value);
  }
}

template <class Result, class... Arguments>
void bind(py::module_& module, const char* name, Result (*function)(Arguments...)) {
  module.def(
      name,
      [function](FromPython<Arguments>... arguments) {
        return function(to_native<Arguments>(arguments)...);
      },
      py::call_guard<py::gil_scoped_release>());
}

#define MDSSD_BIND(name) bind(module, #name, mdssd::name)

#ifndef MDSSD_SIMT
void bind_cpu(py::module_& module) {
  MDSSD_BIND(box_iou_cpu);
  MDSSD_BIND(box_iou_backward_cpu);
  MDSSD_BIND(encode_boxes_cpu);
  MDSSD_BIND(encode_boxes_backward_cpu);
  MDSSD_BIND(decode_boxes_cpu);
  MDSSD_BIND(decode_boxes_backward_cpu);
  MDSSD_BIND(match_priors_cpu);
  MDSSD_BIND(encode_targets_cpu);
  MDSSD_BIND(nms_cpu);
  MDSSD_BIND(detection_output_cpu);
  MDSSD_BIND(l2norm_cpu);
  MDSSD_BIND(l2norm_backward_cpu);
  MDSSD_BIND(l2norm_add_relu_cpu);
  MDSSD_BIND(l2norm_add_relu_backward_cpu);
  MDSSD_BIND(multibox_loss_cpu);
  MDSSD_BIND(multibox_loss_backward_cpu);
  MDSSD_BIND(resize_cpu);
}
#endif

#if defined(MDSSD_SIMT) || defined(MDSSD_WITH_CUDA)
void bind_cuda(py::module_& module) {
  module.def("launch_count", [] { return mdssd::launch_count(); });
  MDSSD_BIND(box_iou_cuda);
  MDSSD_BIND(box_iou_backward_cuda);
  MDSSD_BIND(encode_boxes_cuda);
  MDSSD_BIND(encode_boxes_backward_cuda);
  MDSSD_BIND(decode_boxes_cuda);
  MDSSD_BIND(decode_boxes_backward_cuda);
  MDSSD_BIND(match_priors_workspace);
  MDSSD_BIND(match_priors_cuda);
  MDSSD_BIND(encode_targets_cuda);
  MDSSD_BIND(nms_workspace);
  MDSSD_BIND(nms_cuda);
  MDSSD_BIND(detection_output_cuda);
  MDSSD_BIND(detection_output_workspace);
  MDSSD_BIND(l2norm_cuda);
  MDSSD_BIND(l2norm_backward_cuda);
  MDSSD_BIND(l2norm_add_relu_cuda);
  MDSSD_BIND(l2norm_add_relu_backward_cuda);
  MDSSD_BIND(l2norm_workspace);
  MDSSD_BIND(multibox_loss_cuda);
  MDSSD_BIND(multibox_loss_workspace);
  MDSSD_BIND(multibox_loss_backward_cuda);
  MDSSD_BIND(resize_cuda);
}
#endif

#undef MDSSD_BIND

}  // namespace

#ifdef MDSSD_SIMT
PYBIND11_MODULE(_simt, module) {
  module.def("set_shuffle", &simt::set_shuffle);
  bind_faults(module);
  bind_cuda(module);
}
#else
PYBIND11_MODULE(_C, module) {
  bind_build_info(module);
  bind_cpu(module);
#ifdef MDSSD_WITH_CUDA
  bind_cuda(module);
#endif
}
#endif
