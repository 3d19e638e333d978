// gelu, gelu_tanh, relu, silu, quick_gelu, tanh (and exp, erf for their tests): y = f(x), element by element; formulas in
// simd/math.h.
#include "cpu/kernels.h"
#include "cpu/simd/loops.h"
#include "cpu/simd/math.h"

namespace qkv {
namespace QKV_ISA {

template <class F>
static void map(const ActivationArgs& a, F f) {
  constexpr int64_t kBlock = 4096;
  const int64_t blocks = (a.x.n + kBlock - 1) / kBlock, n = a.x.n < kBlock ? a.x.n : kBlock;
  parallel(a.x.rows * blocks, grain_for(n * 4), a.threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item / blocks, from = item % blocks * kBlock, left = a.x.n - from;
      const int64_t count = left < kBlock ? left : kBlock;
      const char* x = row_ptr(a.x, row) + from * a.x.step * size_of(a.x.dtype);
      char* y = row_ptr(a.y, row) + from * a.y.step * size_of(a.y.dtype);
      with_type(a.y.dtype, (void*)y, [&](auto* to) {
        const auto* p = (decltype(to))x;  // x has y's dtype
        if (a.x.step == 1 && a.y.step == 1)
          each(count, [&](int64_t i, auto c) { store(to + i, f(load(p + i, c)), c); });
        else
          for (int64_t part = 0; part < count; part += 256) {
            float buffer[256];
            const int64_t length = count - part < 256 ? count - part : 256;
            gather(buffer, a.x.dtype, p + part * a.x.step, a.x.step, length);
            each(length, [&](int64_t i, auto c) { store(buffer + i, f(load(buffer + i, c)), c); });
            scatter(a.y.dtype, to + part * a.y.step, a.y.step, buffer, length);
          }
      });
    }
  });
}

void activation(const ActivationArgs& a) {
  switch (a.op) {
    case Activation::none:
      return map(a, [](Vec x) { return x; });
    case Activation::gelu:
      return map(a, [](Vec x) { return gelu(x); });
    case Activation::gelu_tanh:
      return map(a, [](Vec x) { return gelu_tanh(x); });
    case Activation::relu:
      return map(a, [](Vec x) { return relu(x); });
    case Activation::silu:
      return map(a, [](Vec x) { return sigmoid_unit(x, 1.0f); });
    case Activation::quick_gelu:
      return map(a, [](Vec x) { return sigmoid_unit(x, 1.702f); });
    case Activation::tanh:
      return map(a, [](Vec x) { return tanh(x); });
    case Activation::exp:
      return map(a, [](Vec x) { return exp(x); });
    case Activation::erf:
      return map(a, [](Vec x) { return erf(x); });
  }
}

}  // namespace QKV_ISA
}  // namespace qkv
