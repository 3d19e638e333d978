// gelu, gelu_tanh, relu, silu, quick_gelu, tanh (and exp, erf for their tests): y = f(x), element by element; formulas in
// activation.cuh.
#include "cuda/activation.cuh"

#include "cuda/elementwise.cuh"

namespace qkv::cuda {
namespace {

struct Activate {
  Activation op;
  template <int kCount>
  QKV_DEVICE void operator()(float (&x)[kCount]) const {
    activate(op, x);
  }
};

}  // namespace

void activation(const ActivationArgs& a, Stream stream) {
  if (a.x.rows == 0 || a.x.n == 0) return;
  Rows x = a.x, y = a.y;
  simplify(&x, &y);
  with_dtype(a.x.dtype, [&](auto t) {
    using T = decltype(t);
    map<T, T>("activation", x, y, Activate{a.op}, stream);
  });
}

}  // namespace qkv::cuda
