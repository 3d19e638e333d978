// What both products, gemm.cpp and gemm_quantized.cpp, do with a finished piece of a row: bias, activation, gate, residual and
// conversion in one pass; or what tiles add as they store their sums, where there is nothing else: the same additions in the same
// order.
#pragma once
#include "cpu/activation.h"
#include "cpu/kernels.h"
#include "cpu/simd/loops.h"
#include "cpu/tile.h"

namespace qkv {
namespace QKV_ISA {

// Whether the residual, if there is one, can be read as rows of floats.
QKV_INLINE bool plain_residual(const Epilogue& e) {
  return !e.residual.data || (e.residual.dtype == DType::f32 && e.residual.step == 1 && e.residual.rank <= 1);
}
// Whether tiles can do it all as they store their sums.
QKV_INLINE bool only_adds(const Epilogue& e) { return e.activation == Activation::none && !e.gate.data && plain_residual(e); }
QKV_INLINE Addends addends_of(const Epilogue& e, int64_t row, int64_t column) {
  const int64_t ldr = e.residual.rank ? e.residual.strides[0] : 0;
  return {e.bias ? e.bias + column : nullptr, e.residual.data ? (const float*)e.residual.data + row * ldr + column : nullptr,
          ldr};
}

// Columns [column, column + n) of a row as floats: in place, or in `copy`.
static inline const float* piece(const Rows& x, int64_t row, int64_t column, int64_t n, float* copy) {
  if (!x.data) return nullptr;
  const char* p = row_ptr(x, row) + column * x.step * size_of(x.dtype);
  if (x.dtype == DType::f32 && x.step == 1) return (const float*)p;
  gather(copy, x.dtype, p, x.step, n);
  return copy;
}

// Sums of columns [column, column + n) of some rows, ld apart, from `row` on -> c, whose row 0 starts at `base`. They may lie in
// that place. n <= a chunk's width.
static void finish(const Epilogue& e, int64_t row, int64_t rows, int64_t column, int64_t n, const float* sums, int64_t ld,
                   char* base) {
  const float* const bias = e.bias ? e.bias + column : nullptr;
  with_activation(e.activation, [&](auto f) {
    with_type(e.c.dtype, (void*)base, [&](auto* c) {
      for (int64_t r = row; r < row + rows; ++r, sums += ld) {
        float gate_copy[kChunkPanels * kPanel], residual_copy[kChunkPanels * kPanel];
        const float* const gate = piece(e.gate, r, column, n, gate_copy);
        const float* const residual = piece(e.residual, r, column, n, residual_copy);
        auto* const to = c + row_offset(e.c, r) + column;
        each_pair(n, [&](int64_t i, auto count) {
          auto v = load(sums + i, count);
          if (bias) v = add(v, load(bias + i, count));
          v = f(v);
          if (gate) v = mul(v, load(gate + i, count));
          if (residual) v = add(v, load(residual + i, count));
          store(to + i, v, count);
        });
      }
    });
  });
}

}  // namespace QKV_ISA
}  // namespace qkv
