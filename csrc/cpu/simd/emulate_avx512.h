// The AVX-512 that kernels use (F, BW, DQ, VL, VNNI, BF16) in plain C++, so that they are tested on machines without it. Never in
// a wheel.
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
#undef _mm512_cmp_ps_mask
#undef _mm512_cvtps_ph
#undef _mm512_permute_ps
#undef _mm512_roundscale_ps
#undef _mm512_setr_ps
#undef _mm512_shuffle_f32x4
#undef _mm512_slli_epi32
#undef _mm512_srli_epi16
#undef _mm512_srli_epi32
#undef _mm512_ternarylogic_epi32

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
};
struct __m256bh {
  __m128i low, high;
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
QKV_INLINE V masked_load(uint64_t k, const void* p) {
  auto y = lanes<T>(V{});
  for (int i = 0; i < (int)(sizeof(V) / sizeof(T)); ++i)
    if (k >> i & 1) memcpy(&y[i], (const T*)p + i, sizeof(T));
  return bits_as<V>(y);
}
template <class T, class V>
QKV_INLINE void masked_store(void* p, uint64_t k, V v) {
  auto x = lanes<T>(v);
  for (int i = 0; i < (int)(sizeof(V) / sizeof(T)); ++i)
    if (k >> i & 1) memcpy((T*)p + i, &x[i], sizeof(T));
}

// ---- load, store, set --------------------------------------------------------------------------------

QKV_EMULATED __m512 _mm512_maskz_loadu_ps(__mmask16 k, const void* p) { return masked_load<__m512, float>(k, p); }
QKV_EMULATED __m256i _mm256_maskz_loadu_epi16(__mmask16 k, const void* p) { return masked_load<__m256i, uint16_t>(k, p); }
QKV_EMULATED __m128i _mm_maskz_loadu_epi8(__mmask16 k, const void* p) { return masked_load<__m128i, uint8_t>(k, p); }
QKV_EMULATED void _mm512_mask_storeu_ps(void* p, __mmask16 k, __m512 v) { masked_store<float>(p, k, v); }
QKV_EMULATED void _mm256_mask_storeu_epi16(void* p, __mmask16 k, __m256i v) { masked_store<uint16_t>(p, k, v); }
QKV_EMULATED __m512 _mm512_mask_blend_ps(__mmask16 k, __m512 no, __m512 yes) { return blend<float>(k, yes, no); }
QKV_EMULATED __m512 _mm512_maskz_mov_ps(__mmask16 k, __m512 v) { return blend<float>(k, v, __m512{}); }
QKV_EMULATED __m512i _mm512_mask_mov_epi32(__m512i s, __mmask16 k, __m512i v) { return blend<int32_t>(k, v, s); }

template <class V>
QKV_INLINE V load_bytes(const void* p) {
  V v;
  memcpy(&v, p, sizeof(v));
  return v;
}
QKV_INLINE __m512 _mm512_loadu_ps(const void* p) { return load_bytes<__m512>(p); }
QKV_INLINE __m512i _mm512_loadu_si512(const void* p) { return load_bytes<__m512i>(p); }
QKV_INLINE void _mm512_storeu_ps(void* p, __m512 v) { memcpy(p, &v, 64); }
QKV_INLINE void _mm512_stream_ps(float* p, __m512 v) { memcpy(__builtin_assume_aligned(p, 64), &v, 64); }
QKV_INLINE __m512 _mm512_setzero_ps() { return __m512{}; }
QKV_INLINE __m512i _mm512_setzero_si512() { return __m512i{}; }
QKV_INLINE __m512 _mm512_set1_ps(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
QKV_INLINE __m512i _mm512_set1_epi32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
template <class... X>
QKV_INLINE __m512 _mm512_setr_ps(X... x) {
  static_assert(sizeof...(X) == 16, "one argument a lane");
  return bits_as<__m512>(EmulatedLanes<float, 16>{{(float)x...}});
}
QKV_INLINE __m512i _mm512_castps_si512(__m512 v) { return bits_as<__m512i>(v); }
QKV_INLINE __m512 _mm512_castsi512_ps(__m512i v) { return bits_as<__m512>(v); }
QKV_INLINE __m512d _mm512_castps_pd(__m512 v) { return bits_as<__m512d>(v); }
QKV_INLINE __m512 _mm512_castpd_ps(__m512d v) { return bits_as<__m512>(v); }

// ---- arithmetic and logic ----------------------------------------------------------------------------

#define QKV_HALVES(op, V, half) \
  QKV_INLINE V _mm512_##op(V a, V b) { return {half(a.low, b.low), half(a.high, b.high)}; }
QKV_HALVES(add_ps, __m512, _mm256_add_ps)
QKV_HALVES(sub_ps, __m512, _mm256_sub_ps)
QKV_HALVES(mul_ps, __m512, _mm256_mul_ps)
QKV_HALVES(div_ps, __m512, _mm256_div_ps)
QKV_HALVES(max_ps, __m512, _mm256_max_ps)
QKV_HALVES(min_ps, __m512, _mm256_min_ps)
QKV_HALVES(xor_ps, __m512, _mm256_xor_ps)
QKV_HALVES(add_epi16, __m512i, _mm256_add_epi16)
QKV_HALVES(add_epi32, __m512i, _mm256_add_epi32)
QKV_HALVES(mullo_epi32, __m512i, _mm256_mullo_epi32)
QKV_HALVES(and_si512, __m512i, _mm256_and_si256)
QKV_HALVES(or_si512, __m512i, _mm256_or_si256)
QKV_HALVES(madd_epi16, __m512i, _mm256_madd_epi16)
QKV_HALVES(maddubs_epi16, __m512i, _mm256_maddubs_epi16)
QKV_INLINE __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
QKV_INLINE __m512 _mm512_fnmadd_ps(__m512 a, __m512 b, __m512 c) {
  return {_mm256_fnmadd_ps(a.low, b.low, c.low), _mm256_fnmadd_ps(a.high, b.high, c.high)};
}
QKV_EMULATED __m512 _mm512_abs_ps(__m512 a) {
  return map<__m512, uint32_t>(a, [](uint32_t x) { return x & 0x7fffffff; });
}
QKV_EMULATED __m512i _mm512_slli_epi32(__m512i a, unsigned n) {
  return map<__m512i, uint32_t>(a, [=](uint32_t x) { return n < 32 ? x << n : 0; });
}
QKV_EMULATED __m512i _mm512_srli_epi32(__m512i a, unsigned n) {
  return map<__m512i, uint32_t>(a, [=](uint32_t x) { return n < 32 ? x >> n : 0; });
}
QKV_EMULATED __m512i _mm512_srli_epi16(__m512i a, unsigned n) {
  return map<__m512i, uint16_t>(a, [=](uint16_t x) { return n < 16 ? x >> n : 0; });
}
QKV_EMULATED __m512i _mm512_permutexvar_epi32(__m512i index, __m512i a) {
  auto i = lanes<uint32_t>(index), x = lanes<uint32_t>(a);
  return make<__m512i, uint32_t>([&](int lane) { return x[i[lane] % 16]; });
}
QKV_EMULATED __m512 _mm512_permutex2var_ps(__m512 a, __m512i index, __m512 b) {
  auto i = lanes<uint32_t>(index), x = lanes<uint32_t>(a), y = lanes<uint32_t>(b);
  return make<__m512, uint32_t>([&](int lane) { return (i[lane] & 16 ? y : x)[i[lane] % 16]; });
}
// Bit (a, b, c) of the table `rule`.
QKV_EMULATED __m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int rule) {
  auto x = lanes<uint32_t>(a), y = lanes<uint32_t>(b), z = lanes<uint32_t>(c);
  return make<__m512i, uint32_t>([&](int lane) {
    uint32_t r = 0;
    for (int i = 0; i < 8; ++i)
      if (rule >> i & 1) r |= (i & 4 ? x[lane] : ~x[lane]) & (i & 2 ? y[lane] : ~y[lane]) & (i & 1 ? z[lane] : ~z[lane]);
    return r;
  });
}
QKV_EMULATED __m512 _mm512_roundscale_ps(__m512 a, int) {  // to a whole number, the nearest even, whatever is asked for
  return map<__m512, float>(a, [](float x) { return nearbyintf(x); });
}
QKV_EMULATED __m512 _mm512_scalef_ps(__m512 a, __m512 b) {
  return map<__m512, float>(a, b, [](float x, float y) {
    if (x != x || y != y) return x + y;
    const float n = floorf(y);
    return ldexpf(x, n > 1000 ? 1000 : n < -1000 ? -1000 : (int)n);
  });
}

QKV_EMULATED __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int how) {
  return (__mmask16)mask_of<float>(a, b, [=](float x, float y) {
    return how == _CMP_LT_OQ ? x < y : how == _CMP_EQ_OQ ? x == y : x != x || y != y;  // the last: _CMP_UNORD_Q
  });
}
QKV_EMULATED __mmask16 _mm_test_epi8_mask(__m128i a, __m128i b) {
  return (__mmask16)mask_of<uint8_t>(a, b, [](uint8_t x, uint8_t y) { return (x & y) != 0; });
}
QKV_EMULATED __mmask16 _mm512_movepi32_mask(__m512i a) {
  return (__mmask16)mask_of<int32_t>(a, a, [](int32_t x, int32_t) { return x < 0; });
}

// ---- conversions -------------------------------------------------------------------------------------

QKV_INLINE __m512i _mm512_packs_epi32(__m512i a, __m512i b) {
  return {_mm256_packs_epi32(a.low, b.low), _mm256_packs_epi32(a.high, b.high)};
}
QKV_INLINE __m512i _mm512_packs_epi16(__m512i a, __m512i b) {
  return {_mm256_packs_epi16(a.low, b.low), _mm256_packs_epi16(a.high, b.high)};
}

#define QKV_CONVERT(op, V, To, A, From, result)                    \
  QKV_EMULATED V op(A a) {                                         \
    return convert<V, To, From>(a, [](From x) { return result; }); \
  }
QKV_CONVERT(_mm512_cvtepu16_epi32, __m512i, int32_t, __m256i, uint16_t, x)
QKV_CONVERT(_mm512_cvtepi32_epi16, __m256i, int16_t, __m512i, int32_t, x)
QKV_CONVERT(_mm512_cvtepi32_epi8, __m128i, int8_t, __m512i, int32_t, x)
QKV_CONVERT(_mm512_cvtepi32_ps, __m512, float, __m512i, int32_t, (float)x)
QKV_CONVERT(_mm512_cvtps_epi32, __m512i, int32_t, __m512, float, _mm_cvtss_si32(_mm_set_ss(x)))  // INT32_MIN: does not fit

QKV_INLINE __m512 _mm512_cvtph_ps(__m256i a) {
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(a)), _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1))};
}
QKV_EMULATED __m256i _mm512_cvtps_ph(__m512 a, int) {  // to nearest even, whatever is asked for
  return _mm256_setr_m128i(_mm256_cvtps_ph(a.low, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                           _mm256_cvtps_ph(a.high, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

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
QKV_UNPACK(ps, __m512, uint32_t)
QKV_UNPACK(pd, __m512d, uint64_t)
// In 128 bits: lane i is lane imm[2i .. 2i+1].
QKV_EMULATED __m512 _mm512_permute_ps(__m512 a, int imm) {
  return pick<uint32_t>(a, a, [=](int i) { return (i & ~3) + (imm >> i % 4 * 2 & 3); });
}
// Whole 128-bit parts: two of a, then two of b.
QKV_EMULATED __m512 _mm512_shuffle_f32x4(__m512 a, __m512 b, int imm) {
  return pick<uint64_t>(a, b, [=](int i) { return (imm >> i / 2 * 2 & 3) * 2 + i % 2 + (i & 4 ? 8 : 0); });
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

// ---- dot products ------------------------------------------------------------------------------------

#if defined(QKV_AVX512_BF16_VNNI)
QKV_EMULATED __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {  // a unsigned
  auto s = lanes<uint32_t>(sum);
  auto x = lanes<uint8_t>(a);
  auto y = lanes<int8_t>(b);
  return make<__m512i, uint32_t>([&](int i) {
    uint32_t total = s[i];
    for (int j = 4 * i; j < 4 * i + 4; ++j) total += (uint32_t)(x[j] * y[j]);
    return total;
  });
}

QKV_EMULATED float flushed(float x) {  // denormals are zeros of their sign
  const uint32_t bits = bits_as<uint32_t>(x);
  return bits & 0x7f800000 ? x : bits_as<float>(bits & 0x80000000);
}
QKV_EMULATED __m256bh _mm512_cvtneps_pbh(__m512 a) {
  return convert<__m256bh, uint16_t, float>(a, [](float x) {
    const uint32_t bits = bits_as<uint32_t>(flushed(x));
    return (uint16_t)(x != x ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  });
}
// sum + x y: one rounding to nearest even, denormals flushed before and after.
QKV_EMULATED float dot_step(float sum, uint16_t x, uint16_t y) {
  const float a = flushed(bits_as<float>((uint32_t)x << 16)), b = flushed(bits_as<float>((uint32_t)y << 16));
  return flushed(__builtin_fmaf(a, b, flushed(sum)));
}
QKV_EMULATED __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  auto s = lanes<float>(sum);
  auto x = lanes<uint16_t>(a), y = lanes<uint16_t>(b);
  return make<__m512, float>([&](int i) { return dot_step(dot_step(s[i], x[2 * i + 1], y[2 * i + 1]), x[2 * i], y[2 * i]); });
}
#endif

#undef QKV_EMULATED
#undef QKV_HALVES
#undef QKV_CONVERT
#undef QKV_UNPACK
#undef QKV_REDUCE

}  // namespace QKV_ISA
}  // namespace qkv
