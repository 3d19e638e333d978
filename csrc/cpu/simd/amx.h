// The tiles of AMX: eight registers of 16 rows of 64 bytes, and products of two of them.
//
//   C (rows, 16) += A (rows, 16 words) B (16 words, 16)
//
// A word is two bf16 or four bytes along k, so a tile of B is 16 rows of a panel (kernels.h) as it lies. Sums of bf16: the even
// elements of a tile's k in a chain of float FMAs, the odd ones in another, the two added, and that to C; denormals count as
// zero (Intel's Software Developer's Manual, TDPBF16PS). Rows do not depend on one another.
#pragma once
#include <stdint.h>
#include <string.h>

#include "cpu/simd/vec.h"

#if defined(QKV_EMULATE_AMX)
#include <math.h>
#endif

namespace qkv {
namespace QKV_ISA {

constexpr int kTileRows = 16;
constexpr int64_t kTileRowBytes = 64, kTileBytes = kTileRows * kTileRowBytes;

// Of LDTILECFG.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

#if !defined(QKV_EMULATE_AMX)

QKV_INLINE void set_tiles(const TileShapes& s) { asm volatile("ldtilecfg %0" : : "m"(s)); }
// The registers are worth nothing to whoever switches threads from here on.
QKV_INLINE void release_tiles() { asm volatile("tilerelease"); }
template <int C>
QKV_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(C));
}
template <int T>
QKV_INLINE void load_tile(const void* p, int64_t row) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(row), "i"(T) : "memory");
}
// The same of what will not be read again soon.
template <int T>
QKV_INLINE void stream_tile(const void* p, int64_t row) {
  asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(row), "i"(T) : "memory");
}
template <int C>
QKV_INLINE void store_tile(void* p, int64_t row) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(row), "i"(C) : "memory");
}
template <int C, int A, int B>
QKV_INLINE void multiply_bf16() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}
// Signed bytes of A, unsigned ones of B.
template <int C, int A, int B>
QKV_INLINE void multiply_int8() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(C), "i"(A), "i"(B));
}

#else  // for tests on machines without AMX

struct EmulatedTiles {
  TileShapes shapes;
  char tile[8][kTileBytes] = {};
};
static EmulatedTiles& tiles() {
  static thread_local EmulatedTiles t;
  return t;
}

static inline void set_tiles(const TileShapes& s) {
  tiles() = {};
  tiles().shapes = s;
}
static inline void release_tiles() { set_tiles({}); }
template <int C>
static void clear_tile() {
  memset(tiles().tile[C], 0, kTileBytes);
}
template <int T>
static void load_tile(const void* p, int64_t row) {
  EmulatedTiles& t = tiles();
  memset(t.tile[T], 0, kTileBytes);
  for (int r = 0; r < t.shapes.rows[T]; ++r)
    memcpy(t.tile[T] + r * kTileRowBytes, (const char*)p + r * row, t.shapes.row_bytes[T]);
}
template <int T>
static void stream_tile(const void* p, int64_t row) {
  load_tile<T>(p, row);
}
template <int C>
static void store_tile(void* p, int64_t row) {
  const EmulatedTiles& t = tiles();
  for (int r = 0; r < t.shapes.rows[C]; ++r) memcpy((char*)p + r * row, t.tile[C] + r * kTileRowBytes, t.shapes.row_bytes[C]);
}
// f(word of C, row of A, column of B) for each word of C.
template <int C, int A, int B, class Word, class F>
static void each_word(F&& f) {
  EmulatedTiles& t = tiles();
  for (int r = 0; r < t.shapes.rows[C]; ++r)
    for (int n = 0; n < t.shapes.row_bytes[C] / 4; ++n) {
      Word word;
      char* const at = t.tile[C] + r * kTileRowBytes + 4 * n;
      memcpy(&word, at, 4);
      word = f(word, t.tile[A] + r * kTileRowBytes, t.tile[B] + 4 * n, t.shapes.row_bytes[A] / 4);
      memcpy(at, &word, 4);
    }
}
static inline float normal_or_zero(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }
static inline float bf16_at(const char* p) {
  uint16_t half;
  memcpy(&half, p, 2);
  const uint32_t bits = (uint32_t)half << 16;
  float x;
  memcpy(&x, &bits, 4);
  return normal_or_zero(x);
}
template <int C, int A, int B>
static void multiply_bf16() {
  each_word<C, A, B, float>([](float c, const char* a, const char* b, int words) {
    float sum[2] = {0, 0};
    for (int k = 0; k < words; ++k)
      for (int i = 0; i < 2; ++i)
        sum[i] = normal_or_zero(fmaf(bf16_at(a + 4 * k + 2 * i), bf16_at(b + k * kTileRowBytes + 2 * i), sum[i]));
    return normal_or_zero(normal_or_zero(c) + normal_or_zero(sum[0] + sum[1]));
  });
}
template <int C, int A, int B>
static void multiply_int8() {
  each_word<C, A, B, uint32_t>([](uint32_t c, const char* a, const char* b, int words) {
    for (int k = 0; k < words; ++k)
      for (int i = 0; i < 4; ++i) c += (uint32_t)((int8_t)a[4 * k + i] * (uint8_t)b[k * kTileRowBytes + i]);
    return c;
  });
}

#endif

// While it lives float arithmetic takes and gives zeros for denormals, as TDPBF16PS does. The compiler knows nothing of it: what
// computes must be a call that is not inlined.
class FlushDenormals {
 public:
  FlushDenormals() {
    uint32_t flushing;
    asm volatile("stmxcsr %0" : "=m"(before_));
    flushing = before_ | 0x8040;  // FTZ and DAZ
    asm volatile("ldmxcsr %0" : : "m"(flushing) : "memory");
  }
  ~FlushDenormals() { asm volatile("ldmxcsr %0" : : "m"(before_) : "memory"); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  uint32_t before_;
};

// Registers 0 .. 3, for C, and those for A, 4 .. last_a, get so many rows, and A as many bytes in each; the rest, for B, the rows
// that this takes; C and B so many columns. That costs 70 ns, so it is done only where they had other shapes.
static inline int& tile_shape() {
  static thread_local int shape = 0;
  return shape;
}
static inline void shape_tiles(int rows, int a_bytes = (int)kTileRowBytes, int columns = kTileRows, int last_a = 4) {
  const int shape = rows << 24 | a_bytes << 16 | columns << 8 | last_a;
  if (tile_shape() == shape) return;
  tile_shape() = shape;
  TileShapes s;
  for (int t = 0; t < 8; ++t) {
    const bool a = t >= 4 && t <= last_a;
    s.row_bytes[t] = (uint16_t)(a ? a_bytes : 4 * columns);
    s.rows[t] = (uint8_t)(t < 4 || a ? rows : a_bytes / 4);
  }
  set_tiles(s);
}
// At the end of a thread's work.
static inline void leave_tiles() {
  tile_shape() = 0;
  release_tiles();
}

}  // namespace QKV_ISA
}  // namespace qkv
