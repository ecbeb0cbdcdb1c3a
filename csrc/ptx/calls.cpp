// Which memory a launch may access.
#include "../simt/calls.h"

#include <dlfcn.h>

#include "settings.h"

namespace {

thread_local std::vector<simt::Array> arrays_of_call;

}  // namespace

simt::Call::Call(std::vector<Array> arrays) { arrays_of_call = std::move(arrays); }
simt::Call::~Call() { arrays_of_call.clear(); }

bool ptx::in_an_array(u64 address, u64 bytes) {
  for (const simt::Array& array : arrays_of_call) {
    const u64 begin = reinterpret_cast<u64>(array.begin);
    if (address >= begin && address + bytes <= begin + array.bytes) return true;
  }
  if (!arrays_of_call.empty()) return false;
  using Find = int (*)(u64, u64);
  static const auto find = reinterpret_cast<Find>(dlsym(RTLD_DEFAULT, "mdssd_ptx_in_an_array"));
  return !find || find(address, bytes);
}
