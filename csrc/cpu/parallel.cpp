#include "parallel.h"

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

namespace mdssd {
namespace {

class Pool {
 public:
  void run(int threads, int64_t tasks, const std::function<void(int64_t)>& body) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (; workers_ < threads - 1; ++workers_) std::thread([this] { work(); }).detach();
      body_ = &body;
      tasks_ = tasks;
      next_ = 0;
      error_ = nullptr;
      places_ = threads - 1;
      ++job_;
    }
    wake_.notify_all();
    take_tasks();
    std::unique_lock<std::mutex> lock(mutex_);
    places_ = 0;  // a worker that wakes from here on has come too late
    idle_.wait(lock, [this] { return active_ == 0; });
    if (error_) std::rethrow_exception(error_);
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
      lock.unlock();
      take_tasks();
      lock.lock();
      if (--active_ == 0) idle_.notify_one();
    }
  }

  void take_tasks() {
    try {
      for (int64_t task; (task = next_.fetch_add(1)) < tasks_;) (*body_)(task);
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!error_) error_ = std::current_exception();
      next_ = tasks_;
    }
  }

  std::mutex mutex_;
  std::condition_variable wake_, idle_;
  const std::function<void(int64_t)>* body_ = nullptr;
  int64_t tasks_ = 0, job_ = 0;
  std::atomic<int64_t> next_{0};
  std::exception_ptr error_;
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
  if (threads <= 1 || (busy.exchange(true) && pool_owner == getpid())) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
  Release release;
  if (pool_owner != getpid()) {  // the first call, or a forked child, which has no threads
    pool = new Pool;             // never deleted: its threads wait until the process ends
    pool_owner = getpid();
  }
  pool->run(threads, tasks, body);
}

}  // namespace mdssd
