#include "cuda/emulation/async.h"

#include <cstring>

#include "cuda/emulation/block.h"
#include "cuda/emulation/counters.h"
#include "cuda/emulation/memory.h"

namespace qkv::emulation {
namespace {

std::vector<std::function<void()>> deferred;

void finish(CopyAsync& c) {
  if (c.done) return;
  c.done = true;
  if (c.source_bytes) std::memcpy(c.to, c.from, c.source_bytes);
  std::memset(c.to + c.source_bytes, 0, c.bytes - c.source_bytes);
}

void retire_group(std::vector<CopyAsync>& group) {
  for (CopyAsync& c : group) {
    finish(c);
    if (!config.check) continue;
    const SharedPlace p = shared_place(c.address);
    end_pending(current->agent, current->knowledge.now, true, p.rank, p.offset, c.bytes);
    if (c.source_bytes)
      end_pending_global(current->agent, current->knowledge.now, reinterpret_cast<uint64_t>(c.from), c.source_bytes);
  }
}

}  // namespace

bool happens_late() {
  switch (config.async) {
    case AsyncMode::at_issue:
      return false;
    case AsyncMode::late:
      return true;
    default:
      return random_number() & 1;
  }
}

void copy_async(int site, uint32_t address, uint64_t from, unsigned bytes, unsigned source_bytes) {
  Thread& t = *current;
  t.site = site;
  if (source_bytes > bytes) fail(FaultKind::other, "cp.async reads %u bytes to write %u", source_bytes, bytes);
  CopyAsync c{shared_bytes(address, bytes, bytes), nullptr, address, bytes, source_bytes, site, false};
  if (from % bytes)
    fail(FaultKind::misaligned, "the source of cp.async, %llx, is not a multiple of %u", static_cast<unsigned long long>(from),
         bytes);
  if (source_bytes) {
    c.from = global_bytes(from, source_bytes, 1);
    if (config.check) check_global_as({t.agent, kPending, site, false, false, Proxy::generic}, from, source_bytes);
    if (counted) count_access(TrafficKind::global, false, from, source_bytes);
  }
  const SharedPlace p = shared_place(address);
  if (config.check)
    check_shared_as({t.agent, kPending, site, true, false, Proxy::generic}, t.knowledge.others, p.rank, p.offset, bytes);
  if (counted) {
    ++counted->async_copies;
    count_access(TrafficKind::shared, true, p.offset, bytes);
  }
  if (happens_late())
    std::memset(c.to, 0xFF, bytes);  // whoever reads it too early shall see
  else
    finish(c);
  t.copies.open.push_back(c);
}

void copy_async_commit() {
  CopyGroups& g = current->copies;
  g.committed.push_back(std::move(g.open));
  g.open.clear();
}

void copy_async_wait(int site, unsigned pending_groups) {
  bool waits = false;
  for (size_t i = 0; i + pending_groups < current->copies.committed.size(); ++i) waits |= !current->copies.committed[i].empty();
  if (waits && left_out(site)) return;
  current->site = site;
  CopyGroups& g = current->copies;
  while (g.committed.size() > pending_groups) {
    retire_group(g.committed.front());
    g.committed.erase(g.committed.begin());
  }
}

void copy_async_wait_all(int site) {
  copy_async_wait(site, 0);
  retire_group(current->copies.open);
  current->copies.open.clear();
}

void defer(std::function<void()> work) { deferred.push_back(std::move(work)); }

bool deferred_work_waits() { return !deferred.empty(); }

void run_deferred_work() {
  const size_t i = random_number() % deferred.size();
  const std::function<void()> work = std::move(deferred[i]);
  deferred.erase(deferred.begin() + static_cast<std::ptrdiff_t>(i));
  Thread* const running = current;
  current = nullptr;
  work();
  current = running;
}

void drop_deferred_work() { deferred.clear(); }

}  // namespace qkv::emulation
