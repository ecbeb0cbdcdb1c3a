// The arrays of a call of an operator, as csrc/simt/simt.h declares them for g++. nvcc does not
// read that file, and takes them from here.
#pragma once

#include <cstddef>
#include <vector>

namespace simt {

// The memory that a call may access. An array of 0 bytes is of unknown size.
struct Array {
  const void* begin;
  size_t bytes;
};

// Limits the launches of this thread to the arrays, if there are any, while the object exists.
class Call {
 public:
  explicit Call(std::vector<Array> arrays);
  ~Call();
  Call(const Call&) = delete;
  void operator=(const Call&) = delete;
};

}  // namespace simt
