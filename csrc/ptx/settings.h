// How programs are run.
#pragma once

#include "program.h"

namespace ptx {

struct Settings {
  // 0: lanes meet again as soon as they can, and blocks run one after the other. Another number
  // determines an interleaving of lanes, warps and blocks.
  u64 seed = 0;
  // Not 0: approximate instructions miss by up to `ulps` units in the last place, in a way that
  // this number determines.
  int noise = 0, ulps = 1;
  // Whether races, and reads of shared memory that nobody wrote, end a launch.
  bool races = false;
  // The most instructions of a launch. One that takes more is in an endless loop.
  u64 limit = u64(1) << 32;
  // What %envreg0 reads, which PTX leaves to the driver. tools/mutants.py chooses a mutant by it.
  u32 environment = 0;
};

// At first those of the environment: MDSSD_PTX_NOISE, MDSSD_PTX_ULPS, MDSSD_PTX_RACES.
Settings& settings();

// Notes of what is no fault but must be known, and how often it happened.
std::map<std::string, u64>& notes();

// Returns whether these bytes are in an array of the operator's call. If its arrays are unknown, in
// one that the process has allocated, which memory.cpp in LD_PRELOAD knows; without it, yes.
bool in_an_array(u64 address, u64 bytes);

}  // namespace ptx
