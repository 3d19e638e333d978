// linear over weights of bf16, int8 or int4: c = act(a w^T + bias) * gate + residual, in sums of float or 32-bit integers.
//
// Rows of a are rounded or quantised once per call, then tiles are as in gemm.cpp:
//
//   bf16           a rounded to bf16                                   c = sum a w
//   int8 by row    a = s (u - z), u in 0 ... 255, one s and z a row    c = s t sum (u - z) q, for w = t q
//   in groups      a = s u, u in -127 ... 127, one s a group           c = sum of s (t sum u q + o sum u), for w = t q + o
//
// int8 is stored as q + 128, so what is summed up is corrected by 128 sum u. qkv/reference.py has the roundings of s and u. A row
// that holds NaN or infinity has s = NaN.
#include "cpu/epilogue.h"
#include "cpu/kernels.h"
#include "cpu/quantize_rows.h"
#include "cpu/tile.h"

namespace qkv {
namespace QKV_ISA {

// What a chunk of c is made from.
struct Operands {
  const char *a, *b;          // first row, first panel
  int64_t lda, b_panel;       // bytes
  const RowStats* row_stats;  // of the first row
  const GroupStats* group_stats;
  int64_t stats_step;      // of rows, in bytes
  const float* row_scale;  // of the first panel's first column
  const int32_t* row_sum;
  const f16 *scale, *offset;  // of the first panel's first group
  int64_t groups;             // a panel has so many
  int64_t group;
};

// c [+]= one tile over k elements of the rows. kPer: so many stand in a row of a panel.
template <class D, int64_t kPer>
struct Bf16Tile {
  using Dot = D;
  static constexpr int64_t kPerRow = kPer;
  using OfUnpacked = Bf16Tile<Unpacked<D>, kPer / D::kParts>;
  template <int R, int P>
  QKV_INLINE void run(const Operands& o, int64_t k, float* c, int64_t ldc, int64_t columns, bool first, const Addends& more,
                      Ahead next) {
    tile<D, R, P>((k + kPerRow - 1) / kPerRow, (const float*)o.a, o.lda / 4, (const float*)o.b, kPanel, o.b_panel / 4, c, ldc,
                  columns, first, more, next);
  }
};

template <class D, int64_t kPer>
struct Int8Tile {
  using Dot = D;
  static constexpr int64_t kPerRow = kPer;
  using OfUnpacked = Int8Tile<Unpacked<D>, kPer / D::kParts>;
  template <int R, int P>
  QKV_INLINE void run(const Operands& o, int64_t k, float* c, int64_t ldc, int64_t columns, bool first, const Addends& more,
                      Ahead next) {
    constexpr int V = P * kVectors;
    IVec sum[R][V];
    clear<D>(sum);
    dot_sums<D>((k + kPerRow - 1) / kPerRow, o.a, o.lda, o.b, kPanelRowBytes, o.b_panel, sum, next);
    Vec out[R][V];
    QKV_UNROLL(8)
    for (int r = 0; r < R; ++r) {
      const RowStats& s = *(const RowStats*)((const char*)o.row_stats + r * o.stats_step);
      const IVec minus = iset(s.minus), shift = iset(s.shift);
      const Vec scale = set(s.scale);
      QKV_UNROLL(24)
      for (int v = 0; v < V; ++v) {
        IVec x = iadd(sum[r][v], minus);
        if (DotInt8::units == Units::i8x4) x = iadd(x, imul(shift, iload(o.row_sum + v * kLanes)));
        out[r][v] = mul(mul(to_float(x), scale), load(o.row_scale + v * kLanes, Full{}));
      }
    }
    store_sums(out, c, ldc, columns, first, more);
  }
};

// Two sums for each element, of its group and of all groups, take twice the registers: tiles go in halves. On AVX2 that lost 3 to
// 5 % with 16 rows; on AVX-512 int4 gained 8 to 22 %.
constexpr int kHalfRows = kLanes == 16 ? kMostRows / 2 : kMostRows;

template <class D, int64_t kPer, bool kOffset>
struct GroupTile {
  using Dot = D;
  static constexpr int64_t kPerRow = kPer;
  static constexpr int64_t kAtOnce = D::kInAcc;  // elements of a row that Acc takes; 0: any number
  using OfUnpacked = GroupTile<Unpacked<D>, kPer / D::kParts, kOffset>;
  template <int R, int P>
  QKV_INLINE void run(const Operands& o, int64_t k, float* c, int64_t ldc, int64_t columns, bool first, const Addends& more,
                      Ahead next) {
    if constexpr (R > kHalfRows) {
      constexpr int kTop = (R + 1) / 2;
      const int64_t half = next.step / 2, steps_of_all = k / kPerRow;
      run<kTop, P>(o, k, c, ldc, columns, first, more, {next.at, half, next.panel});
      Operands rest = o;
      rest.a += kTop * o.lda;
      rest.group_stats = (const GroupStats*)((const char*)o.group_stats + kTop * o.stats_step);
      const Ahead after = {next.at + steps_of_all * half, half, next.panel};
      run<R - kTop, P>(rest, k, c + kTop * ldc, ldc, columns, first, more.from_row(kTop), after);
    } else {
      sums_of_groups<R, P>(o, k, c, ldc, columns, first, more, next);
    }
  }

  template <int R, int P>
  QKV_INLINE void sums_of_groups(const Operands& o, int64_t k, float* c, int64_t ldc, int64_t columns, bool first,
                                 const Addends& more, Ahead next) {
    constexpr int V = P * kVectors;
    Vec out[R][V];
    clear<DotFloat>(out);
    const int64_t steps = o.group / kPerRow, groups = k / o.group;
    const char *a = o.a, *b = o.b;
    for (int64_t g = 0; g < groups; ++g) {
      IVec total[R][V];
      clear<DotInt8>(total);
      if constexpr (kAtOnce == 0) {
        dot_sums<D>(steps, a, o.lda, b, kPanelRowBytes, o.b_panel, total, next);
      } else {
        constexpr int64_t kRows = kAtOnce / kPerRow;
        for (int64_t at = 0; at < steps; at += kRows) {
          IVec sum[R][V];
          clear<D>(sum);
          dot_sums<D>(kRows, a + at * D::kParts * 4, o.lda, b + at * kPanelRowBytes, kPanelRowBytes, o.b_panel, sum, next);
          QKV_UNROLL(8)
          for (int r = 0; r < R; ++r) {
            QKV_UNROLL(24)
            for (int v = 0; v < V; ++v) total[r][v] = iadd(total[r][v], D::widen(sum[r][v]));
          }
        }
      }
      a += steps * D::kParts * 4;
      b += steps * kPanelRowBytes;
      if (R == 1 && g % 2 == 0) {  // a line holds two groups; and of the next panels, see Ahead
        QKV_UNROLL(8)
        for (int p = 0; p < P; ++p) {
          const uintptr_t at = (uintptr_t)(((P + p) * o.groups + g) * kPanel) * sizeof(f16);
          __builtin_prefetch((const void*)((uintptr_t)o.scale + at), 0, 2);
          if (kOffset) __builtin_prefetch((const void*)((uintptr_t)o.offset + at), 0, 2);
        }
      }
      QKV_UNROLL(24)
      for (int v = 0; v < V; ++v) {
        const int64_t at = ((v / kVectors) * o.groups + g) * kPanel + (v % kVectors) * kLanes;
        const Vec scale = load(o.scale + at, Full{}), offset = kOffset ? load(o.offset + at, Full{}) : zero();
        QKV_UNROLL(8)
        for (int r = 0; r < R; ++r) {
          const GroupStats& s = ((const GroupStats*)((const char*)o.group_stats + r * o.stats_step))[g];
          const IVec t = kOffset ? total[r][v] : iadd(total[r][v], iset(s.minus));
          out[r][v] = fma(mul(to_float(t), set(s.scale)), scale, out[r][v]);  // two small scales might make a zero
          if (kOffset) out[r][v] = fma(offset, set(s.sum), out[r][v]);
        }
      }
    }
    store_sums(out, c, ldc, columns, first, more);
  }
};

// Unpacks `rows` rows of so many panels, b_panel bytes apart, to `to`, one panel after the other.
template <class Tile>
static void unpack(const char* b, int64_t b_panel, int64_t rows, int panels, char* to) {
  using Dot = typename Tile::Dot;
  for (int panel = 0; panel < panels; ++panel)
    for (int64_t k = 0; k < rows; ++k)
      for (int part = 0; part < Dot::kParts; ++part) {
        QKV_UNROLL(4)
        for (int v = 0; v < kVectors; ++v)
          store_weight(to + v * kLanes * 4, Dot::weight(b + panel * b_panel + k * kPanelRowBytes + v * kLanes * 4, part));
        to += kPanelRowBytes;
      }
}

static constexpr bool tiles_are_tall(int64_t least) {
  for (int64_t m = least; m <= 16 * kMostRows; ++m)
    if (m / tiles_of(m) < kLeastRows) return false;
  return true;
}
static_assert(tiles_are_tall(unpack_rows(WeightType::bf16)) && tiles_are_tall(unpack_rows(WeightType::int8)),
              "with_tile leaves out tiles of fewer rows");

// The bytes of a group of panels up to which the next one is fetched for a single row too: 1536x576 and 3072x768 of int8 took
// 0.87 to 0.92 of the time, 4096x4096 1.1. int4 gains with any (1536x576 0.74, 4096x4096 0.92).
constexpr int64_t kFarPanels = 64 << 10;

template <class Tile>
static void product(const QuantizedGemmArgs& g, const Operands& all, int64_t bytes_per_k) {
  const QuantizedGemmPlan& p = g.plan;
  const bool fused = !p.separate_c && only_adds(g);
  const bool fetch_c = !p.separate_c && g.m * g.w.n > kFarSums;
  const int64_t panels = panels_of(g.w.n), k_all = padded_k(g.w);
  parallel(p.row_chunks * p.panel_chunks, p.grain, g.threads, [&](int64_t begin, int64_t end, int thread) {
    float* const sums = (float*)(g.scratch + thread * p.scratch_bytes) + round_up(g.w.k, 16);
    char* const weights = (char*)(sums + p.sum_floats);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t row = chunk / p.panel_chunks * p.rows, panel = chunk % p.panel_chunks * p.panels;
      const int64_t m = g.m - row < p.rows ? g.m - row : p.rows;
      const int64_t count = panels - panel < p.panels ? panels - panel : p.panels;
      const int64_t column = panel * kPanel, n = g.w.n - column < count * kPanel ? g.w.n - column : count * kPanel;
      const int64_t ldc = p.separate_c ? p.panels * kPanel : g.c.rank ? g.c.strides[0] : 0;
      float* const c = p.separate_c ? sums : (float*)g.c.data + row * ldc + column;
      // Words of several parts are taken apart once for many rows: in each tile anew they cost registers that AVX2 lacks.
      const bool unpacked = Tile::Dot::kParts > 1 && m >= unpack_rows(g.w.type);
      for (int64_t k = 0; k == 0 || k < k_all; k += p.k_block) {
        const int64_t kc = k_all - k < p.k_block ? k_all - k : p.k_block;
        const int64_t panel_rows = (kc + Tile::kPerRow - 1) / Tile::kPerRow, first_group = all.group ? k / all.group : 0;
        for (int64_t q = 0; q < count;) {
          const int group = panels_for(rows_of(m), count - q);
          Operands from = all;
          from.b += (panel + q) * all.b_panel + k / Tile::kPerRow * kPanelRowBytes;
          if (all.row_scale) {
            from.row_scale += column + q * kPanel;
            from.row_sum += column + q * kPanel;
          }
          if (all.scale) from.scale += ((panel + q) * all.groups + first_group) * kPanel;
          if (all.offset) from.offset += ((panel + q) * all.groups + first_group) * kPanel;
          const char* const packed = from.b;
          if (unpacked) {
            unpack<Tile>(from.b, all.b_panel, panel_rows, group, weights);
            from.b = weights;
            from.b_panel = panel_rows * Tile::Dot::kParts * kPanelRowBytes;
          }
          const int64_t steps = panel_rows * (unpacked ? Tile::Dot::kParts : 1);  // of each tile
          // At the border of chunks too: without it 32 rows took 1.12 to 1.22 of the time (512x1536 to 512x58101, int8).
          const char* const after = q + group < count        ? packed + group * all.b_panel
                                    : k + kc < k_all         ? packed + panel_rows * kPanelRowBytes - q * all.b_panel
                                    : panel + count < panels ? all.b + (panel + count) * all.b_panel
                                                             : nullptr;
          const bool row_too = all.offset || group * all.b_panel <= kFarPanels;
          Ahead next = ahead_of(packed, after, group, all.b_panel, tiles_of(m) * (unpacked ? Tile::Dot::kParts : 1), row_too);
          for (int64_t i = 0; i < m;) {
            const int rows = rows_of(m - i);
            Operands o = from;
            o.a += (row + i) * all.lda + k * bytes_per_k;
            const int64_t stats = (row + i) * all.stats_step;
            o.row_stats = (const RowStats*)((const char*)all.row_stats + stats);
            o.group_stats = (const GroupStats*)((const char*)all.group_stats + stats) + first_group;
            float* const to = c + i * ldc + q * kPanel;
            const Addends more = fused && k + kc >= k_all ? addends_of(g, row + i, column + q * kPanel) : Addends{};
            if (fetch_c && k == 0) fetch_sums(to, ldc, rows, group);
            const auto run = [&](auto tile, auto least) {
              using Of = decltype(tile);
              with_tile<decltype(least)::value>(rows, group, [&](auto r, auto at_once) {
                Of::template run<decltype(r)::value, decltype(at_once)::value>(o, kc, to, ldc, n - q * kPanel, k == 0, more,
                                                                               next);
              });
            };
            if constexpr (Tile::Dot::kParts > 1) {
              if (unpacked)
                run(typename Tile::OfUnpacked{}, Int<kLeastRows>{});
              else
                run(Tile{}, Int<1>{});
            } else {
              run(Tile{}, Int<1>{});
            }
            next.at += steps * next.step;
            i += rows;
          }
          q += group;
        }
        if (k_all == 0) break;
      }
      if (!fused) finish(g, row, m, column, n, c, ldc, g.c.data);
    }
  });
}

void gemm_quantized(const QuantizedGemmArgs& g) {
  const QuantizedGemmPlan& p = g.plan;
  const PackedView& w = g.w;
  char* const stats = g.rows + g.m * p.row_bytes;
  const int64_t bytes_per_k = w.type == WeightType::bf16   ? 4 / DotBf16::kWidth
                              : w.type == WeightType::int8 ? unit_bytes(DotInt8::units)
                                                           : unit_bytes(DotInt4::units);
  const int64_t lda = round_up((padded_k(w) + kPanel) * bytes_per_k, 64) + 64;  // at most p.row_bytes
  const int64_t rows = g.stage == Stage::product ? 0 : g.m;
  parallel(rows, grain_for(w.k * 4), g.threads, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t r = begin; r < end; ++r) {
      const float* x = read_row(g.a, r, (float*)(g.scratch + thread * p.scratch_bytes));
      char* const to = g.rows + r * lda;
      char* const about = stats + r * p.stats_bytes;
      if (w.type == WeightType::bf16)
        round_row(x, w.k, to);
      else if (!w.group)
        quantize_row(x, w.k, to, (RowStats*)about);
      else if (w.type == WeightType::int8)
        quantize_groups<DotInt8, false>(x, w.k, w.group, to, (GroupStats*)about);
      else
        quantize_groups<DotInt4, true>(x, w.k, w.group, to, (GroupStats*)about);
    }
  });
  if (g.stage == Stage::rows) return;
  const Operands all = {g.rows,
                        w.panels,
                        lda,
                        panel_rows(w) * kPanelRowBytes,
                        (const RowStats*)stats,
                        (const GroupStats*)stats,
                        p.stats_bytes,
                        w.row_scale,
                        w.row_sum,
                        w.scale,
                        w.offset,
                        groups_of(w),
                        w.group};
  if (w.type == WeightType::bf16) return product<Bf16Tile<DotBf16, 2>>(g, all, bytes_per_k);
  if (!w.group) return product<Int8Tile<DotInt8, 4>>(g, all, bytes_per_k);
  if (w.type == WeightType::int8) return product<GroupTile<DotInt8, 4, false>>(g, all, bytes_per_k);
  product<GroupTile<DotInt4, 8, true>>(g, all, bytes_per_k);
}

}  // namespace QKV_ISA
}  // namespace qkv
