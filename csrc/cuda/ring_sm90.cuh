// A ring of stages in shared memory, which TMA fills by one thread's order while warpgroups use them.
//
//   Ring<kStages> ring{shared_address(barriers)};     // kBytes of shared memory, a multiple of 8
//   if (threadIdx.x == 0) ring.init(arrivals);  __syncthreads();
//   producer, one thread:  for each stage  { ring.wait_empty(at); ring.expect(at, bytes); tma_load(..., ring.full(at), ...);
//   ++at; } consumers:             for each stage  { ring.wait_full(at);  ...; ring.release(at); ++at; }
//
// with a RingPlace `at` of each thread's own, which starts as it is made. A stage is free again after `arrivals` releases.
#pragma once
#include "cuda/intrinsics_sm90.cuh"

namespace qkv::cuda {

template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t phase = 0;  // how often the ring has been gone round, modulo 2

  QKV_DEVICE RingPlace& operator++() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
    return *this;
  }
};

template <int kStages>
struct Ring {
  using Place = RingPlace<kStages>;
  static constexpr int kBytes = 16 * kStages;
  uint32_t barriers;  // the full ones, then the empty ones

  QKV_DEVICE uint32_t full(const Place& at) const { return barriers + 8 * at.stage; }
  QKV_DEVICE uint32_t empty(const Place& at) const { return barriers + 8 * (kStages + at.stage); }

  // By one thread, before a barrier of all.
  QKV_DEVICE void init(int arrivals) const {
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(barriers + 8 * stage, 1);
      mbarrier_init(barriers + 8 * (kStages + stage), arrivals);
    }
    mbarrier_init_fence();
  }
  QKV_DEVICE void wait_empty(const Place& at) const { mbarrier_wait(empty(at), at.phase ^ 1); }
  QKV_DEVICE void expect(const Place& at, uint32_t bytes) const { mbarrier_arrive_expect_tx(full(at), bytes); }
  QKV_DEVICE void wait_full(const Place& at) const { mbarrier_wait(full(at), at.phase); }
  // What wgmma reads of a stage it has read once wgmma_wait says so to the warp: one lane of each warp releases.
  QKV_DEVICE void release(const Place& at) const { mbarrier_arrive(empty(at)); }
};

}  // namespace qkv::cuda
