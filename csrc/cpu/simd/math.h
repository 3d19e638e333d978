// exp, erf, tanh and the activations, written once on Vec or Pair. exp, erf and tanh are within 2 ulp of the true value over all
// floats (tests/test_math.py walks through every one of them).
// The polynomials are minimax fits (relative error in the comment), rounded to float from the lowest coefficient up.
#pragma once
#include "cpu/simd/vec.h"

namespace qkv {
namespace QKV_ISA {

// e^x = 2^n e^r with n = round(x / ln 2), |r| <= ln(2)/2; ln 2 in two parts, the upper with 9 zero bits at its end so that
// n * upper is exact even without FMA. e^r = 1 + r + r^2 p(r), error 2^-26.9. exp(-inf) = 0 and exp(0) = 1 exactly: attention
// relies on both.
template <class V>
QKV_INLINE V exp(V x) {
  // min and max return their second operand for NaN, which so gets through.
  x = max(set(-104.0f), min(set(89.0f), x));
  const V n = sub(fma(x, set(1.44269504f), set(kShift)), set(kShift));
  V r = fnma(n, set(0x1.62e4p-1f), x);
  r = fnma(n, set(0x1.7f7d1cp-20f), r);
  V p = set(0x1.a82996p-13f);
  p = fma(p, r, set(0x1.6c7342p-10f));
  p = fma(p, r, set(0x1.11121ap-7f));
  p = fma(p, r, set(0x1.555558p-5f));
  p = fma(p, r, set(0x1.555556p-3f));
  p = fma(p, r, set(0.5f));
  p = add(fma(mul(r, r), p, r), set(1.0f));
  return scale2(p, n);
}

// For x <= 0 and y <= 0 some functions that give no denormals but 0, so that one factor of 2^n does:
//
//   exp2_down(y)       2^y, 0 for y < -125, from 2^r = 1 + r p(r), error 2^-28. For formulas of e^x in which the rounding of
//                      y = x / ln 2, half an ulp, does no harm
//   exp2_weight(y)     the same, within half an ulp more
//   exp_down(x)        e^x within 2 ulp; 0 for x < -87
//   exp_weight(x)      as softmax wants it, from less: within 1 ulp at 0, 2 at -10, 10 at -87, since the error of log2 e is let
//                      through: what it touches has little weight. 0 below 2^-126. exp_weight(-inf) = 0 and
//                      exp_weight(0) = 1 exactly; NaN gets through. x[N]: the steps of N vectors side by side, or each waits for
//                      latencies
//
// With AVX-512 the last three look 2^(m/16) up, m = round(16 y), and multiply by 2^(r/16) = 1 + r p(r), error 2^-29.2: 3 of 7
// multiplications less (Zen 4, of the time: exp_down 0.73, exp_weight 0.75, exp2_weight 0.91). Half an ulp that this costs is too
// much for tanh.
template <class V>
QKV_INLINE V exp2_down(V y) {
  const V t = add(y, set(kShift)), r = sub(y, sub(t, set(kShift)));
  V p = set(0x1.417a5cp-13f);
  p = fma(p, r, set(0x1.5f0946p-10f));
  p = fma(p, r, set(0x1.3b2dd2p-7f));
  p = fma(p, r, set(0x1.c6af7ap-5f));
  p = fma(p, r, set(0x1.ebfbdcp-3f));
  p = fma(p, r, set(0x1.62e43p-1f));
  p = fma(p, r, set(1.0f));
  return zero_where(lt(y, set(-125.0f)), mul(p, power2(t)));
}

#if defined(QKV_AVX512)
// t = kShift16 + m
template <class V>
QKV_INLINE V power2_near(V t, V r) {
  V p = fma(r, set(0x1.c6af1p-17f), set(0x1.ebfff2p-11f));
  p = fma(p, r, set(0x1.62e43p-5f));
  p = fma(p, r, set(1.0f));
  return mul(p, power2_sixteenths(t));
}

template <class V>
QKV_INLINE V exp_down(V x) {
  const V t = fma(x, set(0x1.715476p+4f), set(kShift16));
  V r = fma(x, set(0x1.715476p+4f), sub(set(kShift16), t));
  r = fma(x, set(0x1.4ae0cp-22f), r);
  return zero_where(lt(x, set(-87.0f)), power2_near(t, r));
}

template <class V>
QKV_INLINE V exp2_weight(V y) {
  const V t = fma(y, set(16.0f), set(kShift16)), r = fma(y, set(16.0f), sub(set(kShift16), t));
  return zero_where(lt(y, set(-125.0f)), power2_near(t, r));
}

template <int N>
QKV_INLINE void exp_weight(Vec (&x)[N]) {
  Vec t[N], r[N], p[N];
#define QKV_EACH QKV_UNROLL(8) for (int i = 0; i < N; ++i)
  QKV_EACH t[i] = fma(x[i], set(0x1.715476p+4f), set(kShift16));
  QKV_EACH r[i] = fma(x[i], set(0x1.715476p+4f), sub(set(kShift16), t[i]));
  QKV_EACH p[i] = fma(r[i], set(0x1.c6af1p-17f), set(0x1.ebfff2p-11f));
  QKV_EACH p[i] = fma(p[i], r[i], set(0x1.62e43p-5f));
  QKV_EACH p[i] = fma(p[i], r[i], set(1.0f));
  QKV_EACH x[i] = zero_where(lt(x[i], set(-87.3365f)), mul(p[i], power2_sixteenths(t[i])));
#undef QKV_EACH
}
#else
template <class V>
QKV_INLINE V exp2_weight(V y) {
  return exp2_down(y);
}

// e^r = 1 + r (1 + r p(r)), error 2^-28.
template <class V>
QKV_INLINE V exp_down(V x) {
  const V t = fma(x, set(1.44269504f), set(kShift)), n = sub(t, set(kShift));
  V r = fnma(n, set(0x1.62e4p-1f), x);
  r = fnma(n, set(0x1.7f7d1cp-20f), r);
  V p = set(0x1.6a4f28p-10f);
  p = fma(p, r, set(0x1.12398p-7f));
  p = fma(p, r, set(0x1.5558aep-5f));
  p = fma(p, r, set(0x1.555492p-3f));
  p = fma(p, r, set(0x1.fffffcp-2f));
  p = fma(p, r, set(1.0f));
  p = fma(p, r, set(1.0f));
  return zero_where(lt(x, set(-87.0f)), mul(p, power2(t)));
}

// 2^r = 1 + r p(r), error 2^-29. The polynomial is short rather than narrow.
template <int N>
QKV_INLINE void exp_weight(Vec (&x)[N]) {
  Vec t[N], r[N], z[N], p[N], c[N];
#define QKV_EACH QKV_UNROLL(8) for (int i = 0; i < N; ++i)
  QKV_EACH x[i] = max(set(-88.0f), x[i]);
  QKV_EACH t[i] = fma(x[i], set(1.44269504f), set(kShift));
  QKV_EACH r[i] = fma(x[i], set(1.44269504f), sub(set(kShift), t[i]));
  QKV_EACH z[i] = mul(r[i], r[i]);
  QKV_EACH p[i] = fma(r[i], set(0x1.4204d8p-13f), set(0x1.5f3f6ep-10f));
  QKV_EACH c[i] = fma(r[i], set(0x1.3b2d3ep-7f), set(0x1.c6aee6p-5f));
  QKV_EACH p[i] = fma(p[i], z[i], c[i]);
  QKV_EACH c[i] = fma(r[i], set(0x1.ebfbdcp-3f), set(0x1.62e43p-1f));
  QKV_EACH p[i] = fma(p[i], z[i], c[i]);
  QKV_EACH p[i] = fma(p[i], r[i], set(1.0f));
  QKV_EACH x[i] = mul(p[i], power2(t[i]));
#undef QKV_EACH
}
#endif
QKV_INLINE Vec exp_weight(Vec x) {
  Vec one[1] = {x};
  exp_weight(one);
  return one[0];
}

// On |x|, below 0.55: x + x^3 p(x^2), error 2^-29; above: 1 - 2 e / (1 + e) with e = e^-2x.
template <class V>
QKV_INLINE V tanh(V x) {
  const V a = abs(x), z = mul(x, x);
  V p = set(-0x1.995794p-8f);
  p = fma(p, z, set(0x1.58ec9cp-6f));
  p = fma(p, z, set(-0x1.b91f22p-5f));
  p = fma(p, z, set(0x1.110cf0p-3f));
  p = fma(p, z, set(-0x1.55554ap-2f));
  const V small = fma(mul(a, z), p, a);
  const V e = exp2_down(mul(a, set(-2.88539008f)));
  const V large = sub(set(1.0f), div(add(e, e), add(set(1.0f), e)));
  return copysign(select(lt(a, set(0.55f)), small, large), x);  // NaN: large, and exp2_down(NaN) is NaN
}

// On |x|, below 0.5: x + x p(x^2), error 2^-29; above: 1 - 2^-q(x) with q = -log2 erfc on [0.5, 4], error of the result 2^-27.7;
// beyond 4 erf rounds to 1.
template <class V>
QKV_INLINE V erf(V x) {
  const V a = min(set(4.0f), abs(x)), z = mul(a, a);
  V p = set(0x1.354ce2p-8f);
  p = fma(p, z, set(-0x1.b668c2p-6f));
  p = fma(p, z, set(0x1.ce2546p-4f));
  p = fma(p, z, set(-0x1.812734p-2f));
  p = fma(p, z, set(0x1.06eba8p-3f));
  const V small = fma(a, p, a);
  V q = set(0x1.5273aep-12f);  // -q
  q = fma(q, a, set(-0x1.37cb0cp-8f));
  q = fma(q, a, set(0x1.11d618p-5f));
  q = fma(q, a, set(-0x1.386f4p-3f));
  q = fma(q, a, set(-0x1.d540b6p-1f));
  q = fma(q, a, set(-0x1.a0de96p+0f));
  q = fma(q, a, set(0x1.b8a32ep-15f));
  const V large = sub(set(1.0f), exp2_down(q));
  return copysign(select(lt(a, set(0.5f)), small, large), x);
}

// x / (1 + 2^-w), from e = 2^-|w|, which does not overflow: x {1, e} / (1 + e). w has x's sign; -inf gives -inf * 0, NaN.
template <class V>
QKV_INLINE V logistic_unit(V x, V minus_abs_w) {
  const V e = exp2_weight(minus_abs_w);
  return div(mul(x, by_sign(x, e, set(1.0f))), add(set(1.0f), e));
}

// x / (1 + e^(-c x)): silu for c = 1, quick_gelu for c = 1.702.
template <class V>
QKV_INLINE V sigmoid_unit(V x, float c) {
  return logistic_unit(x, mul(abs(x), set(c * -1.44269504f)));
}

// x/2 (1 + tanh u) = x / (1 + e^-2u) with u = sqrt(2/pi) (x + 0.044715 x^3)
template <class V>
QKV_INLINE V gelu_tanh(V x) {
  const V cubic = fma(mul(x, x), set(0.044715f * -2.30220820f), set(-2.30220820f));
  return logistic_unit(x, mul(abs(x), cubic));
}

// x/2 (1 + erf(x / sqrt 2)) = x {e, 1 - e} with e = erfc(|x| / sqrt 2) / 2, which 1 - erf would not leave exact.
#if defined(QKV_AVX512)
// e on [j/4 - 1/8, j/4 + 1/8] as a polynomial in 4 |x| - j: coefficient k of interval j at [k][j], relative error 2^-24 up to
// |x| = 3, 2^-21 at 4, 2^-16 at 6; from 7.6 on, where it is below 2^-46, it is 0. (Fits at Chebyshev's points.)
alignas(64) static const float kGelu[6][32] = {
    {0x1p-1f,         0x1.9aecbap-2f,  0x1.3bf144p-2f,  0x1.d022p-3f,
     0x1.44ed0cp-3f,  0x1.b0bdd2p-4f,  0x1.11a46ep-4f,  0x1.482a24p-5f,
     0x1.74bcf8p-6f,  0x1.90924ep-7f,  0x1.96f4e6p-8f,  0x1.869044p-9f,
     0x1.61de2p-10f,  0x1.2e86fep-11f, 0x1.e7dbccp-13f, 0x1.72d95ap-14f,
     0x1.09ad7ep-15f, 0x1.66a5c8p-17f, 0x1.c8074p-19f,  0x1.110582p-20f,
     0x1.33ca52p-22f, 0x1.46a1ap-24f,  0x1.463d4p-26f,  0x1.32a3b6p-28f,
     0x1.0f3158p-30f, 0x1.c34d0cp-33f, 0x1.614132p-35f, 0x1.041864p-37f,
     0x1.683db4p-40f, 0x1.d540aep-43f, 0x1.1f6adp-45f,  0},
    {-0x1.988454p-4f,  -0x1.8bf2bap-4f,  -0x1.6883dp-4f,   -0x1.345d5ep-4f,
     -0x1.ef8e58p-5f,  -0x1.7610bap-5f,  -0x1.094086p-5f,  -0x1.616454p-6f,
     -0x1.ba4b44p-7f,  -0x1.0402ep-7f,   -0x1.1f2f06p-8f,  -0x1.29fa54p-9f,
     -0x1.227214p-10f, -0x1.09f38ep-11f, -0x1.c9897ep-13f, -0x1.71b93p-14f,
     -0x1.18a98ep-15f, -0x1.904afep-17f, -0x1.0c29a6p-18f, -0x1.51864ap-20f,
     -0x1.8f169ap-22f, -0x1.bb4a94p-24f, -0x1.ce8ecep-26f, -0x1.c56b34p-28f,
     -0x1.a18822p-30f, -0x1.6930bep-32f, -0x1.25856ep-34f, -0x1.c027fcp-37f,
     -0x1.41666ap-39f, -0x1.b10fap-42f,  -0x1.1214bcp-44f, 0},
    {0,
     0x1.8bf22cp-9f,
     0x1.68836p-8f,
     0x1.ce8b9ep-8f,
     0x1.ef8e0ep-8f,
     0x1.d394d2p-8f,
     0x1.8de0ep-8f,
     0x1.3537fap-8f,
     0x1.ba4ba6p-9f,
     0x1.248384p-9f,
     0x1.66fb12p-10f,
     0x1.99b858p-11f,
     0x1.b3aadep-12f,
     0x1.b02ae6p-13f,
     0x1.9056a4p-14f,
     0x1.5a9b2ap-15f,
     0x1.18a682p-16f,
     0x1.a948fep-18f,
     0x1.2da846p-19f,
     0x1.90c3bap-21f,
     0x1.f2c922p-23f,
     0x1.22daa8p-24f,
     0x1.3dee84p-26f,
     0x1.45cc0ep-28f,
     0x1.3908aep-30f,
     0x1.1a0df6p-32f,
     0x1.dcb7b6p-35f,
     0x1.79e45ep-37f,
     0x1.1903c4p-39f,
     0x1.881e26p-42f,
     0x1.00b06p-44f,
     0},
    {0x1.10580cp-10f,  0x1.eeef24p-11f,  0x1.6883b8p-11f,  0x1.67c276p-12f,
     0x1.c3e8eap-30f,  -0x1.188c12p-12f, -0x1.ba15e2p-12f, -0x1.e5e9d8p-12f,
     -0x1.ba4b54p-12f, -0x1.60196p-12f,  -0x1.f69296p-13f, -0x1.45ea02p-13f,
     -0x1.8342f8p-14f, -0x1.a7dc3cp-15f, -0x1.acf0b4p-16f, -0x1.927506p-17f,
     -0x1.5ed302p-18f, -0x1.1c941p-19f,  -0x1.ae2a9ep-21f, -0x1.2f3bc8p-22f,
     -0x1.8f1172p-24f, -0x1.ea96dp-26f,  -0x1.19d8ccp-27f, -0x1.2ed622p-29f,
     -0x1.3068a6p-31f, -0x1.1e5d6p-33f,  -0x1.f86314p-36f, -0x1.9ff5c6p-38f,
     -0x1.414e7ep-40f, -0x1.d10aeap-43f, -0x1.3b5a0ep-45f, 0},
    {0,
     -0x1.823844p-15f,
     -0x1.494b8p-14f,
     -0x1.76a774p-14f,
     -0x1.4998e2p-14f,
     -0x1.bfa7e6p-15f,
     -0x1.8ee232p-16f,
     0x1.7c2db6p-20f,
     0x1.24cae2p-16f,
     0x1.90aecep-16f,
     0x1.841ae6p-16f,
     0x1.375f82p-16f,
     0x1.b401a6p-17f,
     0x1.10f21p-17f,
     0x1.35b51ep-18f,
     0x1.4129fap-19f,
     0x1.3214acp-20f,
     0x1.0d2794p-21f,
     0x1.b60d1cp-23f,
     0x1.4a9bccp-24f,
     0x1.cfa5bcp-26f,
     0x1.2e7a2ap-27f,
     0x1.6f9b24p-29f,
     0x1.a08536p-31f,
     0x1.b85904p-33f,
     0x1.b2a958p-35f,
     0x1.90d23cp-37f,
     0x1.5977f8p-39f,
     0x1.166d4ep-41f,
     0x1.a3cf28p-44f,
     0x1.2826e8p-46f,
     0},
    {-0x1.45e738p-17f, -0x1.14db14p-17f, -0x1.2bed9ap-18f, 0x1.238b62p-23f,
     0x1.071e7ap-18f,  0x1.8720c8p-18f,  0x1.7fc26cp-18f,  0x1.1a3e6p-18f,
     0x1.2739p-19f,    0x1.eabcbep-22f,  -0x1.5a2ea2p-21f, -0x1.2538dp-20f,
     -0x1.21ed22p-20f, -0x1.c5a3f6p-21f, -0x1.2f9e46p-21f, -0x1.674f12p-22f,
     -0x1.7e7c92p-23f, -0x1.7212fep-24f, -0x1.47adcep-25f, -0x1.0ac974p-26f,
     -0x1.90d93cp-28f, -0x1.1699fcp-29f, -0x1.67075p-31f,  -0x1.ada30ep-33f,
     -0x1.de0f68p-35f, -0x1.ef2bp-37f,   -0x1.ddep-39f,    -0x1.ae0a62p-41f,
     -0x1.691a3ap-43f, -0x1.1b17fep-45f, -0x1.9ea0e6p-48f, 0},
};
template <class V>
QKV_INLINE V gelu(V x) {
  constexpr float kIndex = 0x1.8p23f;
  const V a = min(set(7.75f), abs(x));
  const V t = fma(a, set(4.0f), set(kIndex)), r = fma(a, set(4.0f), sub(set(kIndex), t));
  V e = lookup(kGelu[5], t);
  QKV_UNROLL(8)
  for (int k = 4; k >= 0; --k) e = fma(e, r, lookup(kGelu[k], t));
  return mul(x, by_sign(x, e, sub(set(1.0f), e)));
}
#else
// e = 2^-q(|x|); relative error of 2^-q 2^-25 until it is below 2^-30, then 10 % and worse: it no longer counts, and q grows on.
// On both branches of erf gelu took twice as long.
template <class V>
QKV_INLINE V gelu(V x) {
  const V a = abs(x);
  V q = set(-0x1.ab897ap-20f);  // -q
  q = fma(q, a, set(0x1.a682dap-16f));
  q = fma(q, a, set(-0x1.00a558p-13f));
  q = fma(q, a, set(-0x1.26ca6cp-12f));
  q = fma(q, a, set(0x1.da4b02p-8f));
  q = fma(q, a, set(-0x1.aef0dp-5f));
  q = fma(q, a, set(-0x1.d6324ap-2f));
  q = fma(q, a, set(-0x1.26af0ep+0f));
  q = fma(q, a, set(-0x1.fffffep-1f));
  const V e = exp2_down(q);
  return mul(x, by_sign(x, e, sub(set(1.0f), e)));
}
#endif

// x stands second, so that a NaN gets through max.
template <class V>
QKV_INLINE V relu(V x) {
  return max(zero(), x);
}

}  // namespace QKV_ISA
}  // namespace qkv
