#include "parallel.h"

#include <dlfcn.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
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
const pid_t first_process = getpid();  // a forked child must not use OpenMP: its threads are gone

// The threads for processes without OpenMP and for forked children.
class Pool {
 public:
  void run(int threads, Tasks& tasks) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (; workers_ < threads - 1; ++workers_) std::thread([this] { work(); }).detach();
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
Pool* pool = nullptr;
std::atomic<pid_t> pool_owner{0};

struct Release {
  ~Release() { busy = false; }
};

}  // namespace

void parallel_for(int threads, int64_t tasks, const std::function<void(int64_t)>& body) {
  threads = int(std::min<int64_t>(threads, tasks));
  const bool with_openmp = threads > 1 && openmp() && getpid() == first_process;
  if (threads <= 1 || (!with_openmp && busy.exchange(true) && pool_owner == getpid())) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
  Tasks all(tasks, body);
  if (with_openmp) {
    openmp()([](void* shared) { static_cast<Tasks*>(shared)->take(); }, &all, unsigned(threads), 0);
    return all.rethrow();
  }
  Release release;
  if (pool_owner != getpid()) {  // the first call, or a forked child, which inherits no threads
    pool = new Pool;             // never deleted, since its threads run until the process ends
    pool_owner = getpid();
  }
  pool->run(threads, all);
  all.rethrow();
}

}  // namespace mdssd
