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
  struct Range {
    Vec low, high, check;
  };
  const auto both = [](Range a, Range b)
                        QKV_ALWAYS { return Range{min(a.low, b.low), max(a.high, b.high), add(a.check, b.check)}; };
  const auto with = [&](Range r, int64_t i, auto count) QKV_ALWAYS {
    const Vec v = load(x + i, count);
    return Range{min(v, r.low), max(v, r.high), fma(v, zero(), r.check)};  // 0 * infinity is NaN
  };
  const Range r = fold(n, Range{zero(), zero(), zero()}, with, both);
  *low = -reduce_max(neg(r.low));
  *high = reduce_max(r.high);
  return reduce_add(r.check) == 0;
}

// The largest size in that range; never -0, which would get into scales.
static inline float size_of_range(float low, float high) { return high > -low ? high : 0 - low; }

}  // namespace QKV_ISA
}  // namespace qkv
