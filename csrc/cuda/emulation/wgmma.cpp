// wgmma: 128 threads multiply matrices of which one or both lie in shared memory.
//
// The product is computed as soon as the last thread comes, and is in the registers of d then. Until the wait shared memory
// counts as being read, and registers as being used: whoever writes there before, or touches those, is reported.
#include <cstring>
#include <deque>

#include "cuda/emulation/block.h"
#include "cuda/emulation/counters.h"
#include "cuda/emulation/hopper.h"
#include "cuda/emulation/memory.h"
#include "cuda/emulation/numbers.h"

namespace qkv::emulation {
namespace {

constexpr int kM = 64, kK = 16, kMaxN = 256;
constexpr uint32_t kWgmma = 1u << 31;  // added to a wgmma's number, for the registers' sake

struct Issued {  // by one thread
  Wgmma w;
  float* d;
  const uint32_t* a;
  uint64_t a_descriptor, b_descriptor;
};

struct ThreadState {
  uint32_t fences = 1;                             // and those that there were
  uint32_t issued = 0, committed = 0, waited = 0;  // numbers of wgmma, counted from 1
  std::deque<uint32_t> groups;                     // the last number of each committed group
};
struct GroupState {
  uint32_t issued = 0;
  uint32_t known_number = 0;
  ClockRef known;  // that all up to known_number are over
};
std::vector<ThreadState> threads;  // by agent
std::vector<GroupState> groups;    // by rank * 8 + warpgroup

GroupState& group_of(const Thread& t) { return groups[t.block->rank * 8 + t.linear / 128]; }

// How a descriptor says that a matrix lies in shared memory.
struct Layout {
  uint32_t start, leading, stride, swizzle;  // bytes; swizzle: 128, 64, 32 or 0
  bool k_major;

  Layout(uint64_t d, bool transposed) : k_major(!transposed) {
    start = static_cast<uint32_t>(d & 0x3FFF) << 4;
    leading = static_cast<uint32_t>(d >> 16 & 0x3FFF) << 4;
    stride = static_cast<uint32_t>(d >> 32 & 0x3FFF) << 4;
    const unsigned code = static_cast<unsigned>(d >> 62);
    swizzle = code ? 256u >> code : 0;
    if (d >> 49 & 7) fail(FaultKind::other, "wgmma: a descriptor with a base offset is not emulated");
    if (swizzle && start % (8 * swizzle) >= swizzle)
      fail(FaultKind::misaligned,
           "wgmma: the matrix at shared memory address %u is swizzled by %u bytes but does not start at a multiple of %u", start,
           swizzle, 8 * swizzle);
  }

  // Of the 8 neighbouring elements that begin at (mn, k): in k where that is the major dimension, else in mn.
  uint32_t chunk(uint32_t mn, uint32_t k) const {
    uint32_t a = start;
    if (k_major) {
      if (!swizzle) return a + mn / 8 * stride + mn % 8 * 16 + k / 8 * leading;
      a += mn / 8 * stride + mn % 8 * swizzle + k * 2;
    } else {
      if (!swizzle) return a + mn / 8 * stride + k / 8 * leading + k % 8 * 16;
      const uint32_t row = swizzle / 2;
      a += mn / row * leading + k / 8 * stride + k % 8 * swizzle + mn % row * 2;
    }
    return a ^ ((a >> 7 & (swizzle / 16 - 1)) << 4);
  }
};

float widen(Element e, uint16_t h) { return e == Element::bf16 ? bf16_to_float(h) : f16_to_float(h); }

struct Reader {
  Access access;
  ClockRef known;
  unsigned rank;

  void read(uint32_t address, uint16_t (&to)[8]) const {
    std::memcpy(to, shared_bytes(address, 16, 16), 16);
    if (config.check) check_shared_as(access, known, rank, address, 16);
  }
};

// to[i * mn_step + j * k_step] = element (i, j) of a matrix (mn, 16)
void read_matrix(const Reader& reader, Element e, const Layout& l, int mn, float sign, float* to, int mn_step, int k_step) {
  uint16_t chunk[8];
  for (int i = 0; i < mn; i += l.k_major ? 1 : 8)
    for (int j = 0; j < kK; j += l.k_major ? 8 : 1) {
      reader.read(l.chunk(static_cast<uint32_t>(i), static_cast<uint32_t>(j)), chunk);
      const int step = l.k_major ? k_step : mn_step;
      for (int c = 0; c < 8; ++c) to[i * mn_step + j * k_step + c * step] = sign * widen(e, chunk[c]);
    }
}

// Thread l of warp w holds, in register 4 j + 2 h + c of d, row 16 w + l / 4 + 8 h, column 8 j + 2 (l % 4) + c.
template <class F>
void for_each_register(int thread, int n, F&& f) {
  const int warp = thread / 32, lane = thread % 32;
  for (int j = 0; j < n / 8; ++j)
    for (int h = 0; h < 2; ++h)
      for (int c = 0; c < 2; ++c) f(4 * j + 2 * h + c, 16 * warp + lane / 4 + 8 * h, 8 * j + 2 * (lane % 4) + c);
}

void multiply(void** slots, uint32_t, void*) {
  const auto issued = [&](int i) -> const Issued& { return *static_cast<Issued*>(slots[i]); };
  const Issued& one = issued(0);
  const Wgmma& w = one.w;
  Thread* members[128];
  for (int i = 0; i < 128; ++i) {
    const Issued& o = issued(i);
    if (o.b_descriptor != one.b_descriptor || (!one.a && o.a_descriptor != one.a_descriptor) || o.w.accumulate != w.accumulate)
      fail(FaultKind::divergent, "wgmma: threads 0 and %d of the warpgroup give different operands", i);
    members[i] = &current->block->threads[current->linear / 128 * 128 + static_cast<unsigned>(i)];
  }
  GroupState& group = group_of(*current);
  const Stamp stamp = warpgroup_stamp(current->block->rank, current->linear / 128, ++group.issued);
  Reader reader{{stamp.agent, stamp.time, current->site, false, false, Proxy::async}, ClockRef(), current->block->rank};
  if (config.check) reader.known = common_knowledge(members, 128);

  static float a[kM * kK], b[kK * kMaxN], sum[kM * kMaxN];
  const int n = w.n;
  if (one.a) {
    for (int i = 0; i < 128; ++i)
      for (int r = 0; r < 4; ++r)
        for (int h = 0; h < 2; ++h) {
          const int lane = i % 32, row = 16 * (i / 32) + lane / 4 + 8 * (r % 2), k = 2 * (lane % 4) + h + 8 * (r / 2);
          a[row * kK + k] = static_cast<float>(w.sign_a) * widen(w.element, static_cast<uint16_t>(issued(i).a[r] >> (16 * h)));
        }
  } else {
    read_matrix(reader, w.element, Layout(one.a_descriptor, w.transposed_a), kM, static_cast<float>(w.sign_a), a, kK, 1);
  }
  read_matrix(reader, w.element, Layout(one.b_descriptor, w.transposed_b), n, static_cast<float>(w.sign_b), b, 1, n);
  std::memset(sum, 0, sizeof(float) * static_cast<size_t>(kM * n));
  for (int i = 0; i < kM; ++i)
    for (int k = 0; k < kK; ++k)
      for (int j = 0; j < n; ++j) sum[i * n + j] += a[i * kK + k] * b[k * n + j];
  for (int i = 0; i < 128; ++i) {
    float* d = issued(i).d;
    for_each_register(i, n, [&](int r, int row, int column) { d[r] = (w.accumulate ? d[r] : 0.f) + sum[row * n + column]; });
  }
  if (counted) ++counted->wgmma;
}

}  // namespace

void wgmma_start_blocks() {
  threads.assign(launched->cluster_size * launched->threads, ThreadState());
  groups.assign(launched->cluster_size * 8, GroupState());
}

void wgmma_retire(const Thread& t) {
  const ThreadState& s = threads[t.agent];
  if (s.waited < s.issued) fail(FaultKind::unfinished_copy, "the thread returned with wgmma it never waited for");
}

uint32_t wgmma(int site, const Wgmma& w, float* d, const uint32_t* a, uint64_t a_descriptor, uint64_t b_descriptor) {
  ThreadState& s = threads[current->agent];
  current->site = site;
  if (s.fences == 1) fail(FaultKind::missing_fence, "wgmma without a wgmma.fence before it");
  const uint32_t number = ++s.issued;
  Issued issued{w, d, a, a_descriptor, b_descriptor};
  meet_group(site, &issued, &multiply);
  return kWgmma + number;
}

void wgmma_registers(int site, std::initializer_list<uint32_t> touched, uint32_t fences) {
  current->site = site;
  for (const uint32_t at : touched)
    if (at == fences) fail(FaultKind::missing_fence, "wgmma without a wgmma.fence since something else touched its registers");
}

void wgmma_shapes(int site, std::initializer_list<uint64_t*> shapes, int n, uint32_t fences) {
  current->site = site;
  const uint64_t now = uint64_t{fences} << 32 | static_cast<uint32_t>(n);
  for (uint64_t* shape : shapes) {
    if (*shape >> 32 == fences && *shape != now)
      fail(FaultKind::missing_fence, "wgmma without a wgmma.fence since one of another shape used its registers");
    *shape = now;
  }
}

uint32_t wgmma_touched(int site) {
  current->site = site;
  fail(FaultKind::unfinished_copy, "a register of wgmma is read or written before the wait for it");
}

uint32_t wgmma_done() { return kWgmma + threads[current->agent].waited; }

uint32_t wgmma_fences() { return threads[current->agent].fences; }

uint32_t wgmma_fence(int site) {
  ThreadState& s = threads[current->agent];
  if (left_out(site)) return s.fences;
  current->site = site;
  return ++s.fences;
}

void wgmma_commit(int site) {
  if (left_out(site)) return;
  current->site = site;
  ThreadState& s = threads[current->agent];
  s.committed = s.issued;
  s.groups.push_back(s.committed);
}

uint32_t wgmma_wait(int site, unsigned pending_groups) {
  ThreadState& s = threads[current->agent];
  if (left_out(site)) return kWgmma + s.waited;
  current->site = site;
  const uint32_t before = s.waited;
  while (s.groups.size() > pending_groups) {
    s.waited = s.groups.front();
    s.groups.pop_front();
  }
  if (s.waited == before || !config.check) return kWgmma + s.waited;
  GroupState& g = group_of(*current);
  if (g.known_number != s.waited) {
    g.known_number = s.waited;
    g.known = knowledge_of(warpgroup_stamp(current->block->rank, current->linear / 128, s.waited));
  }
  learn(*current, g.known);
  return kWgmma + s.waited;
}

}  // namespace qkv::emulation
