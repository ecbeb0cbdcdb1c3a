// Runs the tasks of a CPU kernel on PyTorch's OpenMP threads if the process has loaded GNU OpenMP,
// and otherwise on a thread pool of its own. The module is built without torch, so the caller
// passes torch's number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

namespace mdssd {

// Runs body(task) for every task in [0, tasks) on at most `threads` threads, in no particular
// order. If another call is using the pool, all tasks run on the calling thread. The first
// exception that a task throws is rethrown here.
void parallel_for(int threads, int64_t tasks, const std::function<void(int64_t)>& body);

// Runs body(begin, end) on pieces of [0, size) with at most `grain` elements. The pieces do not
// depend on the number of threads, so neither do sums within a piece.
template <class Body>
void parallel_ranges(int threads, int64_t size, int64_t grain, const Body& body) {
  const int64_t tasks = (size + grain - 1) / grain;
  parallel_for(threads, tasks, [&](int64_t task) {
    body(task * grain, std::min(size, (task + 1) * grain));
  });
}

}  // namespace mdssd
