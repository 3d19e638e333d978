// softmax: y_i = e^(x_i - m) / sum_j e^(x_j - m), log_softmax: y_i = x_i - m - ln sum_j e^(x_j - m), with m = max x, row by row.
#include <math.h>

#include "cpu/kernels.h"
#include "cpu/simd/loops.h"
#include "cpu/simd/math.h"

namespace qkv {
namespace QKV_ISA {

// x and y may be the same row.
static void softmax_row(const float* x, float* y, int64_t n, bool logarithm) {
  Vec top = set(-__builtin_inff());
  each(n, [&](int64_t i, auto count) {
    const Vec v = load(x + i, count);
    top = max(top, select(active(count), v, top));
  });
  const Vec m = set(reduce_max(top));
  double total = 0;
  each_block(n, [&](int64_t from, int64_t length) {
    Vec sum = zero();
    each(length, [&](int64_t i, auto count) {
      const Vec e = exp(sub(load(x + from + i, count), m));
      if (!logarithm) store(y + from + i, e, count);
      sum = add(sum, select(active(count), e, zero()));
    });
    total += reduce_add(sum);
  });
  if (logarithm) {
    const Vec ln = set((float)::log(total));
    each(n, [&](int64_t i, auto count) { store(y + i, sub(sub(load(x + i, count), m), ln), count); });
  } else {
    const Vec sum = set((float)total);
    each(n, [&](int64_t i, auto count) { store(y + i, div(load(y + i, count), sum), count); });
  }
}

void softmax(const SoftmaxArgs& a) {
  parallel(a.x.rows, grain_for(a.x.n * 4), a.threads, [&](int64_t begin, int64_t end, int thread) {
    float* buffer = a.scratch + thread * a.x.n;
    for (int64_t r = begin; r < end; ++r) {
      float* y = write_row(a.y, r, buffer);
      softmax_row(read_row(a.x, r, buffer), y, a.x.n, a.log);
      finish_row(a.y, r, y);
    }
  });
}

}  // namespace QKV_ISA
}  // namespace qkv
