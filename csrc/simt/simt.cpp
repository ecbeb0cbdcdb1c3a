// Schedules the fibers of simt.h and implements barriers and warp intrinsics.
#include "simt.h"

#include <sys/mman.h>

#include <algorithm>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

dim3 threadIdx, blockIdx, blockDim, gridDim;

// The linker defines these as the bounds of the section with all __shared__ variables.
extern "C" {
extern char __start_simt_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_simt_shared[] __attribute__((weak, visibility("hidden")));
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

class Machine {
 public:
  void launch(const char* name, dim3 grid, dim3 block, const std::function<void()>& body) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const uint64_t threads = uint64_t(block.x) * block.y * block.z;
    if (threads == 0 || threads > kMostThreads || uint64_t(grid.x) * grid.y * grid.z == 0 ||
        grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || block.z > 64)
      throw std::runtime_error(std::string("simt: ") + name + ": a GPU cannot launch this grid");
    name_ = name;
    body_ = &body;
    gridDim = grid;
    blockDim = block;
    make_fibers(unsigned(threads));
    std::vector<uint64_t> blocks(uint64_t(grid.x) * grid.y * grid.z);
    std::iota(blocks.begin(), blocks.end(), 0);
    shuffle(blocks);
    for (const uint64_t b : blocks) {
      blockIdx = {unsigned(b % grid.x), unsigned(b / grid.x % grid.y),
                  unsigned(b / grid.x / grid.y)};
      run_block();
    }
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
    return self.result;
  }

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
      (*body_)();
    } catch (const std::exception& error) {
      if (fault_.empty()) fault_ = error.what();
    }
    running_->state = State::kDone;
    ++done_;
    yield();
  }

  void run_block() {
    fill_shared();
    order_.resize(count_);
    std::iota(order_.begin(), order_.end(), 0u);
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
      shuffle(order_);
      bool progress = false;
      for (const unsigned i : order_) {
        if (fibers_[i].state != State::kReady) continue;
        progress = true;
        resume(fibers_[i]);
        if (!fault_.empty()) raise();
      }
      if (!progress) deadlock();
    }
  }

  void resume(Fiber& fiber) {
    running_ = &fiber;
    threadIdx = fiber.index;
#ifdef __SANITIZE_ADDRESS__
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, fiber.stack, kStack);
    switch_context(scheduler_, fiber.context);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
    switch_context(scheduler_, fiber.context);
#endif
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

  std::string describe(const Fiber& fiber, const char* what) const {
    const auto triple = [](const dim3& d) {
      return std::to_string(d.x) + "," + std::to_string(d.y) + "," + std::to_string(d.z);
    };
    return std::string("simt: ") + name_ + ": " + what + " (" + fiber.file + ":" +
           std::to_string(fiber.line) + ", block " + triple(blockIdx) + ", thread " +
           triple(fiber.index) + ")";
  }

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
  // seed it is random. memset is not possible: AddressSanitizer puts poisoned gaps between
  // variables.
  __attribute__((no_sanitize("address"))) void fill_shared() {
    if (!__start_simt_shared) return;
    const uint64_t pattern = random_ ? next_random() : ~uint64_t(0);
    for (volatile char* p = __start_simt_shared; p < __stop_simt_shared; ++p)
      *p = char(pattern >> (8 * (reinterpret_cast<uintptr_t>(p) & 7u)));
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
  const std::function<void()>* body_ = nullptr;
  std::vector<Fiber> fibers_;
  std::vector<unsigned> order_;
  unsigned count_ = 0, done_ = 0, at_barrier_ = 0;
  Fiber* running_ = nullptr;
  Context scheduler_;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_size_ = 0;
  std::string fault_;
  uint64_t random_ = 0;
};

}  // namespace

void launch(const char* name, dim3 grid, dim3 block, const std::function<void()>& body) {
  Machine::machine().launch(name, grid, block, body);
}
void barrier(const char* file, int line) { Machine::machine().barrier(file, line); }
uint64_t exchange(Exchange kind, unsigned mask, uint64_t value, int source, const char* file,
                  int line) {
  return Machine::machine().exchange(kind, mask, value, source, file, line);
}
int lane() { return Machine::machine().lane(); }
void set_shuffle(uint64_t seed) { Machine::machine().set_shuffle(seed); }

}  // namespace simt
