// Schedules the fibers of simt.h and implements barriers and warp intrinsics.
#include "simt.h"

#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef SIMT_CHECKED
#include "places.h"
#include "races.h"
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

// shared.ld defines these as the bounds of the section with all __shared__ variables.
extern "C" {
extern char simt_shared_begin[] __attribute__((visibility("hidden")));
extern char simt_shared_end[] __attribute__((visibility("hidden")));
}

namespace simt {
namespace {

// A Context is where a suspended fiber resumes.
#ifdef __x86_64__
// simt_switch saves what the ABI requires a callee to preserve: six registers and the stack
// pointer.
struct Context {
  void* stack_pointer = nullptr;
};
extern "C" void simt_switch(void** save, void* load);
asm(R"(
.text
.hidden simt_switch
.globl simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");
void switch_context(Context& from, Context& to) {
  simt_switch(&from.stack_pointer, to.stack_pointer);
}
void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
  // The stack holds six registers and then the return address. On entry to a function the stack
  // pointer is 8 bytes off a multiple of 16.
  auto* top = reinterpret_cast<void**>(stack + size) - 2;
  *top = reinterpret_cast<void*>(entry);
  context.stack_pointer = top - 6;
}
#else
struct Context {
  ucontext_t context;
};
void switch_context(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = stack;
  context.context.uc_stack.ss_size = size;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
}
#endif

#ifdef __SANITIZE_ADDRESS__
constexpr size_t kStack = 256 << 10;  // AddressSanitizer makes stack frames larger
#else
constexpr size_t kStack = 64 << 10;
#endif
constexpr size_t kHostFrames = 64 << 10;  // where the frames of a launch's callers lie
constexpr unsigned kMostTurns = 1 << 12, kMostTurnsAfterRace = 1 << 20;
constexpr unsigned kMostThreads = 1024;
constexpr int kLanes = 32;

enum class State { kReady, kBarrier, kExchange, kDone };

struct Fiber {
  Context context;
  char* stack = nullptr;
  void* fake_stack = nullptr;  // belongs to AddressSanitizer
  State state = State::kDone;
  dim3 index;
  unsigned id = 0;
  // Where the fiber waits, and for what.
  const char* file = "";
  int line = 0;
  Exchange kind = Exchange::kSync;
  unsigned mask = 0;
  uint64_t value = 0;
  int source = 0;
  uint64_t result = 0;
};

thread_local std::vector<Array> arrays_of_call, forbidden_in_call;

#ifdef SIMT_CHECKED
bool overlap(const Array& a, const Array& b) {
  const auto a_begin = reinterpret_cast<uintptr_t>(a.begin);
  const auto b_begin = reinterpret_cast<uintptr_t>(b.begin);
  return a_begin < b_begin + b.bytes && b_begin < a_begin + a.bytes;
}
#endif

class Machine {
 public:
  void launch(const char* name, dim3 grid, dim3 block, void (*call)(const void*),
              const void* body) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const uint64_t threads = uint64_t(block.x) * block.y * block.z;
    if (threads == 0 || threads > kMostThreads || uint64_t(grid.x) * grid.y * grid.z == 0 ||
        grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || block.z > 64)
      throw std::runtime_error(std::string("simt: ") + name + ": a GPU cannot launch this grid");
    name_ = name;
    call_ = call;
    body_ = body;
    gridDim = grid;
    blockDim = block;
    make_fibers(unsigned(threads));
#ifdef SIMT_CHECKED
    races_.begin_launch();
    turns_after_race_ = 0;
    host_frame_ = static_cast<char*>(__builtin_frame_address(0));
#endif
    std::vector<uint64_t> blocks(uint64_t(grid.x) * grid.y * grid.z);
    std::iota(blocks.begin(), blocks.end(), 0);
    shuffle(blocks);
    for (const uint64_t b : blocks) {
      blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y),
                  unsigned(b / grid.x / grid.y)};
#ifdef SIMT_CHECKED
      races_.begin_block(uint32_t(b), count_);
#endif
      run_block(b == blocks.front());
    }
#ifdef SIMT_CHECKED
    if (!races_.found().empty()) throw std::runtime_error(describe_races());
#endif
  }

  void barrier(const char* file, int line) {
    Fiber& self = *running_;
    self.file = file;
    self.line = line;
    self.state = State::kBarrier;
    if (++at_barrier_ == count_) {
      check_one_barrier();
      for (unsigned i = 0; i < count_; ++i) fibers_[i].state = State::kReady;
      at_barrier_ = 0;
#ifdef SIMT_CHECKED
      races_.barrier();
#endif
    } else {
      yield();
    }
  }

  uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, int source, const char* file,
                    int line) {
    Fiber& self = *running_;
    self.file = file;
    self.line = line;
    self.kind = kind;
    self.mask = mask;
    self.value = value;
    self.source = source;
    if (!(mask >> lane() & 1u)) fail(self, "the mask does not include the calling lane");
    if (kind == Exchange::kShuffle && !(mask >> source & 1u))
      fail(self, "a shuffle reads from a lane outside its mask");
    self.state = State::kExchange;
    Fiber* const warp = &fibers_[self.id & ~unsigned(kLanes - 1)];
    const unsigned lanes = std::min<unsigned>(kLanes, count_ - warp->id);
    for (int i = 0; i < kLanes; ++i) {
      if (!(mask >> i & 1u)) continue;
      if (unsigned(i) >= lanes || warp[i].state == State::kDone)
        fail(self, "the mask includes a lane that has ended or does not exist");
      if (warp[i].state != State::kExchange || warp[i].mask != mask || warp[i].kind != kind) {
        yield();
        return self.result;
      }
    }
    // This lane arrived last, so it computes the results of all lanes.
    const bool one_answer = kind == Exchange::kBallot || kind == Exchange::kMax;
    const uint64_t common = one_answer ? answer(warp, lane(), mask) : 0;
    for (int i = 0; i < kLanes; ++i)
      if (mask >> i & 1u) warp[i].result = one_answer ? common : answer(warp, i, mask);
    for (int i = 0; i < kLanes; ++i)
      if (mask >> i & 1u) warp[i].state = State::kReady;
#ifdef SIMT_CHECKED
    if (kind == Exchange::kSync) races_.sync_warp(warp->id, mask);
#endif
    return self.result;
  }

#ifdef SIMT_CHECKED
  // The hook before each access of a kernel. `code` is its return address.
  void access(const void* address, unsigned bytes, bool write, bool atomic, uintptr_t code) {
    if (!in_kernel_) return;
    const auto* const at = static_cast<const char*>(address);
    const Fiber& self = *running_;
    if (at >= self.stack && at < self.stack + kStack) return;
    const bool shared = at >= simt_shared_begin && at + bytes <= simt_shared_end;
    if (!shared && !may_access(at, bytes)) {
      fault_ = describe_wild(write, code);
      yield();  // raise() abandons the fiber
    }
    if (random_ && next_random() >> 60 == 0) yield();
    races_.access(address, bytes, write, atomic, shared, self.id, code);
  }
#endif

  int lane() const { return int(running_->id) & (kLanes - 1); }
  void set_shuffle(uint64_t seed) {
    const std::lock_guard<std::mutex> lock(mutex_);
    random_ = seed * 0x9e3779b97f4a7c15u;  // spreads small seeds over all bits
  }

 private:
  static void entry() {
    machine().enter();
    __builtin_unreachable();
  }

 public:
  static Machine& machine() {
    static Machine machine;
    return machine;
  }

 private:
  void enter() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack_, &scheduler_size_);
#endif
    try {
      call_(body_);
    } catch (const std::exception& error) {
      if (fault_.empty()) fault_ = error.what();
    }
    running_->state = State::kDone;
    ++done_;
    yield();
  }

  void run_block(bool is_first) {
    fill_shared(is_first);
    warps_.resize((count_ + kLanes - 1) / kLanes);
    std::iota(warps_.begin(), warps_.end(), 0u);
    std::iota(lanes_.begin(), lanes_.end(), 0u);
    done_ = at_barrier_ = 0;
    for (unsigned i = 0; i < count_; ++i) {
      Fiber& fiber = fibers_[i];
      fiber.id = i;
      fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
      fiber.state = State::kReady;
      fiber.fake_stack = nullptr;
      prepare(fiber.context, fiber.stack, kStack, entry);
    }
    while (done_ < count_) {
      shuffle(warps_);
      bool progress = false;
      for (const unsigned warp : warps_) progress |= run_warp(warp);
      if (!progress) deadlock();
    }
  }

  // Runs the lanes of a warp that are ready until none is, or for so long that it may wait for
  // another warp. Under a seed, each lane has only one turn half of the times, so that warps run
  // side by side too. Returns whether a lane was ready.
  bool run_warp(unsigned warp) {
    const unsigned most = random_ && next_random() >> 63 ? 1 : kMostTurns;
    bool progress = false, again = true;
    for (unsigned turn = 0; again && turn < most; ++turn) {
      again = false;
      shuffle(lanes_);
      for (const unsigned lane : lanes_) {
        const unsigned i = warp * kLanes + lane;
        if (i >= count_ || fibers_[i].state != State::kReady) continue;
        progress = again = true;
        resume(fibers_[i]);
#ifdef SIMT_CHECKED
        // A kernel that reads what a race has left may never end.
        if (!races_.found().empty() && ++turns_after_race_ > kMostTurnsAfterRace)
          fault_ = describe_races();
#endif
        if (!fault_.empty()) raise();
      }
    }
    return progress;
  }

  void resume(Fiber& fiber) {
    running_ = &fiber;
    in_kernel_ = true;
    threadIdx = fiber.index;
#ifdef __SANITIZE_ADDRESS__
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, fiber.stack, kStack);
    switch_context(scheduler_, fiber.context);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
    switch_context(scheduler_, fiber.context);
#endif
    in_kernel_ = false;
  }

  void yield() {
    Fiber& self = *running_;
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(self.state == State::kDone ? nullptr : &self.fake_stack,
                                   scheduler_stack_, scheduler_size_);
    switch_context(self.context, scheduler_);
    __sanitizer_finish_switch_fiber(self.fake_stack, &scheduler_stack_, &scheduler_size_);
#else
    switch_context(self.context, scheduler_);
#endif
  }

  static uint64_t answer(const Fiber* warp, int lane, unsigned mask) {
    if (warp[lane].kind == Exchange::kShuffle) return warp[warp[lane].source].value;
    if (warp[lane].kind == Exchange::kMax) {
      uint64_t largest = 0;
      for (int i = 0; i < kLanes; ++i)
        if (mask >> i & 1u) largest = std::max(largest, warp[i].value);
      return largest;
    }
    uint64_t lanes = 0;
    for (int i = 0; i < kLanes; ++i) {
      if (!(mask >> i & 1u)) continue;
      const bool counts = warp[lane].kind == Exchange::kBallot ? warp[i].value != 0
                                                               : warp[i].value == warp[lane].value;
      lanes |= uint64_t(counts) << i;
    }
    return lanes;
  }

  void check_one_barrier() {
    for (unsigned i = 1; i < count_; ++i)
      if (fibers_[i].line != fibers_[0].line || fibers_[i].file != fibers_[0].file)
        fail(fibers_[i], "threads wait at different barriers");
  }

  // No fiber can run. Reports one that waits for a thread that will not arrive.
  [[noreturn]] void deadlock() {
    for (unsigned i = 0; i < count_; ++i)
      if (fibers_[i].state == State::kExchange) {
        fault_ = describe(fibers_[i],
                          "the mask includes a lane that does not arrive with the same mask");
        raise();
      }
    for (unsigned i = 0; i < count_; ++i)
      if (fibers_[i].state == State::kBarrier) {
        fault_ = describe(fibers_[i], "not all threads of the block reach the barrier");
        raise();
      }
    __builtin_unreachable();
  }

  // Ends the running fiber; `enter` catches the exception.
  [[noreturn]] void fail(const Fiber& fiber, const char* what) {
    throw std::runtime_error(describe(fiber, what));
  }

  static std::string triple(const dim3& d) {
    return std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z);
  }

  std::string describe(const Fiber& fiber, const char* what) const {
    return std::string("simt: ") + name_ + ": " + what + " (" + fiber.file + ":" +
           std::to_string(fiber.line) + ", block " + triple(blockIdx) + ", thread " +
           triple(fiber.index) + ")";
  }

#ifdef SIMT_CHECKED
  // Beside the arrays of the call there are the module's own variables, such as threadIdx, and the
  // arguments of the launch, which lie on the stack of the host.
  bool may_access(const char* at, unsigned bytes) const {
    if (arrays_of_call.empty()) return true;
    for (const Array& gap : forbidden_in_call)
      if (overlap(gap, {at, bytes})) return false;
    for (const Array& array : arrays_of_call) {
      const auto* const begin = static_cast<const char*>(array.begin);
      if (at >= begin && at + bytes <= begin + array.bytes) return true;
    }
    return is_in_module(at) || (at >= host_frame_ && at < host_frame_ + kHostFrames);
  }

  std::string describe_wild(bool write, uintptr_t code) const {
    return std::string("simt: ") + name_ + ": " + (write ? "a write" : "a read") +
           " outside of the arrays of the call (" + describe_code(code) + ", block " +
           triple(blockIdx) + ", thread " + triple(running_->index) + ")";
  }

  std::string describe_races() const {
    constexpr size_t kMost = 8;
    std::string text = std::string("simt: ") + name_ + ": data race";
    const auto one = [&](const Access& access, bool write, bool atomic) {
      return std::string(atomic ? "an atomic " : "a ") + (write ? "write at " : "read at ") +
             describe_code(access.code) + " by block " + std::to_string(access.block - 1) +
             ", thread " + std::to_string(access.thread);
    };
    const std::vector<Race>& found = races_.found();
    for (size_t i = 0; i < std::min(found.size(), kMost); ++i) {
      const Race& race = found[i];
      text += std::string("\n  ") + (race.shared ? "shared" : "global") + " memory: " +
              one(race.now, race.writes, race.is_atomic) + ", unordered after " +
              one(race.before, race.wrote, race.was_atomic);
    }
    if (found.size() > kMost)
      text += "\n  and " + std::to_string(found.size() - kMost) + " more";
    return text;
  }
#endif

  // Throws the fault to the caller of launch. The other fibers are abandoned, which is safe because
  // device code has no destructors to run.
  [[noreturn]] void raise() {
#ifdef __SANITIZE_ADDRESS__
    for (unsigned i = 0; i < count_; ++i) ASAN_UNPOISON_MEMORY_REGION(fibers_[i].stack, kStack);
#endif
    std::string fault;
    fault.swap(fault_);
    throw std::runtime_error(fault);
  }

  void make_fibers(unsigned count) {
    count_ = count;
    if (fibers_.empty()) fibers_.resize(kMostThreads);
    for (unsigned i = 0; i < count; ++i) {
      if (fibers_[i].stack) continue;
      void* stack = mmap(nullptr, kStack, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (stack == MAP_FAILED) throw std::runtime_error("simt: no memory for the fibers' stacks");
      fibers_[i].stack = static_cast<char*>(stack);
    }
  }

  // Without a seed the pattern is a NaN in every float type and -1 in every integer type; with a
  // seed it is random, or half of the times what the block before has left, as on a GPU. memset is not possible: AddressSanitizer puts poisoned gaps between
  // variables.
  __attribute__((no_sanitize("address"))) void fill_shared(bool is_first) {
    if (random_ && !is_first && next_random() >> 63) return;
    const uint64_t pattern = random_ ? next_random() : ~uint64_t(0);
    auto* const end = reinterpret_cast<uint64_t*>(simt_shared_end);
    for (auto* p = reinterpret_cast<uint64_t*>(simt_shared_begin); p < end; ++p) *p = pattern;
  }

  uint64_t next_random() {  // xorshift64
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_;
  }

  template <class T>
  void shuffle(std::vector<T>& items) {
    if (!random_) return;
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[next_random() % i]);
  }

  std::mutex mutex_;
  const char* name_ = "";
  void (*call_)(const void*) = nullptr;
  const void* body_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<unsigned> warps_, lanes_ = std::vector<unsigned>(kLanes);
  unsigned count_ = 0, done_ = 0, at_barrier_ = 0;
  Fiber* running_ = nullptr;
  Context scheduler_;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_size_ = 0;
  std::string fault_;
  uint64_t random_ = 0;
  bool in_kernel_ = false;
#ifdef SIMT_CHECKED
  Races races_;
  char* host_frame_ = nullptr;
  unsigned turns_after_race_ = 0;
#endif
};

}  // namespace

void launch(const char* name, dim3 grid, dim3 block, void (*call)(const void*), const void* body) {
  Machine::machine().launch(name, grid, block, call, body);
}
void barrier(const char* file, int line) { Machine::machine().barrier(file, line); }
uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, int source, const char* file,
                  int line) {
  return Machine::machine().exchange(kind, mask, value, source, file, line);
}
int lane() { return Machine::machine().lane(); }
Call::Call(std::vector<Array> arrays) { arrays_of_call = std::move(arrays); }
Call::~Call() {
  arrays_of_call.clear();
  forbidden_in_call.clear();
}
#ifdef SIMT_CHECKED
void forbid(Array array, size_t bytes_after) {
  const Array gap = {static_cast<const char*>(array.begin) + array.bytes, bytes_after};
  auto& gaps = forbidden_in_call;
  const auto is_old = [&](const Array& old) { return overlap(old, array) || overlap(old, gap); };
  gaps.erase(std::remove_if(gaps.begin(), gaps.end(), is_old), gaps.end());
  if (!arrays_of_call.empty()) gaps.push_back(gap);
}
void before_atomic(const void* address, size_t bytes) {
  Machine::machine().access(address, unsigned(bytes), true, true,
                            reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
}
#endif
void set_shuffle(uint64_t seed) { Machine::machine().set_shuffle(seed); }

}  // namespace simt

#ifdef SIMT_CHECKED
// What g++ calls with -fsanitize=thread. The functions of the real runtime with these names do the
// same for threads of the host.
#define SIMT_HOOK(name, bytes, write, atomic)                                               \
  extern "C" __attribute__((visibility("hidden"))) void name(void* address) {               \
    simt::Machine::machine().access(address, bytes, write, atomic,                          \
                                    reinterpret_cast<uintptr_t>(__builtin_return_address(0))); \
  }
#define SIMT_HOOKS(bytes)                                            \
  SIMT_HOOK(__tsan_read##bytes, bytes, false, false)                 \
  SIMT_HOOK(__tsan_write##bytes, bytes, true, false)                 \
  SIMT_HOOK(__tsan_unaligned_read##bytes, bytes, false, false)       \
  SIMT_HOOK(__tsan_unaligned_write##bytes, bytes, true, false)       \
  SIMT_HOOK(__tsan_volatile_read##bytes, bytes, false, true)         \
  SIMT_HOOK(__tsan_volatile_write##bytes, bytes, true, true)         \
  SIMT_HOOK(__tsan_unaligned_volatile_read##bytes, bytes, false, true) \
  SIMT_HOOK(__tsan_unaligned_volatile_write##bytes, bytes, true, true)
SIMT_HOOKS(1)
SIMT_HOOKS(2)
SIMT_HOOKS(4)
SIMT_HOOKS(8)
SIMT_HOOKS(16)
#undef SIMT_HOOKS
#undef SIMT_HOOK

extern "C" {
#define SIMT_HIDDEN __attribute__((visibility("hidden")))
SIMT_HIDDEN void __tsan_read_range(void* address, size_t bytes) {
  simt::Machine::machine().access(address, unsigned(bytes), false, false,
                                  reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
}
SIMT_HIDDEN void __tsan_write_range(void* address, size_t bytes) {
  simt::Machine::machine().access(address, unsigned(bytes), true, false,
                                  reinterpret_cast<uintptr_t>(__builtin_return_address(0)));
}
// The host's own atomics, such as the count of launches: no thread of a kernel takes part.
SIMT_HIDDEN char __tsan_atomic8_load(const volatile char* address, int) {
  return __atomic_load_n(address, __ATOMIC_SEQ_CST);
}
SIMT_HIDDEN int32_t __tsan_atomic32_fetch_add(volatile int32_t* address, int32_t value, int) {
  return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);
}
SIMT_HIDDEN int64_t __tsan_atomic64_fetch_add(volatile int64_t* address, int64_t value, int) {
  return __atomic_fetch_add(address, value, __ATOMIC_SEQ_CST);
}
SIMT_HIDDEN void __tsan_init() {}
SIMT_HIDDEN void __tsan_func_entry(void*) {}
SIMT_HIDDEN void __tsan_func_exit() {}
SIMT_HIDDEN void __tsan_vptr_update(void*, void*) {}
SIMT_HIDDEN void __tsan_vptr_read(void*) {}
#undef SIMT_HIDDEN
}
#endif
