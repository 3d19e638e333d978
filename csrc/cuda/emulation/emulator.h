// What a program that runs kernels in emulation may choose and ask. All of it may be called from any host thread; launches run
// one at a time. QKV_EMULATOR in the environment sets the first configuration:
// "check=0,seed=3,schedule=random,async=late,count=1".
#pragma once
#include <stdint.h>

#include <map>
#include <mutex>
#include <string>

namespace qkv::emulation {

// Which of the threads that can run goes on.
enum class Schedule { random, in_order, reverse };
// When an asynchronous copy really happens, as long as the program cannot tell: at once, when it is waited for, or either at
// random.
enum class AsyncMode { at_issue, late, random };

struct Config {
  uint64_t seed = 1;
  Schedule schedule = Schedule::random;
  AsyncMode async = AsyncMode::random;
  bool check = true;            // races, uninitialised reads, proxy fences; bounds and alignment are always checked
  bool count = false;           // wavefronts and sectors
  bool late_streams = false;    // streams do their work when it is waited for, else when it is issued
  int compute_capability = 90;  // of the device that programs see
  int multiprocessors = 4;
  size_t memory = size_t{8} << 30;  // bytes of the device; no more than memory.h's kDeviceBytes
  // "<mangled kernel>:<PTX line>": the instruction there that waits or orders does nothing, to see whether the checker misses it.
  std::string leave_out;
};

// Reads "name=value,..." over `config`; throws std::invalid_argument for what it does not know.
void parse(const std::string& text, Config& config);
void configure(const Config&);
Config configuration();

// How often something was moved, and how often it would have been at best.
struct Traffic {
  int64_t accesses = 0;  // instructions of a warp
  int64_t moved = 0;     // shared memory: wavefronts; global: sectors of 32 bytes
  int64_t ideal = 0;
};
struct Counters {
  int64_t launches = 0, dependent = 0;  // of those, as a programmatic dependent launch
  int64_t blocks = 0;
  int64_t threads = 0, dynamic_shared = 0;  // of a block, in the last launch
  int64_t busiest = 0;                      // sectors of global memory that one block (or cluster) moved, at most
  Traffic shared_load, shared_store, matrix_load, matrix_store;  // ldmatrix, stmatrix
  Traffic global_load, global_store;
  int64_t async_copies = 0, mma = 0, wgmma = 0, barriers = 0;
};

// What was found since the last take_report. Every fault ends its launch, so a launch counts in one class at most.
struct Report {
  int64_t launches = 0, failed = 0;
  int64_t races = 0, uninitialised = 0, out_of_bounds = 0, misaligned = 0, deadlocks = 0, divergent = 0, missing_fences = 0,
          unfinished_copies = 0, other = 0;
  int64_t left_out = 0;                     // how often a thread came to what Config::leave_out names
  std::string first;                        // the first fault in words; empty: none
  std::map<std::string, Counters> kernels;  // by mangled name, where Config::count
};
Report take_report();

// Held by every call of the emulated runtime that touches state, and by launches.
std::recursive_mutex& runtime_mutex();

}  // namespace qkv::emulation
