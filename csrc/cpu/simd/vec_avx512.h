// Vec on AVX-512 (F, BW, DQ, VL): 16 lanes, masks for tails.
#pragma once
#include <immintrin.h>
#if defined(QKV_EMULATE_AVX512)
#include "cpu/simd/emulate_avx512.h"
#endif

namespace qkv {
namespace QKV_ISA {

constexpr int64_t kLanes = 16;
struct Vec {
  __m512 v;
};
struct Mask {
  __mmask16 m;
};

QKV_INLINE __mmask16 lanes_below(int64_t n) { return (__mmask16)_bzhi_u32(0xffff, n > 16 ? 16u : (unsigned)n); }

QKV_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
QKV_INLINE Vec set(float x) { return {_mm512_set1_ps(x)}; }
QKV_INLINE Vec iota() { return {_mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }

QKV_INLINE Vec load(const float* p, Full) { return {_mm512_loadu_ps(p)}; }
QKV_INLINE Vec load(const float* p, Rest r) { return {_mm512_maskz_loadu_ps(lanes_below(r.n), p)}; }
QKV_INLINE void store(float* p, Vec a, Full) { _mm512_storeu_ps(p, a.v); }
QKV_INLINE void store(float* p, Vec a, Rest r) { _mm512_mask_storeu_ps(p, lanes_below(r.n), a.v); }

QKV_INLINE Vec load(const f16* p, Full) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
QKV_INLINE Vec load(const f16* p, Rest r) { return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes_below(r.n), p))}; }
QKV_INLINE __m256i to_f16(Vec a) { return _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
QKV_INLINE void store(f16* p, Vec a, Full) { _mm256_storeu_si256((__m256i*)p, to_f16(a)); }
QKV_INLINE void store(f16* p, Vec a, Rest r) { _mm256_mask_storeu_epi16(p, lanes_below(r.n), to_f16(a)); }

QKV_INLINE Vec from_bf16(__m256i x) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))}; }
// By integer arithmetic on both AVX-512 ISAs: vcvtneps2bf16 would flush denormals to zero, see store_flushed.
QKV_INLINE __m256i to_bf16(Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
}
QKV_INLINE Vec load(const bf16* p, Full) { return from_bf16(_mm256_loadu_si256((const __m256i*)p)); }
QKV_INLINE Vec load(const bf16* p, Rest r) { return from_bf16(_mm256_maskz_loadu_epi16(lanes_below(r.n), p)); }
QKV_INLINE void store(bf16* p, Vec a, Full) { _mm256_storeu_si256((__m256i*)p, to_bf16(a)); }
QKV_INLINE void store(bf16* p, Vec a, Rest r) { _mm256_mask_storeu_epi16(p, lanes_below(r.n), to_bf16(a)); }

QKV_INLINE void stream(float* p, Vec a) { _mm512_stream_ps(p, a.v); }
QKV_INLINE void stream(f16* p, Vec a) { _mm256_stream_si256((__m256i*)p, to_f16(a)); }
QKV_INLINE void stream(bf16* p, Vec a) { _mm256_stream_si256((__m256i*)p, to_bf16(a)); }
QKV_INLINE void fence() { _mm_sfence(); }

QKV_INLINE Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
QKV_INLINE Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
QKV_INLINE Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
QKV_INLINE Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
QKV_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
QKV_INLINE Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
QKV_INLINE Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
QKV_INLINE Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
QKV_INLINE Vec neg(Vec a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
QKV_INLINE Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
QKV_INLINE Vec copysign(Vec a, Vec b) {
  const __m512i sign = _mm512_set1_epi32(INT32_MIN);  // bits of b where sign is set, of a elsewhere: (s & b) | (~s & a)
  return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(sign, _mm512_castps_si512(b.v), _mm512_castps_si512(a.v), 0xca))};
}
QKV_INLINE Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

QKV_INLINE Mask lt(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
QKV_INLINE Mask eq(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
QKV_INLINE uint64_t bits(Mask m) { return m.m; }
QKV_INLINE bool any(Mask m) { return m.m != 0; }
QKV_INLINE Mask first(int64_t n) { return {n <= 0 ? (__mmask16)0 : lanes_below(n)}; }
QKV_INLINE Vec select(Mask m, Vec a, Vec b) { return {_mm512_mask_blend_ps(m.m, b.v, a.v)}; }
QKV_INLINE Vec by_sign(Vec x, Vec a, Vec b) {
  return {_mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(x.v)), b.v, a.v)};
}
QKV_INLINE Vec zero_where(Mask m, Vec a) { return {_mm512_maskz_mov_ps((__mmask16)~m.m, a.v)}; }
QKV_INLINE Mask load_mask(const uint8_t* p, Full) {
  return {_mm_test_epi8_mask(_mm_loadu_si128((const __m128i*)p), _mm_set1_epi8(-1))};
}
QKV_INLINE Mask load_mask(const uint8_t* p, Rest r) {
  const __m128i x = _mm_maskz_loadu_epi8(lanes_below(r.n), p);
  return {_mm_test_epi8_mask(x, _mm_set1_epi8(-1))};
}

QKV_INLINE Vec scale2(Vec a, Vec n) { return {_mm512_scalef_ps(a.v, n.v)}; }

QKV_INLINE Vec swap_pairs(Vec a) { return {_mm512_permute_ps(a.v, 0xb1)}; }
QKV_INLINE Vec power2(Vec t) { return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(t.v), 23))}; }
// 2^(j / 16) rounded, as bits, without exponent and less the j << 19 that power2_sixteenths brings along.
static const uint32_t kSixteenths[16] = {0x000000,   0xfffdaac3, 0xfffb95c2, 0xfff9c3d3, 0xfff837f0, 0xfff6f532,
                                         0xfff5fed7, 0xfff5583f, 0xfff504f3, 0xfff508a4, 0xfff5672a, 0xfff6248c,
                                         0xfff744fd, 0xfff8ccdf, 0xfffac0c7, 0xfffd257d};
QKV_INLINE Vec power2_sixteenths(Vec t) {
  const __m512i bits = _mm512_castps_si512(t.v), fraction = _mm512_permutexvar_epi32(bits, _mm512_loadu_si512(kSixteenths));
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_slli_epi32(bits, 19), fraction))};
}
QKV_INLINE Vec lookup(const float* table, Vec t) {
  return {_mm512_permutex2var_ps(_mm512_loadu_ps(table), _mm512_castps_si512(t.v), _mm512_loadu_ps(table + 16))};
}

#if defined(QKV_AVX512_BF16_VNNI)
// Lanes of two bf16 each: sum + the product of the upper ones + that of the lower ones; denormals count as zero.
QKV_INLINE Vec dot_bf16(Vec sum, Vec a, Vec b) {
  __m512bh x, y;
  memcpy(&x, &a, 64);
  memcpy(&y, &b, 64);
  return {_mm512_dpbf16_ps(sum.v, x, y)};
}
// As store, in one instruction. Denormals become zero, as which dot_bf16 would count them, and so do the few that would round up
// to the least normal number.
QKV_INLINE __m256i to_flushed_bf16(Vec a) {
  const __m256bh x = _mm512_cvtneps_pbh(a.v);
  __m256i y;
  memcpy(&y, &x, 32);
  return y;
}
QKV_INLINE void store_flushed(bf16* p, Vec a, Full) { _mm256_storeu_si256((__m256i*)p, to_flushed_bf16(a)); }
QKV_INLINE void store_flushed(bf16* p, Vec a, Rest r) { _mm256_mask_storeu_epi16(p, lanes_below(r.n), to_flushed_bf16(a)); }
// lower | upper << 16, rounded likewise.
QKV_INLINE Vec pairs_of(Vec lower, Vec upper) {
  const __m512i a = _mm512_cvtepu16_epi32(to_flushed_bf16(lower)), b = _mm512_cvtepu16_epi32(to_flushed_bf16(upper));
  return {_mm512_castsi512_ps(_mm512_or_si512(a, _mm512_slli_epi32(b, 16)))};
}
// The same of 16 elements each, as they are.
QKV_INLINE Vec pairs_of(const bf16* lower, const bf16* upper) {
  const __m512i a = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)lower));
  const __m512i b = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)upper));
  return {_mm512_castsi512_ps(_mm512_or_si512(a, _mm512_slli_epi32(b, 16)))};
}
#endif

QKV_INLINE float reduce_add(Vec a) { return _mm512_reduce_add_ps(a.v); }
QKV_INLINE float reduce_max(Vec a) { return _mm512_reduce_max_ps(a.v); }

QKV_INLINE void transpose(const float* p, int64_t ld, Vec* to) {
  __m512 r[16], t[16];
  QKV_UNROLL(16)
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(p + i * ld);
  QKV_UNROLL(8)
  for (int i = 0; i < 16; i += 2) {  // pairs: 2x2 blocks
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
  QKV_UNROLL(4)
  for (int i = 0; i < 16; i += 4) {  // 4x4 blocks inside each 128-bit lane
    r[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    r[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    r[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
    r[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
  }
  QKV_UNROLL(4)
  for (int i = 0; i < 4; ++i) {  // then whole 128-bit lanes, twice
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
  QKV_UNROLL(4)
  for (int i = 0; i < 4; ++i) {
    to[i] = {_mm512_shuffle_f32x4(t[i], t[i + 8], 0x88)};
    to[i + 4] = {_mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88)};
    to[i + 8] = {_mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd)};
    to[i + 12] = {_mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd)};
  }
}

}  // namespace QKV_ISA
}  // namespace qkv
