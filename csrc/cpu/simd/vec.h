// clang-format off
// The vector type that kernels are written on; the macro QKV_ISA names both the namespace and the instruction set.
//
// Contract, the same for every ISA (float lanes, kLanes of them):
//   Vec                       value type; zero(), set(x), iota() = 0, 1, 2, ...
//   load(p, count)            count is Full{} or Rest{n}, n < kLanes: lanes beyond the rest read as 0, memory beyond it is not touched
//   store(p, v, count)        p may be float, f16 or bf16, at any alignment; halves round to nearest even
//   stream(p, v)              whole vector past the caches; p aligned to the bytes it writes. fence() at the end of a thread's part
//   add sub mul div           one rounding each
//   fma(a, b, c)              a*b + c, and fnma(a, b, c) = c - a*b: one rounding where the ISA has it, else two
//   max(a, b), min(a, b)      b where either is NaN (as x86 does): put the value that must survive second
//   neg abs round             round: to nearest even, |x| < 2^22
//   swap_pairs(a)             lanes 1, 0, 3, 2, ...
//   copysign(a, b)            |a| with b's sign
//   lt(a, b), eq(a, b)        Mask, false where either is NaN; select(m, a, b); first(n): lanes below n
//   by_sign(x, a, b)          a where x's sign bit is set, else b; zero_where(m, a)
//   load_mask(p, count)       bytes: true where non-zero; any(m): true in some lane; bits(m): bit i for lane i
//   scale2(v, n)              v * 2^n for integral n in [-252, 252], graceful into denormals and infinity
//   power2(t)                 2^n for t = kShift + n, n in [-126, 127]; kShift + x rounds x to an integer
//   power2_sixteenths(t)      2^(m/16) for t = kShift16 + m, m in [-2016, 2047]; AVX-512 alone, which looks 2^(j/16) up
//   lookup(table, t)          table[j], j the last five bits of t; likewise
//   reduce_add, reduce_max    over the lanes, in a fixed order
//   transpose(p, ld, q, ldq)  q[c][r] = p[r][c] for a kLanes x kLanes block; transpose(p, ld, v): the rows of q as vectors
//
// Pair is two Vecs under the same operations, its count is Two{}: two chains of instructions, written in turn, for functions that
// are long (an out-of-order window holds only two or three evaluations of exp).
//
// Kernels build without -ffast-math and with contraction off: the operations written are the operations done.
// clang-format on
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "core/dtype.h"

// What kernels ask for, instead of the compiler's macros: the build that emulates AVX-512 (csrc/README.md) defines these itself.
#if defined(__AVX512F__)
#define QKV_AVX512
#endif
#if defined(__AVX512BF16__) && defined(__AVX512VNNI__)
#define QKV_AVX512_BF16_VNNI
#endif

#define QKV_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define QKV_UNROLL(n) QKV_PRAGMA(clang loop unroll_count(n))
#else
#define QKV_UNROLL(n) QKV_PRAGMA(GCC unroll n)
#endif
#define QKV_ALWAYS __attribute__((always_inline))  // of lambdas
#define QKV_INLINE static inline QKV_ALWAYS
#define QKV_MEMBER inline QKV_ALWAYS

namespace qkv {
namespace QKV_ISA {

// p, from where the compiler cannot see: it would else keep every address that it can derive, in registers that are not there.
QKV_INLINE const float* hide(const float* p) {
  __asm__("" : "+r"(p));
  return p;
}

struct Two {};
struct Full {};
struct Rest {
  int64_t n;
};
// 1.5 * 2^23 leaves no bits for a fraction; 127 is the bias of the exponent.
constexpr float kShift = 0x1.8p23f + 127;
constexpr float kShift16 = 0x1.8p23f + 16 * 127;

// Scalar conversions, for tails and for baseline machines. bf16: upper half of a float.
QKV_INLINE float to_float(float x) { return x; }
QKV_INLINE float to_float(bf16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}
QKV_INLINE float to_float(f16 x) {
  const uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  uint32_t bits;
  float y;
  if (magnitude >= 0x7c00) {  // infinity, NaN
    bits = sign | 0x7f800000 | (magnitude & 0x3ff) << 13;
    if (magnitude > 0x7c00) bits |= 0x400000;
  } else if (magnitude >= 0x400) {
    bits = sign | (magnitude + (112 << 10)) << 13;
  } else {  // denormal: magnitude * 2^-24 is exact
    y = (float)magnitude * 0x1p-24f;
    return sign ? -y : y;
  }
  memcpy(&y, &bits, 4);
  return y;
}
QKV_INLINE void from_float(float x, float* y) { *y = x; }
QKV_INLINE void from_float(float x, bf16* y) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffff) > 0x7f800000)
    y->bits = (uint16_t)(bits >> 16 | 0x40);  // NaN stays NaN
  else
    y->bits = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
QKV_INLINE void from_float(float x, f16* y) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    y->bits = (uint16_t)(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  } else if (magnitude >= 0x477ff000) {  // 65520 and above round to infinity
    y->bits = (uint16_t)(sign | 0x7c00);
  } else if (magnitude < 0x38800000) {  // below 2^-14: a multiple of 2^-24, rounded by the adder
    float a;
    memcpy(&a, &magnitude, 4);
    a += 0.5f;  // ulp(0.5) = 2^-24
    uint32_t sum;
    memcpy(&sum, &a, 4);
    y->bits = (uint16_t)(sign | (sum - 0x3f000000));
  } else {
    const uint32_t rounded = magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1);
    y->bits = (uint16_t)(sign | rounded >> 13);
  }
}

}  // namespace QKV_ISA
}  // namespace qkv

#if defined(QKV_AVX512)
#include "cpu/simd/vec_avx512.h"
#elif defined(__AVX2__)
#include "cpu/simd/vec_avx2.h"
#else
#include "cpu/simd/vec_scalar.h"
#endif

namespace qkv {
namespace QKV_ISA {

struct Pair {
  Vec a, b;
  QKV_MEMBER Pair(Vec both) : a(both), b(both) {}
  QKV_MEMBER Pair(Vec first, Vec second) : a(first), b(second) {}
};
struct MaskPair {
  Mask a, b;
};

template <class T>
QKV_INLINE Pair load(const T* p, Two) {
  return {load(p, Full{}), load(p + kLanes, Full{})};
}
template <class T>
QKV_INLINE void store(T* p, Pair v, Two) {
  store(p, v.a, Full{});
  store(p + kLanes, v.b, Full{});
}
#define QKV_PAIR_1(op) \
  QKV_INLINE Pair op(Pair x) { return {op(x.a), op(x.b)}; }
#define QKV_PAIR_2(op) \
  QKV_INLINE Pair op(Pair x, Pair y) { return {op(x.a, y.a), op(x.b, y.b)}; }
#define QKV_PAIR_3(op) \
  QKV_INLINE Pair op(Pair x, Pair y, Pair z) { return {op(x.a, y.a, z.a), op(x.b, y.b, z.b)}; }
QKV_PAIR_1(neg)
QKV_PAIR_1(abs)
QKV_PAIR_1(round)
QKV_PAIR_1(swap_pairs)
QKV_PAIR_1(power2)
#if defined(QKV_AVX512)
QKV_PAIR_1(power2_sixteenths)
QKV_INLINE Pair lookup(const float* table, Pair t) { return {lookup(table, t.a), lookup(table, t.b)}; }
#endif
QKV_PAIR_2(add)
QKV_PAIR_2(sub)
QKV_PAIR_2(mul)
QKV_PAIR_2(div)
QKV_PAIR_2(max)
QKV_PAIR_2(min)
QKV_PAIR_2(copysign)
QKV_PAIR_2(scale2)
QKV_PAIR_3(fma)
QKV_PAIR_3(fnma)
#undef QKV_PAIR_1
#undef QKV_PAIR_2
#undef QKV_PAIR_3
QKV_INLINE MaskPair lt(Pair x, Pair y) { return {lt(x.a, y.a), lt(x.b, y.b)}; }
QKV_INLINE Pair by_sign(Pair x, Pair y, Pair z) { return {by_sign(x.a, y.a, z.a), by_sign(x.b, y.b, z.b)}; }
QKV_INLINE Pair zero_where(MaskPair m, Pair x) { return {zero_where(m.a, x.a), zero_where(m.b, x.b)}; }
QKV_INLINE Pair select(MaskPair m, Pair x, Pair y) { return {select(m.a, x.a, y.a), select(m.b, x.b, y.b)}; }

QKV_INLINE void transpose(const float* p, int64_t ld, float* q, int64_t ldq) {
  Vec rows[kLanes];
  transpose(p, ld, rows);
  QKV_UNROLL(16)
  for (int64_t c = 0; c < kLanes; ++c) store(q + c * ldq, rows[c], Full{});
}

}  // namespace QKV_ISA
}  // namespace qkv
