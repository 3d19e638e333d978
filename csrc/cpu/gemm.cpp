// matmul and linear: c (m, n) = act(a (m, k) b (k, n) + bias) * gate + residual.
//
// In the manner of BLIS: b in panels of 16 columns (packed once for weights, on the fly otherwise), a register tile of up to 8 x
// 48, k cut into blocks that keep a panel group in L2. a is read where it lies: broadcasts need no packing, only float32 rows;
// other dtypes and strides are converted per block. K blocks depend on k alone, so every element has one summation order.
// Weights of other types: gemm_quantized.cpp.
#include "cpu/epilogue.h"
#include "cpu/kernels.h"
#include "cpu/tile.h"

namespace qkv {
namespace QKV_ISA {

void gemm(const GemmArgs& g) {
  const GemmPlan& p = g.plan;
  const bool fused = !p.separate_c && only_adds(g);
  const bool fetch_c = !p.separate_c && g.batch * g.m * g.n > kFarSums;
  const int64_t panels = panels_of(g.n), lda = p.copy_a ? p.k_block : g.a.rank ? g.a.strides[0] : 0;
  // Few rows do not repay packing: a row-major float b is read as it lies, except for its last, partial panel.
  const bool in_place = !g.packed && g.b_n == 1 && g.b_dtype == DType::f32 && g.m <= 2 * kMostRows;

  parallel(g.batch * p.row_chunks * p.panel_chunks, p.grain, g.threads, [&](int64_t begin, int64_t end, int thread) {
    float* const a_copy = (float*)(g.scratch + thread * p.scratch_bytes);
    float* const b_pack = a_copy + p.a_floats;
    float* const sums = b_pack + p.b_floats;
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t row = chunk / p.panel_chunks % p.row_chunks * p.rows, panel = chunk % p.panel_chunks * p.panels;
      const int64_t m = g.m - row < p.rows ? g.m - row : p.rows;
      const int64_t count = panels - panel < p.panels ? panels - panel : p.panels;
      const int64_t column = panel * kPanel, n = g.n - column < count * kPanel ? g.n - column : count * kPanel;
      int64_t a_batch = 0, b_batch = 0, c_batch = 0, left = chunk / (p.panel_chunks * p.row_chunks);
      for (int d = g.batch_rank - 1; d >= 0; --d) {
        const int64_t i = left % g.batch_shape[d];
        left /= g.batch_shape[d];
        a_batch += i * g.a_batch[d];
        b_batch += i * g.b_batch[d];
        c_batch += i * g.c_batch[d];
      }
      const char* a_base = g.a.data + a_batch * size_of(g.a.dtype);
      char* c_base = g.c.data + c_batch * size_of(g.c.dtype);
      const char* b_base = g.b ? g.b + (b_batch + column * g.b_n) * size_of(g.b_dtype) : nullptr;

      const int64_t ldc = p.separate_c ? p.panels * kPanel : g.c.rank ? g.c.strides[0] : 0;
      float* const c = p.separate_c ? sums : (float*)c_base + row * ldc + column;

      // At least one round, so that k == 0 gives zeros.
      for (int64_t k = 0; k == 0 || k < g.k; k += p.k_block) {
        const int64_t kc = g.k - k < p.k_block ? g.k - k : p.k_block;
        const float* a = (const float*)a_base + row * lda + k;
        if (p.copy_a) {
          for (int64_t i = 0; i < m; ++i) {
            const int64_t at = row_offset(g.a, row + i) + k * g.a.step;
            gather(a_copy + i * lda, g.a.dtype, a_base + at * size_of(g.a.dtype), g.a.step, kc);
          }
          a = a_copy;
        }
        for (int64_t q = 0; q < count;) {
          const int group = panels_for(rows_of(m), count - q);
          const int64_t width = n - q * kPanel < group * kPanel ? n - q * kPanel : group * kPanel;
          const float* b;
          int64_t b_k = kPanel, b_panel;
          if (g.packed) {
            b_panel = g.k * kPanel;
            b = g.packed + (panel + q) * b_panel + k * kPanel;
          } else if (in_place && width == group * kPanel) {
            b_panel = kPanel;
            b_k = g.b_k;
            b = (const float*)b_base + q * kPanel + k * g.b_k;
          } else {
            b_panel = kc * kPanel;
            b = b_pack;
            pack_panels(b_pack, g.b_dtype, b_base + (q * kPanel * g.b_n + k * g.b_k) * size_of(g.b_dtype), g.b_k, g.b_n, kc,
                        width);
          }
          Ahead next = {(uintptr_t)b, 0, b_panel * 4};
          if (g.packed) {
            const float* const after = q + group < count        ? b + group * b_panel
                                       : k + kc < g.k           ? b + kc * kPanel - q * b_panel
                                       : panel + count < panels ? g.packed + (panel + count) * b_panel
                                                                : nullptr;
            next = ahead_of(b, after, group, b_panel * 4, tiles_of(m));
          }
          for (int64_t i = 0; i < m;) {
            const int rows = rows_of(m - i);
            const Addends more = fused && k + kc >= g.k ? addends_of(g, row + i, column + q * kPanel) : Addends{};
            if (fetch_c && k == 0) fetch_sums(c + i * ldc + q * kPanel, ldc, rows, group);
            with_tile(rows, group, [&](auto r, auto at_once) {
              tile<DotFloat, decltype(r)::value, decltype(at_once)::value>(
                  kc, a + i * lda, lda, b, b_k, b_panel, c + i * ldc + q * kPanel, ldc, width, k == 0, more, next);
            });
            next.at += kc * next.step;
            i += rows;
          }
          q += group;
        }
        if (g.k == 0) break;
      }
      if (!fused) finish(g, row, m, column, n, c, ldc, c_base);
    }
  });
}

void pack_weight(const PackArgs& w) {
  parallel(panels_of(w.n), grain_for(w.k * kPanel), w.threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * kPanel, columns = w.n - first < kPanel ? w.n - first : kPanel;
      pack_panels(w.out + first * w.k, w.dtype, w.w + first * w.w_n * size_of(w.dtype), w.w_k, w.w_n, w.k, columns);
    }
  });
}

}  // namespace QKV_ISA
}  // namespace qkv
