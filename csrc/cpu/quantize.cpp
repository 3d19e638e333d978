// Weights (n, k) of bf16, int8 and int4 from floats, and back.
//
//   int8 by row      t = max |w| / 127                 q = round(w / t)
//   int8 by group    t = float16(max |w| / 127)        q = round(w / t)                                   (GGUF's Q8_0)
//   int4 by group    t = float16((max w - min w) / 15), o = float16(min w)    q = round((w - o) / t)      (GGUF's Q4_1)
//
// Where they stand in a panel: see kernels.h.
#include "cpu/kernels.h"
#include "cpu/rounding.h"
#include "cpu/simd/loops.h"

namespace qkv {
namespace QKV_ISA {

static inline float from_f16(f16 x) { return to_float(x); }
static inline f16 to_half(float x) {
  f16 y;
  from_float(x, &y);
  return y;
}

// x[0 .. n) = round((x - offset) * inverse), kept in [low, high].
static void scale_row(float* x, int64_t n, float offset, float inverse, float low, float high) {
  each(n, [&](int64_t i, auto count) {
    const Vec v = round(mul(sub(load(x + i, count), set(offset)), set(inverse)));
    store(x + i, min(max(v, set(low)), set(high)), count);
  });
}

// A row of floats becomes its codes, as floats; scales go to their places. False: a value cannot be stored.
static bool encode(const PackedView& w, int64_t n, float* x) {
  if (w.type == WeightType::bf16) return true;
  const int64_t group = w.group ? w.group : w.k, all = groups_of(w);
  for (int64_t at = 0, g = 0; at < w.k; at += group, ++g) {
    const int64_t length = w.k - at < group ? w.k - at : group;
    float low, high;
    if (!range_of(x + at, length, &low, &high)) return false;
    const float top = size_of_range(low, high);
    if (!w.group) {
      const Rounding q(top, 127);
      each(length, [&](int64_t i, auto count) { store(x + at + i, q(load(x + at + i, count)), count); });
      w.row_scale[n] = q.scale;
      continue;
    }
    f16* const scale = w.scale + (n / kPanel * all + g) * kPanel + n % kPanel;
    float offset = 0;
    if (w.type == WeightType::int4) {
      // The range need not hold 0: o stands for any number.
      low = __builtin_inff(), high = -__builtin_inff();
      for (int64_t i = 0; i < length; ++i) {
        low = x[at + i] < low ? x[at + i] : low;
        high = x[at + i] > high ? x[at + i] : high;
      }
      *scale = to_half((high - low) / 15);
      f16* const o = w.offset + (scale - w.scale);
      *o = to_half(low);
      offset = from_f16(*o);
      if (offset - offset != 0) return false;  // beyond float16
    } else {
      *scale = to_half(top / 127);
    }
    const float t = from_f16(*scale);
    if (t - t != 0) return false;
    const bool signs = w.type == WeightType::int8;
    scale_row(x + at, length, offset, t > 0 ? 1 / t : 0, signs ? -127 : 0, signs ? 127 : 15);
  }
  return true;
}

void quantize(const QuantizeArgs& a) {
  const PackedView& w = a.to;
  const int64_t panel_bytes = panel_rows(w) * kPanelRowBytes;
  parallel(panels_of(w.n), 1, a.threads, [&](int64_t begin, int64_t end, int thread) {
    float* const x = a.scratch + thread * w.k;
    for (int64_t panel = begin; panel < end; ++panel) {
      char* const to = w.panels + panel * panel_bytes;
      memset(to, w.type == WeightType::int8 ? 128 : 0, (size_t)panel_bytes);  // q = 0
      for (int64_t n = panel * kPanel; n < w.n && n < (panel + 1) * kPanel; ++n) {
        gather(x, a.w.dtype, row_ptr(a.w, n), a.w.step, w.k);
        if (!encode(w, n, x)) {
          __atomic_store_n(a.bad, 1, __ATOMIC_RELAXED);
          return;
        }
        char* const column = to + n % kPanel * 4;
        int32_t sum = 0;
        for (int64_t k = 0; k < w.k; ++k) {
          if (w.type == WeightType::bf16) {
            from_float(x[k], (bf16*)(column + k / 2 * kPanelRowBytes) + k % 2);
          } else if (w.type == WeightType::int8) {
            const int q = (int)x[k];
            sum += q;
            column[k / 4 * kPanelRowBytes + k % 4] = (char)(q + 128);
          } else {
            column[k / 8 * kPanelRowBytes + k % 4] |= (char)((int)x[k] << (k % 8 >= 4 ? 4 : 0));
          }
        }
        if (w.row_sum) w.row_sum[n] = sum;
      }
    }
  });
}

static void decode(const PackedView& w, int64_t n, float* y) {
  const char* const column = w.panels + n / kPanel * panel_rows(w) * kPanelRowBytes + n % kPanel * 4;
  const auto value = [&](int64_t k) -> float {
    switch (w.type) {
      case WeightType::f32:
        return *(const float*)(column + k * kPanelRowBytes);
      case WeightType::bf16:
        return to_float(((const bf16*)(column + k / 2 * kPanelRowBytes))[k % 2]);
      case WeightType::int8:
        return (float)((int)(uint8_t)column[k / 4 * kPanelRowBytes + k % 4] - 128);
      case WeightType::int4:
        return (float)((uint8_t)column[k / 8 * kPanelRowBytes + k % 4] >> (k % 8 >= 4 ? 4 : 0) & 15);
    }
    return 0;
  };
  if (!w.group) {
    const float scale = w.type == WeightType::int8 ? w.row_scale[n] : 1;
    for (int64_t k = 0; k < w.k; ++k) y[k] = value(k) * scale;
    return;
  }
  const int64_t all = groups_of(w);
  for (int64_t at = 0, g = 0; at < w.k; at += w.group, ++g) {
    const int64_t place = (n / kPanel * all + g) * kPanel + n % kPanel, end = at + w.group < w.k ? at + w.group : w.k;
    const float scale = from_f16(w.scale[place]), offset = w.offset ? from_f16(w.offset[place]) : 0;
    for (int64_t k = at; k < end; ++k) y[k] = value(k) * scale + offset;
  }
}

void dequantize(const DequantizeArgs& a) {
  parallel(a.count, grain_for(a.w.k), a.threads, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) decode(a.w, a.ids ? a.ids[i] : i, a.y + i * a.w.k);
  });
}

}  // namespace QKV_ISA
}  // namespace qkv
