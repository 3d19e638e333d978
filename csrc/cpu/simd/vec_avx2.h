// Vec on AVX2 + FMA + F16C: 8 lanes. Tails use maskload for floats and a small buffer for halves.
#pragma once
#include <immintrin.h>

namespace qkv {
namespace QKV_ISA {

constexpr int64_t kLanes = 8;
struct Vec {
  __m256 v;
};
struct Mask {
  __m256 m;
};

QKV_INLINE __m256i lanes_below(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n > 8 ? 8 : n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

QKV_INLINE Vec zero() { return {_mm256_setzero_ps()}; }
QKV_INLINE Vec set(float x) { return {_mm256_set1_ps(x)}; }
QKV_INLINE Vec iota() { return {_mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7)}; }

QKV_INLINE Vec load(const float* p, Full) { return {_mm256_loadu_ps(p)}; }
QKV_INLINE Vec load(const float* p, Rest r) { return {_mm256_maskload_ps(p, lanes_below(r.n))}; }
QKV_INLINE void store(float* p, Vec a, Full) { _mm256_storeu_ps(p, a.v); }
QKV_INLINE void store(float* p, Vec a, Rest r) { _mm256_maskstore_ps(p, lanes_below(r.n), a.v); }

QKV_INLINE __m128i load_halves(const void* p, int64_t n) {
  uint16_t lanes[8] = {0};
  for (int i = 0; i < 8; ++i)
    if (i < n) lanes[i] = ((const uint16_t*)p)[i];
  return _mm_loadu_si128((const __m128i*)lanes);
}
QKV_INLINE void store_halves(void* p, __m128i x, int64_t n) {
  uint16_t lanes[8];
  _mm_storeu_si128((__m128i*)lanes, x);
  for (int i = 0; i < 8; ++i)
    if (i < n) ((uint16_t*)p)[i] = lanes[i];
}

QKV_INLINE Vec load(const f16* p, Full) { return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p))}; }
QKV_INLINE Vec load(const f16* p, Rest r) { return {_mm256_cvtph_ps(load_halves(p, r.n))}; }
QKV_INLINE __m128i to_f16(Vec a) { return _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
QKV_INLINE void store(f16* p, Vec a, Full) { _mm_storeu_si128((__m128i*)p, to_f16(a)); }
QKV_INLINE void store(f16* p, Vec a, Rest r) { store_halves(p, to_f16(a), r.n); }

QKV_INLINE Vec from_bf16(__m128i x) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16))}; }
QKV_INLINE __m128i to_bf16(Vec a) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i half = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
QKV_INLINE Vec load(const bf16* p, Full) { return from_bf16(_mm_loadu_si128((const __m128i*)p)); }
QKV_INLINE Vec load(const bf16* p, Rest r) { return from_bf16(load_halves(p, r.n)); }
QKV_INLINE void store(bf16* p, Vec a, Full) { _mm_storeu_si128((__m128i*)p, to_bf16(a)); }
QKV_INLINE void store(bf16* p, Vec a, Rest r) { store_halves(p, to_bf16(a), r.n); }

QKV_INLINE void stream(float* p, Vec a) { _mm256_stream_ps(p, a.v); }
QKV_INLINE void stream(f16* p, Vec a) { _mm_stream_si128((__m128i*)p, to_f16(a)); }
QKV_INLINE void stream(bf16* p, Vec a) { _mm_stream_si128((__m128i*)p, to_bf16(a)); }
QKV_INLINE void fence() { _mm_sfence(); }

QKV_INLINE Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
QKV_INLINE Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
QKV_INLINE Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
QKV_INLINE Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
QKV_INLINE Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
QKV_INLINE Vec fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }
QKV_INLINE Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
QKV_INLINE Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
QKV_INLINE Vec neg(Vec a) { return {_mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f))}; }
QKV_INLINE Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
QKV_INLINE Vec copysign(Vec a, Vec b) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_or_ps(_mm256_and_ps(sign, b.v), _mm256_andnot_ps(sign, a.v))};
}
QKV_INLINE Vec round(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }

QKV_INLINE Mask lt(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
QKV_INLINE Mask eq(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ)}; }
QKV_INLINE uint64_t bits(Mask m) { return (uint64_t)_mm256_movemask_ps(m.m); }
QKV_INLINE bool any(Mask m) { return bits(m) != 0; }
QKV_INLINE Mask first(int64_t n) { return {_mm256_castsi256_ps(lanes_below(n < 0 ? 0 : n))}; }
QKV_INLINE Vec select(Mask m, Vec a, Vec b) { return {_mm256_blendv_ps(b.v, a.v, m.m)}; }
QKV_INLINE Vec by_sign(Vec x, Vec a, Vec b) { return {_mm256_blendv_ps(b.v, a.v, x.v)}; }
QKV_INLINE Vec zero_where(Mask m, Vec a) { return {_mm256_andnot_ps(m.m, a.v)}; }
QKV_INLINE Mask load_mask(const uint8_t* p, Rest r) {
  uint8_t lanes[8] = {0};
  for (int i = 0; i < 8; ++i)
    if (i < r.n) lanes[i] = p[i];
  const __m256i x = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)lanes));
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(x, _mm256_setzero_si256()))};
}
QKV_INLINE Mask load_mask(const uint8_t* p, Full) {
  const __m256i x = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(x, _mm256_setzero_si256()))};
}

// 2^n in two factors, so that n = -149 or 128 stays inside the exponent range of each.
QKV_INLINE Vec scale2(Vec a, Vec n) {
  const __m256i whole = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256 f = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  const __m256 g = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
  return {_mm256_mul_ps(_mm256_mul_ps(a.v, f), g)};
}

QKV_INLINE Vec swap_pairs(Vec a) { return {_mm256_permute_ps(a.v, 0xb1)}; }
QKV_INLINE Vec power2(Vec t) { return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(t.v), 23))}; }

QKV_INLINE float reduce_add(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps(x, x, 1)));
}
QKV_INLINE float reduce_max(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}

QKV_INLINE void transpose(const float* p, int64_t ld, Vec* to) {
  __m256 r[8], t[4];
  const float* const p4 = hide(p + 4 * ld);
  QKV_UNROLL(4)
  for (int i = 0; i < 4; ++i) {  // rows i and i + 4 share a register: only 128-bit shuffles remain
    r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + i * ld)), _mm_loadu_ps(p4 + i * ld), 1);
    r[i + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p + i * ld + 4)), _mm_loadu_ps(p4 + i * ld + 4), 1);
  }
  QKV_UNROLL(2)
  for (int i = 0; i < 8; i += 4) {
    t[0] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    t[2] = _mm256_unpacklo_ps(r[i + 2], r[i + 3]);
    t[3] = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
    to[i] = {_mm256_shuffle_ps(t[0], t[2], 0x44)};
    to[i + 1] = {_mm256_shuffle_ps(t[0], t[2], 0xee)};
    to[i + 2] = {_mm256_shuffle_ps(t[1], t[3], 0x44)};
    to[i + 3] = {_mm256_shuffle_ps(t[1], t[3], 0xee)};
  }
}

}  // namespace QKV_ISA
}  // namespace qkv
