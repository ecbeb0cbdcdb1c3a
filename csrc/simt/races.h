// Finds data races of a launch by the happens-before relation, as ThreadSanitizer and
// compute-sanitizer do, so that a missing barrier or atomic shows whatever the order of the threads.
//
// Two accesses of different threads to the same bytes, at least one of them a write, are a race
// unless
//   - both are atomic; a volatile access counts as one,
//   - both belong to one block and a __syncthreads lies between them,
//   - both belong to one warp and a __syncwarp that both lanes take part in lies between them, or a
//     chain of these. Other warp intrinsics order no memory, as CUDA's manual says.
// Blocks of a launch are never ordered. An atomic orders no other access.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <set>
#include <tuple>
#include <unordered_map>
#include <vector>

namespace simt {

// Who accesses memory, how and where in the code.
struct Access {
  uint32_t block = 0;  // counted from 1; 0 if there is no access
  uint32_t epoch = 0;  // barriers that the block has passed
  uint32_t clock = 0;  // warp synchronisations that the lane has taken part in, counted from 1
  uint32_t thread = 0;
  uintptr_t code = 0;  // the return address of the hook
};

struct Race {
  Access before, now;
  bool wrote, writes, was_atomic, is_atomic, shared;
};

class Races {
 public:
  static constexpr unsigned kLanes = 32, kMostThreads = 1024;

  void begin_launch() {
    pages_.clear();
    rare_.clear();
    rare_.emplace_back();  // index 0 means none
    recent_ = {};
    found_.clear();
    known_.clear();
    block_ = 0;
  }

  void begin_block(uint32_t number, unsigned threads) {
    block_ = number + 1;
    epoch_ = 1;
    for (unsigned t = 0; t < threads; ++t) {
      seen_[t].fill(0);
      seen_[t][t % kLanes] = 1;
    }
  }

  void barrier() { ++epoch_; }

  // The lanes of `mask` of the warp that begins at thread `first` wait for one another.
  void sync_warp(unsigned first, unsigned mask) {
    Clocks joined = {};
    for (unsigned i = 0; i < kLanes; ++i)
      if (mask >> i & 1u)
        for (unsigned k = 0; k < kLanes; ++k) joined[k] = std::max(joined[k], seen_[first + i][k]);
    for (unsigned i = 0; i < kLanes; ++i)
      if (mask >> i & 1u) {
        seen_[first + i] = joined;
        ++seen_[first + i][i];
      }
  }

  void access(const void* address, unsigned bytes, bool write, bool atomic, bool shared,
              unsigned thread, uintptr_t code) {
    const Access now = {block_, epoch_, seen_[thread][thread % kLanes], thread, code};
    auto at = reinterpret_cast<uintptr_t>(address);
    for (const uintptr_t end = at + bytes; at < end;) {
      Page& page = page_of(at, bytes);
      const uintptr_t page_end = std::min(end, (at | (kPage - 1)) + 1);
      refine(page, at, page_end);
      for (; at < page_end; at += uintptr_t(1) << page.shift)
        visit(page.cells[(at & (kPage - 1)) >> page.shift], now, write, atomic, shared);
    }
  }

  // The races of the launch, one for each pair of places.
  const std::vector<Race>& found() const { return found_; }

 private:
  using Clocks = std::array<uint32_t, kLanes>;
  static constexpr uintptr_t kPage = 4096;

  // What is known of the last accesses to a few bytes. Of reads that are not ordered among
  // themselves two are kept, from different blocks or warps if there are such: a later write that is
  // ordered after both is ordered after all, unless it follows a __syncwarp of a part of the warp.
  struct Rare {
    Access second_read;
    Access atomic_reads[2], atomic_writes[2];
  };
  struct Cell {
    Access write, read;
    uint32_t rare = 0;  // index into rare_
  };

  // The cells of 4096 bytes. A cell stands for as many bytes as the smallest access had.
  struct Page {
    unsigned shift;
    std::vector<Cell> cells;
  };

  // Splits the cells of a page until accesses to [begin, end) need no part of one.
  void refine(Page& page, uintptr_t begin, uintptr_t end) {
    while ((begin | end) & ((uintptr_t(1) << page.shift) - 1)) {
      std::vector<Cell> finer(2 * page.cells.size());
      for (size_t i = 0; i < finer.size(); ++i) {
        finer[i] = page.cells[i / 2];
        if (finer[i].rare == 0 || i % 2 == 0) continue;
        const Rare copy = rare_[finer[i].rare];
        finer[i].rare = uint32_t(rare_.size());
        rare_.push_back(copy);
      }
      page.cells.swap(finer);
      --page.shift;
    }
  }

  Page& page_of(uintptr_t at, unsigned bytes) {
    const uintptr_t number = at / kPage;
    Recent& recent = recent_[number % recent_.size()];
    if (recent.page == nullptr || recent.number != number) {
      std::unique_ptr<Page>& page = pages_[number];
      if (!page) {
        const unsigned shift = bytes >= 8 ? 3 : bytes >= 4 ? 2 : bytes >= 2 ? 1 : 0;
        page.reset(new Page{shift, std::vector<Cell>(kPage >> shift)});
      }
      recent = {number, page.get()};
    }
    return *recent.page;
  }

  Rare& rare_of(Cell& cell) {
    if (cell.rare == 0) {
      cell.rare = uint32_t(rare_.size());
      rare_.emplace_back();
    }
    return rare_[cell.rare];
  }

  bool ordered(const Access& before, const Access& now, bool shared) const {
    if (before.block == 0) return true;
    if (before.block != now.block) return shared;  // each block has its own shared memory
    if (before.thread == now.thread || before.epoch < now.epoch) return true;
    return before.thread / kLanes == now.thread / kLanes &&
           seen_[now.thread][before.thread % kLanes] >= before.clock;
  }

  void keep(Access& first, Access& second, const Access& now, bool shared) const {
    const bool after_second = ordered(second, now, shared);
    if (ordered(first, now, shared)) {
      first = now;
      if (after_second) second = {};
    } else if (after_second || farther(first, second, now)) {
      second = now;
    }
  }

  static bool farther(const Access& first, const Access& second, const Access& now) {
    const auto distance = [&](const Access& other) {
      return first.block != other.block                       ? 2
             : first.thread / kLanes != other.thread / kLanes ? 1
                                                              : 0;
    };
    return distance(now) > distance(second);
  }

  void visit(Cell& cell, const Access& now, bool write, bool atomic, bool shared) {
    const auto check = [&](const Access& before, bool wrote, bool was_atomic) {
      if (ordered(before, now, shared)) return;
      if (known_.insert({before.code, now.code, write}).second)
        found_.push_back({before, now, wrote, write, was_atomic, atomic, shared});
    };
    check(cell.write, true, false);
    if (write) check(cell.read, false, false);
    if (cell.rare != 0) {
      const Rare& rare = rare_[cell.rare];
      if (write) check(rare.second_read, false, false);
      for (int i = 0; i < 2 && !atomic; ++i) {
        check(rare.atomic_writes[i], true, true);
        if (write) check(rare.atomic_reads[i], false, true);
      }
    }
    if (atomic) {
      Rare& rare = rare_of(cell);
      Access* const pair = write ? rare.atomic_writes : rare.atomic_reads;
      keep(pair[0], pair[1], now, shared);
    } else if (write) {
      cell.write = now;
      cell.read = {};
      if (cell.rare != 0) rare_[cell.rare] = {};
    } else if (ordered(cell.read, now, shared) && cell.rare == 0) {
      cell.read = now;
    } else {
      keep(cell.read, rare_of(cell).second_read, now, shared);
    }
  }

  struct Recent {
    uintptr_t number = 0;
    Page* page = nullptr;
  };
  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  std::array<Recent, 1024> recent_ = {};
  std::vector<Rare> rare_;
  std::array<Clocks, kMostThreads> seen_ = {};
  uint32_t block_ = 0, epoch_ = 1;
  std::vector<Race> found_;
  std::set<std::tuple<uintptr_t, uintptr_t, bool>> known_;
};

}  // namespace simt
