// The list of activations as functions: what activation.cpp maps over arrays and products apply to their sums.
#pragma once
#include "cpu/kernels.h"
#include "cpu/simd/math.h"

namespace qkv {
namespace QKV_ISA {

// body(f) with f: a Vec or Pair -> the same.
template <class Body>
QKV_INLINE void with_activation(Activation op, Body&& body) {
  switch (op) {
    case Activation::none:
      return body([](auto x) QKV_ALWAYS { return x; });
    case Activation::gelu:
      return body([](auto x) QKV_ALWAYS { return gelu(x); });
    case Activation::gelu_tanh:
      return body([](auto x) QKV_ALWAYS { return gelu_tanh(x); });
    case Activation::relu:
      return body([](auto x) QKV_ALWAYS { return relu(x); });
    case Activation::silu:
      return body([](auto x) QKV_ALWAYS { return sigmoid_unit(x, 1.0f); });
    case Activation::quick_gelu:
      return body([](auto x) QKV_ALWAYS { return sigmoid_unit(x, 1.702f); });
    case Activation::tanh:
      return body([](auto x) QKV_ALWAYS { return tanh(x); });
    case Activation::exp:
      return body([](auto x) QKV_ALWAYS { return exp(x); });
    case Activation::erf:
      return body([](auto x) QKV_ALWAYS { return erf(x); });
  }
}

}  // namespace QKV_ISA
}  // namespace qkv
