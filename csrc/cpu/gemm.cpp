// matmul and linear: c (m, n) = act(a (m, k) b (k, n) + bias) * gate + residual.
//
// In the manner of BLIS: b in panels of 16 columns (packed once for weights, on the fly otherwise), a register tile of up to 8 x
// 48, k cut into blocks that keep a panel group in L2. a is read where it lies: broadcasts need no packing, only float32 rows;
// other dtypes and strides are converted per block. K blocks depend on k alone, so every element has one summation order.
#include "cpu/kernels.h"
#include "cpu/simd/math.h"
#include "cpu/tile.h"

namespace qkv {
namespace QKV_ISA {

static Vec activate(Activation op, Vec x) {
  switch (op) {
    case Activation::none:
      return x;
    case Activation::gelu:
      return gelu(x);
    case Activation::gelu_tanh:
      return gelu_tanh(x);
    case Activation::relu:
      return relu(x);
    case Activation::silu:
      return sigmoid_unit(x, 1.0f);
    case Activation::quick_gelu:
      return sigmoid_unit(x, 1.702f);
    case Activation::tanh:
      return tanh(x);
    case Activation::exp:
      return exp(x);
    case Activation::erf:
      return erf(x);
  }
  return x;
}

// A piece of a row of finished sums -> c[row, column .. column + n). `sum` may be that place.
static void finish(const GemmArgs& g, int64_t row, int64_t column, int64_t n, const float* sum, char* c) {
  float x[kTilePanels * kPanel], other[kTilePanels * kPanel];
  each(n, [&](int64_t i, auto count) {
    Vec v = load(sum + i, count);
    if (g.bias) v = add(v, load(g.bias + column + i, count));
    store(x + i, activate(g.activation, v), count);
  });
  const auto read = [&](const Rows& from) {
    gather(other, from.dtype, row_ptr(from, row) + column * from.step * size_of(from.dtype), from.step, n);
  };
  if (g.gate.data) {
    read(g.gate);
    each(n, [&](int64_t i, auto count) { store(x + i, mul(load(x + i, count), load(other + i, count)), count); });
  }
  if (g.residual.data) {
    read(g.residual);
    each(n, [&](int64_t i, auto count) { store(x + i, add(load(x + i, count), load(other + i, count)), count); });
  }
  scatter(g.c.dtype, c + column * size_of(g.c.dtype), 1, x, n);
}

void gemm(const GemmArgs& g) {
  const GemmPlan& p = g.plan;
  const bool plain = !g.bias && g.activation == Activation::none && !g.gate.data && !g.residual.data;
  const int64_t panels = panels_of(g.n), lda = p.copy_a ? p.k_block : g.a.rank ? g.a.strides[0] : 0;
  // Few rows do not repay packing: a row-major float b is read as it lies, except for its last, partial panel.
  const bool in_place = !g.packed && g.b_n == 1 && g.b_dtype == DType::f32 && g.m <= 2 * kTileRows;

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
        const bool last = k + kc == g.k;
        const float* a = (const float*)a_base + row * lda + k;
        if (p.copy_a) {
          for (int64_t i = 0; i < m; ++i) {
            const int64_t at = row_offset(g.a, row + i) + k * g.a.step;
            gather(a_copy + i * lda, g.a.dtype, a_base + at * size_of(g.a.dtype), g.a.step, kc);
          }
          a = a_copy;
        }
        for (int64_t q = 0; q < count;) {
          const int group = group_of(count - q);
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
          for (int64_t i = 0; i < m; i += kTileRows) {
            const int rows = (int)(m - i < kTileRows ? m - i : kTileRows);
            tile_group(group, rows, kc, a + i * lda, lda, b, b_k, b_panel, c + i * ldc + q * kPanel, ldc, width, k == 0);
            if (last && !(plain && !p.separate_c))
              for (int64_t r = i; r < i + rows; ++r)
                finish(g, row + r, column + q * kPanel, width, c + r * ldc + q * kPanel,
                       c_base + row_offset(g.c, row + r) * size_of(g.c.dtype));
          }
          q += group;
        }
        if (g.k == 0) break;
      }
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
