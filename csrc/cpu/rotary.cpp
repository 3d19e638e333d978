// rotary: (x1, x2) -> (x1 cos t - x2 sin t, x2 cos t + x1 sin t) with t = position * inv_freq (Su et al. 2021, arXiv:2104.09864),
// over halves x1 = x[:dim/2], x2 = x[dim/2:dim] or, interleaved, neighbours; what lies beyond dim passes through.
// Angles come in as floats (qkv.positions says why) and their cosines are taken in double: a float cosine of 1e5 needs that.
#include <math.h>

#include "cpu/kernels.h"
#include "cpu/simd/loops.h"

namespace qkv {
namespace QKV_ISA {

static void rotate_row(const RotaryArgs& a, const float* x, float* y, const float* cosine, const float* sine) {
  const int64_t half = a.dim / 2;
  if (a.interleaved)
    for (int64_t i = 0; i < half; ++i) {
      const float x1 = x[2 * i], x2 = x[2 * i + 1];
      y[2 * i] = x1 * cosine[i] - x2 * sine[i];
      y[2 * i + 1] = x2 * cosine[i] + x1 * sine[i];
    }
  else
    each(half, [&](int64_t i, auto count) {
      const Vec x1 = load(x + i, count), x2 = load(x + half + i, count), c = load(cosine + i, count), s = load(sine + i, count);
      store(y + i, fnma(x2, s, mul(x1, c)), count);
      store(y + half + i, fma(x1, s, mul(x2, c)), count);
    });
  if (x != y)
    for (int64_t i = a.dim; i < a.x.n; ++i) y[i] = x[i];
}

void rotary(const RotaryArgs& a) {
  const int64_t half = a.dim / 2;
  parallel(a.x.rows, grain_for(a.x.n * 8), a.threads, [&](int64_t begin, int64_t end, int thread) {
    float* const cosine = a.scratch + thread * (a.dim + a.x.n);
    float* const sine = cosine + half;
    float* const buffer = cosine + a.dim;
    const float* known = nullptr;  // the angles that cosine and sine belong to; rows come ordered by them
    for (int64_t r = begin; r < end; ++r) {
      const float* angles = (const float*)a.angles.data + row_offset(a.angles, r);
      if (angles != known)
        for (int64_t i = 0; i < half; ++i) {
          cosine[i] = (float)cos((double)angles[i]) * a.factor;
          sine[i] = (float)sin((double)angles[i]) * a.factor;
        }
      known = angles;
      float* y = write_row(a.y, r, buffer);
      rotate_row(a, read_row(a.x, r, buffer), y, cosine, sine);
      finish_row(a.y, r, y);
    }
  });
}

}  // namespace QKV_ISA
}  // namespace qkv
