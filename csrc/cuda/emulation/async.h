// cp.async, and work that happens some time after it was issued.
#pragma once
#include <stdint.h>

#include <functional>
#include <vector>

namespace qkv::emulation {

struct CopyAsync {
  unsigned char* to;
  const unsigned char* from;
  uint32_t address;  // of `to`, in shared memory
  unsigned bytes, source_bytes;
  int site;
  bool done;
};

// What a thread has issued and not waited for.
struct CopyGroups {
  std::vector<CopyAsync> open;
  std::vector<std::vector<CopyAsync>> committed;
  bool empty() const {  // of copies: groups of none need no wait
    for (const auto& group : committed)
      if (!group.empty()) return false;
    return open.empty();
  }
  void clear() {
    open.clear();
    committed.clear();
  }
};

// cp.async of 4, 8 or 16 bytes, of which source_bytes are read and the rest is zero.
void copy_async(int site, uint32_t to, uint64_t from, unsigned bytes, unsigned source_bytes);
void copy_async_commit();
void copy_async_wait(int site, unsigned pending_groups);
void copy_async_wait_all(int site);

// Whether the next asynchronous operation is to happen late, by the configuration.
bool happens_late();

// Work that no thread waits for in person (TMA): done at a random moment, or when no thread can go on without it.
void defer(std::function<void()> work);
bool deferred_work_waits();
void run_deferred_work();  // one piece of it, chosen at random
void drop_deferred_work();

}  // namespace qkv::emulation
