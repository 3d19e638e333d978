// softmax: y_i = e^(x_i - m) / sum_j e^(x_j - m), log_softmax: y_i = x_i - m - ln sum_j e^(x_j - m), with m = max x, row by row.
#include <math.h>

#include "cpu/kernels.h"
#include "cpu/simd/loops.h"
#include "cpu/simd/math.h"

namespace qkv {
namespace QKV_ISA {

static float top_of(const float* x, int64_t n) {
  return reduce_max(fold(
      n, set(-__builtin_inff()),
      [&](Vec so_far, int64_t i, auto count) { return max(so_far, within(count, load(x + i, count), so_far)); },
      [](Vec a, Vec b) { return max(a, b); }));
}

// The sum of all e^(x - m); with `keep` they are kept in e. next: what is read after this row, or nullptr.
template <class T>
static double total_of(const float* x, int64_t n, Vec m, float* e, bool keep, const T* next) {
  double total = 0;
  each_block(n, [&](int64_t from, int64_t length) {
    Pair sum = zero();
    each_pair(length, [&](int64_t i, auto count) {
      if (next) fetch(next + from + i, count);
      const auto v = exp_down(sub(load(x + from + i, count), m));
      if (keep) store(e + from + i, v, count);
      sum = add_to(sum, within(count, v, zero()));
    });
    total += reduce_add(add(sum.a, sum.b));
  });
  return total;
}

// l of log_softmax without the logarithm: sums of cuts of kLogCut numbers, each by its own maximum, so that cuts can be made one
// by one (linear_top_k). A cut of -inf counts as 0, unless all are.
static double total_of_cut(const float* x, int64_t n, float top) {
  return total_of(x, n, set(top == -__builtin_inff() ? 0 : top), (float*)nullptr, false, (const float*)nullptr);
}
static double total_of_cuts(const float* x, int64_t n, float top) {
  double total = 0;
  for (int64_t from = 0; from < n; from += kLogCut) {
    const int64_t length = n - from < kLogCut ? n - from : kLogCut;
    const float own = top_of(x + from, length);
    total += total_of_cut(x + from, length, own) * ::exp((double)own - top);
  }
  return total;
}

// e: room for n floats that stay in the cache between the passes; x, e and y may be the same row.
template <class T>
static void softmax_row(const float* x, float* e, T* y, int64_t n, bool logarithm, bool past, const T* next) {
  const float top = top_of(x, n);
  const Vec m = set(top);
  const double total = logarithm ? total_of_cuts(x, n, top) : total_of(x, n, m, e, true, next);
  if (logarithm) {
    const Vec ln = set((float)::log(total));
    write_each(y, n, past, [&](int64_t i, auto count) { return sub(sub(load(x + i, count), m), ln); });
  } else {
    const Vec scale = set((float)(1 / total));
    write_each(y, n, past, [&](int64_t i, auto count) { return mul(load(e + i, count), scale); });
  }
}

// to[c * ldt + r] = from[r * ldf + c] for rows x columns floats.
static void transpose_all(const float* from, int64_t ldf, float* to, int64_t ldt, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; r += kLanes)
    for (int64_t c = 0; c < columns; c += kLanes)
      if (r + kLanes <= rows && c + kLanes <= columns)
        transpose(from + r * ldf + c, ldf, to + c * ldt + r, ldt);
      else
        for (int64_t i = r; i < rows && i < r + kLanes; ++i)
          for (int64_t j = c; j < columns && j < c + kLanes; ++j) to[j * ldt + i] = from[i * ldf + j];
}

// Along an axis that is not the last: gathering one row at a time would fetch a cache line per element.
static void softmax_across(const SoftmaxArgs& a) {
  constexpr int64_t kAtOnce = 16;
  const int64_t n = a.x.n, inner = a.x.shape[a.x.rank - 1], groups = (inner + kAtOnce - 1) / kAtOnce;
  parallel(a.x.rows / inner * groups, grain_for(n * kAtOnce * 4), a.threads, [&](int64_t begin, int64_t end, int thread) {
    float* const buffer = a.scratch + thread * kAtOnce * n;  // (16, n)
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item % groups * kAtOnce, row = item / groups * inner + first;
      const int64_t count = inner - first < kAtOnce ? inner - first : kAtOnce;
      transpose_all((const float*)row_ptr(a.x, row), a.x.step, buffer, n, n, count);
      for (int64_t r = 0; r < count; ++r)
        softmax_row(buffer + r * n, buffer + r * n, buffer + r * n, n, a.log, false, (const float*)nullptr);
      transpose_all(buffer, n, (float*)row_ptr(a.y, row), a.y.step, count, n);
    }
  });
}

void softmax(const SoftmaxArgs& a) {
  if (a.across) return softmax_across(a);
  parallel(a.x.rows, grain_for(a.x.n * 4, a.x.rows, a.threads), a.threads, [&](int64_t begin, int64_t end, int thread) {
    float* const buffer = a.parts ? nullptr : a.scratch + thread * a.x.n;
    for (int64_t r = begin; r < end; ++r) {
      const float* x = a.parts ? (const float*)row_ptr(a.x, r) : read_row(a.x, r, buffer);  // contiguous floats
      if (a.parts) {
        a.parts[2 * r] = top_of(x, a.x.n);
        if (a.totals)
          a.totals[r] = total_of_cut(x, a.x.n, a.parts[2 * r]);
        else
          a.parts[2 * r + 1] = (float)::log(total_of_cuts(x, a.x.n, a.parts[2 * r]));
      } else if (a.y.step != 1) {
        softmax_row(x, buffer, buffer, a.x.n, a.log, false, (const float*)nullptr);
        finish_row(a.y, r, buffer);
      } else {
        with_type(a.y.dtype, (void*)row_ptr(a.y, r), [&](auto* y) {
          const auto* next = a.past_caches && a.x.step == 1 && r + 1 < end ? (decltype(y))row_ptr(a.x, r + 1) : nullptr;
          softmax_row(x, buffer, y, a.x.n, a.log, a.past_caches, next);
        });
      }
    }
    if (a.past_caches) fence();
  });
}

}  // namespace QKV_ISA
}  // namespace qkv
