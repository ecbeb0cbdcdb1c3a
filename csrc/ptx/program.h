// Kernels as the parser leaves them: instructions with their operands resolved to registers,
// immediate values and addresses.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace ptx {

// The names of PTX for its types.
using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

constexpr int kLanes = 32;
constexpr u32 kAllLanes = 0xffffffffu;

// What is wrong with a program or with what it does. Ends a launch.
struct Fault {
  std::string text;
};
[[noreturn]] void fault(const std::string& text);

enum class Type : u8 {
  kNone,
  kPredicate,
  kB8,
  kB16,
  kB32,
  kB64,
  kB128,
  kU8,
  kU16,
  kU32,
  kU64,
  kS8,
  kS16,
  kS32,
  kS64,
  kF16,
  kBF16,
  kF32,
  kF64,
  kF16x2,
  kBF16x2
};
int size_of(Type type);
bool is_float(Type type);
bool is_signed(Type type);

enum class Op : u8 {
  kAdd,
  kSub,
  kMul,
  kMad,
  kFma,
  kDiv,
  kRem,
  kMin,
  kMax,
  kNeg,
  kAbs,
  kNot,
  kAnd,
  kOr,
  kXor,
  kShl,
  kShr,
  kCompare,
  kSelect,
  kMove,
  kConvert,
  kConvertAddress,
  kLoad,
  kStore,
  kAtomic,
  kReduction,
  kBranch,
  kReturn,
  kBarrier,
  kSyncWarp,
  kShuffle,
  kVote,
  kMatch,
  kReduceWarp,
  kActiveMask,
  kPopulation,
  kLeadingZeros,
  kReverse,
  kFindBit,
  kInsertBits,
  kExtractBits,
  kPermute,
  kLogic3,
  kFunnelShift,
  kExp2,
  kLog2,
  kReciprocalRoot,
  kRoot,
  kReciprocal,
  kSine,
  kCosine,
  kFence,
  kCopySign,
  kTrap,
  kStoreMatrix,
  kLoadMatrix
};
// kLess and the like are false for NaN; kLessOrNan and the like are true.
enum class Comparison : u8 {
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kEqualOrNan,
  kNotEqualOrNan,
  kLessOrNan,
  kLessEqualOrNan,
  kGreaterOrNan,
  kGreaterEqualOrNan,
  kNumbers,
  kNan
};
enum class Space : u8 { kGeneric, kGlobal, kShared, kParameter, kLocal, kConstant };
enum class Combine : u8 { kNone, kAnd, kOr, kXor };

extern const std::map<std::string, Type> kTypes;
extern const std::map<std::string, Op> kOps;
extern const std::map<std::string, Comparison> kComparisons;

// Returns the name in the source, without namespaces, of the name of a function in an object file.
std::string readable(const std::string& mangled);

// By which kinds of instructions are counted.
enum class Class : u8 {
  kFloat,
  kDouble,
  kInteger,
  kInteger64,
  kMove,
  kSpecial,
  kDivide,
  kConvert,
  kLoadGlobal,
  kStoreGlobal,
  kLoadShared,
  kStoreShared,
  kAtomic,
  kLoadParameter,
  kShuffle,
  kVote,
  kBarrier,
  kBranch
};
constexpr int kClasses = int(Class::kBranch) + 1;
extern const std::array<const char*, kClasses> kClassNames;

struct Operand {
  int reg = -1;                // -1: an immediate value, or nothing
  int second = -1;             // the second register of d|p
  bool negate = false;         // !p
  std::vector<u64> immediate;  // one value per lane, all equal
  s64 offset = 0;              // of an address: the register or nothing, plus this
  std::vector<Operand> parts;  // of a vector {a, b}
};

struct Instruction {
  Op op;
  Type type = Type::kNone, from = Type::kNone;
  Comparison comparison = Comparison::kEqual;
  Combine combine = Combine::kNone;
  Space space = Space::kGeneric;
  Class kind = Class::kInteger;
  std::string modifier;  // what an atomic, a vote, a shuffle ... does
  int rounding = 0;      // FE_*; 0 is to nearest
  int vector = 1, guard = -1, target = -1;
  bool guard_negated = false, to_integer = false, flush = false, saturate = false, wide = false,
       high = false, approximate = false, read_only = false, strong = false, narrow = false, right = false,
       wrap = false, shift_amount = false, keep_nan = false, to_space = false;
  std::vector<Operand> operands;
  std::string text, label;
};

struct Parameter {
  std::string name;
  int offset, size;
};

struct Counts {
  u64 launches = 0, blocks = 0, warps = 0, warp_instructions = 0, thread_instructions = 0,
      sectors_loaded = 0, sectors_stored = 0, wavefronts = 0, barriers = 0, faults = 0;
  std::array<u64, kClasses> by_class{};
};

struct Kernel {
  std::string name, title;  // the title is the name as in the source: nms_kernel<float, true>
  std::vector<Instruction> code;
  std::vector<Parameter> parameters;
  int parameter_bytes = 0, registers = 0, shared_bytes = 0, local_bytes = 0;
  std::map<std::string, int> specials;  // the registers that hold %tid.x and the like
  Counts counts;
  std::vector<u64> executed;  // how often each instruction was
};

using Kernels = std::map<std::string, std::unique_ptr<Kernel>>;

// Adds the kernels of a PTX file. Throws Fault for what it does not know.
void parse(const std::string& text, Kernels& kernels);

}  // namespace ptx
