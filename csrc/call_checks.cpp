// Tells whether an argument of an operator is as expected: a question that every call asks for each
// tensor.
//
// It is asked here because, at the smallest sizes, it takes longer in Python than the kernel does. A
// "no" is no error: Python then looks again and raises the error. Like bind.cpp, this file does not
// know PyTorch: it reads attributes of Python objects.
#include <pybind11/pybind11.h>

namespace py = pybind11;

namespace {

py::object attribute(PyObject* object, const char* interned_name, PyObject*& name) {
  if (!name) name = PyUnicode_InternFromString(interned_name);
  return py::reinterpret_steal<py::object>(PyObject_GetAttr(object, name));
}

bool is_one_of(PyObject* object, PyObject* tuple) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(tuple); ++i)
    if (PyTuple_GET_ITEM(tuple, i) == object) return true;
  return false;
}

// Whether a shape is as expected: a number must match, a string stands for any number, and None, as
// the first, for any leading numbers. Only plain ints are compared.
bool same_shape(PyObject* got, PyObject* want) {
  if (!PyTuple_Check(got) || !PyTuple_Check(want)) return false;
  const Py_ssize_t sizes = PyTuple_GET_SIZE(got);
  const bool any_leading = PyTuple_GET_SIZE(want) > 0 && PyTuple_GET_ITEM(want, 0) == Py_None;
  const Py_ssize_t named = PyTuple_GET_SIZE(want) - any_leading;
  if (any_leading ? sizes < named : sizes != named) return false;
  for (Py_ssize_t i = 0; i < named; ++i) {
    PyObject* const size = PyTuple_GET_ITEM(got, sizes - named + i);
    PyObject* const expected = PyTuple_GET_ITEM(want, i + any_leading);
    if (!PyLong_CheckExact(size)) return false;
    if (PyUnicode_CheckExact(expected)) continue;
    if (!PyLong_CheckExact(expected) || PyLong_AsSsize_t(size) != PyLong_AsSsize_t(expected))
      return false;
  }
  return true;
}

// fits(tensor, shape, dtypes, like): whether the tensor is of an ordinary class and has this shape,
// one of these dtypes and, unless `like` is None, the device of that tensor.
PyObject* fits(PyObject* classes, PyObject* const* args, Py_ssize_t count) {
  if (count != 4) return PyErr_Format(PyExc_TypeError, "fits: expected 4 arguments, got %zd", count);
  static PyObject *shape, *dtype, *device;
  PyObject* const tensor = args[0];
  PyObject* const like = args[3];
  bool fit = is_one_of(reinterpret_cast<PyObject*>(Py_TYPE(tensor)), classes);
  if (fit) {
    const py::object got = attribute(tensor, "shape", shape);
    if (!got) return nullptr;
    fit = same_shape(got.ptr(), args[1]);
  }
  if (fit) {
    const py::object got = attribute(tensor, "dtype", dtype);
    if (!got) return nullptr;
    fit = is_one_of(got.ptr(), args[2]);
  }
  if (fit && like != Py_None) {
    const py::object own = attribute(tensor, "device", device);
    const py::object other = attribute(like, "device", device);
    if (!own || !other) return nullptr;
    const int same = PyObject_RichCompareBool(own.ptr(), other.ptr(), Py_EQ);
    if (same < 0) return nullptr;
    fit = same != 0;
  }
  return PyBool_FromLong(fit);
}

PyMethodDef kFits = {"fits", reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&fits)),
                     METH_FASTCALL, nullptr};

}  // namespace

void bind_call_checks(py::module_& module) {
  // The function `fits` for these classes of tensors.
  module.def("fits_of", [](const py::tuple& classes) {
    return py::reinterpret_steal<py::object>(PyCFunction_New(&kFits, classes.ptr()));
  });
}
