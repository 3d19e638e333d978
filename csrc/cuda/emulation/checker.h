// Who knows what whom has done: vector clocks, and for every word of memory who read and wrote it last.
//
// An agent is a thread, or something that moves data by itself (a TMA unit). Each has a clock that ticks when it tells others
// something: an access by agent a at time t is ordered before what agent b does now if b's knowledge of a is at least t.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

namespace qkv::emulation {

struct Thread;

constexpr unsigned kAsyncAgents = 96;
constexpr uint32_t kPending = 0xFFFFFFFF;  // the time of what has not ended: ordered before nothing

// The times of all agents, shared by those who learnt them together, and never changed.
struct Clock {
  int references;
  unsigned agents;
  uint32_t at[1];  // as many as there are agents
};

class ClockRef {
 public:
  ClockRef() = default;
  explicit ClockRef(Clock* fresh) : clock_(fresh) {}
  ClockRef(const ClockRef& other) : clock_(other.clock_) {
    if (clock_) ++clock_->references;
  }
  ClockRef(ClockRef&& other) noexcept : clock_(other.clock_) { other.clock_ = nullptr; }
  ClockRef& operator=(ClockRef other) noexcept {
    Clock* mine = clock_;
    clock_ = other.clock_;
    other.clock_ = mine;
    return *this;
  }
  ~ClockRef();
  const Clock* get() const { return clock_; }
  Clock* own() { return clock_; }  // of one who shares it with nobody
  uint32_t operator[](unsigned agent) const { return clock_ ? clock_->at[agent] : 0; }

 private:
  Clock* clock_ = nullptr;
};

// What a thread knows of the others; of itself it knows `now`.
struct Knowledge {
  ClockRef others;
  uint32_t now = 1;
  // Generic writes up to here are visible to the async proxy (fence.proxy.async).
  uint32_t fenced = 0, fenced_global = 0;
  ClockRef at_last_fence;  // what a relaxed atomic passes on, and
  uint32_t now_at_last_fence = 0;
  ClockRef at_last_wide_fence;  // the same for other blocks
  uint32_t now_at_last_wide_fence = 0;
  ClockRef unfenced;  // what a relaxed atomic brought, and the next fence makes known
};

// What several threads have told a barrier.
class ClockSum {
 public:
  void add(const Knowledge&, unsigned agent);
  void add(const ClockRef&);
  void add(unsigned agent, uint32_t time);
  ClockRef take();  // the sum; starts again from nothing
  ClockRef copy() const;
  void clear();
  bool empty() const { return !sum_.get(); }
  uint32_t operator[](unsigned agent) const { return sum_[agent]; }

 private:
  ClockRef sum_, last_;  // last_: what was added last, and need not be added again
};

// Passing knowledge on. All do nothing where the checker is off.
void tell(Thread&, ClockSum&);             // release: what the thread has done so far
void learn_all(Thread&, const ClockRef&);  // acquire from a sum to which this thread told, too
void learn(Thread&, const ClockRef&);      // acquire

// What all of these threads know: the least of each. They tick, as with tell.
ClockRef common_knowledge(Thread* const* threads, unsigned count);

enum class Proxy : uint8_t { generic, async };

struct Access {
  unsigned agent;
  uint32_t time;
  int site;
  bool write, atomic;
  Proxy proxy;
};

// An access of the current thread to shared memory of the block of `rank`, at `offset`.
void check_shared(unsigned rank, uint32_t offset, unsigned bytes, bool write, bool atomic = false);
// The same by any agent, with any time; kPending for what is not over. `reader` is whose knowledge counts: nullptr for one who
// knows nothing more than `known`.
void check_shared_as(const Access&, const ClockRef& known, unsigned rank, uint32_t offset, unsigned bytes);
// What `agent` did here with time kPending at `site` is over: its time is `time` now.
void end_pending(unsigned agent, uint32_t time, bool write, unsigned rank, uint32_t offset, unsigned bytes);

// From now on an mbarrier lives here, or does no longer: ordinary accesses are faults while it does.
void place_mbarrier(unsigned rank, uint32_t offset, bool lives);

enum class GlobalUse { ordinary, read_only, atomic };  // read_only: ld.global.nc
void check_global(uint64_t address, unsigned bytes, bool write, GlobalUse use = GlobalUse::ordinary);
// The same by any agent, on behalf of the current thread: an asynchronous operation.
void check_global_as(const Access&, uint64_t address, unsigned bytes, GlobalUse use = GlobalUse::ordinary);
// What `agent` read here with time kPending is over.
void end_pending_global(unsigned agent, uint32_t time, uint64_t address, unsigned bytes);

// membar, fence: orders relaxed atomics before and after it; `wide`: for other blocks, too.
void check_fence(bool wide);
void check_proxy_fence(bool shared, bool global);
// An atomic, volatile, relaxed, acquire or release access to `address` (as for global memory; shared: its generic address).
void check_synchronising(uint64_t address, bool reads, bool writes, bool acquires, bool releases);

// Begin and end of a cluster of blocks of a launch.
void checker_start_blocks(unsigned threads, unsigned ranks);
void checker_end_blocks();
void clocks_start(unsigned threads);

// Of one word of device memory.
size_t shadow_cell_bytes();

}  // namespace qkv::emulation
