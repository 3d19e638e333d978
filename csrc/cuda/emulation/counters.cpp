#include "cuda/emulation/counters.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <utility>
#include <vector>

#include "cuda/emulation/block.h"

namespace qkv::emulation {

Counters* counted = nullptr;

namespace {

// What the lanes of a warp do the n-th time they come to an instruction.
struct Group {
  uint32_t lanes = 0;
  TrafficKind kind;
  bool write;
  unsigned width = 0;  // of the widest; cp.async may read less in some lanes
  unsigned bytes[32];
  uint64_t address[32];
};

// Those that not all lanes have come to.
struct Pending {
  uint32_t first = 0;  // n of groups[0]
  std::deque<Group> groups;
};

unsigned sites = 0;            // of the kernel and of the functions that it may call
std::vector<uint32_t> visits;  // (threads of the cluster, sites): how often a thread was there
std::vector<Pending> pending;  // (warps of the cluster, sites)
int64_t moved_before = 0;      // sectors, by blocks that are over

int64_t moved() { return counted->global_load.moved + counted->global_store.moved; }

unsigned site_index(int site) {
  const Kernel& k = *launched->kernel;
  const unsigned s = static_cast<unsigned>(site), shared = k.module->function_sites;
  return s < shared ? s : s - k.first_site + shared;
}

// 32 banks of 4 bytes; accesses of 8 and 16 bytes go by half and quarter warps. A wavefront serves one word of every bank.
void count_shared(const Group& g, Traffic& t) {
  const unsigned lanes = g.width >= 16 ? 8 : g.width == 8 ? 16 : 32;
  for (unsigned first = 0; first < 32; first += lanes) {
    uint64_t words[32 * 4];
    unsigned n = 0;
    for (unsigned lane = first; lane < first + lanes; ++lane)
      if (g.lanes >> lane & 1)
        for (uint64_t w = g.address[lane] / 4; w <= (g.address[lane] + g.bytes[lane] - 1) / 4; ++w) words[n++] = w;
    if (!n) continue;
    std::sort(words, words + n);
    n = static_cast<unsigned>(std::unique(words, words + n) - words);
    int of_bank[32] = {}, most = 0;
    for (unsigned i = 0; i < n; ++i) most = std::max(most, ++of_bank[words[i] % 32]);
    t.moved += most;
    t.ideal += (n + 31) / 32;
  }
}

void count_global(const Group& g, Traffic& t) {
  uint64_t touched[32 * 2];
  unsigned n = 0;
  std::pair<uint64_t, unsigned> places[32];  // address, bytes
  unsigned lanes = 0;
  for (unsigned lane = 0; lane < 32; ++lane)
    if (g.lanes >> lane & 1) {
      for (uint64_t s = g.address[lane] / 32; s <= (g.address[lane] + g.bytes[lane] - 1) / 32; ++s) touched[n++] = s;
      places[lanes++] = {g.address[lane], g.bytes[lane]};
    }
  std::sort(touched, touched + n);
  t.moved += std::unique(touched, touched + n) - touched;
  std::sort(places, places + lanes);
  unsigned bytes = 0;
  for (unsigned i = 0; i < lanes; ++i)  // the last of those at one address is the longest
    if (i + 1 == lanes || places[i].first != places[i + 1].first) bytes += places[i].second;
  t.ideal += (bytes + 31) / 32;
}

void count(const Group& g) {
  if (!counted || !g.lanes) return;
  Counters& c = *counted;
  Traffic& t = g.kind == TrafficKind::shared   ? (g.write ? c.shared_store : c.shared_load)
               : g.kind == TrafficKind::matrix ? (g.write ? c.matrix_store : c.matrix_load)
                                               : (g.write ? c.global_store : c.global_load);
  ++t.accesses;
  if (g.kind == TrafficKind::global)
    count_global(g, t);
  else
    count_shared(g, t);
}

}  // namespace

void count_access(TrafficKind kind, bool write, uint64_t address, unsigned bytes) {
  const Thread& t = *current;
  // An instruction that touches both memories (cp.async) is counted at two places.
  const unsigned s = 2 * site_index(t.site) + (kind == TrafficKind::global);
  const uint32_t n = visits[t.agent * sites + s]++;
  const unsigned warps = static_cast<unsigned>(t.block->warps.size());
  Pending& p = pending[(t.block->rank * warps + t.warp) * sites + s];
  while (p.first + p.groups.size() <= n) p.groups.emplace_back();
  Group& g = p.groups[n - p.first];
  g.kind = kind;
  g.write = write;
  g.width = std::max(g.width, bytes);
  g.bytes[t.lane] = bytes;
  g.address[t.lane] = address;
  g.lanes |= 1u << t.lane;
  while (!p.groups.empty() && p.groups.front().lanes == 0xFFFFFFFF) {
    count(p.groups.front());
    p.groups.pop_front();
    ++p.first;
  }
}

void counters_start_blocks() {
  if (!counted) return;
  moved_before = moved();
  const Kernel& k = *launched->kernel;
  sites = 2 * (k.module->function_sites + k.end_site - k.first_site);
  visits.assign(size_t{launched->cluster_size} * launched->threads * sites, 0);
  pending.assign(size_t{launched->cluster_size} * ((launched->threads + 31) / 32) * sites, Pending());
}

void counters_end_blocks() {
  if (!counted) return;
  for (Pending& p : pending)
    for (const Group& g : p.groups) count(g);
  pending.clear();
  counted->busiest = std::max(counted->busiest, moved() - moved_before);
}

}  // namespace qkv::emulation
