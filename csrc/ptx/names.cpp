// The words of PTX.
#include <cxxabi.h>

#include <cstdlib>

#include "program.h"

namespace ptx {
namespace {

void erase_all(std::string& text, const std::string& part) {
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at))
    text.erase(at, part.size());
}

}  // namespace

std::string readable(const std::string& mangled) {
  char* demangled = abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, nullptr);
  if (!demangled) return mangled;
  std::string name = demangled;
  std::free(demangled);
  for (const char* part : {"(anonymous namespace)::", "mdssd::"}) erase_all(name, part);
  if (name.compare(0, 5, "void ") == 0) name.erase(0, 5);
  int depth = 0;
  for (size_t i = 0; i < name.size(); ++i) {
    depth += (name[i] == '<') - (name[i] == '>');
    if (name[i] == '(' && depth == 0) return name.substr(0, i);
  }
  return name;
}

void fault(const std::string& text) { throw Fault{text}; }

int size_of(Type type) {
  switch (type) {
    case Type::kB8:
    case Type::kU8:
    case Type::kS8: return 1;
    case Type::kB16:
    case Type::kU16:
    case Type::kS16:
    case Type::kF16:
    case Type::kBF16: return 2;
    case Type::kB64:
    case Type::kU64:
    case Type::kS64:
    case Type::kF64: return 8;
    case Type::kB128: return 16;
    default: return 4;
  }
}

bool is_float(Type type) {
  return type == Type::kF16 || type == Type::kBF16 || type == Type::kF32 || type == Type::kF64;
}

bool is_signed(Type type) { return type >= Type::kS8 && type <= Type::kS64; }

const std::map<std::string, Type> kTypes = {
    {"pred", Type::kPredicate}, {"b8", Type::kB8},        {"b16", Type::kB16},
    {"b32", Type::kB32},        {"b64", Type::kB64},      {"b128", Type::kB128},
    {"u8", Type::kU8},          {"u16", Type::kU16},      {"u32", Type::kU32},
    {"u64", Type::kU64},        {"s8", Type::kS8},        {"s16", Type::kS16},
    {"s32", Type::kS32},        {"s64", Type::kS64},      {"f16", Type::kF16},
    {"bf16", Type::kBF16},      {"f32", Type::kF32},      {"f64", Type::kF64},
    {"f16x2", Type::kF16x2},    {"bf16x2", Type::kBF16x2}};

const std::map<std::string, Op> kOps = {{"add", Op::kAdd},
                                        {"sub", Op::kSub},
                                        {"mul", Op::kMul},
                                        {"mad", Op::kMad},
                                        {"fma", Op::kFma},
                                        {"div", Op::kDiv},
                                        {"rem", Op::kRem},
                                        {"min", Op::kMin},
                                        {"max", Op::kMax},
                                        {"neg", Op::kNeg},
                                        {"abs", Op::kAbs},
                                        {"not", Op::kNot},
                                        {"and", Op::kAnd},
                                        {"or", Op::kOr},
                                        {"xor", Op::kXor},
                                        {"shl", Op::kShl},
                                        {"shr", Op::kShr},
                                        {"setp", Op::kCompare},
                                        {"selp", Op::kSelect},
                                        {"mov", Op::kMove},
                                        {"cvt", Op::kConvert},
                                        {"cvta", Op::kConvertAddress},
                                        {"ld", Op::kLoad},
                                        {"ldu", Op::kLoad},
                                        {"st", Op::kStore},
                                        {"atom", Op::kAtomic},
                                        {"red", Op::kReduction},
                                        {"bra", Op::kBranch},
                                        {"ret", Op::kReturn},
                                        {"exit", Op::kReturn},
                                        {"bar", Op::kBarrier},
                                        {"barrier", Op::kBarrier},
                                        {"shfl", Op::kShuffle},
                                        {"vote", Op::kVote},
                                        {"match", Op::kMatch},
                                        {"redux", Op::kReduceWarp},
                                        {"popc", Op::kPopulation},
                                        {"activemask", Op::kActiveMask},
                                        {"clz", Op::kLeadingZeros},
                                        {"brev", Op::kReverse},
                                        {"bfind", Op::kFindBit},
                                        {"bfi", Op::kInsertBits},
                                        {"bfe", Op::kExtractBits},
                                        {"prmt", Op::kPermute},
                                        {"lop3", Op::kLogic3},
                                        {"shf", Op::kFunnelShift},
                                        {"ex2", Op::kExp2},
                                        {"lg2", Op::kLog2},
                                        {"sqrt", Op::kRoot},
                                        {"rsqrt", Op::kReciprocalRoot},
                                        {"rcp", Op::kReciprocal},
                                        {"sin", Op::kSine},
                                        {"cos", Op::kCosine},
                                        {"membar", Op::kFence},
                                        {"fence", Op::kFence},
                                        {"copysign", Op::kCopySign},
                                        {"trap", Op::kTrap},
                                        {"stmatrix", Op::kStoreMatrix},
                                        {"ldmatrix", Op::kLoadMatrix}};

const std::map<std::string, Comparison> kComparisons = {
    {"eq", Comparison::kEqual},         {"ne", Comparison::kNotEqual},
    {"lt", Comparison::kLess},          {"le", Comparison::kLessEqual},
    {"gt", Comparison::kGreater},       {"ge", Comparison::kGreaterEqual},
    {"lo", Comparison::kLess},          {"ls", Comparison::kLessEqual},
    {"hi", Comparison::kGreater},       {"hs", Comparison::kGreaterEqual},
    {"equ", Comparison::kEqualOrNan},   {"neu", Comparison::kNotEqualOrNan},
    {"ltu", Comparison::kLessOrNan},    {"leu", Comparison::kLessEqualOrNan},
    {"gtu", Comparison::kGreaterOrNan}, {"geu", Comparison::kGreaterEqualOrNan},
    {"num", Comparison::kNumbers},      {"nan", Comparison::kNan}};

const std::array<const char*, kClasses> kClassNames = {
    "float",  "double",         "integer",     "integer64",    "move",        "special",
    "divide", "convert",        "load global", "store global", "load shared", "store shared",
    "atomic", "load parameter", "shuffle",     "vote",         "barrier",     "branch"};

}  // namespace ptx
