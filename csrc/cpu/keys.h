// How a block of keys or values gets from memory into what attention works on: panels of 16 keys and panels of 16 features,
// float.
//
// Memory is dense, packed or paged (blocks named by a table), of any dtype, or int8 with a scale per token and head:
// x = scale * q, rounded once. Whatever the memory, the same keys give the same floats in the same places.
#pragma once
#include "cpu/flash.h"
#include "cpu/kernels.h"

namespace qkv {
namespace QKV_ISA {

// The keys, or the values, of one head of one sequence. Strides in elements.
struct KeySource {
  const char* data;  // place 0; with a table, of block 0
  DType dtype;
  int64_t row, step;  // from key to key (inside a block) and from feature to feature
  // int8: scales, at place 0 as above; else nullptr.
  const float* scale;
  int64_t scale_row, scale_block;
  // Paged: key j lies at place start + j of the blocks of the table, one after the other; else nullptr.
  const int64_t* table;
  int64_t block_size, block, start;  // places of a block, from block to block in memory, place of key 0
};

// Calls body(at, count, from, scale) for each stretch of keys [key, key + n) that lies in one piece: keys key + at ...
// key + at + count - 1 are rows of `from`, row apart, and of `scale`, scale_row apart.
template <class Body>
QKV_INLINE void each_run(const KeySource& s, int64_t key, int64_t n, Body&& body) {
  const int64_t size = s.scale ? 1 : size_of(s.dtype);
  if (!s.table) {
    body((int64_t)0, n, s.data + key * s.row * size, s.scale ? s.scale + key * s.scale_row : nullptr);
    return;
  }
  for (int64_t at = 0; at < n;) {
    const int64_t place = s.start + key + at, inside = place % s.block_size, block = s.table[place / s.block_size];
    const int64_t left = s.block_size - inside, count = n - at < left ? n - at : left;
    body(at, count, s.data + (block * s.block + inside * s.row) * size,
         s.scale ? s.scale + block * s.scale_block + inside * s.scale_row : nullptr);
    at += count;
  }
}

// to[0..n) = scale * from[0..n): lanes that the compiler turns into vectors.
QKV_INLINE void dequantize(float* __restrict to, const int8_t* __restrict from, int64_t step, float scale, int64_t n) {
  if (step == 1)
    for (int64_t i = 0; i < n; ++i) to[i] = (float)from[i] * scale;
  else
    for (int64_t i = 0; i < n; ++i) to[i] = (float)from[i * step] * scale;
}

// Keys [key, key + n) of width d where they lie, if that is n rows of whole words; else nullptr.
template <class M>
static inline const float* rows_in_place(const KeySource& s, int64_t key, int64_t n, int64_t d) {
  if (s.scale || s.dtype != (M::kWidth == 1 ? DType::f32 : DType::bf16) || s.step != 1 || d % M::kWidth || s.row % M::kWidth)
    return nullptr;
  const int64_t size = 4 / M::kWidth;
  if ((uintptr_t)s.data % 4 || (s.table && s.block % M::kWidth)) return nullptr;  // bf16 at an odd place
  if (!s.table) return (const float*)(s.data + key * s.row * size);
  // Several blocks do where they follow one another in memory too.
  const int64_t place = s.start + key, first = place / s.block_size, inside = place - first * s.block_size;
  const int64_t last = inside + n <= s.block_size ? first : (place + n - 1) / s.block_size;
  if (first < last && s.block != s.block_size * s.row) return nullptr;
  for (int64_t b = first; b < last; ++b)
    if (s.table[b + 1] != s.table[b] + 1) return nullptr;
  return (const float*)(s.data + (s.table[first] * s.block + inside * s.row) * size);
}

// n floats, rounded to bf16, to words [0, ceil(n / 2)), the last filled up with a zero; `words` may lie before x in one array.
static inline void to_pairs(float* words, const float* x, int64_t n) {
  bf16* const to = (bf16*)words;
  each(n, [&](int64_t i, auto count) { store_element(to + i, load(x + i, count), count); });
  if (n % 2) to[n] = {0};
}

// Keys [key, key + n) to rows of d floats, ld apart.
static inline void load_rows(float* to, int64_t ld, const KeySource& s, int64_t key, int64_t n, int64_t d) {
  each_run(s, key, n, [&](int64_t at, int64_t count, const char* from, const float* scale) {
    for (int64_t j = 0; j < count; ++j) {
      float* const row = to + (at + j) * ld;
      if (scale)
        dequantize(row, (const int8_t*)from + j * s.row, s.step, scale[j * s.scale_row], d);
      else
        gather(row, s.dtype, from + j * s.row * size_of(s.dtype), s.step, d);
    }
  });
}

// The 16 keys of a panel as rows of words, *ld apart: in place, or in `rows` (16, d). Keys outside [begin, end) of the panel are
// worth nothing: zeros, or what a block that has room for them holds there, written to by others or not.
template <class M>
static inline const float* panel_rows(const KeySource& s, int64_t key, int64_t begin, int64_t end, int64_t d, float* rows,
                                      int64_t* ld) {
  if ((begin <= 0 && end >= kPanel) || (s.table && s.block_size % kPanel == 0 && (s.start + key) % kPanel == 0)) {
    *ld = s.row / M::kWidth;
    if (const float* in_place = rows_in_place<M>(s, key, kPanel, d)) return in_place;
  }
  if (begin < 0) begin = 0;
  if (end > kPanel) end = kPanel;
  *ld = d;
  if (M::kWidth == 2 && s.dtype == DType::bf16 && !s.scale && s.step == 1 && d % 2 == 0) {  // words as they are
    *ld = d / 2;
    memset(rows, 0, (size_t)(begin * d) * 2);
    each_run(s, key + begin, end - begin, [&](int64_t at, int64_t count, const char* from, const float*) {
      for (int64_t j = 0; j < count; ++j) memcpy(rows + (begin + at + j) * (d / 2), from + j * s.row * 2, (size_t)d * 2);
    });
    memset(rows + end * (d / 2), 0, (size_t)((kPanel - end) * d) * 2);
    return rows;
  }
  memset(rows, 0, (size_t)(begin * d) * 4);
  load_rows(rows + begin * d, d, s, key + begin, end - begin, d);
  memset(rows + end * d, 0, (size_t)((kPanel - end) * d) * 4);
  if (M::kWidth == 2)
    for (int64_t j = 0; j < kPanel; ++j) to_pairs(rows + j * d, rows + j * d, d);
  return rows;
}

// 16 rows of d floats -> a panel (d, 16).
static inline void transpose_panel(float* panel, const float* rows, int64_t ld, int64_t d) {
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    const float* at = rows + i;
    QKV_UNROLL(4)
    for (int64_t v = 0; v < kPanel; v += kLanes) {
      transpose(at, ld, panel + i * kPanel + v, kPanel);
      at = hide(at + kLanes * ld);
    }
  }
  for (; i < d; ++i)
    for (int64_t j = 0; j < kPanel; ++j) panel[i * kPanel + j] = rows[j * ld + i];
}

// So few rows score keys ahead and read values as they lie in memory. Keys too; of more rows only tiles take them so, others
// share panels of them.
#if defined(QKV_TILES)
constexpr int64_t kFewRows = 4;
#else
constexpr int64_t kFewRows = 3;
#endif
constexpr int64_t kPrefetch = 32;  // keys ahead

// scores[r][0..16) = q_r . k_j for the keys k_j of a panel, given as rows of d words and transposed in registers: for few rows.
// Adds in the same order as the register tile does over a transposed panel. Two panels at a time were no faster.
template <int R, class M>
static __attribute__((noinline)) void score_panel(float* scores, const float* q, int64_t ldq, const float* rows, int64_t ld,
                                                  int64_t d) {
  Vec sum[R][kVectors];
  QKV_UNROLL(4)
  for (int r = 0; r < R; ++r) {
    QKV_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) sum[r][v] = zero();
  }
  // The next panel, where it follows in memory: the reading ahead of a Zen 4 does not keep up (long caches, D = 32 and 64: 1.1 to
  // 1.5 times torch's speed, and 0.9 to 1.05 by the fetching below).
#if defined(QKV_AVX512)
  const bool run = ld == d;
#else
  const bool run = false;
#endif
  for (int64_t at = 0; run && at < kPanel * d; at += 16) __builtin_prefetch(rows + kPanel * d + at);
  int64_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    const float* at = rows + i;
    QKV_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) {
      Vec column[kLanes];
      transpose(at, ld, column);
      QKV_UNROLL(16)
      for (int64_t c = 0; c < kLanes; ++c) {
        QKV_UNROLL(4)
        for (int r = 0; r < R; ++r) sum[r][v] = M::mac(sum[r][v], set(q[r * ldq + i + c]), column[c]);
      }
      at = hide(at + kLanes * ld);
    }
    // The panel after the next: the hardware does not follow 16 rows at a time from memory (8 against 12 GB/s on Zen 3).
    if (!run && i % kPanel == 0)
      for (int64_t j = 0; j < kPanel; j += 4) {
        const float* const next = rows + (kPrefetch + j) * ld + i;
        __builtin_prefetch(next);
        __builtin_prefetch(next + ld);
        __builtin_prefetch(next + 2 * ld);
        __builtin_prefetch(next + 3 * ld);
      }
  }
  for (; i < d; ++i) {
    float column[kPanel];
    for (int64_t j = 0; j < kPanel; ++j) column[j] = rows[j * ld + i];
    QKV_UNROLL(4)
    for (int r = 0; r < R; ++r) {
      QKV_UNROLL(4)
      for (int v = 0; v < kVectors; ++v) sum[r][v] = M::mac(sum[r][v], set(q[r * ldq + i]), load(column + v * kLanes, Full{}));
    }
  }
  QKV_UNROLL(4)
  for (int r = 0; r < R; ++r) {
    QKV_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) store(scores + r * kKeyBlock + v * kLanes, sum[r][v], Full{});
  }
}

// Values of keys key + [begin, end), the keys of one block, into panels of (kKeyBlock, 16), padded with zeros.
static inline void load_values(float* values, const KeySource& s, int64_t key, int64_t begin, int64_t end, int64_t dv) {
  each_run(s, key + begin, end - begin, [&](int64_t at, int64_t count, const char* from, const float* scale) {
    float* const to = values + (begin + at) * kPanel;
    if (!scale) return flash_pack_values(to, dv, s.dtype, from, s.row, s.step, count);
    for (int64_t i = 0; i < dv; i += kPanel)
      for (int64_t j = 0; j < count; ++j) {
        const int64_t columns = dv - i < kPanel ? dv - i : kPanel;
        float* const panel = to + i * kKeyBlock + j * kPanel;
        dequantize(panel, (const int8_t*)from + j * s.row + i * s.step, s.step, scale[j * s.scale_row], columns);
        for (int64_t c = columns; c < kPanel; ++c) panel[c] = 0;
      }
  });
}

#if defined(QKV_AVX512_BF16_VNNI)
// Where the rows of bf16 values of keys key + [begin, end) lie, which are of one block; `zeros`, dv of them, stand in for a key
// outside that shares a pair. False if the values are not such rows of whole panels.
static inline bool value_rows(const bf16** rows, const KeySource& s, int64_t key, int64_t begin, int64_t end, int64_t dv,
                              const bf16* zeros) {
  if (s.scale || s.dtype != DType::bf16 || s.step != 1 || dv % kPanel) return false;
  each_run(s, key + begin, end - begin, [&](int64_t at, int64_t count, const char* from, const float*) {
    for (int64_t j = 0; j < count; ++j) rows[begin + at + j] = (const bf16*)from + j * s.row;
  });
  if (begin % 2) rows[begin - 1] = zeros;
  if (end % 2) rows[end] = zeros;
  return true;
}

// sums += p v for R rows and the keys [from, to), whole pairs: the value product of few rows, which read each value but once,
// straight from where it lies. p: weights of the first row, in pairs. Adds in the order of flash_accumulate.
#if defined(QKV_TILES)
// The sums of tiles (simd/amx.h), in vectors: a tile has room for 16 rows, and values must be paired for it.
template <int R>
static __attribute__((noinline)) void add_flushed(const FlashRows& f, const float* p, const bf16* const* rows, int64_t from,
                                                  int64_t to) {
  constexpr int kMost = R == 4 ? 2 : 4;
  for (int64_t i = 0; i < f.dv; i += kMost * kPanel) {
    const auto part = [&](auto, auto panels) QKV_ALWAYS {
      constexpr int P = decltype(panels)::value;
      for (int64_t j = from; j < to;) {
        const int64_t next = (j / kKeyUnit<DotBf16> + 1) * kKeyUnit<DotBf16>, end = next < to ? next : to;
        Vec even[R][P], odd[R][P];
        clear<DotBf16>(even);
        clear<DotBf16>(odd);
        for (; j < end; j += 2) {
          const bf16 *const lower = rows[j] + i, *const upper = rows[j + 1] + i;
          Vec x[R], y[R];
          QKV_UNROLL(4)
          for (int r = 0; r < R; ++r) {
            const bf16* const pair = (const bf16*)(p + r * kKeyBlock) + j;
            x[r] = set(to_float(pair[0]));
            y[r] = set(to_float(pair[1]));
          }
          QKV_UNROLL(4)
          for (int v = 0; v < P; ++v) {
            const Vec a = load(lower + v * kPanel, Full{}), b = load(upper + v * kPanel, Full{});
            QKV_UNROLL(4)
            for (int r = 0; r < R; ++r) {
              even[r][v] = fma(a, x[r], even[r][v]);
              odd[r][v] = fma(b, y[r], odd[r][v]);
            }
          }
        }
        QKV_UNROLL(4)
        for (int r = 0; r < R; ++r) {
          QKV_UNROLL(4)
          for (int v = 0; v < P; ++v) even[r][v] = add(even[r][v], odd[r][v]);
        }
        store_sums(even, f.sums + i, f.dv_padded, P * kPanel, false, Addends{});
      }
    };
    const int64_t left = (f.dv - i) / kPanel;
    with_panels<R, kMost>(left < kMost ? (int)left : kMost, part);
  }
}
template <int R>
static inline void add_value_rows(const FlashRows& f, const float* p, const bf16* const* rows, int64_t from, int64_t to) {
  const FlushDenormals flush;
  add_flushed<R>(f, p, rows, from, to);
}
#else
template <int R>
static __attribute__((noinline)) void add_value_rows(const FlashRows& f, const float* p, const bf16* const* rows, int64_t from,
                                                     int64_t to) {
  constexpr int kMost = 4;
  for (int64_t i = 0; i < f.dv; i += kMost * kPanel) {
    const auto part = [&](auto, auto panels) QKV_ALWAYS {
      constexpr int P = decltype(panels)::value;
      Vec sum[R][P];
      clear<DotBf16>(sum);
      for (int64_t j = from; j < to; j += 2) {
        const bf16 *const lower = rows[j] + i, *const upper = rows[j + 1] + i;
        Vec x[R];
        QKV_UNROLL(4)
        for (int r = 0; r < R; ++r) x[r] = DotBf16::spread((const char*)(p + r * kKeyBlock + j / 2));
        QKV_UNROLL(4)
        for (int v = 0; v < P; ++v) {
          const Vec pairs = pairs_of(lower + v * kPanel, upper + v * kPanel);
          QKV_UNROLL(4)
          for (int r = 0; r < R; ++r) sum[r][v] = DotBf16::mac(sum[r][v], pairs, x[r]);
        }
      }
      store_sums(sum, f.sums + i, f.dv_padded, P * kPanel, false, Addends{});
    };
    const int64_t left = (f.dv - i) / kPanel;
    with_panels<R, kMost>(left < kMost ? (int)left : kMost, part);
  }
}
#endif

// As load_values, in panels of (kKeyBlock / 2, 16) pairs of keys; keys outside [begin, end) that share a pair are zero. `rows`:
// two rows of dv floats.
static inline void load_value_pairs(float* values, const KeySource& s, int64_t key, int64_t begin, int64_t end, int64_t dv,
                                    float* rows) {
  const bf16* at[kKeyBlock + 1];
  memset(rows, 0, (size_t)dv * 2);
  if (value_rows(at, s, key, begin, end, dv, (const bf16*)rows)) {
    for (int64_t j = begin / 2 * 2; j < end; j += 2)
      for (int64_t i = 0; i < dv; i += kPanel)
        store(values + i * (kKeyBlock / 2) + j / 2 * kPanel, pairs_of(at[j] + i, at[j + 1] + i), Full{});
    return;
  }
  for (int64_t j = begin / 2 * 2; j < end; j += 2) {
    const int64_t from = j < begin ? begin : j, to = j + 2 < end ? j + 2 : end;
    const float* two[2] = {rows, rows + dv};
    const float* const in_place = to - from == 2 ? rows_in_place<DotFloat>(s, key + j, 2, dv) : nullptr;
    if (in_place) {
      two[0] = in_place;
      two[1] = in_place + s.row;
    } else {
      if (to - from < 2) memset(rows, 0, (size_t)(2 * dv) * 4);
      load_rows(rows + (from - j) * dv, dv, s, key + from, to - from, dv);
    }
    for (int64_t i = 0; i < dv; i += kPanel) {
      float* const word = values + i * (kKeyBlock / 2) + j / 2 * kPanel;
      if (dv - i >= kPanel)
        store(word, pairs_of(load(two[0] + i, Full{}), load(two[1] + i, Full{})), Full{});
      else
        store(word, pairs_of(load(two[0] + i, Rest{dv - i}), load(two[1] + i, Rest{dv - i})), Full{});
    }
  }
}
#endif

}  // namespace QKV_ISA
}  // namespace qkv
