// The instructions that C++ has no words for, on every GPU since sm_80: cp.async, ldmatrix, mma.sync, approximate exp2, named
// barriers. All inline PTX of the portable kernels is here; tests/test_cuda_intrinsics.py holds each function to a definition in
// NumPy, in emulation and on a GPU.
//
// Shared memory has two kinds of address: a pointer, and the 32 bits that the instructions take (shared_address). Loops keep the
// 32 bits and add byte offsets; the overloads with pointers are for everything else.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#include "core/dtype.h"

#define QKV_DEVICE __device__ __forceinline__

namespace qkv::cuda {

constexpr uint32_t kFullWarp = 0xFFFFFFFFu;

QKV_DEVICE uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

QKV_DEVICE int lane_id() { return threadIdx.x & 31; }  // in blocks whose threads are counted along x

// ---- pairs of 16-bit floats in a 32-bit register: the first in the low half, as in memory -----------------------

template <class T>
constexpr bool kIs16Bit = std::is_same_v<T, __nv_bfloat16> || std::is_same_v<T, __half>;

template <class To, class From>
QKV_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// Rounded to nearest, ties to even: one instruction.
template <class T>
QKV_DEVICE uint32_t pack2(float low, float high) {
  static_assert(kIs16Bit<T>);
  if constexpr (std::is_same_v<T, __half>)
    return bit_cast<uint32_t>(__floats2half2_rn(low, high));
  else
    return bit_cast<uint32_t>(__floats2bfloat162_rn(low, high));
}

template <class T>
QKV_DEVICE float2 unpack2(uint32_t pair) {
  static_assert(kIs16Bit<T>);
  if constexpr (std::is_same_v<T, __half>)
    return __half22float2(bit_cast<__half2>(pair));
  else
    return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000u));
}

// Any of the three dtypes to and from float, and float64 to it.
QKV_DEVICE float to_float(float x) { return x; }
QKV_DEVICE float to_float(double x) { return static_cast<float>(x); }
QKV_DEVICE float to_float(__half x) { return __half2float(x); }
QKV_DEVICE float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <class T>
QKV_DEVICE T from_float(float x) {
  if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(x);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(x);
  else
    return x;
}

QKV_DEVICE float load_float(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::f16:
      return to_float(static_cast<const __half*>(data)[i]);
    case DType::bf16:
      return to_float(static_cast<const __nv_bfloat16*>(data)[i]);
    default:
      return static_cast<const float*>(data)[i];
  }
}

// ---- global memory, 16 bytes at an address that is a multiple of 16 ---------------------------------------------

QKV_DEVICE uint4 load16(const void* p) { return *static_cast<const uint4*>(p); }
// For what is read once: it takes no room in the L1 cache. Not for what the kernel itself writes: the compiler may move stores
// past it. Where kernels may begin before the end of others it is no ld.global.nc (see grid_dependency_wait), and stays where it
// stands among stores.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
constexpr bool kLoadsKeepOrder = true;
#define QKV_READ_ONLY ""
#else
constexpr bool kLoadsKeepOrder = false;
#define QKV_READ_ONLY ".nc"
#endif
QKV_DEVICE uint4 load16_streaming(const void* p) {
  uint4 v;
  asm volatile("ld.global" QKV_READ_ONLY ".L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(__cvta_generic_to_global(p)));
  return v;
}
#undef QKV_READ_ONLY
// For what the kernel itself does not write, where it stores meanwhile: likewise.
QKV_DEVICE uint4 load16_read_only(const void* p) {
  if constexpr (kLoadsKeepOrder) return load16(p);
  return __ldg(static_cast<const uint4*>(p));
}
QKV_DEVICE void store16(void* p, uint4 v) { *static_cast<uint4*>(p) = v; }
// What is not read again soon: first to leave the caches.
QKV_DEVICE void store16_streaming(void* p, uint4 v) { __stcs(static_cast<uint4*>(p), v); }

// ---- cp.async: global to shared memory without registers --------------------------------------------------------

// Copies 16 bytes, past the L1 cache. Of source_bytes = 0 ... 16 fewer are read and the rest of the 16 is zeroed; at 0 the source
// is not touched, but must still be aligned. Both addresses are multiples of 16.
QKV_DEVICE void cp_async16(uint32_t shared, const void* global, int source_bytes = 16) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(__cvta_generic_to_global(global)),
               "r"(source_bytes)
               : "memory");
}
QKV_DEVICE void cp_async16(void* shared, const void* global, int source_bytes = 16) {
  cp_async16(shared_address(shared), global, source_bytes);
}

// 4 or 8 bytes (or 16), through the L1 cache, for rows that are not multiples of 16 bytes apart.
template <int kBytes>
QKV_DEVICE void cp_async(uint32_t shared, const void* global, int source_bytes = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(__cvta_generic_to_global(global)), "n"(kBytes),
               "r"(source_bytes)
               : "memory");
}
template <int kBytes>
QKV_DEVICE void cp_async(void* shared, const void* global, int source_bytes = kBytes) {
  cp_async<kBytes>(shared_address(shared), global, source_bytes);
}

// Ends a group of this thread's copies. Groups may be empty, which lets a pipeline count them.
QKV_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the kPending newest groups of this thread are under way. Others see the data after a barrier.
template <int kPending>
QKV_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// ---- ldmatrix: 8x8 matrices of 16-bit values from shared memory into mma's fragments ----------------------------
//
// Lane 8i + r gives the address of row r of matrix i: 16 bytes, aligned to 16. Register i of lane l then holds row l / 4, columns
// 2 (l % 4) and + 1 of matrix i; transposed: rows 2 (l % 4) and + 1 of column l / 4. All 32 lanes take part. x2 reads the
// addresses of lanes 0 ... 15, x1 of lanes 0 ... 7.

QKV_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
QKV_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(row)
               : "memory");
}
QKV_DEVICE void ldmatrix_x2(uint32_t (&r)[2], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(row) : "memory");
}
QKV_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(row) : "memory");
}
QKV_DEVICE void ldmatrix_x1(uint32_t& r, uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(row) : "memory");
}
QKV_DEVICE void ldmatrix_x1_trans(uint32_t& r, uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(row) : "memory");
}
QKV_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) { ldmatrix_x4(r, shared_address(row)); }
QKV_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) { ldmatrix_x4_trans(r, shared_address(row)); }
QKV_DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row) { ldmatrix_x2(r, shared_address(row)); }
QKV_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) { ldmatrix_x2_trans(r, shared_address(row)); }
QKV_DEVICE void ldmatrix_x1(uint32_t& r, const void* row) { ldmatrix_x1(r, shared_address(row)); }
QKV_DEVICE void ldmatrix_x1_trans(uint32_t& r, const void* row) { ldmatrix_x1_trans(r, shared_address(row)); }

// ---- mma.sync: d (16, 8) += a (16, 16) b (16, 8) by the 32 lanes of a warp, products and sums in float ----------
//
// With g = lane / 4 and t = lane % 4, each register of a and b a pair (pack2):
//   a[0]: row g,     columns 2t, 2t+1      a[2]: row g,     columns 2t+8, 2t+9
//   a[1]: row g + 8, columns 2t, 2t+1      a[3]: row g + 8, columns 2t+8, 2t+9
//   b0: rows 2t, 2t+1 of column g          b1: rows 2t+8, 2t+9 of column g
//   d[0], d[1]: row g, columns 2t, 2t+1    d[2], d[3]: row g + 8, columns 2t, 2t+1
//
// a from shared memory with rows of k: ldmatrix_x4 with lane l at row l % 16, columns 8 (l / 16) ... + 7.
// b of two neighbouring tiles of 8 columns, from memory in which a row holds the k values of one column (n, k): ldmatrix_x4 with
// lane l at row l % 8 + 8 (l / 16), columns 8 (l / 8 % 2) ... + 7; r[0], r[1] are the first tile's b0, b1, and r[2], r[3] the
// second's. The same from memory of rows of n (k, n): ldmatrix_x4_trans with lane l at row l % 16, columns 8 (l / 16) ... + 7. d
// of a product is a of the next: pack2 of (d[0], d[1]), (d[2], d[3]) of tile 2j and the same of tile 2j + 1 are a[0 ... 3].
template <class T>
QKV_DEVICE void mma_16816(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(kIs16Bit<T>);
  if constexpr (std::is_same_v<T, __half>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- arithmetic -------------------------------------------------------------------------------------------------

// 2^x within 2 ulp; -inf gives 0, NaN stays. Results below 2^-126 are 0. (The hardware's tanh, good to 2^-11, is too coarse.)
QKV_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// log2(x) within 2^-22, absolute near 1; 0 gives -inf, below 0 NaN. Denormal x counts as 0.
QKV_DEVICE float log2_approx(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The larger; NaN if either is.
QKV_DEVICE float max_nan(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}
// Of each T that the words hold.
template <class T>
QKV_DEVICE uint32_t max_nan_words(uint32_t x, uint32_t y) {
  if constexpr (std::is_same_v<T, __half>)
    return bit_cast<uint32_t>(__hmax2_nan(bit_cast<__half2>(x), bit_cast<__half2>(y)));
  else if constexpr (kIs16Bit<T>)
    return bit_cast<uint32_t>(__hmax2_nan(bit_cast<__nv_bfloat162>(x), bit_cast<__nv_bfloat162>(y)));
  else
    return __float_as_uint(max_nan(__uint_as_float(x), __uint_as_float(y)));
}

// x, of which the compiler no longer knows where it comes from: what is computed from it in a loop stays in the loop, where it
// would else be computed once and kept in registers that the loop does not have. No instruction.
QKV_DEVICE int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Any function of three bits, bit by bit: bit 4 a + 2 b + c of kTable is its value.
template <int kTable>
QKV_DEVICE uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(kTable));
  return d;
}

// ---- a warp together --------------------------------------------------------------------------------------------

// Over each kLanes neighbouring lanes (4: the lanes that hold one row of mma's d); every lane gets the result, the same to the
// bit.
template <int kLanes = 32>
QKV_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(kFullWarp, x, step);
  return x;
}
// NaN only if all are.
template <int kLanes = 32>
QKV_DEVICE float warp_max(float x) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, step));
  return x;
}

// This lane's and those before.
template <class V>
QKV_DEVICE V up_to_lane(V x) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const V other = __shfl_up_sync(kFullWarp, x, step);
    if (lane_id() >= step) x += other;
  }
  return x;
}

// ---- barriers of some of a block's warps ------------------------------------------------------------------------

// Barrier `id` (1 ... 15; 0 is __syncthreads) of `threads` threads, a multiple of 32.
QKV_DEVICE void named_barrier_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// Counts as having come, and goes on.
QKV_DEVICE void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- programmatic dependent launch: nothing before sm_90 --------------------------------------------------------

// Waits until the kernel before this one in the stream has ended and its writes are seen here. launch.cuh says who must call it,
// and when. Loads after it must not be ld.global.nc (__ldg, or const and __restrict__): those are for what nobody writes as long
// as the kernel runs, which it does from before the wait. They lie outside of the memory model, and may be moved before it.
QKV_DEVICE void grid_dependency_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel's blocks may start as soon as every block has called this or ended.
QKV_DEVICE void grid_dependency_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// What kernels of launch_dependent begin with that have nothing to do before they wait.
QKV_DEVICE void begin_dependent() {
  grid_dependency_launch();
  grid_dependency_wait();
}
// Asks for `bytes` from `p` on, both multiples of 16 and not 0, to be brought into the L2 cache, and waits for nothing. No value
// is read, so it may stand before grid_dependency_wait.
QKV_DEVICE void prefetch_l2(const void* p, int64_t bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(static_cast<uint32_t>(bytes))
               : "memory");
#endif
}

}  // namespace qkv::cuda
