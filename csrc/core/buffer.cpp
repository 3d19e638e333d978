// The buffer pool. Fresh pages from the kernel cost about 0.25 us per KiB (zeroing and page faults): as much as a small
// GEMM takes. So memory goes back to a free list per size class and is handed out again, most recent (warmest) first.
#include "core/buffer.h"

#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <new>
#include <vector>

namespace qkv {

struct ArenaBlocks;

namespace {

constexpr int kSubClasses = 4;  // per power of two: at most 25 % of a buffer is unused (and never touched)
constexpr int kClasses = 64 * kSubClasses;

// Stands in the 64 bytes before the data.
struct Header {
  int size_class;
  ArenaBlocks* arena;  // or nullptr
};

using FreeLists = std::vector<void*>[kClasses];

// Memory that pieces are cut from one after another; stands at its beginning. Freed with its last piece.
constexpr size_t kSlab = size_t{16} << 20;
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kLargestPiece = 0;  // a read beyond a piece is to be noticed
#else
constexpr size_t kLargestPiece = kSlab / 4;
#endif
struct Slab {
  size_t used;  // bytes from the beginning
  size_t pieces;
};

struct Pool {
  std::mutex mutex;
  Slab* slab = nullptr;                        // that is cut from, or nullptr
  std::map<size_t, std::vector<char*>> holes;  // pieces that were given back, by their size
  size_t slabs = 0;
  FreeLists free;
  size_t cached = 0;
  size_t limit = 0;
};

Pool& pool() {
  static Pool* p = [] {
    Pool* made = new Pool;  // never destroyed: arrays may die after static destructors ran
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGE_SIZE);
    const size_t memory = pages > 0 && page > 0 ? static_cast<size_t>(pages) * static_cast<size_t>(page) : 0;
    // An eighth of the memory, between 64 MiB and 1 GiB.
    made->limit = std::min<size_t>(std::max<size_t>(memory / 8, size_t{64} << 20), size_t{1} << 30);
    // The lock must be free in a forked child, whichever thread held it in the parent.
    pthread_atfork([] { pool().mutex.lock(); }, [] { pool().mutex.unlock(); }, [] { pool().mutex.unlock(); });
    return made;
  }();
  return *p;
}

// Class sizes are 64, 80, 96, 112, 128, 160, ... bytes: four steps per doubling.
size_t class_bytes(int c) { return (size_t{16} << (c / kSubClasses)) * static_cast<size_t>(kSubClasses + c % kSubClasses); }

int class_of(size_t bytes) {
  if (bytes <= 64) return 0;
  int log2 = 63 - __builtin_clzll(bytes - 1);  // bytes in (2^log2, 2^(log2+1)]
  int c = (log2 - 6) * kSubClasses;
  while (class_bytes(c) < bytes) ++c;
  return c;
}

Header* header_of(void* data) { return reinterpret_cast<Header*>(static_cast<char*>(data) - kAlignment); }

// Huge pages for what lies inside the bytes that are asked for, if the system leaves that to programs: pages of 4 KiB cost large
// arrays many walks through the page tables (Zen 4, virtual machine: softmax of 134 MB 6.9 instead of 5.6 ms, products of one row
// 3 to 6 %).
void advise_huge([[maybe_unused]] void* data, [[maybe_unused]] size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const uintptr_t from = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(data) + bytes) / kHuge * kHuge;
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);  // advice: failing is no error
#endif
}

Slab* new_slab() {
  void* const found = mmap(nullptr, 2 * kSlab, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) return nullptr;
  char* const begin = static_cast<char*>(found);
  const size_t before = -reinterpret_cast<uintptr_t>(begin) % kSlab;
  if (before) munmap(begin, before);
  munmap(begin + before + kSlab, kSlab - before);
  advise_huge(begin + before, kSlab);
  return new (begin + before) Slab{kAlignment, 0};
}

Slab* slab_of(char* data) { return reinterpret_cast<Slab*>(data - reinterpret_cast<uintptr_t>(data) % kSlab); }

size_t piece_bytes(size_t bytes) { return bytes ? (bytes + kAlignment - 1) / kAlignment * kAlignment : kAlignment; }

}  // namespace

// Under the pool's mutex.
struct ArenaBlocks {
  FreeLists free;
  size_t used = 0;    // handed out
  bool alive = true;  // the Arena is there
};

namespace {
thread_local ArenaBlocks* t_arena = nullptr;
}

void* buffer_acquire(size_t bytes) {
  if (bytes > (size_t{1} << 60)) throw std::bad_alloc();
  const int c = class_of(bytes);
  Pool& p = pool();
  ArenaBlocks* const arena = t_arena;
  {
    std::lock_guard<std::mutex> lock(p.mutex);
    std::vector<void*>* list = arena && !arena->free[c].empty() ? &arena->free[c] : &p.free[c];
    if (!list->empty()) {
      void* data = list->back();
      list->pop_back();
      if (list == &p.free[c]) p.cached -= class_bytes(c);
      header_of(data)->arena = arena;
      if (arena) ++arena->used;
      return data;
    }
  }
  const size_t total = (class_bytes(c) + kAlignment + kAlignment - 1) / kAlignment * kAlignment;
  void* block = aligned_alloc(kAlignment, total);
  if (!block) {  // what is cached may be just what is missing
    buffer_trim();
    block = aligned_alloc(kAlignment, total);
    if (!block) throw std::bad_alloc();
  }
  advise_huge(block, bytes + kAlignment);
  *static_cast<Header*>(block) = {c, arena};
  if (arena) {
    std::lock_guard<std::mutex> lock(p.mutex);
    ++arena->used;
  }
  return static_cast<char*>(block) + kAlignment;
}

void buffer_release(void* data) {
  if (!data) return;
  const int c = header_of(data)->size_class;
  Pool& p = pool();
  {
    std::lock_guard<std::mutex> lock(p.mutex);
    if (ArenaBlocks* arena = header_of(data)->arena) {
      --arena->used;
      if (arena->alive) {
        arena->free[c].push_back(data);
        return;
      }
      if (arena->used == 0) delete arena;
    }
    if (p.cached + class_bytes(c) <= p.limit) {
      p.free[c].push_back(data);
      p.cached += class_bytes(c);
      return;
    }
  }
  ::free(header_of(data));
}

void* lasting_acquire(size_t bytes) {
  if (bytes > kLargestPiece) return buffer_acquire(bytes);
  const size_t size = piece_bytes(bytes);
  Pool& p = pool();
  std::unique_lock<std::mutex> lock(p.mutex);
  if (p.holes[size].empty() && (!p.slab || p.slab->used + size > kSlab)) {
    Slab* made = new_slab();
    if (!made) {  // what is cached may be just what is missing
      lock.unlock();
      buffer_trim();
      lock.lock();
      made = new_slab();
      if (!made) throw std::bad_alloc();
    }
    p.slab = made;  // the last one has pieces, which free it
    ++p.slabs;
  }
  char* data;
  if (!p.holes[size].empty()) {
    data = p.holes[size].back();
    p.holes[size].pop_back();
  } else {
    data = reinterpret_cast<char*>(p.slab) + p.slab->used;
    p.slab->used += size;
  }
  ++slab_of(data)->pieces;
  return data;
}

void lasting_release(void* data, size_t bytes) {
  if (bytes > kLargestPiece) return buffer_release(data);
  if (!data) return;
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  Slab* const slab = slab_of(static_cast<char*>(data));
  if (--slab->pieces > 0) {
    p.holes[piece_bytes(bytes)].push_back(static_cast<char*>(data));
    return;
  }
  for (auto& of_size : p.holes) {
    std::vector<char*>& v = of_size.second;
    v.erase(std::remove_if(v.begin(), v.end(), [&](char* hole) { return slab_of(hole) == slab; }), v.end());
  }
  if (slab == p.slab) p.slab = nullptr;
  munmap(slab, kSlab);
  --p.slabs;
}

Arena::Arena() : blocks_(new ArenaBlocks) {}

Arena::~Arena() {
  ArenaBlocks& a = *blocks_;
  std::vector<void*> waiting;
  {
    std::lock_guard<std::mutex> lock(pool().mutex);
    for (auto& list : a.free) waiting.insert(waiting.end(), list.begin(), list.end());
    for (auto& list : a.free) std::vector<void*>().swap(list);
    a.alive = false;
    a.used += waiting.size();
    if (a.used == 0) delete blocks_;
  }
  for (void* data : waiting) buffer_release(data);
}

void Arena::open() { t_arena = blocks_; }

void Arena::close() { t_arena = nullptr; }

BufferStats buffer_stats() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  return {p.cached, p.limit, p.slabs * kSlab};
}

void buffer_trim() {
  Pool& p = pool();
  std::lock_guard<std::mutex> lock(p.mutex);
  for (auto& list : p.free) {
    for (void* data : list) ::free(header_of(data));
    std::vector<void*>().swap(list);
  }
  p.cached = 0;
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGE_SIZE));
  for (auto& of_size : p.holes)  // whole pages inside of them; their addresses stay
    for (char* hole : of_size.second) {
      const uintptr_t from = (reinterpret_cast<uintptr_t>(hole) + page - 1) / page * page;
      const uintptr_t to = (reinterpret_cast<uintptr_t>(hole) + of_size.first) / page * page;
      if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_DONTNEED);
    }
}

}  // namespace qkv
