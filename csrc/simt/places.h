// Names places in the code of this module, for the messages of the checked build.
#pragma once

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace simt {

struct Module {
  std::string path;
  uintptr_t base = 0, begin = 0, end = 0;  // of the file's addresses, and of what is mapped
};

inline const Module& this_module() {
  static const Module module = [] {
    Module found;
    Dl_info info = {};
    dladdr(reinterpret_cast<const void*>(&this_module), &info);
    found.path = info.dli_fname;
    found.base = reinterpret_cast<uintptr_t>(info.dli_fbase);
    dl_iterate_phdr(
        [](dl_phdr_info* object, size_t, void* data) {
          auto& module = *static_cast<Module*>(data);
          if (object->dlpi_addr != module.base) return 0;
          module.begin = module.base;
          for (int i = 0; i < object->dlpi_phnum; ++i) {
            const auto& part = object->dlpi_phdr[i];
            if (part.p_type == PT_LOAD)
              module.end = std::max<uintptr_t>(module.end,
                                               module.base + part.p_vaddr + part.p_memsz);
          }
          return 1;
        },
        &found);
    return found;
  }();
  return module;
}

inline bool is_in_module(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  return at >= this_module().begin && at < this_module().end;
}

// Shortens "void mdssd::(anonymous namespace)::scan_kernel<float>(...)" to "scan_kernel".
inline std::string short_name(std::string name) {
  const std::string unnamed = "(anonymous namespace)::";
  for (size_t at; (at = name.find(unnamed)) != std::string::npos;) name.erase(at, unnamed.size());
  if (name.rfind("operator", 0) == 0 || name.find("lambda") == 0) return "a lambda";
  name.resize(std::min(name.find_first_of("<("), name.size()));
  return name.substr(name.find_last_of(" :") + 1);
}

// Returns "nms.cu:184 in scan_kernel" for the call that returns to `code`. A function that was
// inlined is followed by its callers: "radix.h:57 in find_cell, from nms.cu:90 in a_kernel".
inline std::string describe_code(uintptr_t code) {
  const Module& module = this_module();
  char at[32];
  std::snprintf(at, sizeof(at), "0x%zx", size_t(code - 1 - module.base));
  const std::string command = "addr2line -isfC -e '" + module.path + "' " + at + " 2>/dev/null";
  std::string text;
  if (FILE* const pipe = popen(command.c_str(), "r")) {
    char line[4096];
    std::string function;
    for (bool is_name = true; std::fgets(line, sizeof(line), pipe); is_name = !is_name) {
      std::string part(line, std::strcspn(line, "\n"));
      if (is_name) {
        function = short_name(part);
        continue;
      }
      part.resize(std::min(part.find(" ("), part.size()));  // "(discriminator 3)"
      if (part.rfind("simt.h:", 0) == 0) continue;            // inside an atomic
      text += (text.empty() ? "" : ", from ") + part + " in " + function;
    }
    pclose(pipe);
  }
  return text.empty() ? module.path + "+" + at : text;
}

}  // namespace simt
