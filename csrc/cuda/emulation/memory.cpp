#include "cuda/emulation/memory.h"

#include <sys/mman.h>

#include <cstring>
#include <new>
#include <vector>

#include "cuda/emulation/block.h"
#include "cuda/emulation/counters.h"

namespace qkv::emulation {
namespace {

// ---- device memory

constexpr size_t kPage = 64 * 1024;
constexpr size_t kArena = size_t{64} << 30;  // more than the device has, so that what was freed is long not used again
constexpr size_t kPages = kArena / kPage;
constexpr size_t kOffset = 256;  // of every allocation in its first page: aligned to 256 bytes and to no more

struct Arena {
  unsigned char* base;
  Allocation** pages;  // the allocation that has or had a page; nullptr: never used
  size_t next = 1;     // where the search for free pages goes on
  size_t used = 0;

  Arena() {
    void* p = mmap(nullptr, kArena, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    void* t =
        mmap(nullptr, kPages * sizeof(Allocation*), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || t == MAP_FAILED) throw std::bad_alloc();
    base = static_cast<unsigned char*>(p);
    pages = static_cast<Allocation**>(t);
  }
};

Arena& arena() {
  static Arena* it = new Arena;
  return *it;
}

size_t pages_of(size_t bytes) { return (kOffset + bytes + kPage - 1) / kPage; }

void* map_zeros(size_t bytes) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return p == MAP_FAILED ? nullptr : p;
}

void make_shadow(Allocation& a) {
  Shadow& s = a.shadow;
  s.words = a.bytes / 4 + 1;
  s.made_at = unchecked_launches();
  s.cells = static_cast<GlobalCell*>(map_zeros(s.words * shadow_cell_bytes()));
  s.initialised = static_cast<unsigned char*>(map_zeros(s.words));
  if (!s.cells || !s.initialised) throw std::bad_alloc();
}

void drop_shadow(Allocation& a) {
  Shadow& s = a.shadow;
  if (!s.cells) return;
  munmap(s.cells, s.words * shadow_cell_bytes());
  munmap(s.initialised, s.words);
  s = Shadow();
}

// ---- shared memory

unsigned char* window = nullptr;  // kMaxClusterBlocks + 1 strides
std::vector<bool> usable;         // by offset
uint32_t shared_end = 0;
uint64_t unchecked = 0;  // launches

void map_window() {
  if (window) return;
  void* p = mmap(nullptr, size_t{kMaxClusterBlocks + 1} * kSharedStride, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  window = static_cast<unsigned char*>(p);
}

SharedPlace place_of(uint32_t address) {
  const uint32_t stride = address / kSharedStride;
  return {stride ? stride - 1 : current->block->rank, address % kSharedStride};
}

const char* name_of(const Allocation& a) { return a.live ? "" : ", which was freed"; }

}  // namespace

void* device_allocate(size_t bytes) {
  Arena& a = arena();
  if (bytes > kDeviceBytes - a.used) return nullptr;
  const size_t n = pages_of(bytes) + 1;  // and an empty page behind it
  size_t first = a.next, run = 0;
  for (size_t seen = 0; run < n; ++seen) {
    if (seen > 2 * kPages) return nullptr;
    size_t at = first + run;
    if (at >= kPages) {
      first = 1, run = 0;
      continue;
    }
    if (a.pages[at] && a.pages[at]->live)
      first = at + 1, run = 0;
    else
      ++run;
  }
  a.next = first + n - 1;
  unsigned char* const data = a.base + first * kPage + kOffset;
  Allocation* made = new Allocation{reinterpret_cast<uint64_t>(data), bytes, true, {}};
  for (size_t i = 0; i + 1 < n; ++i) {
    Allocation*& page = a.pages[first + i];
    if (page && page->base == reinterpret_cast<uint64_t>(a.base + (first + i) * kPage + kOffset))
      delete page;  // its other pages are never looked up
    page = made;
  }
  std::memset(data, 0xFF, bytes);
  a.used += bytes;
  if (config.check) make_shadow(*made);
  return data;
}

bool device_free(void* data) {
  Arena& a = arena();
  Allocation* it = allocation_at(reinterpret_cast<uint64_t>(data));
  if (!it || !it->live || it->base != reinterpret_cast<uint64_t>(data)) return false;
  it->live = false;
  a.used -= it->bytes;
  drop_shadow(*it);
  if (it->bytes >= kPage) {  // gives the pages back
    unsigned char* const first = static_cast<unsigned char*>(data) - kOffset;
    madvise(first, pages_of(it->bytes) * kPage, MADV_DONTNEED);
  }
  return true;
}

uint64_t unchecked_launches() { return unchecked; }

size_t device_bytes_used() { return arena().used; }

Allocation* allocation_at(uint64_t address) {
  Arena& a = arena();
  const uint64_t offset = address - reinterpret_cast<uint64_t>(a.base);
  return offset < kArena ? a.pages[offset / kPage] : nullptr;
}

unsigned char* shared_window(unsigned rank) {
  map_window();
  return window + size_t{rank + 1} * kSharedStride;
}

void lay_out_shared() {
  map_window();
  if (!config.check) ++unchecked;
  const Launch& l = *launched;
  const Kernel& k = *l.kernel;
  shared_end = l.dynamic_base + l.dynamic_shared;
  if (shared_end < k.shared_end) shared_end = k.shared_end;
  usable.assign(shared_end, false);
  for (unsigned i = 0; i < k.shared_count; ++i)
    for (unsigned j = 0; j < k.shared[i].size; ++j) usable[k.shared[i].offset + j] = true;
  for (unsigned j = 0; j < l.dynamic_shared; ++j) usable[l.dynamic_base + j] = true;
}

void poison_shared(unsigned rank) {
  if (shared_end > kSharedStart) std::memset(shared_window(rank) + kSharedStart, 0xFF, shared_end - kSharedStart);
}

SharedPlace shared_place(uint32_t address) { return place_of(address); }

unsigned char* shared_bytes(uint32_t address, unsigned bytes, unsigned alignment) {
  const SharedPlace p = place_of(address);
  if (address % alignment) fail(FaultKind::misaligned, "shared memory address %u is not a multiple of %u", p.offset, alignment);
  if (p.rank >= launched->cluster_size)
    fail(FaultKind::out_of_bounds, "shared memory address %08x is of a block that is not there", address);
  if (!cluster[p.rank].live) fail(FaultKind::out_of_bounds, "shared memory of block %u of the cluster, which has ended", p.rank);
  if (p.offset + bytes > shared_end || !usable[p.offset] || !usable[p.offset + bytes - 1])
    fail(
        FaultKind::out_of_bounds,
        "%u bytes at shared memory address %u are outside the kernel's arrays (static ones end at %u, dynamic memory is %u + %u)",
        bytes, p.offset, launched->kernel->shared_end, launched->dynamic_base, launched->dynamic_shared);
  return window + size_t{p.rank + 1} * kSharedStride + p.offset;
}

namespace {

unsigned char* allocated_bytes(uint64_t address, unsigned bytes, unsigned alignment) {
  if (address % alignment)
    fail(FaultKind::misaligned, "global memory address %llx is not a multiple of %u", static_cast<unsigned long long>(address),
         alignment);
  if (const Allocation* a = allocation_at(address)) {
    if (a->live && address >= a->base && address + bytes <= a->base + a->bytes) return reinterpret_cast<unsigned char*>(address);
    fail(FaultKind::out_of_bounds, "%u bytes at %lld of an allocation of %zu bytes%s", bytes,
         static_cast<long long>(address - a->base), a->bytes, name_of(*a));
  }
  if (const Variable* v = variable_at(address)) {
    if (address + bytes <= reinterpret_cast<uint64_t>(v->data) + v->size) return reinterpret_cast<unsigned char*>(address);
    fail(FaultKind::out_of_bounds, "%u bytes at %lld of the variable %s of %zu bytes", bytes,
         static_cast<long long>(address - reinterpret_cast<uint64_t>(v->data)), v->name, v->size);
  }
  fail(FaultKind::out_of_bounds, "global memory address %llx: nothing is allocated there",
       static_cast<unsigned long long>(address));
}

}  // namespace

unsigned char* global_bytes(uint64_t address, unsigned bytes, unsigned alignment) {
  if (current && !current->may_touch_global)
    fail(FaultKind::race, "global memory before griddepcontrol.wait, while the kernel before may still run");
  return allocated_bytes(address, bytes, alignment);
}

void prefetch_global(int site, uint64_t address, unsigned bytes) {
  current->site = site;
  if (bytes == 0 || bytes % 16) fail(FaultKind::misaligned, "a prefetch of %u bytes, which is no multiple of 16", bytes);
  allocated_bytes(address, bytes, 16);
}

bool is_shared(uint64_t generic) {
  return generic - reinterpret_cast<uint64_t>(window) < size_t{kMaxClusterBlocks + 1} * kSharedStride;
}

uint64_t shared_to_generic(uint32_t address) {
  const SharedPlace p = place_of(address);
  return reinterpret_cast<uint64_t>(window) + uint64_t{p.rank + 1} * kSharedStride + p.offset;
}

uint32_t generic_to_shared(uint64_t address) {
  const uint64_t offset = address - reinterpret_cast<uint64_t>(window);
  if (!is_shared(address)) return static_cast<uint32_t>(address);  // as the hardware: garbage, which a use will tell
  const uint32_t rank = static_cast<uint32_t>(offset / kSharedStride) - 1;
  return rank == current->block->rank ? static_cast<uint32_t>(offset % kSharedStride) : static_cast<uint32_t>(offset);
}

uint32_t dynamic_shared_address() { return launched->dynamic_base; }

// ---- loads and stores

namespace {

enum class Space { global, shared, own };  // own: local memory and parameters

Space space_of(uint64_t address) {
  if (is_shared(address)) return Space::shared;
  if (in_stack(current->agent, reinterpret_cast<void*>(address))) return Space::own;
  const uint64_t parameters = reinterpret_cast<uint64_t>(launched->parameters);
  if (address >= parameters && address < parameters + launched->kernel->parameter_bytes) return Space::own;
  return Space::global;
}

}  // namespace

template <int kBytes>
void load_global(int site, void* to, uint64_t address) {
  current->site = site;
  if (++current->plain_loads % 256 == 0) let_others_run(true);  // it may wait for what another thread writes
  const unsigned char* from = global_bytes(address, kBytes, kBytes);
  if (config.check) check_global(address, kBytes, false);
  if (counted) count_access(TrafficKind::global, false, address, kBytes);
  std::memcpy(to, from, kBytes);
}

template <int kBytes>
void load_read_only(int site, void* to, uint64_t address) {
  current->site = site;
  if (launched->dependent)
    fail(FaultKind::race,
         "a read-only load (ld.global.nc) in a dependent launch, whose threads begin while others may still write");
  const unsigned char* from = global_bytes(address, kBytes, kBytes);
  if (config.check) check_global(address, kBytes, false, GlobalUse::read_only);
  if (counted) count_access(TrafficKind::global, false, address, kBytes);
  std::memcpy(to, from, kBytes);
}

template <int kBytes>
void store_global(int site, const void* from, uint64_t address) {
  current->site = site;
  unsigned char* to = global_bytes(address, kBytes, kBytes);
  if (config.check) check_global(address, kBytes, true);
  if (counted) count_access(TrafficKind::global, true, address, kBytes);
  std::memcpy(to, from, kBytes);
}

template <int kBytes>
void load_shared(int site, void* to, uint32_t address) {
  current->site = site;
  const unsigned char* from = shared_bytes(address, kBytes, kBytes);
  if (config.check || counted) {
    const SharedPlace p = place_of(address);
    if (config.check) check_shared(p.rank, p.offset, kBytes, false);
    if (counted) count_access(TrafficKind::shared, false, p.offset, kBytes);
  }
  std::memcpy(to, from, kBytes);
}

template <int kBytes>
void store_shared(int site, const void* from, uint32_t address) {
  current->site = site;
  unsigned char* to = shared_bytes(address, kBytes, kBytes);
  if (config.check || counted) {
    const SharedPlace p = place_of(address);
    if (config.check) check_shared(p.rank, p.offset, kBytes, true);
    if (counted) count_access(TrafficKind::shared, true, p.offset, kBytes);
  }
  std::memcpy(to, from, kBytes);
}

template <int kBytes>
void load_generic(int site, void* to, uint64_t address) {
  switch (space_of(address)) {
    case Space::global:
      return load_global<kBytes>(site, to, address);
    case Space::shared:
      return load_shared<kBytes>(site, to, generic_to_shared(address));
    case Space::own:
      std::memcpy(to, reinterpret_cast<const void*>(address), kBytes);
  }
}

template <int kBytes>
void store_generic(int site, const void* from, uint64_t address) {
  switch (space_of(address)) {
    case Space::global:
      return store_global<kBytes>(site, from, address);
    case Space::shared:
      return store_shared<kBytes>(site, from, generic_to_shared(address));
    case Space::own:
      std::memcpy(reinterpret_cast<void*>(address), from, kBytes);
  }
}

#define QKV_SIZES(f) f(1) f(2) f(4) f(8) f(16) f(32)
#define QKV_INSTANTIATE(n)                                   \
  template void load_global<n>(int, void*, uint64_t);        \
  template void load_read_only<n>(int, void*, uint64_t);     \
  template void store_global<n>(int, const void*, uint64_t); \
  template void load_shared<n>(int, void*, uint32_t);        \
  template void store_shared<n>(int, const void*, uint32_t); \
  template void load_generic<n>(int, void*, uint64_t);       \
  template void store_generic<n>(int, const void*, uint64_t);
QKV_SIZES(QKV_INSTANTIATE)

namespace {

unsigned char* atomic_bytes(int site, uint64_t address, unsigned bytes, bool reads, bool writes, bool spinning) {
  current->site = site;
  let_others_run(spinning);
  if (is_shared(address)) {
    const uint32_t a = generic_to_shared(address);
    unsigned char* const p = shared_bytes(a, bytes, bytes);
    const SharedPlace place = place_of(a);
    if (config.check) {
      if (reads) check_shared(place.rank, place.offset, bytes, false, true);
      if (writes) check_shared(place.rank, place.offset, bytes, true, true);
    }
    return p;
  }
  unsigned char* const p = global_bytes(address, bytes, bytes);
  if (config.check) {
    if (reads) check_global(address, bytes, false, GlobalUse::atomic);
    if (writes) check_global(address, bytes, true, GlobalUse::atomic);
  }
  return p;
}

}  // namespace

unsigned char* synchronising_bytes(int site, uint64_t address, unsigned bytes, bool reads, bool writes, bool acquires,
                                   bool releases, bool spinning) {
  unsigned char* const p = atomic_bytes(site, address, bytes, reads, writes, spinning);
  if (config.check) check_synchronising(address, reads, writes, acquires, releases);
  return p;
}

unsigned char* exchanging_bytes(int site, uint64_t address, unsigned bytes, bool acquires, bool releases) {
  unsigned char* const p = atomic_bytes(site, address, bytes, false, true, true);
  if (config.check) check_synchronising(address, true, true, acquires, releases);
  return p;
}

}  // namespace qkv::emulation
