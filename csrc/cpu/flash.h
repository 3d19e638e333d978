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

// The rows of one query tile; all of it in scratch.
struct FlashTile {
  int64_t rows, dv, dv_padded;
  float* scores;   // (rows, kKeyBlock)
  float* sums;     // (rows, dv_padded), o above
  float* maximum;  // (rows), m above
  float* total;    // (rows), l above
  float* values;   // (kKeyBlock, dv_padded)
};

static inline void flash_start(const FlashTile& f) {
  memset(f.sums, 0, (size_t)(f.rows * f.dv_padded) * 4);
  for (int64_t r = 0; r < f.rows; ++r) {
    f.maximum[r] = kMinusInfinity;
    f.total[r] = 0;
  }
}

// Copies n value rows to `values` (n, dv_padded), padded with zeros. True if all are finite.
static inline bool flash_values(float* values, int64_t dv, int64_t dv_padded, DType type, const void* v, int64_t row,
                                int64_t step, int64_t n) {
  Vec check = zero();
  with_type(type, v, [&](auto* from) {
    for (int64_t j = 0; j < n; ++j) {
      float* to = values + j * dv_padded;
      for (int64_t i = dv; i < dv_padded; ++i) to[i] = 0;
      if (step == 1)
        each(dv, [&](int64_t i, auto count) { store(to + i, load(from + j * row + i, count), count); });
      else
        for (int64_t i = 0; i < dv; ++i) to[i] = to_float(from[j * row + i * step]);
      // 0 * x is NaN for infinities and NaN.
      for (int64_t i = 0; i < dv_padded; i += kLanes) check = fma(zero(), load(to + i, Full{}), check);
    }
  });
  return reduce_add(check) == 0;
}

// Softmax of row r's scores [0, n), rounded up to whole vectors by -inf; rescales what came before.
static inline void flash_softmax(const FlashTile& f, int64_t r, int64_t n) {
  float* s = f.scores + r * kKeyBlock;
  for (int64_t j = n; j < kKeyBlock && j % kLanes; ++j) s[j] = kMinusInfinity;
  Vec top = set(kMinusInfinity);
  for (int64_t j = 0; j < n; j += kLanes) top = max(top, load(s + j, Full{}));
  const float block_top = reduce_max(top);
  const float maximum = block_top > f.maximum[r] ? block_top : f.maximum[r];
  // -inf as long as every key was excluded: then subtract 0, so that e^-inf gives 0 and a NaN stays one.
  const float shift = maximum == kMinusInfinity ? 0.0f : maximum;
  const Vec by = set(shift);
  Vec total = zero();
  for (int64_t j = 0; j < n; j += kLanes) {
    const Vec score = load(s + j, Full{});
    // -0 marks a key that is excluded; one whose weight underflows has +0. Sums do not tell them apart, flash_accumulate does.
    const Vec p = select(eq(score, set(kMinusInfinity)), set(-0.0f), exp(sub(score, by)));
    store(s + j, p, Full{});
    total = add(total, p);
  }
  if (maximum != f.maximum[r]) {
    float scale[kLanes];
    store(scale, exp(set(f.maximum[r] - shift)), Full{});
    f.total[r] *= scale[0];
    float* o = f.sums + r * f.dv_padded;
    for (int64_t i = 0; i < f.dv_padded; i += kLanes) store(o + i, mul(load(o + i, Full{}), set(scale[0])), Full{});
    f.maximum[r] = maximum;
  }
  f.total[r] += reduce_add(total);
}

// sums += p v for keys [begin, end) of the block. Values that are not finite must meet only rows that attend to them: 0 * inf is
// NaN.
static inline void flash_accumulate(const FlashTile& f, int64_t begin, int64_t end, bool finite) {
  if (finite) {
    block(f.rows, f.dv_padded, end - begin, f.scores + begin, kKeyBlock, f.values + begin * f.dv_padded, f.dv_padded, kPanel,
          f.sums, f.dv_padded, false);
    return;
  }
  for (int64_t r = 0; r < f.rows; ++r)
    for (int64_t j = begin; j < end; ++j) {
      const float p = f.scores[r * kKeyBlock + j];
      if (p == 0 && __builtin_signbit(p)) continue;
      float* o = f.sums + r * f.dv_padded;
      const float* v = f.values + j * f.dv_padded;
      for (int64_t i = 0; i < f.dv_padded; i += kLanes)
        store(o + i, fma(set(p), load(v + i, Full{}), load(o + i, Full{})), Full{});
    }
}

// out = o / l. A row with nothing to attend to gives 0.
static inline void flash_finish(const FlashTile& f, int64_t r, DType type, char* out) {
  const float total = f.total[r];
  const float* o = f.sums + r * f.dv_padded;
  with_type(type, (void*)out, [&](auto* to) {
    each(f.dv, [&](int64_t i, auto count) { store(to + i, total == 0 ? zero() : div(load(o + i, count), set(total)), count); });
  });
}

// Raw scores (n) -> probabilities in `out`, which may be the same place.
static inline void flash_weights(const FlashTile& f, int64_t r, const float* raw, int64_t n, DType type, char* out) {
  const float total = f.total[r], shift = f.maximum[r] == kMinusInfinity ? 0.0f : f.maximum[r];
  with_type(type, (void*)out, [&](auto* to) {
    each(n, [&](int64_t i, auto count) {
      const Vec s = load(raw + i, count);
      // An excluded key has no part in a row that a NaN spoiled.
      const Vec p = select(eq(s, set(kMinusInfinity)), zero(), div(exp(sub(s, set(shift))), set(total)));
      store(to + i, p, count);
    });
  });
}

}  // namespace QKV_ISA
}  // namespace qkv
