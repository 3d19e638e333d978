// The register tile that both GEMMs and attention share.
//
//   C (rows, 16 * panels) = [C +] A (rows, k) B (k, 16 * panels)
//
// B lies in panels, A and B are words of 32 bits that a Dot multiplies, see simd/dot.h. Every sum is one chain over k in order,
// whatever the tile's shape: so results do not depend on how rows and columns were divided among tiles or threads. What C held
// is added at the end: long sums are sums of blocks. (In tiles of AMX, simd/amx.h, of 32 elements each: the same holds.)
#pragma once
#include "cpu/panels.h"
#include "cpu/simd/dot.h"
#if defined(QKV_TILES)
#include "cpu/simd/amx.h"
#endif

namespace qkv {
namespace QKV_ISA {

// Tile shapes: as many accumulators as registers allow. One row or two take more panels at a time where there are as many: a
// chain of sums has a latency of four or five cycles, so eight or more must be under way.
#if defined(QKV_TILES)
constexpr int kMostRows = kTileRows;
constexpr int most_panels(int) { return 4; }
constexpr int wide_panels(int) { return 4; }
#elif defined(QKV_AVX512)
constexpr int kMostRows = 8, kLeastRows = 5;  // of a tile; and of one of unpack_rows or more, see rows_of
constexpr int most_panels(int) { return 3; }
constexpr int wide_panels(int rows) { return rows <= 2 ? 6 : 3; }
#elif defined(__AVX2__)
constexpr int kMostRows = 6, kLeastRows = 4;
constexpr int most_panels(int rows) { return rows <= 3 ? 2 : 1; }
constexpr int wide_panels(int rows) { return rows == 1 ? 4 : most_panels(rows); }
#else
constexpr int kMostRows = 2, kLeastRows = 1;
constexpr int most_panels(int) { return 1; }
constexpr int wide_panels(int) { return 1; }
#endif

template <int N>
struct Int {
  static constexpr int value = N;
};

// f(Int<rows>, Int<panels>) with the numbers as constants.
template <int R, int P, class F>
QKV_INLINE void with_panels(int panels, F&& f) {
  if (panels == P) return f(Int<R>{}, Int<P>{});
  if constexpr (P > 1) with_panels<R, P - 1>(panels, f);
}
#if !defined(QKV_TILES)
template <int kLeast = 1, int R = kMostRows, class F>
QKV_INLINE void with_tile(int rows, int panels, F&& f) {
  if (rows == R) {
    if constexpr (wide_panels(R) > most_panels(R))
      if (panels == wide_panels(R)) return f(Int<R>{}, Int<wide_panels(R)>{});
    return with_panels<R, most_panels(R)>(panels, f);
  }
  if constexpr (R > kLeast) with_tile<kLeast, R - 1>(rows, panels, f);
}
#endif

// Rows [i, i + rows_of(m - i)) are the next tile of m: tiles differ by one row at most, since one of a single row is the slowest.
static constexpr int64_t tiles_of(int64_t rows) { return (rows + kMostRows - 1) / kMostRows; }
QKV_INLINE int rows_of(int64_t left) {
  const int64_t tiles = tiles_of(left);
  return (int)((left + tiles - 1) / tiles);
}

// How many of the `left` panels the next group takes for tiles of so many rows; two and two rather than three and one.
QKV_INLINE int panels_for(int rows, int64_t left) {
  const int wide = wide_panels(rows), most = most_panels(rows);
  if (wide > most && left >= wide) return wide;
  const int64_t groups = (left + most - 1) / most;
  return (int)((left + groups - 1) / groups);
}

// Weights to bring to the second cache while a tile computes: of panels `panel` bytes apart, from `at` on `step` bytes for each
// row of a panel. Addresses, not pointers: they may lie beyond the weights.
struct Ahead {
  uintptr_t at;
  int64_t step, panel;
};
struct NothingAhead {};

// Of a group of panels at b that so many tiles read: several tiles share the lines of the `next` group (null: there is none). A
// single tile, which memory holds up, asks for its own panel's lines before the hardware does, whose reading ahead ends at every
// page; where it reads several panels only for the next group, and that if `row_too`: it did not pay for all (bench/NOTES.md).
QKV_INLINE Ahead ahead_of(const void* b, const void* next, int group, int64_t panel, int64_t tiles, bool row_too = false) {
  constexpr int64_t kDistance = 1024;
  if (tiles == 1 && group == 1) return {(uintptr_t)b + kDistance, kPanelRowBytes, panel};
  if ((tiles == 1 && !row_too) || !next) return {(uintptr_t)b, 0, panel};
  return {(uintptr_t)next, (kPanelRowBytes + tiles - 1) / tiles, panel};
}

template <int P>
QKV_INLINE void fetch(Ahead& next) {
  QKV_UNROLL(8)
  for (int p = 0; p < P; ++p) __builtin_prefetch((const void*)(next.at + p * next.panel), 0, 2);
  next.at += next.step;
}
template <int P>
QKV_INLINE void fetch(NothingAhead&) {}

// sum += a b: `steps` rows of the panels; a: words of row r at a + r * lda; b: row k of panel p at b + p * b_panel + k * b_step.
// All distances in bytes.
template <class Dot, int R, int V, class Next>
QKV_INLINE void dot_sums(int64_t steps, const char* a, int64_t lda, const char* b, int64_t b_step, int64_t b_panel,
                         typename Dot::Acc (&sum)[R][V], Next& next) {
  for (int64_t k = 0; k < steps; ++k) {
    fetch<V / kVectors>(next);
    QKV_UNROLL(8)
    for (int part = 0; part < Dot::kParts; ++part) {
      decltype(Dot::weight(b, 0)) w[V];
      QKV_UNROLL(24)
      for (int v = 0; v < V; ++v) w[v] = Dot::weight(b + (v / kVectors) * b_panel + (v % kVectors) * kLanes * 4, part);
      QKV_UNROLL(8)
      for (int r = 0; r < R; ++r) {
        const auto x = Dot::spread(a + r * lda + part * 4);
        QKV_UNROLL(24)
        for (int v = 0; v < V; ++v) sum[r][v] = Dot::mac(sum[r][v], w[v], x);
      }
    }
    a += Dot::kParts * 4;
    b += b_step;
  }
}

template <class Dot, int R, int V>
QKV_INLINE void clear(typename Dot::Acc (&sum)[R][V]) {
  QKV_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    QKV_UNROLL(24)
    for (int v = 0; v < V; ++v) sum[r][v] = Dot::zero();
  }
}

// Asks for the lines of c that a tile will write, while it computes: a c of more floats than this is in no second cache. For
// smaller ones it cost up to 10 %, prefetchw as well.
constexpr int64_t kFarSums = 1 << 19;
QKV_INLINE void fetch_sums(const float* c, int64_t ldc, int rows, int panels) {
  for (int r = 0; r < rows; ++r)
    for (int p = 0; p < panels; ++p) __builtin_prefetch(c + r * ldc + p * kPanel);
}

// What is added to a tile's last sums as they are stored, after earlier ones have been written to c: it must not share memory
// with it, see Output in bind/array.cpp. Null: nothing.
struct Addends {
  const float *bias, *residual;  // of the first column; and of the first row
  int64_t ldr;
  QKV_MEMBER Addends from_row(int64_t r) const { return {bias, residual ? residual + r * ldr : nullptr, ldr}; }
};

// c = [c +] sum [+ bias] [+ residual]; row r at c + r * ldc; columns from `columns` on are not written. `first`: c is set.
template <int R, int V>
QKV_INLINE void store_sums(const Vec (&sum)[R][V], float* c, int64_t ldc, int64_t columns, bool first, const Addends& more) {
  QKV_UNROLL(8)
  for (int r = 0; r < R; ++r) {
    QKV_UNROLL(24)
    for (int v = 0; v < V; ++v) {
      const int64_t left = columns - v * kLanes;
      float* const to = c + r * ldc + v * kLanes;
      const auto put = [&](auto count) QKV_ALWAYS {
        Vec x = sum[r][v];
        if (!first) x = add(load(to, count), x);
        if (more.bias) x = add(x, load(more.bias + v * kLanes, count));
        if (more.residual) x = add(x, load(more.residual + r * more.ldr + v * kLanes, count));
        store(to, x, count);
      };
      if (left >= kLanes)
        put(Full{});
      else if (left > 0)
        put(Rest{left});
    }
  }
}

// A tile of words in rows: word k of row r at a[r * lda + k], of panel p's column j at b[p * b_panel + k * b_k + j].
template <class Dot, int R, int P, class Next = NothingAhead>
QKV_INLINE void tile(int64_t steps, const float* a, int64_t lda, const float* b, int64_t b_k, int64_t b_panel, float* c,
                     int64_t ldc, int64_t columns, bool first, const Addends& more = {}, Next next = {}) {
  Vec sum[R][P * kVectors];
  clear<Dot>(sum);
  dot_sums<Dot>(steps, (const char*)a, lda * 4, (const char*)b, b_k * 4, b_panel * 4, sum, next);
  store_sums(sum, c, ldc, columns, first, more);
}

#if defined(QKV_TILES)
// Keys whose values a product takes at once, from a multiple of it on.
template <class Dot>
constexpr int64_t kKeyUnit = kTileRowBytes / 2;
template <class>
QKV_INLINE void leave() {
  leave_tiles();
}

// f(Int<0>) ... f(Int<N - 1>), of at most four registers: their numbers are constants.
template <int N, class F>
QKV_INLINE void each_tile(F&& f) {
  f(Int<0>{});
  if constexpr (N > 1) f(Int<1>{});
  if constexpr (N > 2) f(Int<2>{});
  if constexpr (N > 3) f(Int<3>{});
}

// c [+]= P panels side by side, of bf16, in registers of AMX. `steps` of 16 rows of a panel.
template <int P>
static void bf16_tiles(int64_t steps, const char* a, int64_t lda, const char* b, int64_t b_panel, float* c, int64_t ldc,
                       bool first) {
  each_tile<P>([&](auto p) QKV_ALWAYS {
    constexpr int kP = decltype(p)::value;
    if (first)
      clear_tile<kP>();
    else
      load_tile<kP>(c + kP * kPanel, ldc);
  });
  for (int64_t s = 0; s < steps; ++s, a += kTileRowBytes, b += kTileBytes) {
    load_tile<4>(a, lda);
    each_tile<P>([&](auto p) QKV_ALWAYS {
      constexpr int kP = decltype(p)::value;
      load_tile<5 + kP % 3>(b + kP * b_panel, kTileRowBytes);
      multiply_bf16<kP, 4, 5 + kP % 3>();
    });
  }
  each_tile<P>([&](auto p) QKV_ALWAYS { store_tile<decltype(p)::value>(c + decltype(p)::value * kPanel, ldc); });
}

// sums = K Q for N panels of 16 keys, rows of `words` words, ld[p] apart, and queries that lie in so many columns.
constexpr int kLastOfKeys = 6;  // tile
template <int N, int kColumns>
static void key_tiles(float (*sums)[kPanel * kPanel], const float* const* keys, const int64_t* ld, const float* queries,
                      int64_t words) {
  each_tile<N>([&](auto p) QKV_ALWAYS { clear_tile<decltype(p)::value>(); });
  for (int64_t i = 0; i < words; i += kPanel) {
    load_tile<kLastOfKeys + 1>(queries + i * kColumns, kColumns * 4);
    each_tile<N>([&](auto p) QKV_ALWAYS {
      constexpr int kP = decltype(p)::value;
      load_tile<4 + kP % 3>(keys[kP] + i, ld[kP] * 4);
      multiply_bf16<kP, 4 + kP % 3, kLastOfKeys + 1>();
    });
  }
  each_tile<N>([&](auto p) QKV_ALWAYS { store_tile<decltype(p)::value>(sums[decltype(p)::value], kColumns * 4); });
}

// steps: rows of a panel, multiples of 16; all panels are whole.
template <class>
static void any_tile(int rows, int panels, int64_t steps, const float* a, int64_t lda, const float* b, int64_t, int64_t b_panel,
                     float* c, int64_t ldc, int64_t, bool first) {
  shape_tiles(rows);
  with_panels<1, 4>(panels, [&](auto, auto p) {
    bf16_tiles<decltype(p)::value>(steps / kTileRows, (const char*)a, lda * 4, (const char*)b, b_panel * 4, c, ldc * 4, first);
  });
}
#else
template <class Dot>
constexpr int64_t kKeyUnit = Dot::kWidth;
template <class>
QKV_INLINE void leave() {}

// The same for numbers of rows and panels that are not constants. Not inlined: its loops want all registers.
template <class Dot>
static __attribute__((noinline)) void any_tile(int rows, int panels, int64_t steps, const float* a, int64_t lda, const float* b,
                                               int64_t b_k, int64_t b_panel, float* c, int64_t ldc, int64_t columns, bool first) {
  with_tile(rows, panels, [&](auto r, auto p) {
    tile<Dot, decltype(r)::value, decltype(p)::value>(steps, a, lda, b, b_k, b_panel, c, ldc, columns, first);
  });
}
#endif

}  // namespace QKV_ISA
}  // namespace qkv
