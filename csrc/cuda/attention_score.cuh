// What stands beside q.k in a score, and who is excluded:
//   softcap(scale q.k) + bias + relative_bias[clip(key - position)] - slope |position - key|, or -inf where the mask says no.
//
// Nothing is read for a key outside of [first, last): those have no bias and no mask.
#pragma once
#include "cuda/attention_problem.cuh"

namespace qkv::cuda {

// tanh to 2^-22, without a branch: a polynomial near 0, where 1 - 2 / (e^2x + 1) loses bits.
QKV_DEVICE float tanh_fast(float x) {
  const float y = fabsf(x), z = x * x;
  float near = fmaf(z, 1.643758e-2f, -5.267181e-2f);
  near = fmaf(near, z, 1.332073e-1f);
  near = fmaf(near, z, -3.333295e-1f);
  near = fmaf(near * z, x, x);
  const float far = 1.0f - __fdividef(2.0f, exp2_approx(y * (2 * kLog2E)) + 1.0f);
  return y < 0.55f ? near : copysignf(far, x);
}

// Offset of (query, key 0) of x, which is bias or mask.
QKV_DEVICE int64_t row_offset(const Strided4& x, const Entry& e, const Row& row) {
  return e.b * x.b + row.head * x.h + row.query * x.s;
}

QKV_DEVICE float slope_of(const Problem& p, const Entry& e, const Row& row) { return p.a.alibi[e.b * p.a.alibi_b + row.head]; }

QKV_DEVICE int relative_index(const Problem& p, int distance) {
  const int most = static_cast<int>(p.a.max_distance);
  return min(max(distance, -most), most) + most;
}

QKV_DEVICE bool is_masked(const Problem& p, const Entry& e, const Row& row, int key) {
  return p.a.mask.data && !reinterpret_cast<const uint8_t*>(p.a.mask.data)[row_offset(p.a.mask, e, row) + key * p.a.mask.d];
}

// The score of one key that the row may see, of s = q.k.
QKV_DEVICE float adjusted_score(const Problem& p, const Entry& e, const Row& row, int key, float s) {
  const AttentionArgs& a = p.a;
  s *= a.scale;
  if (a.softcap > 0) s = a.softcap * tanhf(s / a.softcap);
  if (a.bias.data) s += load_float(a.bias.data, a.bias.dtype, row_offset(a.bias, e, row) + key * a.bias.d);
  const int distance = key - (row.query + e.shift);
  if (a.relative_bias) s += a.relative_bias[row.head * (2 * a.max_distance + 1) + relative_index(p, distance)];
  if (a.alibi) s -= slope_of(p, e, row) * static_cast<float>(abs(distance));
  return is_masked(p, e, row, key) ? kMinusInfinity : s;
}

// A thread's part of one row of scores: those of keys key0 + 8 j and + 1, as mma leaves them.
template <int kTiles, class F>
QKV_DEVICE void each_score(float (&s)[kTiles][4], int half, F&& f) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j)
#pragma unroll
    for (int i = 0; i < 2; ++i) f(s[j][2 * half + i], 8 * j + i);
}

template <class Bits, int kTiles, class F>
QKV_DEVICE void add_bias(const Problem& p, const Entry& e, const Row& row, int key0, float (&s)[kTiles][4], int half, F&& widen) {
  const int64_t step = p.a.bias.d;
  const Bits* const bias = reinterpret_cast<const Bits*>(p.a.bias.data) + row_offset(p.a.bias, e, row) + key0 * step;
  const unsigned seen = row.last - row.first;
  each_score(s, half, [&](float& x, int j) {
    if (static_cast<unsigned>(key0 + j - row.first) < seen) x += widen(bias[j * step]);
  });
}

// The same of half a fragment (the rows of d[0], d[1] or of d[2], d[3]), option by option. Keys out of range become -inf.
template <int kTiles>
QKV_DEVICE void adjust_scores(const Problem& p, const Entry& e, const Row& row, int key0, float (&s)[kTiles][4], int half) {
  const AttentionArgs& a = p.a;
  const unsigned seen = row.last - row.first;
  const auto sees = [&](int j) { return static_cast<unsigned>(key0 + j - row.first) < seen; };
  each_score(s, half, [&](float& x, int) { x *= a.scale; });
  if (a.softcap > 0) {
    const float inverse = 1 / a.softcap;
    each_score(s, half, [&](float& x, int) { x = a.softcap * tanh_fast(x * inverse); });
  }
  if (a.bias.data) {
    const bool f16 = a.bias.dtype == DType::f16;
    if (a.bias.dtype == DType::f32)
      add_bias<float>(p, e, row, key0, s, half, [](float x) { return x; });
    else
      add_bias<uint16_t>(p, e, row, key0, s, half, [&](uint16_t x) {
        return f16 ? __half2float(bit_cast<__half>(x)) : __uint_as_float(static_cast<uint32_t>(x) << 16);
      });
  }
  const int distance = key0 - (row.query + e.shift);
  if (a.relative_bias) {
    const float* const table = a.relative_bias + row.head * (2 * a.max_distance + 1);
    each_score(s, half, [&](float& x, int j) { x += table[relative_index(p, distance + j)]; });
  }
  if (a.alibi) {
    const float slope = slope_of(p, e, row);
    each_score(s, half, [&](float& x, int j) { x -= slope * static_cast<float>(abs(distance + j)); });
  }
  if (a.mask.data) {
    const int64_t step = a.mask.d;
    const uint8_t* const mask = reinterpret_cast<const uint8_t*>(a.mask.data) + row_offset(a.mask, e, row) + key0 * step;
    each_score(s, half, [&](float& x, int j) {
      if (sees(j) && !mask[j * step]) x = kMinusInfinity;
    });
  }
  each_score(s, half, [&](float& x, int j) { x = sees(j) ? x : kMinusInfinity; });
}

}  // namespace qkv::cuda
