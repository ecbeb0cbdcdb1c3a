// Reads a PTX file: its variables and its kernels.
#include <cstring>
#include <sstream>

#include "symbols.h"

namespace ptx {
namespace {

int round_up(int value, int to) { return (value + to - 1) / to * to; }

bool begins(const std::string& text, const char* with) {
  return text.compare(0, std::strlen(with), with) == 0;
}

// Removes comments and the lines of debugging information.
std::string without_comments(const std::string& text) {
  std::string code;
  std::istringstream lines(text);
  bool inside = false;  // a /* comment */
  for (std::string line; std::getline(lines, line);) {
    const std::string start = trim(line);
    if (!inside && (begins(start, ".loc") || begins(start, ".file"))) continue;
    for (size_t i = 0; i < line.size();) {
      if (inside || line.compare(i, 2, "/*") == 0) {
        const size_t end = line.find("*/", i);
        inside = end == std::string::npos;
        i = inside ? line.size() : end + 2;
      } else if (line.compare(i, 2, "//") == 0) {
        break;
      } else {
        code += line[i++];
      }
    }
    code += '\n';
  }
  return code;
}

class Parser {
 public:
  Parser(const std::string& text, Kernels& kernels)
      : code_(without_comments(text)), kernels_(kernels) {}

  void file();

 private:
  void skip_spaces();
  std::string word();
  std::string until(char end);
  void kernel();
  void parameters(Kernel& kernel);
  void variable(const std::string& text);
  void body(Kernel& kernel);
  void statement(const std::string& text, Kernel& kernel, Symbols& symbols, int& shared);

  std::string code_;
  Kernels& kernels_;
  size_t at_ = 0;
  std::map<std::string, u64> globals_;  // the host addresses of variables in global memory
  std::vector<Variable> shared_;        // of the module; those of no bytes are dynamic
};

void Parser::skip_spaces() {
  while (at_ < code_.size() && std::isspace(u8(code_[at_]))) ++at_;
}

std::string Parser::word() {
  skip_spaces();
  const size_t first = at_;
  while (at_ < code_.size() && (std::isalnum(u8(code_[at_])) || std::strchr("_$%.", code_[at_])))
    ++at_;
  if (first == at_ && at_ < code_.size()) ++at_;
  return code_.substr(first, at_ - first);
}

std::string Parser::until(char end) {
  const size_t first = at_;
  at_ = code_.find(end, at_);
  if (at_ == std::string::npos) fault(std::string("the file ends before ") + end);
  return code_.substr(first, at_++ - first);
}

void Parser::file() {
  for (skip_spaces(); at_ < code_.size(); skip_spaces()) {
    const size_t first = at_;
    const std::string what = word();
    if (what == ".visible" || what == ".weak" || what == ".extern") continue;
    if (what == ".entry") {
      kernel();
    } else if (what == ".shared" || what == ".global" || what == ".const") {
      at_ = first;
      variable(trim(until(';')));
    } else if (what == ".section") {
      until('}');
    } else if (what == ".func") {
      until(';');  // a declaration; functions with a body are inlined
    } else {
      until('\n');  // .version, .target, .address_size, .pragma
    }
  }
}

void Parser::variable(const std::string& text) {
  const size_t equals = text.find('=');
  const Variable variable = parse_variable(trim(text.substr(0, equals)));
  if (begins(text, ".shared")) {
    shared_.push_back(variable);
    return;
  }
  // The program keeps its variables until the process ends.
  const int bytes = round_up(variable.bytes, 64);
  auto* memory = static_cast<u8*>(std::aligned_alloc(64, size_t(bytes)));
  std::memset(memory, 0, size_t(bytes));
  if (const size_t open = text.find('{'); equals != std::string::npos && open != text.npos) {
    u8* byte = memory;
    for (const std::string& value : split(text.substr(open + 1, text.rfind('}') - open - 1), ',')) {
      u64 number = 0;
      parse_number(value, number);
      *byte++ = u8(number);
    }
  }
  globals_[variable.name] = reinterpret_cast<u64>(memory);
}

void Parser::kernel() {
  auto kernel = std::make_unique<Kernel>();
  kernel->name = word();
  kernel->title = readable(kernel->name);
  parameters(*kernel);
  until('{');
  body(*kernel);
  kernels_[kernel->name] = std::move(kernel);
}

void Parser::parameters(Kernel& kernel) {
  skip_spaces();
  if (code_[at_] != '(') return;
  ++at_;
  for (std::string text : split(until(')'), ',')) {
    // In ".param .u64 .ptr .global .align 16 name" the alignment is that of the memory, not of the pointer.
    if (text.find(".ptr") != std::string::npos)
      text = ".param .u64 " + text.substr(text.find_last_of(" \t") + 1);
    const Variable parameter = parse_variable(text);
    kernel.parameter_bytes = round_up(kernel.parameter_bytes, parameter.align);
    kernel.parameters.push_back({parameter.name, kernel.parameter_bytes, parameter.bytes});
    kernel.parameter_bytes += parameter.bytes;
  }
}

void Parser::statement(const std::string& text, Kernel& kernel, Symbols& symbols, int& shared) {
  if (text.empty()) return;
  if (begins(text, ".reg")) {
    symbols.declare_registers(text.substr(text.find_first_of(" \t", 5)));
  } else if (begins(text, ".shared")) {
    const Variable variable = parse_variable(text);
    shared = round_up(shared, variable.align);
    symbols.define(variable.name, u64(shared));
    shared += variable.bytes;
  } else if (begins(text, ".local")) {
    const Variable variable = parse_variable(text);
    kernel.local_bytes = round_up(kernel.local_bytes, variable.align);
    symbols.define_local(variable.name, kernel.local_bytes);
    kernel.local_bytes += variable.bytes;
  } else if (text[0] != '.') {
    kernel.code.push_back(parse_instruction(text, symbols));
  }
}

void Parser::body(Kernel& kernel) {
  Symbols symbols(kernel);
  std::map<std::string, int> labels;
  int shared = 0;
  for (const auto& [name, address] : globals_) symbols.define(name, address);
  for (const Variable& variable : shared_) {
    if (variable.bytes == 0) continue;
    shared = round_up(shared, variable.align);
    symbols.define(variable.name, u64(shared));
    shared += variable.bytes;
  }
  for (int depth = 1; depth > 0;) {
    skip_spaces();
    if (at_ >= code_.size()) fault(kernel.name + ": the file ends inside the kernel");
    if (code_[at_] == '{' || code_[at_] == '}') {
      const bool open = code_[at_++] == '{';
      depth += open ? 1 : -1;
      if (open)
        symbols.open_scope();
      else
        symbols.close_scope();
      continue;
    }
    size_t end = at_;
    while (std::isalnum(u8(code_[end])) || code_[end] == '_' || code_[end] == '$') ++end;
    if (end > at_ && code_[end] == ':') {
      labels[code_.substr(at_, end - at_)] = int(kernel.code.size());
      at_ = end + 1;
      continue;
    }
    if (shared_.size() && depth == 1)
      for (const Variable& variable : shared_)  // dynamic memory follows the rest
        if (variable.bytes == 0) symbols.define(variable.name, u64(round_up(shared, 16)));
    statement(trim(until(';')), kernel, symbols, shared);
  }
  kernel.shared_bytes = round_up(shared, 16);
  for (Instruction& i : kernel.code)
    if (i.op == Op::kBranch) {
      const auto label = labels.find(i.label);
      if (label == labels.end()) fault(kernel.name + ": unknown label " + i.label);
      i.target = label->second;
    }
  Instruction last{};
  last.op = Op::kReturn;
  last.kind = Class::kBranch;
  last.text = "the end";
  kernel.code.push_back(last);
  kernel.executed.assign(kernel.code.size(), 0);
}

}  // namespace

void parse(const std::string& text, Kernels& kernels) { Parser(text, kernels).file(); }

}  // namespace ptx
