// intrinsics_sm90.cuh, function by function: tests/cuda_conformance.py says what each kernel must do.
#include "conformance.h"

#include "cuda/intrinsics_sm90.cuh"
#include "cuda/tensor_map.h"

using namespace qkv;
using namespace qkv::cuda;

extern "C" const char* text_of_error(int error) { return error_text(error); }

namespace {

extern __shared__ __align__(1024) uint32_t words[];

__device__ void fill_shared(const uint32_t* in, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) words[i] = in[i];
  __syncthreads();
}
__device__ void dump_shared(uint32_t* out, int count) {
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) out[i] = words[i];
}

// For one thread that then orders TMA to count on the barrier.
__device__ void init_for_tma(uint32_t barrier) {
  mbarrier_init(barrier, 1);
  mbarrier_init_fence();
}

}  // namespace

// ---- stmatrix: the lanes' registers to the rows that in[128 ...] says

CASE(stm_x4, 32, 4096) {
  fill_shared(in + 160, 1024);
  const uint32_t r[4] = {in[4 * threadIdx.x], in[4 * threadIdx.x + 1], in[4 * threadIdx.x + 2], in[4 * threadIdx.x + 3]};
  stmatrix_x4(shared_address(words) + 16 * in[128 + threadIdx.x], r);
  dump_shared(out, 1024);
}
CASE(stm_x4_trans, 32, 4096) {
  fill_shared(in + 160, 1024);
  const uint32_t r[4] = {in[4 * threadIdx.x], in[4 * threadIdx.x + 1], in[4 * threadIdx.x + 2], in[4 * threadIdx.x + 3]};
  stmatrix_x4_trans(shared_address(words) + 16 * in[128 + threadIdx.x], r);
  dump_shared(out, 1024);
}
CASE(stm_x2, 32, 4096) {
  fill_shared(in + 160, 1024);
  const uint32_t r[2] = {in[4 * threadIdx.x], in[4 * threadIdx.x + 1]};
  stmatrix_x2(shared_address(words) + 16 * in[128 + threadIdx.x], r);
  dump_shared(out, 1024);
}

CASE(elect, 64, 0) { out[threadIdx.x] = elect_one(); }

// One warpgroup gives registers to another; both still compute.
CASE(registers, 256, 0) {
  if (threadIdx.x < 128) {
    give_registers<40>();
    out[threadIdx.x] = in[threadIdx.x] + 1;
  } else {
    take_registers<232>();
    out[threadIdx.x] = in[threadIdx.x] + 2;
  }
}

CASE(grid_dependency, 32, 0) {
  grid_dependency_launch();
  prefetch_l2(in, 128);
  grid_dependency_wait();
  begin_dependent();  // once more is nothing
  out[threadIdx.x] = in[threadIdx.x] + 1;
}

// ---- mbarriers

CASE(mbarrier_phases, 32, 32) {
  const uint32_t barrier = shared_address(words);
  if (threadIdx.x == 0) {
    mbarrier_init(barrier, 2);
    mbarrier_init_fence();
    int i = 0;
    out[i++] = mbarrier_test_wait(barrier, 1);  // the phase before the first
    out[i++] = mbarrier_test_wait(barrier, 0);  // nobody has come
    mbarrier_arrive(barrier);
    out[i++] = mbarrier_test_wait(barrier, 0);
    mbarrier_arrive(barrier);
    mbarrier_wait(barrier, 0);
    out[i++] = mbarrier_test_wait(barrier, 0);
    out[i++] = mbarrier_test_wait(barrier, 1);
    mbarrier_expect_tx(barrier, 16);
    mbarrier_arrive(barrier);
    mbarrier_arrive(barrier);
    out[i++] = mbarrier_test_wait(barrier, 1);  // all have come but for 16 bytes
    bulk_load(barrier + 16, in, 16, barrier);
    mbarrier_wait(barrier, 1);
    out[i++] = mbarrier_test_wait(barrier, 1);
    out[i++] = mbarrier_test_wait(barrier, 0);
    out[i++] = words[4];
  }
}

// A warp hands 32 words to another through a ring of two stages, 8 times.
CASE(mbarrier_ring, 64, 2 * 128 + 32) {
  const uint32_t full = shared_address(words) + 256, empty = full + 16;
  if (threadIdx.x == 0)
    for (int s = 0; s < 2; ++s) mbarrier_init(full + 8 * s, 32), mbarrier_init(empty + 8 * s, 32);
  __syncthreads();
  const int lane = lane_id();
  for (int i = 0; i < 8; ++i) {
    const int s = i % 2, phase = i / 2 % 2;
    if (threadIdx.x < 32) {
      mbarrier_wait(empty + 8 * s, phase ^ 1);
      words[32 * s + lane] = in[32 * i + lane];
      mbarrier_arrive(full + 8 * s);
    } else {
      mbarrier_wait(full + 8 * s, phase);
      out[32 * i + lane] = words[32 * s + 31 - lane];
      mbarrier_arrive(empty + 8 * s);
    }
  }
}

// ---- bulk copies

CASE(bulk_load_bytes, 32, 1024 + 16) {
  const uint32_t barrier = shared_address(words) + 1024;
  for (int i = threadIdx.x; i < 256; i += 32) words[i] = 7;
  fence_async_shared();
  if (threadIdx.x == 0) init_for_tma(barrier);
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(barrier, 496);
    bulk_load(shared_address(words) + 48, in + 8, 496, barrier);
  }
  mbarrier_wait(barrier, 0);
  dump_shared(out, 256);
}
CASE(bulk_store_bytes, 32, 1024) {
  fill_shared(in, 256);
  fence_async_shared();
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_store(out + 4, shared_address(words) + 32, 320);
    bulk_commit();
    bulk_store(out + 100, shared_address(words) + 512, 64);
    bulk_commit();
    bulk_wait_read<1>();
    bulk_wait<0>();
  }
}

// ---- TMA

// As in Python: element bytes, swizzle, then size, stride (elements), box and coordinates of each dimension.
struct TmaCase {
  int64_t element, swizzle, size[5], stride[5], box[5], at[5];
};

namespace {

struct Coordinates {
  int at[5];
};

template <int kDimensions>
__global__ void tma_load_kernel(const __grid_constant__ CUtensorMap map, Coordinates c, int bytes, uint32_t* out) {
  const uint32_t to = shared_address(words), barrier = to + 32 * 1024;
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) words[i] = 7;
  fence_async_shared();
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&map);
    init_for_tma(barrier);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(barrier, bytes);
    if constexpr (kDimensions == 1) tma_load(to, &map, barrier, c.at[0]);
    if constexpr (kDimensions == 2) tma_load(to, &map, barrier, c.at[0], c.at[1]);
    if constexpr (kDimensions == 3) tma_load(to, &map, barrier, c.at[0], c.at[1], c.at[2]);
    if constexpr (kDimensions == 4) tma_load(to, &map, barrier, c.at[0], c.at[1], c.at[2], c.at[3]);
    if constexpr (kDimensions == 5) tma_load(to, &map, barrier, c.at[0], c.at[1], c.at[2], c.at[3], c.at[4]);
  }
  mbarrier_wait(barrier, 0);
  dump_shared(out, bytes / 4);
}

template <int kDimensions>
__global__ void tma_store_kernel(const __grid_constant__ CUtensorMap map, Coordinates c, int bytes, const uint32_t* in) {
  fill_shared(in, bytes / 4);
  fence_async_shared();
  __syncthreads();
  if (threadIdx.x == 0) {
    const uint32_t from = shared_address(words);
    if constexpr (kDimensions == 1) tma_store(&map, from, c.at[0]);
    if constexpr (kDimensions == 2) tma_store(&map, from, c.at[0], c.at[1]);
    if constexpr (kDimensions == 3) tma_store(&map, from, c.at[0], c.at[1], c.at[2]);
    if constexpr (kDimensions == 4) tma_store(&map, from, c.at[0], c.at[1], c.at[2], c.at[3]);
    if constexpr (kDimensions == 5) tma_store(&map, from, c.at[0], c.at[1], c.at[2], c.at[3], c.at[4]);
    bulk_commit();
    bulk_wait_read<0>();
  }
}

template <int kDimensions>
void tma(bool store, const TmaCase& o, const uint32_t* in, uint32_t* out) {
  int64_t size[kDimensions], stride[kDimensions];
  int box[kDimensions];
  Coordinates c = {};
  int64_t bytes = o.element;
  for (int i = 0; i < kDimensions; ++i) {
    size[i] = o.size[i], stride[i] = o.stride[i], box[i] = static_cast<int>(o.box[i]), c.at[i] = static_cast<int>(o.at[i]);
    bytes *= o.box[i];
  }
  const void* tensor = store ? static_cast<const void*>(out) : in;
  const auto map =
      tensor_map<kDimensions>(o.element == 4 ? DType::f32 : DType::bf16, tensor, size, stride, box, static_cast<int>(o.swizzle));
  constexpr int shared = 32 * 1024 + 16;
  if (store)
    tma_store_kernel<kDimensions><<<1, 64, shared>>>(map, c, static_cast<int>(bytes), in);
  else
    tma_load_kernel<kDimensions><<<1, 64, shared>>>(map, c, static_cast<int>(bytes), out);
}

}  // namespace

extern "C" int run_tma(int dimensions, int store, const TmaCase* o, const void* in, int64_t in_bytes, void* out,
                       int64_t out_bytes) {
  try {
    return conformance::run(in, in_bytes, out, out_bytes, [&](const uint32_t* from, uint32_t* to) {
      switch (dimensions) {
        case 1:
          return tma<1>(store, *o, from, to);
        case 2:
          return tma<2>(store, *o, from, to);
        case 3:
          return tma<3>(store, *o, from, to);
        case 4:
          return tma<4>(store, *o, from, to);
        default:
          return tma<5>(store, *o, from, to);
      }
    });
  } catch (const Error& error) {
    return error.code;
  }
}

// ---- clusters: two blocks

namespace {

// Each block tells the other's barrier once its words are there, then reads what TMA brought both.
__global__ void __cluster_dims__(2, 1, 1) cluster_kernel(const __grid_constant__ CUtensorMap map, uint32_t* out) {
  const uint32_t to = shared_address(words), loaded = to + 4096, told = loaded + 8, rank = cluster_rank();
  if (threadIdx.x == 0) {
    init_for_tma(loaded);
    mbarrier_init(told, 32);
    mbarrier_init_fence();
  }
  cluster_sync();
  if (threadIdx.x == 0) {
    mbarrier_arrive_expect_tx(loaded, 4096);
    // Each block loads half of the box for both.
    tma_load_multicast(to + 2048 * rank, &map, loaded, 3, 0, 16 * rank);
  }
  mbarrier_wait(loaded, 0);
  mbarrier_arrive_cluster(cluster_address(told, rank ^ 1));
  mbarrier_wait(told, 0);
  for (int i = threadIdx.x; i < 1024; i += 32) out[1024 * rank + i] = words[i];
  if (threadIdx.x == 0) out[2048 + rank] = rank;
  cluster_sync();
}

}  // namespace

extern "C" int run_cluster(const void* in, int64_t in_bytes, void* out, int64_t out_bytes) {
  try {
    return conformance::run(in, in_bytes, out, out_bytes, [&](const uint32_t* from, uint32_t* to) {
      const auto map = tensor_map<2>(DType::bf16, from, {64, 32}, {1, 64}, {64, 16}, 128);
      cluster_kernel<<<2, 32, 4096 + 16>>>(map, to);
    });
  } catch (const Error& error) {
    return error.code;
  }
}

namespace {

// Each block reads what the other has written.
__global__ void __cluster_dims__(2, 1, 1) cluster_words_kernel(const uint32_t* in, uint32_t* out) {
  const int mine = 32 * cluster_rank() + threadIdx.x;
  words[threadIdx.x] = in[mine];
  cluster_sync();
  out[mine] = cluster_load(cluster_address(shared_address(words + 31 - threadIdx.x), cluster_rank() ^ 1));
  cluster_sync();
}

}  // namespace

extern "C" int run_cluster_words(const void* in, int64_t in_bytes, void* out, int64_t out_bytes) {
  return conformance::run(in, in_bytes, out, out_bytes,
                          [&](const uint32_t* from, uint32_t* to) { cluster_words_kernel<<<2, 32, 128>>>(from, to); });
}

// ---- wgmma: shared memory as it comes, a at 0 and b at 8192; d starts with small numbers

namespace {

constexpr int kImage = 10240;  // words

template <class T, int kN, bool kTransposedA, bool kTransposedB, int kSwizzle, bool kRegisters>
__device__ void wgmma_case(const uint32_t* in, uint32_t* out, int accumulate) {
  fill_shared(in, kImage);
  fence_async_shared();
  __syncthreads();
  float d[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) d[i] = static_cast<float>((threadIdx.x + 3 * i) % 7);
  constexpr int kSteps = kTransposedA || kTransposedB ? (kSwizzle == 32 ? 1 : 2) : kSwizzle / 32;
  uint32_t a[kSteps][4];
  if (kRegisters)
    for (int step = 0; step < kSteps; ++step)
      for (int i = 0; i < 4; ++i) a[step][i] = in[kImage + (step * 128 + threadIdx.x) * 4 + i];
  const uint32_t at = shared_address(words);
  // m or n neighbours: 32 rows of k, then the next kSwizzle / 2 columns
  const uint64_t descriptor_a = kTransposedA ? wgmma_mn_major<kSwizzle>(at, 32 * kSwizzle) : wgmma_k_major<kSwizzle>(at);
  const uint64_t descriptor_b =
      kTransposedB ? wgmma_mn_major<kSwizzle>(at + 8192, 32 * kSwizzle) : wgmma_k_major<kSwizzle>(at + 8192);
  wgmma_hold(d);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const uint64_t b = descriptor_b + step * (kTransposedB ? kSwizzle : 2);
    if constexpr (kRegisters)
      wgmma<T, kN, kTransposedB>(d, a[step], b, accumulate || step);
    else
      wgmma<T, kN, kTransposedA, kTransposedB>(d, descriptor_a + step * (kTransposedA ? kSwizzle : 2), b, accumulate || step);
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(d);
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) out[kN / 2 * threadIdx.x + i] = __float_as_uint(d[i]);
}

}  // namespace

#define WGMMA(name, T, N, TA, TB, S, R, ACCUMULATE) \
  CASE(name, 128, 4 * kImage) { wgmma_case<T, N, TA, TB, S, R>(in, out, ACCUMULATE); }
#define WGMMA_N(N) WGMMA(wgmma_bf16_n##N, __nv_bfloat16, N, false, false, 128, false, 1)
#define WGMMA_LAYOUT(S)                                          \
  WGMMA(wgmma_f16_kk_##S, __half, 96, false, false, S, false, 1) \
  WGMMA(wgmma_f16_km_##S, __half, 96, false, true, S, false, 1)  \
  WGMMA(wgmma_f16_mk_##S, __half, 96, true, false, S, false, 1)  \
  WGMMA(wgmma_f16_mm_##S, __half, 96, true, true, S, false, 1)
// clang-format off: it takes these for what they are not
WGMMA_N(8) WGMMA_N(16) WGMMA_N(24) WGMMA_N(32) WGMMA_N(40) WGMMA_N(48) WGMMA_N(64) WGMMA_N(80) WGMMA_N(96) WGMMA_N(112)
WGMMA_N(128) WGMMA_N(144) WGMMA_N(160) WGMMA_N(176) WGMMA_N(192) WGMMA_N(208) WGMMA_N(224) WGMMA_N(240) WGMMA_N(256)
WGMMA_LAYOUT(128) WGMMA_LAYOUT(64) WGMMA_LAYOUT(32)
WGMMA(wgmma_bf16_km_n256, __nv_bfloat16, 256, false, true, 128, false, 1)
WGMMA(wgmma_bf16_start, __nv_bfloat16, 16, false, false, 128, false, 0)
WGMMA(wgmma_bf16_rk_n64, __nv_bfloat16, 64, false, false, 128, true, 1)
WGMMA(wgmma_bf16_rm_n64, __nv_bfloat16, 64, false, true, 128, true, 1)
WGMMA(wgmma_f16_rm_n96, __half, 96, false, true, 128, true, 1)
WGMMA(wgmma_bf16_rm_n128, __nv_bfloat16, 128, false, true, 128, true, 1)
WGMMA(wgmma_bf16_rm_n256, __nv_bfloat16, 256, false, true, 128, true, 1)
WGMMA(wgmma_f16_rm_n80, __half, 80, false, true, 128, true, 0)
WGMMA(wgmma_bf16_float, __nv_bfloat16, 16, false, false, 128, false, 1)
WGMMA(wgmma_f16_float, __half, 16, false, false, 128, false, 1)
