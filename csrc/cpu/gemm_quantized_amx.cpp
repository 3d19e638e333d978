// gemm_quantized in tiles of AMX.
//
// bf16 and int8 by row: sums of 32 x 32, four tiles, stay in registers over all of k, beside two tiles of rows and two of panels;
// up to 16 rows take 16 x 64. They go through a small buffer, as vectors, to c. Sixteen cycles a product of tiles and eight a
// load: with panels in the second cache it runs at 95 % of the products alone (Sapphire Rapids). Few rows of bytes go to
// gemm_quantized.cpp, whose integers are the same.
//
// In groups: a product of tiles for each group, whose integers become floats while the next is under way, four operations on
// vectors for each row of 16. The same sums in the same order as in gemm_quantized.cpp, which a few rows take.
#include "cpu/epilogue.h"
#include "cpu/kernels.h"
#include "cpu/quantize_rows.h"
#include "cpu/simd/amx.h"

namespace qkv {
namespace QKV_BASE_ISA {
void gemm_quantized(const QuantizedGemmArgs&);
}

namespace QKV_ISA {

constexpr int kMostTiles = 4;  // of sums

// Lines of the panels that are needed next, of which each step asks for some: memory is busy while tiles multiply. Few rows leave
// it to the hardware, whose buffers that would take: 0.9 to 0.97 of the time (int8 of up to 32 rows, from the last cache and from
// memory; bf16 of up to 16).
struct Lines {
  uintptr_t at, end;
  int64_t step;  // bytes
  QKV_MEMBER void fetch() {
    for (const uintptr_t to = at + step; at < to && at < end; at += kTileRowBytes) __builtin_prefetch((const void*)at, 0, 2);
  }
};

// C tiles 0 .. 3, row by row; with two rows of tiles a in 4 and 5, b in 6 and 7; with one a in 4, b in 5 .. 7 in turn.
// kPast: rows are loaded past the first cache, so that it keeps the panels: both together ask more of the second cache than it
// gives, 48 bytes a cycle (1.15 times the speed). Up to 32 rows, and the last 16 of an odd number of tiles, stay in the first.
// All loads of a step come before its products then: 0.96 to 0.98 of the time, less with a busy neighbour on the core; but panels
// that few rows read come from farther away, and the first product need not wait for all (1.02 to 1.08).
// meanwhile(): what vectors do in each step.
template <bool kBf16, int R, int P, bool kPast, class Meanwhile>
QKV_INLINE void multiply_tiles(int64_t steps, const char* a0, const char* a1, int64_t lda, const char* b, int64_t b_panel,
                               const char* tail, float* sums, Lines& next, Meanwhile&& meanwhile) {
  static_assert(R * P <= kMostTiles && (R == 1 || P <= 2), "");
#define QKV_TILE(r, p)                                             \
  if constexpr (kBf16)                                             \
    multiply_bf16<r * P + p, 4 + r, R == 2 ? 6 + p : 5 + p % 3>(); \
  else                                                             \
    multiply_int8<r * P + p, 4 + r, R == 2 ? 6 + p : 5 + p % 3>();
  clear_tile<0>();
  if constexpr (R * P > 1) clear_tile<1>();
  if constexpr (R * P > 2) clear_tile<2>();
  if constexpr (R * P > 3) clear_tile<3>();
  for (int64_t s = 0; s < steps; ++s) {
    if (tail && s == steps - 1) b = tail, b_panel = kTileBytes;
    if constexpr (kPast) {
      static_assert(R == 2, "");
      stream_tile<4>(a0, lda);
      load_tile<6>(b, kTileRowBytes);
      if constexpr (P > 1) load_tile<7>(b + b_panel, kTileRowBytes);
      stream_tile<5>(a1, lda);
      next.fetch();
      QKV_TILE(0, 0)
      if constexpr (P > 1) {
        QKV_TILE(0, 1)
      }
      QKV_TILE(1, 0)
      if constexpr (P > 1) {
        QKV_TILE(1, 1)
      }
    } else {
      next.fetch();
      load_tile<4>(a0, lda);
      load_tile<R == 2 ? 6 : 5>(b, kTileRowBytes);
      QKV_TILE(0, 0)
      if constexpr (P > 1) {
        load_tile<R == 2 ? 7 : 6>(b + b_panel, kTileRowBytes);
        QKV_TILE(0, 1)
      }
      if constexpr (R == 2) {
        load_tile<5>(a1, lda);
        QKV_TILE(1, 0)
        if constexpr (P > 1) {
          QKV_TILE(1, 1)
        }
      }
      if constexpr (P > 2) {
        load_tile<7>(b + 2 * b_panel, kTileRowBytes);
        QKV_TILE(0, 2)
      }
      if constexpr (P > 3) {
        load_tile<5>(b + 3 * b_panel, kTileRowBytes);
        QKV_TILE(0, 3)
      }
    }
    a0 += kTileRowBytes;
    a1 += kTileRowBytes;
    b += kTileBytes;
    meanwhile();
  }
#undef QKV_TILE
  constexpr int64_t kRow = P * kTileRowBytes;
  store_tile<0>(sums, kRow);
  if constexpr (P > 1) store_tile<1>(sums + kPanel, kRow);
  if constexpr (P > 2) store_tile<2>(sums + 2 * kPanel, kRow);
  if constexpr (P > 3) store_tile<3>(sums + 3 * kPanel, kRow);
  if constexpr (R == 2) {
    store_tile<P>(sums + kTileRows * P * kPanel, kRow);
    if constexpr (P > 1) store_tile<P + 1>(sums + kTileRows * P * kPanel + kPanel, kRow);
  }
}

struct TileOperands {
  const char *a, *b;  // all rows, all panels
  int64_t lda, b_panel, steps;
  const RowStats* stats;
  int64_t stats_step;
};

// Whether c, and what is added to it, are rows of floats, so that sums go there as they are scaled, an activation on their way.
static bool plain_rows(const QuantizedGemmArgs& g) {
  return g.c.dtype == DType::f32 && g.c.rank <= 1 && !g.gate.data && plain_residual(g);
}

// Rows of c, from `row` on, from sums (rows, P panels) of the columns from `column` on, of which c has n; the sums are
// overwritten. Not inlined: the loops of tiles, of which it is a part, keep what they count in registers.
template <bool kBf16, int P>
__attribute__((noinline)) static void finish_sums(const QuantizedGemmArgs& g, const TileOperands& o, bool plain, int64_t row,
                                                  int64_t rows, int64_t column, int64_t n, float* sums) {
  Vec scale[P];
  IVec total[P];
  QKV_UNROLL(4)
  for (int p = 0; p < P && !kBf16; ++p) {
    scale[p] = load(g.w.row_scale + column + p * kPanel, Full{});
    total[p] = iload(g.w.row_sum + column + p * kPanel);
  }
  const char* s = (const char*)o.stats + row * o.stats_step;
  const auto scaled = [&](const float* from, int p) QKV_ALWAYS {
    if constexpr (kBf16) {
      return load(from + p * kPanel, Full{});
    } else {
      const RowStats& r = *(const RowStats*)s;
      const IVec sum = iadd(iadd(iload(from + p * kPanel), iset(r.minus)), imul(iset(r.shift), total[p]));
      return mul(mul(to_float(sum), set(r.scale)), scale[p]);
    }
  };
  if (!plain || n != P * kPanel) {
    for (int64_t r = 0; r < rows && !kBf16; ++r, s += o.stats_step) {
      QKV_UNROLL(4)
      for (int p = 0; p < P; ++p) store(sums + (r * P + p) * kPanel, scaled(sums + r * P * kPanel, p), Full{});
    }
    return finish(g, row, rows, column, n, sums, P * kPanel, g.c.data);
  }
  const Addends more = addends_of(g, row, column);
  const int64_t ldc = g.c.rank ? g.c.strides[0] : 0;
  with_activation(g.activation, [&](auto f) QKV_ALWAYS {
    float* c = (float*)g.c.data + row * ldc + column;
    const float* residual = more.residual;
    for (int64_t r = 0; r < rows; ++r, sums += P * kPanel, s += o.stats_step, c += ldc) {
      QKV_UNROLL(4)
      for (int p = 0; p < P; ++p) {
        Vec x = scaled(sums, p);
        if (more.bias) x = add(x, load(more.bias + p * kPanel, Full{}));
        x = f(x);
        if (residual) x = add(x, load(residual + p * kPanel, Full{}));
        store(c + p * kPanel, x, Full{});
      }
      if (residual) residual += more.ldr;
    }
  });
}

// Sums on their way to c: those of a product of tiles are written while the next one is made, some rows in each step. (What the
// vectors do would else wait for the last tile, and the next tiles for the vectors.)
template <bool kBf16, int P>
struct Unwritten {
  const QuantizedGemmArgs& g;
  const TileOperands& o;
  bool plain;
  alignas(64) float sums[2][kMostTiles * kTileBytes / 4];  // these, and those that are made
  int made = 0;
  int64_t row[2], column, n;     // of each row of tiles the first row; of c
  int rows = 0, done = 0, each;  // rows of both; of those the written ones; and how many in a step

  Unwritten(const QuantizedGemmArgs& args, const TileOperands& operands, bool plain_c) : g(args), o(operands), plain(plain_c) {}
  QKV_MEMBER void write(int end) {
    if (end > rows) end = rows;
    while (done < end) {
      const int tile = done / kTileRows, first = done % kTileRows, left = end - done, most = kTileRows - first;
      const int count = left < most ? left : most;
      finish_sums<kBf16, P>(g, o, plain, row[tile] + first, count, column, n, sums[1 - made] + done * P * kPanel);
      done += count;
    }
  }
  QKV_MEMBER void begin() { each = (int)((rows + o.steps - 1) / (o.steps > 0 ? o.steps : 1)); }
  QKV_MEMBER void some() { write(done + each); }
  void all() { write(rows); }
  // What was made is what is to be written.
  QKV_MEMBER void hand_over(int64_t row0, int64_t row1, int64_t count, int64_t panel) {
    all();
    made = 1 - made;
    row[0] = row0;
    row[1] = row1;
    rows = (int)count;
    done = 0;
    column = panel * kPanel;
    n = g.w.n - column < P * kPanel ? g.w.n - column : P * kPanel;
  }
};

template <bool kBf16, int R, int P, bool kPast>
QKV_INLINE void rows_of_tiles(Unwritten<kBf16, P>& u, int64_t row0, int64_t row1, int64_t rows, int64_t panel, const char* tail,
                              Lines& next) {
  const TileOperands& o = u.o;
  u.begin();
  multiply_tiles<kBf16, R, P, kPast>(o.steps, o.a + row0 * o.lda, o.a + row1 * o.lda, o.lda, o.b + panel * o.b_panel, o.b_panel,
                                     tail, u.sums[u.made], next, [&]() QKV_ALWAYS { u.some(); });
  u.hand_over(row0, row1, rows, panel);
}

// m rows of c, from `row` on, of P panels. Where 16 does not divide m > 16, the last tile takes rows again.
template <bool kBf16, int P>
static void rows_of_panels(Unwritten<kBf16, P>& u, int64_t row, int64_t m, int64_t panel, const char* tail, Lines& next) {
  if constexpr (P <= 2) {
    const int64_t last = row + m - kTileRows;
    if (m > kTileRows && m <= 2 * kTileRows)
      return rows_of_tiles<kBf16, 2, P, false>(u, row, last, 2 * kTileRows, panel, tail, next);
    int64_t i = row;
    for (; i < last; i += 2 * kTileRows) {
      const int64_t second = i + kTileRows < last ? i + kTileRows : last;
      rows_of_tiles<kBf16, 2, P, true>(u, i, second, 2 * kTileRows, panel, tail, next);
    }
    if (m > kTileRows) {
      if (i < row + m) rows_of_tiles<kBf16, 1, P, false>(u, last, last, kTileRows, panel, tail, next);
      return;
    }
  }
  rows_of_tiles<kBf16, 1, P, false>(u, row, row, m, panel, tail, next);
}

// How c is cut up: into chunks of all rows if their a stays in the second cache, so that panels, which come from farther away,
// are read once. (The plan's chunks are nearer to squares.) But each thread keeps to its share of the rows where that all of them
// read all panels costs less than what they would fetch of one another's c.
struct Chunks {
  int64_t rows, panels, row_chunks, panel_chunks;
  Chunks(int64_t m, int64_t all_panels, int64_t lda, int threads) {
    constexpr int64_t kNear = 768 << 10;  // bytes of a
    constexpr int64_t kLeast = 32 << 10;  // of panels, which few rows read at the speed of memory: below it loops cost more
    constexpr int64_t kUnit = 2 * kTileRows;
    const int64_t wanted = 8 * threads;
    const int64_t fit = kNear / lda / kUnit * kUnit, most = fit > kUnit ? fit : kUnit;
    int64_t least_chunks = (m + most - 1) / most;
    if (least_chunks < threads && m >= 2 * kUnit * threads && 8 * m >= lda * threads) least_chunks = threads;
    rows = least_chunks > 0 ? round_up((m + least_chunks - 1) / least_chunks, kUnit) : kUnit;
    panels = kChunkPanels;
    int64_t least = m <= kUnit ? round_up(kLeast / (lda * kPanel), 2) : 2;
    if (least < 2) least = 2;
    const auto count = [&] {
      row_chunks = (m + rows - 1) / rows;
      panel_chunks = (all_panels + panels - 1) / panels;
      return row_chunks * panel_chunks;
    };
    while (count() < wanted && panels > least) panels = panels - 4 > least ? panels - 4 : least;
    while (count() < wanted && rows > kUnit) rows = round_up(rows / 2, kUnit);
  }
};

// m rows of c, from `row` on, of `count` panels from `first` on, P at a time.
template <bool kBf16, int P>
static void rows_and_panels(const QuantizedGemmArgs& g, const TileOperands& o, bool plain, int64_t row, int64_t m, int64_t first,
                            int64_t count) {
  const int64_t panels = panels_of(g.w.n), rest = panel_rows(g.w) % kTileRows;
  const int64_t tiles = (m + 2 * kTileRows - 1) / (2 * kTileRows);
  const bool fetching = m > (kBf16 ? 1 : 2) * kTileRows;
  Unwritten<kBf16, P> u(g, o, plain);
  for (int64_t panel = first; panel < first + count; panel += P) {
    alignas(64) char last[P * kTileBytes];
    if (rest != 0)
      for (int i = 0; i < P; ++i) {
        char* const to = last + i * kTileBytes;
        memcpy(to, o.b + (panel + i) * o.b_panel + (o.steps - 1) * kTileBytes, (size_t)(rest * kTileRowBytes));
        memset(to + rest * kTileRowBytes, 0, (size_t)(kTileBytes - rest * kTileRowBytes));
      }
    const int64_t after = panel + P;
    Lines next = {(uintptr_t)o.b + after * o.b_panel, (uintptr_t)o.b + (after + P < panels ? after + P : panels) * o.b_panel,
                  fetching ? round_up(P * kTileBytes / tiles, kTileRowBytes) : 0};
    rows_of_panels<kBf16, P>(u, row, m, panel, rest != 0 ? last : nullptr, next);
  }
  u.all();
}

template <bool kBf16>
static void product(const QuantizedGemmArgs& g, const TileOperands& o) {
  const Chunks p(g.m, panels_of(g.w.n), o.lda, g.threads);
  const bool plain = plain_rows(g);
  const int64_t panels = panels_of(g.w.n);
  parallel(p.row_chunks * p.panel_chunks, 1, g.threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t row = chunk / p.panel_chunks * p.rows, panel = chunk % p.panel_chunks * p.panels;
      const int64_t m = g.m - row < p.rows ? g.m - row : p.rows;
      const int64_t count = panels - panel < p.panels ? panels - panel : p.panels;
      shape_tiles(m < kTileRows ? (int)m : kTileRows);
      const int64_t whole = m > kTileRows ? count / 2 * 2 : count / kMostTiles * kMostTiles;
      if (m > kTileRows)
        rows_and_panels<kBf16, 2>(g, o, plain, row, m, panel, whole);
      else
        rows_and_panels<kBf16, kMostTiles>(g, o, plain, row, m, panel, whole);
      if (count - whole == 1) rows_and_panels<kBf16, 1>(g, o, plain, row, m, panel + whole, 1);
      if (count - whole == 2) rows_and_panels<kBf16, 2>(g, o, plain, row, m, panel + whole, 2);
      if (count - whole == 3) rows_and_panels<kBf16, 3>(g, o, plain, row, m, panel + whole, 3);
    }
    leave_tiles();
  });
}

// GroupStats of one group of 16 rows.
struct GroupsOfRows {
  float scale[kTileRows];
  union {
    int32_t minus[kTileRows];
    float sum[kTileRows];
  };
};

// sums (16, 16), rows `ld` apart: 16 rows of a and a panel, whose rows of four elements of k lie at `weights`.
template <bool kInt4>
static void sum_groups(const QuantizedGemmArgs& g, const char* a, int64_t lda, const GroupsOfRows* rows, const char* weights,
                       int64_t panel, float* sums, int64_t ld) {
  const int64_t groups = groups_of(g.w), group = g.w.group, depth = group < kTileRowBytes ? group : kTileRowBytes;
  const f16* const scales = g.w.scale + panel * groups * kPanel;
  const f16* const offsets = kInt4 ? g.w.offset + panel * groups * kPanel : nullptr;
  alignas(64) int32_t products[2][kTileRows * kPanel];
  Vec out[kTileRows];
  QKV_UNROLL(16)
  for (int r = 0; r < kTileRows; ++r) out[r] = zero();
  const auto add = [&](int64_t i) QKV_ALWAYS {
    const int32_t* const product = products[i % 2];
    const Vec scale = load(scales + i * kPanel, Full{}), offset = kInt4 ? load(offsets + i * kPanel, Full{}) : zero();
    QKV_UNROLL(16)
    for (int r = 0; r < kTileRows; ++r) {
      IVec x = iload(product + r * kPanel);
      if constexpr (!kInt4) x = iadd(x, iset(rows[i].minus[r]));
      out[r] = fma(mul(to_float(x), set(rows[i].scale[r])), scale, out[r]);
      if constexpr (kInt4) out[r] = fma(offset, set(rows[i].sum[r]), out[r]);
    }
  };
  for (int64_t i = 0; i < groups; ++i) {
    clear_tile<0>();
    for (int64_t k = 0; k < group; k += depth) {
      load_tile<4>(a + i * group + k, lda);
      load_tile<5>(weights + (i * group + k) * kPanel, kTileRowBytes);
      multiply_int8<0, 4, 5>();
    }
    store_tile<0>(products[i % 2], kTileRowBytes);
    if (i > 0) add(i - 1);
  }
  if (groups > 0) add(groups - 1);
  QKV_UNROLL(16)
  for (int r = 0; r < kTileRows; ++r) store(sums + r * ld, out[r], Full{});
}

template <bool kInt4>
static void product_of_groups(const QuantizedGemmArgs& g, const TileOperands& o, const GroupsOfRows* about) {
  constexpr int kMost = 2;  // panels
  const bool plain = plain_rows(g);
  const int64_t panels = panels_of(g.w.n), groups = groups_of(g.w), bytes = padded_k(g.w) * kPanel;
  const int64_t depth = g.w.group < kTileRowBytes ? g.w.group : kTileRowBytes;
  const Chunks p(g.m, panels, o.lda, g.threads);
  parallel(p.row_chunks * p.panel_chunks, 1, g.threads, [&](int64_t begin, int64_t end, int thread) {
    char* const unpacked = g.scratch + thread * g.plan.scratch_bytes + (round_up(g.w.k, 16) + g.plan.sum_floats) * 4;
    shape_tiles(kTileRows, (int)depth);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const int64_t row = chunk / p.panel_chunks * p.rows, panel = chunk % p.panel_chunks * p.panels;
      const int64_t last = g.m < row + p.rows ? g.m : row + p.rows;
      const int64_t count = panels - panel < p.panels ? panels - panel : p.panels;
      for (int64_t q = panel; q < panel + count; q += kMost) {
        const int64_t n = panel + count - q < kMost ? panel + count - q : kMost, columns = n * kPanel;
        for (int64_t i = 0; kInt4 && i < n; ++i) {
          const char* from = o.b + (q + i) * o.b_panel;
          char* to = unpacked + i * bytes;
          for (; from < o.b + (q + i + 1) * o.b_panel; from += kPanelRowBytes)
            for (int part = 0; part < 2; ++part, to += kPanelRowBytes) store_weight(to, DotInt4::weight(from, part));
        }
        for (int64_t r = row; r < last; r += kTileRows) {
          alignas(64) float sums[kTileRows * kMost * kPanel];
          for (int64_t i = 0; i < n; ++i)
            sum_groups<kInt4>(g, o.a + r * o.lda, o.lda, about + r / kTileRows * groups,
                              kInt4 ? unpacked + i * bytes : o.b + (q + i) * o.b_panel, q + i, sums + i * kPanel, columns);
          const int64_t rows = last - r < kTileRows ? last - r : kTileRows, column = q * kPanel;
          const int64_t width = g.w.n - column < columns ? g.w.n - column : columns;
          if (n == 1)
            finish_sums<true, 1>(g, o, plain, r, rows, column, width, sums);
          else
            finish_sums<true, 2>(g, o, plain, r, rows, column, width, sums);
        }
      }
    }
    leave_tiles();
  });
}

// Rows of a in groups of int8; the last of them need not be 16, then what stands in their place is of no use. Rows and what is
// known of them are in shared scratch (rows_of_tiles in plan.cpp).
static void gemm_in_groups(const QuantizedGemmArgs& g) {
  const PackedView& w = g.w;
  const QuantizedGemmPlan& p = g.plan;
  const bool int4 = w.type == WeightType::int4;
  const int64_t groups = groups_of(w), lda = round_up(padded_k(w), 64) + 64;
  GroupsOfRows* const about = (GroupsOfRows*)(g.rows + round_up(g.m, kTileRows) * lda);
  const int64_t m = g.stage == Stage::product ? 0 : g.m;
  parallel(m, grain_for(w.k * 4), g.threads, [&](int64_t begin, int64_t end, int thread) {
    float* const own = (float*)(g.scratch + thread * p.scratch_bytes);
    GroupStats* const stats = (GroupStats*)(own + round_up(w.k, 16) + p.sum_floats);
    for (int64_t r = begin; r < end; ++r) {
      const float* x = read_row(g.a, r, own);
      if (int4)
        quantize_groups<DotInt4, true>(x, w.k, w.group, g.rows + r * lda, stats);
      else
        quantize_groups<DotInt8, false>(x, w.k, w.group, g.rows + r * lda, stats);
      GroupsOfRows* const to = about + r / kTileRows * groups;
      for (int64_t i = 0; i < groups; ++i) {
        to[i].scale[r % kTileRows] = stats[i].scale;
        to[i].minus[r % kTileRows] = stats[i].minus;  // or sum: the same bits
      }
    }
  });
  if (g.stage == Stage::rows) return;
  const TileOperands all = {g.rows, w.panels, lda, panel_rows(w) * kPanelRowBytes, 0, nullptr, 0};
  if (int4)
    product_of_groups<true>(g, all, about);
  else
    product_of_groups<false>(g, all, about);
}

void gemm_quantized(const QuantizedGemmArgs& g) {
  const PackedView& w = g.w;
  // The same bits. Eight rows of bytes are no slower by dot products, and up to 0.8 of the time where another thread of the core
  // keeps its tiles busy, or rows are fewer.
  constexpr int64_t kFewRows = 8;
  const bool few = w.group ? g.m < unpack_rows(w.type) : w.type == WeightType::int8 && g.m <= kFewRows;
  if (few) return QKV_BASE_ISA::gemm_quantized(g);
  if (w.group) return gemm_in_groups(g);
  const QuantizedGemmPlan& p = g.plan;
  const bool bf16 = w.type == WeightType::bf16;
  char* const stats = g.rows + g.m * p.row_bytes;
  const int64_t used = padded_k(w) * (bf16 ? 2 : 1), bytes = round_up(used, kTileRowBytes);
  const int64_t lda = bytes + (bytes % 128 == 0 ? 64 : 0);  // rows a power of two apart would share few sets of the cache
  const int64_t m = g.stage == Stage::product ? 0 : g.m;
  parallel(m, grain_for(w.k * 4), g.threads, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t r = begin; r < end; ++r) {
      const float* x = read_row(g.a, r, (float*)(g.scratch + thread * p.scratch_bytes));
      char* const to = g.rows + r * lda;
      if (bf16)
        round_row(x, w.k, to);
      else
        quantize_row(x, w.k, to, (RowStats*)(stats + r * p.stats_bytes));
      memset(to + used, 0, (size_t)(bytes - used));
    }
  });
  if (g.stage == Stage::rows) return;
  const TileOperands all = {
      g.rows, w.panels, lda, panel_rows(w) * kPanelRowBytes, bytes / kTileRowBytes, (const RowStats*)stats, p.stats_bytes};
  if (bf16)
    product<true>(g, all);
  else
    product<false>(g, all);
}

}  // namespace QKV_ISA
}  // namespace qkv
