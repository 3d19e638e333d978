// Dot products in steps of 32 bits a column: what a register tile (cpu/tile.h) multiplies and adds.
//
// A panel of packed weights holds rows of 16 columns x 32 bits: one float, two bf16, four int8 or eight int4 along k. A Dot says
// how one such row meets one or more 32-bit words of activations:
//
//   kParts          words of activations that a row of the panel takes
//   weight(p, i)    kLanes columns of the row at p, prepared for word i
//   spread(p)       the word at p in every lane
//   mac(s, w, a)    s + w . a
//   Acc, zero()     what is summed in
//
// Float ones have `kWidth`, the elements of k in a word of activations, and, where attention uses them, `Element`, their type,
// and integer ones also `units`, the form that activations must have:
//
//   Units::i8x4     four signed bytes along k
//   Units::i16x2    two 16-bit numbers: k and k + 2, then k + 1 and k + 3, as masks and shifts split a word of four bytes
//   Units::i32      one number
//
// Weights are unsigned bytes (int8 is stored with 128 added), activations signed: that is what vpdpbusd and vpmaddubsw multiply.
// Without VNNI int8 goes through vpmaddwd, whose 32-bit sums cannot saturate; vpmaddubsw's 16-bit ones would, so it serves int4
// alone.
#pragma once
#include "cpu/simd/vec.h"

namespace qkv {
namespace QKV_ISA {

enum class Units : uint8_t { i8x4, i16x2, i32 };

// kLanes 32-bit integers.
struct IVec {
#if defined(QKV_AVX512)
  __m512i v;
#elif defined(__AVX2__)
  __m256i v;
#else
  i32x4 v;
#endif
};

#if defined(QKV_AVX512)

QKV_INLINE IVec izero() { return {_mm512_setzero_si512()}; }
QKV_INLINE IVec iset(int32_t x) { return {_mm512_set1_epi32(x)}; }
QKV_INLINE IVec iload(const void* p) { return {_mm512_loadu_si512(p)}; }
QKV_INLINE IVec iadd(IVec a, IVec b) { return {_mm512_add_epi32(a.v, b.v)}; }
QKV_INLINE IVec imul(IVec a, IVec b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
QKV_INLINE Vec to_float(IVec a) { return {_mm512_cvtepi32_ps(a.v)}; }
QKV_INLINE Vec as_float(IVec a) { return {_mm512_castsi512_ps(a.v)}; }
QKV_INLINE IVec iand(IVec a, int32_t mask) { return {_mm512_and_si512(a.v, _mm512_set1_epi32(mask))}; }
template <int N>
QKV_INLINE IVec shift_left(IVec a) {
  return {_mm512_slli_epi32(a.v, N)};
}
template <int N>
QKV_INLINE IVec shift_right16(IVec a) {
  return {_mm512_srli_epi16(a.v, N)};
}
QKV_INLINE IVec madd16(IVec a, IVec b) { return {_mm512_madd_epi16(a.v, b.v)}; }
QKV_INLINE IVec madd8(IVec u, IVec s) { return {_mm512_maddubs_epi16(u.v, s.v)}; }
QKV_INLINE IVec iadd16(IVec a, IVec b) { return {_mm512_add_epi16(a.v, b.v)}; }

QKV_INLINE IVec to_nearest(Vec a) { return {_mm512_cvtps_epi32(a.v)}; }
// Four vectors as signed bytes, one after the other; what does not fit becomes the nearest that does.
QKV_INLINE IVec narrow(const IVec (&a)[4]) {
  const __m512i low = _mm512_packs_epi32(a[0].v, a[1].v), high = _mm512_packs_epi32(a[2].v, a[3].v);
  alignas(64) static const int32_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};  // packs work in quarters
  return {_mm512_permutexvar_epi32(iload(order).v, _mm512_packs_epi16(low, high))};
}

// kLanes integral floats as units; i8x4 and i16x2 need them to fit.
QKV_INLINE void store_units(void* to, Vec a, Units units) {
  const __m512i x = _mm512_cvtps_epi32(a.v);
  if (units == Units::i8x4) {
    _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8(x));
  } else {
    const __m256i pairs = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,  //
                                           0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
    _mm256_storeu_si256((__m256i*)to, _mm256_shuffle_epi8(_mm512_cvtepi32_epi16(x), pairs));
  }
}

#elif defined(__AVX2__)

QKV_INLINE IVec izero() { return {_mm256_setzero_si256()}; }
QKV_INLINE IVec iset(int32_t x) { return {_mm256_set1_epi32(x)}; }
QKV_INLINE IVec iload(const void* p) { return {_mm256_loadu_si256((const __m256i*)p)}; }
QKV_INLINE IVec iadd(IVec a, IVec b) { return {_mm256_add_epi32(a.v, b.v)}; }
QKV_INLINE IVec imul(IVec a, IVec b) { return {_mm256_mullo_epi32(a.v, b.v)}; }
QKV_INLINE Vec to_float(IVec a) { return {_mm256_cvtepi32_ps(a.v)}; }
QKV_INLINE Vec as_float(IVec a) { return {_mm256_castsi256_ps(a.v)}; }
QKV_INLINE IVec iand(IVec a, int32_t mask) { return {_mm256_and_si256(a.v, _mm256_set1_epi32(mask))}; }
template <int N>
QKV_INLINE IVec shift_left(IVec a) {
  return {_mm256_slli_epi32(a.v, N)};
}
template <int N>
QKV_INLINE IVec shift_right16(IVec a) {
  return {_mm256_srli_epi16(a.v, N)};
}
QKV_INLINE IVec madd16(IVec a, IVec b) { return {_mm256_madd_epi16(a.v, b.v)}; }
QKV_INLINE IVec madd8(IVec u, IVec s) { return {_mm256_maddubs_epi16(u.v, s.v)}; }
QKV_INLINE IVec iadd16(IVec a, IVec b) { return {_mm256_add_epi16(a.v, b.v)}; }

QKV_INLINE void store_units(void* to, Vec a, Units units) {
  const __m256i x = _mm256_cvtps_epi32(a.v);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  if (units == Units::i8x4)
    _mm_storel_epi64((__m128i*)to, _mm_packs_epi16(words, words));
  else
    _mm_storeu_si128((__m128i*)to, _mm_shuffle_epi8(words, _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15)));
}

#else

QKV_INLINE IVec izero() { return {i32x4{0, 0, 0, 0}}; }
QKV_INLINE IVec iset(int32_t x) { return {i32x4{x, x, x, x}}; }
QKV_INLINE IVec iload(const void* p) {
  IVec a;
  memcpy(&a.v, p, 16);
  return a;
}
typedef uint32_t u32x4 __attribute__((vector_size(16)));  // sums wrap, as the instructions' do
QKV_INLINE IVec iadd(IVec a, IVec b) { return {(i32x4)((u32x4)a.v + (u32x4)b.v)}; }
QKV_INLINE IVec imul(IVec a, IVec b) { return {(i32x4)((u32x4)a.v * (u32x4)b.v)}; }
QKV_INLINE Vec to_float(IVec a) { return {__builtin_convertvector(a.v, f32x4)}; }
QKV_INLINE Vec as_float(IVec a) {
  Vec b;
  memcpy(&b.v, &a.v, 16);
  return b;
}
QKV_INLINE IVec iand(IVec a, int32_t mask) { return {a.v & iset(mask).v}; }
template <int N>
QKV_INLINE IVec shift_left(IVec a) {
  return {(i32x4)((u32x4)a.v << N)};
}

QKV_INLINE void store_units(void* to, Vec a, Units) {
  const i32x4 x = __builtin_convertvector(a.v, i32x4);
  memcpy(to, &x, 16);
}

#endif

// Sums that stay in their registers. Left to itself GCC starts the second part of a panel row before the first is done and, out
// of registers, spills sums, whose chain then runs through memory (half the speed on AVX2); or it adds into a new register and
// moves it back (8 of some 45 instructions of int8's loop).
#if defined(__AVX2__) && !defined(QKV_EMULATE_AVX512)
#define QKV_IN_PLACE(sum, otherwise, instruction, ...) asm(instruction : "+v"((sum).v) : __VA_ARGS__)
#else
#define QKV_IN_PLACE(sum, otherwise, instruction, ...) sum = otherwise
#endif
QKV_INLINE IVec iadd_to(IVec s, IVec x) {
  QKV_IN_PLACE(s, iadd(s, x), "vpaddd %1, %0, %0", "v"(x.v));
  return s;
}
#if defined(__AVX2__)
QKV_INLINE IVec iadd16_to(IVec s, IVec x) {
  QKV_IN_PLACE(s, iadd16(s, x), "vpaddw %1, %0, %0", "v"(x.v));
  return s;
}
#endif
QKV_INLINE Vec fma_to(Vec s, Vec w, Vec a) {
  QKV_IN_PLACE(s, fma(a, w, s), "vfmadd231ps %1, %2, %0", "v"(w.v), "v"(a.v));
  return s;
}
#if defined(QKV_AVX512_BF16_VNNI)
QKV_INLINE Vec dot_bf16_to(Vec s, Vec w, Vec a) {
  QKV_IN_PLACE(s, dot_bf16(s, a, w), "vdpbf16ps %1, %2, %0", "v"(w.v), "v"(a.v));
  return s;
}
QKV_INLINE IVec dot_int8_to(IVec s, IVec w, IVec a) {
  QKV_IN_PLACE(s, IVec{_mm512_dpbusd_epi32(s.v, w.v, a.v)}, "vpdpbusd %2, %1, %0", "v"(w.v), "v"(a.v));
  return s;
}
#endif

#undef QKV_IN_PLACE

QKV_INLINE IVec ispread(const void* p) {
  int32_t word;
  memcpy(&word, p, 4);
  return iset(word);
}

struct DotFloat {
  using Acc = Vec;
  using Element = float;
  static constexpr int kParts = 1, kWidth = 1;
  QKV_INLINE Vec zero() { return QKV_ISA::zero(); }
  QKV_INLINE Vec weight(const char* p, int) { return load((const float*)p, Full{}); }
  QKV_INLINE Vec spread(const char* p) { return set(*(const float*)p); }
  QKV_INLINE Vec mac(Vec s, Vec w, Vec a) { return fma(a, w, s); }
};

// Elements as a word of activations has them.
template <class Count>
QKV_INLINE void store_element(float* p, Vec x, Count count) {
  store(p, x, count);
}
template <class Count>
QKV_INLINE void store_element(bf16* p, Vec x, Count count) {
#if defined(QKV_AVX512_BF16_VNNI)
  store_flushed(p, x, count);
#else
  store(p, x, count);
#endif
}

#if defined(QKV_AVX512_BF16_VNNI)

// The products of a pair are added one after the other; denormals count as zero.
struct DotBf16 {
  using Acc = Vec;
  using Element = bf16;
  static constexpr int kParts = 1, kWidth = 2;
  QKV_INLINE Vec zero() { return QKV_ISA::zero(); }
  QKV_INLINE Vec weight(const char* p, int) { return as_float(iload(p)); }
  QKV_INLINE Vec spread(const char* p) { return as_float(ispread(p)); }
  QKV_INLINE Vec mac(Vec s, Vec w, Vec a) { return dot_bf16_to(s, w, a); }
};

#else

// bf16 are the upper halves of floats: products of two are exact. Activations are floats, rounded to bf16.
struct DotBf16 {
  using Acc = Vec;
  static constexpr int kParts = 2, kWidth = 1;
  QKV_INLINE Vec zero() { return QKV_ISA::zero(); }
  QKV_INLINE Vec weight(const char* p, int part) {
    return as_float(part == 0 ? shift_left<16>(iload(p)) : iand(iload(p), (int32_t)0xffff0000));
  }
  QKV_INLINE Vec spread(const char* p) { return set(*(const float*)p); }
  QKV_INLINE Vec mac(Vec s, Vec w, Vec a) { return fma_to(s, w, a); }
};

#endif

// Integer Dots. kInAcc: so many elements of k fit into Acc, whose 32-bit lanes `widen` then makes; 0: Acc has them and holds any.
#if defined(QKV_AVX512_BF16_VNNI)

struct DotInt8 {
  using Acc = IVec;
  static constexpr int64_t kInAcc = 0;
  static constexpr int kParts = 1;
  static constexpr Units units = Units::i8x4;
  QKV_INLINE IVec zero() { return izero(); }
  QKV_INLINE IVec weight(const char* p, int) { return iload(p); }
  QKV_INLINE IVec spread(const char* p) { return ispread(p); }
  QKV_INLINE IVec mac(IVec s, IVec w, IVec a) { return dot_int8_to(s, w, a); }
};
struct DotInt4 : DotInt8 {
  static constexpr int kParts = 2;
  QKV_INLINE IVec weight(const char* p, int part) { return iand(part == 0 ? iload(p) : shift_right16<4>(iload(p)), 0x0f0f0f0f); }
};

#elif defined(__AVX2__)

struct DotInt8 {
  using Acc = IVec;
  static constexpr int64_t kInAcc = 0;
  static constexpr int kParts = 2;
  static constexpr Units units = Units::i16x2;
  QKV_INLINE IVec zero() { return izero(); }
  QKV_INLINE IVec weight(const char* p, int part) { return part == 0 ? iand(iload(p), 0x00ff00ff) : shift_right16<8>(iload(p)); }
  QKV_INLINE IVec spread(const char* p) { return ispread(p); }
  QKV_INLINE IVec mac(IVec s, IVec w, IVec a) { return iadd_to(s, madd16(w, a)); }
};
// Sums of 16 bits: a pair of products is at most 2 * 15 * 127 and eight of those fit: four rows of the panel.
struct DotInt4 {
  using Acc = IVec;
  static constexpr int64_t kInAcc = 32;
  static constexpr int kParts = 2;
  static constexpr Units units = Units::i8x4;
  QKV_INLINE IVec zero() { return izero(); }
  QKV_INLINE IVec weight(const char* p, int part) { return iand(part == 0 ? iload(p) : shift_right16<4>(iload(p)), 0x0f0f0f0f); }
  QKV_INLINE IVec spread(const char* p) { return ispread(p); }
  QKV_INLINE IVec mac(IVec s, IVec w, IVec a) { return iadd16_to(s, madd8(w, a)); }
  QKV_INLINE IVec widen(IVec s) { return madd16(s, iset(0x00010001)); }
};

#else

struct DotInt8 {
  using Acc = IVec;
  static constexpr int64_t kInAcc = 0;
  static constexpr int kParts = 4;
  static constexpr Units units = Units::i32;
  QKV_INLINE IVec zero() { return izero(); }
  QKV_INLINE IVec weight(const char* p, int part) { return iand({iload(p).v >> (8 * part)}, 0xff); }
  QKV_INLINE IVec spread(const char* p) { return ispread(p); }
  QKV_INLINE IVec mac(IVec s, IVec w, IVec a) { return iadd(s, imul(w, a)); }
};
struct DotInt4 : DotInt8 {
  static constexpr int kParts = 8;
  QKV_INLINE IVec weight(const char* p, int part) { return iand({iload(p).v >> (part < 4 ? 8 * part : 8 * (part - 4) + 4)}, 15); }
};

#endif

// Vectors as `weight` made them, stored one after the other: many rows of activations unpack a panel once.
QKV_INLINE void store_weight(char* p, Vec w) { store((float*)p, w, Full{}); }
QKV_INLINE void store_weight(char* p, IVec w) { memcpy(p, &w.v, kLanes * 4); }
QKV_INLINE void load_weight(const char* p, Vec* w) { *w = load((const float*)p, Full{}); }
QKV_INLINE void load_weight(const char* p, IVec* w) { *w = iload(p); }

template <class Dot>
struct Unpacked : Dot {
  static constexpr int kParts = 1;
  using Weight = decltype(Dot::weight(nullptr, 0));
  QKV_INLINE Weight weight(const char* p, int) {
    Weight w;
    load_weight(p, &w);
    return w;
  }
};

}  // namespace QKV_ISA
}  // namespace qkv
