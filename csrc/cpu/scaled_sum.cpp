// scaled_sum: y = scale x, or x / scale, and + other. Each operation is rounded by itself, so that it has NumPy's bits.
#include "cpu/kernels.h"
#include "cpu/simd/loops.h"

namespace qkv {
namespace QKV_ISA {

template <class F>
static void scaled_sum_by(const ScaledSumArgs& a, F&& scaled) {
  parallel(a.rows, grain_for(a.n, a.rows, a.threads), a.threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float *x = a.x + r * a.n, *other = a.other + r * a.other_row;
      float* y = a.y + r * a.n;
      if (a.other)
        each(a.n, [&](int64_t i, auto count)
                      QKV_ALWAYS { store(y + i, add(scaled(load(x + i, count)), load(other + i, count)), count); });
      else
        each(a.n, [&](int64_t i, auto count) QKV_ALWAYS { store(y + i, scaled(load(x + i, count)), count); });
    }
  });
}

void scaled_sum(const ScaledSumArgs& a) {
  const Vec scale = set(a.scale);
  if (a.divide)
    scaled_sum_by(a, [&](Vec x) QKV_ALWAYS { return div(x, scale); });
  else
    scaled_sum_by(a, [&](Vec x) QKV_ALWAYS { return mul(x, scale); });
}

}  // namespace QKV_ISA
}  // namespace qkv
