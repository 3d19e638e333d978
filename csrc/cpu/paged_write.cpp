// paged_write: new keys and values go to their slots in a paged cache, rounded to its dtype. int8, per token and head:
//
//   scale = max_i |x_i| / 127,  q_i = x_i / scale to the nearest even integer
//
// copy_blocks: what a sequence writes to and others have too becomes its own.
#include "cpu/kernels.h"
#include "cpu/rounding.h"

namespace qkv {
namespace QKV_ISA {

// One row (d) of a token and head; x is overwritten. A row that is not finite gets the scale NaN, so that it stays visible.
static void quantize_row(float* __restrict x, int64_t d, int8_t* __restrict q, int64_t step, float* scale) {
  float low, high;
  const bool finite = range_of(x, d, &low, &high);
  const float by = finite ? size_of_range(low, high) / 127.0f : __builtin_nanf("");
  *scale = by;
  if (!(by > 0)) {
    for (int64_t i = 0; i < d; ++i) q[i * step] = 0;
    return;
  }
  // Where the scale is denormal, x / scale may exceed 127.
  const Vec most = set(127.0f), least = set(-127.0f);
  each(d, [&](int64_t i, auto count) { store(x + i, min(max(round(div(load(x + i, count), set(by))), least), most), count); });
  if (step == 1)  // two loops, so that the compiler makes vectors of the first
    for (int64_t i = 0; i < d; ++i) q[i] = (int8_t)x[i];
  else
    for (int64_t i = 0; i < d; ++i) q[i * step] = (int8_t)x[i];
}

static void write_rows(const PagedWriteArgs& a, const Strided4& x, int64_t d, const Strided4& cache, const Strided4& scale,
                       int64_t token, float* row) {
  const int64_t block = a.slots[token] / a.block_size, inside = a.slots[token] % a.block_size;
  const bool ready = x.dtype == DType::f32 && x.d == 1, same = x.dtype == cache.dtype && x.d == 1 && cache.d == 1;
  // Heads side by side are as good as one.
  const bool joined = !scale.data && (ready || same) && x.h == d && cache.h == d && cache.d == 1;
  const int64_t heads = joined && a.heads > 0 ? 1 : a.heads, n = joined ? a.heads * d : d;
  for (int64_t h = 0; h < heads; ++h) {
    const char* from = x.data + (token * x.s + h * x.h) * size_of(x.dtype);
    const int64_t at = block * cache.b + inside * cache.s + h * cache.h;
    if (scale.data) {
      gather(row, x.dtype, from, x.d, d);
      quantize_row(row, d, (int8_t*)cache.data + at, cache.d,
                   (float*)scale.data + block * scale.b + inside * scale.s + h * scale.h);
      continue;
    }
    char* to = cache.data + at * size_of(cache.dtype);
    if (same) {
      memcpy(to, from, (size_t)(n * size_of(x.dtype)));
    } else {
      if (!ready) gather(row, x.dtype, from, x.d, d);
      scatter(cache.dtype, to, cache.d, ready ? (const float*)from : row, n);
    }
  }
}

void paged_write(const PagedWriteArgs& a) {
  const int64_t floats = a.d > a.dv ? a.d : a.dv;
  parallel(a.tokens, grain_for(a.heads * (a.d + a.dv)), a.threads, [&](int64_t begin, int64_t end, int thread) {
    float* const row = a.scratch + thread * floats;
    for (int64_t token = begin; token < end; ++token) {
      if (a.slots[token] < 0) continue;
      write_rows(a, a.k, a.d, a.k_cache, a.k_scale, token, row);
      write_rows(a, a.v, a.dv, a.v_cache, a.v_scale, token, row);
    }
  });
}

void copy_blocks(const CopyBlocksArgs& a) {
  parallel(a.count * a.blocks, grain_for(a.count ? a.copied[0] / 4 : 1), a.threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t i = item / a.blocks, b = item % a.blocks;
      memcpy(a.arrays[i] + a.to[b] * a.block[i], a.arrays[i] + a.from[b] * a.block[i], (size_t)a.copied[i]);
    }
  });
}

}  // namespace QKV_ISA
}  // namespace qkv
