// Packing matrices into panels of 16 columns, which tiles (tile.h) and additive_attention read.
#pragma once
#include "cpu/kernels.h"
#include "cpu/simd/loops.h"

namespace qkv {
namespace QKV_ISA {

constexpr int kVectors = (int)(kPanel / kLanes);  // per panel

// Packs up to 16 columns of B into a panel: to[k * 16 + j] = b[k * b_k + j * b_n], zeros for j >= columns.
template <class T>
static inline void pack_panel(float* to, const T* b, int64_t b_k, int64_t b_n, int64_t kc, int64_t columns) {
  if (b_n == 1) {  // rows of B are contiguous
    for (int64_t k = 0; k < kc; ++k) QKV_UNROLL(4)
    for (int v = 0; v < kVectors; ++v) {
      const int64_t left = columns - v * kLanes;
      const T* from = b + k * b_k + v * kLanes;
      store(to + k * kPanel + v * kLanes,
            left >= kLanes ? load(from, Full{})
            : left > 0     ? load(from, Rest{left})
                           : zero(),
            Full{});
    }
    return;
  }
  int64_t k = 0;
  if (b_k == 1 && columns == kPanel)  // columns of B are contiguous, as in a weight (out, in): transpose blocks
    for (; k + kLanes <= kc; k += kLanes)
      for (int v = 0; v < kVectors; ++v) {
        const T* from = b + k + v * kLanes * b_n;
        if constexpr (sizeof(T) == 4) {
          transpose(from, b_n, to + k * kPanel + v * kLanes, kPanel);
        } else {
          float rows[kLanes * kLanes];
          for (int64_t j = 0; j < kLanes; ++j) store(rows + j * kLanes, load(from + j * b_n, Full{}), Full{});
          transpose(rows, kLanes, to + k * kPanel + v * kLanes, kPanel);
        }
      }
  for (; k < kc; ++k) {
    for (int64_t j = 0; j < columns; ++j) to[k * kPanel + j] = to_float(b[k * b_k + j * b_n]);
    for (int64_t j = columns; j < kPanel; ++j) to[k * kPanel + j] = 0;
  }
}

// Packs n columns into panels of (kc, 16), one after the other.
static inline void pack_panels(float* to, DType type, const void* b, int64_t b_k, int64_t b_n, int64_t kc, int64_t n) {
  with_type(type, b, [&](auto* p) {
    for (int64_t j = 0; j < n; j += kPanel) pack_panel(to + j * kc, p + j * b_n, b_k, b_n, kc, n - j < kPanel ? n - j : kPanel);
  });
}

}  // namespace QKV_ISA
}  // namespace qkv
