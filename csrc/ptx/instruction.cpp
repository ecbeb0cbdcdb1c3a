// From the text of an instruction to an Instruction.
#include <cfenv>
#include <functional>
#include <set>

#include "symbols.h"

namespace ptx {
namespace {

Class by_type(const Instruction& i) {
  if (i.type == Type::kF64) return Class::kDouble;
  if (is_float(i.type)) return Class::kFloat;
  return size_of(i.type) == 8 ? Class::kInteger64 : Class::kInteger;
}

Class classify(const Instruction& i) {
  switch (i.op) {
    case Op::kMove:
    case Op::kConvertAddress: return Class::kMove;
    case Op::kConvert: return Class::kConvert;
    case Op::kExp2:
    case Op::kLog2:
    case Op::kReciprocalRoot:
    case Op::kSine:
    case Op::kCosine: return Class::kSpecial;
    case Op::kDiv:
    case Op::kRem:
    case Op::kRoot:
    case Op::kReciprocal: return i.approximate ? Class::kSpecial : Class::kDivide;
    case Op::kLoad:
      if (i.space == Space::kParameter || i.space == Space::kConstant) return Class::kLoadParameter;
      return i.space == Space::kShared ? Class::kLoadShared : Class::kLoadGlobal;
    case Op::kStore: return i.space == Space::kShared ? Class::kStoreShared : Class::kStoreGlobal;
    case Op::kAtomic:
    case Op::kReduction: return Class::kAtomic;
    case Op::kStoreMatrix: return Class::kStoreShared;
    case Op::kLoadMatrix: return Class::kLoadShared;
    case Op::kShuffle: return Class::kShuffle;
    case Op::kVote:
    case Op::kMatch:
    case Op::kReduceWarp: return Class::kVote;
    case Op::kBarrier:
    case Op::kSyncWarp:
    case Op::kFence: return Class::kBarrier;
    case Op::kBranch:
    case Op::kReturn: return Class::kBranch;
    default: return by_type(i);
  }
}

// Words after an opcode that change nothing here: memory is sequentially consistent and has no
// caches, and rounding to nearest is the default.
const std::set<std::string> kIgnored = {"rn",  "lo",      "sync",    "uni", "clamp", "gpu",
                                        "sys", "acq_rel", "release", "to",  "weak",  "aligned"};

using Setter = std::function<void(Instruction&)>;
const std::map<std::string, Setter> kModifiers = {
    {"wide", [](Instruction& i) { i.wide = true; }},
    {"hi", [](Instruction& i) { i.high = true; }},
    {"ftz", [](Instruction& i) { i.flush = true; }},
    {"sat", [](Instruction& i) { i.saturate = true; }},
    {"approx", [](Instruction& i) { i.approximate = true; }},
    {"full", [](Instruction& i) { i.approximate = true; }},
    {"NaN", [](Instruction& i) { i.keep_nan = true; }},
    {"nc", [](Instruction& i) { i.read_only = true; }},
    {"volatile", [](Instruction& i) { i.strong = true; }},
    {"relaxed", [](Instruction& i) { i.strong = true; }},
    {"acquire", [](Instruction& i) { i.strong = true; }},
    {"cta", [](Instruction& i) { i.narrow = true; }},
    {"rm", [](Instruction& i) { i.rounding = FE_DOWNWARD; }},
    {"rp", [](Instruction& i) { i.rounding = FE_UPWARD; }},
    {"rz", [](Instruction& i) { i.rounding = FE_TOWARDZERO; }},
    {"rni", [](Instruction& i) { i.to_integer = true, i.rounding = FE_TONEAREST; }},
    {"rmi", [](Instruction& i) { i.to_integer = true, i.rounding = FE_DOWNWARD; }},
    {"rpi", [](Instruction& i) { i.to_integer = true, i.rounding = FE_UPWARD; }},
    {"rzi", [](Instruction& i) { i.to_integer = true, i.rounding = FE_TOWARDZERO; }},
    {"v2", [](Instruction& i) { i.vector = 2; }},
    {"v4", [](Instruction& i) { i.vector = 4; }},
    {"v8", [](Instruction& i) { i.vector = 8; }},
    {"global", [](Instruction& i) { i.space = Space::kGlobal; }},
    {"shared", [](Instruction& i) { i.space = Space::kShared; }},
    {"shared::cta", [](Instruction& i) { i.space = Space::kShared; }},
    {"param", [](Instruction& i) { i.space = Space::kParameter; }},
    {"local", [](Instruction& i) { i.space = Space::kLocal; }},
    {"const", [](Instruction& i) { i.space = Space::kConstant; }},
    {"r", [](Instruction& i) { i.right = true; }},
    {"l", [](Instruction& i) { i.right = false; }},
    {"wrap", [](Instruction& i) { i.wrap = true; }},
    {"shiftamt", [](Instruction& i) { i.shift_amount = true; }}};

// Interprets the words of "setp.lt.and.f32" after the first.
void apply_words(Instruction& i, const std::vector<std::string>& words) {
  std::vector<Type> types;
  for (size_t n = 1; n < words.size(); ++n) {
    const std::string& word = words[n];
    if (auto type = kTypes.find(word); type != kTypes.end()) {
      types.push_back(type->second);
      continue;
    }
    if (i.op == Op::kCompare) {
      const auto found = kComparisons.find(word);
      if (found != kComparisons.end()) i.comparison = found->second;
      if (word == "and") i.combine = Combine::kAnd;
      if (word == "or") i.combine = Combine::kOr;
      if (word == "xor") i.combine = Combine::kXor;
      if (found != kComparisons.end()) continue;
    }
    if (i.op == Op::kConvertAddress && word == "to") i.to_space = true;
    if (i.op == Op::kBarrier && word == "warp") {
      i.op = Op::kSyncWarp;
    } else if (auto modifier = kModifiers.find(word); modifier != kModifiers.end()) {
      modifier->second(i);
    } else if (!kIgnored.count(word) && word.compare(0, 2, "L1") && word.compare(0, 2, "L2")) {
      i.modifier += (i.modifier.empty() ? "" : ".") + word;
    }
  }
  if (!types.empty()) i.type = types[0];
  if (types.size() > 1) i.from = types[1];
}

}  // namespace

Instruction parse_instruction(const std::string& text, Symbols& symbols) {
  Instruction i;
  i.text = trim(text);
  for (char& letter : i.text)
    if (std::isspace(u8(letter))) letter = ' ';
  size_t at = 0;
  if (i.text[0] == '@') {
    const size_t end = i.text.find(' ');
    i.guard_negated = i.text[1] == '!';
    const size_t first = i.guard_negated ? 2 : 1;
    i.guard = symbols.find_register(i.text.substr(first, end - first));
    if (i.guard < 0) fault("unknown guard of " + i.text);
    at = i.text.find_first_not_of(' ', end);
  }
  const size_t end = i.text.find(' ', at);
  const std::vector<std::string> words = split(i.text.substr(at, end - at), '.');
  const std::string rest = end == std::string::npos ? "" : i.text.substr(end + 1);
  const auto op = kOps.find(words[0]);
  if (op == kOps.end()) fault("unknown instruction " + i.text);
  i.op = op->second;
  apply_words(i, words);
  if (i.op == Op::kBranch)
    i.label = trim(rest);
  else if (i.op != Op::kReturn)
    for (const std::string& operand : split(rest, ','))
      i.operands.push_back(symbols.operand(operand));
  i.kind = classify(i);
  return i;
}

}  // namespace ptx
