// The names that a kernel may use, and operands written with them.
#pragma once

#include "program.h"

namespace ptx {

std::string trim(const std::string& text);
// Splits at each `by` that is outside brackets and braces.
std::vector<std::string> split(const std::string& text, char by);
// Returns whether `text` is a number, and its bits: 0fXXXXXXXX and 0dXXXXXXXXXXXXXXXX are floats.
bool parse_number(const std::string& text, u64& value);

// A variable in shared, local, constant or global memory, or a parameter.
struct Variable {
  std::string name;
  int align = 0, bytes = 0;
};
// Parses ".shared .align 8 .b8 name[123]".
Variable parse_variable(const std::string& text);

class Symbols {
 public:
  explicit Symbols(Kernel& kernel) : kernel_(kernel) {}

  void open_scope() { scopes_.emplace_back(); }
  void close_scope() { scopes_.pop_back(); }
  // Declares ".reg .b32 %r<7>, %x" without its first two words.
  void declare_registers(const std::string& names);
  // Gives a value (an offset in shared memory, a host address) to a name.
  void define(const std::string& name, u64 value) { values_[name] = value; }
  void define_local(const std::string& name, s64 offset) { locals_[name] = offset; }

  // Returns the number of a register, or -1.
  int find_register(const std::string& name);
  Operand operand(std::string text);

 private:
  Operand address(const std::string& text);
  bool find_value(const std::string& name, u64& value) const;

  Kernel& kernel_;
  std::vector<std::map<std::string, int>> scopes_{1};
  std::map<std::string, u64> values_;
  std::map<std::string, s64> locals_;
};

// Parses one instruction, without its semicolon.
Instruction parse_instruction(const std::string& text, Symbols& symbols);

}  // namespace ptx
