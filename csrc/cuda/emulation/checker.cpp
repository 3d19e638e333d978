#include "cuda/emulation/checker.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unordered_map>

#include "cuda/emulation/block.h"
#include "cuda/emulation/memory.h"

namespace qkv::emulation {

struct Touch {
  uint32_t blocks;  // serial number of the cluster of blocks; 0: nobody yet
  uint32_t time;
  uint16_t agent;
  uint8_t bytes;
  bool atomic : 1;
  bool another : 1;  // of a word's read: there is a second one
  int site;
};
// The last write, and one of the reads since: enough to find most races, not all. A second read, for few words have one, is in an
// array of its own, behind the cells: keep_read() says which two they are.
struct GlobalCell {
  Touch write, read;
};

namespace {

constexpr unsigned kWord = 4;
// Of a word: all threads of the largest cluster may have read it, and asynchronous operations.
constexpr unsigned kMostEntries = 1 << 15;
static_assert(kMostEntries >= kMaxClusterBlocks * 1024 + kAsyncAgents);

// One who touched a word of shared memory, and which of its bytes.
struct Entry {
  uint32_t time;
  uint16_t agent;
  uint8_t bytes;  // a bit each
  bool write : 1, atomic : 1, async : 1;
  int site;
};

// The last write of every byte, and the reads since that are not ordered before another of them.
struct Cell {
  uint32_t epoch;  // of another block: nothing is known
  uint8_t initialised;
  uint8_t capacity_log2 : 7, mbarrier : 1;
  uint16_t count;
  Entry* entries;
};

std::vector<Cell> cells[kMaxClusterBlocks];  // by rank
uint32_t epoch = 0;                          // of the blocks that run
unsigned thread_agents = 0;

Cell& cell_of(unsigned rank, uint32_t offset) {
  std::vector<Cell>& of_block = cells[rank];
  if (of_block.empty()) of_block.resize((kSharedStart + kMaxShared + 64 * 1024) / kWord);  // and what gaps and alignment take
  Cell& c = of_block[offset / kWord];
  if (c.epoch != epoch) {
    c.epoch = epoch;
    c.initialised = 0;
    c.mbarrier = 0;
    c.count = 0;
  }
  return c;
}

void add_entry(Cell& c, const Entry& e) {
  if (!c.entries || c.count == 1u << c.capacity_log2) {
    if (c.count == kMostEntries) return;
    c.capacity_log2 = c.entries ? c.capacity_log2 + 1 : 1;
    c.entries = static_cast<Entry*>(std::realloc(c.entries, sizeof(Entry) << c.capacity_log2));
  }
  c.entries[c.count++] = e;
}

const Thread& thread_of(unsigned agent) { return cluster[agent / launched->threads].threads[agent % launched->threads]; }

std::string who(unsigned agent) {
  char text[80];
  if (agent >= thread_agents) return "an asynchronous operation";
  const Thread& t = thread_of(agent);
  const Index3 b = t.block->index;
  if (cluster.size() > 1)
    std::snprintf(text, sizeof text, "thread (%u,%u,%u) of block (%u,%u,%u)", t.index.x, t.index.y, t.index.z, b.x, b.y, b.z);
  else
    std::snprintf(text, sizeof text, "thread (%u,%u,%u)", t.index.x, t.index.y, t.index.z);
  return text;
}

const char* verb(bool write) { return write ? "write" : "read"; }

bool ordered(uint32_t before_time, unsigned before_agent, const Access& now, const ClockRef& known) {
  if (before_time == kPending) return false;
  if (before_agent == now.agent && (now.agent < thread_agents || before_time == now.time)) return true;
  return known[before_agent] >= before_time;
}

[[noreturn]] void report_race(const Entry& e, const Access& a, unsigned rank, uint32_t offset) {
  (void)rank;
  if (e.time == kPending && e.agent == a.agent)
    fail(FaultKind::race, "%s of shared memory at %u, where this thread's cp.async at %s may still write", verb(a.write), offset,
         describe(e.site).c_str());
  fail(FaultKind::race, "data race in shared memory at %u: %s by %s%s%s, %s%s by %s at %s, and nothing orders the two", offset,
       verb(a.write), who(a.agent).c_str(), current ? "" : " at ", current ? "" : describe(a.site).c_str(), verb(e.write),
       e.time == kPending ? " (still going on)" : "", who(e.agent).c_str(), describe(e.site).c_str());
}

[[noreturn]] void report_fence(const Entry& e, const Access& a, uint32_t offset) {
  fail(FaultKind::missing_fence,
       "%s of shared memory at %u through the async proxy, which %s wrote at %s with an ordinary store and no fence.proxy.async "
       "after it",
       verb(a.write), offset, who(e.agent).c_str(), describe(e.site).c_str());
}

void check_conflicts(const Cell& c, const Access& a, const ClockRef& known, unsigned rank, uint32_t offset, uint8_t bytes) {
  for (unsigned i = 0; i < c.count; ++i) {
    const Entry& e = c.entries[i];
    if (!(e.bytes & bytes) || (!a.write && !e.write) || (a.atomic && e.atomic)) continue;
    if (!ordered(e.time, e.agent, a, known)) report_race(e, a, rank, offset);
    if (a.proxy == Proxy::async && e.write && !e.async && e.agent < thread_agents && thread_of(e.agent).knowledge.fenced < e.time)
      report_fence(e, a, offset);
  }
}

void check_word(const Access& a, const ClockRef& known, unsigned rank, uint32_t offset, uint8_t bytes) {
  Cell& c = cell_of(rank, offset);
  if (!a.write && (c.initialised & bytes) != bytes)
    fail(FaultKind::uninitialised, "read of shared memory at %u, which nobody has written", offset);
  check_conflicts(c, a, known, rank, offset, bytes);
  if (c.mbarrier && (a.write || !a.atomic))  // what mbarriers do themselves reads atomically
    fail(FaultKind::other, "%s of shared memory at %u, where an mbarrier is until mbarrier.inval", verb(a.write), offset);
  // A write replaces what it overwrites; a read replaces the reads that are ordered before it.
  for (unsigned i = 0; i < c.count;) {
    Entry& e = c.entries[i];
    if (a.write || (!e.write && a.time != kPending && ordered(e.time, e.agent, a, known)))
      e.bytes &= static_cast<uint8_t>(~bytes);
    if (e.bytes)
      ++i;
    else
      e = c.entries[--c.count];
  }
  if (a.write) c.initialised |= bytes;
  add_entry(c, {a.time, static_cast<uint16_t>(a.agent), bytes, a.write, a.atomic, a.proxy == Proxy::async, a.site});
}

template <class F>
void for_each_word(uint64_t offset, unsigned bytes, F&& f) {
  for (uint64_t at = offset, end = offset + bytes; at < end;) {
    const uint64_t word = at / kWord * kWord, next = word + kWord < end ? word + kWord : end;
    f(at, static_cast<uint8_t>(((1u << (next - at)) - 1) << (at - word)));
    at = next;
  }
}

// ---- device memory

uint32_t blocks_serial = 0;    // of the blocks that run
uint32_t first_of_launch = 1;  // of this launch's blocks
uint64_t last_launch = 0;
std::vector<ClockSum> known_blocks;  // by serial number: what of their threads' past is known here, through an atomic

// What atomics to an address told, for the threads of a block and, after a fence that reaches further, for later blocks.
struct Synchroniser {
  ClockSum clock, for_blocks;
  uint32_t clock_blocks = 0;                           // whose clocks they are
  std::vector<std::pair<uint32_t, ClockRef>> earlier;  // blocks, and what they told
  uint32_t read_by = 0;                                // blocks that have learnt it
};
std::unordered_map<uint64_t, Synchroniser> synchronisers;

inline bool ordered_before(const Touch& t, const Thread& now) {
  if (t.blocks == blocks_serial && t.time == kPending) return false;
  if (t.blocks == blocks_serial) return t.agent == now.agent || now.knowledge.others[t.agent] >= t.time;
  const uint32_t i = t.blocks - first_of_launch;
  return t.blocks < first_of_launch || (i < known_blocks.size() && known_blocks[i][t.agent] >= t.time);
}

// Whether this block has read the word with an atomic: whatever atomics it saw there come before what it does there now.
bool read_atomically(uint64_t word) {
  for (const uint64_t address : {word, word - kWord}) {  // of 4 or 8 bytes
    const auto it = synchronisers.find(address);
    if (it != synchronisers.end() && it->second.read_by == blocks_serial) return true;
  }
  return false;
}

// What no clock orders before now is a race, unless it is an atomic's that this block has seen.
void check_unordered(const Touch& t, bool t_writes, bool write, uint8_t bytes, uint64_t base, uint64_t word) {
  if (t.atomic && t.blocks != blocks_serial && read_atomically(base + word * kWord)) return;
  const long long at = static_cast<long long>(word * kWord) + __builtin_ctz(t.bytes & bytes);
  if (t.blocks == blocks_serial)
    fail(FaultKind::race,
         "data race in global memory, at %lld of an allocation: %s here, %s%s by %s at %s, and nothing orders the two", at,
         verb(write), verb(t_writes), t.time == kPending ? " (still going on)" : "", who(t.agent).c_str(),
         describe(t.site).c_str());
  fail(FaultKind::race,
       "data race in global memory, at %lld of an allocation: %s here, %s by another block at %s, and nothing orders the two", at,
       verb(write), verb(t_writes), describe(t.site).c_str());
}

inline void check_touch(const Touch& t, bool t_writes, bool write, bool atomic, uint8_t bytes, uint64_t base, uint64_t word) {
  if (t.blocks && (t.bytes & bytes) && !(t.atomic && atomic) && !ordered_before(t, *current))
    check_unordered(t, t_writes, write, bytes, base, word);
}

inline bool is_same(const Touch& t, const Access& a) {
  return t.blocks == blocks_serial && t.agent == a.agent && t.time == a.time && t.atomic == a.atomic;
}

inline void touch(Touch& t, const Access& a, uint8_t bytes) {
  const bool same = is_same(t, a);
  t = {blocks_serial, a.time, static_cast<uint16_t>(a.agent), same ? static_cast<uint8_t>(t.bytes | bytes) : bytes, a.atomic,
       false,         a.site};
}

Touch& other_read(const Allocation& a, uint64_t word) { return reinterpret_cast<Touch*>(a.shadow.cells + a.shadow.words)[word]; }

// Of the two reads that are kept nothing orders the first before a later one, and the second is as far from it as any: in another
// block, or else in another warp. So one of them races with a write by whom only its own warp, or its own block, is ordered
// before.
inline void keep_read(Touch& first, Touch& second, const Access& a, uint8_t bytes) {
  const auto needless = [&](const Touch& t) {
    return !t.blocks || is_same(t, a) || (!(t.bytes & ~bytes) && (t.atomic || !a.atomic) && ordered_before(t, *current));
  };
  const auto distance = [&](uint32_t blocks, unsigned agent) {
    return blocks != first.blocks ? 2 : agent / 32 != first.agent / 32u ? 1 : 0;
  };
  if (needless(first)) {
    const bool another = first.another && !needless(second);
    touch(first, a, bytes);
    first.another = another;
  } else if (!first.another || needless(second) || distance(blocks_serial, a.agent) >= distance(second.blocks, second.agent)) {
    touch(second, a, bytes);
    first.another = true;
  }
}

}  // namespace

void check_shared_as(const Access& a, const ClockRef& known, unsigned rank, uint32_t offset, unsigned bytes) {
  for_each_word(offset, bytes, [&](uint64_t at, uint8_t mask) { check_word(a, known, rank, static_cast<uint32_t>(at), mask); });
}

void check_shared(unsigned rank, uint32_t offset, unsigned bytes, bool write, bool atomic) {
  const Thread& t = *current;
  check_shared_as({t.agent, t.knowledge.now, t.site, write, atomic, Proxy::generic}, t.knowledge.others, rank, offset, bytes);
}

void place_mbarrier(unsigned rank, uint32_t offset, bool lives) {
  for (const uint32_t word : {offset, offset + kWord}) cell_of(rank, word).mbarrier = lives;
}

void end_pending(unsigned agent, uint32_t time, bool write, unsigned rank, uint32_t offset, unsigned bytes) {
  for_each_word(offset, bytes, [&](uint64_t at, uint8_t mask) {
    Cell& c = cell_of(rank, static_cast<uint32_t>(at));
    for (unsigned i = 0; i < c.count; ++i) {
      Entry& e = c.entries[i];
      if (e.agent == agent && e.time == kPending && e.write == write && (e.bytes & mask)) e.time = time;
    }
  });
}

void check_global(uint64_t address, unsigned bytes, bool write, GlobalUse use) {
  const Thread& t = *current;
  check_global_as({t.agent, t.knowledge.now, t.site, write, use == GlobalUse::atomic, Proxy::generic}, address, bytes, use);
}

void check_global_as(const Access& access, uint64_t address, unsigned bytes, GlobalUse use) {
  const Allocation* a = allocation_at(address);
  if (!a || !a->shadow.cells) return;
  const bool write = access.write, atomic = access.atomic;
  const bool trusted = a->shadow.made_at != unchecked_launches();
  for_each_word(address - a->base, bytes, [&](uint64_t at, uint8_t mask) {
    const uint64_t word = at / kWord;
    GlobalCell& c = a->shadow.cells[word];
    uint8_t& initialised = a->shadow.initialised[word];
    if (!write && !trusted && (initialised & mask) != mask)
      fail(FaultKind::uninitialised, "read of global memory, at %llu of an allocation of %zu bytes, which nobody has written",
           static_cast<unsigned long long>(at), a->bytes);
    check_touch(c.write, true, write, atomic, mask, a->base, word);
    if (access.proxy == Proxy::async && c.write.blocks == blocks_serial && c.write.agent < thread_agents &&
        (c.write.bytes & mask) && thread_of(c.write.agent).knowledge.fenced_global < c.write.time)
      fail(FaultKind::missing_fence,
           "%s of global memory, at %llu of an allocation, through the async proxy, which %s wrote at %s with an ordinary "
           "store and no fence.proxy.async after it",
           verb(write), static_cast<unsigned long long>(at), who(c.write.agent).c_str(), describe(c.write.site).c_str());
    if (write) {
      check_touch(c.read, false, write, atomic, mask, a->base, word);
      if (c.read.another) check_touch(other_read(*a, word), false, write, atomic, mask, a->base, word);
      touch(c.write, access, mask);
      initialised |= mask;
    } else {
      if (use == GlobalUse::read_only && c.write.blocks >= first_of_launch && (c.write.bytes & mask))
        fail(FaultKind::race, "a read-only load (ld.global.nc) at %llu of an allocation, which this kernel writes at %s",
             static_cast<unsigned long long>(at), describe(c.write.site).c_str());
      keep_read(c.read, other_read(*a, word), access, mask);
    }
  });
}

void end_pending_global(unsigned agent, uint32_t time, uint64_t address, unsigned bytes) {
  const Allocation* a = allocation_at(address);
  if (!a || !a->shadow.cells) return;
  for_each_word(address - a->base, bytes, [&](uint64_t at, uint8_t) {
    Touch& read = a->shadow.cells[at / kWord].read;
    const auto end = [&](Touch& t) {
      if (t.blocks == blocks_serial && t.agent == agent && t.time == kPending) t.time = time;
    };
    end(read);
    if (read.another) end(other_read(*a, at / kWord));
  });
}

void check_fence(bool wide) {
  Thread& t = *current;
  Knowledge& k = t.knowledge;
  learn(t, k.unfenced);
  k.unfenced = ClockRef();
  k.at_last_fence = k.others;
  k.now_at_last_fence = k.now;
  if (wide) {
    k.at_last_wide_fence = k.others;
    k.now_at_last_wide_fence = k.now;
  }
  ++k.now;
}

void check_proxy_fence(bool shared, bool global) {
  Knowledge& k = current->knowledge;
  if (shared) k.fenced = k.now;
  if (global) k.fenced_global = k.now;
  ++k.now;
}

void check_synchronising(uint64_t address, bool reads, bool writes, bool acquires, bool releases) {
  Thread& t = *current;
  Knowledge& k = t.knowledge;
  Synchroniser& s = synchronisers[address];
  if (s.clock_blocks != blocks_serial) {
    s.clock.clear();
    if (!s.for_blocks.empty()) s.earlier.emplace_back(s.clock_blocks, s.for_blocks.take());
    s.clock_blocks = blocks_serial;
  }
  if (reads) {
    const ClockRef told = s.clock.copy();
    if (acquires) {
      learn(t, told);
    } else if (told.get()) {
      ClockSum sum;
      sum.add(k.unfenced);
      sum.add(told);
      k.unfenced = sum.take();
    }
    // The whole block learns what earlier ones told, without a fence: the CUDA guide's own examples have none on this side.
    if (s.read_by != blocks_serial)
      for (const auto& [blocks, clock] : s.earlier) {
        const uint32_t i = blocks - first_of_launch;
        if (known_blocks.size() <= i) known_blocks.resize(i + 1);
        known_blocks[i].add(clock);
      }
    s.read_by = blocks_serial;
  }
  if (!writes) return;
  if (releases) {
    s.for_blocks.add(k, t.agent);
    tell(t, s.clock);
    return;
  }
  s.clock.add(k.at_last_fence);
  if (k.now_at_last_fence) s.clock.add(t.agent, k.now_at_last_fence);
  s.for_blocks.add(k.at_last_wide_fence);
  if (k.now_at_last_wide_fence) s.for_blocks.add(t.agent, k.now_at_last_wide_fence);
}

void checker_start_blocks(unsigned threads, unsigned) {
  if (!config.check) return;
  clocks_start(threads);
  thread_agents = threads;
  ++epoch;
  ++blocks_serial;
  known_blocks.clear();
  if (last_launch != launched->serial) {
    last_launch = launched->serial;
    first_of_launch = blocks_serial;
    synchronisers.clear();
  }
}

void checker_end_blocks() {}

// ---- what the host does to device memory

namespace {

void set_initialised(const void* data, size_t bytes, bool on) {
  const uint64_t address = reinterpret_cast<uint64_t>(data);
  const Allocation* a = allocation_at(address);
  if (!a || !a->shadow.cells) return;
  unsigned char* const initialised = a->shadow.initialised;
  for (uint64_t at = address - a->base, end = at + bytes; at < end;) {
    if (at % kWord == 0 && end - at >= kWord) {
      const uint64_t words = (end - at) / kWord;
      std::memset(initialised + at / kWord, on ? 0xF : 0, words);
      at += words * kWord;
    } else {
      const auto bit = static_cast<uint8_t>(1u << (at % kWord));
      uint8_t& word = initialised[at / kWord];
      word = on ? word | bit : word & static_cast<uint8_t>(~bit);
      ++at;
    }
  }
}

}  // namespace

void host_wrote(const void* data, size_t bytes) { set_initialised(data, bytes, true); }
void host_forgot(const void* data, size_t bytes) { set_initialised(data, bytes, false); }

void host_copied(const void* to, const void* from, size_t bytes) {
  const Allocation* t = allocation_at(reinterpret_cast<uint64_t>(to));
  const Allocation* f = allocation_at(reinterpret_cast<uint64_t>(from));
  if (!t || !t->shadow.cells) return;
  if (!f || !f->shadow.cells || f->shadow.made_at != unchecked_launches()) return host_wrote(to, bytes);
  const uint64_t to_base = reinterpret_cast<uint64_t>(to) - t->base, from_base = reinterpret_cast<uint64_t>(from) - f->base;
  for (size_t i = 0; i < bytes; ++i) {
    const uint64_t a = to_base + i, b = from_base + i;
    const uint8_t bit = static_cast<uint8_t>(1u << (a % kWord));
    uint8_t& word = t->shadow.initialised[a / kWord];
    word = f->shadow.initialised[b / kWord] >> (b % kWord) & 1 ? word | bit : word & static_cast<uint8_t>(~bit);
  }
}

size_t shadow_cell_bytes() { return sizeof(GlobalCell) + sizeof(Touch); }

}  // namespace qkv::emulation
