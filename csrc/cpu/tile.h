// The register tile of attention, and the packing that feeds it and GEMM (whose own tile is dot_tile.h).
//
//   C (rows, 16 * panels) = [C +] A (rows, kc) B (kc, 16 * panels)
//
// Every element of a product is one chain of fused multiply-adds over k in order, whatever the tile's shape: so results do not
// depend on how rows and columns were divided among tiles or threads. What C held is added at the end: long sums are sums of
// blocks.
#pragma once
#include "cpu/kernels.h"
#include "cpu/simd/loops.h"

namespace qkv {
namespace QKV_ISA {

constexpr int kVectors = (int)(kPanel / kLanes);  // per panel

// Tile shapes: as many accumulators as registers allow, loads below the FMAs' pace.
#if defined(QKV_AVX512)
constexpr int kTileRows = 8, kTilePanels = 3;  // 24 accumulators, 3 of B: 11 loads for 24 FMAs. 32 registers
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kTilePanels = 1;  // 12 accumulators, 2 of B, 1 of A. 16 registers
#else
constexpr int kTileRows = 2, kTilePanels = 1;  // 8 accumulators, 4 of B, 2 of A. 16 registers
#endif

// What one step over k multiplies: words of 32 bits that hold one float, or two bf16 neighbours along k.
struct Floats {
  static constexpr int64_t kWidth = 1;
  static inline __attribute__((always_inline)) Vec mac(Vec sum, Vec a, Vec b) { return fma(a, b, sum); }
};
#if defined(QKV_AVX512_BF16_VNNI)
struct Bf16Pairs {
  static constexpr int64_t kWidth = 2;
  static inline __attribute__((always_inline)) Vec mac(Vec sum, Vec a, Vec b) { return dot_bf16(sum, a, b); }
};
#endif

// b: element (k, column j of panel p) at b[p * b_panel + k * b_k + j]. c: row r at c + r * ldc; the columns from `columns` on are
// not written. `first`: C is set, otherwise added to.
template <int R, int P, class M = Floats>
QKV_INLINE void tile(int64_t kc, const float* a, int64_t lda, const float* b, int64_t b_k, int64_t b_panel, float* c, int64_t ldc,
                     int64_t columns, bool first) {
  constexpr int V = P * kVectors;
  Vec sum[R][V];
  QKV_UNROLL(16)
  for (int r = 0; r < R; ++r) {
    QKV_UNROLL(16)
    for (int v = 0; v < V; ++v) sum[r][v] = zero();
  }
  for (int64_t k = 0; k < kc; ++k) {
    Vec row[V];
    QKV_UNROLL(16)
    for (int v = 0; v < V; ++v) row[v] = load(b + (v / kVectors) * b_panel + (v % kVectors) * kLanes, Full{});
    QKV_UNROLL(16)
    for (int r = 0; r < R; ++r) {
      const Vec x = set(a[r * lda + k]);
      QKV_UNROLL(16)
      for (int v = 0; v < V; ++v) sum[r][v] = M::mac(sum[r][v], x, row[v]);
    }
    b += b_k;
  }
  QKV_UNROLL(16)
  for (int r = 0; r < R; ++r) {
    QKV_UNROLL(16)
    for (int v = 0; v < V; ++v) {
      const int64_t left = columns - v * kLanes;
      float* const to = c + r * ldc + v * kLanes;
      if (left >= kLanes)
        store(to, first ? sum[r][v] : add(load(to, Full{}), sum[r][v]), Full{});
      else if (left > 0)
        store(to, first ? sum[r][v] : add(load(to, Rest{left}), sum[r][v]), Rest{left});
    }
  }
}

// Not inlined: its loops want all registers.
template <int P, class M>
static __attribute__((noinline)) void tile_rows(int rows, int64_t kc, const float* a, int64_t lda, const float* b, int64_t b_k,
                                                int64_t b_panel, float* c, int64_t ldc, int64_t columns, bool first) {
  switch (rows) {
#define QKV_ROWS(R) \
  case R:           \
    return tile<R, P, M>(kc, a, lda, b, b_k, b_panel, c, ldc, columns, first);
    QKV_ROWS(1)
    QKV_ROWS(2)
#if defined(__AVX2__)
    QKV_ROWS(3)
    QKV_ROWS(4)
    QKV_ROWS(5)
    QKV_ROWS(6)
#endif
#if defined(QKV_AVX512)
    QKV_ROWS(7)
    QKV_ROWS(8)
#endif
#undef QKV_ROWS
  }
}

// One group of `panels` <= kTilePanels panels.
template <class M = Floats>
static inline void tile_group(int panels, int rows, int64_t kc, const float* a, int64_t lda, const float* b, int64_t b_k,
                              int64_t b_panel, float* c, int64_t ldc, int64_t columns, bool first) {
  switch (panels) {
    case 1:
      return tile_rows<1, M>(rows, kc, a, lda, b, b_k, b_panel, c, ldc, columns, first);
#if defined(QKV_AVX512)
    case 2:
      return tile_rows<2, M>(rows, kc, a, lda, b, b_k, b_panel, c, ldc, columns, first);
    case 3:
      return tile_rows<3, M>(rows, kc, a, lda, b, b_k, b_panel, c, ldc, columns, first);
#endif
  }
}

// How many of the `left` panels the next group takes: never one alone at the end where two and two would do.
QKV_INLINE int group_of(int64_t left) {
  if (left > kTilePanels) return kTilePanels > 2 && left == kTilePanels + 1 ? 2 : kTilePanels;
  return (int)left;
}

// Packs up to 16 columns of B into a panel: to[k * 16 + j] = b[k * b_k + j * b_n], zeros for j >= columns.
template <class T>
static inline void pack_panel(float* to, const T* b, int64_t b_k, int64_t b_n, int64_t kc, int64_t columns) {
  if (b_n == 1) {  // rows of B are contiguous
    for (int64_t k = 0; k < kc; ++k) QKV_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t left = columns - v * kLanes;
      const T* from = b + k * b_k + v * kLanes;
      store(to + k * kPanel + v * kLanes,
            left >= kLanes ? load(from, Full{})
            : left > 0     ? load(from, Rest{left})
                           : zero(),
            Full{});
    }
    return;
  }
  int64_t k = 0;
  if (b_k == 1 && columns == kPanel)  // columns of B are contiguous, as in a weight (out, in): transpose blocks
    for (; k + kLanes <= kc; k += kLanes)
      for (int v = 0; v < kVectors; ++v) {
        const T* from = b + k + v * kLanes * b_n;
        if constexpr (sizeof(T) == 4) {
          transpose(from, b_n, to + k * kPanel + v * kLanes, kPanel);
        } else {
          float rows[kLanes * kLanes];
          for (int64_t j = 0; j < kLanes; ++j) store(rows + j * kLanes, load(from + j * b_n, Full{}), Full{});
          transpose(rows, kLanes, to + k * kPanel + v * kLanes, kPanel);
        }
      }
  for (; k < kc; ++k) {
    for (int64_t j = 0; j < columns; ++j) to[k * kPanel + j] = to_float(b[k * b_k + j * b_n]);
    for (int64_t j = columns; j < kPanel; ++j) to[k * kPanel + j] = 0;
  }
}

// Packs n columns into panels of (kc, 16), one after the other.
static inline void pack_panels(float* to, DType type, const void* b, int64_t b_k, int64_t b_n, int64_t kc, int64_t n) {
  with_type(type, b, [&](auto* p) {
    for (int64_t j = 0; j < n; j += kPanel) pack_panel(to + j * kc, p + j * b_n, b_k, b_n, kc, n - j < kPanel ? n - j : kPanel);
  });
}

}  // namespace QKV_ISA
}  // namespace qkv
