// Rows of activations as products with packed weights read them: rounded to bf16, or quantised. The formulas stand in
// gemm_quantized.cpp.
#pragma once
#include "cpu/kernels.h"
#include "cpu/rounding.h"
#include "cpu/simd/dot.h"

namespace qkv {
namespace QKV_ISA {

// Of a row with one scale. stored = u - z - shift.
struct RowStats {
  float scale;
  int32_t minus;  // -128 times the sum of what is stored
  int32_t shift;  // comes back as shift times the sum of q
};
// Of a group of a row.
struct GroupStats {
  float scale;
  union {
    int32_t minus;  // int8: -128 times the sum of u
    float sum;      // int4: scale times the sum of u
  };
};

constexpr int64_t unit_bytes(Units units) { return units == Units::i8x4 ? 1 : units == Units::i16x2 ? 2 : 4; }

// Writes x[0 .. n) as units, padded with zeros to whole vectors; value(x) is an integral float. Returns their sum.
template <class Value>
static float write_units(char* to, Units units, const float* x, int64_t n, Value value) {
  Vec sum = zero();
  each(n, [&](int64_t i, auto count) {
    const Vec v = within(count, value(load(x + i, count)), zero());
    sum = add(sum, v);  // exact: below 2^24
    store_units(to + i * unit_bytes(units), v, units);
  });
  return reduce_add(sum);
}

#if defined(QKV_AVX512_BF16_VNNI)
// Writes clamp(round(x u) + z, 0, 255) - 128 for x[0 .. n), as bytes padded with zeros to whole vectors; z_128: z - 128. In
// integers: narrowing them clamps. Returns the sum of what is stored.
static int64_t write_bytes(char* to, const float* x, int64_t n, const Rounding& u, int32_t z_128) {
  constexpr int64_t kBytes = 4 * kLanes;
  const IVec offset = iset(z_128), ones = iset(0x01010101);
  IVec sum = izero();
  const auto bytes = [&](const float* from) QKV_ALWAYS {
    IVec q[4];
    QKV_UNROLL(4)
    for (int64_t i = 0; i < 4; ++i) {
      const Vec v = load(from + i * kLanes, Full{});
      q[i] = iadd(to_nearest(mul(mul(v, u.pre), u.inverse)), offset);
    }
    return narrow(q);
  };
  int64_t i = 0;
  for (; i + kBytes <= n; i += kBytes) {
    const IVec b = bytes(x + i);
    sum = DotInt8::mac(sum, ones, b);
    memcpy(to + i, &b.v, (size_t)kBytes);
  }
  if (i < n) {
    alignas(64) float rest[kBytes] = {};
    alignas(64) char some[kBytes] = {};
    memcpy(rest, x + i, (size_t)(n - i) * 4);
    const IVec b = bytes(rest);
    memcpy(some, &b.v, (size_t)(n - i));
    sum = DotInt8::mac(sum, ones, iload(some));
    memcpy(to + i, some, (size_t)(round_up(n, kLanes) - i));
  }
  return (int64_t)reduce_add(to_float(sum));  // exact: below 2^24
}
#endif

static void quantize_row(const float* x, int64_t k, char* to, RowStats* stats) {
  float low, high;
  const bool finite = range_of(x, k, &low, &high);
  if (!finite) low = high = 0;
  const Rounding u((double)high - (double)low, 255);
  float zero_point[kLanes];
  store(zero_point, u(set(-low)), Full{});
  const float z = zero_point[0] < 255 ? zero_point[0] : 255, shift = DotInt8::units == Units::i8x4 ? 128 - z : 0;
  if (!finite) {  // finite numbers for the integers' sake; the scale says the rest
    memset(to, 0, (size_t)(round_up(k, kLanes) * unit_bytes(DotInt8::units)));
    *stats = {__builtin_nanf(""), 0, 0};
    return;
  }
#if defined(QKV_AVX512_BF16_VNNI)
  const int64_t sum = write_bytes(to, x, k, u, (int32_t)z - 128);
#else
  const Vec offset = set(z), back = set(z + shift), bottom = zero(), top = set(255);
  const float sum =
      write_units(to, DotInt8::units, x, k, [&](Vec v) { return sub(min(max(add(u(v), offset), bottom), top), back); });
#endif
  *stats = {u.scale, (int32_t)(-128 * (int64_t)sum), (int32_t)shift};
}

#if defined(QKV_AVX512)
// Lane i: f of all lanes of row i of rows (16, 16).
template <class F>
QKV_INLINE Vec across(const float* rows, F&& f) {
  Vec column[kLanes];
  transpose(rows, kLanes, column);
  for (int64_t n = kLanes / 2; n > 0; n /= 2)
    for (int64_t i = 0; i < n; ++i) column[i] = f(column[i], column[i + n]);
  return column[0];
}

// 16 groups of 32, side by side: one by one they wait for sums, extremes and divisions. False if some number is not finite: then
// the result is of no use.
template <bool kOffset>
static bool quantize_16_groups(const float* x, char* to, GroupStats* stats) {
  constexpr int64_t kGroup = 2 * kLanes;
  alignas(64) float rows[kLanes * kLanes], top[kLanes], pre[kLanes], inverse[kLanes], scale[kLanes], sum[kLanes];
  Vec check = zero();
  for (int64_t g = 0; g < kLanes; ++g) {
    const Vec a = load(x + g * kGroup, Full{}), b = load(x + g * kGroup + kLanes, Full{});
    check = fma(b, zero(), fma(a, zero(), check));
    store(rows + g * kLanes, max(abs(a), abs(b)), Full{});
  }
  if (reduce_add(check) != 0) return false;
  store(top, across(rows, [](Vec a, Vec b) QKV_ALWAYS { return max(a, b); }), Full{});
  for (int64_t g = 0; g < kLanes; ++g) {  // Rounding, as the compiler makes vectors of it
    const double t = top[g], p = t < 0x1p-60 ? 0x1p64 : t > 0x1p60 ? 0x1p-64 : 1, q = 127 / (t * p);
    pre[g] = (float)p;
    inverse[g] = t > 0 ? (float)q : 0.0f;
    scale[g] = (float)(t / 127);
  }
  for (int64_t g = 0; g < kLanes; ++g) {
    Vec v[2];
    for (int64_t i = 0; i < 2; ++i) {
      v[i] = round(mul(mul(load(x + g * kGroup + i * kLanes, Full{}), set(pre[g])), set(inverse[g])));
      store_units(to + g * kGroup + i * kLanes, v[i], Units::i8x4);
    }
    store(rows + g * kLanes, add(v[0], v[1]), Full{});
  }
  store(sum, across(rows, [](Vec a, Vec b) QKV_ALWAYS { return add(a, b); }), Full{});  // exact
  for (int64_t g = 0; g < kLanes; ++g) {
    stats[g].scale = scale[g];
    if (kOffset)
      stats[g].sum = scale[g] * sum[g];
    else
      stats[g].minus = (int32_t)(-128 * sum[g]);
  }
  return true;
}
#endif

template <class Dot, bool kOffset>
static void quantize_groups(const float* x, int64_t k, int64_t group, char* to, GroupStats* stats) {
  bool all_finite = true;
  int64_t first = 0;
#if defined(QKV_AVX512)
  if (Dot::units == Units::i8x4)
    while (group == 2 * kLanes && first + kLanes * group <= k &&
           quantize_16_groups<kOffset>(x + first, to + first, stats + first / group))
      first += kLanes * group;
#endif
  for (int64_t at = first, g = first / group; at < k; at += group, ++g) {
    const int64_t n = k - at < group ? k - at : group;
    float low, high;
    const bool finite = range_of(x + at, n, &low, &high);
    all_finite = all_finite && finite;
    char* const units = to + at * unit_bytes(Dot::units);
    memset(units, 0, (size_t)(group * unit_bytes(Dot::units)));
    if (!finite) low = high = 0;
    const Rounding u(size_of_range(low, high), 127);
    float sum = 0;
    if (finite) sum = write_units(units, Dot::units, x + at, n, u);
    stats[g].scale = u.scale;
    if (kOffset)
      stats[g].sum = u.scale * sum;
    else
      stats[g].minus = (int32_t)(-128 * sum);
  }
  if (!all_finite) stats[0].scale = __builtin_nanf("");
}

// A row as pairs of bf16, or as floats rounded to bf16; an odd one gets a zero.
static void round_row(const float* x, int64_t k, char* to) {
  each(k, [&](int64_t i, auto count) {
    const Vec v = load(x + i, count);
    bf16* half = (bf16*)to + (DotBf16::kWidth == 1 ? 2 * i : i);  // where it is wanted, or in the place of its float
    store_element(half, v, count);
    if (DotBf16::kWidth == 1) store((float*)to + i, load(half, count), count);
  });
  constexpr int64_t kBytes = 4 / DotBf16::kWidth;
  if (k % 2 != 0) memset(to + k * kBytes, 0, (size_t)kBytes);
}

}  // namespace QKV_ISA
}  // namespace qkv
