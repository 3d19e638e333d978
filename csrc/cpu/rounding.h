// Floats to small integers: what weights (quantize.cpp), activations (gemm_quantized.cpp) and caches (paged_write.cpp) share.
#pragma once
#include "cpu/simd/loops.h"

namespace qkv {
namespace QKV_ISA {

// u = round(x * pre * inverse) for a range of `top` cut into `levels`. `pre` keeps both factors normal for any float.
struct Rounding {
  Vec pre, inverse;
  float scale;
  Rounding(double top, double levels) {
    const double p = top < 0x1p-60 ? 0x1p64 : top > 0x1p60 ? 0x1p-64 : 1;
    pre = set((float)p);
    inverse = set(top > 0 ? (float)(levels / (top * p)) : 0.0f);
    scale = (float)(top / levels);
  }
  Vec operator()(Vec x) const { return round(mul(mul(x, pre), inverse)); }
};

// True if all of x[0 .. n) is finite; lowest and highest value, 0 among them.
static bool range_of(const float* x, int64_t n, float* low, float* high) {
  Vec lowest = zero(), highest = zero(), check = zero();
  each(n, [&](int64_t i, auto count) {
    const Vec v = load(x + i, count);
    lowest = min(v, lowest);
    highest = max(v, highest);
    check = fma(v, zero(), check);  // 0 * infinity is NaN
  });
  *low = -reduce_max(neg(lowest));
  *high = reduce_max(highest);
  return reduce_add(check) == 0;
}

// The largest size in that range; never -0, which would get into scales.
static inline float size_of_range(float low, float high) { return high > -low ? high : 0 - low; }

}  // namespace QKV_ISA
}  // namespace qkv
