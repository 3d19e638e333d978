// intrinsics.cuh, function by function: tests/cuda_conformance.py says what each kernel must do.
#include "conformance.h"

#include "cuda/intrinsics.cuh"

using namespace qkv::cuda;

extern "C" const char* text_of_error(int error) { return error_text(error); }

namespace {

extern __shared__ __align__(1024) uint32_t words[];

__device__ float as_float(uint32_t x) { return __uint_as_float(x); }
__device__ uint32_t as_word(float x) { return __float_as_uint(x); }

// The block's input into shared memory, everybody's for everybody.
__device__ void fill_shared(const uint32_t* in, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) words[i] = in[i];
  __syncthreads();
}
__device__ void dump_shared(uint32_t* out, int count) {
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) out[i] = words[i];
}

}  // namespace

// ---- pairs

CASE(pack2_bf16, 256, 0) {
  out[threadIdx.x] = pack2<__nv_bfloat16>(as_float(in[2 * threadIdx.x]), as_float(in[2 * threadIdx.x + 1]));
}
CASE(pack2_f16, 256, 0) { out[threadIdx.x] = pack2<__half>(as_float(in[2 * threadIdx.x]), as_float(in[2 * threadIdx.x + 1])); }
CASE(unpack2_bf16, 256, 0) {
  const float2 v = unpack2<__nv_bfloat16>(in[threadIdx.x]);
  out[2 * threadIdx.x] = as_word(v.x), out[2 * threadIdx.x + 1] = as_word(v.y);
}
CASE(unpack2_f16, 256, 0) {
  const float2 v = unpack2<__half>(in[threadIdx.x]);
  out[2 * threadIdx.x] = as_word(v.x), out[2 * threadIdx.x + 1] = as_word(v.y);
}

// The larger of two, of floats and of two pairs.
CASE(max_of_two, 256, 0) {
  out[threadIdx.x] = as_word(max_nan(as_float(in[2 * threadIdx.x]), as_float(in[2 * threadIdx.x + 1])));
}
CASE(max_of_words_f32, 256, 0) { out[threadIdx.x] = max_nan_words<float>(in[2 * threadIdx.x], in[2 * threadIdx.x + 1]); }
CASE(max_of_words_bf16, 256, 0) { out[threadIdx.x] = max_nan_words<__nv_bfloat16>(in[2 * threadIdx.x], in[2 * threadIdx.x + 1]); }
CASE(max_of_words_f16, 256, 0) { out[threadIdx.x] = max_nan_words<__half>(in[2 * threadIdx.x], in[2 * threadIdx.x + 1]); }

// ---- global memory: 16 bytes a thread

CASE(load16_all, 32, 0) {
  const uint32_t* from = in + 4 * threadIdx.x;
  store16(out + 4 * threadIdx.x, load16(from));
  store16(out + 128 + 4 * threadIdx.x, load16_read_only(from + 128));
  store16_streaming(out + 256 + 4 * threadIdx.x, load16_streaming(from + 256));
}

// ---- cp.async: thread i copies i % 17 (or as many as there are) bytes

CASE(cp_async16_bytes, 32, 512) {
  fill_shared(in, 128);
  cp_async16(words + 4 * threadIdx.x, in + 128 + 4 * threadIdx.x, threadIdx.x % 17);
  cp_async_commit();
  cp_async_wait<0>();
  dump_shared(out, 128);
}
CASE(cp_async8_bytes, 32, 256) {
  fill_shared(in, 64);
  cp_async<8>(words + 2 * threadIdx.x, in + 64 + 2 * threadIdx.x, threadIdx.x % 9);
  cp_async_commit();
  cp_async_wait<0>();
  dump_shared(out, 64);
}
CASE(cp_async4_bytes, 32, 128) {
  fill_shared(in, 32);
  cp_async<4>(words + threadIdx.x, in + 32 + threadIdx.x, threadIdx.x % 5);
  cp_async_commit();
  cp_async_wait<0>();
  dump_shared(out, 32);
}
// Three groups; the first is read while the others may be under way.
CASE(cp_async_groups, 32, 3 * 512) {
  for (int i = 0; i < 3; ++i) {
    cp_async16(words + 128 * i + 4 * threadIdx.x, in + 128 * i + 4 * threadIdx.x);
    cp_async_commit();
  }
  cp_async_wait<2>();
  __syncthreads();
  store16(out + 4 * threadIdx.x, *reinterpret_cast<uint4*>(words + 4 * (31 - threadIdx.x)));
  cp_async_wait<1>();
  __syncthreads();
  store16(out + 128 + 4 * threadIdx.x, *reinterpret_cast<uint4*>(words + 128 + 4 * (31 - threadIdx.x)));
  cp_async_wait<0>();
  __syncthreads();
  store16(out + 256 + 4 * threadIdx.x, *reinterpret_cast<uint4*>(words + 256 + 4 * (31 - threadIdx.x)));
}

// ---- ldmatrix: 32 lanes give the rows that in[1024 ...] says

#define LDMATRIX(name, registers)                                                \
  CASE(name, 32, 4096) {                                                         \
    fill_shared(in, 1024);                                                       \
    uint32_t r[registers];                                                       \
    name##_(r, shared_address(words) + 16 * in[1024 + threadIdx.x]);             \
    for (int i = 0; i < registers; ++i) out[registers * threadIdx.x + i] = r[i]; \
  }
namespace {
__device__ void ldm_x1_(uint32_t (&r)[1], uint32_t row) { ldmatrix_x1(r[0], row); }
__device__ void ldm_x1_trans_(uint32_t (&r)[1], uint32_t row) { ldmatrix_x1_trans(r[0], row); }
__device__ void ldm_x2_(uint32_t (&r)[2], uint32_t row) { ldmatrix_x2(r, row); }
__device__ void ldm_x2_trans_(uint32_t (&r)[2], uint32_t row) { ldmatrix_x2_trans(r, row); }
__device__ void ldm_x4_(uint32_t (&r)[4], uint32_t row) { ldmatrix_x4(r, row); }
__device__ void ldm_x4_trans_(uint32_t (&r)[4], uint32_t row) { ldmatrix_x4_trans(r, row); }
}  // namespace
LDMATRIX(ldm_x1, 1)
LDMATRIX(ldm_x1_trans, 1)
LDMATRIX(ldm_x2, 2)
LDMATRIX(ldm_x2_trans, 2)
LDMATRIX(ldm_x4, 4)
LDMATRIX(ldm_x4_trans, 4)

// ---- mma: a[4], b[2], d[4] of each lane in, d out

namespace {
template <class T>
__device__ void mma_case(const uint32_t* in, uint32_t* out) {
  const uint32_t* x = in + 10 * threadIdx.x;
  const uint32_t a[4] = {x[0], x[1], x[2], x[3]};
  float d[4] = {as_float(x[6]), as_float(x[7]), as_float(x[8]), as_float(x[9])};
  mma_16816<T>(d, a, x[4], x[5]);
  for (int i = 0; i < 4; ++i) out[4 * threadIdx.x + i] = as_word(d[i]);
}
}  // namespace
CASE(mma_bf16, 32, 0) { mma_case<__nv_bfloat16>(in, out); }
CASE(mma_f16, 32, 0) { mma_case<__half>(in, out); }
CASE(mma_bf16_exact, 32, 0) { mma_case<__nv_bfloat16>(in, out); }
CASE(mma_f16_exact, 32, 0) { mma_case<__half>(in, out); }

// ---- arithmetic

CASE(exp2_approx_all, 1024, 0) { out[threadIdx.x] = as_word(exp2_approx(as_float(in[threadIdx.x]))); }
CASE(log2_approx_all, 1024, 0) { out[threadIdx.x] = as_word(log2_approx(as_float(in[threadIdx.x]))); }
CASE(lop3_tables, 64, 0) {
  const uint32_t a = in[3 * threadIdx.x], b = in[3 * threadIdx.x + 1], c = in[3 * threadIdx.x + 2];
  out[4 * threadIdx.x] = lop3<0xEA>(a, b, c);
  out[4 * threadIdx.x + 1] = lop3<0x6A>(a, b, c);
  out[4 * threadIdx.x + 2] = lop3<0x96>(a, b, c);
  out[4 * threadIdx.x + 3] = lop3<0x1B>(a, b, c);
}

// ---- warps

CASE(warp_reductions, 64, 0) {
  const float x = as_float(in[threadIdx.x]);
  out[threadIdx.x] = as_word(warp_sum(x));
  out[64 + threadIdx.x] = as_word(warp_sum<4>(x));
  out[128 + threadIdx.x] = as_word(warp_max(x));
  out[192 + threadIdx.x] = as_word(warp_max<8>(x));
}
CASE(warp_sums_so_far, 64, 0) {
  out[threadIdx.x] = up_to_lane(in[threadIdx.x]);
  const uint64_t wide = up_to_lane(static_cast<uint64_t>(in[threadIdx.x]) << 8);
  out[64 + 2 * threadIdx.x] = static_cast<uint32_t>(wide);
  out[65 + 2 * threadIdx.x] = static_cast<uint32_t>(wide >> 32);
}

// ---- named barriers: warp 0 writes and does not wait; warp 1 waits and reads

CASE(named_barriers, 96, 128) {
  const int warp = threadIdx.x / 32, lane = lane_id();
  if (warp == 0) {
    words[lane] = in[lane];
    named_barrier_arrive(3, 64);
  } else if (warp == 1) {
    named_barrier_sync(3, 64);
    out[lane] = words[31 - lane];
    named_barrier_sync(5, 64);
  } else {
    named_barrier_sync(5, 64);
    out[32 + lane] = out[lane ^ 1] + 1;
  }
}

CASE(grid_dependency, 32, 0) {
  grid_dependency_launch();
  prefetch_l2(in, 128);
  grid_dependency_wait();
  begin_dependent();  // once more is nothing
  out[threadIdx.x] = in[threadIdx.x] + 1;
}
