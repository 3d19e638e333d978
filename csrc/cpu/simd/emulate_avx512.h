// AVX-512 (F, BW, DQ, VL, VNNI, BF16) in plain C++, so that its kernels are tested on machines without it. Never in a wheel.
//
// The functions bear the intrinsics' own names in qkv::<isa>, where they hide the compiler's, and so do the vector types. An
// intrinsic that is missing here is a compile error about its arguments: add its line. Semantics are those of Intel's
// pseudo-code, which also says that dot products of bf16 flush denormals and take the odd element first.
#pragma once
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

// What a compiler has as macros, where immediates must be constants.
#undef _mm256_cmp_ps_mask
#undef _mm256_dpbusd_epi32
#undef _mm256_dpbusds_epi32
#undef _mm256_dpwssd_epi32
#undef _mm256_dpwssds_epi32
#undef _mm256_mask_blend_epi16
#undef _mm256_mask_blend_epi32
#undef _mm256_mask_blend_epi64
#undef _mm256_mask_blend_epi8
#undef _mm256_mask_blend_ps
#undef _mm512_alignr_epi32
#undef _mm512_alignr_epi8
#undef _mm512_bslli_epi128
#undef _mm512_bsrli_epi128
#undef _mm512_cmp_ps_mask
#undef _mm512_cvtps_ph
#undef _mm512_extractf32x4_ps
#undef _mm512_extractf32x8_ps
#undef _mm512_extractf64x4_pd
#undef _mm512_extracti32x4_epi32
#undef _mm512_extracti32x8_epi32
#undef _mm512_extracti64x2_epi64
#undef _mm512_extracti64x4_epi64
#undef _mm512_i32gather_epi32
#undef _mm512_i32gather_ps
#undef _mm512_insertf32x4
#undef _mm512_insertf32x8
#undef _mm512_insertf64x4
#undef _mm512_inserti32x4
#undef _mm512_inserti32x8
#undef _mm512_inserti64x2
#undef _mm512_inserti64x4
#undef _mm512_mask_blend_epi16
#undef _mm512_mask_blend_epi8
#undef _mm512_permute_ps
#undef _mm512_permutex_epi64
#undef _mm512_rol_epi32
#undef _mm512_ror_epi32
#undef _mm512_roundscale_ps
#undef _mm512_setr_epi32
#undef _mm512_setr_epi64
#undef _mm512_setr_ps
#undef _mm512_shuffle_epi32
#undef _mm512_shuffle_f32x4
#undef _mm512_shuffle_f64x2
#undef _mm512_shuffle_i32x4
#undef _mm512_shuffle_i64x2
#undef _mm512_shuffle_ps
#undef _mm512_slli_epi16
#undef _mm512_slli_epi32
#undef _mm512_slli_epi64
#undef _mm512_srai_epi16
#undef _mm512_srai_epi32
#undef _mm512_srai_epi64
#undef _mm512_srli_epi16
#undef _mm512_srli_epi32
#undef _mm512_srli_epi64
#undef _mm512_ternarylogic_epi32
#undef _mm512_ternarylogic_epi64
#undef _mm_dpbusd_epi32
#undef _mm_dpbusds_epi32
#undef _mm_dpwssd_epi32
#undef _mm_dpwssds_epi32
#undef _mm_mask_blend_epi16
#undef _mm_mask_blend_epi32
#undef _mm_mask_blend_epi8
#undef _mm_mask_blend_ps

namespace qkv {
namespace QKV_ISA {

// Halves that the compiler keeps in registers: on its own 64-byte vectors, in memory, everything took minutes to compile.
// What the hot loops use is written on halves; the rest lane by lane, out of line.
#define QKV_EMULATED static __attribute__((noinline, unused))

struct __m512 {
  __m256 low, high;
};
struct __m512i {
  __m256i low, high;
};
struct __m512d {
  __m256d low, high;
};
struct __m512bh {
  __m256i low, high;
  __m512bh() = default;
  explicit __m512bh(__m512i x) : low(x.low), high(x.high) {}
  explicit operator __m512i() const { return {low, high}; }
};

// ---- vectors as arrays of lanes ----------------------------------------------------------------------

template <class T, int N>
struct EmulatedLanes {
  T x[N];
  T& operator[](int i) { return x[i]; }
};

template <class T, class V>
QKV_INLINE EmulatedLanes<T, sizeof(V) / sizeof(T)> lanes(V v) {
  EmulatedLanes<T, sizeof(V) / sizeof(T)> r;
  memcpy(&r, &v, sizeof(r));
  return r;
}
template <class To, class From>
QKV_INLINE To bits_as(From x) {  // as many bytes of x as To has, zeros beyond it
  To y;
  memset(&y, 0, sizeof(y));
  memcpy(&y, &x, sizeof(x) < sizeof(y) ? sizeof(x) : sizeof(y));
  return y;
}
// A vector from its lanes: f(i).
template <class V, class T, class F>
QKV_INLINE V make(F f) {
  EmulatedLanes<T, sizeof(V) / sizeof(T)> r;
  for (int i = 0; i < (int)(sizeof(V) / sizeof(T)); ++i) r.x[i] = (T)f(i);
  return bits_as<V>(r);
}
template <class V, class T, class A, class F>
QKV_INLINE V map(A a, F f) {
  auto x = lanes<T>(a);
  return make<V, T>([&](int i) { return f(x[i]); });
}
template <class V, class T, class F>
QKV_INLINE V map(V a, V b, F f) {
  auto x = lanes<T>(a), y = lanes<T>(b);
  return make<V, T>([&](int i) { return f(x[i], y[i]); });
}
template <class V, class T, class F>
QKV_INLINE V map(V a, V b, V c, F f) {
  auto x = lanes<T>(a), y = lanes<T>(b), z = lanes<T>(c);
  return make<V, T>([&](int i) { return f(x[i], y[i], z[i]); });
}
// Lanes of another width: lane i of the result from lane i of a.
template <class V, class To, class From, class A, class F>
QKV_INLINE V convert(A a, F f) {
  auto x = lanes<From>(a);
  return make<V, To>([&](int i) { return f(x[i]); });
}
template <class T, class V>
QKV_INLINE V blend(uint64_t k, V yes, V no) {
  auto x = lanes<T>(yes), y = lanes<T>(no);
  return make<V, T>([&](int i) { return k >> i & 1 ? x[i] : y[i]; });
}
template <class T, class V, class F>
QKV_INLINE uint64_t mask_of(V a, V b, F f) {
  auto x = lanes<T>(a), y = lanes<T>(b);
  uint64_t k = 0;
  for (int i = 0; i < (int)(sizeof(V) / sizeof(T)); ++i) k |= (uint64_t)(bool)f(x[i], y[i]) << i;
  return k;
}
template <class V, class T>
QKV_INLINE V masked_load(V otherwise, uint64_t k, const void* p) {
  auto y = lanes<T>(otherwise);
  for (int i = 0; i < (int)(sizeof(V) / sizeof(T)); ++i)
    if (k >> i & 1) memcpy(&y[i], (const T*)p + i, sizeof(T));
  return bits_as<V>(y);
}
template <class V, class T>
QKV_INLINE void masked_store(void* p, uint64_t k, V v) {
  auto x = lanes<T>(v);
  for (int i = 0; i < (int)(sizeof(V) / sizeof(T)); ++i)
    if (k >> i & 1) memcpy((T*)p + i, &x[i], sizeof(T));
}
template <class To, class From>
QKV_INLINE To saturate(From x) {
  constexpr int64_t bits = 8 * sizeof(To), low = (To)-1 < 0 ? -(1ll << (bits - 1)) : 0;
  constexpr int64_t high = (To)-1 < 0 ? (1ll << (bits - 1)) - 1 : (1ll << bits) - 1;
  const int64_t y = (int64_t)x;
  return (To)(y < low ? low : y > high ? high : y);
}

// ---- load, store, set --------------------------------------------------------------------------------

#define QKV_LOAD_STORE(width, suffix, V, T, Mask)                                                               \
  QKV_EMULATED V width##_maskz_loadu_##suffix(Mask k, const void* p) { return masked_load<V, T>(V{}, k, p); }   \
  QKV_EMULATED V width##_mask_loadu_##suffix(V s, Mask k, const void* p) { return masked_load<V, T>(s, k, p); } \
  QKV_EMULATED void width##_mask_storeu_##suffix(void* p, Mask k, V v) { masked_store<V, T>(p, k, v); }         \
  QKV_EMULATED V width##_mask_mov_##suffix(V s, Mask k, V v) { return blend<T>(k, v, s); }                      \
  QKV_EMULATED V width##_maskz_mov_##suffix(Mask k, V v) { return blend<T>(k, v, V{}); }                        \
  QKV_EMULATED V width##_mask_blend_##suffix(Mask k, V no, V yes) { return blend<T>(k, yes, no); }
QKV_LOAD_STORE(_mm512, ps, __m512, float, __mmask16)
QKV_LOAD_STORE(_mm512, epi8, __m512i, uint8_t, __mmask64)
QKV_LOAD_STORE(_mm512, epi16, __m512i, uint16_t, __mmask32)
QKV_LOAD_STORE(_mm512, epi32, __m512i, uint32_t, __mmask16)
QKV_LOAD_STORE(_mm512, epi64, __m512i, uint64_t, __mmask8)
QKV_LOAD_STORE(_mm256, ps, __m256, float, __mmask8)
QKV_LOAD_STORE(_mm256, epi8, __m256i, uint8_t, __mmask32)
QKV_LOAD_STORE(_mm256, epi16, __m256i, uint16_t, __mmask16)
QKV_LOAD_STORE(_mm256, epi32, __m256i, uint32_t, __mmask8)
QKV_LOAD_STORE(_mm256, epi64, __m256i, uint64_t, __mmask8)
QKV_LOAD_STORE(_mm, ps, __m128, float, __mmask8)
QKV_LOAD_STORE(_mm, epi8, __m128i, uint8_t, __mmask16)
QKV_LOAD_STORE(_mm, epi16, __m128i, uint16_t, __mmask8)
QKV_LOAD_STORE(_mm, epi32, __m128i, uint32_t, __mmask8)

template <class V>
QKV_INLINE V load_bytes(const void* p) {
  V v;
  memcpy(&v, p, sizeof(v));
  return v;
}
QKV_INLINE __m512 _mm512_loadu_ps(const void* p) { return load_bytes<__m512>(p); }
QKV_INLINE __m512 _mm512_load_ps(const void* p) { return load_bytes<__m512>(__builtin_assume_aligned(p, 64)); }
QKV_INLINE __m512i _mm512_loadu_si512(const void* p) { return load_bytes<__m512i>(p); }
QKV_INLINE __m512i _mm512_load_si512(const void* p) { return load_bytes<__m512i>(__builtin_assume_aligned(p, 64)); }
QKV_EMULATED __m512i _mm512_stream_load_si512(const void* p) { return _mm512_load_si512(p); }
QKV_EMULATED __m512i _mm512_loadu_epi8(const void* p) { return load_bytes<__m512i>(p); }
QKV_EMULATED __m512i _mm512_loadu_epi16(const void* p) { return load_bytes<__m512i>(p); }
QKV_EMULATED __m512i _mm512_loadu_epi32(const void* p) { return load_bytes<__m512i>(p); }
QKV_INLINE void _mm512_storeu_ps(void* p, __m512 v) { memcpy(p, &v, 64); }
QKV_INLINE void _mm512_store_ps(void* p, __m512 v) { memcpy(__builtin_assume_aligned(p, 64), &v, 64); }
QKV_INLINE void _mm512_stream_ps(float* p, __m512 v) { _mm512_store_ps(p, v); }
QKV_INLINE void _mm512_storeu_si512(void* p, __m512i v) { memcpy(p, &v, 64); }
QKV_INLINE void _mm512_store_si512(void* p, __m512i v) { memcpy(__builtin_assume_aligned(p, 64), &v, 64); }
QKV_INLINE void _mm512_stream_si512(__m512i* p, __m512i v) { _mm512_store_si512(p, v); }
QKV_EMULATED void _mm512_storeu_epi8(void* p, __m512i v) { memcpy(p, &v, 64); }
QKV_EMULATED void _mm512_storeu_epi16(void* p, __m512i v) { memcpy(p, &v, 64); }
QKV_EMULATED void _mm512_storeu_epi32(void* p, __m512i v) { memcpy(p, &v, 64); }

QKV_INLINE __m512 _mm512_setzero_ps() { return __m512{}; }
QKV_INLINE __m512i _mm512_setzero_si512() { return __m512i{}; }
QKV_EMULATED __m512i _mm512_setzero_epi32() { return __m512i{}; }
QKV_EMULATED __m512 _mm512_undefined_ps() { return __m512{}; }
QKV_EMULATED __m512i _mm512_undefined_epi32() { return __m512i{}; }

#define QKV_SET(suffix, V, T, half)                                              \
  QKV_INLINE V _mm512_set1_##suffix(T x) { return {half(x), half(x)}; }          \
  template <class... X>                                                          \
  QKV_INLINE V _mm512_setr_##suffix(X... x) {                                    \
    static_assert(sizeof...(X) * sizeof(T) == sizeof(V), "one argument a lane"); \
    return bits_as<V>(EmulatedLanes<T, (int)sizeof...(X)>{{(T)x...}});           \
  }                                                                              \
  template <class... X>                                                          \
  QKV_INLINE V _mm512_set_##suffix(X... x) {                                     \
    static_assert(sizeof...(X) * sizeof(T) == sizeof(V), "one argument a lane"); \
    const T given[] = {(T)x...};                                                 \
    return make<V, T>([&](int i) { return given[(int)sizeof...(X) - 1 - i]; });  \
  }
QKV_SET(ps, __m512, float, _mm256_set1_ps)
QKV_SET(epi8, __m512i, int8_t, _mm256_set1_epi8)
QKV_SET(epi16, __m512i, int16_t, _mm256_set1_epi16)
QKV_SET(epi32, __m512i, int32_t, _mm256_set1_epi32)
QKV_SET(epi64, __m512i, int64_t, _mm256_set1_epi64x)

// ---- casts, parts ------------------------------------------------------------------------------------

#define QKV_CAST(name, To, From) \
  QKV_INLINE To name(From v) { return bits_as<To>(v); }
QKV_CAST(_mm512_castps_si512, __m512i, __m512)
QKV_CAST(_mm512_castsi512_ps, __m512, __m512i)
QKV_CAST(_mm512_castps_pd, __m512d, __m512)
QKV_CAST(_mm512_castpd_ps, __m512, __m512d)
QKV_CAST(_mm512_castpd_si512, __m512i, __m512d)
QKV_CAST(_mm512_castsi512_pd, __m512d, __m512i)
QKV_CAST(_mm512_castsi256_si512, __m512i, __m256i)
QKV_CAST(_mm512_zextsi256_si512, __m512i, __m256i)
QKV_CAST(_mm512_castsi128_si512, __m512i, __m128i)
QKV_CAST(_mm512_zextsi128_si512, __m512i, __m128i)
QKV_CAST(_mm512_castps256_ps512, __m512, __m256)
QKV_CAST(_mm512_zextps256_ps512, __m512, __m256)
QKV_CAST(_mm512_castps128_ps512, __m512, __m128)
QKV_CAST(_mm512_castsi512_si256, __m256i, __m512i)
QKV_CAST(_mm512_castsi512_si128, __m128i, __m512i)
QKV_CAST(_mm512_castps512_ps256, __m256, __m512)
QKV_CAST(_mm512_castps512_ps128, __m128, __m512)
QKV_CAST(_mm512_cvtss_f32, float, __m512)
QKV_CAST(_mm512_cvtsi512_si32, int, __m512i)

#define QKV_PART(kind, Whole, Part, insert, extract)                                             \
  QKV_EMULATED Whole insert(Whole a, Part b, int i) {                                            \
    memcpy((char*)&a + (unsigned)i % (sizeof(Whole) / sizeof(Part)) * sizeof(b), &b, sizeof(b)); \
    return a;                                                                                    \
  }                                                                                              \
  QKV_EMULATED Part extract(Whole a, int i) {                                                    \
    Part b;                                                                                      \
    memcpy(&b, (char*)&a + (unsigned)i % (sizeof(Whole) / sizeof(Part)) * sizeof(b), sizeof(b)); \
    return b;                                                                                    \
  }
QKV_PART(i32x8, __m512i, __m256i, _mm512_inserti32x8, _mm512_extracti32x8_epi32)
QKV_PART(i64x4, __m512i, __m256i, _mm512_inserti64x4, _mm512_extracti64x4_epi64)
QKV_PART(i32x4, __m512i, __m128i, _mm512_inserti32x4, _mm512_extracti32x4_epi32)
QKV_PART(i64x2, __m512i, __m128i, _mm512_inserti64x2, _mm512_extracti64x2_epi64)
QKV_PART(f32x8, __m512, __m256, _mm512_insertf32x8, _mm512_extractf32x8_ps)
QKV_PART(f64x4, __m512d, __m256d, _mm512_insertf64x4, _mm512_extractf64x4_pd)
QKV_PART(f32x4, __m512, __m128, _mm512_insertf32x4, _mm512_extractf32x4_ps)

#define QKV_BROADCAST(name, V, Part)                                                        \
  QKV_EMULATED V name(Part p) {                                                             \
    V v;                                                                                    \
    for (size_t i = 0; i < sizeof(v); i += sizeof(p)) memcpy((char*)&v + i, &p, sizeof(p)); \
    return v;                                                                               \
  }
QKV_BROADCAST(_mm512_broadcast_i32x4, __m512i, __m128i)
QKV_BROADCAST(_mm512_broadcast_i64x2, __m512i, __m128i)
QKV_BROADCAST(_mm512_broadcast_i32x8, __m512i, __m256i)
QKV_BROADCAST(_mm512_broadcast_i64x4, __m512i, __m256i)
QKV_BROADCAST(_mm512_broadcast_f32x4, __m512, __m128)
QKV_BROADCAST(_mm512_broadcast_f32x8, __m512, __m256)
QKV_EMULATED __m512i _mm512_broadcastb_epi8(__m128i v) { return _mm512_set1_epi8(lanes<int8_t>(v)[0]); }
QKV_EMULATED __m512i _mm512_broadcastw_epi16(__m128i v) { return _mm512_set1_epi16(lanes<int16_t>(v)[0]); }
QKV_EMULATED __m512i _mm512_broadcastd_epi32(__m128i v) { return _mm512_set1_epi32(lanes<int32_t>(v)[0]); }
QKV_EMULATED __m512i _mm512_broadcastq_epi64(__m128i v) { return _mm512_set1_epi64(lanes<int64_t>(v)[0]); }
QKV_EMULATED __m512 _mm512_broadcastss_ps(__m128 v) { return _mm512_set1_ps(lanes<float>(v)[0]); }

// ---- arithmetic and logic, lane by lane; each with its mask_ and maskz_ form -----------------------------

#define QKV_BINARY(op, V, T, result)                                                                       \
  QKV_EMULATED V _mm512_##op(V a, V b) {                                                                   \
    return map<V, T>(a, b, [](T x, T y) { return result; });                                               \
  }                                                                                                        \
  QKV_EMULATED V _mm512_mask_##op(V s, uint64_t k, V a, V b) { return blend<T>(k, _mm512_##op(a, b), s); } \
  QKV_EMULATED V _mm512_maskz_##op(uint64_t k, V a, V b) { return blend<T>(k, _mm512_##op(a, b), V{}); }
#define QKV_UNARY(op, V, T, result)                                                                \
  QKV_EMULATED V _mm512_##op(V a) {                                                                \
    return map<V, T>(a, [](T x) { return result; });                                               \
  }                                                                                                \
  QKV_EMULATED V _mm512_mask_##op(V s, uint64_t k, V a) { return blend<T>(k, _mm512_##op(a), s); } \
  QKV_EMULATED V _mm512_maskz_##op(uint64_t k, V a) { return blend<T>(k, _mm512_##op(a), V{}); }

#define QKV_HALVES(op, V, T, half)                                                                         \
  QKV_INLINE V _mm512_##op(V a, V b) { return {half(a.low, b.low), half(a.high, b.high)}; }                \
  QKV_EMULATED V _mm512_mask_##op(V s, uint64_t k, V a, V b) { return blend<T>(k, _mm512_##op(a, b), s); } \
  QKV_EMULATED V _mm512_maskz_##op(uint64_t k, V a, V b) { return blend<T>(k, _mm512_##op(a, b), V{}); }
QKV_HALVES(add_ps, __m512, float, _mm256_add_ps)
QKV_HALVES(sub_ps, __m512, float, _mm256_sub_ps)
QKV_HALVES(mul_ps, __m512, float, _mm256_mul_ps)
QKV_HALVES(div_ps, __m512, float, _mm256_div_ps)
QKV_HALVES(max_ps, __m512, float, _mm256_max_ps)
QKV_HALVES(min_ps, __m512, float, _mm256_min_ps)
QKV_HALVES(and_ps, __m512, float, _mm256_and_ps)
QKV_HALVES(or_ps, __m512, float, _mm256_or_ps)
QKV_HALVES(xor_ps, __m512, float, _mm256_xor_ps)
QKV_HALVES(andnot_ps, __m512, float, _mm256_andnot_ps)
QKV_HALVES(add_epi32, __m512i, int32_t, _mm256_add_epi32)
QKV_HALVES(sub_epi32, __m512i, int32_t, _mm256_sub_epi32)
QKV_HALVES(and_epi32, __m512i, int32_t, _mm256_and_si256)
QKV_HALVES(or_epi32, __m512i, int32_t, _mm256_or_si256)
QKV_HALVES(xor_epi32, __m512i, int32_t, _mm256_xor_si256)
QKV_HALVES(andnot_epi32, __m512i, int32_t, _mm256_andnot_si256)
QKV_HALVES(and_epi64, __m512i, int64_t, _mm256_and_si256)
QKV_HALVES(or_epi64, __m512i, int64_t, _mm256_or_si256)
QKV_HALVES(xor_epi64, __m512i, int64_t, _mm256_xor_si256)
QKV_INLINE __m512i _mm512_and_si512(__m512i a, __m512i b) { return _mm512_and_epi64(a, b); }
QKV_INLINE __m512i _mm512_or_si512(__m512i a, __m512i b) { return _mm512_or_epi64(a, b); }
QKV_INLINE __m512i _mm512_xor_si512(__m512i a, __m512i b) { return _mm512_xor_epi64(a, b); }
QKV_INLINE __m512i _mm512_andnot_si512(__m512i a, __m512i b) { return _mm512_andnot_epi32(a, b); }
QKV_UNARY(sqrt_ps, __m512, float, sqrtf(x))
QKV_UNARY(abs_ps, __m512, uint32_t, x & 0x7fffffff)

#define QKV_FMA(op)                                                                 \
  QKV_INLINE __m512 _mm512_##op(__m512 a, __m512 b, __m512 c) {                     \
    return {_mm256_##op(a.low, b.low, c.low), _mm256_##op(a.high, b.high, c.high)}; \
  }                                                                                 \
  QKV_EMULATED __m512 _mm512_mask_##op(__m512 a, uint64_t k, __m512 b, __m512 c) {  \
    return blend<float>(k, _mm512_##op(a, b, c), a);                                \
  }                                                                                 \
  QKV_EMULATED __m512 _mm512_mask3_##op(__m512 a, __m512 b, __m512 c, uint64_t k) { \
    return blend<float>(k, _mm512_##op(a, b, c), c);                                \
  }                                                                                 \
  QKV_EMULATED __m512 _mm512_maskz_##op(uint64_t k, __m512 a, __m512 b, __m512 c) { \
    return blend<float>(k, _mm512_##op(a, b, c), __m512{});                         \
  }
QKV_FMA(fmadd_ps)
QKV_FMA(fmsub_ps)
QKV_FMA(fnmadd_ps)
QKV_FMA(fnmsub_ps)

#define QKV_INTEGERS(bits)                                          \
  QKV_BINARY(max_epi##bits, __m512i, int##bits##_t, x > y ? x : y)  \
  QKV_BINARY(min_epi##bits, __m512i, int##bits##_t, x < y ? x : y)  \
  QKV_BINARY(max_epu##bits, __m512i, uint##bits##_t, x > y ? x : y) \
  QKV_BINARY(min_epu##bits, __m512i, uint##bits##_t, x < y ? x : y) \
  QKV_UNARY(abs_epi##bits, __m512i, int##bits##_t, x < 0 ? (int##bits##_t)(0 - (uint##bits##_t)x) : x)
QKV_INTEGERS(8)
QKV_INTEGERS(16)
QKV_INTEGERS(32)
QKV_INTEGERS(64)
QKV_BINARY(add_epi8, __m512i, uint8_t, x + y)
QKV_BINARY(sub_epi8, __m512i, uint8_t, x - y)
QKV_BINARY(add_epi16, __m512i, uint16_t, x + y)
QKV_BINARY(sub_epi16, __m512i, uint16_t, x - y)
QKV_BINARY(add_epi64, __m512i, uint64_t, x + y)
QKV_BINARY(sub_epi64, __m512i, uint64_t, x - y)
QKV_BINARY(mullo_epi16, __m512i, int16_t, (int32_t)x* y)
QKV_BINARY(mulhi_epi16, __m512i, int16_t, ((int32_t)x * y) >> 16)
QKV_BINARY(mulhi_epu16, __m512i, uint16_t, ((uint32_t)x * y) >> 16)
QKV_BINARY(mulhrs_epi16, __m512i, int16_t, ((((int32_t)x * y) >> 14) + 1) >> 1)
QKV_BINARY(mullo_epi32, __m512i, uint32_t, x* y)
QKV_BINARY(mullo_epi64, __m512i, uint64_t, x* y)
QKV_BINARY(mul_epi32, __m512i, int64_t, (int64_t)(int32_t)x*(int32_t)y)
QKV_BINARY(mul_epu32, __m512i, uint64_t, (uint64_t)(uint32_t)x*(uint32_t)y)
QKV_BINARY(adds_epi8, __m512i, int8_t, saturate<int8_t>(x + y))
QKV_BINARY(adds_epi16, __m512i, int16_t, saturate<int16_t>(x + y))
QKV_BINARY(adds_epu8, __m512i, uint8_t, saturate<uint8_t>(x + y))
QKV_BINARY(subs_epi8, __m512i, int8_t, saturate<int8_t>(x - y))
QKV_BINARY(subs_epi16, __m512i, int16_t, saturate<int16_t>(x - y))
QKV_BINARY(subs_epu8, __m512i, uint8_t, saturate<uint8_t>(x - y))

// Bit (a, b, c) of the table `rule`.
QKV_EMULATED __m512i _mm512_ternarylogic_epi64(__m512i a, __m512i b, __m512i c, int rule) {
  const __m512i ones = _mm512_set1_epi32(-1);
  __m512i r{};
  for (int i = 0; i < 8; ++i)
    if (rule >> i & 1)
      r = _mm512_or_epi64(r, _mm512_and_epi64(_mm512_and_epi64(i & 4 ? a : _mm512_andnot_si512(a, ones),
                                                               i & 2 ? b : _mm512_andnot_si512(b, ones)),
                                              i & 1 ? c : _mm512_andnot_si512(c, ones)));
  return r;
}
QKV_EMULATED __m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int rule) {
  return _mm512_ternarylogic_epi64(a, b, c, rule);
}

#define QKV_SHIFTS(bits)                                                                                       \
  QKV_EMULATED __m512i _mm512_slli_epi##bits(__m512i a, unsigned n) {                                          \
    return map<__m512i, uint##bits##_t>(a, [=](uint##bits##_t x) { return n < bits ? (uint64_t)x << n : 0; }); \
  }                                                                                                            \
  QKV_EMULATED __m512i _mm512_srli_epi##bits(__m512i a, unsigned n) {                                          \
    return map<__m512i, uint##bits##_t>(a, [=](uint##bits##_t x) { return n < bits ? x >> n : 0; });           \
  }                                                                                                            \
  QKV_EMULATED __m512i _mm512_srai_epi##bits(__m512i a, unsigned n) {                                          \
    return map<__m512i, int##bits##_t>(a, [=](int##bits##_t x) { return x >> (n < bits ? n : bits - 1); });    \
  }                                                                                                            \
  QKV_BINARY(sllv_epi##bits, __m512i, uint##bits##_t, y < bits ? (uint64_t)x << y : 0)                         \
  QKV_BINARY(srlv_epi##bits, __m512i, uint##bits##_t, y < bits ? x >> y : 0)                                   \
  QKV_BINARY(srav_epi##bits, __m512i, int##bits##_t, x >> ((uint##bits##_t)y < bits ? y : bits - 1))
QKV_SHIFTS(16)
QKV_SHIFTS(32)
QKV_SHIFTS(64)
QKV_EMULATED __m512i _mm512_rol_epi32(__m512i a, int n) {
  return map<__m512i, uint32_t>(a, [=](uint32_t x) { return x << (n & 31) | x >> (-n & 31); });
}
QKV_EMULATED __m512i _mm512_ror_epi32(__m512i a, int n) { return _mm512_rol_epi32(a, -n); }

// The part of the number that `imm` names: imm >> 4 binary places, by the way of rounding in its low bits.
QKV_EMULATED __m512 _mm512_roundscale_ps(__m512 a, int imm) {
  const float scale = (float)(1 << (imm >> 4));
  return map<__m512, float>(a, [=](float x) {
    if (!(fabsf(x) < 0x1p23f)) return x;
    const float y = x * scale;
    return (imm & 4 || (imm & 3) == 0 ? nearbyintf(y)
            : (imm & 3) == 1          ? floorf(y)
            : (imm & 3) == 2          ? ceilf(y)
                                      : truncf(y)) /
           scale;
  });
}
QKV_EMULATED __m512 _mm512_scalef_ps(__m512 a, __m512 b) {
  return map<__m512, float>(a, b, [](float x, float y) {
    if (x != x || y != y) return x + y;
    const float n = floorf(y);
    return ldexpf(x, n > 1000 ? 1000 : n < -1000 ? -1000 : (int)n);
  });
}

// ---- comparisons and masks ---------------------------------------------------------------------------

QKV_EMULATED bool compares(float x, float y, int how) {  // the 32 predicates of cmp_ps; 16 and up signal otherwise, and agree
  const bool unordered = x != x || y != y;
  switch (how & 15) {
    case 0:
      return x == y;
    case 1:
      return x < y;
    case 2:
      return x <= y;
    case 3:
      return unordered;
    case 4:
      return x != y;
    case 5:
      return !(x < y);
    case 6:
      return !(x <= y);
    case 7:
      return !unordered;
    case 8:
      return unordered || x == y;
    case 9:
      return !(x >= y);
    case 10:
      return !(x > y);
    case 11:
      return false;
    case 12:
      return !unordered && x != y;
    case 13:
      return x >= y;
    case 14:
      return x > y;
    default:
      return true;
  }
}
QKV_EMULATED __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int how) {
  return (__mmask16)mask_of<float>(a, b, [=](float x, float y) { return compares(x, y, how); });
}
QKV_EMULATED __mmask8 _mm256_cmp_ps_mask(__m256 a, __m256 b, int how) {
  return (__mmask8)mask_of<float>(a, b, [=](float x, float y) { return compares(x, y, how); });
}
#define QKV_COMPARE(width, op, V, Mask, T, result)                  \
  QKV_EMULATED Mask width##_##op##_mask(V a, V b) {                 \
    return (Mask)mask_of<T>(a, b, [](T x, T y) { return result; }); \
  }                                                                 \
  QKV_EMULATED Mask width##_mask_##op##_mask(Mask k, V a, V b) { return (Mask)(k & width##_##op##_mask(a, b)); }
#define QKV_COMPARES(width, bits, V, Mask)                                 \
  QKV_COMPARE(width, cmpeq_epi##bits, V, Mask, int##bits##_t, x == y)      \
  QKV_COMPARE(width, cmpneq_epi##bits, V, Mask, int##bits##_t, x != y)     \
  QKV_COMPARE(width, cmplt_epi##bits, V, Mask, int##bits##_t, x < y)       \
  QKV_COMPARE(width, cmple_epi##bits, V, Mask, int##bits##_t, x <= y)      \
  QKV_COMPARE(width, cmpgt_epi##bits, V, Mask, int##bits##_t, x > y)       \
  QKV_COMPARE(width, cmpge_epi##bits, V, Mask, int##bits##_t, x >= y)      \
  QKV_COMPARE(width, cmplt_epu##bits, V, Mask, uint##bits##_t, x < y)      \
  QKV_COMPARE(width, cmpgt_epu##bits, V, Mask, uint##bits##_t, x > y)      \
  QKV_COMPARE(width, cmpge_epu##bits, V, Mask, uint##bits##_t, x >= y)     \
  QKV_COMPARE(width, test_epi##bits, V, Mask, int##bits##_t, (x & y) != 0) \
  QKV_COMPARE(width, testn_epi##bits, V, Mask, int##bits##_t, (x & y) == 0)
QKV_COMPARES(_mm512, 8, __m512i, __mmask64)
QKV_COMPARES(_mm512, 16, __m512i, __mmask32)
QKV_COMPARES(_mm512, 32, __m512i, __mmask16)
QKV_COMPARES(_mm256, 8, __m256i, __mmask32)
QKV_COMPARES(_mm256, 16, __m256i, __mmask16)
QKV_COMPARES(_mm256, 32, __m256i, __mmask8)
QKV_COMPARES(_mm, 8, __m128i, __mmask16)
QKV_COMPARES(_mm, 16, __m128i, __mmask8)
QKV_COMPARES(_mm, 32, __m128i, __mmask8)

#define QKV_MASKS(bits, Mask)                                                                        \
  QKV_EMULATED __m512i _mm512_movm_epi##bits(Mask k) {                                               \
    return make<__m512i, int##bits##_t>([=](int i) { return k >> i & 1 ? -1 : 0; });                 \
  }                                                                                                  \
  QKV_EMULATED Mask _mm512_movepi##bits##_mask(__m512i a) {                                          \
    return (Mask)mask_of<int##bits##_t>(a, a, [](int##bits##_t x, int##bits##_t) { return x < 0; }); \
  }                                                                                                  \
  QKV_EMULATED __m512i _mm512_mask_set1_epi##bits(__m512i s, Mask k, int##bits##_t x) {              \
    return blend<int##bits##_t>(k, _mm512_set1_epi##bits(x), s);                                     \
  }                                                                                                  \
  QKV_EMULATED __m512i _mm512_maskz_set1_epi##bits(Mask k, int##bits##_t x) {                        \
    return blend<int##bits##_t>(k, _mm512_set1_epi##bits(x), __m512i{});                             \
  }
QKV_MASKS(8, __mmask64)
QKV_MASKS(16, __mmask32)
QKV_MASKS(32, __mmask16)

// ---- conversions -------------------------------------------------------------------------------------

#define QKV_CONVERT(op, V, To, A, From, result)                    \
  QKV_EMULATED V op(A a) {                                         \
    return convert<V, To, From>(a, [](From x) { return result; }); \
  }
QKV_CONVERT(_mm512_cvtepi8_epi16, __m512i, int16_t, __m256i, int8_t, x)
QKV_CONVERT(_mm512_cvtepu8_epi16, __m512i, int16_t, __m256i, uint8_t, x)
QKV_CONVERT(_mm512_cvtepi8_epi32, __m512i, int32_t, __m128i, int8_t, x)
QKV_CONVERT(_mm512_cvtepu8_epi32, __m512i, int32_t, __m128i, uint8_t, x)
QKV_CONVERT(_mm512_cvtepi16_epi32, __m512i, int32_t, __m256i, int16_t, x)
QKV_CONVERT(_mm512_cvtepu16_epi32, __m512i, int32_t, __m256i, uint16_t, x)
QKV_CONVERT(_mm512_cvtepi32_epi64, __m512i, int64_t, __m256i, int32_t, x)
QKV_CONVERT(_mm512_cvtepu32_epi64, __m512i, int64_t, __m256i, uint32_t, x)
QKV_CONVERT(_mm512_cvtepi32_epi16, __m256i, int16_t, __m512i, int32_t, x)
QKV_CONVERT(_mm512_cvtsepi32_epi16, __m256i, int16_t, __m512i, int32_t, saturate<int16_t>(x))
QKV_CONVERT(_mm512_cvtusepi32_epi16, __m256i, uint16_t, __m512i, uint32_t, saturate<uint16_t>(x))
QKV_CONVERT(_mm512_cvtepi32_epi8, __m128i, int8_t, __m512i, int32_t, x)
QKV_CONVERT(_mm512_cvtsepi32_epi8, __m128i, int8_t, __m512i, int32_t, saturate<int8_t>(x))
QKV_CONVERT(_mm512_cvtusepi32_epi8, __m128i, uint8_t, __m512i, uint32_t, saturate<uint8_t>(x))
QKV_CONVERT(_mm512_cvtepi16_epi8, __m256i, int8_t, __m512i, int16_t, x)
QKV_CONVERT(_mm512_cvtsepi16_epi8, __m256i, int8_t, __m512i, int16_t, saturate<int8_t>(x))
QKV_CONVERT(_mm512_cvtusepi16_epi8, __m256i, uint8_t, __m512i, uint16_t, saturate<uint8_t>(x))
QKV_CONVERT(_mm512_cvtepi64_epi32, __m256i, int32_t, __m512i, int64_t, x)
QKV_CONVERT(_mm512_cvtepi32_ps, __m512, float, __m512i, int32_t, (float)x)
QKV_CONVERT(_mm512_cvtepu32_ps, __m512, float, __m512i, uint32_t, (float)x)
// INT32_MIN where it does not fit.
QKV_CONVERT(_mm512_cvtps_epi32, __m512i, int32_t, __m512, float, _mm_cvtss_si32(_mm_set_ss(x)))
QKV_CONVERT(_mm512_cvttps_epi32, __m512i, int32_t, __m512, float, _mm_cvttss_si32(_mm_set_ss(x)))
QKV_EMULATED void _mm512_mask_cvtepi32_storeu_epi8(void* p, __mmask16 k, __m512i v) {
  masked_store<__m128i, int8_t>(p, k, _mm512_cvtepi32_epi8(v));
}
QKV_EMULATED void _mm512_mask_cvtepi32_storeu_epi16(void* p, __mmask16 k, __m512i v) {
  masked_store<__m256i, int16_t>(p, k, _mm512_cvtepi32_epi16(v));
}

QKV_INLINE __m512 _mm512_cvtph_ps(__m256i a) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(a)), _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1))};
}
QKV_EMULATED __m256i _mm512_cvtps_ph(__m512 a, int) {  // to nearest even, whatever is asked for
  return _mm256_setr_m128i(_mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                           _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#define QKV_PACK(op, To, From)                                                              \
  QKV_EMULATED __m512i op(__m512i a, __m512i b) { /* per 128 bits: lanes of a, then of b */ \
    auto x = lanes<From>(a), y = lanes<From>(b);                                            \
    constexpr int n = 16 / sizeof(From);                                                    \
    return make<__m512i, To>([&](int i) {                                                   \
      const int lane = i / (2 * n) * n + i % n;                                             \
      return saturate<To>(i / n % 2 ? y[lane] : x[lane]);                                   \
    });                                                                                     \
  }
QKV_PACK(_mm512_packs_epi16, int8_t, int16_t)
QKV_PACK(_mm512_packus_epi16, uint8_t, int16_t)
QKV_PACK(_mm512_packs_epi32, int16_t, int32_t)
QKV_PACK(_mm512_packus_epi32, uint16_t, int32_t)

// ---- shuffles ----------------------------------------------------------------------------------------

// Lane i of the result is lane from(i) of a, or of b from the number of lanes on.
template <class T, class V, class F>
QKV_INLINE V pick(V a, V b, F from) {
  auto x = lanes<T>(a), y = lanes<T>(b);
  constexpr int n = sizeof(V) / sizeof(T);
  return make<V, T>([&](int i) {
    const int j = from(i);
    return j < n ? x[j] : y[j - n];
  });
}
#define QKV_UNPACK(suffix, V, T)                                                                 \
  QKV_EMULATED V _mm512_unpacklo_##suffix(V a, V b) {                                            \
    constexpr int n = 16 / sizeof(T);                                                            \
    return pick<T>(a, b, [](int i) { return i / n * n + i % n / 2 + i % 2 * (4 * n); });         \
  }                                                                                              \
  QKV_EMULATED V _mm512_unpackhi_##suffix(V a, V b) {                                            \
    constexpr int n = 16 / sizeof(T);                                                            \
    return pick<T>(a, b, [](int i) { return i / n * n + n / 2 + i % n / 2 + i % 2 * (4 * n); }); \
  }
QKV_UNPACK(epi8, __m512i, uint8_t)
QKV_UNPACK(epi16, __m512i, uint16_t)
QKV_UNPACK(epi32, __m512i, uint32_t)
QKV_UNPACK(epi64, __m512i, uint64_t)
QKV_UNPACK(ps, __m512, uint32_t)
QKV_UNPACK(pd, __m512d, uint64_t)

#define QKV_PERMUTE(suffix, V, T, Mask)                                               \
  QKV_EMULATED V _mm512_permutexvar_##suffix(__m512i index, V a) {                    \
    auto j = lanes<T>(index);                                                         \
    return pick<T>(a, a, [&](int i) { return (int)(j[i] & (64 / sizeof(T) - 1)); });  \
  }                                                                                   \
  QKV_EMULATED V _mm512_maskz_permutexvar_##suffix(Mask k, __m512i index, V a) {      \
    return blend<T>(k, _mm512_permutexvar_##suffix(index, a), V{});                   \
  }                                                                                   \
  QKV_EMULATED V _mm512_permutex2var_##suffix(V a, __m512i index, V b) {              \
    auto j = lanes<T>(index);                                                         \
    return pick<T>(a, b, [&](int i) { return (int)(j[i] & (128 / sizeof(T) - 1)); }); \
  }
QKV_PERMUTE(epi16, __m512i, uint16_t, __mmask32)
QKV_PERMUTE(epi32, __m512i, uint32_t, __mmask16)
QKV_PERMUTE(epi64, __m512i, uint64_t, __mmask8)
QKV_PERMUTE(ps, __m512, uint32_t, __mmask16)

QKV_EMULATED __m512i _mm512_shuffle_epi8(__m512i a, __m512i b) {
  auto x = lanes<uint8_t>(a), j = lanes<uint8_t>(b);
  return make<__m512i, uint8_t>([&](int i) { return j[i] & 0x80 ? 0 : x[(i & ~15) + (j[i] & 15)]; });
}
QKV_EMULATED __m512i _mm512_maskz_shuffle_epi8(__mmask64 k, __m512i a, __m512i b) {
  return blend<uint8_t>(k, _mm512_shuffle_epi8(a, b), __m512i{});
}
// In 128 bits: lane i is lane imm[2i .. 2i+1].
QKV_EMULATED __m512i _mm512_shuffle_epi32(__m512i a, int imm) {
  return pick<uint32_t>(a, a, [=](int i) { return (i & ~3) + (imm >> i % 4 * 2 & 3); });
}
QKV_EMULATED __m512 _mm512_permute_ps(__m512 a, int imm) {
  return pick<uint32_t>(a, a, [=](int i) { return (i & ~3) + (imm >> i % 4 * 2 & 3); });
}
QKV_EMULATED __m512 _mm512_shuffle_ps(__m512 a, __m512 b, int imm) {  // two lanes of a, then two of b
  return pick<uint32_t>(a, b, [=](int i) { return (i & ~3) + (imm >> i % 4 * 2 & 3) + (i & 2 ? 16 : 0); });
}
QKV_EMULATED __m512i _mm512_permutex_epi64(__m512i a, int imm) {  // in 256 bits
  return pick<uint64_t>(a, a, [=](int i) { return (i & ~3) + (imm >> i % 4 * 2 & 3); });
}
// Whole 128-bit parts: two of a, then two of b.
#define QKV_SHUFFLE_PARTS(name, V)                                                                            \
  QKV_EMULATED V name(V a, V b, int imm) {                                                                    \
    return pick<uint64_t>(a, b, [=](int i) { return (imm >> i / 2 * 2 & 3) * 2 + i % 2 + (i & 4 ? 8 : 0); }); \
  }
QKV_SHUFFLE_PARTS(_mm512_shuffle_f32x4, __m512)
QKV_SHUFFLE_PARTS(_mm512_shuffle_i32x4, __m512i)
QKV_SHUFFLE_PARTS(_mm512_shuffle_f64x2, __m512d)
QKV_SHUFFLE_PARTS(_mm512_shuffle_i64x2, __m512i)
// (a, b) shifted right by n bytes in each 128 bits, b lowest; n lanes over the whole.
QKV_EMULATED __m512i _mm512_alignr_epi8(__m512i a, __m512i b, int n) {
  auto x = lanes<uint8_t>(a), y = lanes<uint8_t>(b);
  return make<__m512i, uint8_t>([&](int i) {
    const int j = i % 16 + (n & 255);
    return j < 16 ? y[(i & ~15) + j] : j < 32 ? x[(i & ~15) + j - 16] : 0;
  });
}
QKV_EMULATED __m512i _mm512_alignr_epi32(__m512i a, __m512i b, int n) {
  return pick<uint32_t>(b, a, [=](int i) { return i + (n & 15); });
}
QKV_EMULATED __m512i _mm512_bslli_epi128(__m512i a, int n) { return _mm512_alignr_epi8(a, __m512i{}, n > 15 ? 0 : 16 - n); }
QKV_EMULATED __m512i _mm512_bsrli_epi128(__m512i a, int n) { return _mm512_alignr_epi8(__m512i{}, a, n); }
QKV_EMULATED __m512 _mm512_moveldup_ps(__m512 a) { return _mm512_permute_ps(a, 0xa0); }
QKV_EMULATED __m512 _mm512_movehdup_ps(__m512 a) { return _mm512_permute_ps(a, 0xf5); }
QKV_EMULATED __m512 _mm512_i32gather_ps(__m512i index, const void* p, int scale) {
  auto j = lanes<int32_t>(index);
  return make<__m512, float>([&](int i) { return load_bytes<float>((const char*)p + (int64_t)j[i] * scale); });
}
QKV_EMULATED __m512i _mm512_i32gather_epi32(__m512i index, const void* p, int scale) {
  auto j = lanes<int32_t>(index);
  return make<__m512i, int32_t>([&](int i) { return load_bytes<int32_t>((const char*)p + (int64_t)j[i] * scale); });
}

// ---- over the lanes ----------------------------------------------------------------------------------

// By halves, as the compiler does.
#define QKV_REDUCE(op, V, T, result)                     \
  QKV_EMULATED T _mm512_reduce_##op(V a) {               \
    auto l = lanes<T>(a);                                \
    for (int half = 32 / sizeof(T); half > 0; half /= 2) \
      for (int i = 0; i < half; ++i) {                   \
        const T x = l[i], y = l[i + half];               \
        l[i] = result;                                   \
      }                                                  \
    return l[0];                                         \
  }
QKV_REDUCE(add_ps, __m512, float, x + y)
QKV_REDUCE(max_ps, __m512, float, x > y ? x : y)
QKV_REDUCE(min_ps, __m512, float, x < y ? x : y)
QKV_REDUCE(add_epi32, __m512i, int32_t, (int32_t)((uint32_t)x + (uint32_t)y))
QKV_REDUCE(max_epi32, __m512i, int32_t, x > y ? x : y)
QKV_REDUCE(min_epi32, __m512i, int32_t, x < y ? x : y)
QKV_REDUCE(add_epi64, __m512i, int64_t, (int64_t)((uint64_t)x + (uint64_t)y))

// ---- dot products ------------------------------------------------------------------------------------

QKV_EMULATED __m512i _mm512_madd_epi16(__m512i a, __m512i b) {
  auto x = lanes<int16_t>(a), y = lanes<int16_t>(b);
  return make<__m512i, int32_t>([&](int i) { return (uint32_t)(x[2 * i] * y[2 * i]) + (uint32_t)(x[2 * i + 1] * y[2 * i + 1]); });
}
QKV_EMULATED __m512i _mm512_maddubs_epi16(__m512i a, __m512i b) {  // a unsigned; saturates
  auto x = lanes<uint8_t>(a);
  auto y = lanes<int8_t>(b);
  return make<__m512i, int16_t>([&](int i) { return saturate<int16_t>(x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1]); });
}
QKV_EMULATED __m512i _mm512_sad_epu8(__m512i a, __m512i b) {
  auto x = lanes<uint8_t>(a), y = lanes<uint8_t>(b);
  return make<__m512i, uint64_t>([&](int i) {
    uint64_t sum = 0;
    for (int j = 8 * i; j < 8 * i + 8; ++j) sum += (uint64_t)(x[j] > y[j] ? x[j] - y[j] : y[j] - x[j]);
    return sum;
  });
}

#if defined(QKV_AVX512_BF16_VNNI)
template <class A, class B, class V>
QKV_INLINE V dot_integers(V sum, V a, V b, bool saturates) {  // sum + the products of a lane's parts
  auto s = lanes<int32_t>(sum);
  auto x = lanes<A>(a);
  auto y = lanes<B>(b);
  constexpr int n = 4 / sizeof(A);
  return make<V, int32_t>([&](int i) {
    int64_t total = s[i];
    for (int j = n * i; j < n * i + n; ++j) total += (int32_t)x[j] * (int32_t)y[j];
    return saturates ? saturate<int32_t>(total) : (int32_t)total;
  });
}
#define QKV_DOT(width, V)                                                                                       \
  QKV_EMULATED V width##_dpbusd_epi32(V s, V a, V b) { return dot_integers<uint8_t, int8_t>(s, a, b, false); }  \
  QKV_EMULATED V width##_dpbusds_epi32(V s, V a, V b) { return dot_integers<uint8_t, int8_t>(s, a, b, true); }  \
  QKV_EMULATED V width##_dpwssd_epi32(V s, V a, V b) { return dot_integers<int16_t, int16_t>(s, a, b, false); } \
  QKV_EMULATED V width##_dpwssds_epi32(V s, V a, V b) { return dot_integers<int16_t, int16_t>(s, a, b, true); }
QKV_DOT(_mm512, __m512i)
QKV_DOT(_mm256, __m256i)
QKV_DOT(_mm, __m128i)

QKV_EMULATED float flushed(float x) {  // denormals are zeros of their sign
  const uint32_t bits = bits_as<uint32_t>(x);
  return bits & 0x7f800000 ? x : bits_as<float>(bits & 0x80000000);
}
// sum + x y: one rounding to nearest even, denormals flushed before and after.
QKV_EMULATED float dot_step(float sum, uint16_t x, uint16_t y) {
  const float a = flushed(bits_as<float>((uint32_t)x << 16)), b = flushed(bits_as<float>((uint32_t)y << 16));
  return flushed(__builtin_fmaf(a, b, flushed(sum)));
}
template <class V, class H>
QKV_INLINE V dot_bf16(V sum, H a, H b) {
  auto s = lanes<float>(sum);
  auto x = lanes<uint16_t>(a), y = lanes<uint16_t>(b);
  return make<V, float>([&](int i) { return dot_step(dot_step(s[i], x[2 * i + 1], y[2 * i + 1]), x[2 * i], y[2 * i]); });
}
QKV_EMULATED __m512 _mm512_dpbf16_ps(__m512 s, __m512bh a, __m512bh b) { return dot_bf16(s, a, b); }
QKV_EMULATED __m256 _mm256_dpbf16_ps(__m256 s, __m256bh a, __m256bh b) { return dot_bf16(s, a, b); }

QKV_EMULATED uint16_t rounded_to_bf16(float x) {
  const uint32_t bits = bits_as<uint32_t>(flushed(x));
  if (x != x) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
QKV_CONVERT(_mm512_cvtneps_pbh, __m256bh, uint16_t, __m512, float, rounded_to_bf16(x))
QKV_EMULATED __m512bh _mm512_cvtne2ps_pbh(__m512 a, __m512 b) {  // b below, a above
  auto x = lanes<float>(b), y = lanes<float>(a);
  return make<__m512bh, uint16_t>([&](int i) { return rounded_to_bf16(i < 16 ? x[i] : y[i - 16]); });
}
QKV_CONVERT(_mm512_cvtpbh_ps, __m512, float, __m256bh, uint16_t, bits_as<float>((uint32_t)x << 16))
#endif

#undef QKV_EMULATED
#undef QKV_HALVES
#undef QKV_LOAD_STORE
#undef QKV_SET
#undef QKV_CAST
#undef QKV_PART
#undef QKV_BROADCAST
#undef QKV_BINARY
#undef QKV_UNARY
#undef QKV_FMA
#undef QKV_INTEGERS
#undef QKV_SHIFTS
#undef QKV_COMPARE
#undef QKV_COMPARES
#undef QKV_MASKS
#undef QKV_CONVERT
#undef QKV_PACK
#undef QKV_UNPACK
#undef QKV_PERMUTE
#undef QKV_SHUFFLE_PARTS
#undef QKV_REDUCE
#undef QKV_DOT

}  // namespace QKV_ISA
}  // namespace qkv
