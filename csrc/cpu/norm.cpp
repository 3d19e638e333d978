// layer_norm: y = (x - mean x) / sqrt(var x + eps) * weight + bias (Ba et al. 2016, arXiv:1607.06450; biased variance)
// rms_norm:   y = x / sqrt(mean x^2 + eps) * weight                (Zhang & Sennrich 2019, arXiv:1910.07467)
// over the last axis; with a residual, x + residual takes the place of x and is returned too.
// The variance is that of the centred row (two passes over a row in L1): E[x^2] - mean^2 cancels.
#include <math.h>

#include "cpu/kernels.h"
#include "cpu/simd/loops.h"

namespace qkv {
namespace QKV_ISA {

// Of R rows, term(row, vectors at i) of each summed.
template <int R, class Term>
QKV_INLINE void sums_of(const float* const (&x)[R], int64_t n, double (&sum)[R], Term&& term) {
  for (int r = 0; r < R; ++r) sum[r] = 0;
  each_block(n, [&](int64_t from, int64_t length) {
    const Group<R> part = fold(
        length, group<R>([](int) { return zero(); }),
        [&](const Group<R>& so_far, int64_t i, auto count) {
          return group<R>([&](int r) QKV_ALWAYS { return term(so_far.v[r], r, load(x[r] + from + i, count), count); });
        },
        [](const Group<R>& a, const Group<R>& b) { return group<R>([&](int r) QKV_ALWAYS { return add(a.v[r], b.v[r]); }); });
    for (int r = 0; r < R; ++r) sum[r] += reduce_add(part.v[r]);
  });
}

// R rows side by side: one row waits for its sums and its root (Zen 4, 512 x 768 in cache: 47 instead of 50 us). x and y may be
// the same rows. next: what is read after the row, or nullptr.
template <int R, class T>
static void norm_rows(const NormArgs& a, const float* const (&x)[R], T* const (&y)[R], bool past, const T* next) {
  const int64_t n = a.x.n;
  double sum[R];
  Vec centre[R], scale[R];
  if (!a.rms) sums_of(x, n, sum, [](Vec part, int, Vec v, auto) QKV_ALWAYS { return add(part, v); });
  for (int r = 0; r < R; ++r) centre[r] = set(a.rms ? 0.0f : (float)(sum[r] / (double)n));
  sums_of(x, n, sum, [&](Vec part, int r, Vec v, auto count) QKV_ALWAYS {
    const Vec d = within(count, sub(v, centre[r]), zero());
    return fma(d, d, part);
  });
  for (int r = 0; r < R; ++r) scale[r] = set((float)(1.0 / ::sqrt(sum[r] / (double)n + (double)a.eps)));
  const auto normed = [&](int r, int64_t i, auto count) QKV_ALWAYS {
    if (next) fetch(next + i, count);
    return mul(sub(load(x[r] + i, count), centre[r]), scale[r]);
  };
  if (a.weight && a.bias)
    write_rows(y, n, past, [&](int r, int64_t i, auto count) QKV_ALWAYS {
      return add(mul(normed(r, i, count), load(a.weight + i, count)), load(a.bias + i, count));
    });
  else if (a.weight)
    write_rows(y, n, past,
               [&](int r, int64_t i, auto count) QKV_ALWAYS { return mul(normed(r, i, count), load(a.weight + i, count)); });
  else if (a.bias)
    write_rows(y, n, past,
               [&](int r, int64_t i, auto count) QKV_ALWAYS { return add(normed(r, i, count), load(a.bias + i, count)); });
  else
    write_rows(y, n, past, normed);
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
  constexpr int kRows = kLanes == 16 ? 4 : 2;  // 16 or 8 registers of sums
  const int64_t n = a.x.n, grain = grain_for(n * 4, a.x.rows, a.threads);
  const bool in_place = a.x.dtype == DType::f32 && a.x.step == 1 && a.y.step == 1 && !a.residual.data && !a.past_caches;
  parallel(a.x.rows, grain, a.threads, [&](int64_t begin, int64_t end, int thread) {
    float* const buffer = a.scratch + thread * 2 * n;
    int64_t row = begin;
    for (; in_place && row + kRows <= end; row += kRows) {
      const float* x[kRows];
      float* y[kRows];
      for (int r = 0; r < kRows; ++r) {
        x[r] = (const float*)row_ptr(a.x, row + r);
        y[r] = (float*)row_ptr(a.y, row + r);
      }
      norm_rows(a, x, y, false, (const float*)nullptr);
    }
    for (; row < end; ++row) {
      const float* x[1] = {buffer};
      if (a.residual.data)
        add_rows(a, row, buffer, buffer + n);
      else
        x[0] = read_row(a.x, row, buffer);
      if (a.y.step != 1) {
        float* const y[1] = {buffer};
        norm_rows(a, x, y, false, (const float*)nullptr);
        finish_row(a.y, row, buffer);
      } else {
        with_type(a.y.dtype, (void*)row_ptr(a.y, row), [&](auto* to) {
          decltype(to) const y[1] = {to};
          const auto* next = a.past_caches && a.x.step == 1 && row + 1 < end ? (decltype(to))row_ptr(a.x, row + 1) : nullptr;
          norm_rows(a, x, y, a.past_caches, next);
        });
      }
    }
    if (a.past_caches) fence();
  });
}

}  // namespace QKV_ISA
}  // namespace qkv
