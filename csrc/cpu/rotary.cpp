// rotary: (x1, x2) -> (x1 cos t - x2 sin t, x2 cos t + x1 sin t) with t = position * inv_freq (Su et al. 2021, arXiv:2104.09864),
// over halves x1 = x[:dim/2], x2 = x[dim/2:dim] or, interleaved, neighbours; what lies beyond dim passes through.
// rotary_angles: t = position * inv_freq, for layers that share them.
// First a table of cosines and sines, a row for each row of angles, then the rows in the order of memory.
#include <math.h>

#include "cpu/kernels.h"
#include "cpu/simd/loops.h"

namespace qkv {
namespace QKV_ISA {

// Cosines and sines of n angles, times `factor`. Angles come in as floats (qkv.positions says why) and reach 1e5 and more: they
// are reduced in double, by pi/2 in two parts of which the upper has 33 bits, so that n * upper is exact up to 2^20 turns; the
// polynomials in float, error 2^-28 and 2^-33, are within 1 ulp. Written for the compiler to vectorise.
static void sines(const float* angles, int64_t n, float factor, float* __restrict cosine, float* __restrict sine) {
  constexpr float kFar = 0x1p30f;
  float far = 0;  // what is beyond, or no number, goes to the C library
  for (int64_t i = 0; i < n; ++i) {
    constexpr double kMagic = 0x1.8p52;
    const float angle = angles[i];
    far = ::fabsf(angle) < kFar ? far : 1;
    const double a = angle, shifted = a * 0x1.45f306dc9c883p-1 + kMagic, quarters = shifted - kMagic;
    const float r = (float)((a - quarters * 0x1.921fb544p+0) - quarters * 0x1.0b4611a626331p-34), z = r * r;
    uint64_t bits;
    memcpy(&bits, &shifted, 8);
    const uint32_t quarter = (uint32_t)bits;
    const float s = r + r * z * (-0x1.555546p-3f + z * (0x1.110778p-7f + z * -0x1.9954p-13f));
    const float c = 1 - 0.5f * z + z * z * (0x1.55554ap-5f + z * (-0x1.6c0c2ap-10f + z * 0x1.99e91p-16f));
    const float first = quarter & 1 ? s : c, second = quarter & 1 ? c : s;
    cosine[i] = ((quarter + 1) & 2 ? -first : first) * factor;
    sine[i] = (quarter & 2 ? -second : second) * factor;
  }
  if (far == 0) return;
  for (int64_t i = 0; i < n; ++i)
    if (!(::fabsf(angles[i]) < kFar)) {
      cosine[i] = (float)::cos((double)angles[i]) * factor;
      sine[i] = (float)::sin((double)angles[i]) * factor;
    }
}

// For neighbours: c, c and -s, s.
static void spread(const float* from, int64_t n, bool minus, float* to) {
  for (int64_t i = 0; i < n; ++i) {
    to[2 * i] = minus ? -from[i] : from[i];
    to[2 * i + 1] = from[i];
  }
}

template <class T>
static void rotate_row(const RotaryArgs& a, const T* x, T* y, const float* table, bool past) {
  const int64_t half = a.dim / 2;
  const float *cosine = table, *sine = table + (a.interleaved ? a.dim : half);
  if (a.interleaved) {  // an odd width would let vectors begin inside a pair
    write_each(y, a.dim, past && a.x.n % 2 == 0, [&](int64_t i, auto count) {
      const auto v = load(x + i, count);
      return fma(swap_pairs(v), load(sine + i, count), mul(v, load(cosine + i, count)));
    });
  } else {
    write_each(y, half, past, [&](int64_t i, auto count) {
      return fnma(load(x + half + i, count), load(sine + i, count), mul(load(x + i, count), load(cosine + i, count)));
    });
    write_each(y + half, half, past, [&](int64_t i, auto count) {
      return fma(load(x + i, count), load(sine + i, count), mul(load(x + half + i, count), load(cosine + i, count)));
    });
  }
  for (int64_t i = a.dim; i < a.x.n; ++i) y[i] = x[i];
}

// Offsets of one row after another: divisions only where the innermost dimension of the grid ends. A row of 64 numbers takes less
// time than they do.
struct Walk {
  const Rows& rows;
  int64_t row, offset, left;  // left: rows until the innermost dimension ends

  Walk(const Rows& rows, int64_t row) : rows(rows), row(row) { start(); }
  void start() {
    offset = row_offset(rows, row);
    left = rows.rank ? rows.shape[rows.rank - 1] - row % rows.shape[rows.rank - 1] : 1;
  }
  void next() {
    ++row;
    if (--left > 0)
      offset += rows.strides[rows.rank - 1];
    else if (row < rows.rows)
      start();
  }
};

void rotary(const RotaryArgs& a) {
  const int64_t half = a.dim / 2, per_angle = a.interleaved ? 4 : 2, row = per_angle * half, tokens = a.angle_rows;
  parallel(tokens, grain_for(a.dim * 8), a.threads, [&](int64_t begin, int64_t end, int thread) {
    float* const buffer = a.scratch + thread * 2 * a.x.n;  // (2, dim / 2)
    for (int64_t t = begin; t < end; ++t) {
      float* const to = a.table + t * row;
      sines(a.angle_values + t * half, half, a.factor, a.interleaved ? buffer : to, (a.interleaved ? buffer : to) + half);
      if (a.interleaved) {
        spread(buffer, half, false, to);
        spread(buffer + half, half, true, to + a.dim);
      }
    }
  });
  parallel(a.x.rows, grain_for(a.x.n * 4, a.x.rows, a.threads), a.threads, [&](int64_t begin, int64_t end, int thread) {
    float* const buffer = a.scratch + thread * 2 * a.x.n;
    Walk x(a.x, begin), y(a.y, begin), angles(a.angles, begin);
    for (int64_t r = begin; r < end; ++r, x.next(), y.next(), angles.next()) {
      const float* table = a.table + angles.offset * per_angle;
      if (a.x.step == 1 && a.y.step == 1) {
        with_type(a.y.dtype, (void*)(a.y.data + y.offset * size_of(a.y.dtype)), [&](auto* to) {
          rotate_row(a, (decltype(to))(a.x.data + x.offset * size_of(a.x.dtype)), to, table, a.past_caches);
        });
      } else {
        gather(buffer, a.x.dtype, row_ptr(a.x, r), a.x.step, a.x.n);
        rotate_row(a, buffer, buffer + a.x.n, table, false);
        finish_row(a.y, r, buffer + a.x.n);
      }
    }
    if (a.past_caches) fence();
  });
}

void rotary_angles(const RotaryAngleArgs& a) {
  for (int64_t i = 0; i < a.count; ++i) {
    const Vec position = set((float)a.positions[i]);
    each(a.n, [&](int64_t j, auto count) { store(a.y + i * a.n + j, mul(position, load(a.frequencies + j, count)), count); });
  }
}

}  // namespace QKV_ISA
}  // namespace qkv
