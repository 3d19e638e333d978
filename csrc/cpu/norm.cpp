// layer_norm: y = (x - mean x) / sqrt(var x + eps) * weight + bias (Ba et al. 2016, arXiv:1607.06450; biased variance)
// rms_norm:   y = x / sqrt(mean x^2 + eps) * weight                (Zhang & Sennrich 2019, arXiv:1910.07467)
// over the last axis; with a residual, x + residual takes the place of x and is returned too.
// The variance is that of the centred row (two passes over a row in L1): E[x^2] - mean^2 cancels.
#include <math.h>

#include "cpu/kernels.h"
#include "cpu/simd/loops.h"

namespace qkv {
namespace QKV_ISA {

// x and y may be the same row.
static void norm_row(const NormArgs& a, const float* x, float* y) {
  const int64_t n = a.x.n;
  double sum = 0;
  if (!a.rms)
    each_block(n, [&](int64_t from, int64_t length) {
      Vec part = zero();
      each(length, [&](int64_t i, auto count) { part = add(part, load(x + from + i, count)); });
      sum += reduce_add(part);
    });
  const Vec centre = set((float)(sum / (double)n));
  double squares = 0;
  each_block(n, [&](int64_t from, int64_t length) {
    Vec part = zero();
    each(length, [&](int64_t i, auto count) {
      const Vec d = select(active(count), sub(load(x + from + i, count), centre), zero());
      part = fma(d, d, part);
    });
    squares += reduce_add(part);
  });
  const Vec scale = set((float)(1.0 / ::sqrt(squares / (double)n + (double)a.eps)));
  each(n, [&](int64_t i, auto count) {
    Vec v = mul(sub(load(x + i, count), centre), scale);
    if (a.weight) v = mul(v, load(a.weight + i, count));
    if (a.bias) v = add(v, load(a.bias + i, count));
    store(y + i, v, count);
  });
}

void norm(const NormArgs& a) {
  const int64_t n = a.x.n;
  parallel(a.x.rows, grain_for(n * 4), a.threads, [&](int64_t begin, int64_t end, int thread) {
    float* const buffer = a.scratch + thread * 2 * n;
    float* const other = buffer + n;
    for (int64_t r = begin; r < end; ++r) {
      const float* x = read_row(a.x, r, buffer);
      if (a.residual.data) {
        const float* residual = read_row(a.residual, r, other);
        float* sum = write_row(a.sum, r, buffer);
        each(n, [&](int64_t i, auto count) { store(sum + i, add(load(x + i, count), load(residual + i, count)), count); });
        finish_row(a.sum, r, sum);
        x = sum;
      }
      float* y = write_row(a.y, r, buffer);
      norm_row(a, x, y);
      finish_row(a.y, r, y);
    }
  });
}

}  // namespace QKV_ISA
}  // namespace qkv
