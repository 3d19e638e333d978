// Vec on the compiler's own vectors: 4 lanes, which is SSE2 on x86-64 and NEON on Arm, and correct anywhere.
#pragma once

namespace qkv {
namespace QKV_ISA {

typedef float f32x4 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));

constexpr int64_t kLanes = 4;
struct Vec {
  f32x4 v;
};
struct Mask {
  i32x4 m;
};

QKV_INLINE Vec zero() { return {f32x4{0, 0, 0, 0}}; }
QKV_INLINE Vec set(float x) { return {f32x4{x, x, x, x}}; }
QKV_INLINE Vec iota() { return {f32x4{0, 1, 2, 3}}; }

QKV_INLINE Vec load(const float* p, Full) {
  Vec a;
  memcpy(&a.v, p, 16);
  return a;
}
QKV_INLINE Vec load(const float* p, Rest r) {
  Vec a = zero();
  for (int i = 0; i < kLanes; ++i)
    if (i < r.n) a.v[i] = p[i];
  return a;
}
QKV_INLINE void store(float* p, Vec a, Full) { memcpy(p, &a.v, 16); }
QKV_INLINE void store(float* p, Vec a, Rest r) {
  for (int i = 0; i < kLanes; ++i)
    if (i < r.n) p[i] = a.v[i];
}

template <class Half>
QKV_INLINE Vec load_halves(const Half* p, int64_t n) {
  Vec a = zero();
  for (int i = 0; i < kLanes; ++i)
    if (i < n) a.v[i] = to_float(p[i]);
  return a;
}
template <class Half>
QKV_INLINE void store_halves(Half* p, Vec a, int64_t n) {
  for (int i = 0; i < kLanes; ++i)
    if (i < n) from_float(a.v[i], p + i);
}
QKV_INLINE Vec load(const f16* p, Full) { return load_halves(p, kLanes); }
QKV_INLINE Vec load(const f16* p, Rest r) { return load_halves(p, r.n); }
QKV_INLINE Vec load(const bf16* p, Full) { return load_halves(p, kLanes); }
QKV_INLINE Vec load(const bf16* p, Rest r) { return load_halves(p, r.n); }
QKV_INLINE void store(f16* p, Vec a, Full) { store_halves(p, a, kLanes); }
QKV_INLINE void store(f16* p, Vec a, Rest r) { store_halves(p, a, r.n); }
QKV_INLINE void store(bf16* p, Vec a, Full) { store_halves(p, a, kLanes); }
QKV_INLINE void store(bf16* p, Vec a, Rest r) { store_halves(p, a, r.n); }

// Baseline machines store as ever: what counts here is that the results are the same.
template <class T>
QKV_INLINE void stream(T* p, Vec a) {
  store(p, a, Full{});
}
QKV_INLINE void fence() {}

QKV_INLINE Vec add(Vec a, Vec b) { return {a.v + b.v}; }
QKV_INLINE Vec sub(Vec a, Vec b) { return {a.v - b.v}; }
QKV_INLINE Vec mul(Vec a, Vec b) { return {a.v * b.v}; }
QKV_INLINE Vec div(Vec a, Vec b) { return {a.v / b.v}; }
QKV_INLINE Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
QKV_INLINE Vec fnma(Vec a, Vec b, Vec c) { return {c.v - a.v * b.v}; }

QKV_INLINE Mask lt(Vec a, Vec b) { return {a.v < b.v}; }
QKV_INLINE Mask gt(Vec a, Vec b) { return {a.v > b.v}; }
QKV_INLINE Mask eq(Vec a, Vec b) { return {a.v == b.v}; }
QKV_INLINE uint64_t bits(Mask m) { return (uint64_t)((m.m[0] & 1) | (m.m[1] & 2) | (m.m[2] & 4) | (m.m[3] & 8)); }
QKV_INLINE bool any(Mask m) { return (m.m[0] | m.m[1] | m.m[2] | m.m[3]) != 0; }
QKV_INLINE Mask first(int64_t n) {
  const int32_t k = (int32_t)(n > kLanes ? kLanes : n);
  return {i32x4{0, 1, 2, 3} < i32x4{k, k, k, k}};
}
QKV_INLINE Vec select(Mask m, Vec a, Vec b) { return {(f32x4)((m.m & (i32x4)a.v) | (~m.m & (i32x4)b.v))}; }
QKV_INLINE Vec by_sign(Vec x, Vec a, Vec b) { return select({(i32x4)x.v < 0}, a, b); }
QKV_INLINE Vec zero_where(Mask m, Vec a) { return {(f32x4)(~m.m & (i32x4)a.v)}; }
QKV_INLINE Mask load_mask(const uint8_t* p, Rest r) {
  Mask a = {i32x4{0, 0, 0, 0}};
  for (int i = 0; i < kLanes; ++i)
    if (i < r.n) a.m[i] = p[i] ? -1 : 0;
  return a;
}
QKV_INLINE Mask load_mask(const uint8_t* p, Full) { return load_mask(p, Rest{kLanes}); }

QKV_INLINE Vec max(Vec a, Vec b) { return select(gt(a, b), a, b); }
QKV_INLINE Vec min(Vec a, Vec b) { return select(lt(a, b), a, b); }
QKV_INLINE Vec neg(Vec a) { return {-a.v}; }
QKV_INLINE Vec abs(Vec a) { return {(f32x4)((i32x4)a.v & 0x7fffffff)}; }
QKV_INLINE Vec copysign(Vec a, Vec b) { return {(f32x4)(((i32x4)a.v & 0x7fffffff) | ((i32x4)b.v & INT32_MIN))}; }
// Adding 1.5 * 2^23 leaves no bits for a fraction: the adder rounds.
QKV_INLINE Vec round(Vec a) { return {(a.v + 0x1.8p23f) - 0x1.8p23f}; }

QKV_INLINE Vec scale2(Vec a, Vec n) {
  const i32x4 whole = __builtin_convertvector(n.v, i32x4), half = whole >> 1, rest = whole - half;
  return {a.v * (f32x4)((half + 127) << 23) * (f32x4)((rest + 127) << 23)};
}

QKV_INLINE Vec swap_pairs(Vec a) { return {f32x4{a.v[1], a.v[0], a.v[3], a.v[2]}}; }
QKV_INLINE Vec power2(Vec t) { return {(f32x4)((i32x4)t.v << 23)}; }

QKV_INLINE float reduce_add(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
QKV_INLINE float reduce_max(Vec a) {
  float m = a.v[0];
  for (int i = 1; i < kLanes; ++i) m = a.v[i] > m ? a.v[i] : m;
  return m;
}

QKV_INLINE void transpose(const float* p, int64_t ld, Vec* to) {
  for (int c = 0; c < kLanes; ++c) to[c] = {f32x4{p[c], p[ld + c], p[2 * ld + c], p[3 * ld + c]}};
}

}  // namespace QKV_ISA
}  // namespace qkv
