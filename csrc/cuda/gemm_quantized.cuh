// What the two kernels of gemm_quantized.cu share: the product as they see it, and what becomes of its sums.
#pragma once
#include "cuda/epilogue.cuh"
#include "cuda/quantized.cuh"

namespace qkv::cuda {

constexpr int kQuantizedThreads = 256, kQuantizedWarps = kQuantizedThreads / 32;

struct QuantizedProduct : Epilogue {
  Records w;
  const void* a;  // (m, k), rows aligned to 16 bytes
  void* c;        // (m, n)
  int64_t a_row, c_row;
  int64_t m;
  int64_t k;       // a multiple of 8
  float* partial;  // sums of the splits of k, or nullptr
  int splits;
  int rows;             // of a for a block
  unsigned row_blocks;  // blocks along m
};

__host__ __device__ inline int64_t n_padded(const Records& w) { return w.tiles * kRecordRows; }

// m up to 8, and float32 of any m: gemm_quantized_few.cu. rows: kFewRows, or 1.
constexpr int kFewRows = 8;
void gemm_quantized_few(const QuantizedProduct&, DType, WeightType, Stream);
// 16-bit floats: gemm_quantized_tile.cu. rows: 16, 32, 64 or 128. kTileColumns of c for a block.
constexpr int kTileColumns = 128;
void gemm_quantized_tile(const QuantizedProduct&, DType, WeightType, Stream);

// (splits, m, n_padded)
QKV_DEVICE float* partial_sums(const QuantizedProduct& p, int64_t split, int64_t row) {
  return p.partial + (split * p.m + row) * n_padded(p.w);
}

QKV_DEVICE void to_floats(const uint4& from, float* to) {
  to[0] = __uint_as_float(from.x);
  to[1] = __uint_as_float(from.y);
  to[2] = __uint_as_float(from.z);
  to[3] = __uint_as_float(from.w);
}

// What becomes of a sum, and of 8 neighbouring ones, whose row scales, if there are any, and bias are given.
template <class T>
QKV_DEVICE void finish_one(const QuantizedProduct& p, float v, int64_t row, int64_t n) {
  if (p.w.row_scale) v *= p.w.row_scale[n];
  if (p.bias.data) v += load_float(p.bias.data, p.bias.dtype, n);
  v = activate(p.activation, v);
  if (p.gate.data) v *= to_float(reinterpret_cast<const T*>(p.gate.data)[row * p.gate.s + n * p.gate.d]);
  if (p.residual.data) v += to_float(reinterpret_cast<const T*>(p.residual.data)[row * p.residual.s + n * p.residual.d]);
  static_cast<T*>(p.c)[row * p.c_row + n] = from_float<T>(v);
}
template <class T>
QKV_DEVICE void finish_piece(const QuantizedProduct& p, float (&v)[8], const float* scale, const float* bias, int64_t row,
                             int64_t n) {
  if (p.w.row_scale) {
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] *= scale[i];
  }
  const int count = static_cast<int>(min(p.w.n - n, int64_t{8}));
  finish<T>(p, v, bias, 0, row, n, count, static_cast<T*>(p.c) + row * p.c_row + n);
}

}  // namespace qkv::cuda
