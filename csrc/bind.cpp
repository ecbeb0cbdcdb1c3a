// The Python module mdssd._C: the entry points of ops.h. Compiled with MDSSD_SIMT it is the tests'
// module mdssd._simt, whose CUDA entry points run on the CPU.
//
// The module does not link against PyTorch. For an array, Python passes an address, None, or any
// object with a method data_ptr(), such as a tensor; for settings, an object with attributes of the
// fields' names.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

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
void bind_call_checks(py::module_& module);
#endif

namespace mdssd {

// The fields of each settings struct. visit(name, field) is called for one after the other; `name`
// is an interned Python string.
#define FIELD(name)                                                      \
  do {                                                                   \
    static PyObject* const interned = PyUnicode_InternFromString(#name); \
    visit(py::handle(interned), settings.name);                          \
  } while (false)

template <class Visit>
void visit_fields(BoxCodingSettings& settings, const Visit& visit) {
  FIELD(v0);
  FIELD(v1);
}

template <class Visit>
void visit_fields(MatchPriorsSettings& settings, const Visit& visit) {
  FIELD(iou_threshold);
  FIELD(iou_eps);
  FIELD(corners);
  FIELD(low_threshold);
  FIELD(force);
  FIELD(top_k);
  FIELD(nwd_constant);
}

template <class Visit>
void visit_fields(EncodeTargetsSettings& settings, const Visit& visit) {
  FIELD(iou_threshold);
  FIELD(v0);
  FIELD(v1);
  FIELD(iou_eps);
  FIELD(low_threshold);
  FIELD(force);
  FIELD(top_k);
  FIELD(nwd_constant);
}

template <class Visit>
void visit_fields(IgnorePriorsSettings& settings, const Visit& visit) {
  FIELD(threshold);
  FIELD(background);
  FIELD(corners);
}

template <class Visit>
void visit_fields(NmsSettings& settings, const Visit& visit) {
  FIELD(iou_threshold);
  FIELD(iou_eps);
  FIELD(ios);
  FIELD(diou);
}

template <class Visit>
void visit_fields(SoftNmsSettings& settings, const Visit& visit) {
  FIELD(gaussian);
  FIELD(iou_threshold);
  FIELD(sigma);
  FIELD(score_threshold);
  FIELD(max_detections);
}

template <class Visit>
void visit_fields(MergeBoxesSettings& settings, const Visit& visit) {
  FIELD(threshold);
  FIELD(method);
  FIELD(ios);
  FIELD(models);
}

template <class Visit>
void visit_fields(MultiboxLossSettings& settings, const Visit& visit) {
  FIELD(neg_pos_ratio);
  FIELD(per_image);
}

template <class Visit>
void visit_fields(SigmoidFocalLossSettings& settings, const Visit& visit) {
  FIELD(positive_weight);
  FIELD(negative_weight);
  FIELD(gamma);
  FIELD(per_image);
  FIELD(normalise);
}

template <class Visit>
void visit_fields(BoxLossSettings& settings, const Visit& visit) {
  FIELD(kind);
  FIELD(v0);
  FIELD(v1);
  FIELD(nwd_constant);
  FIELD(eps);
  FIELD(per_image);
  FIELD(normalise);
}

template <class Visit>
void visit_fields(DetectionOutputSettings& settings, const Visit& visit) {
  FIELD(score_threshold);
  FIELD(nms_threshold);
  FIELD(top_k);
  FIELD(max_detections);
  FIELD(v0);
  FIELD(v1);
  FIELD(softmax);
  FIELD(per_class);
  FIELD(keep_empty);
  FIELD(iou_eps);
  FIELD(max_log_scale);
  FIELD(clip_width);
  FIELD(clip_height);
  FIELD(ios);
  FIELD(sigmoid);
  FIELD(background);
  FIELD(levels);
  FIELD(top_k_per_level);
  FIELD(class_agnostic);
  FIELD(suppression);
  FIELD(soft_sigma);
  FIELD(diou);
}

#undef FIELD

}  // namespace mdssd

namespace {

// Converts the object that Python passes for a parameter of type T.
template <class T>
struct FromPython {
  T value{};
  void read(py::handle from) { value = from.cast<T>(); }
};

template <>
struct FromPython<mdssd::DType> {
  mdssd::DType value{};
  void read(py::handle from) { value = static_cast<mdssd::DType>(from.cast<int>()); }
};

template <class T>
struct FromPython<T*> {
  T* value = nullptr;
#ifdef MDSSD_SIMT
  size_t bytes = 0;  // of a tensor
#endif
  void read(py::handle from) {
    static PyObject* const data_ptr = PyUnicode_InternFromString("data_ptr");
    if (from.is_none()) return;
    py::object address = py::reinterpret_borrow<py::object>(from);
    if (!PyLong_Check(from.ptr())) {
      address = py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(from.ptr(), data_ptr));
      if (!address) throw py::error_already_set();
    }
    value = static_cast<T*>(PyLong_AsVoidPtr(address.ptr()));
    if (PyErr_Occurred()) throw py::error_already_set();
#ifdef MDSSD_SIMT
    if (py::hasattr(from, "nbytes")) bytes = from.attr("nbytes").cast<size_t>();
#endif
  }
};

template <class T>
struct FromPython<const T&> {  // settings
  T value{};
  void read(py::handle from) {
    // A tuple has the fields in the same order (a test compares them), and is faster to read.
    PyObject* const tuple = PyTuple_Check(from.ptr()) ? from.ptr() : nullptr;
    Py_ssize_t place = 0;
    visit_fields(value, [&](py::handle name, auto& field) {
      using Field = std::decay_t<decltype(field)>;
      if (tuple && place < PyTuple_GET_SIZE(tuple))
        field = py::handle(PyTuple_GET_ITEM(tuple, place++)).cast<Field>();
      else
        field = from.attr(name).template cast<Field>();
    });
  }
};

}  // namespace

// One conversion for all parameters: that of FromPython, when the call's arguments are loaded.
namespace pybind11::detail {
template <class T>
struct type_caster<FromPython<T>> {
  PYBIND11_TYPE_CASTER(FromPython<T>, const_name("object"));
  bool load(handle from, bool) {
    value.read(from);
    return true;
  }
};
}  // namespace pybind11::detail

namespace {

#ifdef MDSSD_SIMT
template <class T>
void add_array(std::vector<simt::Array>&, const FromPython<T>&) {}
template <class T>
void add_array(std::vector<simt::Array>& arrays, const FromPython<T*>& argument) {
  if (argument.value) arrays.push_back({argument.value, argument.bytes});
}

// Returns the arrays among the arguments, or none if the size of one is unknown.
template <class... Parameters>
std::vector<simt::Array> arrays_of(const FromPython<Parameters>&... arguments) {
  std::vector<simt::Array> arrays;
  (add_array(arrays, arguments), ...);
  for (const simt::Array& array : arrays)
    if (array.bytes == 0) return {};
  return arrays;
}
#endif

template <class Result, class... Parameters>
void bind(py::module_& module, const char* name, Result (*function)(Parameters...)) {
  module.def(
      name,
      [function](const FromPython<Parameters>&... arguments) {
#ifdef MDSSD_SIMT
        const simt::Call call(arrays_of(arguments...));
#endif
        return function(arguments.value...);
      },
      py::call_guard<py::gil_scoped_release>());
}

// The names of a settings struct's fields, for the test that compares them with Python's.
template <class Settings>
py::list field_names() {
  py::list names;
  Settings settings{};
  visit_fields(settings, [&](py::handle name, auto&) { names.append(name); });
  return names;
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
  MDSSD_BIND(ignore_priors_cpu);
  MDSSD_BIND(nms_cpu);
  MDSSD_BIND(soft_nms_cpu);
  MDSSD_BIND(merge_boxes_cpu);
  MDSSD_BIND(detection_output_cpu);
  MDSSD_BIND(l2norm_cpu);
  MDSSD_BIND(l2norm_backward_cpu);
  MDSSD_BIND(l2norm_add_relu_cpu);
  MDSSD_BIND(l2norm_add_relu_backward_cpu);
  MDSSD_BIND(multibox_loss_cpu);
  MDSSD_BIND(multibox_loss_backward_cpu);
  MDSSD_BIND(sigmoid_focal_loss_cpu);
  MDSSD_BIND(sigmoid_focal_loss_backward_cpu);
  MDSSD_BIND(box_loss_cpu);
  MDSSD_BIND(box_loss_backward_cpu);
  MDSSD_BIND(resize_cpu);
  MDSSD_BIND(largest_cpu);
  MDSSD_BIND(number_cpu);
  MDSSD_BIND(lowest_cpu);
}
#endif

#if defined(MDSSD_SIMT) || defined(MDSSD_WITH_CUDA)
void bind_cuda(py::module_& module) {
  module.def("launch_count", [] { return mdssd::launch_count().load(); });
  MDSSD_BIND(box_iou_cuda);
  MDSSD_BIND(box_iou_backward_cuda);
  MDSSD_BIND(encode_boxes_cuda);
  MDSSD_BIND(encode_boxes_backward_cuda);
  MDSSD_BIND(decode_boxes_cuda);
  MDSSD_BIND(decode_boxes_backward_cuda);
  MDSSD_BIND(match_priors_workspace);
  MDSSD_BIND(match_priors_cuda);
  MDSSD_BIND(encode_targets_cuda);
  MDSSD_BIND(ignore_priors_cuda);
  MDSSD_BIND(nms_workspace);
  MDSSD_BIND(nms_cuda);
  MDSSD_BIND(soft_nms_cuda);
  MDSSD_BIND(merge_parents_cuda);
  MDSSD_BIND(merge_members_cuda);
  MDSSD_BIND(merge_fused_workspace);
  MDSSD_BIND(merge_fused_cuda);
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
  MDSSD_BIND(group_sums_workspace);
  MDSSD_BIND(sigmoid_focal_loss_cuda);
  MDSSD_BIND(sigmoid_focal_loss_backward_cuda);
  MDSSD_BIND(box_loss_cuda);
  MDSSD_BIND(box_loss_backward_cuda);
  MDSSD_BIND(resize_cuda);
}
#endif

#undef MDSSD_BIND

void bind_settings_fields(py::module_& module) {
  py::dict fields;
#define MDSSD_FIELDS(name) fields[#name] = field_names<mdssd::name>()
  MDSSD_FIELDS(BoxCodingSettings);
  MDSSD_FIELDS(MatchPriorsSettings);
  MDSSD_FIELDS(IgnorePriorsSettings);
  MDSSD_FIELDS(EncodeTargetsSettings);
  MDSSD_FIELDS(NmsSettings);
  MDSSD_FIELDS(SoftNmsSettings);
  MDSSD_FIELDS(MergeBoxesSettings);
  MDSSD_FIELDS(MultiboxLossSettings);
  MDSSD_FIELDS(SigmoidFocalLossSettings);
  MDSSD_FIELDS(BoxLossSettings);
  MDSSD_FIELDS(DetectionOutputSettings);
#undef MDSSD_FIELDS
  module.attr("settings_fields") = fields;
}

}  // namespace

#ifdef MDSSD_SIMT
PYBIND11_MODULE(_simt, module) {
  bind_settings_fields(module);
  module.def("set_shuffle", &simt::set_shuffle);
#ifdef SIMT_CHECKED
  module.attr("checked") = true;
#else
  module.attr("checked") = false;
#endif
  bind_faults(module);
  bind_cuda(module);
}
#else
PYBIND11_MODULE(_C, module) {
  bind_build_info(module);
  bind_call_checks(module);
  bind_settings_fields(module);
  bind_cpu(module);
#ifdef MDSSD_WITH_CUDA
  bind_cuda(module);
#endif
}
#endif
