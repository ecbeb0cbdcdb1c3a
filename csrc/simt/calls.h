// Which memory a call of an operator may access. The checked build of csrc/simt and csrc/ptx each
// define Call. nvcc, which does not read simt.h, reads this file for faults.cu.
#pragma once

#include <cstddef>
#include <vector>

namespace simt {

struct Array {
  const void* begin;
  size_t bytes;
};

// Limits the launches of this host thread to the arrays, if there are any, while the object exists.
// Without an object, any address is good.
class Call {
 public:
  explicit Call(std::vector<Array> arrays);
  ~Call();
  Call(const Call&) = delete;
  void operator=(const Call&) = delete;
};

}  // namespace simt
