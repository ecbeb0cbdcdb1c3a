#include "symbols.h"

#include <cctype>
#include <cstdlib>
#include <set>
#include <sstream>

namespace ptx {
namespace {

constexpr const char* kSpaces = " \t\n\r";
const std::set<std::string> kSpecials = {
    "%tid.x",       "%tid.y",       "%tid.z",       "%ctaid.x",     "%ctaid.y",
    "%ctaid.z",     "%ntid.x",      "%ntid.y",      "%ntid.z",      "%nctaid.x",
    "%nctaid.y",    "%nctaid.z",    "%laneid",      "%warpid",      "%lanemask_lt",
    "%lanemask_le", "%lanemask_gt", "%lanemask_ge", "%lanemask_eq", "%local",
    "%envreg0"};

}  // namespace

std::string trim(const std::string& text) {
  const size_t first = text.find_first_not_of(kSpaces), last = text.find_last_not_of(kSpaces);
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> parts;
  std::string part;
  int depth = 0;
  for (char letter : text) {
    depth += (letter == '{' || letter == '[') - (letter == '}' || letter == ']');
    if (letter == by && depth == 0) {
      parts.push_back(trim(part));
      part.clear();
    } else {
      part += letter;
    }
  }
  if (!trim(part).empty()) parts.push_back(trim(part));
  return parts;
}

bool parse_number(const std::string& text, u64& value) {
  const char* digits = text.c_str();
  if (text.size() > 2 && digits[0] == '0' && std::string("fFdD").find(digits[1]) != text.npos) {
    value = std::strtoull(digits + 2, nullptr, 16);
    return true;
  }
  const bool negative = digits[0] == '-';
  digits += negative;
  if (!std::isdigit(u8(*digits))) return false;
  value = std::strtoull(digits, nullptr, 0);
  if (negative) value = 0 - value;
  return true;
}

Variable parse_variable(const std::string& text) {
  std::istringstream words(text);
  std::string word;
  Variable variable;
  Type type = Type::kB8;
  while (words >> word) {
    if (word == ".align") {
      words >> variable.align;
    } else if (word[0] == '.') {
      if (auto found = kTypes.find(word.substr(1)); found != kTypes.end()) type = found->second;
    } else {
      variable.name = word;
      break;
    }
  }
  int count = 1;
  if (const size_t open = variable.name.find('['); open != std::string::npos) {
    count = std::atoi(variable.name.c_str() + open + 1);
    variable.name.resize(open);
  }
  variable.bytes = count * size_of(type);
  if (!variable.align) variable.align = size_of(type);
  return variable;
}

void Symbols::declare_registers(const std::string& names) {
  for (const std::string& name : split(names, ',')) {
    const size_t less = name.find('<');
    const std::string stem = name.substr(0, less);
    if (less == std::string::npos) {
      scopes_.back()[stem] = kernel_.registers++;
      continue;
    }
    for (int n = 0, count = std::atoi(name.c_str() + less + 1); n < count; ++n)
      scopes_.back()[stem + std::to_string(n)] = kernel_.registers++;
  }
}

int Symbols::find_register(const std::string& name) {
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
    if (auto found = scope->find(name); found != scope->end()) return found->second;
  if (!kSpecials.count(name)) return -1;
  auto [found, added] = kernel_.specials.try_emplace(name, kernel_.registers);
  kernel_.registers += added;
  return found->second;
}

bool Symbols::find_value(const std::string& name, u64& value) const {
  if (auto found = values_.find(name); found != values_.end()) {
    value = found->second;
    return true;
  }
  for (const Parameter& parameter : kernel_.parameters)
    if (parameter.name == name) {
      value = u64(parameter.offset);
      return true;
    }
  return false;
}

// "[%rd1+8]", "[parameter]", "[variable+4]"
Operand Symbols::address(const std::string& text) {
  Operand operand;
  const size_t plus = text.find('+');
  const std::string base = trim(text.substr(0, plus));
  u64 value = 0;
  if (plus != std::string::npos && parse_number(trim(text.substr(plus + 1)), value))
    operand.offset = s64(value);
  operand.reg = find_register(base);
  if (operand.reg >= 0) return operand;
  if (auto local = locals_.find(base); local != locals_.end()) {
    operand.reg = find_register("%local");
    operand.offset += local->second;
    return operand;
  }
  if (!parse_number(base, value) && !find_value(base, value))
    fault(kernel_.name + ": unknown symbol " + base);
  operand.offset += s64(value);
  return operand;
}

Operand Symbols::operand(std::string text) {
  Operand operand;
  text = trim(text);
  if (text[0] == '!') {
    operand.negate = true;
    text = trim(text.substr(1));
  }
  if (text == "_") return operand;
  const std::string inside = text.substr(1, text.size() < 2 ? 0 : text.size() - 2);
  if (text[0] == '[') return address(trim(inside));
  if (text[0] == '{') {
    for (const std::string& part : split(inside, ',')) operand.parts.push_back(this->operand(part));
    return operand;
  }
  if (const size_t bar = text.find('|'); bar != std::string::npos) {
    operand.reg = find_register(trim(text.substr(0, bar)));
    operand.second = find_register(trim(text.substr(bar + 1)));
    return operand;
  }
  operand.reg = find_register(text);
  if (operand.reg >= 0) return operand;
  if (auto local = locals_.find(text); local != locals_.end()) {
    operand.reg = find_register("%local");
    operand.offset = local->second;
    return operand;
  }
  u64 value = 0;
  if (!parse_number(text, value) && !find_value(text, value))
    fault(kernel_.name + ": unknown operand " + text);
  operand.immediate.assign(kLanes, value);
  return operand;
}

}  // namespace ptx
