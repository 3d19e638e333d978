// linear_top_k: of each row of z = x W^T + b the k largest, where they stand, and its parts of log_softmax, m and l of
// y_i = z_i - m - l, m = max z, l = ln sum_j e^(z_j - m). A z as wide as a vocabulary would go to memory and back: here some rows
// and columns of it at a time are made, looked at while the cache has them, and overwritten.
//
// Columns are cut where l is added up, at multiples of kColumns, whatever the rows and threads, so that results do not depend on
// those. Outside the ISA code: it calls kernels, from within a parallel loop, each on its thread alone.
#include <math.h>
#include <string.h>

#include "core/parallel.h"
#include "cpu/kernels.h"

namespace qkv {
namespace {

constexpr int64_t kColumns = kLogCut, kRows = 64;  // 256 KB of floats

int64_t less(int64_t a, int64_t b) { return a < b ? a : b; }

Rows floats(float* x, int64_t rows, int64_t n, int64_t ld) {
  return {reinterpret_cast<char*>(x), DType::f32, n, 1, rows, 1, {rows}, {ld}};
}
// Of c: rows a power of two apart would share few sets of the cache.
int64_t row_of_c(int64_t n) { return n + kPanel; }

PackedView columns_of(const PackedView& w, int64_t first, int64_t n) {
  const int64_t panel = first / kPanel, groups = panel * groups_of(w) * kPanel;
  PackedView some = w;
  some.n = n;
  some.panels += panel * panel_rows(w) * kPanelRowBytes;
  if (w.row_scale) {
    some.row_scale += first;
    some.row_sum += first;
  }
  if (w.scale) some.scale += groups;
  if (w.offset) some.offset += groups;
  return some;
}

// Of m rows of x and n columns from `first` on, into c (m, n).
template <class Args>
Args product(const LinearTopKArgs& a, int64_t row, int64_t m, int64_t first, int64_t n, float* c) {
  Args g{};
  g.c = floats(c, m, n, row_of_c(n));
  g.bias = a.bias ? a.bias + first : nullptr;
  g.m = m;
  g.a = floats(const_cast<float*>(a.x) + row * a.w.k, m, a.w.k, a.w.k);
  g.threads = 1;
  return g;
}
GemmArgs plain_product(const LinearTopKArgs& a, int64_t row, int64_t m, int64_t first, int64_t n, float* c) {
  GemmArgs g = product<GemmArgs>(a, row, m, first, n, c);
  g.n = n;
  g.k = a.w.k;
  g.packed = reinterpret_cast<const float*>(columns_of(a.w, first, n).panels);
  g.batch = 1;
  g.plan = plan_gemm(g);
  return g;
}
QuantizedGemmArgs quantized_product(const LinearTopKArgs& a, int64_t row, int64_t m, int64_t first, int64_t n, float* c) {
  QuantizedGemmArgs g = product<QuantizedGemmArgs>(a, row, m, first, n, c);
  g.w = columns_of(a.w, first, n);
  g.plan = plan_gemm_quantized(g);
  return g;
}

// Scratch: rows of x, quantised; of the cuts totals (cuts, m) and parts (cuts, m, 2); per thread c (m, n), keys (m, k), and what
// the product wants.
struct Layout {
  bool plain;
  int64_t m, n, cuts;
  size_t x, parts, c, keys, product;
  explicit Layout(const LinearTopKArgs& a)
      : plain(a.w.type == WeightType::f32),
        m(less(kRows, a.rows)),
        n(less(kColumns, a.w.n)),
        cuts((a.w.n + kColumns - 1) / kColumns) {
    const auto lines = [](int64_t bytes) { return static_cast<size_t>(round_up(bytes, 64)); };
    parts = lines(cuts * m * 16);
    c = lines(m * row_of_c(n) * 4);
    keys = lines(m * a.k * 8);
    if (plain) {
      x = 0;
      product = lines(plain_product(a, 0, m, 0, n, nullptr).plan.scratch_bytes);
    } else {
      const QuantizedGemmPlan p = quantized_product(a, 0, m, 0, n, nullptr).plan;
      x = lines(p.shared_bytes);
      product = lines(p.scratch_bytes);
    }
  }
  size_t per_thread() const { return c + keys + product; }
};

struct Work {
  const LinearTopKArgs& a;
  const Kernels& kernels;
  const Layout& layout;
  int64_t row, m;  // these rows

  double* totals_of(int64_t cut) const { return reinterpret_cast<double*>(a.scratch + layout.x) + cut * m; }
  float* parts_of(int64_t cut) const { return reinterpret_cast<float*>(totals_of(layout.cuts)) + 2 * cut * m; }
  char* of_thread(int t) const { return a.scratch + layout.x + layout.parts + static_cast<size_t>(t) * layout.per_thread(); }
  uint64_t* keys_of(int t) const { return reinterpret_cast<uint64_t*>(of_thread(t) + layout.c); }

  void look_at(int64_t cut, int thread) const {
    const int64_t first = cut * kColumns, n = less(kColumns, a.w.n - first);
    float* const c = reinterpret_cast<float*>(of_thread(thread));
    char* const scratch = of_thread(thread) + layout.c + layout.keys;
    if (layout.plain) {
      GemmArgs g = plain_product(a, row, m, first, n, c);
      g.scratch = scratch;
      kernels.gemm(g);
    } else {
      QuantizedGemmArgs g = quantized_product(a, row, m, first, n, c);
      g.stage = Stage::product;
      g.rows = a.scratch;
      g.scratch = scratch;
      kernels.gemm_quantized(g);
    }
    const Rows z = floats(c, m, n, row_of_c(n));
    kernels.softmax({z, z, true, false, false, parts_of(cut), totals_of(cut), nullptr, 1});
    kernels.keep_best({c, m, n, row_of_c(n), first, a.k, keys_of(thread)});
  }

  // What the threads and the cuts have of row r.
  void add_up(int64_t r) const {
    float top = -__builtin_inff();
    for (int64_t cut = 0; cut < layout.cuts; ++cut) top = fmaxf(top, parts_of(cut)[2 * r]);
    double total = 0;  // as total_of_cuts in softmax.cpp
    for (int64_t cut = 0; cut < layout.cuts; ++cut)
      total += totals_of(cut)[r] * exp(static_cast<double>(parts_of(cut)[2 * r]) - top);
    float* const to = a.parts + 2 * (row + r);
    to[0] = top;
    to[1] = static_cast<float>(log(total));
    uint64_t* const keys = keys_of(0) + r * a.k;
    for (int t = 1; t < a.threads; ++t)
      for (int64_t i = 0; i < a.k; ++i) keep(keys, a.k, keys_of(t)[r * a.k + i]);
    for (int64_t i = 0; i < a.k; ++i) {
      a.values[(row + r) * a.k + i] = value_of(keys[i]);
      a.places[(row + r) * a.k + i] = place_of(keys[i]);
    }
  }
};

template <class Body>
void parallel(int64_t n, int threads, const Body& body) {
  parallel_for(
      n, 1, threads,
      [](void* context, int64_t begin, int64_t end, int thread) {
        for (int64_t i = begin; i < end; ++i) (*static_cast<const Body*>(context))(i, thread);
      },
      const_cast<Body*>(&body));
}

}  // namespace

size_t linear_top_k_scratch(const LinearTopKArgs& a) {
  const Layout layout(a);
  return layout.x + layout.parts + static_cast<size_t>(a.threads) * layout.per_thread();
}

void linear_top_k(const LinearTopKArgs& a, const Kernels& kernels) {
  const Layout layout(a);
  for (int64_t row = 0; row < a.rows; row += kRows) {
    const Work work = {a, kernels, layout, row, less(kRows, a.rows - row)};
    if (!layout.plain) {
      QuantizedGemmArgs g = quantized_product(a, row, work.m, 0, layout.n, nullptr);
      g.stage = Stage::rows;
      g.rows = a.scratch;
      g.scratch = work.of_thread(0) + layout.c + layout.keys;
      kernels.gemm_quantized(g);
    }
    for (int t = 0; t < a.threads; ++t) memset(work.keys_of(t), 0, layout.keys);
    parallel(layout.cuts, a.threads, [&](int64_t cut, int thread) { work.look_at(cut, thread); });
    parallel(work.m, a.threads, [&](int64_t r, int) { work.add_up(r); });
  }
}

}  // namespace qkv
