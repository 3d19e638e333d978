// The online softmax that attention and additive_attention share: one block of keys at a time.
//
//   m' = max(m, max_j s_j);  p_j = e^(s_j - m');  l' = l e^(m - m') + sum_j p_j;  o' = o e^(m - m') + sum_j p_j v_j
//
// and at the end out = o / l, lse = m + ln l (Milakov & Gimelshein 2018, arXiv:1805.02867; Dao et al. 2022, arXiv:2205.14135).
// A key that is excluded has s_j = -inf and changes nothing, to the bit: so a row does not depend on the tile it is in.
#pragma once
#include "cpu/simd/math.h"
#include "cpu/tile.h"

namespace qkv {
namespace QKV_ISA {

constexpr float kMinusInfinity = -__builtin_inff();

// Rows that are scored together: their scores of one block take 24 KB. A multiple of the tiles on registers of vectors; of AMX's
// two are not quite full.
constexpr int64_t kGroupRows = 24;

// The state of the rows of a tile; all of it in scratch.
struct FlashRows {
  int64_t dv, dv_padded;
  float* sums;     // (rows, dv_padded), o above
  float* maximum;  // (rows), m above
  float* total;    // (rows), l above
};

// Values of one block of keys as the right side of a product: word j, column i at data[j * k + i / 16 * panel + i % 16]. A word
// is a key, or a pair of keys in bf16.
struct FlashValues {
  const float* data;
  int64_t k, panel;
};

// Rows of one register tile and the keys [from, to) of the block that they see. `excluded`: some row does not see all of them.
struct FlashUnit {
  int64_t row;
  int rows;
  int64_t from, to;
  bool excluded;
};

static inline void flash_start(const FlashRows& f, int64_t rows) {
  memset(f.sums, 0, (size_t)(rows * f.dv_padded) * 4);
  for (int64_t r = 0; r < rows; ++r) {
    f.maximum[r] = kMinusInfinity;
    f.total[r] = 0;
  }
}

// Splits the rows [row, row + rows) among units, as evenly as can be. Returns their number.
static inline int flash_units(FlashUnit* units, int64_t row, int64_t rows) {
  const int64_t n = tiles_of(rows), each_unit = (rows + n - 1) / n;
  int count = 0;
  for (int64_t r = 0; r < rows; r += each_unit)
    units[count++] = {row + r, (int)(rows - r < each_unit ? rows - r : each_unit), 0, 0, false};
  return count;
}

// Copies n value rows into panels of (kKeyBlock, 16), padded with zeros.
static inline void flash_pack_values(float* values, int64_t dv, DType type, const void* v, int64_t row, int64_t step, int64_t n) {
  with_type(type, v, [&](auto* from) {
    for (int64_t j = 0; j < n; ++j)
      for (int64_t i = 0; i < dv; i += kPanel) {
        float* const to = values + i * kKeyBlock + j * kPanel;
        const int64_t columns = dv - i < kPanel ? dv - i : kPanel;
        const auto* p = from + j * row + i * step;
        if (step == 1 && columns == kPanel) {
          QKV_UNROLL(4)
          for (int64_t c = 0; c < kPanel; c += kLanes) store(to + c, load(p + c, Full{}), Full{});
        } else {
          for (int64_t c = 0; c < kPanel; ++c) to[c] = c < columns ? to_float(p[c * step]) : 0.0f;
        }
      }
  });
}

// Of words [begin, end).
template <class M>
static inline bool flash_finite(const FlashValues& v, int64_t dv_padded, int64_t begin, int64_t end) {
  Vec check = zero();  // 0 * x is NaN for infinities and NaN
  for (int64_t i = 0; i < dv_padded; i += kPanel)
    for (int64_t j = begin; j < end; ++j) {
      QKV_UNROLL(4)
      for (int64_t c = 0; c < kPanel; c += kLanes)
        check = M::mac(check, zero(), load(v.data + j * v.k + i / kPanel * v.panel + c, Full{}));
    }
  return reduce_add(check) == 0;
}

// p = e^(s - by) for the scores of one vector, added to *total. -0 marks a key that is excluded; one whose weight underflows has
// +0. Sums do not tell them apart, flash_accumulate does.
template <class W>
QKV_INLINE void flash_marked(const float* s, Vec by, W* to, Vec* total) {
  const Vec score = load(s, Full{});
  const Mask out = eq(score, set(kMinusInfinity));
  const Vec p = select(out, set(-0.0f), exp_weight(sub(score, by)));
  store_element(to, p, Full{});
  *total = add(*total, p);
}

// Softmax of row r over its scores s[from, to) of one block; rescales what came before. The weights take the scores' place, as W:
// float, or bf16, of which a pair takes the place of each second score. Keys of [begin, end) outside of it get the weight of an
// excluded key. False if no key in [begin, end) is excluded, for sure.
template <class W>
static inline bool flash_softmax(const FlashRows& f, int64_t r, float* s, int64_t from, int64_t to, int64_t begin, int64_t end) {
  W* const weights = (W*)s;  // weight j overwrites no score behind j; other than floats, they are read through memcpy alone
  if (from >= to) {
    for (int64_t j = begin; j < end; ++j) from_float(-0.0f, weights + j);
    return true;
  }
  // A key's lane depends on its position in the block alone. Vectors [whole, whole_end) are full of this row's keys.
  const int64_t first = from / kLanes * kLanes, last = (to + kLanes - 1) / kLanes * kLanes;
  const int64_t whole = (from + kLanes - 1) / kLanes * kLanes, whole_end = to / kLanes * kLanes;
  for (int64_t j = first; j < from; ++j) s[j] = kMinusInfinity;
  for (int64_t j = to; j < last; ++j) s[j] = kMinusInfinity;
  Vec top = max(load(s + first, Full{}), load(s + last - kLanes, Full{})), low = set(-kMinusInfinity);
  QKV_UNROLL(4)
  for (int64_t j = whole; j < whole_end; j += kLanes) {
    const Vec score = load(s + j, Full{});
    top = max(top, score);
    low = min(score, low);
  }
  const bool masked = any(eq(low, set(kMinusInfinity)));
  const float block_top = reduce_max(top);
  const float maximum = block_top > f.maximum[r] ? block_top : f.maximum[r];
  // -inf as long as every key was excluded: then subtract 0, so that a NaN stays one.
  const float shift = maximum == kMinusInfinity ? 0.0f : maximum;
  const Vec by = set(shift);
  Vec total = zero();
  int64_t j = first;
  for (; j < last && (masked || j < whole); j += kLanes) flash_marked(s + j, by, weights + j, &total);
  for (; j + 4 * kLanes <= whole_end; j += 4 * kLanes) {
    Vec p[4];
    QKV_UNROLL(4)
    for (int i = 0; i < 4; ++i) p[i] = sub(load(s + j + i * kLanes, Full{}), by);
    exp_weight(p);
    QKV_UNROLL(4)
    for (int i = 0; i < 4; ++i) {
      store_element(weights + j + i * kLanes, p[i], Full{});
      total = add(total, p[i]);
    }
  }
  for (; j < last; j += kLanes) flash_marked(s + j, by, weights + j, &total);
  for (int64_t i = begin; i < first; ++i) from_float(-0.0f, weights + i);
  for (int64_t i = last; i < end; ++i) from_float(-0.0f, weights + i);
  if (maximum != f.maximum[r]) {
    if (f.total[r] != 0) {
      float scale[kLanes];
      store(scale, exp_weight(set(f.maximum[r] - shift)), Full{});
      f.total[r] *= scale[0];
      float* o = f.sums + r * f.dv_padded;
      for (int64_t i = 0; i < f.dv_padded; i += kLanes) store(o + i, mul(load(o + i, Full{}), set(scale[0])), Full{});
    }
    f.maximum[r] = maximum;
  }
  f.total[r] += reduce_add(total);
  return masked || from > begin || to < end || first < from || last > to;  // vectors in part were not looked at: maybe
}

#if !defined(QKV_TILES)
// The value product for a few rows: panels side by side keep enough sums going.
template <class M, int R, int P>
static inline void flash_few(const FlashRows& f, int64_t row, const float* p, const FlashValues& v, int64_t from, int64_t n) {
  const int64_t panels = f.dv_padded / kPanel;
  float* const o = f.sums + row * f.dv_padded;
  for (int64_t i = 0; i < panels;) {
    const float* b = v.data + from * v.k + i * v.panel;
    if (i + P <= panels) {
      tile<M, R, P>(n, p + from, kKeyBlock, b, v.k, v.panel, o + i * kPanel, f.dv_padded, P * kPanel, false);
      i += P;
    } else if (i + 2 <= panels) {
      tile<M, R, 2>(n, p + from, kKeyBlock, b, v.k, v.panel, o + i * kPanel, f.dv_padded, 2 * kPanel, false);
      i += 2;
    } else {
      tile<M, R, 1>(n, p + from, kKeyBlock, b, v.k, v.panel, o + i * kPanel, f.dv_padded, kPanel, false);
      i += 1;
    }
  }
}

#endif

// The weight of an excluded key, see flash_marked.
QKV_INLINE bool is_excluded(float p) { return p == 0 && __builtin_signbit(p); }

// o += p v for one row and 16 columns, word by word: values that are not finite meet only weights of keys that are not excluded.
static inline void flash_careful(DotFloat, float* o, const float* p, const float* v, int64_t step, int64_t n) {
  for (int64_t c = 0; c < kPanel; c += kLanes) {
    Vec sum = zero();
    for (int64_t j = 0; j < n; ++j)
      if (!is_excluded(p[j])) sum = fma(set(p[j]), load(v + j * step + c, Full{}), sum);
    store(o + c, add(load(o + c, Full{}), sum), Full{});
  }
}
#if defined(QKV_TILES)
static inline void flash_careful(DotBf16, float* o, const float* p, const float* v, int64_t step, int64_t n) {
  shape_tiles(1);
  for (int64_t j = 0; j < n; j += kTileRows) {
    alignas(64) uint16_t words[kTileRows][2 * kPanel];
    for (int64_t k = 0; k < kTileRows; ++k) {
      const uint16_t* const weights = (const uint16_t*)(p + j + k);
      memcpy(words[k], v + (j + k) * step, sizeof words[k]);
      for (int half = 0; half < 2; ++half)
        for (int64_t c = 0; weights[half] == 0x8000 && c < kPanel; ++c) words[k][2 * c + half] = 0;
    }
    bf16_tiles<1>(1, (const char*)(p + j), 0, (const char*)words, 0, o, 0, false);
  }
}
#elif defined(QKV_AVX512_BF16_VNNI)
static inline void flash_careful(DotBf16, float* o, const float* p, const float* v, int64_t step, int64_t n) {
  Vec sum = zero();
  for (int64_t j = 0; j < n; ++j) {
    const uint16_t* const weights = (const uint16_t*)(p + j);
    float word[kPanel];
    memcpy(word, v + j * step, sizeof word);
    for (int half = 0; half < 2; ++half)
      for (int64_t c = 0; weights[half] == 0x8000 && c < kPanel; ++c) ((uint16_t*)(word + c))[half] = 0;
    sum = DotBf16::mac(sum, load(word, Full{}), DotBf16::spread((const char*)(p + j)));
  }
  store(o, add(load(o, Full{}), sum), Full{});
}
#endif

// sums += p v for all units; p: the weights of the first unit's first row, as words. Values that are not finite must meet only
// rows that attend to them: 0 * inf is NaN.
template <class M>
static inline void flash_accumulate(const FlashRows& f, const FlashUnit* units, int count, const float* p, const FlashValues& v,
                                    bool finite) {
  const auto from = [&](int u) { return units[u].from / M::kWidth; };
  const auto length = [&](int u) { return units[u].from < units[u].to ? (units[u].to - units[u].from) / M::kWidth : 0; };
  const int64_t row0 = units[0].row;
#if !defined(QKV_TILES)
  if (count == 1 && length(0) && (finite || !units[0].excluded)) {
#if defined(QKV_AVX512)
    constexpr int kOne = 4, kTwo = 4, kThree = 4;
#elif defined(__AVX2__)
    constexpr int kOne = 4, kTwo = 2, kThree = 2;
#else
    constexpr int kOne = 1, kTwo = 1, kThree = 1;
#endif
    switch (units[0].rows) {
      case 1:
        return flash_few<M, 1, kOne>(f, row0, p, v, from(0), length(0));
      case 2:
        return flash_few<M, 2, kTwo>(f, row0, p, v, from(0), length(0));
      case 3:
        return flash_few<M, 3, kThree>(f, row0, p, v, from(0), length(0));
    }
  }
#endif
  for (int64_t i = 0, panels = f.dv_padded / kPanel; i < panels;) {
    const int group = panels_for(kMostRows, panels - i);
    for (int u = 0; u < count; ++u) {
      const FlashUnit& unit = units[u];
      if (length(u) && (finite || !unit.excluded))
        any_tile<M>(unit.rows, group, length(u), p + (unit.row - row0) * kKeyBlock + from(u), kKeyBlock,
                    v.data + from(u) * v.k + i * v.panel, v.k, v.panel, f.sums + unit.row * f.dv_padded + i * kPanel, f.dv_padded,
                    group * kPanel, false);
    }
    i += group;
  }
  for (int u = 0; !finite && u < count; ++u)
    for (int64_t r = units[u].row; units[u].excluded && r < units[u].row + units[u].rows; ++r)
      for (int64_t i = 0; i < f.dv_padded / kPanel; ++i)
        flash_careful(M{}, f.sums + r * f.dv_padded + i * kPanel, p + (r - row0) * kKeyBlock + from(u),
                      v.data + from(u) * v.k + i * v.panel, v.k, length(u));
}

// Adds row r of `part`, whose keys come later, to `whole`.
static inline void flash_merge(const FlashRows& whole, const FlashRows& part, int64_t r) {
  float *const o = whole.sums + r * whole.dv_padded, *const o2 = part.sums + r * part.dv_padded;
  if (part.total[r] == 0) return;  // no key of it counts
  if (whole.total[r] == 0) {
    memcpy(o, o2, (size_t)whole.dv_padded * 4);
    whole.maximum[r] = part.maximum[r];
    whole.total[r] = part.total[r];
    return;
  }
  const float maximum = part.maximum[r] > whole.maximum[r] ? part.maximum[r] : whole.maximum[r];
  const float shift = maximum == kMinusInfinity ? 0.0f : maximum;
  float a[kLanes], b[kLanes];
  store(a, exp_weight(set(whole.maximum[r] - shift)), Full{});
  store(b, exp_weight(set(part.maximum[r] - shift)), Full{});
  for (int64_t i = 0; i < whole.dv_padded; i += kLanes)
    store(o + i, fma(load(o2 + i, Full{}), set(b[0]), mul(load(o + i, Full{}), set(a[0]))), Full{});
  whole.total[r] = whole.total[r] * a[0] + part.total[r] * b[0];
  whole.maximum[r] = maximum;
}

// out = o / l. A row with nothing to attend to gives 0.
static inline void flash_finish(const FlashRows& f, int64_t r, DType type, char* out) {
  const float total = f.total[r];
  const float* o = f.sums + r * f.dv_padded;
  with_type(type, (void*)out, [&](auto* to) {
    each(f.dv, [&](int64_t i, auto count) {
      Vec sum = load(o + i, count);
#if defined(QKV_AVX512_BF16_VNNI)
      sum = add(sum, zero());  // -0, which products of bf16 flush to, is 0 after one more product with keys that are excluded
#endif
      store(to + i, total == 0 ? zero() : div(sum, set(total)), count);
    });
  });
}

// Raw scores (n) -> probabilities in `out`, which may be the same place.
static inline void flash_weights(const FlashRows& f, int64_t r, const float* raw, int64_t n, DType type, char* out) {
  const float total = f.total[r], shift = f.maximum[r] == kMinusInfinity ? 0.0f : f.maximum[r];
  with_type(type, (void*)out, [&](auto* to) {
    each(n, [&](int64_t i, auto count) {
      const Vec s = load(raw + i, count);
      // An excluded key has no part in a row that a NaN spoiled.
      const Vec p = select(eq(s, set(kMinusInfinity)), zero(), div(exp_weight(sub(s, set(shift))), set(total)));
      store(to + i, p, count);
    });
  });
}

}  // namespace QKV_ISA
}  // namespace qkv
