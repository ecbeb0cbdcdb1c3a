#include "parallel.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <fstream>
#include <iterator>
#include <mutex>
#include <sstream>
#include <string>
#include <system_error>
#include <thread>

namespace mdssd {
namespace {

// The tasks of one call. Any number of threads may call take.
class Tasks {
 public:
  Tasks(int64_t count, const std::function<void(int64_t)>& body) : count_(count), body_(body) {}

  void take() {
    try {
      for (int64_t task; (task = next_.fetch_add(1)) < count_;) body_(task);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
      next_ = count_;
    }
  }

  // Must be called after every take has returned.
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  const int64_t count_;
  const std::function<void(int64_t)>& body_;
  std::atomic<int64_t> next_{0};
  std::mutex mutex_;
  std::exception_ptr error_;
};

// Finds the GNU OpenMP library that PyTorch loaded. Its threads spin for a while after a PyTorch
// operator, so they start at once, whereas threads of our own would compete with them for the cores
// (benchmarks/NOTES.md, "PyTorch's threads instead of our own").
using Parallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
Parallel openmp() {
  static const auto function = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return function;
}

// Returns whether this process was forked and has not executed a program since, or whether that is
// unknown. If it was forked after OpenMP had used its threads, OpenMP would wait for them for ever,
// as they do not exist here. A handler of pthread_atfork sees only the forks after this module was
// loaded. The kernel knows the earlier ones: PF_FORKNOEXEC among the flags of the first thread.
bool forked_before() {
#ifdef __linux__
  constexpr unsigned long kForkNoExec = 0x40;
  std::ifstream file("/proc/self/stat");
  const std::string stat{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const size_t name_end = stat.rfind(')');  // the name of the program may contain anything
  if (name_end == std::string::npos) return true;
  std::istringstream fields(stat.substr(name_end + 1));
  std::string skipped;
  for (int i = 0; i < 6; ++i) fields >> skipped;  // state, four ids, terminal
  unsigned long flags = 0;
  fields >> flags;
  return flags == 0 || (flags & kForkNoExec);  // 0 if an emulated kernel does not tell
#else
  return false;
#endif
}

// The threads for processes without OpenMP and for forked children.
class Pool {
 public:
  void run(int threads, Tasks& tasks) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      try {
        for (; workers_ < threads - 1; ++workers_) std::thread([this] { work(); }).detach();
      } catch (const std::system_error&) {  // no memory for another thread: continue without it
      }
      tasks_ = &tasks;
      places_ = threads - 1;
      ++job_;
    }
    wake_.notify_all();
    tasks.take();
    std::unique_lock<std::mutex> lock(mutex_);
    places_ = 0;  // workers that wake later must not start on these tasks
    idle_.wait(lock, [this] { return active_ == 0; });
  }

 private:
  void work() {
    int64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return job_ != seen && places_ > 0; });
      seen = job_;
      --places_;
      ++active_;
      Tasks* const tasks = tasks_;
      lock.unlock();
      tasks->take();
      lock.lock();
      if (--active_ == 0) idle_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  Tasks* tasks_ = nullptr;
  int64_t job_ = 0;
  int workers_ = 0, places_ = 0, active_ = 0;
};

std::atomic<bool> busy{false};
std::atomic<bool> forked{forked_before()};
Pool* pool = nullptr;  // never deleted, since its threads run until the process ends

void after_fork() {  // in the child, which inherits no threads but this one
  forked = true;
  busy = false;
  pool = nullptr;
}
const int registered = pthread_atfork(nullptr, nullptr, after_fork);

// More threads than these do not help, and each takes address space for its stack and its memory.
// Where that space is limited, OpenMP would end the process; the pool continues with fewer threads.
int most_threads() {
  static const int most = 2 * std::max(1, int(std::thread::hardware_concurrency()));
  return most;
}

struct Release {
  ~Release() { busy = false; }
};

}  // namespace

void parallel_for(int threads, int64_t tasks, const std::function<void(int64_t)>& body) {
  const bool too_many = threads > most_threads();
  threads = int(std::min<int64_t>(too_many ? most_threads() : threads, tasks));
  const bool with_openmp = threads > 1 && !too_many && !forked && openmp();
  if (threads <= 1 || (!with_openmp && busy.exchange(true))) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
  Tasks all(tasks, body);
  if (with_openmp) {
    openmp()([](void* shared) { static_cast<Tasks*>(shared)->take(); }, &all, unsigned(threads), 0);
    return all.rethrow();
  }
  Release release;
  if (!pool) pool = new Pool;
  pool->run(threads, all);
  all.rethrow();
}

}  // namespace mdssd
