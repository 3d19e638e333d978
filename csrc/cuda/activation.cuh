// The activations of one float, for activation.cu and the epilogues of products: the formulas of cpu/simd/math.h with the GPU's
// 2^x, within a few ulp of the true value but for the left tails: there the exponent's rounding is |x| / 4 ulp of the result, and
// e^x below 2^-126 counts as 0. exp, erf and tanh are CUDA's own, within 2 ulp; the hardware's tanh is good to 2^-11
// only and is not used.
#pragma once
#include "cuda/intrinsics.cuh"
#include "cuda/kernels.h"

namespace qkv::cuda {

// x / (1 + 2^-w), from e = 2^-|w|, which does not overflow: x {1, e} / (1 + e). w has x's sign; -inf gives -inf * 0, NaN.
// The quotient is good to 2 ulp for divisors that are neither huge nor tiny, and this one lies in 1 ... 2.
QKV_DEVICE float logistic_unit(float x, float minus_abs_w) {
  const float e = exp2_approx(minus_abs_w);
  return __fdividef(x * (signbit(x) ? e : 1.0f), 1.0f + e);
}

// x / (1 + e^(-c x)): silu for c = 1, quick_gelu for c = 1.702.
QKV_DEVICE float sigmoid_unit(float x, float c) { return logistic_unit(x, fabsf(x) * (c * -1.44269504f)); }

// x/2 (1 + tanh u) = x / (1 + e^-2u) with u = sqrt(2/pi) (x + 0.044715 x^3)
QKV_DEVICE float gelu_tanh(float x) { return logistic_unit(x, fabsf(x) * fmaf(x * x, 0.044715f * -2.30220820f, -2.30220820f)); }

// x/2 (1 + erf(x / sqrt 2)) = x {e, 1 - e} with e = erfc(|x| / sqrt 2) / 2 = 2^-q(|x|), which does not cancel on the left.
QKV_DEVICE float gelu(float x) {
  const float a = fabsf(x);
  float q = -0x1.ab897ap-20f;  // -q
  q = fmaf(q, a, 0x1.a682dap-16f);
  q = fmaf(q, a, -0x1.00a558p-13f);
  q = fmaf(q, a, -0x1.26ca6cp-12f);
  q = fmaf(q, a, 0x1.da4b02p-8f);
  q = fmaf(q, a, -0x1.aef0dp-5f);
  q = fmaf(q, a, -0x1.d6324ap-2f);
  q = fmaf(q, a, -0x1.26af0ep+0f);
  q = fmaf(q, a, -0x1.fffffep-1f);
  const float e = exp2_approx(q);
  return x * (signbit(x) ? e : 1.0f - e);
}

QKV_DEVICE float relu(float x) { return x < 0 ? 0.0f : x; }  // NaN stays, which fmaxf would drop

// body(f) with f: float -> float. One uniform branch for whatever body does.
template <class Body>
QKV_DEVICE void with_activation(Activation op, Body&& body) {
  switch (op) {
    case Activation::none:
      return body([](float x) { return x; });
    case Activation::gelu:
      return body([](float x) { return gelu(x); });
    case Activation::gelu_tanh:
      return body([](float x) { return gelu_tanh(x); });
    case Activation::relu:
      return body([](float x) { return relu(x); });
    case Activation::silu:
      return body([](float x) { return sigmoid_unit(x, 1.0f); });
    case Activation::quick_gelu:
      return body([](float x) { return sigmoid_unit(x, 1.702f); });
    case Activation::tanh:
      return body([](float x) { return tanhf(x); });
    case Activation::exp:
      return body([](float x) { return expf(x); });
    case Activation::erf:
      return body([](float x) { return erff(x); });
  }
}

QKV_DEVICE float activate(Activation op, float x) {
  with_activation(op, [&x](auto f) { x = f(x); });
  return x;
}
// All of x under one branch.
template <int kCount>
QKV_DEVICE void activate(Activation op, float (&x)[kCount]) {
  with_activation(op, [&x](auto f) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = f(x[i]);
  });
}

}  // namespace qkv::cuda
