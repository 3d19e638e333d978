// Vector clocks: see checker.h.
#include <cstdlib>
#include <cstring>

#include "cuda/emulation/block.h"
#include "cuda/emulation/checker.h"

namespace qkv::emulation {
namespace {

unsigned agents = 0;  // of the blocks that run
// Of that many agents. Never destroyed: clocks may be given back while the process ends.
std::vector<Clock*>& free_clocks = *new std::vector<Clock*>;

Clock* new_clock() {
  Clock* c;
  if (free_clocks.empty()) {
    c = static_cast<Clock*>(std::malloc(sizeof(Clock) + sizeof(uint32_t) * agents));
    c->agents = agents;
  } else {
    c = free_clocks.back();
    free_clocks.pop_back();
  }
  c->references = 1;
  return c;
}

Clock* copy_of(const Clock* from) {
  Clock* c = new_clock();
  if (from)
    std::memcpy(c->at, from->at, sizeof(uint32_t) * agents);
  else
    std::memset(c->at, 0, sizeof(uint32_t) * agents);
  return c;
}

void join(Clock& into, const Clock* from) {
  if (!from) return;
  for (unsigned i = 0; i < agents; ++i) into.at[i] = into.at[i] < from->at[i] ? from->at[i] : into.at[i];
}

}  // namespace

void clocks_start(unsigned threads) {
  const unsigned n = threads + kAsyncAgents;
  if (n == agents) return;
  for (Clock* c : free_clocks) std::free(c);
  free_clocks.clear();
  agents = n;
}

ClockRef::~ClockRef() {
  if (!clock_ || --clock_->references) return;
  if (clock_->agents == agents)
    free_clocks.push_back(clock_);
  else
    std::free(clock_);
}

void ClockSum::clear() {
  sum_ = ClockRef();
  last_ = ClockRef();
}

void ClockSum::add(const ClockRef& other) {
  if (!other.get()) return;
  if (!sum_.get())
    sum_ = ClockRef(copy_of(other.get()));
  else if (other.get() != last_.get())
    join(*sum_.own(), other.get());
  last_ = other;
}

void ClockSum::add(unsigned agent, uint32_t time) {
  if (!sum_.get()) sum_ = ClockRef(copy_of(nullptr));
  uint32_t& at = sum_.own()->at[agent];
  if (at < time) at = time;
}

void ClockSum::add(const Knowledge& k, unsigned agent) {
  add(k.others);
  add(agent, k.now);
}

ClockRef ClockSum::take() {
  ClockRef sum = std::move(sum_);
  clear();
  return sum;
}

ClockRef ClockSum::copy() const { return sum_.get() ? ClockRef(copy_of(sum_.get())) : ClockRef(); }

void tell(Thread& t, ClockSum& sum) {
  if (!config.check) return;
  sum.add(t.knowledge, t.agent);
  ++t.knowledge.now;
}

void learn_all(Thread& t, const ClockRef& sum) {
  if (sum.get()) t.knowledge.others = sum;
}

void learn(Thread& t, const ClockRef& other) {
  ClockRef& mine = t.knowledge.others;
  if (!other.get() || mine.get() == other.get()) return;
  if (!mine.get()) {
    mine = other;
    return;
  }
  // Threads that wait together know the same and learn the same.
  static ClockRef left, right, joined;
  if (left.get() != mine.get() || right.get() != other.get() || !joined.get() || joined.get()->agents != agents) {
    Clock* c = copy_of(mine.get());
    join(*c, other.get());
    left = mine;
    right = other;
    joined = ClockRef(c);
  }
  mine = joined;
}

ClockRef common_knowledge(Thread* const* threads, unsigned count) {
  struct Known {
    const Clock* clock;
    unsigned only_agent, members;
  };
  std::vector<Known> distinct;
  bool nothing = false;
  for (unsigned i = 0; i < count; ++i) {
    Thread& t = *threads[i];
    const Clock* c = t.knowledge.others.get();
    ++t.knowledge.now;
    nothing |= !c;
    bool seen = false;
    for (Known& k : distinct)
      if (k.clock == c) ++k.members, seen = true;
    if (!seen) distinct.push_back({c, t.agent, 1});
  }
  if (nothing) return ClockRef();
  Clock* least = copy_of(distinct[0].clock);
  for (size_t j = 1; j < distinct.size(); ++j)
    for (unsigned i = 0; i < agents; ++i)
      if (distinct[j].clock->at[i] < least->at[i]) least->at[i] = distinct[j].clock->at[i];
  if (distinct.size() > 1)
    for (unsigned m = 0; m < count; ++m) {  // of itself a thread knows all, whatever its clock of the others says
      const unsigned agent = threads[m]->agent;
      uint32_t lowest = threads[m]->knowledge.now - 1;
      for (const Known& k : distinct)
        if ((k.members > 1 || k.only_agent != agent) && k.clock->at[agent] < lowest) lowest = k.clock->at[agent];
      least->at[agent] = lowest;
    }
  return ClockRef(least);
}

}  // namespace qkv::emulation
