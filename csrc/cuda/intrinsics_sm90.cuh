// The instructions of Hopper (sm_90a): mbarriers, TMA, wgmma, stmatrix, clusters. For files *_sm90.cu only.
//
// What a kernel with a ring of stages does (full and empty are mbarriers, one of each a stage):
//   one thread      mbarrier_init(full, 1), mbarrier_init(empty, consumers), mbarrier_init_fence(); then all __syncthreads()
//   producer        mbarrier_wait(empty, phase ^ 1), mbarrier_expect_tx(full, bytes), tma_load(...) ... of that many bytes
//   consumer        mbarrier_wait(full, phase), wgmma_fence(), wgmma(...) ..., wgmma_commit(), wgmma_wait<0>(),
//   mbarrier_arrive(empty)
// where phase is the number of times that the ring has been gone round, modulo 2.
//
// Shared memory that threads write with ordinary stores and TMA or wgmma then read needs fence_async_shared() by the writers, and
// a barrier after it.
#pragma once
#include <cuda.h>  // CUtensorMap: a kernel parameter, `const __grid_constant__ CUtensorMap`

#include "cuda/intrinsics.cuh"

namespace qkv::cuda {

// ---- mbarriers: 8 bytes of shared memory ------------------------------------------------------------------------

// A phase ends when `arrivals` have come and all bytes that were expected are there; the next starts by itself.
QKV_DEVICE void mbarrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes inits visible to TMA and to the other blocks of the cluster.
QKV_DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

QKV_DEVICE void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Expects `bytes` more of TMA in this phase, and arrives.
QKV_DEVICE void mbarrier_arrive_expect_tx(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Only expects.
QKV_DEVICE void mbarrier_expect_tx(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Whether the phase of this parity is over: that of the current phase is 0, 1, 0 ..., so a fresh barrier says yes to 1. test_wait
// says what is so, try_wait may wait a while first.
QKV_DEVICE bool mbarrier_test_wait(uint32_t barrier, uint32_t parity) {
  uint32_t over;
  asm volatile(
      "{\n.reg .pred over;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 over, [%1], %2;\n"
      "selp.u32 %0, 1, 0, over;\n}"
      : "=r"(over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return over;
}
QKV_DEVICE bool mbarrier_try_wait(uint32_t barrier, uint32_t parity) {
  uint32_t over;
  asm volatile(
      "{\n.reg .pred over;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
      "selp.u32 %0, 1, 0, over;\n}"
      : "=r"(over)
      : "r"(barrier), "r"(parity)
      : "memory");
  return over;
}
QKV_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

// ---- fences between ordinary accesses and TMA or wgmma ----------------------------------------------------------

QKV_DEVICE void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Global memory as well.
QKV_DEVICE void fence_async() { asm volatile("fence.proxy.async;" ::: "memory"); }

// ---- TMA: boxes of a tensor between global and shared memory, moved by one thread's order -----------------------
//
// A CUtensorMap (tensor_map.h) says how the tensor lies and what box of it moves; coordinates are the box's first element, x of
// the dimension whose elements are neighbours. Elements outside the tensor are loaded as 0 and not stored. The box lies in shared
// memory row after row, with 16-byte chunks exchanged by the map's swizzle: of 128 bytes, chunk c of the row at address a is at c
// ^ (a / 128 % 8), so boxes start at multiples of 1024 bytes then (128 without). Loads count their bytes, those outside included,
// on an mbarrier.

QKV_DEVICE void prefetch_tensor_map(const CUtensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }

#define QKV_TMA_LOAD "shared::cluster.global.mbarrier::complete_tx::bytes"
QKV_DEVICE void tma_load(uint32_t shared, const CUtensorMap* map, uint32_t barrier, int x) {
  asm volatile("cp.async.bulk.tensor.1d." QKV_TMA_LOAD " [%0], [%1, {%3}], [%2];" ::"r"(shared), "l"(map), "r"(barrier), "r"(x)
               : "memory");
}
QKV_DEVICE void tma_load(uint32_t shared, const CUtensorMap* map, uint32_t barrier, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d." QKV_TMA_LOAD " [%0], [%1, {%3, %4}], [%2];" ::"r"(shared), "l"(map), "r"(barrier),
               "r"(x), "r"(y)
               : "memory");
}
QKV_DEVICE void tma_load(uint32_t shared, const CUtensorMap* map, uint32_t barrier, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d." QKV_TMA_LOAD " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared), "l"(map), "r"(barrier),
               "r"(x), "r"(y), "r"(z)
               : "memory");
}
QKV_DEVICE void tma_load(uint32_t shared, const CUtensorMap* map, uint32_t barrier, int x, int y, int z, int w) {
  asm volatile("cp.async.bulk.tensor.4d." QKV_TMA_LOAD " [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared), "l"(map),
               "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w)
               : "memory");
}
QKV_DEVICE void tma_load(uint32_t shared, const CUtensorMap* map, uint32_t barrier, int x, int y, int z, int w, int v) {
  asm volatile("cp.async.bulk.tensor.5d." QKV_TMA_LOAD " [%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared), "l"(map),
               "r"(barrier), "r"(x), "r"(y), "r"(z), "r"(w), "r"(v)
               : "memory");
}

// The box into the same place of every block of the cluster whose bit is set in `blocks`, counting on the barrier at the same
// place.
QKV_DEVICE void tma_load_multicast(uint32_t shared, const CUtensorMap* map, uint32_t barrier, uint16_t blocks, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d." QKV_TMA_LOAD ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(shared),
               "l"(map), "r"(barrier), "r"(x), "r"(y), "h"(blocks)
               : "memory");
}
QKV_DEVICE void tma_load_multicast(uint32_t shared, const CUtensorMap* map, uint32_t barrier, uint16_t blocks, int x, int y,
                                   int z) {
  asm volatile("cp.async.bulk.tensor.3d." QKV_TMA_LOAD ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(shared),
               "l"(map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"(blocks)
               : "memory");
}

// Bytes as they are: both addresses and the count are multiples of 16.
QKV_DEVICE void bulk_load(uint32_t shared, const void* global, uint32_t bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk." QKV_TMA_LOAD " [%0], [%1], %2, [%3];" ::"r"(shared), "l"(__cvta_generic_to_global(global)),
               "r"(bytes), "r"(barrier)
               : "memory");
}
#undef QKV_TMA_LOAD

// Stores belong to the groups of the thread that orders them: bulk_commit ends a group, bulk_wait_read waits until shared memory
// may be written again, bulk_wait until global memory is written. A kernel may end only after bulk_wait_read<0>.
QKV_DEVICE void tma_store(const CUtensorMap* map, uint32_t shared, int x) {
  asm volatile("cp.async.bulk.tensor.1d.global.shared::cta.bulk_group [%0, {%2}], [%1];" ::"l"(map), "r"(shared), "r"(x)
               : "memory");
}
QKV_DEVICE void tma_store(const CUtensorMap* map, uint32_t shared, int x, int y) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map), "r"(shared), "r"(x),
               "r"(y)
               : "memory");
}
QKV_DEVICE void tma_store(const CUtensorMap* map, uint32_t shared, int x, int y, int z) {
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map), "r"(shared), "r"(x),
               "r"(y), "r"(z)
               : "memory");
}
QKV_DEVICE void tma_store(const CUtensorMap* map, uint32_t shared, int x, int y, int z, int w) {
  asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map), "r"(shared),
               "r"(x), "r"(y), "r"(z), "r"(w)
               : "memory");
}
QKV_DEVICE void tma_store(const CUtensorMap* map, uint32_t shared, int x, int y, int z, int w, int v) {
  asm volatile("cp.async.bulk.tensor.5d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(map), "r"(shared),
               "r"(x), "r"(y), "r"(z), "r"(w), "r"(v)
               : "memory");
}
QKV_DEVICE void bulk_store(void* global, uint32_t shared, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(__cvta_generic_to_global(global)), "r"(shared),
               "r"(bytes)
               : "memory");
}
QKV_DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
template <int kPending>
QKV_DEVICE void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
template <int kPending>
QKV_DEVICE void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- wgmma: d (64, N) += a (64, 16) b (16, N) by the 128 threads of a warpgroup, while they do something else
//
// d[4 j + 2 h + e] of lane l of warp w (of the warpgroup) is row 16 w + l / 4 + 8 h, column 8 j + 2 (l % 4) + e. a in registers
// is mma_16816's a for the warp's 16 rows. b, and a otherwise, lie in shared memory as TMA puts them, and a descriptor says how:
//
// wgmma_k_major: neighbours along k. Rows of kSwizzle bytes, one for each row of a or column of b. The next 16 values of k are 32
// bytes on, within the row: descriptor + 2.
// wgmma_mn_major, and kTransposed: neighbours along m or n. Rows of kSwizzle bytes, one for each k, hold kSwizzle / 2 values of m
// or n; the next as many lie `next` bytes on. The next 16 values of k are 16 rows on: descriptor + kSwizzle.
//
// Both start at a multiple of 8 kSwizzle bytes (but for steps along k within a row). Descriptors count 16 bytes.

template <int kSwizzle>
constexpr uint64_t kSwizzleCode = kSwizzle == 128  ? 1
                                  : kSwizzle == 64 ? 2
                                  : kSwizzle == 32 ? 3
                                                   : 0;

QKV_DEVICE uint64_t wgmma_descriptor(uint32_t address, uint32_t leading, uint32_t stride, uint64_t swizzle) {
  return swizzle << 62 | static_cast<uint64_t>(stride >> 4) << 32 | static_cast<uint64_t>(leading >> 4) << 16 |
         (address & 0x3FFFF) >> 4;
}
template <int kSwizzle = 128>
QKV_DEVICE uint64_t wgmma_k_major(uint32_t address) {
  static_assert(kSwizzle == 128 || kSwizzle == 64 || kSwizzle == 32);
  return wgmma_descriptor(address, 16, 8 * kSwizzle, kSwizzleCode<kSwizzle>);
}
template <int kSwizzle = 128>
QKV_DEVICE uint64_t wgmma_mn_major(uint32_t address, uint32_t next) {
  static_assert(kSwizzle == 128 || kSwizzle == 64 || kSwizzle == 32);
  return wgmma_descriptor(address, next, 8 * kSwizzle, kSwizzleCode<kSwizzle>);
}

// Before the first wgmma, and before one that reads registers that something else wrote.
QKV_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
QKV_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Waits until at most the kPending newest groups are under way. Until then nobody may touch d, a's registers or shared memory.
template <int kPending>
QKV_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// The compiler takes d for ready as soon as wgmma is issued, and may move its uses before the wait: not past this. Place it
// between wgmma_wait and the first use, and between the last write and wgmma_fence.
template <class Register, int kCount>
QKV_DEVICE void wgmma_hold(Register (&d)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if constexpr (std::is_same_v<Register, float>)
      asm volatile("" : "+f"(d[i])::"memory");
    else
      asm volatile("" : "+r"(d[i])::"memory");
  }
}

// The instruction names every register of d, in text and as operands: literals, which only macros can put together. QKV_TEXT_n
// and QKV_REGISTERS_n are the first n of them.
#define QKV_D(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define QKV_TEXT_4 "%0, %1, %2, %3"
#define QKV_REGISTERS_4 QKV_D(0)
#define QKV_TEXT_8 QKV_TEXT_4 ", %4, %5, %6, %7"
#define QKV_REGISTERS_8 QKV_REGISTERS_4, QKV_D(4)
#define QKV_TEXT_12 QKV_TEXT_8 ", %8, %9, %10, %11"
#define QKV_REGISTERS_12 QKV_REGISTERS_8, QKV_D(8)
#define QKV_TEXT_16 QKV_TEXT_12 ", %12, %13, %14, %15"
#define QKV_REGISTERS_16 QKV_REGISTERS_12, QKV_D(12)
#define QKV_TEXT_20 QKV_TEXT_16 ", %16, %17, %18, %19"
#define QKV_REGISTERS_20 QKV_REGISTERS_16, QKV_D(16)
#define QKV_TEXT_24 QKV_TEXT_20 ", %20, %21, %22, %23"
#define QKV_REGISTERS_24 QKV_REGISTERS_20, QKV_D(20)
#define QKV_TEXT_32 QKV_TEXT_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define QKV_REGISTERS_32 QKV_REGISTERS_24, QKV_D(24), QKV_D(28)
#define QKV_TEXT_40 QKV_TEXT_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define QKV_REGISTERS_40 QKV_REGISTERS_32, QKV_D(32), QKV_D(36)
#define QKV_TEXT_48 QKV_TEXT_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define QKV_REGISTERS_48 QKV_REGISTERS_40, QKV_D(40), QKV_D(44)
#define QKV_TEXT_56 QKV_TEXT_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define QKV_REGISTERS_56 QKV_REGISTERS_48, QKV_D(48), QKV_D(52)
#define QKV_TEXT_64 QKV_TEXT_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define QKV_REGISTERS_64 QKV_REGISTERS_56, QKV_D(56), QKV_D(60)
#define QKV_TEXT_72 QKV_TEXT_64 ", %64, %65, %66, %67, %68, %69, %70, %71"
#define QKV_REGISTERS_72 QKV_REGISTERS_64, QKV_D(64), QKV_D(68)
#define QKV_TEXT_80 QKV_TEXT_72 ", %72, %73, %74, %75, %76, %77, %78, %79"
#define QKV_REGISTERS_80 QKV_REGISTERS_72, QKV_D(72), QKV_D(76)
#define QKV_TEXT_88 QKV_TEXT_80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define QKV_REGISTERS_88 QKV_REGISTERS_80, QKV_D(80), QKV_D(84)
#define QKV_TEXT_96 QKV_TEXT_88 ", %88, %89, %90, %91, %92, %93, %94, %95"
#define QKV_REGISTERS_96 QKV_REGISTERS_88, QKV_D(88), QKV_D(92)
#define QKV_TEXT_104 QKV_TEXT_96 ", %96, %97, %98, %99, %100, %101, %102, %103"
#define QKV_REGISTERS_104 QKV_REGISTERS_96, QKV_D(96), QKV_D(100)
#define QKV_TEXT_112 QKV_TEXT_104 ", %104, %105, %106, %107, %108, %109, %110, %111"
#define QKV_REGISTERS_112 QKV_REGISTERS_104, QKV_D(104), QKV_D(108)
#define QKV_TEXT_120 QKV_TEXT_112 ", %112, %113, %114, %115, %116, %117, %118, %119"
#define QKV_REGISTERS_120 QKV_REGISTERS_112, QKV_D(112), QKV_D(116)
#define QKV_TEXT_128 QKV_TEXT_120 ", %120, %121, %122, %123, %124, %125, %126, %127"
#define QKV_REGISTERS_128 QKV_REGISTERS_120, QKV_D(120), QKV_D(124)

template <class T, int kN>
struct Wgmma;

// R: how many registers; I ... O: the numbers of the operands after them.
#define QKV_WGMMA_OF(T, TYPE, N, R, I, J, K, L, M, O, P)                                                      \
  template <>                                                                                                 \
  struct Wgmma<T, N> {                                                                                        \
    template <int kTransposedA, int kTransposedB>                                                             \
    static QKV_DEVICE void run(float (&d)[N / 2], uint64_t a, uint64_t b, int accumulate) {                   \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #K                                                    \
                   ", 0;\n"                                                                                   \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" QKV_TEXT_##R          \
                   "}, %" #I ", %" #J ", p, 1, 1, %" #L ", %" #M ";\n}"                                       \
                   : QKV_REGISTERS_##R                                                                        \
                   : "l"(a), "l"(b), "r"(accumulate), "n"(kTransposedA), "n"(kTransposedB));                  \
    }                                                                                                         \
    template <int kTransposedB>                                                                               \
    static QKV_DEVICE void run(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int accumulate) {       \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #O                                                    \
                   ", 0;\n"                                                                                   \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" QKV_TEXT_##R          \
                   "}, {%" #I ", %" #J ", %" #K ", %" #L "}, %" #M ", p, 1, 1, %" #P ";\n}"                   \
                   : QKV_REGISTERS_##R                                                                        \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate), "n"(kTransposedB)); \
    }                                                                                                         \
  };
#define QKV_WGMMA(...) QKV_WGMMA_OF(__nv_bfloat16, "bf16", __VA_ARGS__) QKV_WGMMA_OF(__half, "f16", __VA_ARGS__)
QKV_WGMMA(8, 4, 4, 5, 6, 7, 8, 9, 10)
QKV_WGMMA(16, 8, 8, 9, 10, 11, 12, 13, 14)
QKV_WGMMA(24, 12, 12, 13, 14, 15, 16, 17, 18)
QKV_WGMMA(32, 16, 16, 17, 18, 19, 20, 21, 22)
QKV_WGMMA(40, 20, 20, 21, 22, 23, 24, 25, 26)
QKV_WGMMA(48, 24, 24, 25, 26, 27, 28, 29, 30)
QKV_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38)
QKV_WGMMA(80, 40, 40, 41, 42, 43, 44, 45, 46)
QKV_WGMMA(96, 48, 48, 49, 50, 51, 52, 53, 54)
QKV_WGMMA(112, 56, 56, 57, 58, 59, 60, 61, 62)
QKV_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70)
QKV_WGMMA(144, 72, 72, 73, 74, 75, 76, 77, 78)
QKV_WGMMA(160, 80, 80, 81, 82, 83, 84, 85, 86)
QKV_WGMMA(176, 88, 88, 89, 90, 91, 92, 93, 94)
QKV_WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102)
QKV_WGMMA(208, 104, 104, 105, 106, 107, 108, 109, 110)
QKV_WGMMA(224, 112, 112, 113, 114, 115, 116, 117, 118)
QKV_WGMMA(240, 120, 120, 121, 122, 123, 124, 125, 126)
QKV_WGMMA(256, 128, 128, 129, 130, 131, 132, 133, 134)
#undef QKV_WGMMA
#undef QKV_WGMMA_OF
#undef QKV_D

// Both operands from shared memory; kTransposed: m or n neighbours. accumulate == 0: d starts at 0.
template <class T, int kN, bool kTransposedA = false, bool kTransposedB = false>
QKV_DEVICE void wgmma(float (&d)[kN / 2], uint64_t a, uint64_t b, int accumulate) {
  Wgmma<T, kN>::template run<kTransposedA, kTransposedB>(d, a, b, accumulate);
}
// a in registers.
template <class T, int kN, bool kTransposedB = false>
QKV_DEVICE void wgmma(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, int accumulate) {
  Wgmma<T, kN>::template run<kTransposedB>(d, a, b, accumulate);
}

// ---- stmatrix: ldmatrix the other way ---------------------------------------------------------------------------

QKV_DEVICE void stmatrix_x4(uint32_t row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]), "r"(r[1]), "r"(r[2]),
               "r"(r[3])
               : "memory");
}
QKV_DEVICE void stmatrix_x4_trans(uint32_t row, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]), "r"(r[1]),
               "r"(r[2]), "r"(r[3])
               : "memory");
}
QKV_DEVICE void stmatrix_x2(uint32_t row, const uint32_t (&r)[2]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1, %2};" ::"r"(row), "r"(r[0]), "r"(r[1]) : "memory");
}

// ---- warp roles -------------------------------------------------------------------------------------------------

// Registers a thread of this warpgroup may use from here on, a multiple of 8 in 24 ... 256; all its warps say so.
template <int kRegisters>
QKV_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
QKV_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// True in one lane of the warp, which must be here together.
QKV_DEVICE bool elect_one() {
  uint32_t mine;
  asm volatile(
      "{\n.reg .pred mine;\n"
      "elect.sync _|mine, 0xFFFFFFFF;\n"
      "selp.u32 %0, 1, 0, mine;\n}"
      : "=r"(mine)
      :
      : "memory");
  return mine;
}

// ---- clusters: blocks that see each other's shared memory -------------------------------------------------------

QKV_DEVICE uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// All threads of all blocks. Arriving releases what the thread wrote, waiting acquires it.
QKV_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
QKV_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
QKV_DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
// The address, for instructions on the cluster's shared memory, of the same place in the block of a rank.
QKV_DEVICE uint32_t cluster_address(uint32_t shared, uint32_t rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared), "r"(rank));
  return address;
}
// A word at such an address.
QKV_DEVICE uint32_t cluster_load(uint32_t address) {
  uint32_t word;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(word) : "r"(address) : "memory");
  return word;
}
QKV_DEVICE void mbarrier_arrive_cluster(uint32_t cluster_barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(cluster_barrier) : "memory");
}

}  // namespace qkv::cuda
