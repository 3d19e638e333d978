// layer_norm: y = (x - mean x) / sqrt(var x + eps) * weight + bias (Ba et al. 2016, arXiv:1607.06450; biased variance)
// rms_norm:   y = x / sqrt(mean x^2 + eps) * weight                (Zhang & Sennrich 2019, arXiv:1910.07467)
// over the last axis; with a residual, x + residual takes the place of x and is returned too.
// The variance is that of the centred row (two passes over a row in L1): E[x^2] - mean^2 cancels.
#include <math.h>

#include "cpu/kernels.h"
#include "cpu/simd/loops.h"

namespace qkv {
namespace QKV_ISA {

static double sum_of(const float* x, int64_t n) {
  double sum = 0;
  each_block(n, [&](int64_t from, int64_t length) {
    const float* p = x + from;
    sum += reduce_add(fold(
        length, zero(), [&](Vec part, int64_t i, auto count) { return add(part, load(p + i, count)); },
        [](Vec a, Vec b) { return add(a, b); }));
  });
  return sum;
}

static double squares_of(const float* x, Vec centre, int64_t n) {
  double sum = 0;
  each_block(n, [&](int64_t from, int64_t length) {
    const float* p = x + from;
    sum += reduce_add(fold(
        length, zero(),
        [&](Vec part, int64_t i, auto count) {
          const Vec d = within(count, sub(load(p + i, count), centre), zero());
          return fma(d, d, part);
        },
        [](Vec a, Vec b) { return add(a, b); }));
  });
  return sum;
}

// x and y may be the same row. next: what is read after this row, or nullptr.
template <class T>
static void norm_row(const NormArgs& a, const float* x, T* y, bool past, const T* next) {
  const int64_t n = a.x.n;
  const Vec centre = set(a.rms ? 0.0f : (float)(sum_of(x, n) / (double)n));
  const Vec scale = set((float)(1.0 / ::sqrt(squares_of(x, centre, n) / (double)n + (double)a.eps)));
  const auto normed = [&](int64_t i, auto count) {
    if (next) fetch(next + i, count);
    return mul(sub(load(x + i, count), centre), scale);
  };
  if (a.weight && a.bias)
    write_each(y, n, past, [&](int64_t i, auto count) {
      return add(mul(normed(i, count), load(a.weight + i, count)), load(a.bias + i, count));
    });
  else if (a.weight)
    write_each(y, n, past, [&](int64_t i, auto count) { return mul(normed(i, count), load(a.weight + i, count)); });
  else if (a.bias)
    write_each(y, n, past, [&](int64_t i, auto count) { return add(normed(i, count), load(a.bias + i, count)); });
  else
    write_each(y, n, past, normed);
}

// total = x + residual, also into `sum`, row r of a.sum.
static void add_rows(const NormArgs& a, int64_t r, float* total, float* other) {
  const int64_t n = a.x.n;
  if (a.x.step == 1 && a.residual.step == 1 && a.sum.step == 1)
    return with_type(a.sum.dtype, (void*)row_ptr(a.sum, r), [&](auto* sum) {
      const auto *x = (decltype(sum))row_ptr(a.x, r), *residual = (decltype(sum))row_ptr(a.residual, r);  // of one dtype
      write_each(sum, n, a.past_caches, [&](int64_t i, auto count) {
        const auto v = add(load(x + i, count), load(residual + i, count));
        store(total + i, v, count);
        return v;
      });
    });
  const float *x = read_row(a.x, r, total), *residual = read_row(a.residual, r, other);
  each(n, [&](int64_t i, auto count) { store(total + i, add(load(x + i, count), load(residual + i, count)), count); });
  finish_row(a.sum, r, total);
}

void norm(const NormArgs& a) {
  const int64_t n = a.x.n, grain = grain_for(n * 4, a.x.rows, a.threads);
  parallel(a.x.rows, grain, a.threads, [&](int64_t begin, int64_t end, int thread) {
    float* const buffer = a.scratch + thread * 2 * n;
    for (int64_t r = begin; r < end; ++r) {
      const float* x = buffer;
      if (a.residual.data)
        add_rows(a, r, buffer, buffer + n);
      else
        x = read_row(a.x, r, buffer);
      if (a.y.step != 1) {
        norm_row(a, x, buffer, false, (const float*)nullptr);
        finish_row(a.y, r, buffer);
      } else {
        with_type(a.y.dtype, (void*)row_ptr(a.y, r), [&](auto* y) {
          const auto* next = a.past_caches && a.x.step == 1 && r + 1 < end ? (decltype(y))row_ptr(a.x, r + 1) : nullptr;
          norm_row(a, x, y, a.past_caches, next);
        });
      }
    }
    if (a.past_caches) fence();
  });
}

}  // namespace QKV_ISA
}  // namespace qkv
