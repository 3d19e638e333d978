// What Hopper added: mbarriers, TMA, wgmma. Whatever they do asynchronously has happened in the emulator's memory at once or is
// deferred (async.h); for the checker it is done by an agent of its own, of whose work a thread knows once it has waited for it.
#pragma once
#include <stdint.h>

#include <initializer_list>
#include <string>

#include "cuda/emulation/checker.h"
#include "cuda/emulation/tensor_core.h"  // Element

namespace qkv::emulation {

struct Thread;

// For the blocks of a cluster that start, that have ended well (what nobody waited for is a fault), or that ended in a fault.
void hopper_start_blocks();
void hopper_end_blocks();
void hopper_clear();
// For a thread that returns: it must have waited for its stores and its wgmma.
void hopper_retire(const Thread&);

// A moment in the life of an asynchronous agent.
struct Stamp {
  unsigned agent;
  uint32_t time;
};
Stamp next_stamp();                                                         // for one operation of TMA
Stamp warpgroup_stamp(unsigned rank, unsigned warpgroup, uint32_t number);  // for a warpgroup's wgmma of this number
ClockRef knowledge_of(const Stamp&);

// ---- mbarrier.cpp

void mbarrier_init(int site, uint32_t barrier, uint32_t arrivals);
void mbarrier_invalidate(int site, uint32_t barrier);
void mbarrier_init_fence(int site);  // also a part of fence.proxy.async
// Addresses of arrive and expect may be those of another block of the cluster.
void mbarrier_arrive(int site, uint32_t barrier, uint32_t arrivals, bool releases);
void mbarrier_expect(int site, uint32_t barrier, uint32_t bytes);
// try_wait comes back with true, or now and then with false; test_wait at once.
bool mbarrier_try_wait(int site, uint32_t barrier, uint32_t parity, bool acquires);
bool mbarrier_test_wait(int site, uint32_t barrier, uint32_t parity, bool acquires);

// For TMA. A fault unless `barrier` is an mbarrier that TMA may see.
void mbarrier_check_for_tma(uint32_t barrier);
// `site` is that of the load.
void mbarrier_complete(int site, unsigned rank, uint32_t offset, uint32_t bytes, const Stamp&);

// Those at which threads wait, for reports of deadlocks.
std::string describe_mbarriers();

void mbarrier_start_blocks();
void mbarrier_end_blocks();

// ---- tma.cpp: boxes of a tensor, whose CUtensorMap lies at a generic address. Coordinates begin with the innermost.

// blocks: the ranks that get the box, at the same place of each; 0: the place that `to` is.
void tma_load(int site, unsigned dimensions, uint32_t to, uint64_t map, const int32_t* at, uint32_t barrier, uint32_t blocks);
void tma_store(int site, unsigned dimensions, uint64_t map, const int32_t* at, uint32_t from);
void bulk_load(int site, uint32_t to, uint64_t from, uint32_t bytes, uint32_t barrier);
void bulk_store(int site, uint64_t to, uint32_t from, uint32_t bytes);
void bulk_commit(int site);
// reads_only: until shared memory has been read.
void bulk_wait(int site, unsigned pending_groups, bool reads_only);

void tma_start_blocks();
void tma_retire(const Thread&);

// ---- wgmma.cpp

struct Wgmma {
  Element element;
  int n;
  bool transposed_a, transposed_b;  // m or n are neighbours in shared memory, not k
  int sign_a, sign_b;               // 1 or -1
  bool accumulate;
};
// d (64, n) = a (64, 16) b (16, n) [+ d]: d has n / 2 registers, a four or, nullptr, a descriptor of shared memory. Returns the
// number of this wgmma of the thread.
uint32_t wgmma(int site, const Wgmma&, float* d, const uint32_t* a, uint64_t a_descriptor, uint64_t b_descriptor);
// How many fences of its own a thread has behind it, and one more. A function asks anew after each call: what was called may have
// fenced or waited.
uint32_t wgmma_fence(int site);
uint32_t wgmma_fences();
// Before it: behind how many fences each register of d and a was last read or written by another instruction, of how many.
void wgmma_registers(int site, std::initializer_list<uint32_t> touched, uint32_t fences);
// For registers that are d of one n and of another, or a (n = 0): of which n they were last, and behind how many fences.
void wgmma_shapes(int site, std::initializer_list<uint64_t*> shapes, int n, uint32_t fences);
// Another instruction reads or writes a register of wgmma under way: those with numbers above the last that was waited for, which
// wgmma_done and wgmma_wait return. Numbers of wgmma are larger than numbers of fences.
[[noreturn]] uint32_t wgmma_touched(int site);
uint32_t wgmma_done();
void wgmma_commit(int site);
uint32_t wgmma_wait(int site, unsigned pending_groups);

void wgmma_start_blocks();
void wgmma_retire(const Thread&);

// ---- the rest

void fence_proxy_async(int site, bool shared, bool global);  // of which memory
// The address of the same place in the block of a rank: mapa.
uint32_t map_to_rank(int site, uint32_t shared, uint32_t rank);
// setmaxnreg: only asks whether there will be enough for all.
void set_registers(int site, uint32_t count);

// A function of the driver that the emulator has, or nullptr: cuTensorMapEncodeTiled.
void* driver_function(const char* name);

}  // namespace qkv::emulation
