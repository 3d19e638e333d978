// The same for Hopper: c (m, n) = a (m, k) b (n, k)^T by TMA, mbarriers and wgmma, with a warp that loads and a warpgroup that
// multiplies.
#include "cuda/intrinsics_sm90.cuh"
#include "cuda/tensor_map.h"

using namespace qkv;
using namespace qkv::cuda;

namespace {

enum GemmPlant {
  kRight,
  kIgnoresEmpty,          // the producer does not wait until a stage is free
  kIgnoresFull,           // the consumers do not wait until it is loaded
  kReleasesBeforeWait,    // the stage is free before wgmma has read it
  kReleasesTheNext,       // one that is still being read
  kExpectsTooFew,         // bytes
  kExpectsTooMany,        // bytes: nobody goes on
  kNoBarrierAfterInit,    // others use the mbarriers before they are there
  kNoFenceAfterInit,      // TMA uses them before it sees them
  kNoProxyFence,          // TMA stores what ordinary stores wrote
  kNoBarrierBeforeStore,  // or have not yet written
  kNoWaitForStore,        // the block ends before it is read
  kNoWgmmaFence,
  kNoWgmmaWait,              // the kernel ends with wgmma under way
  kLoadsOneMore,             // a stage that nobody waits for
  kWrongCount,               // of consumers that free a stage
  kMisalignedStage,          // for the swizzle
  kWritesUnderWgmma,         // an ordinary store into what wgmma reads
  kNoProxyFenceBeforeWgmma,  // what an ordinary store wrote
  kDivergentWgmma,           // one warp has an operand of its own
};

constexpr int kTileM = 64, kTileN = 64, kDepth = 64, kStages = 3, kStageBytes = (kTileM + kTileN) * kDepth * 2;

template <int kPlant>
__global__ void __launch_bounds__(160) gemm(const __grid_constant__ CUtensorMap map_a, const __grid_constant__ CUtensorMap map_b,
                                            const __grid_constant__ CUtensorMap map_c, int k) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ uint64_t barriers[2 * kStages];
  const uint32_t base = shared_address(shared) + (kPlant == kMisalignedStage ? 128 : 0), full = shared_address(barriers),
                 empty = full + 8 * kStages;
  const int m0 = blockIdx.y * kTileM, n0 = blockIdx.x * kTileN, steps = (k + kDepth - 1) / kDepth, thread = threadIdx.x;
  if (thread == 128) {
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(full + 8 * s, 1);
      mbarrier_init(empty + 8 * s, kPlant == kWrongCount ? 2 : 1);
    }
    if constexpr (kPlant != kNoFenceAfterInit) mbarrier_init_fence();
  }
  if constexpr (kPlant != kNoBarrierAfterInit) __syncthreads();
  if (thread >= 128) {
    if (thread != 128) return;
    for (int i = 0; i < steps + (kPlant == kLoadsOneMore ? 1 : 0); ++i) {
      const int s = i % kStages, phase = i / kStages & 1;
      if constexpr (kPlant != kIgnoresEmpty) mbarrier_wait(empty + 8 * s, phase ^ 1);
      mbarrier_arrive_expect_tx(full + 8 * s, kStageBytes + (kPlant == kExpectsTooFew    ? -kStageBytes / 2
                                                             : kPlant == kExpectsTooMany ? 16
                                                                                         : 0));
      tma_load(base + s * kStageBytes, &map_a, full + 8 * s, i * kDepth, m0);
      tma_load(base + s * kStageBytes + kTileM * 128, &map_b, full + 8 * s, i * kDepth, n0);
    }
    return;
  }
  float d[kTileN / 2];
  for (int i = 0; i < steps; ++i) {
    const int s = i % kStages;
    if constexpr (kPlant != kIgnoresFull) mbarrier_wait(full + 8 * s, i / kStages & 1);
    uint32_t a = base + s * kStageBytes;
    const uint32_t b = a + kTileM * 128;
    if constexpr (kPlant == kNoProxyFenceBeforeWgmma) {
      if (i == 0) {
        reinterpret_cast<uint32_t*>(shared)[thread] = 0;
        named_barrier_sync(1, 128);
      }
    }
    if constexpr (kPlant == kDivergentWgmma) a += thread / 32 == 3 ? 32 : 0;
    if constexpr (kPlant != kNoWgmmaFence) wgmma_fence();
    for (int kk = 0; kk < kDepth / 16; ++kk)
      wgmma<__nv_bfloat16, kTileN>(d, wgmma_k_major(a + 32 * kk), wgmma_k_major(b + 32 * kk), i || kk);
    wgmma_commit();
    if constexpr (kPlant == kWritesUnderWgmma) reinterpret_cast<uint32_t*>(shared + s * kStageBytes)[thread] = 0;
    if (kPlant == kReleasesBeforeWait && thread == 0) mbarrier_arrive(empty + 8 * s);
    if constexpr (kPlant != kNoWgmmaWait) wgmma_wait<kPlant == kReleasesTheNext ? 1 : 0>();
    if (kPlant != kReleasesBeforeWait && thread == 0) mbarrier_arrive(empty + 8 * s);
  }
  if constexpr (kPlant == kReleasesTheNext) wgmma_wait<0>();
  wgmma_hold(d);

  // c's tile, rows of 64 floats, through shared memory of its own.
  float* const tile = reinterpret_cast<float*>(shared + kStages * kStageBytes);
  for (int i = 0; i < kTileN / 2; ++i) {
    const int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
    tile[row * kTileN + column] = d[i];
  }
  if constexpr (kPlant != kNoProxyFence) fence_async_shared();
  if constexpr (kPlant != kNoBarrierBeforeStore) named_barrier_sync(1, 128);
  if (thread == 0) {
    tma_store(&map_c, shared_address(tile), n0, m0);
    bulk_commit();
    if constexpr (kPlant != kNoWaitForStore) bulk_wait_read<0>();
  }
}

// ---- warpgroups that give registers to others

enum RolesPlant {
  kRolesRight,
  kTooManyRegisters,  // some wait for ever
};

template <int kPlant>
__global__ void __launch_bounds__(384) roles(float* out) {
  if (threadIdx.x < 128)
    give_registers<kPlant == kTooManyRegisters ? 40 : 24>();
  else
    take_registers<240>();
  out[threadIdx.x] = threadIdx.x;
}

template <int kPlant>
void launch(const void* a, const void* b, float* c, int64_t m, int64_t n, int64_t k) {
  const auto map_a = tensor_map<2>(DType::bf16, a, {k, m}, {1, k}, {kDepth, kTileM}, 128);
  const auto map_b = tensor_map<2>(DType::bf16, b, {k, n}, {1, k}, {kDepth, kTileN}, 128);
  const auto map_c = tensor_map<2>(DType::f32, c, {n, m}, {1, n}, {kTileN, kTileM}, 0);
  constexpr int bytes = kStages * kStageBytes + kTileM * kTileN * 4 + 1024;
  allow_shared(gemm<kPlant>, bytes, "gemm");
  gemm<kPlant>
      <<<dim3((n + kTileN - 1) / kTileN, (m + kTileM - 1) / kTileM), 160, bytes>>>(map_a, map_b, map_c, static_cast<int>(k));
}

template <int kCount>
void launch_plant(int plant, const void* a, const void* b, float* c, int m, int n, int k) {
  if constexpr (kCount > 0) {
    if (plant == kCount - 1)
      launch<kCount - 1>(a, b, c, m, n, k);
    else
      launch_plant<kCount - 1>(plant, a, b, c, m, n, k);
  }
}

}  // namespace

extern "C" void launch_roles(int plant, float* out) {
  if (plant == kRolesRight)
    roles<kRolesRight><<<1, 384>>>(out);
  else
    roles<kTooManyRegisters><<<1, 384>>>(out);
}

extern "C" void launch_gemm_sm90(int plant, const void* a, const void* b, float* c, int m, int n, int k) {
  launch_plant<kDivergentWgmma + 1>(plant, a, b, c, m, n, k);
}
