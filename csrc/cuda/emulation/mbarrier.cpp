// mbarriers. Their 8 bytes of shared memory hold nothing; the state is in a table by address.
#include <unordered_map>

#include "cuda/emulation/block.h"
#include "cuda/emulation/hopper.h"
#include "cuda/emulation/memory.h"

namespace qkv::emulation {
namespace {

constexpr int64_t kMaxBytes = (1 << 20) - 1;

struct Mbarrier {
  uint32_t arrivals = 0;  // a phase
  uint32_t pending = 0;   // arrivals to come in this one
  int64_t bytes = 0;      // to come; negative where they came before they were expected
  uint64_t phase = 0;
  unsigned initialiser = 0;  // agent
  bool fenced = false;       // TMA may see that it was initialised
  bool unobserved = false;   // bytes came and nobody has waited for the phase yet
  int load_site = -1;        // of the instruction that brought them
  ClockSum clock;            // of all that came, in earlier phases too
  ClockRef last;             // when the last phase ended
  std::vector<Thread*> waiters;
};

std::unordered_map<uint64_t, Mbarrier> barriers;

uint64_t key(unsigned rank, uint32_t offset) { return static_cast<uint64_t>(rank) << 32 | offset; }

Mbarrier& find(unsigned rank, uint32_t offset) {
  const auto it = barriers.find(key(rank, offset));
  if (it == barriers.end()) fail(FaultKind::uninitialised, "there is no mbarrier at shared memory address %u", offset);
  return it->second;
}

// For an access of the current thread.
Mbarrier& use(int site, uint32_t address) {
  current->site = site;
  shared_bytes(address, 8, 8);
  const SharedPlace p = shared_place(address);
  Mbarrier& b = find(p.rank, p.offset);
  if (config.check) check_shared(p.rank, p.offset, 8, false, true);
  return b;
}

void end_phase_if_complete(Mbarrier& b) {
  if (b.pending || b.bytes) return;
  ++b.phase;
  b.pending = b.arrivals;
  b.last = b.clock.copy();
  for (Thread* t : b.waiters) wake(t);
  b.waiters.clear();
}

bool is_over(const Mbarrier& b, uint32_t parity) { return (b.phase & 1) != (parity & 1); }

bool see_end(Mbarrier& b, bool acquires) {
  b.unobserved = false;
  if (acquires) learn(*current, b.last);
  return true;
}

}  // namespace

void mbarrier_start_blocks() { barriers.clear(); }

std::string describe_mbarriers() {
  std::string text;
  for (const auto& [at, b] : barriers)
    if (!b.waiters.empty())
      text += "; the mbarrier at shared memory address " + std::to_string(static_cast<uint32_t>(at)) + ", in phase " +
              std::to_string(b.phase) + ", waits for " + std::to_string(b.pending) + " of " + std::to_string(b.arrivals) +
              " arrivals and " + std::to_string(b.bytes) + " bytes";
  return text;
}

void mbarrier_end_blocks() {
  for (const auto& [at, b] : barriers)
    if (b.unobserved)
      fail(FaultKind::unfinished_copy, "the block ended without a wait for what TMA loaded at %s", describe(b.load_site).c_str());
}

void mbarrier_init(int site, uint32_t address, uint32_t arrivals) {
  current->site = site;
  shared_bytes(address, 8, 8);
  const SharedPlace p = shared_place(address);
  if (config.check) check_shared(p.rank, p.offset, 8, true);
  if (arrivals == 0 || arrivals > kMaxBytes) fail(FaultKind::other, "an mbarrier for %u arrivals", arrivals);
  barriers.erase(key(p.rank, p.offset));
  Mbarrier& b = barriers[key(p.rank, p.offset)];
  b.arrivals = b.pending = arrivals;
  b.initialiser = current->agent;
  if (config.check) place_mbarrier(p.rank, p.offset, true);
}

void mbarrier_invalidate(int site, uint32_t address) {
  use(site, address);
  const SharedPlace p = shared_place(address);
  barriers.erase(key(p.rank, p.offset));
  if (config.check) place_mbarrier(p.rank, p.offset, false);
}

void mbarrier_init_fence(int site) {
  if (left_out(site)) return;
  for (auto& [at, b] : barriers)
    if (b.initialiser == current->agent) b.fenced = true;
}

void mbarrier_arrive(int site, uint32_t address, uint32_t arrivals, bool releases) {
  Mbarrier& b = use(site, address);
  if (arrivals > b.pending) fail(FaultKind::other, "more than the %u arrivals that the mbarrier waits for", b.arrivals);
  if (releases) tell(*current, b.clock);
  b.pending -= arrivals;
  if (b.pending == 0 && b.bytes < 0)
    fail(FaultKind::other, "%lld bytes more than expected came to the mbarrier", static_cast<long long>(-b.bytes));
  end_phase_if_complete(b);
}

void mbarrier_expect(int site, uint32_t address, uint32_t bytes) {
  Mbarrier& b = use(site, address);
  b.bytes += bytes;
  if (b.bytes > kMaxBytes)
    fail(FaultKind::other, "an mbarrier that expects %lld bytes: at most 2^20 - 1", static_cast<long long>(b.bytes));
}

void mbarrier_check_for_tma(uint32_t address) {
  shared_bytes(address, 8, 8);
  const SharedPlace p = shared_place(address);
  const Mbarrier& b = find(p.rank, p.offset);
  if (config.check && !b.fenced)
    fail(FaultKind::missing_fence, "TMA uses an mbarrier without fence.mbarrier_init or fence.proxy.async after its init");
}

void mbarrier_complete(int site, unsigned rank, uint32_t offset, uint32_t bytes, const Stamp& stamp) {
  Mbarrier& b = find(rank, offset);
  b.bytes -= bytes;
  b.unobserved = true;
  b.load_site = site;
  if (config.check) b.clock.add(stamp.agent, stamp.time);
  if (b.pending == 0 && b.bytes < 0)
    fail(FaultKind::other, "%lld bytes more than expected came to the mbarrier, the last of them from %s",
         static_cast<long long>(-b.bytes), describe(site).c_str());
  end_phase_if_complete(b);
}

bool mbarrier_try_wait(int site, uint32_t address, uint32_t parity, bool acquires) {
  if (left_out(site)) return true;
  Mbarrier& b = use(site, address);
  if (!is_over(b, parity) && config.schedule == Schedule::random && random_number() % 8 == 0) {
    let_others_run(false);  // as if it had waited for as long as it waits
    if (!is_over(b, parity)) return false;
  }
  while (!is_over(b, parity)) {
    b.waiters.push_back(current);
    wait_until_woken("an mbarrier");
  }
  return see_end(b, acquires);
}

bool mbarrier_test_wait(int site, uint32_t address, uint32_t parity, bool acquires) {
  Mbarrier& b = use(site, address);
  let_others_run(!is_over(b, parity));
  return is_over(b, parity) && see_end(b, acquires);
}

}  // namespace qkv::emulation
