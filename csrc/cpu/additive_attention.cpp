// additive_attention: out_i = sum_j softmax_j(w . tanh(q_i + k_j)) v_j (Bahdanau et al. 2015, arXiv:1409.0473), q and k already
// projected. Keys are packed 16 to a panel, so that a vector holds one feature of neighbouring keys; then as attention does.
#include "cpu/flash.h"
#include "cpu/kernels.h"

namespace qkv {
namespace QKV_ISA {

static void additive_tile(const AdditiveAttentionArgs& a, int64_t b, int64_t row0, int64_t rows, float* scratch) {
  const int64_t tile_rows = a.plan.tile_rows, last = a.kv_lengths ? a.kv_lengths[b] : a.t;
  FlashRows f;
  f.dv = a.dv;
  f.dv_padded = panels_of(a.dv) * kPanel;
  float* const values = scratch;
  float* const scores = values + kKeyBlock * f.dv_padded;
  f.sums = scores + tile_rows * kKeyBlock;
  float* const keys = f.sums + tile_rows * f.dv_padded;
  f.maximum = keys + kKeyBlock * a.a;
  f.total = f.maximum + tile_rows;
  float* const raw_rows = f.total + tile_rows;
  const auto raw_row = [&](int64_t r) {
    return a.plan.weight_rows ? raw_rows + r * a.t : (float*)a.weights + (b * a.s + row0 + r) * a.t;
  };
  flash_start(f, rows);
  FlashUnit units[kGroupRows];
  const int count = flash_units(units, 0, rows);
  if (a.weights)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t j = last; j < a.t; ++j) raw_row(r)[j] = kMinusInfinity;

  for (int64_t key = 0; key < last; key += kKeyBlock) {
    const int64_t n = last - key < kKeyBlock ? last - key : kKeyBlock;
    for (int u = 0; u < count; ++u) {
      units[u].to = n;
      units[u].excluded = false;
    }
    bool excluded = false;
    pack_panels(keys, DType::f32, a.k + b * a.k_b + key * a.a, 1, a.a, a.a, n);
    for (int64_t r = 0; r < rows; ++r) {
      const float* q = a.q + b * a.q_b + (row0 + r) * a.a;
      float* s = scores + r * kKeyBlock;
      for (int64_t j = 0; j < n; j += kLanes) {
        const float* k = keys + j / kPanel * kPanel * a.a + j % kPanel;
        Vec sum = zero();
        for (int64_t i = 0; i < a.a; ++i) sum = fma(set(a.w[i]), tanh(add(set(q[i]), load(k + i * kPanel, Full{}))), sum);
        store(s + j, sum, Full{});
      }
      if (a.mask.data) {
        const uint8_t* mask = (const uint8_t*)a.mask.data + b * a.mask.b + (row0 + r) * a.mask.s + key * a.mask.d;
        for (int64_t j = 0; j < n; ++j)
          if (!mask[j * a.mask.d]) s[j] = kMinusInfinity;
      }
      if (a.weights) memcpy(raw_row(r) + key, s, (size_t)n * 4);
      if (flash_softmax<float>(f, r, s, 0, n, 0, n)) units[r / units[0].rows].excluded = excluded = true;
    }
    flash_pack_values(values, f.dv, a.v.dtype, a.v.data + (b * a.v.b + key * a.v.s) * size_of(a.v.dtype), a.v.s, a.v.d, n);
    const FlashValues v = {values, kPanel, kKeyBlock * kPanel};
    flash_accumulate<DotFloat>(f, units, count, scores, v, !excluded || flash_finite<DotFloat>(v, f.dv_padded, 0, n));
  }

  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = b * a.s + row0 + r;
    flash_finish(f, r, a.out.dtype, a.out.data + row * a.dv * size_of(a.out.dtype));
    if (a.weights) flash_weights(f, r, raw_row(r), a.t, a.v.dtype, a.weights + row * a.t * size_of(a.v.dtype));
  }
}

void additive_attention(const AdditiveAttentionArgs& a) {
  const int64_t tiles = (a.s + a.plan.tile_rows - 1) / a.plan.tile_rows;
  parallel(a.batch * tiles, 1, a.threads, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item % tiles * a.plan.tile_rows, left = a.s - row;
      additive_tile(a, item / tiles, row, left < a.plan.tile_rows ? left : a.plan.tile_rows,
                    (float*)(a.scratch + thread * a.plan.scratch_bytes));
    }
  });
}

}  // namespace QKV_ISA
}  // namespace qkv
