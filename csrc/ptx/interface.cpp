// What tests call: through csrc/bind.cpp, and by ctypes the functions named mdssd_ptx_*.
#include "interface.h"

#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <sstream>

#include "../cuda/device.h"
#include "../simt/simt.h"

namespace ptx {
namespace {

int from_environment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoi(text) : otherwise;
}

std::mutex& running() {
  static std::mutex mutex;
  return mutex;
}

// The last text that a function below returned.
thread_local std::string answer;

const char* answered(const std::string& text) {
  answer = text;
  return answer.c_str();
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (char letter : text) {
    if (letter == '"' || letter == '\\') result += '\\';
    result += letter;
  }
  return result + '"';
}

void write_kernel(std::ostream& out, const Kernel& kernel) {
  const Counts& c = kernel.counts;
  size_t reached = 0;
  for (u64 count : kernel.executed) reached += count != 0;
  out << quoted(kernel.name) << ": {\"title\": " << quoted(kernel.title)
      << ", \"launches\": " << c.launches << ", \"blocks\": " << c.blocks
      << ", \"warps\": " << c.warps << ", \"warp_instructions\": " << c.warp_instructions
      << ", \"thread_instructions\": " << c.thread_instructions
      << ", \"sectors_loaded\": " << c.sectors_loaded
      << ", \"sectors_stored\": " << c.sectors_stored << ", \"wavefronts\": " << c.wavefronts
      << ", \"barriers\": " << c.barriers << ", \"faults\": " << c.faults
      << ", \"instructions\": " << kernel.code.size() << ", \"reached\": " << reached
      << ", \"by_class\": {";
  for (size_t n = 0; n < kClasses; ++n)
    out << (n ? ", " : "") << quoted(kClassNames[n]) << ": " << c.by_class[n];
  out << "}}";
}

// The counts of every kernel and the notes, as JSON.
std::string report() {
  std::ostringstream out;
  const char* separator = "";
  out << "{\"kernels\": {";
  for (const auto& [name, kernel] : kernels()) {
    out << separator << "\n";
    write_kernel(out, *kernel);
    separator = ",";
  }
  out << "},\n\"notes\": {";
  separator = "";
  for (const auto& [text, count] : notes()) {
    out << separator << "\n" << quoted(text) << ": " << count;
    separator = ",";
  }
  out << "}}\n";
  return out.str();
}

// "90" of "_simt.1.sm_90.ptx"
int architecture(const std::filesystem::path& file) {
  const std::string name = file.stem().extension().string();  // ".sm_90"
  return name.compare(0, 4, ".sm_") == 0 ? std::atoi(name.c_str() + 4) : 0;
}

// Reads the files beside this module that its PTX was taken out into, for the newest architecture.
Kernels load_kernels() {
  Dl_info module;
  dladdr(reinterpret_cast<const void*>(&load_kernels), &module);
  const auto folder = std::filesystem::absolute(module.dli_fname).parent_path();
  std::map<int, std::vector<std::filesystem::path>> files;  // by architecture
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    if (entry.path().extension() == ".ptx") files[architecture(entry.path())].push_back(entry);
  Kernels found;
  for (size_t n = 0; !files.empty() && n < files.rbegin()->second.size(); ++n) {
    std::ostringstream text;
    text << std::ifstream(files.rbegin()->second[n]).rdbuf();
    parse(text.str(), found);
  }
  return found;
}

}  // namespace

Settings& settings() {
  static Settings settings = {0, from_environment("MDSSD_PTX_NOISE", 0),
                              from_environment("MDSSD_PTX_ULPS", 1),
                              from_environment("MDSSD_PTX_RACES", 0) != 0};
  return settings;
}

std::map<std::string, u64>& notes() {
  static std::map<std::string, u64> notes;
  return notes;
}

Kernels& kernels() {
  static Kernels kernels = load_kernels();
  return kernels;
}

std::string launch(const std::string& name, const u32* grid, const u32* block, void** arguments,
                   size_t dynamic) {
  const std::lock_guard<std::mutex> lock(running());
  Kernel* kernel = nullptr;
  try {
    const auto found = kernels().find(name);
    if (found == kernels().end()) return "no PTX of " + name;
    kernel = found->second.get();
    Machine(*kernel, grid, block, arguments, dynamic).run();
    return "";
  } catch (const Fault& fault) {
    if (kernel) ++kernel->counts.faults;
    return fault.text;
  }
}

}  // namespace ptx

void simt::set_shuffle(uint64_t seed) { ptx::settings().seed = seed; }

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void mdssd_ptx_configure(int races, int noise, int ulps, uint64_t limit) {
  ptx::settings().races = races != 0;
  ptx::settings().noise = noise;
  ptx::settings().ulps = ulps;
  ptx::settings().limit = limit;
}

EXPORT void mdssd_ptx_set_environment(uint32_t value) { ptx::settings().environment = value; }

// Adds the kernels of a PTX file. Returns an error message, which is empty if it succeeded.
EXPORT const char* mdssd_ptx_load(const char* text) {
  try {
    ptx::parse(text, ptx::kernels());
    return "";
  } catch (const ptx::Fault& fault) {
    return ptx::answered(fault.text);
  }
}

EXPORT const char* mdssd_ptx_launch(const char* name, const uint32_t* grid, const uint32_t* block,
                                    void** arguments, size_t dynamic) {
  return ptx::answered(ptx::launch(name, grid, block, arguments, dynamic));
}

EXPORT int mdssd_ptx_parameters(const char* name) {
  const auto found = ptx::kernels().find(name);
  return found == ptx::kernels().end() ? -1 : int(found->second->parameters.size());
}

EXPORT const char* mdssd_ptx_report() { return ptx::answered(ptx::report()); }

// Runs the kernel that shows whether a device can run this build.
EXPORT const char* mdssd_ptx_device_fault() { return ptx::answered(cuda_device_fault(0)); }
