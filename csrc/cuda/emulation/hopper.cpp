#include "cuda/emulation/hopper.h"

#include <algorithm>

#include "cuda/emulation/block.h"
#include "cuda/emulation/memory.h"

namespace qkv::emulation {
namespace {

constexpr unsigned kWarpgroupAgents = 32;  // of the async agents, the first; operations of TMA take turns with the others
uint32_t times[kAsyncAgents];
unsigned next_agent = 0;

// What setmaxnreg gave each warp of each block; 0: what it was launched with.
std::vector<uint32_t> registers_of;
constexpr uint32_t kRegisters = 64 * 1024;  // of a multiprocessor

unsigned first_async_agent() { return launched->cluster_size * launched->threads; }

}  // namespace

Stamp next_stamp() {
  const unsigned i = kWarpgroupAgents + next_agent++ % (kAsyncAgents - kWarpgroupAgents);
  return {first_async_agent() + i, ++times[i]};
}

Stamp warpgroup_stamp(unsigned rank, unsigned warpgroup, uint32_t number) {
  return {first_async_agent() + (rank * 8 + warpgroup) % kWarpgroupAgents, number};
}

ClockRef knowledge_of(const Stamp& stamp) {
  ClockSum sum;
  sum.add(stamp.agent, stamp.time);
  return sum.take();
}

void hopper_start_blocks() {
  std::fill(std::begin(times), std::end(times), 0);
  next_agent = 0;
  registers_of.assign(launched->cluster_size * 32, 0);
  mbarrier_start_blocks();
  tma_start_blocks();
  wgmma_start_blocks();
}

// Registers that a warp gives are taken by others; a warp that asks for more than there are waits for ever. A kernel with
// setmaxnreg is launched with as many as its largest asks for, or as all warps can have.
static void check_registers(unsigned rank) {
  const uint32_t* given = &registers_of[rank * 32];
  const uint32_t warps = (launched->threads + 31) / 32, most = *std::max_element(given, given + 32);
  const uint32_t at_launch = std::min(kRegisters / (32 * warps) / 8 * 8, most);
  uint32_t sum = 0;
  for (uint32_t w = 0; w < warps; ++w) sum += given[w] ? given[w] : at_launch;
  if (sum > at_launch * warps)
    fail(FaultKind::deadlock, "setmaxnreg: the %u warps ask for %u registers a lane, and have %u: some wait for ever", warps, sum,
         at_launch * warps);
}

void hopper_end_blocks() {
  mbarrier_end_blocks();
  for (unsigned rank = 0; rank < launched->cluster_size; ++rank) check_registers(rank);
}

void hopper_clear() {
  mbarrier_start_blocks();
  tma_start_blocks();
  wgmma_start_blocks();
}

void hopper_retire(const Thread& t) {
  tma_retire(t);
  wgmma_retire(t);
}

void fence_proxy_async(int site, bool shared, bool global) {
  current->site = site;
  if (!config.check || left_out(site)) return;
  check_proxy_fence(shared, global);
  if (shared) mbarrier_init_fence(site);
}

uint32_t map_to_rank(int site, uint32_t shared, uint32_t rank) {
  current->site = site;
  if (rank >= launched->cluster_size)
    fail(FaultKind::out_of_bounds, "mapa to rank %u of a cluster of %u blocks", rank, launched->cluster_size);
  return (rank + 1) * kSharedStride + shared_place(shared).offset;
}

void set_registers(int site, uint32_t count) {
  current->site = site;
  if (count % 8 || count < 24 || count > 256) fail(FaultKind::other, "setmaxnreg %u: a multiple of 8 in 24 ... 256", count);
  registers_of[current->block->rank * 32 + current->warp] = count;
}

}  // namespace qkv::emulation
