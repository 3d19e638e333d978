// scaled_sum: y = scale x, or scale x + other. Each operation is rounded by itself, so that it has NumPy's bits.
#include "cpu/kernels.h"
#include "cpu/simd/loops.h"

namespace qkv {
namespace QKV_ISA {

void scaled_sum(const ScaledSumArgs& a) {
  const Vec scale = set(a.scale);
  parallel(a.rows, grain_for(a.n, a.rows, a.threads), a.threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float *x = a.x + r * a.n, *other = a.other + r * a.other_row;
      float* y = a.y + r * a.n;
      if (a.other)
        each(a.n, [&](int64_t i, auto count)
                      QKV_ALWAYS { store(y + i, add(mul(load(x + i, count), scale), load(other + i, count)), count); });
      else
        each(a.n, [&](int64_t i, auto count) QKV_ALWAYS { store(y + i, mul(load(x + i, count), scale), count); });
    }
  });
}

}  // namespace QKV_ISA
}  // namespace qkv
