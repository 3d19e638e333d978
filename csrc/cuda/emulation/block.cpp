#include "cuda/emulation/block.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "cuda/emulation/counters.h"
#include "cuda/emulation/hopper.h"
#include "cuda/emulation/memory.h"

namespace qkv::emulation {

Thread* current = nullptr;
const Launch* launched = nullptr;
Config config;
int left_out_site = -1;
int64_t times_left_out = 0;
std::vector<Block> cluster;

namespace {

Fiber host;                  // the scheduler's own stack
std::vector<Thread*> ready;  // threads that can go on; in order of arrival from `first_ready`
size_t first_ready = 0;
bool failed = false;  // fault holds why
Fault fault;
uint64_t random_state = 1;
unsigned live_threads = 0;
// Of a thread, without being woken in between. What it waits for has had as many turns; with more threads a turn takes longer.
uint64_t spin_limit() { return std::max(20'000u, 1'000'000u / live_threads); }

struct ClusterBarrier {
  unsigned arrived = 0;
  uint64_t phase = 0;
  ClockSum clock;
  ClockRef last;
  std::vector<Thread*> waiters;
  std::vector<uint64_t> waits_for;  // by agent: the phase at whose end its wait returns
} cluster_barrier;

Thread* take_ready() {
  size_t i = first_ready;
  switch (config.schedule) {
    case Schedule::in_order:
      break;
    case Schedule::reverse:
      i = ready.size() - 1;
      break;
    case Schedule::random:
      i = first_ready + random_number() % (ready.size() - first_ready);
      break;
  }
  Thread* t = ready[i];
  if (config.schedule == Schedule::in_order) {
    if (++first_ready == ready.size()) ready.clear(), first_ready = 0;
  } else {
    ready[i] = ready.back();
    ready.pop_back();
  }
  return t;
}

bool nobody_ready() { return first_ready == ready.size(); }

// Leaves the current fiber for the next thread, or for the scheduler if there is none.
void leave() {
  Thread* self = current;
  if (!failed && deferred_work_waits() && random_number() % 16 == 0) {
    try {
      run_deferred_work();
    } catch (Fault& f) {
      failed = true;
      fault = std::move(f);
    }
  }
  if (failed || nobody_ready()) {
    current = nullptr;
    switch_fiber(self->fiber, host);
  } else {
    Thread* next = take_ready();
    if (next == self) return;
    current = next;
    switch_fiber(self->fiber, next->fiber);
  }
}

void complete_barrier(Block& block, Barrier& b);
void complete_meeting(Warp& warp, size_t i);
void complete_cluster_barrier();

// A thread that returns may be the last that others wait for.
void retire(Thread& t) {
  if (!t.may_touch_global)
    fail(FaultKind::race,
         "the thread of a dependent launch returned without griddepcontrol.wait, so that the next kernel may begin "
         "before those before this one have ended");
  if (!t.copies.empty()) fail(FaultKind::unfinished_copy, "the thread returned with cp.async it never waited for");
  hopper_retire(t);
  t.done = true;
  --live_threads;
  Block& block = *t.block;
  --block.live;
  Warp& warp = block.warps[t.warp];
  warp.live &= ~(1u << t.lane);
  for (size_t i = 0; i < warp.meetings.size(); ++i)
    if ((warp.meetings[i].arrived & warp.live) == (warp.meetings[i].mask & warp.live)) complete_meeting(warp, i--);
  for (Barrier& b : block.barriers)
    if (b.arrived && b.all && b.arrived == block.live) complete_barrier(block, b);
  ClusterBarrier& c = cluster_barrier;
  if (c.waits_for[t.agent] > c.phase)
    --c.arrived;  // of the threads that are left
  else if (c.arrived && c.arrived == live_threads)
    complete_cluster_barrier();
}

void fiber_main() {
  try {
    launched->kernel->run(launched->parameters);
    retire(*current);
  } catch (Fault& f) {
    if (!failed) fault = std::move(f);
    failed = true;
  }
  for (;;) leave();
}

void start_block(Block& block, Index3 index, unsigned rank) {
  const Launch& l = *launched;
  block.index = index;
  block.rank = rank;
  block.shared = shared_window(rank);
  block.live = l.threads;
  block.threads.resize(l.threads);
  block.warps.resize((l.threads + 31) / 32);
  block.groups.resize((l.threads + 127) / 128);
  for (Warp& w : block.warps) w.live = 0, w.meetings.clear();
  for (GroupRendezvous& g : block.groups) g.arrived = 0;
  for (Barrier& b : block.barriers) {
    b.arrived = 0;
    b.site = -1;
    b.ands = 1, b.ors = 0, b.sum = 0;
    b.waiters.clear();
    b.clock.clear();
  }
  for (unsigned i = 0; i < l.threads; ++i) {
    Thread& t = block.threads[i];
    t.index = {i % l.block.x, i / l.block.x % l.block.y, i / (l.block.x * l.block.y)};
    t.linear = i;
    t.lane = i % 32;
    t.warp = i / 32;
    t.agent = rank * l.threads + i;
    t.block = &block;
    t.done = t.waiting = false;
    t.site = -1;
    t.knowledge = Knowledge();
    t.copies.clear();
    t.spins = t.plain_loads = 0;
    t.may_touch_global = !l.dependent;
    block.warps[t.warp].live |= 1u << t.lane;
    prepare(t.fiber, t.agent, &fiber_main);
    ready.push_back(&t);
  }
  live_threads += l.threads;
  poison_shared(rank);
}

std::string place(int site) {
  char text[400];
  if (site < 0) return "the start";
  const Site& s = launched->kernel->module->sites[site];
  if (s.file)
    std::snprintf(text, sizeof text, "%s:%d (%s line %d: %s)", s.file, s.line, launched->kernel->module->ptx, s.ptx_line, s.text);
  else
    std::snprintf(text, sizeof text, "%s line %d: %s", launched->kernel->module->ptx, s.ptx_line, s.text);
  return text;
}

[[noreturn]] void report_deadlock() {
  std::map<std::string, int> waiting;
  for (const Block& b : cluster)
    for (const Thread& t : b.threads)
      if (!t.done) ++waiting[std::string(t.reason) + " at " + place(t.site)];
  std::string text = "deadlock: ";
  for (const auto& [where, threads] : waiting)
    text += (text.size() > 10 ? "; " : "") + std::to_string(threads) + " threads wait for " + where;
  text += describe_mbarriers();
  fail(FaultKind::deadlock, "%s", text.c_str());
}

// Runs the threads of the blocks in `cluster` to their end.
void run_blocks() {
  while (live_threads && !failed) {
    if (nobody_ready()) {
      if (!deferred_work_waits()) report_deadlock();
      run_deferred_work();
      continue;
    }
    current = take_ready();
    switch_fiber(host, current->fiber);
    current = nullptr;
  }
  if (failed) throw std::move(fault);
  while (deferred_work_waits()) run_deferred_work();
}

void clear_after_fault() {
  ready.clear();
  first_ready = 0;
  live_threads = 0;
  failed = false;
  current = nullptr;
  drop_deferred_work();
  hopper_clear();
  for (Block& b : cluster)
    for (Thread& t : b.threads) t.copies.clear();
}

}  // namespace

std::string describe(int site) { return place(site); }

void fail(FaultKind kind, const char* what, ...) {
  char text[2000];
  va_list arguments;
  va_start(arguments, what);
  std::vsnprintf(text, sizeof text, what, arguments);
  va_end(arguments);
  std::string full = text;
  if (current) {
    const Index3 b = current->block->index, t = current->index;
    char where[200];
    std::snprintf(where, sizeof where, "; block (%u,%u,%u) thread (%u,%u,%u) at ", b.x, b.y, b.z, t.x, t.y, t.z);
    full += where + place(current->site);
  } else if (launched && !cluster.empty()) {
    const Index3 b = cluster[0].index;
    std::snprintf(text, sizeof text, "; block (%u,%u,%u)", b.x, b.y, b.z);
    full += text;
  }
  if (launched) full += std::string("; kernel ") + launched->kernel->name;
  throw Fault{kind, full};
}

namespace {

int find_left_out(const Kernel& k) {
  const size_t colon = config.leave_out.rfind(':');
  if (colon == std::string::npos || find_kernel(config.leave_out.substr(0, colon).c_str()) != &k) return -1;
  const int line = std::atoi(config.leave_out.c_str() + colon + 1);
  for (unsigned i = k.first_site; i < k.end_site; ++i)
    if (k.module->sites[i].ptx_line == line) return static_cast<int>(i);
  return -1;
}

}  // namespace

uint64_t random_number() {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return (random_state * 0x2545F4914F6CDD1DULL) >> 16;
}

void wait_until_woken(const char* reason) {
  current->waiting = true;
  current->reason = reason;
  leave();
}

void wake(Thread* t) {
  t->waiting = false;
  t->spins = 0;
  ready.push_back(t);
}

void let_others_run(bool spinning) {
  Thread& t = *current;
  if (spinning && ++t.spins > spin_limit())
    fail(FaultKind::deadlock, "the thread spins for ever (or waits for another block, which runs later)");
  if (spinning && config.schedule == Schedule::reverse)
    ready.insert(ready.begin(), &t);  // at the end it would be the next again, and what it waits for would never run
  else
    ready.push_back(&t);
  t.reason = "its turn";
  leave();
}

void grid_dependency_wait(int site) {
  if (left_out(site)) return;
  current->site = site;
  current->may_touch_global = true;
}

// ---- barriers of a block

namespace {

void complete_barrier(Block& block, Barrier& b) {
  b.arrived = 0;
  b.site = -1;
  b.last_ands = b.ands, b.last_ors = b.ors, b.last_sum = b.sum;
  b.ands = 1, b.ors = 0, b.sum = 0;
  const ClockRef sum = b.clock.take();
  for (Thread* t : b.waiters) {
    learn_all(*t, sum);
    wake(t);
  }
  b.waiters.clear();
  (void)block;
}

Barrier& arrive(int site, unsigned id, unsigned count, bool wait, bool predicate) {
  Thread& t = *current;
  t.site = site;
  Block& block = *t.block;
  if (id >= 16) fail(FaultKind::other, "barrier %u: there are 16", id);
  if (count % 32) fail(FaultKind::other, "barrier %u: %u threads is not a whole number of warps", id, count);
  Barrier& b = block.barriers[id];
  bool all = count == 0;
  const unsigned expected = all ? block.live : count;
  if (b.arrived) {
    if (!(b.all && all) && b.expected != expected)
      fail(FaultKind::divergent, "barrier %u: %u threads are expected here, %u at %s", id, expected, b.expected,
           place(b.site).c_str());
    if (all && b.all && b.site != site)
      fail(FaultKind::divergent, "__syncthreads in divergent code: other threads are at %s", place(b.site).c_str());
    all &= b.all;  // who said how many come does not mean that those who return are among them
  }
  b.site = site;
  b.all = all;
  b.expected = expected;
  b.ands &= predicate, b.ors |= predicate, b.sum += predicate;
  if (counted && t.linear == 0) ++counted->barriers;
  tell(t, b.clock);
  if (wait) b.waiters.push_back(&t);
  if (++b.arrived > expected) fail(FaultKind::divergent, "barrier %u: more than %u threads came", id, expected);
  if (b.arrived == expected) {
    complete_barrier(block, b);
    if (wait) {  // complete_barrier put this thread among the ready
      t.reason = "its turn";
      leave();
    }
  } else if (wait) {
    wait_until_woken(all ? "__syncthreads" : "a named barrier");
  }
  return b;
}

}  // namespace

void barrier(int site, unsigned id, unsigned count, bool wait) {
  if (!left_out(site)) arrive(site, id, count, wait, false);
}

int barrier_reduce(int site, unsigned id, unsigned count, Reduction r, bool predicate) {
  // No thread can come to this barrier again, and change the result, before all have read it.
  const Barrier& b = arrive(site, id, count, true, predicate);
  switch (r) {
    case Reduction::popc:
      return b.last_sum;
    case Reduction::all:
      return b.last_ands;
    default:
      return b.last_ors;
  }
}

// ---- collectives

namespace {

void complete_meeting(Warp& warp, size_t i) {
  Rendezvous m = warp.meetings[i];
  warp.meetings[i] = warp.meetings.back();
  warp.meetings.pop_back();
  Thread* const lanes = &current->block->threads[(current->linear / 32) * 32];
  if (m.run) m.run(m.slots, m.arrived, m.argument);
  if (m.orders_memory && config.check) {
    ClockSum sum;
    for (unsigned lane = 0; lane < 32; ++lane)
      if (m.arrived >> lane & 1) tell(lanes[lane], sum);
    const ClockRef all = sum.take();
    for (unsigned lane = 0; lane < 32; ++lane)
      if (m.arrived >> lane & 1) learn_all(lanes[lane], all);
  }
  for (unsigned lane = 0; lane < 32; ++lane)
    if ((m.arrived >> lane & 1) && lane != current->lane) wake(lanes + lane);
}

}  // namespace

void meet_warp(int site, uint32_t mask, void* slot, Together run, void* argument, bool orders_memory) {
  Thread& t = *current;
  t.site = site;
  Warp& warp = t.block->warps[t.warp];
  if (!(mask >> t.lane & 1))
    fail(FaultKind::divergent, "a warp collective whose mask %08x does not have the calling lane %u", mask, t.lane);
  size_t i = 0;
  for (; i < warp.meetings.size(); ++i) {
    const Rendezvous& m = warp.meetings[i];
    if (!(m.mask & mask)) continue;
    if (m.mask != mask || (m.site != site && (m.run || run)))  // __syncwarp has no operands: any other is the same
      fail(FaultKind::divergent, "lanes of a warp are at different collectives: mask %08x here, %08x at %s", mask, m.mask,
           place(m.site).c_str());
    break;
  }
  if (i == warp.meetings.size()) {
    warp.meetings.emplace_back();
    Rendezvous& m = warp.meetings.back();
    m.mask = mask;
    m.arrived = 0;
    m.site = site;
    m.run = run;
    m.argument = argument;
    m.orders_memory = orders_memory;
  }
  Rendezvous& m = warp.meetings[i];
  m.slots[t.lane] = slot;
  m.arrived |= 1u << t.lane;
  if (m.arrived == (mask & warp.live))
    complete_meeting(warp, i);
  else
    wait_until_woken("the other lanes of its warp");
}

void meet_group(int site, void* slot, Together run, void* argument) {
  Thread& t = *current;
  t.site = site;
  const unsigned first = t.linear / 128 * 128;
  GroupRendezvous& g = t.block->groups[t.linear / 128];
  if (first + 128 > t.block->threads.size()) fail(FaultKind::divergent, "a warpgroup instruction in less than four warps");
  if (g.arrived && g.site != site)
    fail(FaultKind::divergent, "threads of a warpgroup are at different instructions: others at %s", place(g.site).c_str());
  g.site = site;
  g.slots[t.linear - first] = slot;
  if (++g.arrived < 128) return wait_until_woken("the other threads of its warpgroup");
  g.arrived = 0;
  if (run) run(g.slots, 0xFFFFFFFF, argument);
  for (unsigned i = 0; i < 128; ++i)
    if (first + i != t.linear) wake(&t.block->threads[first + i]);
}

namespace {

void complete_cluster_barrier() {
  ClusterBarrier& b = cluster_barrier;
  b.arrived = 0;
  ++b.phase;
  b.last = b.clock.take();
  for (Thread* w : b.waiters) {
    learn_all(*w, b.last);
    wake(w);
  }
  b.waiters.clear();
}

}  // namespace

void meet_cluster_arrive(int site) {
  Thread& t = *current;
  t.site = site;
  ClusterBarrier& b = cluster_barrier;
  tell(t, b.clock);
  b.waits_for[t.agent] = b.phase + 1;
  if (++b.arrived == live_threads) complete_cluster_barrier();
}

void meet_cluster_wait(int site) {
  if (left_out(site)) return;
  Thread& t = *current;
  t.site = site;
  ClusterBarrier& b = cluster_barrier;
  if (b.waits_for[t.agent] <= b.phase) return learn(t, b.last);
  b.waiters.push_back(&t);
  wait_until_woken("the cluster's barrier");
}

// ---- the grid

void run_grid(const Launch& l) {
  launched = &l;
  random_state = (config.seed + 1) * 0x9E3779B97F4A7C15ULL ^ l.serial * 0xD1B54A32D192ED03ULL;
  if (!random_state) random_state = 1;
  lay_out_shared();
  left_out_site = find_left_out(*l.kernel);
  const Index3 clusters{l.grid.x / l.cluster.x, l.grid.y / l.cluster.y, l.grid.z / l.cluster.z};
  cluster.resize(l.cluster_size);
  const uint64_t total = uint64_t{clusters.x} * clusters.y * clusters.z;
  try {
    for (uint64_t n = 0; n < total; ++n) {
      const uint64_t i = config.schedule == Schedule::reverse ? total - 1 - n : n;
      const Index3 first{static_cast<unsigned>(i % clusters.x) * l.cluster.x,
                         static_cast<unsigned>(i / clusters.x % clusters.y) * l.cluster.y,
                         static_cast<unsigned>(i / clusters.x / clusters.y) * l.cluster.z};
      checker_start_blocks(l.cluster_size * l.threads, l.cluster_size);
      hopper_start_blocks();
      counters_start_blocks();
      cluster_barrier.arrived = 0;
      cluster_barrier.phase = 0;
      cluster_barrier.clock.clear();
      cluster_barrier.last = ClockRef();
      cluster_barrier.waiters.clear();
      cluster_barrier.waits_for.assign(l.cluster_size * l.threads, 0);
      for (unsigned rank = 0; rank < l.cluster_size; ++rank) {
        const Index3 in{rank % l.cluster.x, rank / l.cluster.x % l.cluster.y, rank / l.cluster.x / l.cluster.y};
        start_block(cluster[rank], {first.x + in.x, first.y + in.y, first.z + in.z}, rank);
      }
      run_blocks();
      hopper_end_blocks();
      counters_end_blocks();
      checker_end_blocks();
    }
  } catch (...) {
    clear_after_fault();
    counters_end_blocks();
    checker_end_blocks();
    launched = nullptr;
    throw;
  }
  launched = nullptr;
}

}  // namespace qkv::emulation
