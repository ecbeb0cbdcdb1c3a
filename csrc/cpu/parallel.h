// Threads for the CPU kernels: PyTorch's OpenMP where the process has it, else a pool of our own. The
// native module is built without torch: the caller passes the number that torch was told to use.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

namespace mdssd {

// Runs body(task) for every task in [0, tasks), on at most `threads` threads, in no fixed order.
// Runs on the calling thread alone if another call holds our pool. An exception of a task is thrown
// again here.
void parallel_for(int threads, int64_t tasks, const std::function<void(int64_t)>& body);

// Runs body(begin, end) on pieces of [0, size). The pieces depend on `grain` alone, never on the
// number of threads, so what is summed within one has the same bits on every machine.
template <class Body>
void parallel_ranges(int threads, int64_t size, int64_t grain, const Body& body) {
  const int64_t tasks = (size + grain - 1) / grain;
  parallel_for(threads, tasks, [&](int64_t task) {
    body(task * grain, std::min(size, (task + 1) * grain));
  });
}

}  // namespace mdssd
