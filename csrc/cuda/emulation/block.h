// A running thread block (or cluster of blocks): its threads, which of them runs, and everything at which they wait for one
// another.
#pragma once
#include <stdint.h>

#include <vector>

#include "cuda/emulation/async.h"
#include "cuda/emulation/checker.h"
#include "cuda/emulation/emulator.h"
#include "cuda/emulation/fault.h"
#include "cuda/emulation/fiber.h"
#include "cuda/emulation/registry.h"

namespace qkv::emulation {

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};

struct Block;

struct Thread {
  Index3 index;         // threadIdx
  unsigned linear = 0;  // in its block
  unsigned lane = 0, warp = 0;
  unsigned agent = 0;  // in its cluster: the checker's name for it
  Block* block = nullptr;
  Fiber fiber;
  bool done = false;
  bool waiting = false;
  const char* reason = "";  // of waiting, for reports of deadlocks
  int site = 0;             // the instruction it is at
  Knowledge knowledge;
  CopyGroups copies;  // cp.async
  uint64_t spins = 0;
  uint64_t plain_loads = 0;      // of global memory
  bool may_touch_global = true;  // not in a dependent launch before griddepcontrol.wait
};

// Lanes of a warp, or threads of a warpgroup, that have come to an instruction which they execute together.
using Together = void (*)(void** slots, uint32_t mask, void* argument);
struct Rendezvous {
  uint32_t mask = 0, arrived = 0;
  int site = 0;
  Together run = nullptr;
  void* argument = nullptr;
  bool orders_memory = false;
  void* slots[32] = {};
};
struct GroupRendezvous {
  unsigned arrived = 0;
  int site = 0;
  void* slots[128] = {};
};

struct Warp {
  uint32_t live = 0;                 // lanes that have not returned
  std::vector<Rendezvous> meetings;  // of disjoint masks
};

// bar.sync and its relatives; barrier 0 without a count is __syncthreads.
struct Barrier {
  unsigned arrived = 0, expected = 0;
  int site = -1;
  bool all = false;                // waits for every live thread of the block
  int ands = 1, ors = 0, sum = 0;  // of the predicates of bar.red
  int last_ands = 0, last_ors = 0, last_sum = 0;
  std::vector<Thread*> waiters;
  ClockSum clock;
};

struct Block {
  Index3 index;       // blockIdx
  unsigned rank = 0;  // in its cluster
  unsigned live = 0;
  unsigned char* shared = nullptr;  // its window
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<GroupRendezvous> groups;  // of 4 warps each
  Barrier barriers[16];
};

// What <<<>>> said.
struct Launch {
  const Kernel* kernel = nullptr;
  Index3 grid, block, cluster{1, 1, 1};
  unsigned threads = 0;       // of a block
  unsigned cluster_size = 1;  // blocks
  unsigned dynamic_shared = 0;
  unsigned dynamic_base = 0;  // where the extern array starts
  bool dependent = false;     // it may begin before the kernel before it has ended
  const unsigned char* parameters = nullptr;
  uint64_t serial = 0;
};

extern Thread* current;         // nullptr outside fibers
extern const Launch* launched;  // the launch that runs
extern Config config;
extern int left_out_site;       // Config::leave_out in this launch, or -1
extern int64_t times_left_out;  // since the last report
inline bool left_out(int site) { return site == left_out_site && ++times_left_out; }
extern std::vector<Block> cluster;  // the blocks that run: one, or those of a cluster

// Runs every block of the grid; throws Fault.
void run_grid(const Launch&);
// The same with the configuration that was asked for, and into the report. false: a fault, in these words.
bool run_launch(const Launch&, std::string& fault_text);

uint64_t random_number();

// Where an instruction is and what it says.
std::string describe(int site);

// The current thread gives way until wake(). `reason` must live on; it is what a report of a deadlock says.
void wait_until_woken(const char* reason);
void wake(Thread*);
// Others may run before the current thread goes on. For instructions that programs spin on: a thread that spins for ever is a
// fault.
void let_others_run(bool spinning);

// griddepcontrol.wait.
void grid_dependency_wait(int site);

// bar.sync id[, count]: count 0 is all live threads. wait == false: bar.arrive.
void barrier(int site, unsigned id, unsigned count, bool wait = true);
enum class Reduction { popc, all, any };
int barrier_reduce(int site, unsigned id, unsigned count, Reduction, bool predicate);

// Every lane in `mask` brings `slot`; the last one to come calls run(slots, mask of those that came, argument) for all. If
// orders_memory, what each did before is seen by all after.
void meet_warp(int site, uint32_t mask, void* slot, Together run, void* argument = nullptr, bool orders_memory = false);
// The same for the 128 threads of a warpgroup; `mask` of run is meaningless, and slots are by thread of the group.
void meet_group(int site, void* slot, Together run, void* argument = nullptr);
// The same for all threads of a cluster, without slots: barrier.cluster.
void meet_cluster_arrive(int site);
void meet_cluster_wait(int site);

}  // namespace qkv::emulation
