// One instruction of PTX a kernel, over arrays of 32- or 64-bit words: y[i] = op(a[i], b[i], c[i]).
// tests/test_cuda_emulator_arithmetic.py says what must come out.
#include <cuda_runtime.h>
#include <stdint.h>

namespace {

template <class F, class T>
__global__ void each(F f, const T* a, const T* b, const T* c, T* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = f(a[i], b[i], c[i]);
}

}  // namespace

// `body` is asm text in which %0 is the result and %1, %2, %3 the operands, as 32-bit words.
#define WORDS(name, body)                                                                                   \
  namespace {                                                                                               \
  struct name##_op {                                                                                        \
    __device__ uint32_t operator()(uint32_t a, uint32_t b, uint32_t c) const {                              \
      uint32_t y;                                                                                           \
      asm volatile("{" body "}" : "=r"(y) : "r"(a), "r"(b), "r"(c));                                        \
      return y;                                                                                             \
    }                                                                                                       \
  };                                                                                                        \
  }                                                                                                         \
  extern "C" void run_##name(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* y, int n) { \
    each<<<(n + 63) / 64, 64>>>(name##_op(), a, b, c, y, n);                                                \
  }
// The operands as floats in registers f1, f2, f3, the result from f0.
#define FLOATS(name, body) \
  WORDS(name, ".reg .f32 f0, f1, f2, f3; mov.b32 f1, %1; mov.b32 f2, %2; mov.b32 f3, %3; " body " mov.b32 %0, f0;")
// The low halves of the operands in h1, h2, h3, the result, zero-extended, from h0.
#define HALVES(name, body)                                                                                        \
  WORDS(name, ".reg .b16 h0, h1, h2, h3, u; mov.b32 {h1, u}, %1; mov.b32 {h2, u}, %2; mov.b32 {h3, u}, %3; " body \
              " mov.b32 %0, "                                                                                     \
              "{h0, 0};")
#define PREDICATE(name, body) \
  WORDS(name, ".reg .pred p; .reg .f32 f1, f2; mov.b32 f1, %1; mov.b32 f2, %2; " body " selp.u32 %0, 1, 0, p;")

WORDS(add, "add.s32 %0, %1, %2;")
WORDS(add_sat, "add.sat.s32 %0, %1, %2;")
WORDS(sub_sat, "sub.sat.s32 %0, %1, %2;")
WORDS(mul_lo, "mul.lo.s32 %0, %1, %2;")
WORDS(mul_hi_s, "mul.hi.s32 %0, %1, %2;")
WORDS(mul_hi_u, "mul.hi.u32 %0, %1, %2;")
WORDS(mad_lo, "mad.lo.u32 %0, %1, %2, %3;")
WORDS(mad_hi, "mad.hi.s32 %0, %1, %2, %3;")
WORDS(div_s, "div.s32 %0, %1, %2;")
WORDS(div_u, "div.u32 %0, %1, %2;")
WORDS(rem_s, "rem.s32 %0, %1, %2;")
WORDS(rem_u, "rem.u32 %0, %1, %2;")
WORDS(min_s, "min.s32 %0, %1, %2;")
WORDS(max_u, "max.u32 %0, %1, %2;")
WORDS(abs_s, "abs.s32 %0, %1;")
WORDS(neg_s, "neg.s32 %0, %1;")
WORDS(sad_s, "sad.s32 %0, %1, %2, %3;")
WORDS(shl, ".reg .b32 n; and.b32 n, %2, 63; shl.b32 %0, %1, n;")
WORDS(shr_u, ".reg .b32 n; and.b32 n, %2, 63; shr.u32 %0, %1, n;")
WORDS(shr_s, ".reg .b32 n; and.b32 n, %2, 63; shr.s32 %0, %1, n;")
WORDS(shf_l_wrap, "shf.l.wrap.b32 %0, %1, %2, %3;")
WORDS(shf_r_clamp, ".reg .b32 n; and.b32 n, %3, 63; shf.r.clamp.b32 %0, %1, %2, n;")
WORDS(lop3_96, "lop3.b32 %0, %1, %2, %3, 0x96;")
WORDS(lop3_e8, "lop3.b32 %0, %1, %2, %3, 0xE8;")
WORDS(lop3_1d, "lop3.b32 %0, %1, %2, %3, 0x1D;")
WORDS(prmt, "prmt.b32 %0, %1, %2, %3;")
WORDS(bfe_u, ".reg .b32 n, m; and.b32 n, %2, 63; and.b32 m, %3, 63; bfe.u32 %0, %1, n, m;")
WORDS(bfe_s, ".reg .b32 n, m; and.b32 n, %2, 63; and.b32 m, %3, 63; bfe.s32 %0, %1, n, m;")
WORDS(bfi, ".reg .b32 n, m; and.b32 n, %3, 31; shr.u32 m, %3, 27; bfi.b32 %0, %1, %2, n, m;")
WORDS(popc, "popc.b32 %0, %1;")
WORDS(clz, "clz.b32 %0, %1;")
WORDS(brev, "brev.b32 %0, %1;")
WORDS(bfind_s, "bfind.s32 %0, %1;")
WORDS(dp4a, "dp4a.s32.s32 %0, %1, %2, %3;")
WORDS(dp4a_u, "dp4a.u32.s32 %0, %1, %2, %3;")
WORDS(dp2a_lo, "dp2a.lo.u32.u32 %0, %1, %2, %3;")
WORDS(dp2a_hi, "dp2a.hi.s32.u32 %0, %1, %2, %3;")
WORDS(carry, ".reg .b32 t; add.cc.u32 t, %1, %2; addc.u32 %0, %3, 0;")
WORDS(borrow, ".reg .b32 t; sub.cc.u32 t, %1, %2; subc.u32 %0, %3, 0;")
WORDS(mul_wide, ".reg .b64 t; .reg .b32 l; mul.wide.s32 t, %1, %2; mov.b64 {l, %0}, t;")
WORDS(setp_u, ".reg .pred p; setp.lo.u32 p, %1, %2; selp.u32 %0, 1, 0, p;")
WORDS(setp_s_and, ".reg .pred p, q; setp.ne.u32 q, %3, 0; setp.lt.and.s32 p, %1, %2, q; selp.u32 %0, 1, 0, p;")
WORDS(setp_two, ".reg .pred p, q; setp.le.s32 p|q, %1, %2; selp.u32 %0, 1, 2, p; @q add.u32 %0, %0, 4;")
WORDS(set_mask, "set.lt.u32.s32 %0, %1, %2;")
WORDS(slct, "slct.u32.s32 %0, %1, %2, %3;")
WORDS(cvt_s8, "cvt.s32.s8 %0, %1;")
WORDS(cvt_u8, "cvt.u32.u8 %0, %1;")
WORDS(cvt_sat_s8, ".reg .b16 t; cvt.sat.s8.s32 t, %1; cvt.s32.s8 %0, t;")
WORDS(cvt_sat_u8, ".reg .b16 t; cvt.sat.u8.s32 t, %1; cvt.u32.u8 %0, t;")
WORDS(cvt_pack, "cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;")
WORDS(branches,
      ".reg .b32 n; and.b32 n, %1, 3; ts: .branchtargets L0, L1, L2, L3; brx.idx n, ts; L0: mov.u32 %0, %2; bra D; L1: mov.u32 "
      "%0, %3; "
      "bra D; L2: add.u32 %0, %2, %3; bra D; L3: mov.u32 %0, 7; D:")

FLOATS(fadd, "add.rn.f32 f0, f1, f2;")
FLOATS(fadd_sat, "add.rn.sat.f32 f0, f1, f2;")
FLOATS(fadd_rz, "add.rz.f32 f0, f1, f2;")
FLOATS(fadd_rm, "add.rm.f32 f0, f1, f2;")
FLOATS(fmul, "mul.rn.f32 f0, f1, f2;")
FLOATS(fmul_rp, "mul.rp.f32 f0, f1, f2;")
FLOATS(fmul_ftz, "mul.rn.ftz.f32 f0, f1, f2;")
FLOATS(ffma, "fma.rn.f32 f0, f1, f2, f3;")
FLOATS(ffma_rm, "fma.rm.f32 f0, f1, f2, f3;")
FLOATS(fdiv, "div.rn.f32 f0, f1, f2;")
FLOATS(fsqrt, "sqrt.rn.f32 f0, f1;")
FLOATS(fmin, "min.f32 f0, f1, f2;")
FLOATS(fmax, "max.f32 f0, f1, f2;")
FLOATS(fmax_nan, "max.NaN.f32 f0, f1, f2;")
FLOATS(fabs, "abs.f32 f0, f1;")
FLOATS(fneg, "neg.f32 f0, f1;")
FLOATS(copysign, "copysign.f32 f0, f1, f2;")
FLOATS(rni, "cvt.rni.f32.f32 f0, f1;")
FLOATS(rmi, "cvt.rmi.f32.f32 f0, f1;")
FLOATS(sat, "cvt.sat.f32.f32 f0, f1;")
FLOATS(ex2, "ex2.approx.f32 f0, f1;")
FLOATS(lg2, "lg2.approx.f32 f0, f1;")
FLOATS(rcp, "rcp.approx.f32 f0, f1;")
FLOATS(rsqrt, "rsqrt.approx.f32 f0, f1;")
FLOATS(tanh, "tanh.approx.f32 f0, f1;")
WORDS(f2i_rni, ".reg .f32 f1; mov.b32 f1, %1; cvt.rni.s32.f32 %0, f1;")
WORDS(f2i_rzi, ".reg .f32 f1; mov.b32 f1, %1; cvt.rzi.s32.f32 %0, f1;")
WORDS(f2u_rzi, ".reg .f32 f1; mov.b32 f1, %1; cvt.rzi.u32.f32 %0, f1;")
WORDS(f2s8_rni, ".reg .f32 f1; .reg .b16 t; mov.b32 f1, %1; cvt.rni.s8.f32 t, f1; cvt.s32.s8 %0, t;")
FLOATS(i2f, "cvt.rn.f32.s32 f0, %1;")
FLOATS(i2f_rz, "cvt.rz.f32.s32 f0, %1;")
FLOATS(u2f, "cvt.rn.f32.u32 f0, %1;")
PREDICATE(feq, "setp.eq.f32 p, f1, f2;")
PREDICATE(fne, "setp.ne.f32 p, f1, f2;")
PREDICATE(fneu, "setp.neu.f32 p, f1, f2;")
PREDICATE(flt, "setp.lt.f32 p, f1, f2;")
PREDICATE(fltu, "setp.ltu.f32 p, f1, f2;")
PREDICATE(fgeu, "setp.geu.f32 p, f1, f2;")
PREDICATE(fnan, "setp.nan.f32 p, f1, f2;")
PREDICATE(fnum, "setp.num.f32 p, f1, f2;")

HALVES(f2h, ".reg .f32 f1; mov.b32 f1, %1; cvt.rn.f16.f32 h0, f1;")
HALVES(f2h_rz, ".reg .f32 f1; mov.b32 f1, %1; cvt.rz.f16.f32 h0, f1;")
HALVES(f2b, ".reg .f32 f1; mov.b32 f1, %1; cvt.rn.bf16.f32 h0, f1;")
HALVES(f2b_rz, ".reg .f32 f1; mov.b32 f1, %1; cvt.rz.bf16.f32 h0, f1;")
WORDS(h2f, ".reg .b16 h, u; .reg .f32 f; mov.b32 {h, u}, %1; cvt.f32.f16 f, h; mov.b32 %0, f;")
WORDS(pack_b, ".reg .f32 f1, f2; mov.b32 f1, %1; mov.b32 f2, %2; cvt.rn.bf16x2.f32 %0, f1, f2;")
WORDS(pack_h_relu, ".reg .f32 f1, f2; mov.b32 f1, %1; mov.b32 f2, %2; cvt.rn.relu.f16x2.f32 %0, f1, f2;")
HALVES(hadd, "add.f16 h0, h1, h2;")
HALVES(hsub, "sub.f16 h0, h1, h2;")
HALVES(hmul, "mul.f16 h0, h1, h2;")
HALVES(hfma, "fma.rn.f16 h0, h1, h2, h3;")
HALVES(bfma, "fma.rn.bf16 h0, h1, h2, h3;")
WORDS(hfma2, "fma.rn.f16x2 %0, %1, %2, %3;")
WORDS(bfma2, "fma.rn.bf16x2 %0, %1, %2, %3;")
WORDS(hadd2, "add.f16x2 %0, %1, %2;")
WORDS(hmax2, "max.f16x2 %0, %1, %2;")
WORDS(bmin2_nan, "min.NaN.bf16x2 %0, %1, %2;")
WORDS(hneg2, "neg.f16x2 %0, %1;")
WORDS(babs2, "abs.bf16x2 %0, %1;")

// ---- warps and blocks

namespace {

// Every lane's result of one instruction.
__global__ void lanes(const uint32_t* x, uint32_t* y) {
  const uint32_t lane = threadIdx.x, v = x[lane];
  const uint32_t all = 0xFFFFFFFF;
  uint32_t* out = y + lane;
  out[0 * 32] = __shfl_xor_sync(all, v, 5);
  out[1 * 32] = __shfl_up_sync(all, v, 3);
  out[2 * 32] = __shfl_down_sync(all, v, 7, 16);
  out[3 * 32] = __shfl_sync(all, v, static_cast<int>(lane * 7), 8);
  out[4 * 32] = __ballot_sync(all, v & 1);
  out[5 * 32] = __all_sync(all, v != 0);
  out[6 * 32] = __any_sync(all, v == x[3]);
  out[7 * 32] = __match_any_sync(all, v % 5);
  out[8 * 32] = __reduce_add_sync(all, v);
  out[9 * 32] = __reduce_max_sync(all, static_cast<int>(v));
  out[10 * 32] = __reduce_min_sync(all, v);
  out[11 * 32] = __reduce_xor_sync(all, v);
  int same;
  const uint32_t matching = __match_all_sync(all, 7u, &same);
  out[12 * 32] = matching - static_cast<uint32_t>(same);
  uint32_t mask;
  asm volatile("mov.u32 %0, %%lanemask_lt;" : "=r"(mask));
  out[13 * 32] = mask;
  out[14 * 32] = lane < 10 ? __shfl_xor_sync(0x3FF, v, 1) : __ballot_sync(0xFFFFFC00, v & 2);
}

__global__ void block_reductions(const int* x, int* y) {
  const int p = x[threadIdx.x];
  y[threadIdx.x] = __syncthreads_count(p) + 1000 * __syncthreads_and(p) + 2000 * __syncthreads_or(p);
}

__constant__ int table[4] = {3, 1, 4, 1};
__device__ int counter = 100;

__noinline__ __device__ float helper(float x, int n) {
  float a[8];
  for (int i = 0; i < 8; ++i) a[i] = x * static_cast<float>(i);
  return a[n & 7];
}

__global__ void atomics(uint32_t* y, float* f, unsigned long long* z) {
  const uint32_t i = threadIdx.x;
  atomicAdd(y + 0, i);
  atomicMax(y + 1, i);
  atomicMin(reinterpret_cast<int*>(y) + 2, -static_cast<int>(i));
  atomicXor(y + 3, i);
  atomicInc(y + 4, 9);
  atomicCAS(y + 5, i, i + 1);
  atomicAdd(f, 0.5f);
  atomicAdd(z, (1ull << 40) + i);
  y[8 + i] = static_cast<uint32_t>(table[i & 3] + static_cast<int>(helper(2.f, static_cast<int>(i))));
  if (i == 0) y[7] = static_cast<uint32_t>(atomicAdd(&counter, 1));
}

}  // namespace

extern "C" {
void run_lanes(const uint32_t* x, uint32_t* y) { lanes<<<1, 32>>>(x, y); }
void run_block_reductions(const int* x, int* y) { block_reductions<<<1, 96>>>(x, y); }
void run_atomics(uint32_t* y, float* f, unsigned long long* z) { atomics<<<1, 64>>>(y, f, z); }
int set_counter(int v) { return cudaMemcpyToSymbol(counter, &v, sizeof v); }
}
