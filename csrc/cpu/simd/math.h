// exp, erf, tanh and the activations, written once on Vec. Each is within 2 ulp of the true value over all floats
// (tests/test_math.py walks through every one of them).
// The polynomials are minimax fits (Remez exchange in 40 digits, relative error in the comment), rounded to float.
#pragma once
#include "cpu/simd/vec.h"

namespace qkv {
namespace QKV_ISA {

// e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln(2)/2; ln 2 in two parts, the upper with 9 zero bits at its end so that
// n * upper is exact even without FMA. e^r = 1 + r + r^2 p(r), error 2^-26.9. exp(-inf) = 0 and exp(0) = 1 exactly: attention
// relies on both.
QKV_INLINE Vec exp(Vec x) {
  // min and max return their second operand for NaN, which so gets through.
  x = max(set(-104.0f), min(set(89.0f), x));
  const Vec n = round(mul(x, set(1.44269504f)));
  Vec r = fnma(n, set(0x1.62e4p-1f), x);
  r = fnma(n, set(0x1.7f7d1cp-20f), r);
  Vec p = set(0x1.a82996p-13f);
  p = fma(p, r, set(0x1.6c7342p-10f));
  p = fma(p, r, set(0x1.11121ap-7f));
  p = fma(p, r, set(0x1.555558p-5f));
  p = fma(p, r, set(0x1.555556p-3f));
  p = fma(p, r, set(0.5f));
  p = add(fma(mul(r, r), p, r), set(1.0f));
  return scale2(p, n);
}

// x[i] = e^x[i] for N vectors x <= 0, as softmax wants it: within 1 ulp at 0, 2 at -10, 10 at -87 and 0 from -87.7 on, with half
// the multiplications of exp: the error of log2 e is let through, as what it touches has little weight. exp_down(-inf) = 0 and
// exp_down(0) = 1 exactly; NaN gets through. 2^r = 1 + r p(r), error 2^-29. The steps of the N stand side by side and the
// polynomial is short rather than narrow: one vector after the other waits for latencies.
template <int N>
QKV_INLINE void exp_down(Vec (&x)[N]) {
  Vec t[N], r[N], z[N], p[N], c[N];
#define QKV_EACH QKV_UNROLL(8) for (int i = 0; i < N; ++i)
  QKV_EACH x[i] = max(set(-88.0f), x[i]);
  QKV_EACH t[i] = fma(x[i], set(1.44269504f), set(kShifter));
  QKV_EACH r[i] = fma(x[i], set(1.44269504f), sub(set(kShifter), t[i]));
  QKV_EACH z[i] = mul(r[i], r[i]);
  QKV_EACH p[i] = fma(r[i], set(0x1.4204d8p-13f), set(0x1.5f3f6ep-10f));
  QKV_EACH c[i] = fma(r[i], set(0x1.3b2d3ep-7f), set(0x1.c6aee6p-5f));
  QKV_EACH p[i] = fma(p[i], z[i], c[i]);
  QKV_EACH c[i] = fma(r[i], set(0x1.ebfbdcp-3f), set(0x1.62e43p-1f));
  QKV_EACH p[i] = fma(p[i], z[i], c[i]);
  QKV_EACH p[i] = fma(p[i], r[i], set(1.0f));
  QKV_EACH x[i] = mul(p[i], two_to(t[i]));
#undef QKV_EACH
}
QKV_INLINE Vec exp_down(Vec x) {
  Vec one[1] = {x};
  exp_down(one);
  return one[0];
}

// On |x|, below 0.625: x + x^3 p(x^2), error 2^-32; above: 1 - 2 / (e^2x + 1).
QKV_INLINE Vec tanh(Vec x) {
  const Vec a = abs(x), z = mul(x, x);
  Vec p = set(0x1.16b05ep-9f);
  p = fma(p, z, set(-0x1.0b5f5p-7f));
  p = fma(p, z, set(0x1.636de6p-6f));
  p = fma(p, z, set(-0x1.b9ebf4p-5f));
  p = fma(p, z, set(0x1.11105ap-3f));
  p = fma(p, z, set(-0x1.555554p-2f));
  const Vec small = fma(mul(a, z), p, a);
  const Vec large = sub(set(1.0f), div(set(2.0f), add(exp(add(a, a)), set(1.0f))));
  return copysign(select(lt(a, set(0.625f)), small, large), x);  // NaN: large, and exp(NaN) is NaN
}

// On |x|, below 0.92: x + x p(x^2), error 2^-31; above: 1 - e^-q(x) with q = -ln erfc on [0.92, 4], error of the result 2^-34;
// beyond 4 erf rounds to 1.
QKV_INLINE Vec erf(Vec x) {
  const Vec a = min(set(4.0f), abs(x)), z = mul(a, a);
  Vec p = set(0x1.5cd4aap-14f);
  p = fma(p, z, set(-0x1.aa3f2cp-11f));
  p = fma(p, z, set(0x1.54c7f4p-8f));
  p = fma(p, z, set(-0x1.b80e9p-6f));
  p = fma(p, z, set(0x1.ce2e0ap-4f));
  p = fma(p, z, set(-0x1.812742p-2f));
  p = fma(p, z, set(0x1.06eba8p-3f));
  const Vec small = fma(a, p, a);
  Vec q = set(0x1.61ea3p-16f);
  q = fma(q, a, set(-0x1.c790ecp-12f));
  q = fma(q, a, set(0x1.115ac2p-8f));
  q = fma(q, a, set(-0x1.9b8e78p-6f));
  q = fma(q, a, set(0x1.bb83e4p-4f));
  q = fma(q, a, set(0x1.44460cp-1f));
  q = fma(q, a, set(0x1.2127e4p+0f));
  q = fma(q, a, set(-0x1.6e5656p-13f));
  const Vec large = sub(set(1.0f), exp(neg(q)));
  return copysign(select(lt(a, set(0.92f)), small, large), x);
}

// x / (1 + e^(-c x)): silu for c = 1, quick_gelu for c = 1.702.
QKV_INLINE Vec sigmoid_unit(Vec x, float c) { return div(x, add(set(1.0f), exp(mul(x, set(-c))))); }

// x/2 (1 + erf(x / sqrt 2))
QKV_INLINE Vec gelu(Vec x) { return mul(mul(set(0.5f), x), add(set(1.0f), erf(mul(x, set(0.707106781f))))); }

// x/2 (1 + tanh u) = x / (1 + e^-2u) with u = sqrt(2/pi) (x + 0.044715 x^3)
QKV_INLINE Vec gelu_tanh(Vec x) {
  const Vec u = mul(x, fma(mul(x, x), set(0.044715f), set(1.0f)));
  return div(x, add(set(1.0f), exp(mul(u, set(-1.5957691216f)))));
}

// x stands second, so that a NaN gets through max.
QKV_INLINE Vec relu(Vec x) { return max(zero(), x); }

}  // namespace QKV_ISA
}  // namespace qkv
